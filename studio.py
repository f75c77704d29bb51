"""What people do with a model: open a photograph, generate, interpolate, edit, find a counterfactual.

manipulate.py and the page work through these functions, figures and evaluation through some of them. So
the same settings give the same pixels everywhere. Images are uint8 (N, S, S, 3), a photograph's square
is uint8 (S, S, 3). Functions compute in the caller's autocast context. ``progress`` is as in
``samplers.Progress``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import devices
import editing
import samplers
from attributes import CELEBA_ATTRIBUTES, parse_request
from classifiers.guide import GuidanceClassifier, load_guide
from config import (
    DrawSettings,
    EditConfig,
    EditSettings,
    GenerateSettings,
    InterpolateSettings,
    ModelFiles,
    PhotographSettings,
    SamplingConfig,
)
from diffusion_model import ConditionalDiffusion, load_model
from editing import INVERSION_STEPS, EditAt, Editor, NoisySource, Watch, smallest_edit
from guidance import GUIDANCE
from image_data.face_finder import FaceSearch, align_to_face
from image_data.photograph import MASKS, Photograph, from_levels
from samplers import Progress, sample_generators

Request = dict[str, float]  # attribute names, and 0 ... 1 as a user says it

# What is made if no attributes are named, as far as the model has them.
USUAL_REQUESTS: tuple[Request, ...] = (
    {"Male": 0, "Smiling": 1, "Young": 1, "Blond_Hair": 1},
    {"Male": 1, "Smiling": 0, "Black_Hair": 1, "No_Beard": 1},
    {"Male": 0, "Eyeglasses": 1, "Brown_Hair": 1, "Smiling": 1},
    {"Male": 1, "Goatee": 1, "No_Beard": 0, "Smiling": 1},
    {"Male": 0, "Wearing_Hat": 1, "Smiling": 1},
    {"Male": 1, "Young": 0, "Gray_Hair": 1, "Eyeglasses": 1},
    {"Male": 0, "Bangs": 1, "Black_Hair": 1, "Wearing_Lipstick": 1},
    {"Male": 1, "Bald": 1, "Young": 0, "Smiling": 1},
)
USUAL_ENDS: tuple[Request, Request] = ({"Male": 1, "Smiling": 0}, {"Male": 0, "Smiling": 1})
USUAL_EDITS = ("Smiling", "Eyeglasses", "Male", "Young", "Blond_Hair", "Bangs", "Wearing_Hat")
USUAL_NUMBER = 8  # of new faces, and of attributes or classes where there are more; by eye: a row
# Log odds by which a counterfactual passes the guide's threshold: a probability of 0.73. By eye: with
# less, the change is hard to see.
FLIP_MARGIN = 1.0


@dataclass(frozen=True)
class Result:
    """What a function made: images (N, S, S, 3), those of ``edit_each`` (edits, strengths, S, S, 3); the
    attribute rows behind them; facts for the manifest; how many images stand well in a row of a grid;
    what guided them, in words."""

    images: np.ndarray
    rows: Tensor
    facts: dict[str, Any] = field(default_factory=dict)
    columns: int = 8
    guidance: str = ""


# -------------------------------------------------------------------- the model and its guide


def load_guide_of(
    files: ModelFiles, model: ConditionalDiffusion, guidance: str = "free", is_needed: bool = False
) -> GuidanceClassifier | None:
    """The guide that belongs to the model: that of ``ModelFiles.guide_file``, else the one inside the
    model. None where there is none.

    Args:
        guidance: the kind of guidance, which says what kind of file --guide names.
        is_needed: whether something other than guidance needs it.

    Raises:
        FileNotFoundError, ValueError: for a file that is not there, or does not fit the model.
    """
    kind = GUIDANCE[guidance].guide
    path = files.guide_file((is_needed or kind != "") and model.guide is None)
    if path is None:
        return model.guide
    # "model" is for guidance by a weaker model, an example in CONTRIBUTING.md.
    load = load_model if kind == "model" else load_guide
    guide: Any = load(path, model.device)
    model.check_guide(guide)
    return guide


def knows_faces(model: ConditionalDiffusion) -> bool:
    """Whether a model is one of faces: it has attributes of CelebA."""
    return not set(CELEBA_ATTRIBUTES).isdisjoint(model.config.attribute_names)


def guide_hash(model: ConditionalDiffusion, guide: GuidanceClassifier | None) -> str | None:
    """The hash of the guide's file; None for a guide inside the model, which has the model's."""
    return None if guide is None or guide is model.guide else guide.file_hash


def model_facts(
    files: ModelFiles, model: ConditionalDiffusion, guide: GuidanceClassifier | None
) -> dict[str, Any]:
    """What a manifest says of the model."""
    return {
        "checkpoint": model.file_hash,
        "guide": guide_hash(model, guide),
        "precision": devices.choose_precision(files.mixed_precision, model.device.type),
        "model": model.config.to_dict(),
    }


def files_behind(
    files: ModelFiles,
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None,
    photographs: Mapping[str, Photograph | None] = {},
    mask: tuple[str | None, np.ndarray | None] = (None, None),
) -> dict[str, tuple[str, str]]:
    """The name, without its folder, and the hash of each file that pictures are made with, by its flag.
    Of a photograph and a mask it is the hash of what the model sees of them.

    Args:
        photographs: by their flag.
        mask: as the settings name it, and as ``open_mask`` gives it.
    """
    hashes = {"checkpoint": (files.checkpoint, model.file_hash)}
    if digest := guide_hash(model, guide):
        hashes["guide"] = str(files.guide_file(True)), digest
    for flag, photograph in photographs.items():
        if photograph:
            hashes[flag] = os.fspath(photograph.path), hash_of(photograph.square)
    if mask[0] and mask[1] is not None:
        hashes["mask"] = mask[0], hash_of((255 * mask[1]).round())
    return {flag: (Path(name).name, digest) for flag, (name, digest) in hashes.items()}


def hash_of(levels: np.ndarray) -> str:
    return hashlib.sha256(levels.astype(np.uint8).tobytes()).hexdigest()


# -------------------------------------------------------------------- defaults


def resolve_drawing(settings: DrawSettings, model: ConditionalDiffusion) -> SamplingConfig:
    """How new faces are drawn: the settings with every default that depends on the model.

    Raises:
        ValueError: for guidance that the model was not trained for.
    """
    unconditional = isinstance(settings, GenerateSettings) and settings.unconditional
    guide_scale = settings.guide_scale if GUIDANCE[settings.guidance].guide else 0.0
    sampling = replace(settings.sampling, guidance=settings.guidance, guide_scale=guide_scale)
    if unconditional or guide_alone(settings, model):
        sampling = replace(sampling, cfg_scale=0.0)
    return samplers.resolve(sampling, model.schedule, model.config.guidable)


def resolve_edit(
    settings: EditSettings,
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None,
    names: Sequence[str] = (),
) -> EditConfig:
    """How a photograph is edited: the settings with every default that depends on the guide and on the
    ``names`` of the attributes to change. Raises as ``resolve_drawing``."""
    config = settings.editing
    if guide_alone(settings, model):
        config = replace(config, cfg_scale=0.0)
    return editing.resolve(config, names, guide is not None)


def guide_alone(settings: DrawSettings | EditSettings, model: ConditionalDiffusion) -> bool:
    """Whether the guide alone steers. ValueError where the model cannot be without a condition."""
    alone = GUIDANCE[settings.guidance].alone
    if alone and not model.config.guidable:
        raise ValueError(
            f"--guidance {settings.guidance} starts from no condition. This model, trained with "
            "--cfg_dropout 0, never saw that: use --guidance both"
        )
    return alone


def guidance_in_words(scales: SamplingConfig | EditConfig, guide: GuidanceClassifier | None) -> str:
    """What guides, for a title."""
    text = f"guidance {scales.cfg_scale:g}"
    if scales.guide_scale and guide is not None:
        return f"{text}, guide at {scales.guide_scale:g}"
    ends = isinstance(scales, EditConfig) and scales.guide_scale
    return f"{text}, no guide: ended by the VAE's head" if ends else text


# -------------------------------------------------------------------- requests


def names_to_request(
    model: ConditionalDiffusion, guide: GuidanceClassifier | None, guidance: str
) -> tuple[str, ...]:
    """The attributes that a request can name: the model's, or those of a guide that steers alone."""
    if guide is not None and GUIDANCE[guidance].alone:
        return guide.config.attribute_names
    return model.config.attribute_names


