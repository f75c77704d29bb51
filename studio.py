"""What people do with a model: open a photograph, generate, interpolate, edit, find a counterfactual.

manipulate.py, the page, the figures and the evaluation all work through these functions. So the same
settings give the same pixels everywhere. Images are uint8 (N, S, S, 3). Functions compute in the
caller's autocast context. ``progress`` is as in ``samplers.Progress``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain, product
from typing import Any, TypeVar, overload

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

import devices
from attributes import CELEBA_ATTRIBUTES, parse_request
from checkpoint import file_hash
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
from editing import EditAt, Editor, smallest_edit
from editing import resolve as resolve_editing
from guidance import GUIDANCE
from image_data.face_finder import FaceSearch, align_to_face
from image_data.photograph import Photograph
from samplers import Progress, sample_generators
from samplers import resolve as resolve_sampling

Request = dict[str, float]  # attribute names, and 0 ... 1 as a user says it
Part = TypeVar("Part")
Done = TypeVar("Done")

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
    """What a function made.

    Attributes:
        images: uint8 (N, S, S, 3); those of ``edit_each`` (edits, strengths, S, S, 3).
        rows: the attribute rows behind them.
        facts: for the manifest.
        columns: how many images stand well in a row of a grid.
    """

    images: np.ndarray
    rows: Tensor
    facts: dict[str, Any] = field(default_factory=dict)
    columns: int = 8


# -------------------------------------------------------------------- the model and its guide


def load_guide_of(
    files: ModelFiles, model: ConditionalDiffusion, guidance: str = "free", is_needed: bool = False
) -> GuidanceClassifier | None:
    """The guide that belongs to the model: see ``ModelFiles.guide_file``. None where there is none.

    Args:
        guidance: the kind of guidance, which says what kind of file --guide names.
        is_needed: whether something other than guidance needs it.

    Raises:
        FileNotFoundError, ValueError: for a file that is not there, or does not fit the model.
    """
    path = files.guide_file(is_needed or guidance != "free")
    if path is None:
        return None
    is_model = GUIDANCE[guidance].guide == "model"
    guide: Any = load_model(path, model.device) if is_model else load_guide(path, model.device)
    model.check_guide(guide)
    return guide


def knows_faces(model: ConditionalDiffusion) -> bool:
    """Whether a model is one of faces: it has attributes of CelebA."""
    return not set(CELEBA_ATTRIBUTES).isdisjoint(model.config.attribute_names)


def model_facts(
    files: ModelFiles, model: ConditionalDiffusion, guide: GuidanceClassifier | None
) -> dict[str, Any]:
    """What a manifest says of the model."""
    return {
        "checkpoint": file_hash(files.checkpoint),
        "guide": file_hash(str(files.guide_file(is_needed=True))) if guide else None,
        "precision": devices.choose_precision(files.mixed_precision, model.device.type),
        "model": model.config.to_dict(),
    }


# -------------------------------------------------------------------- defaults


@overload
def resolve(
    settings: DrawSettings, model: ConditionalDiffusion, guide: GuidanceClassifier | None = None
) -> SamplingConfig: ...


@overload
def resolve(
    settings: EditSettings,
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None = None,
    named: Sequence[str] = (),
) -> EditConfig: ...


def resolve(settings, model, guide=None, named=()):
    """How new faces are drawn, or photographs are edited: the settings with every default that depends
    on the model, its guide and the attributes ``named`` in an edit.

    Raises:
        ValueError: for guidance that the model was not trained for.
    """
    by_guide_alone = settings.guidance == "guide"
    if by_guide_alone and not model.config.guidable:
        raise ValueError(
            "--guidance guide starts from no condition. This model, trained with --cfg_dropout 0, never "
            "saw that: use --guidance both"
        )
    if isinstance(settings, EditSettings):
        editing = settings.editing
        if by_guide_alone:
            editing = replace(editing, cfg_scale=0.0)
        return resolve_editing(editing, named, guide is not None)
    sampling = settings.sampling
    if by_guide_alone or getattr(settings, "unconditional", False):
        sampling = replace(sampling, cfg_scale=0.0)
    guide_scale = 0.0 if settings.guidance == "free" else settings.guide_scale
    sampling = replace(sampling, guidance=settings.guidance, guide_scale=guide_scale)
    return resolve_sampling(sampling, model.schedule, model.config.guidable)


def names_to_request(
    model: ConditionalDiffusion, guide: GuidanceClassifier | None, guidance: str
) -> tuple[str, ...]:
    """The attributes that a request can name: the model's, or those of a guide that steers alone."""
    if guide is not None and guidance == "guide":
        return guide.config.attribute_names
    return model.config.attribute_names


