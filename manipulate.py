"""Generate, interpolate and edit faces by named attributes with a trained checkpoint.

Writes labelled grids, single images, an interpolation strip and GIF, an edit row, and manifest.json
with everything needed to make them again. The attributes' names and the model's shape come from the
checkpoint. What a request does not name is copied from a row of the training set that agrees with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import devices
import flags  # first: it refuses an old Python in one line

# isort: split
import numpy as np

from config import (
    DATASET_HELP,
    DATASETS,
    DEFAULT_MODEL,
    GUIDANCE,
    PRETRAINED,
    REQUEST,
    EditConfig,
    ModelConfig,
    SamplingConfig,
    count,
    flag,
    nested,
    refuse_ignored_requests,
    share,
    weight,
)
from devices import DeviceConfig
from figures.grids import caption, heat_map, save_gif, save_grid, save_image
from image_data.face_finder import align_to_face
from image_data.photograph import Photograph

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from classifiers.guide import GuidanceClassifier
    from diffusion_model import ConditionalDiffusion

MODES = ("generate", "interpolate", "edit", "counterfactual", "all")


@dataclass(frozen=True)
class ManipulateConfig(DeviceConfig):
    """Flags of manipulate.py."""

    checkpoint: str = flag(DEFAULT_MODEL, "a model of train.py, or one of pretrained/ by its name")
    mode: str = flag("all", "what to make", choices=MODES)
    output_dir: str = flag("./outputs", "folder to write to")
    data_root: str | None = flag(None, "folder of images: its first test image is edited by default")
    dataset: str | None = flag(None, DATASET_HELP, choices=DATASETS)
    source_image: str | None = flag(None, "photograph to edit")
    target_image: str | None = flag(None, "photograph to interpolate to, from --source_image")
    landmarks: tuple[float, ...] | None = flag(
        None,
        "x y of left eye, right eye, nose, left and right mouth corner of --source_image, in pixels: "
        "aligns it as CelebA's are",
        metavar="XY",
    )
    face: int = count(
        1, "which face of --source_image, 1 the largest; 0: no search, cropped at the centre", low=0
    )
    paste_back: bool = flag(False, "also write edits in the whole --source_image")
    attributes: tuple[str, ...] = flag(
        (), "what to ask for, such as Smiling=1 Male=0: 1 there, 0 not, 0.5 open", metavar=REQUEST
    )
    start: tuple[str, ...] = flag(
        (), "where an interpolation starts, such as Smiling=0", name="from", metavar=REQUEST
    )
    end: tuple[str, ...] = flag((), "where it ends, such as Smiling=1", name="to", metavar=REQUEST)
    open: bool = flag(False, "leave what is not named to the network: often shapeless")
    unconditional: bool = flag(False, "new faces without any request")
    num_samples: int | None = count(
        None, "new faces of each request or class; none given: 8 of each class, else 8 in all"
    )
    guidance: str = flag(
        "free", "what steers new faces: classifier-free guidance, --guide, or both", choices=GUIDANCE
    )
    guide: str | None = flag(
        None, "classifier of train.py --stage guide: it steers, and reads photographs"
    )
    guide_scale: float = weight(3.0, "weight of the guide's gradient in new faces")
    manipulation_strength: float = share(1.0, "0 the source, 1 the full edit")
    interpolation_steps: int = count(10, "frames of a strip", low=2)
    seed: int = count(0, "another seed, other faces", low=0)
    sampling: SamplingConfig = nested(SamplingConfig)
    editing: EditConfig = nested(EditConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.start) != bool(self.end):
            raise ValueError("--from and --to go together: name the attributes at both ends")
        if self.target_image and self.mode not in ("interpolate", "all"):
            raise ValueError(f"--target_image is for --mode interpolate, and this is {self.mode}")
        if self.landmarks and not self.source_image:
            raise ValueError("--landmarks are those of --source_image: give it, too")
        if self.face > 1 and (self.landmarks or not self.source_image):
            raise ValueError(
                f"--face {self.face} is searched for in --source_image: give it, and no --landmarks"
            )
        if self.mode == "counterfactual" and not self.attributes:
            raise ValueError("--mode counterfactual needs --attributes: what is to flip: Smiling=0")
        if self.editing.cfg_scale == 0:
            raise ValueError("--edit_cfg_scale 0 ignores every request; no guidance is 1")
        if self.sampling.cfg_scale is not None and self.mode in ("edit", "counterfactual"):
            raise ValueError(
                f"--cfg_scale is of new faces, and this is --mode {self.mode}: use --edit_cfg_scale"
            )
        if self.unconditional and self.mode not in ("generate", "all"):
            raise ValueError(f"--unconditional draws new faces, and this is --mode {self.mode}")
        if self.unconditional and self.guidance != "free":
            raise ValueError("--unconditional guides towards nothing: leave --guidance out")
        asked = {"attributes": self.attributes, "from": self.start, "open": self.open}
        refuse_ignored_requests(self.sampling, self.unconditional, asked)
        if self.guidance == "guide" and self.guide_scale == 0:
            raise ValueError("--guidance guide --guide_scale 0 asks for nothing: use --unconditional")

    def makes(self, mode: str) -> bool:
        """Whether this mode is asked for. "all" leaves out counterfactuals, which must be told what to
        flip."""
        if self.mode != "all":
            return mode == self.mode
        return mode == "generate" or (mode != "counterfactual" and not self.unconditional)

    @property
    def guide_file(self) -> str | None:
        """The guide's file: the one given, or that of a pretrained model, or the usual one if a guide is
        needed."""
        own = f"{self.checkpoint}_guide"
        if self.guide is None and (PRETRAINED / f"{own}.safetensors").is_file():
            return own
        needed = self.guidance != "free" or self.mode == "counterfactual"
        return self.guide or ("./checkpoints/guide_best.pth" if needed else None)


Request = dict[str, float]  # attribute names, and 0 ... 1 as a user says it

# What is shown if no attributes are named, as far as the model knows them.
SHOWN_REQUESTS: tuple[Request, ...] = (
    {"Male": 0, "Smiling": 1, "Young": 1, "Blond_Hair": 1},
    {"Male": 1, "Smiling": 0, "Black_Hair": 1, "No_Beard": 1},
    {"Male": 0, "Eyeglasses": 1, "Brown_Hair": 1, "Smiling": 1},
    {"Male": 1, "Goatee": 1, "No_Beard": 0, "Smiling": 1},
    {"Male": 0, "Wearing_Hat": 1, "Smiling": 1},
    {"Male": 1, "Young": 0, "Gray_Hair": 1, "Eyeglasses": 1},
    {"Male": 0, "Bangs": 1, "Black_Hair": 1, "Wearing_Lipstick": 1},
    {"Male": 1, "Bald": 1, "Young": 0, "Smiling": 1},
)
SHOWN_INTERPOLATION: tuple[Request, Request] = ({"Male": 1, "Smiling": 0}, {"Male": 0, "Smiling": 1})
SHOWN_EDITS = ("Smiling", "Eyeglasses", "Male", "Young", "Blond_Hair", "Bangs", "Wearing_Hat")
SHOWN_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
MARGIN = 1.0  # log odds by which a counterfactual passes the guide's threshold


def parse_args(argv: Sequence[str] | None = None) -> ManipulateConfig:
    return flags.parse(ManipulateConfig, __doc__, argv)


@dataclass(frozen=True)
class Work:
    """What every mode works with.

    Attributes:
        config: the flags.
        model: of the checkpoint.
        guide: steers if editing and sampling say so, and reads what photographs show; may be None.
        sampling: how new faces are drawn.
        editing: how photographs are edited.
        generator: seeded. Every use takes a clone, so each mode starts from the same state.
        attributes: what --attributes asks for; empty if nothing.
        start, end: what --from and --to ask for; empty if nothing.
    """

    config: ManipulateConfig
    model: ConditionalDiffusion
    guide: GuidanceClassifier | None
    sampling: SamplingConfig
    editing: EditConfig
    generator: torch.Generator
    attributes: Request
    start: Request
    end: Request

    @property
    def out(self) -> Path:
        """The folder to write to."""
        return Path(self.config.output_dir)

    @property
    def names(self) -> tuple[str, ...]:
        """The model's attributes."""
        return self.model.config.attribute_names

    @property
    def heard(self) -> tuple[str, ...]:
        """The attributes that a request can ask for: the model's, or those of a guide that steers
        alone."""
        alone = self.guide if self.config.guidance == "guide" else None
        return self.names if alone is None else alone.config.attribute_names

    def known(self, built_in: Sequence[Request]) -> list[Request]:
        """The parts of built-in requests that are heard, each once."""
        parts = [{name: v for name, v in request.items() if name in self.heard} for request in built_in]
        return [part for i, part in enumerate(parts) if part and part not in parts[:i]]

    def read(self, images: Tensor) -> Tensor:
        """The attributes (B, A) that images uint8 (B, S, S, 3) show, as the guide or else the VAE sees
        them."""
        return self.model.predict_attributes(images, self.guide)