def check_is_read(names: Sequence[str], guide: GuidanceClassifier) -> None:
    """Raise ValueError for the name of an attribute that the guide does not read."""
    read = list(guide.config.attribute_names)
    for name in names:
        if name not in read:
            raise ValueError(f"the guide does not read {name}: name one of {read}")


def check_pins(settings: EditSettings, guide: GuidanceClassifier | None) -> None:
    """Raise ValueError where attributes are pinned and no guide holds them."""
    if settings.pins and (guide is None or not settings.editing.guide_scale):
        lack = "there is none: give --guide" if guide is None else "--edit_guide_scale is 0: raise it"
        raise ValueError(f"--hold {' '.join(settings.pins)} needs a guide that steers, and {lack}")
    if guide is not None:
        check_is_read(settings.pins, guide)


def usual_requests(requests: Sequence[Request], names: Sequence[str]) -> list[Request]:
    """The parts of built-in requests that are among ``names``, each once."""
    parts: list[Request] = []
    for request in requests:
        part = {name: value for name, value in request.items() if name in names}
        if part and part not in parts:
            parts.append(part)
    return parts


# -------------------------------------------------------------------- new faces


def generate(
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None,
    settings: GenerateSettings,
    progress: Progress = False,
) -> Result:
    """New faces. Image i depends on the seed and i, not on how many are drawn."""
    requests, columns = requests_to_generate(model, guide, settings)
    rows = model.attribute_rows(requests)  # (N, A)
    if not (settings.open or settings.unconditional):
        # The noise of image i comes from the seed (seed, i). These must not be the same numbers.
        generators = sample_generators(settings.seed + 1, range(len(rows)))
        rows = model.complete_rows(rows, generator=generators)
    sampling = resolve_drawing(settings, model)
    images = draw(model, rows, sampling, settings.seed, progress, guide=guide, complete=False)
    facts = {"attributes": requests, "rows": rows.tolist()}
    guidance = "unconditional" if settings.unconditional else guidance_in_words(sampling, guide)
    return Result(images.numpy(), rows, facts, columns, guidance)