def check_is_read(names: Sequence[str], guide: GuidanceClassifier) -> None:
    """Raise ValueError for the name of an attribute that the guide does not read."""
    read = list(guide.config.attribute_names)
    for name in names:
        if name not in read:
            raise ValueError(f"the guide does not read {name}: name one of {read}")


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
    if settings.open or settings.unconditional:
        rows = model.attribute_rows(requests)  # (N, A)
    else:
        rows = complete_requests(model, requests, settings.seed)
    sampling = resolve(settings, model)
    options = {"guide": guide, "complete": False, "progress": progress}
    images = draw(model, rows, sampling, nullcontext(), settings.seed, **options).numpy()
    return Result(images, rows, {"attributes": requests, "rows": rows.tolist()}, columns)


def requests_to_generate(
    model: ConditionalDiffusion, guide: GuidanceClassifier | None, settings: GenerateSettings
) -> tuple[list[Request], int]:
    """A request for each new face, and how many faces stand in a row of a grid."""
    number, config = settings.num_samples, model.config
    names = names_to_request(model, guide, settings.guidance)
    if settings.attributes or settings.unconditional:
        return [parse_request(settings.attributes)] * (number or USUAL_NUMBER), USUAL_NUMBER
    built_in = []
    if not (config.one_hot or config.one_of_two):
        built_in = usual_requests(USUAL_REQUESTS, names)
    if built_in:  # each has a column of its own
        rounds = number or -(-USUAL_NUMBER // len(built_in))
        return built_in * rounds, len(built_in)
    if config.one_of_two:
        each: list[Request] = [{names[0]: value} for value in (0.0, 1.0)]
    else:
        some = names if config.one_hot else names[:USUAL_NUMBER]
        each = [{name: 1.0} for name in some]
    number = number or USUAL_NUMBER  # in a row of its own
    return [request for request in each for _ in range(number)], number


def complete_requests(model: ConditionalDiffusion, requests: Sequence[Request], seed: int) -> Tensor:
    """Complete attribute rows (N, A) for requests. What row i does not name is drawn from the seed
    (seed + 1, i): its noise comes from (seed, i), and the two must not be the same numbers."""
    return model.complete_rows(requests, generator=sample_generators(seed + 1, range(len(requests))))


# -------------------------------------------------------------------- drawing many images


def in_parallel(work: Callable[[Part], Done], parts: Sequence[Part]) -> list[Done]:
    """[work(part) for part in parts], with the parts shared among the processes.

    Every process must call this, and every process gets all results. So what follows is the same in all
    of them.
    """
    processes = PartialState()
    number = processes.num_processes
    own = [work(part) for part in parts[processes.process_index :: number]]
    done = gather_object([own])  # done[p]: what process p did
    return [done[i % number][i // number] for i in range(len(parts))]


def draw_batches(
    then: Callable[[Tensor], Done],
    model: ConditionalDiffusion,
    rows: Tensor,
    sampling: SamplingConfig,
    autocast,
    seed: int = 0,
    batch_size: int = 50,
    bar: tqdm | None = None,
    numbers: Sequence[int] | None = None,
    **options,
) -> list[Done]:
    """``then`` of every batch of images uint8 (B, H, W, 3), drawn under attribute rows (N, A). Only one
    batch is in memory. The processes share the batches.

    Args:
        seed, numbers: image i is drawn from the seed (seed, numbers[i]), by default (seed, i).
        bar: counts images; where none is given, each batch has a bar of its own.
        options: of ``ConditionalDiffusion.sample``.
    """
    processes = PartialState()
    options.setdefault("progress", bar is None and processes.is_main_process)
    numbers = range(len(rows)) if numbers is None else numbers

    def part(start: int) -> Done:
        batch = rows[start : start + batch_size]
        generators = sample_generators(seed, numbers[start : start + batch_size])
        with autocast:
            images = model.sample(len(batch), None, batch, sampling, generators, **options)
        if bar is not None:
            bar.update(len(batch) * processes.num_processes)
        return then(images)

    return in_parallel(part, range(0, len(rows), batch_size))


def draw(*args, **options) -> Tensor:
    """``draw_batches`` that keeps the images: uint8 (N, H, W, 3), on the CPU."""
    return torch.cat(draw_batches(Tensor.cpu, *args, **options))


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
    if settings.open:
        rows = model.attribute_rows(start), model.attribute_rows(end)
    else:
        rows = model.complete_ends(start, end, generator.clone_state())
    images = model.interpolate_between_attributes(
        *rows,
        settings.interpolation_steps,
        sampling=resolve(settings, model),
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
    """Frames from one photograph's square uint8 (S, S, 3) to another's."""
    images = torch.from_numpy(np.stack(squares))
    rows = model.predict_attributes(images, guide)
    frames = Editor(model).interpolate(
        images,
        settings.interpolation_steps,
        settings.editing.num_inference_steps,
        rows,
        progress=progress,
    )
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


@dataclass(frozen=True)
class Source:
    """A photograph's square uint8 (1, S, S, 3), and the attributes (1, A) that are read in it: by the
    guide, or else by the VAE."""

    image: Tensor
    attributes: Tensor


def read_source(
    model: ConditionalDiffusion, guide: GuidanceClassifier | None, square: np.ndarray
) -> Source:
    """A square uint8 (S, S, 3) with what it shows."""
    image = torch.from_numpy(square)[None]
    return Source(image, model.predict_attributes(image, guide))


def prepare_edits(
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None,
    source: Source,
    rows: Tensor,
    settings: EditSettings,
    progress: Progress = False,
) -> EditAt:
    """A photograph, edited towards every row (N, A): strength -> uint8 (N, S, S, 3).

    Rows with the same needs and as many names are edited together, from the same noise. So an edit does
    not depend on what else is asked for.
    """
    names = model.config.attribute_names
    rows_of: dict[tuple[EditConfig, int], list[int]] = {}
    for i, row in enumerate(rows.tolist()):
        named = [name for name, value in zip(names, row, strict=True) if value]
        rows_of.setdefault((resolve(settings, model, guide, named), len(named)), []).append(i)
    edits = [
        Editor(model).prepare_edit(
            source.image,
            rows[alike],
            editing,
            source_attributes=source.attributes,
            guide=guide,
            generator=torch.Generator().manual_seed(settings.seed),
            progress=progress,
        )
        for (editing, _), alike in rows_of.items()
    ]
    order = torch.tensor([*chain(*rows_of.values())]).argsort()
    return lambda strength: torch.cat([edit_at(strength) for edit_at in edits])[order]


def edit(
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None,
    square: np.ndarray,
    settings: EditSettings,
    progress: Progress = False,
) -> Result:
    """A square uint8 (S, S, 3), edited towards all named attributes at once: one image."""
    request = parse_request(settings.attributes)
    source, rows = read_source(model, guide, square), model.attribute_rows(request)
    edit_at = prepare_edits(model, guide, source, rows, settings, progress)
    return Result(edit_at(settings.manipulation_strength).cpu().numpy(), rows, {"attributes": [request]})


def edit_each(
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None,
    square: np.ndarray,
    settings: EditSettings,
    strengths: Sequence[float],
    progress: Progress = False,
) -> Result:
    """Several edits of a square uint8 (S, S, 3), each at all strengths: see ``requests_to_edit``."""
    source = read_source(model, guide, square)
    requests = requests_to_edit(model, guide, settings, source.attributes[0])
    rows = model.attribute_rows(requests)  # (N, A)
    edit_at = prepare_edits(model, guide, source, rows, settings, progress)
    images = np.stack([edit_at(strength).cpu().numpy() for strength in strengths], 1)
    resolved = [resolve(settings, model, guide, list(request)) for request in requests]
    facts = {
        "attributes": requests,
        "t_start": [editing.t_start for editing in resolved],
        "margin": [editing.margin for editing in resolved],
    }
    return Result(images, rows, facts)


def requests_to_edit(
    model: ConditionalDiffusion, guide: GuidanceClassifier | None, settings: EditSettings, has: Tensor
) -> list[Request]:
    """The edits of a photograph with attributes ``has`` (A,): each named attribute alone, then all
    together. If none is named, some attributes are turned into what they are not, or a class into
    others."""
    names = model.config.attribute_names
    request = parse_request(settings.attributes)
    if request:
        edits = [{name: value} for name, value in request.items()]
        return [*edits, request] if len(edits) > 1 else edits
    if model.config.one_hot:
        others = [name for i, name in enumerate(names) if i != int(has.argmax())]
        return [{name: 1.0} for name in others[:USUAL_NUMBER]]
    reachable = names_to_request(model, guide, settings.guidance)
    some = [name for name in USUAL_EDITS if name in reachable] or list(reachable)[:6]
    return [{name: float(has[names.index(name)] < 0)} for name in some]


def edit_pairs(
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None,
    square: np.ndarray,
    settings: EditSettings,
    strengths: Sequence[float],
    progress: Progress = False,
) -> Result:
    """The first two named attributes at once, each at all strengths: images row by row, the first
    attribute down, the second to the right."""
    source = read_source(model, guide, square)
    edits = [{name: value} for name, value in parse_request(settings.attributes).items()][:2]
    targets = model.attribute_rows(edits)
    has = source.attributes.cpu().clone()
    pairs = list(product(strengths, repeat=2))
    rows = targets.new_zeros(len(pairs), targets.shape[1])
    for i, request in enumerate(edits):
        column = model.config.attribute_names.index(next(iter(request)))
        full = float(targets[i, column])
        has[:, column] = -full  # strength 0
        for row, pair in zip(rows, pairs, strict=True):
            value = full * (2 * pair[i] - 1)
            row[column] = value if abs(value) > 1e-3 else 1e-3  # 0 would mean: not named
    # The rows say the strength, so each is a full edit, and strength 0 is what ``has`` says.
    settings = replace(settings, editing=replace(settings.editing, oppose=False))
    edit_at = prepare_edits(model, guide, Source(source.image, has), rows, settings, progress)
    return Result(edit_at(1.0).cpu().numpy(), rows, {"attributes": edits}, len(strengths))


def counterfactual(
    model: ConditionalDiffusion,
    guide: GuidanceClassifier,
    square: np.ndarray,
    settings: EditSettings,
    progress: Progress = False,
) -> Result:
    """The smallest change of a square uint8 (S, S, 3) with which the guide sees what was asked for: one
    image. That is the least strength at which the edit passes the guide's threshold by FLIP_MARGIN, for
    every attribute named.

    Raises:
        ValueError: for an attribute that the guide does not read, or one that is to be 0.5.
    """
    request = parse_request(settings.attributes)
    rows = model.attribute_rows(request)
    check_is_read(list(request), guide)
    for name, value in request.items():
        if value == 0.5:
            raise ValueError(f"a counterfactual of {name}=0.5 flips nothing: ask for 0 or 1")
    columns = [guide.config.attribute_names.index(name) for name in request]
    signs = rows[0, [model.config.attribute_names.index(name) for name in request]].sign()

    def margin(picture: Tensor) -> float:
        """The log odds by which the least certain of the attributes passes its threshold."""
        odds = (guide.read_logits(picture) - guide.prior)[0, columns].cpu()
        return float((odds * signs).min())

    source = read_source(model, guide, square)
    edit_at = prepare_edits(model, guide, source, rows, settings, progress)
    strength, images = smallest_edit(edit_at, lambda edited: margin(edited) - FLIP_MARGIN)
    reached = margin(images)
    facts = {
        "strength": strength,
        "margin": reached,
        "flipped": reached >= FLIP_MARGIN,
        "margin_before": margin(source.image),
        "attributes": request,
    }
    return Result(images.cpu().numpy(), rows, facts)