# -------------------------------------------------------------------- what is asked for


def guided_by(work: Work, how: SamplingConfig | EditConfig) -> str:
    """What guides the faces, for a title."""
    if work.config.unconditional:
        return "unconditional"
    by_guide = f", guide at {how.guide_scale:g}" if how.guide_scale and work.guide else ""
    return f"guidance {how.cfg_scale:g}{by_guide}"


def settings(config: ManipulateConfig, model: ModelConfig) -> tuple[SamplingConfig, EditConfig]:
    """How new faces are drawn and photographs are edited: by the flags, as far as the model allows.

    Raises:
        ValueError: for guidance that the model was not trained for.
    """
    if config.guidance == "guide" and not model.guidable:
        raise ValueError(
            "--guidance guide starts from no condition. This model, trained with --cfg_dropout 0, never "
            "saw that: use --guidance both"
        )
    sampling, editing = config.sampling, config.editing
    if config.guidance == "guide" or config.unconditional:
        sampling = replace(sampling, cfg_scale=0.0)
    if config.guidance == "guide":
        editing = replace(editing, cfg_scale=0.0)
    guide_scale = 0.0 if config.guidance == "free" else config.guide_scale
    return replace(sampling, guidance=config.guidance, guide_scale=guide_scale), editing


def find_source(config: ManipulateConfig) -> Path | None:
    """The photograph to edit or to interpolate from: --source_image, else the first test image of
    --data_root. None if no mode needs one.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if a mode needs one and there is none.
    """
    from image_data.datasets import find_dataset

    mixes = config.makes("interpolate") and config.target_image
    if not (mixes or config.makes("edit") or config.makes("counterfactual")):
        return None
    source = Path(config.source_image) if config.source_image else None
    if source is None and config.data_root:
        found = find_dataset(config.data_root, config.dataset)
        print(found)
        source = found.first_image("test")
    if source is None and config.mode == "all" and not mixes:
        return None
    if source is None:
        raise ValueError(
            f"--mode {config.mode} needs a photograph: give --source_image, or a --data_root of files"
        )
    if not source.is_file():
        raise FileNotFoundError(f"no source image at {source}: check --source_image")
    return source