def requests_to_generate(
    model: ConditionalDiffusion, guide: GuidanceClassifier | None, settings: GenerateSettings
) -> tuple[list[Request], int]:
    """A request for each new face, and how many faces stand in a row of a grid."""
    number, config = settings.num_samples, model.config
    names = names_to_request(model, guide, settings.guidance)
    if settings.attributes or settings.unconditional:
        return [parse_request(settings.attributes)] * (number or USUAL_NUMBER), USUAL_NUMBER
    if config.one_of_two:
        requests: list[Request] = [{names[0]: value} for value in (0.0, 1.0)]
    elif config.one_hot:
        requests = [{name: 1.0} for name in names]
    else:
        built_in = usual_requests(USUAL_REQUESTS, names)
        if built_in:  # one column for each request
            rounds = number or -(-USUAL_NUMBER // len(built_in))
            return built_in * rounds, len(built_in)
        requests = [{name: 1.0} for name in names[:USUAL_NUMBER]]
    number = number or USUAL_NUMBER  # one row for each
    return [request for request in requests for _ in range(number)], number


def draw(
    model: ConditionalDiffusion,
    rows: Tensor,
    sampling: SamplingConfig,
    seed: int = 0,
    progress: Progress = False,
    batch_size: int = 50,
    **options: Any,
) -> Tensor:
    """Images (N, S, S, 3) under attribute rows (N, A), on the CPU. Image i is drawn from the seed
    (seed, i). ``options`` are those of ``ConditionalDiffusion.sample``."""
    generators = sample_generators(seed, range(len(rows)))
    options |= {"sampling": sampling, "progress": progress}
    parts = []
    for start in range(0, len(rows), batch_size):
        batch, own = rows[start : start + batch_size], generators[start : start + batch_size]
        images = model.sample(len(batch), attributes=batch, generator=own, **options)
        parts.append(images.cpu())
    return torch.cat(parts)


# -------------------------------------------------------------------- interpolations


def interpolate(
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None,
    settings: InterpolateSettings,
    progress: Progress = False,
) -> Result:
    """Frames from one request to another, all from one noise."""
    start, end = parse_request(settings.start), parse_request(settings.end)
    if not start:
        start, end = usual_ends(model, guide, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    rows = model.attribute_rows(start), model.attribute_rows(end)
    if not settings.open:
        rows = model.complete_ends(*rows, generator.clone_state())
    images = model.interpolate_between_attributes(
        *rows,
        settings.interpolation_steps,
        sampling=resolve_drawing(settings, model),
        generator=generator,
        progress=progress,
        guide=guide,
        complete=False,
    )
    facts = {"from": start, "to": end, "rows": [row[0].tolist() for row in rows]}
    return Result(images.cpu().numpy(), torch.cat(rows), facts, len(images))


def usual_ends(
    model: ConditionalDiffusion, guide: GuidanceClassifier | None, settings: InterpolateSettings
) -> tuple[Request, Request]:
    """The requests at both ends where none is named."""
    names = names_to_request(model, guide, settings.guidance)
    ends = usual_requests(USUAL_ENDS, names)
    if not ends:
        first, *others = names
        ends = [{first: 1.0}, {others[0]: 1.0}] if others else [{first: 0.0}, {first: 1.0}]
    return ends[0], ends[1]


def interpolate_photographs(
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None,
    squares: tuple[np.ndarray, np.ndarray],
    settings: InterpolateSettings,
    progress: Progress = False,
) -> Result:
    """Frames from one photograph's square to another's."""
    images = torch.from_numpy(np.stack(squares))
    rows = model.predict_attributes(images, guide)
    steps = settings.sampling.num_inference_steps or INVERSION_STEPS
    frames = Editor(model).interpolate(images, settings.interpolation_steps, steps, rows, progress)
    return Result(frames.cpu().numpy(), rows, {}, len(frames))


# -------------------------------------------------------------------- photographs


def open_photograph(
    model: ConditionalDiffusion, settings: PhotographSettings
) -> tuple[Photograph, FaceSearch | None]:
    """A photograph as the model sees it: by its landmarks, or at a face that is searched for, or, for
    face 0, cropped at the centre. Faces are searched for by models of faces alone.

    Returns:
        the photograph, and what the search found; None where nothing was searched for.

    Raises:
        FileNotFoundError, ValueError: for what is no picture, or landmarks or a face that are not there.
    """
    path, config = str(settings.source_image), model.config
    if settings.face > 1 and not knows_faces(model):
        raise ValueError(f"--face {settings.face}: this is no model of faces, leave it out")
    photograph = Photograph(path, config.image_size, config.crop, settings.landmarks)
    if settings.landmarks or not settings.face or not knows_faces(model):
        return photograph, None
    return photograph, align_to_face(photograph, settings.face)


def open_mask(
    model: ConditionalDiffusion,
    photograph: Photograph,
    name: str | None,
    search: FaceSearch | None = None,
) -> np.ndarray | None:
    """A photograph's mask as edits take it: float32 (S, S) in [0, 1]; None for none.

    Args:
        name: a file, or one of MASKS, which need a face that lies as CelebA's do.
        search: what ``open_photograph`` found.

    Raises:
        FileNotFoundError, ValueError: for a file that does not fit, a black one, a face that is not
            there.
    """
    if name is None:
        return None
    if name not in MASKS:
        mask = photograph.read_mask(name)
    elif not has_placed_face(model, search):
        reason = search.line if search else "this is no model of faces"
        raise ValueError(f"--mask {name} is of a face, and {reason}: give --landmarks, or a file")
    else:
        mask = photograph.usual_mask(name)
    if not mask.any():
        raise ValueError(f"mask {name} is black all over: nothing may change")
    return mask


def has_placed_face(model: ConditionalDiffusion, search: FaceSearch | None) -> bool:
    """Whether a face lies in the square as CelebA's do: one that was found; or, where none was searched
    for, the one that landmarks or --face 0 stand for."""
    return knows_faces(model) and (search is None or bool(search.faces))


def mask_of_change(square: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """Where an edit changed a square, as a mask for other edits: float32 (S, S) in [0, 1]."""
    pictures = torch.from_numpy(np.stack([square, edited])).movedim(3, 1) / 255
    mask = editing.where_changed(pictures[:1], pictures[1:], EditConfig().localise)
    return from_levels(255 * mask[0, 0].numpy())


def read_attributes(
    model: ConditionalDiffusion, guide: GuidanceClassifier | None, square: np.ndarray
) -> Tensor:
    """The attributes (1, A) in [-1, 1] that a square shows, as the guide reads them, or else the VAE."""
    return model.predict_attributes(torch.from_numpy(square)[None], guide)


def prepare_edits(
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None,
    square: np.ndarray,
    attributes: Tensor,
    rows: Tensor,
    settings: EditSettings,
    progress: Progress = False,
    mask: np.ndarray | None = None,
    sources: dict[EditConfig, NoisySource] | None = None,
) -> EditAt:
    """A square that shows ``attributes`` (1, A), edited towards every row (N, A): strength -> images
    (N, S, S, 3).

    Each row is edited by itself, from the same noise. So an edit does not depend on what else is asked
    for, not by a level of a pixel.

    Args:
        mask: float32 (S, S) in [0, 1], 1 where the edit may act, as of ``open_mask``; None is
            everywhere.
        sources: what edits of this square with this seed and guide have shared so far. It is added to,
            so that the next edit is sooner there.
    """
    check_pins(settings, guide)
    names = model.config.attribute_names
    editor, image = Editor(model), torch.from_numpy(square)[None]
    region = None if mask is None else torch.from_numpy(mask)
    sources = {} if sources is None else sources  # rows with the same needs share one
    edits = []
    for row in rows:
        named = [names[i] for i in row.nonzero()[:, 0].tolist()]
        config = resolve_edit(settings, model, guide, named)
        if config not in sources:
            generator = torch.Generator().manual_seed(settings.seed)
            sources[config] = editor.prepare_source(image, config, guide, generator)
        edit_at = editor.prepare_edit(
            image,
            row[None],
            config,
            source_attributes=attributes,
            guide=guide,
            progress=progress,
            mask=region,
            pins=settings.pins,
            source=sources[config],
        )
        edits.append(edit_at)
    return lambda strength, watch=None: torch.cat([edit_at(strength, watch) for edit_at in edits])


def edit(
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None,
    square: np.ndarray,
    settings: EditSettings,
    progress: Progress = False,
    mask: np.ndarray | None = None,
    sources: dict[EditConfig, NoisySource] | None = None,
    watch: Watch | None = None,
) -> Result:
    """A square, edited towards all named attributes at once: one image. ``sources`` are those of
    ``prepare_edits``. ``watch`` is shown the edit before it is finished."""
    request = parse_request(settings.attributes)
    rows = model.attribute_rows(request)
    attributes = read_attributes(model, guide, square)
    shared = (settings, progress, mask, sources)
    edit_at = prepare_edits(model, guide, square, attributes, rows, *shared)
    images = edit_at(settings.manipulation_strength, watch).cpu().numpy()
    return Result(images, rows, {"attributes": [request]})


def edit_each(
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None,
    square: np.ndarray,
    settings: EditSettings,
    strengths: Sequence[float],
    progress: Progress = False,
    mask: np.ndarray | None = None,
) -> Result:
    """Several edits of a square, each at all strengths: see ``requests_to_edit``."""
    attributes = read_attributes(model, guide, square)
    requests = requests_to_edit(model, guide, settings, attributes[0])
    rows = model.attribute_rows(requests)  # (N, A)
    edit_at = prepare_edits(model, guide, square, attributes, rows, settings, progress, mask)
    images = np.stack([edit_at(strength).cpu().numpy() for strength in strengths], 1)
    configs = [resolve_edit(settings, model, guide, list(request)) for request in requests]
    facts = {
        "attributes": requests,
        "t_start": [config.t_start for config in configs],
        "margin": [config.margin for config in configs],
    }
    return Result(images, rows, facts, guidance=guidance_in_words(configs[0], guide))


def requests_to_edit(
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None,
    settings: EditSettings,
    attributes: Tensor,
) -> list[Request]:
    """The edits of a photograph that shows ``attributes`` (A,): each named attribute alone, then all
    together. If none is named, some attributes are turned into what they are not, or a class into
    others."""
    names = model.config.attribute_names
    request = parse_request(settings.attributes)
    if request:
        edits = [{name: value} for name, value in request.items()]
        return [*edits, request] if len(edits) > 1 else edits
    if model.config.one_hot:
        others = [name for i, name in enumerate(names) if i != int(attributes.argmax())]
        return [{name: 1.0} for name in others[:USUAL_NUMBER]]
    reachable = names_to_request(model, guide, settings.guidance)
    reachable = [name for name in reachable if name not in settings.pins]
    some = [name for name in USUAL_EDITS if name in reachable] or reachable[:6]
    if not some:
        raise ValueError("--hold leaves nothing to edit: hold fewer attributes")
    return [{name: float(attributes[names.index(name)] < 0)} for name in some]


# -------------------------------------------------------------------- counterfactuals


def log_odds_of(guide: GuidanceClassifier, request: Request, image: Tensor) -> float:
    """The log odds by which a request is met in an image (1, S, S, 3), as the guide reads it. The lowest
    of the named attributes counts."""
    names = list(guide.config.attribute_names)
    odds = (guide.read_logits(image) - guide.prior)[0].tolist()
    return min(odds[names.index(name)] * (1 if value > 0.5 else -1) for name, value in request.items())


def smallest_flip(edit_at: EditAt, guide: GuidanceClassifier, request: Request) -> tuple[float, Tensor]:
    """The least strength at which an edit passes the guide's thresholds of a request by FLIP_MARGIN, and
    the edit there, an image (1, S, S, 3). Strength 1 where none does."""
    return smallest_edit(edit_at, lambda image: log_odds_of(guide, request, image) - FLIP_MARGIN)


def counterfactual(
    model: ConditionalDiffusion,
    guide: GuidanceClassifier,
    square: np.ndarray,
    settings: EditSettings,
    progress: Progress = False,
    mask: np.ndarray | None = None,
) -> Result:
    """The smallest change of a square with which the guide sees what was asked for: one image, that of
    ``smallest_flip``.

    Raises:
        ValueError: for an attribute that the guide does not read, or one that is to be 0.5.
    """
    request = parse_request(settings.attributes)
    rows = model.attribute_rows(request)
    check_is_read(list(request), guide)
    for name, value in request.items():
        if value == 0.5:
            raise ValueError(f"a counterfactual of {name}=0.5 flips nothing: ask for 0 or 1")
    attributes = read_attributes(model, guide, square)
    edit_at = prepare_edits(model, guide, square, attributes, rows, settings, progress, mask)
    strength, image = smallest_flip(edit_at, guide, request)
    margin = log_odds_of(guide, request, image)
    facts = {
        "strength": strength,
        "margin": margin,
        "flipped": margin >= FLIP_MARGIN,
        "margin_before": log_odds_of(guide, request, torch.from_numpy(square)[None]),
        "attributes": request,
    }
    return Result(image.cpu().numpy(), rows, facts)
