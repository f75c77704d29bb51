"""Generate, interpolate and edit faces by named attributes with a trained checkpoint.

Writes labelled grids, single images, an interpolation strip and GIF, an edit row, and manifest.json
with everything needed to make them again. The attributes' names and the model's shape come from the
checkpoint. What a request does not name is copied from a row of the training set that agrees with it.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flags  # first: it refuses an old Python in one line

# isort: split
import numpy as np

from config import (
    DATASET_HELP,
    DATASETS,
    MASKS,
    PRETRAINED,
    UNSPECIFIED_HELP,
    Config,
    EditSettings,
    GenerateSettings,
    InterpolateSettings,
    ModelFiles,
    PhotographSettings,
    flag,
    in_file_name,
    nested,
)
from figures.grids import caption, heat_map, new_file, save_gif, save_grid, save_image
from image_data.picture import Note, check_picture_file, read_note, write_note

if TYPE_CHECKING:
    from classifiers.guide import GuidanceClassifier
    from diffusion_model import ConditionalDiffusion
    from image_data.photograph import Photograph
    from studio import Result

MODES = ("generate", "interpolate", "edit", "counterfactual", "all")
MANIFEST = "manifest.json"
# Keys of the manifest whose values are files that were made
FILES = ("grid", "strip", "gif", "row", "over_strength", "images", "whole", "table")
MOST_SHOWN = 400  # photographs on a contact sheet; by eye
EDIT = (("photograph", "edit"), ("source_image", "mask"))
BEHIND = {  # what made the pictures of a mode: parts of the settings, and pictures
    "generate": (("generate",), ()),
    "interpolate": (("interpolate",), ()),
    "interpolate photographs": (("photograph", "interpolate"), ("source_image", "target_image")),
    "edit": EDIT,
    "counterfactual": EDIT,
}
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a strip of edits
Made = dict[str, Any]  # what the manifest says of a mode: its files, and facts


@dataclass(frozen=True)
class ManipulateConfig(Config):
    """Flags of manipulate.py. Those of what is made are the settings of ``studio``."""

    mode: str = flag("all", "what to make", choices=MODES)
    output_dir: str = flag("./outputs", "folder to write to")
    source_image: tuple[str, ...] = flag((), "photograph to edit; with --mode edit several, or folders")
    # where a photograph comes from without it
    data_root: str | None = flag(None, "folder of images: its first test image is edited by default")
    dataset: str | None = flag(None, DATASET_HELP, choices=DATASETS)
    unspecified: int | None = flag(None, UNSPECIFIED_HELP, choices=(0, -1))
    paste_back: bool = flag(False, "also write edits in the whole --source_image")
    from_picture: str | None = flag(None, "picture of ours: make it again; flags given override its own")
    no_metadata: bool = flag(False, "leave out of pictures what made them")
    # what is made
    files: ModelFiles = nested(ModelFiles)
    photograph: PhotographSettings = nested(PhotographSettings, only=("landmarks", "face"))
    generate: GenerateSettings = nested(GenerateSettings)
    interpolate: InterpolateSettings = nested(InterpolateSettings)
    edit: EditSettings = nested(EditSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        mode, generate, sources = self.mode, self.generate, self.source_image
        if len(sources) == 1:
            photograph = replace(self.photograph, source_image=sources[0])
            object.__setattr__(self, "photograph", photograph)
        if not sources and (self.photograph.landmarks or self.photograph.face > 1):
            name = "landmarks" if self.photograph.landmarks else "face"
            raise ValueError(f"--{name} is of --source_image: give it, too")
        if self.edits_many:
            if mode != "edit" or not self.edit.attributes:
                raise ValueError(
                    "several --source_image, or a folder, are for --mode edit --attributes ..."
                )
            if self.photograph.landmarks or self.from_picture:
                named = "--landmarks" if self.photograph.landmarks else "--from_picture"
                raise ValueError(f"{named} is of one photograph: name one as --source_image")
        if self.interpolate.target_image and mode not in ("interpolate", "all"):
            raise ValueError(f"--target_image is for --mode interpolate, and this is {mode}")
        if mode == "counterfactual" and not self.edit.attributes:
            raise ValueError("--mode counterfactual needs --attributes: what is to flip: Smiling=0")
        if generate.sampling.cfg_scale is not None and mode in ("edit", "counterfactual"):
            raise ValueError(
                f"--cfg_scale is of new faces, and this is --mode {mode}: use --edit_cfg_scale"
            )
        if (self.edit.mask or self.edit.pins) and mode not in ("edit", "counterfactual", "all"):
            named = "--mask" if self.edit.mask else "--hold"
            raise ValueError(f"{named} is of edits, and this is --mode {mode}")
        if generate.unconditional and mode not in ("generate", "all"):
            raise ValueError(f"--unconditional draws new faces, and this is --mode {mode}")
        if generate.unconditional and self.interpolate.start:
            raise ValueError("--unconditional draws without any request: leave --from out")

    def makes(self, mode: str) -> bool:
        """Whether this mode is asked for. "all" leaves out counterfactuals, which must be told what to
        flip."""
        if self.mode != "all":
            return mode == self.mode
        return mode == "generate" or (mode != "counterfactual" and not self.generate.unconditional)

    @property
    def edits_many(self) -> bool:
        """Whether there are several photographs."""
        return len(self.source_image) > 1 or any(map(os.path.isdir, self.source_image))

    @property
    def mixes_photographs(self) -> bool:
        return bool(self.makes("interpolate") and self.interpolate.target_image)


def parse_args(argv: Sequence[str] | None = None) -> ManipulateConfig:
    config = flags.parse(ManipulateConfig, __doc__, argv)
    if config.from_picture:
        config = flags.parse(ManipulateConfig, __doc__, argv, settings_in(config.from_picture))
    return config


def settings_in(path: str) -> dict[str, Any]:
    """The flags that make a picture again, by what it says. It names only files that come with the
    repository, as a stranger may have written any path."""
    note = read_note(path)
    for name in note.settings.keys() - flags.portable_names(ManipulateConfig):
        raise ValueError(f"{path} sets {name[:100]!r}, which is no flag of one picture: try the page")
    ours = {*MASKS, *(file.stem for file in PRETRAINED.glob("*.safetensors"))}
    named = {flag: note.files.get(flag, ("", ""))[0] for flag in ("checkpoint", "guide", "mask")}
    before = {"perturb": False}  # of pictures from before there was a choice
    return before | note.settings | {flag: name for flag, name in named.items() if name in ours}


# -------------------------------------------------------------------- photographs


def find_source(config: ManipulateConfig) -> PhotographSettings | None:
    """The photograph to edit or to interpolate from: --source_image, else the first test image of
    --data_root, in which no face is searched for. None if no mode needs one.

    Raises:
        FileNotFoundError, ValueError: if a mode needs one and there is none.
    """
    from image_data.datasets import find_dataset

    if not (config.mixes_photographs or config.makes("edit") or config.makes("counterfactual")):
        return None
    source, target = config.photograph.source_image, config.interpolate.target_image
    for name, path in (("--source_image", source), ("--target_image", target)):
        if path:
            check_picture_file(path, name)  # before a model is loaded
    if source:
        return config.photograph
    if config.data_root:
        dataset = find_dataset(config.data_root, config.dataset, config.unspecified)
        print(dataset)
        image = dataset.first_image("test")
        if image:
            return PhotographSettings(str(image), face=0)
    if config.mode == "all" and not config.mixes_photographs:
        return None
    raise ValueError(
        f"--mode {config.mode} needs a photograph: give --source_image, or a --data_root of files"
    )


def list_sources(config: ManipulateConfig) -> list[str]:
    """The photographs to edit, if there are several: the files that are named, and those in folders.
    FileNotFoundError for a folder without any."""
    from image_data.files import checked_root, in_words, list_pictures, no_picture

    sources: list[str] = []
    for path in config.source_image if config.edits_many else ():
        if not os.path.isdir(path):
            sources.append(path)
            continue
        pictures, passed_over = list_pictures(checked_root(path), deep=False)
        if not pictures:
            raise no_picture(Path(path), passed_over)
        others = f"; passed over: {in_words(passed_over)}" if passed_over else ""
        print(f"{path}: {len(pictures):,} pictures{others}")
        sources += [os.path.join(path, picture.name) for picture in pictures]
    return sources


def open_photograph(
    model: ConditionalDiffusion, settings: PhotographSettings, mask: str | None = None
) -> tuple[Photograph, np.ndarray | None]:
    """A photograph as the model sees it, and its mask. Prints what was done to it beyond what was asked
    for."""
    import studio

    photograph, search = studio.open_photograph(model, settings)
    if photograph.swapped:
        print("left and right of --landmarks are the person's own: they are swapped")
    if search is not None:
        hint = ""
        if search.faces == 0:
            hint = "; --landmarks would align it"
        elif search.faces is not None and search.faces > 1:
            hint = f" (--face 1 to {search.faces}, by size)"
        print(f"{settings.source_image}: {search.line}{hint}")
    return photograph, studio.open_mask(model, photograph, mask, search)


# -------------------------------------------------------------------- results as files


def save_each(images: np.ndarray, folder: Path) -> list[Path]:
    """Write every image (N, H, W, 3) to a file of its own."""
    return [save_image(image, folder / f"{i:03d}.png") for i, image in enumerate(images)]


def save_new_faces(out: Path, result: Result, seed: int) -> Made:
    """``samples.png``, a labelled grid, and every image on its own."""
    requests, title = result.facts["attributes"], f"Generated: {result.guidance}, seed {seed}"
    labels = [caption(request) for request in requests] if any(requests) else [""] * len(requests)
    single = save_each(result.images, out / "samples")
    grid = save_grid(out / "samples.png", result.images, labels, result.columns, title=title)
    return {"grid": grid, "images": single, **result.facts}


def save_strip(path: Path, result: Result, title: str) -> Made:
    """Frames as a labelled strip and as a GIF; ``path`` has no suffix."""
    images = result.images
    labels = [f"{i / (len(images) - 1):.2f}" for i in range(len(images))]
    strip = save_grid(path.with_suffix(".png"), images, labels, len(images), title=title)
    return {"strip": strip, "gif": save_gif(path.with_suffix(".gif"), images), **result.facts}


def save_edits(
    out: Path, source: Photograph, result: Result, strengths: list[float], full: float
) -> Made:
    """``edit.png``, the photograph and its edits at strength ``full``; each edit on its own; and
    ``edit_strength.png``, a row for each edit, over ``strengths``."""
    labels = [caption(request) for request in result.facts["attributes"]]
    edited = result.images[:, strengths.index(full)]
    row = save_grid(
        out / "edit.png",
        np.concatenate([source.square[None], edited]),
        ["source", *labels],
        result.columns,
        title=f"Edited at strength {full:g}: {result.guidance}",
    )
    over_strength = save_grid(
        out / "edit_strength.png",
        result.images.reshape(-1, *source.square.shape),
        [f"{label} at {strength:g}" for label in labels for strength in strengths],
        len(strengths),
        title=f"Edited: {result.guidance}",
    )
    single = save_each(edited, out / "edits")
    return {"row": row, "over_strength": over_strength, "images": single, **result.facts}


def save_counterfactual(out: Path, source: Photograph, result: Result) -> Made:
    """``counterfactual.png``: the photograph, its edit, and where they differ."""
    facts, edited = result.facts, result.images[0]
    if not facts["flipped"]:
        outcome = "does not flip at full strength"
    elif facts["strength"]:
        outcome = f"flips at strength {facts['strength']:.2f}"
    else:
        outcome = "is so already"
    images = np.stack([source.square, edited, heat_map(source.square, edited)])
    labels = ["source", caption(facts["attributes"]), "difference"]
    title = f"Counterfactual: {outcome}"
    row = save_grid(out / "counterfactual.png", images, labels, len(images), title=title)
    return {"row": row, **facts}


def write_notes(
    config: ManipulateConfig, made: Mapping[str, Made], files: Mapping[str, tuple[str, str]]
) -> None:
    """Add to each PNG what made it: the settings of its mode, and the ``files``. A single edit has the
    request that is its own."""
    if config.no_metadata:
        return
    for mode, facts in made.items():
        parts, pictures = BEHIND[mode]
        settings = flags.portable(config.files, *(getattr(config, part) for part in parts))
        settings |= {"mode": mode.split()[0]} | ({"paste_back": True} if "whole" in facts else {})
        used = {flag: file for flag, file in files.items() if flag in ("checkpoint", "guide", *pictures)}
        for key in FILES:
            paths = facts.get(key) or []
            for i, path in enumerate(paths if isinstance(paths, list) else [paths]):
                own = {}
                if mode == "edit" and isinstance(paths, list):
                    request = facts["attributes"][i]
                    own = {"attributes": [f"{name}={value}" for name, value in request.items()]}
                if path.suffix == ".png":
                    write_note(path, Note(settings | own, used))


def files_in(made: Mapping[str, Made], folder: str | Path, keys: Sequence[str]) -> set[str]:
    """The files that these facts of what was made name, relative to the folder they lie in."""
    values = [facts.get(key) for facts in made.values() for key in keys]
    paths = [each for value in values for each in (value if isinstance(value, list) else [value])]
    relative = {os.path.relpath(path, folder) for path in paths if isinstance(path, str | Path)}
    return {path for path in relative if not path.startswith("..")}


def replace_made(folder: Path, made: dict[str, Made]) -> list[dict[str, Any]]:
    """Returns what the old manifest in a folder says of modes that this run does not make. In modes that
    it makes, it deletes old files that were not written again."""
    stale: set[str] = set()
    try:
        old = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifests = [old, *old.pop("earlier", [])]
        for each in manifests:
            replaced = {mode: each["made"].pop(mode) for mode in made if mode in each["made"]}
            stale |= files_in(replaced, each["arguments"]["output_dir"], FILES)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # none of ours
        return []
    for path in stale - files_in(made, folder, (*FILES, "source", "from", "to")):
        (folder / path).unlink(missing_ok=True)
    return [each for each in manifests if each["made"]]


# -------------------------------------------------------------------- the script


def load(config: ManipulateConfig) -> tuple[ConditionalDiffusion, GuidanceClassifier | None]:
    """The model, and its guide where there is one.

    Raises:
        ValueError: for requests that the model does not know, or files that do not fit.
    """
    import devices
    import studio
    from attributes import parse_request
    from diffusion_model import load_model

    files, guidance = config.files, config.generate.guidance
    named = (config.generate.attributes, config.interpolate.start, config.interpolate.end)
    requests = [parse_request(items) for items in named]
    model = load_model(files.checkpoint, devices.choose_device(files.device))
    print(f"model: {files.checkpoint}")
    studio.resolve_drawing(config.generate, model)  # refuses what it was not trained for
    guide = studio.load_guide_of(files, model, guidance, config.mode == "counterfactual")
    check_files(config, studio.files_behind(files, model, guide), ("checkpoint", "guide"))
    if config.makes("edit") or config.makes("counterfactual"):
        studio.check_pins(config.edit, guide)
    model.attribute_rows(requests)  # refuses unknown names before anything is drawn
    if guide is not None and studio.guide_alone(config.generate, model):
        studio.check_is_read([name for request in requests for name in request], guide)
    draws_faces = config.makes("generate") or config.makes("interpolate")
    completes = not (config.generate.open or config.generate.unconditional)
    if draws_faces and completes and not model.config.prior_rows:
        print(f"{files.checkpoint} has no attribute rows: what is not named is left to the network")
    return model, guide


def edit_many(
    config: ManipulateConfig,
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None,
    sources: Sequence[str],
) -> dict[str, Made]:
    """Edit many photographs: a picture of each, ``edits.csv`` of what was read, found and written, and
    ``contact_sheet.png``. One that fails is told of in the table. Returns what the manifest says.

    Raises:
        ValueError: if every one fails.
    """
    from tqdm import tqdm

    import studio
    from attributes import parse_request

    out, request = Path(config.output_dir), parse_request(config.edit.attributes)
    made: Made = {"source": [*sources], "images": [], "whole": [], "attributes": []}
    made["table"] = new_file(out / "edits.csv")
    rows: list[dict[str, Any]] = []
    shown: list[np.ndarray] = []
    labels: list[str] = []
    every = -(-len(sources) // MOST_SHOWN)
    with open(made["table"], "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.DictWriter(file, ("file", "width", "height", "found", "written", "error"))
        table.writeheader()
        for i, path in enumerate(tqdm(sources, "photographs", unit="file")):
            rows.append({"file": path})
            try:
                settings = replace(config.photograph, source_image=path)
                source, search = studio.open_photograph(model, settings)
                width, height = source.picture.size
                rows[-1] |= {"width": width, "height": height, "found": search.line if search else ""}
                mask = studio.open_mask(model, source, config.edit.mask, search)
                edited = studio.edit(model, guide, source.square, config.edit, mask=mask).images[0]
                picture = out / "edits" / f"{i:03d}_{in_file_name(Path(path).stem)[:80]}.png"
                facts: Made = {"images": [save_image(edited, picture)], "attributes": [request]}
                if config.paste_back:
                    whole = picture.with_name(f"{picture.stem}_whole.png")
                    facts["whole"] = [source.save_whole(edited, whole)]
                pictures = {"source_image": source}, (config.edit.mask, mask)
                files = studio.files_behind(config.files, model, guide, *pictures)
                write_notes(config, {"edit": facts}, files)
                for key, values in facts.items():
                    made[key] += values
                rows[-1]["written"] = os.path.relpath(picture, out)
                if i % every == 0:
                    shown += [source.square, edited]
                    labels += [Path(path).stem, caption(request)]
            except Exception as error:
                line = flags.in_one_line(error, "manipulate.py")
                if line is None:
                    raise
                rows[-1]["error"] = " ".join(line.split())
            table.writerow(rows[-1])
            file.flush()
    failed = [row for row in rows if "error" in row]
    if len(failed) == len(rows):
        raise ValueError(f"none of {len(rows)} photographs was edited; the first: {failed[0]['error']}")
    if shown:
        title = f"{len(rows) - len(failed)} of {len(rows)} photographs"
        made["grid"] = save_grid(out / "contact_sheet.png", np.stack(shown), labels, 8, title=title)
    print(f"{len(rows) - len(failed)} of {len(rows)} photographs are edited: {made['table']}")
    return {"edit": made}


def check_files(
    config: ManipulateConfig, files: Mapping[str, tuple[str, str]], names: Sequence[str]
) -> None:
    """Raise ValueError where --from_picture was made with other files."""
    if config.from_picture:
        read_note(config.from_picture).check_files(files, names)


def make(
    config: ManipulateConfig,
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None,
    source: Photograph | None,
    target: Photograph | None,
    mask: np.ndarray | None,
) -> dict[str, Made]:
    """Run the modes that are asked for. Returns what the manifest says of each."""
    import studio

    out, made = Path(config.output_dir), {}
    if config.makes("generate"):
        faces = studio.generate(model, guide, config.generate, progress=True)
        made["generate"] = save_new_faces(out, faces, config.generate.seed)
    if config.makes("interpolate"):
        frames = studio.interpolate(model, guide, config.interpolate, progress=True)
        title = f"From {caption(frames.facts['from'])} to {caption(frames.facts['to'])}"
        made["interpolate"] = save_strip(out / "interpolation", frames, title)
    if source is None:
        return made
    facts = {"source": source.path, "landmarks": source.landmarks}
    if target is not None:
        squares = source.square, target.square
        frames = studio.interpolate_photographs(model, guide, squares, config.interpolate, progress=True)
        strip = save_strip(out / "photographs", frames, "From one photograph to another")
        made["interpolate photographs"] = strip | {"from": source.path, "to": target.path}
    if config.makes("counterfactual") and guide is not None:
        flipped = studio.counterfactual(
            model, guide, source.square, config.edit, progress=True, mask=mask
        )
        made["counterfactual"] = save_counterfactual(out, source, flipped) | facts
        if config.paste_back:
            path = out / "counterfactual_whole.png"
            made["counterfactual"]["whole"] = source.save_whole(flipped.images[0], path)
    if config.makes("edit"):
        full = config.edit.manipulation_strength
        strengths = sorted({*STRENGTHS, full})
        edits = studio.edit_each(
            model, guide, source.square, config.edit, strengths, progress=True, mask=mask
        )
        made["edit"] = save_edits(out, source, edits, strengths, full) | facts
        if config.paste_back:
            edited = edits.images[:, strengths.index(full)]
            made["edit"]["whole"] = [
                source.save_whole(image, out / "edits" / f"{i:03d}_whole.png")
                for i, image in enumerate(edited)
            ]
    return made


def manipulate(config: ManipulateConfig) -> None:
    """Run the modes asked for and write the manifest."""
    import devices
    import studio

    flags.check_writable(config.output_dir)
    sources, target_file = list_sources(config), config.interpolate.target_image
    settings = None if sources else find_source(config)
    model, guide = load(config)
    precision = devices.choose_precision(config.files.mixed_precision, model.device.type)
    resolved = replace(config, files=replace(config.files, mixed_precision=precision))
    source = mask = target = None
    if settings:
        source, mask = open_photograph(model, settings, config.edit.mask)
        resolved = replace(resolved, photograph=settings)
    if source and target_file:
        other = PhotographSettings(target_file, face=min(1, config.photograph.face))
        target, _ = open_photograph(model, other)
    photographs = {"source_image": source, "target_image": target}
    files = studio.files_behind(config.files, model, guide, photographs, (config.edit.mask, mask))
    check_files(config, files, [*photographs, "mask"])
    with devices.autocast(precision, model.device.type):
        if sources:
            made = edit_many(resolved, model, guide, sources)
        else:
            made = make(resolved, model, guide, source, target, mask)
            write_notes(resolved, made, files)
    scale = studio.resolve_edit(config.edit, model, guide).cfg_scale
    folder = Path(config.output_dir)
    manifest = {
        "arguments": flags.flags_of(config),
        "sampling": asdict(studio.resolve_drawing(config.generate, model)),
        "editing": asdict(replace(config.edit.editing, cfg_scale=scale)),
        **studio.model_facts(config.files, model, guide),
        "files": files,
        "made": made,
        "earlier": replace_made(folder, made),
    }
    manifest_file = folder / MANIFEST
    manifest_file.write_text(json.dumps(manifest, indent=2, default=str) + "\n", encoding="utf-8")
    for mode, facts in made.items():
        print(f"{mode}: {facts.get('grid') or facts.get('strip') or facts.get('row')}")
    if config.makes("edit") and not (source or sources):
        print("edit: skipped, as there is no --source_image")
    print(f"manifest: {manifest_file}")


if __name__ == "__main__":
    flags.run(lambda: manipulate(parse_args()))