def open_photograph(
    path: str | Path, model: ModelConfig, face: int, landmarks: Sequence[float] | None = None
) -> Photograph:
    """A photograph as the model sees it: by its landmarks, or at a face that is searched for, or, for
    face 0, cropped at the centre. Says what was done to it beyond what was asked for."""
    photograph = Photograph(path, model.image_size, model.crop, landmarks)
    if photograph.file.reduced > 1:
        print(f"{path} is large: it is read at 1/{photograph.file.reduced} of its width and height")
    if photograph.swapped:
        print("left and right of --landmarks are the person's own: they are swapped")
    if face and landmarks is None:
        print(f"{path}: {align_to_face(photograph, face)}")
    return photograph


def open_photographs(work: Work, source_file: Path) -> tuple[Photograph, Photograph | None]:
    """The photograph to edit, and the one to interpolate to. Faces are searched for in files that are
    named, not in a dataset's, and for models of faces: those that know attributes of CelebA.

    Raises:
        ValueError: for photographs that cannot be read, and faces that are not there.
    """
    from attributes import CELEBA_ATTRIBUTES

    config, model = work.config, work.model.config
    of_faces = not set(CELEBA_ATTRIBUTES).isdisjoint(work.names)
    if config.face > 1 and not of_faces:
        raise ValueError(f"--face {config.face}: {config.checkpoint} is no model of faces, leave it out")
    searched = of_faces and config.source_image is not None
    source = open_photograph(source_file, model, config.face if searched else 0, config.landmarks)
    if not config.target_image:
        return source, None
    return source, open_photograph(config.target_image, model, 1 if of_faces and config.face else 0)


def requests_to_generate(work: Work) -> tuple[list[Request], int]:
    """A request for each new face, and how many faces stand in a row of the grid."""
    number, how = work.config.num_samples, work.model.config
    if work.attributes or work.config.unconditional:
        return [work.attributes] * (number or 8), 8
    built_in = [] if how.one_hot or how.one_of_two else work.known(SHOWN_REQUESTS)
    if built_in:  # each has a column of its own
        return built_in * (number or -(-8 // len(built_in))), len(built_in)
    if how.one_of_two:
        each: list[Request] = [{work.names[0]: value} for value in (0.0, 1.0)]
    else:
        names = work.heard if how.one_hot else work.heard[: len(SHOWN_REQUESTS)]
        each = [{name: 1.0} for name in names]
    number = number or 8  # in a row of its own
    return [request for request in each for _ in range(number)], number


def ends_to_interpolate(work: Work) -> tuple[Request, Request]:
    """The requests at both ends of an interpolation."""
    if work.start:
        return work.start, work.end
    ends = work.known(SHOWN_INTERPOLATION)
    if not ends:
        first, *others = work.heard
        ends = [{first: 1.0}, {others[0]: 1.0}] if others else [{first: 0.0}, {first: 1.0}]
    return ends[0], ends[1]


def edits_to_make(work: Work, has: Tensor) -> list[Request]:
    """The edits of a photograph with attributes ``has`` (A,): each named attribute alone, then all
    together. If none is named, some attributes are turned into what they are not, or a class into
    others."""
    if work.attributes:
        edits = [{name: value} for name, value in work.attributes.items()]
        return [*edits, work.attributes] if len(edits) > 1 else edits
    if work.model.config.one_hot:
        others = [name for i, name in enumerate(work.names) if i != int(has.argmax())]
        return [{name: 1.0} for name in others[: len(SHOWN_REQUESTS)]]
    shown = [name for name in SHOWN_EDITS if name in work.heard] or list(work.heard)[:6]
    return [{name: float(has[work.names.index(name)] < 0)} for name in shown]


def check_is_read(names: Sequence[str], guide: GuidanceClassifier, config: ManipulateConfig) -> None:
    """Raise ValueError for the name of an attribute that the guide does not read."""
    known = list(guide.config.attribute_names)
    for name in names:
        if name not in known:
            raise ValueError(f"{config.guide_file} does not read {name}: name one of {known}")


# -------------------------------------------------------------------- the modes


def save_each(images: np.ndarray, folder: Path) -> list[Path]:
    """Write every image (N, H, W, 3) to a file of its own."""
    return [save_image(image, folder / f"{i:03d}.png") for i, image in enumerate(images)]


def save_strip(path: Path, images: np.ndarray, title: str) -> dict[str, Path]:
    """Write frames uint8 (N, H, W, 3) as a labelled strip and as a GIF; ``path`` has no suffix."""
    labels = [f"{i / (len(images) - 1):.2f}" for i in range(len(images))]
    strip = save_grid(path.with_suffix(".png"), images, labels, len(images), title=title)
    return {"strip": strip, "gif": save_gif(path.with_suffix(".gif"), images)}


def generate(work: Work) -> dict[str, Any]:
    """New faces: a labelled grid, and every image on its own. Returns what the manifest says of it."""

    from evaluation.drawing import draw
    from samplers import sample_generators

    config, model = work.config, work.model
    requests, columns = requests_to_generate(work)
    if config.open or config.unconditional:
        rows = model.attribute_rows(requests)  # (N, A)
    else:
        others = sample_generators(config.seed + 1, range(len(requests)))  # not those of the noise
        rows = model.complete_rows(requests, generator=others)
    options = {"guide": work.guide, "complete": False}
    images = draw(model, rows, work.sampling, nullcontext(), config.seed, **options).numpy()
    single = save_each(images, work.out / "samples")
    title = f"Generated: {guided_by(work, work.sampling)}, seed {config.seed}"
    labels = [""] * len(images) if config.unconditional else [*map(caption, requests)]
    grid = save_grid(work.out / "samples.png", images, labels, columns, title=title)
    return {"grid": grid, "images": single, "attributes": requests, "rows": rows.tolist()}


def interpolate(work: Work) -> dict[str, Any]:
    """A labelled strip and a GIF between two requests, all frames from one noise."""
    start, end = ends_to_interpolate(work)
    rows = work.model.attribute_rows(start), work.model.attribute_rows(end)
    if not work.config.open:
        rows = work.model.complete_ends(start, end, work.generator.clone_state())
    images = work.model.interpolate_between_attributes(
        *rows,
        work.config.interpolation_steps,
        sampling=work.sampling,
        generator=work.generator.clone_state(),
        progress=True,
        guide=work.guide,
        complete=False,
    )
    title = f"From {caption(start)} to {caption(end)}"
    files = save_strip(work.out / "interpolation", images.cpu().numpy(), title)
    return {**files, "from": start, "to": end, "rows": [row[0].tolist() for row in rows]}


def interpolate_photographs(work: Work, images: Tensor) -> dict[str, Any]:
    """A strip and a GIF from one photograph to another: images uint8 (2, S, S, 3)."""
    from editing import Editor

    frames = Editor(work.model).interpolate(
        images,
        work.config.interpolation_steps,
        work.editing.num_inference_steps,
        work.read(images),
        progress=True,
    )
    title = "From one photograph to another"
    return save_strip(work.out / "photographs", frames.cpu().numpy(), title)


def prepare_edit(
    work: Work, image: Tensor, targets: Tensor, has: Tensor, editing: EditConfig
) -> Callable[[float], Tensor]:
    """One image uint8 (1, S, S, 3) with attributes ``has`` (1, A), edited towards every row of targets
    (N, A): strength -> uint8 (N, S, S, 3). Rows with the same needs and as many names are edited
    together, so that an edit does not depend on what else is asked for."""
    import torch

    from editing import Editor, resolve

    rows_of: dict[tuple[EditConfig, int], list[int]] = {}
    for i, row in enumerate(targets.tolist()):
        named = [name for name, value in zip(work.names, row, strict=True) if value]
        needs = resolve(editing, named, work.guide is not None)
        rows_of.setdefault((needs, len(named)), []).append(i)
    how = {"source_attributes": has, "guide": work.guide, "progress": True}
    edits = [
        Editor(work.model).prepare_edit(
            image, targets[rows], needs, generator=work.generator.clone_state(), **how
        )
        for (needs, _), rows in rows_of.items()
    ]
    order = torch.tensor([*chain(*rows_of.values())]).argsort()
    return lambda strength: torch.cat([edit_at(strength) for edit_at in edits])[order]


def edit(work: Work, source: Photograph, image: Tensor) -> dict[str, Any]:
    """A row of edits of a photograph, and the same over strength. If two attributes are named, also a
    square of their combinations.

    Args:
        image: the photograph's square, uint8 (1, S, S, 3).
    """
    from editing import resolve

    full = work.config.manipulation_strength
    has = work.read(image)
    edits = edits_to_make(work, has[0])
    targets = work.model.attribute_rows(edits)  # (N, A)
    strengths = sorted({*SHOWN_STRENGTHS, full})
    edit_at = prepare_edit(work, image, targets, has, work.editing)
    over_strength = [edit_at(strength).cpu().numpy() for strength in strengths]
    edited = over_strength[strengths.index(full)]

    how = guided_by(work, work.editing)
    shown = np.concatenate([image.numpy(), edited])
    labels, title = ["source", *map(caption, edits)], f"Edited at strength {full:g}: {how}"
    row = save_grid(work.out / "edit.png", shown, labels, 8, title=title)
    shown = np.stack(over_strength, 1).reshape(-1, *edited.shape[1:])  # edit by edit
    labels = [f"{caption(request)} at {strength:g}" for request in edits for strength in strengths]
    save_grid(work.out / "edit_strength.png", shown, labels, len(strengths), title=f"Edited: {how}")
    made: dict[str, Any] = {"row": row, "images": save_each(edited, work.out / "edits")}
    made["attributes"] = edits
    needs = [resolve(work.editing, request, work.guide is not None) for request in edits]
    made |= {"t_start": [each.t_start for each in needs], "margin": [each.margin for each in needs]}
    if work.attributes and len(edits) == 3:
        made["pairs"] = save_pairs(work, image, has, targets[:2], edits[:2])
    if work.config.paste_back:
        made["whole"] = [work.out / "edits" / f"{i:03d}_whole.png" for i in range(len(edited))]
        for path, each in zip(made["whole"], edited, strict=True):
            source.paste(each).save(path)
    return made


def save_pairs(work: Work, image: Tensor, has: Tensor, targets: Tensor, edits: list[Request]) -> Path:
    """A square of pictures: two edits (rows of targets (2, A)) at once, each at several strengths."""
    has = has.cpu().clone()
    pairs = list(product(SHOWN_STRENGTHS, repeat=2))
    rows = targets.new_zeros(len(pairs), targets.shape[1])
    for i, request in enumerate(edits):
        column = work.names.index(next(iter(request)))
        full = float(targets[i, column])
        has[:, column] = -full  # strength 0
        for row, strengths in zip(rows, pairs, strict=True):
            value = full * (2 * strengths[i] - 1)
            row[column] = value if abs(value) > 1e-3 else 1e-3  # 0 would mean: not named
    # The rows say the strength, so each is a full edit, and strength 0 is what ``has`` says.
    images = prepare_edit(work, image, rows, has, replace(work.editing, oppose=False))(1.0)
    down, right = map(caption, edits)
    return save_grid(
        work.out / "edit_pairs.png",
        images.cpu().numpy(),
        [f"{a:g}, {b:g}" for a, b in pairs],
        len(SHOWN_STRENGTHS),
        title=f"Down: {down}; to the right: {right}",
    )


def counterfactual(
    work: Work, source: Photograph, image: Tensor, guide: GuidanceClassifier
) -> dict[str, Any]:
    """The smallest change of a photograph with which the guide sees what was asked for.

    That is the least strength at which the edit passes the guide's threshold by MARGIN, for every
    attribute named.

    Args:
        image: the photograph's square, uint8 (1, S, S, 3).

    Raises:
        ValueError: for an attribute that the guide does not read, or one that is to be 0.5.
    """
    from editing import smallest_edit

    config, request = work.config, work.attributes
    target = work.model.attribute_rows(request)
    names = list(guide.config.attribute_names)
    check_is_read(list(request), guide, config)
    for name, value in request.items():
        if value == 0.5:
            raise ValueError(f"a counterfactual of {name}=0.5 flips nothing: ask for 0 or 1")
    columns = [names.index(name) for name in request]
    wanted = target[0, [work.names.index(name) for name in request]].sign()

    def margin(picture: Tensor) -> float:
        """The log odds by which the least certain of the attributes passes its threshold."""
        odds = (guide.read_logits(picture) - guide.prior)[0, columns].cpu()
        return float((odds * wanted).min())

    edit_at = prepare_edit(work, image, target, work.read(image), work.editing)
    strength, pictures = smallest_edit(edit_at, lambda edited: margin(edited) - MARGIN)
    facts: dict[str, Any] = {"strength": strength, "margin": margin(pictures)}
    edited, flipped = pictures.cpu().numpy()[0], facts["margin"] >= MARGIN
    if not flipped:
        how = "does not flip at full strength"
    elif strength:
        how = f"flips at strength {strength:.2f}"
    else:
        how = "is so already"
    shown = np.stack([source.square, edited, heat_map(source.square, edited)])
    labels, title = ["source", caption(request), "difference"], f"Counterfactual: {how}"
    row = save_grid(work.out / "counterfactual.png", shown, labels, 3, title=title)
    facts |= {"flipped": flipped, "margin_before": margin(image), "attributes": request}
    if config.paste_back:
        facts["whole"] = work.out / "counterfactual_whole.png"
        source.paste(edited).save(facts["whole"])
    return {"row": row, **facts}


# -------------------------------------------------------------------- the script


def load(config: ManipulateConfig, reads_photographs: bool) -> Work:
    """The model, the guide if one is needed, and what is asked of them.

    Raises:
        ValueError: for requests that the model does not know, or files that do not fit.
    """
    import torch

    from attributes import parse_request
    from classifiers.guide import load_guide
    from diffusion_model import load_model
    from editing import resolve as resolve_editing
    from guidance import GUIDANCE
    from samplers import resolve

    requests = [parse_request(items) for items in (config.attributes, config.start, config.end)]
    device = devices.choose_device(config.device)
    model = load_model(config.checkpoint, device)
    print(f"model: {config.checkpoint}")
    sampling, editing = settings(config, model.config)
    sampling = resolve(sampling, model.schedule, model.config.guidable)
    guide = None
    if config.guide_file and (config.guidance != "free" or reads_photographs):
        load_it = load_model if GUIDANCE[config.guidance].guide == "model" else load_guide
        guide = load_it(config.guide_file, device)
        model.check_guide(guide)
    model.attribute_rows(requests)  # refuses unknown names before anything is drawn
    if guide is not None and config.guidance == "guide":
        named = [name for request in requests for name in request]
        check_is_read(named, guide, config)
    draws = config.makes("generate") or config.makes("interpolate")
    if draws and not (config.open or config.unconditional or model.config.prior_rows):
        print(f"{config.checkpoint} has no attribute rows: what is not named is left to the network")
    cfg_scale = resolve_editing(editing, (), guide is not None).cfg_scale
    editing = replace(editing, cfg_scale=cfg_scale)
    generator = torch.Generator().manual_seed(config.seed)
    return Work(config, model, guide, sampling, editing, generator, *requests)


def manipulate(config: ManipulateConfig) -> None:
    """Run the modes asked for and write the manifest."""
    import torch

    from checkpoint import file_hash

    flags.check_writable(config.output_dir)
    source_file = find_source(config)
    autocast = devices.autocast(config.mixed_precision, devices.choose_device(config.device))
    work = load(config, source_file is not None)
    source, target = open_photographs(work, source_file) if source_file else (None, None)
    made: dict[str, dict[str, Any]] = {}
    with autocast:
        if config.makes("generate"):
            made["generate"] = generate(work)
        if config.makes("interpolate"):
            made["interpolate"] = interpolate(work)
        if source:
            of = {"source": source_file, "landmarks": source.landmarks}
            image = torch.from_numpy(source.square)[None]  # (1, S, S, 3)
            if target:
                both = torch.cat([image, torch.from_numpy(target.square)[None]])
                ends = {"from": source_file, "to": config.target_image}
                made["interpolate photographs"] = interpolate_photographs(work, both) | ends
            if config.makes("counterfactual") and work.guide:
                found = counterfactual(work, source, image, work.guide)
                made["counterfactual"] = found | of
            if config.makes("edit"):
                made["edit"] = edit(work, source, image) | of
    manifest = {
        "arguments": asdict(config),
        "checkpoint": file_hash(config.checkpoint),
        "guide": file_hash(config.guide_file) if work.guide and config.guide_file else None,
        "sampling": asdict(work.sampling),
        "editing": asdict(work.editing),
        "precision": devices.choose_precision(config.mixed_precision, work.model.device.type),
        "model": work.model.config.to_dict(),
        "made": made,
    }
    path = work.out / "manifest.json"
    path.write_text(json.dumps(manifest, indent=2, default=str) + "\n", encoding="utf-8")
    for mode, facts in made.items():
        print(f"{mode}: {facts.get('grid') or facts.get('strip') or facts.get('row')}")
    if config.makes("edit") and not source:
        print("edit: skipped, as there is no --source_image")
    print(f"manifest: {path}")


if __name__ == "__main__":
    flags.run(lambda: manipulate(parse_args()))
