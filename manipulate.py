"""Generate, interpolate and edit faces by named attributes with a trained checkpoint.

Writes labelled grids, single images, an interpolation strip and GIF, an edit row, and manifest.json
with everything needed to make them again. The attributes' names and the model's shape come from the
checkpoint. What a request does not name is copied from a row of the training set that agrees with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flags  # first: it refuses an old Python in one line

# isort: split
from config import (
    DATASET_HELP,
    DATASETS,
    Config,
    EditSettings,
    GenerateSettings,
    InterpolateSettings,
    ModelFiles,
    PhotographSettings,
    flag,
    nested,
)

if TYPE_CHECKING:
    from classifiers.guide import GuidanceClassifier
    from diffusion_model import ConditionalDiffusion
    from image_data.photograph import Photograph

MODES = ("generate", "interpolate", "edit", "counterfactual", "all")
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a strip of edits


@dataclass(frozen=True)
class ManipulateConfig(Config):
    """Flags of manipulate.py. Those of what is made are the settings of ``studio``."""

    mode: str = flag("all", "what to make", choices=MODES)
    output_dir: str = flag("./outputs", "folder to write to")
    # where a photograph comes from without --source_image
    data_root: str | None = flag(None, "folder of images: its first test image is edited by default")
    dataset: str | None = flag(None, DATASET_HELP, choices=DATASETS)
    paste_back: bool = flag(False, "also write edits in the whole --source_image")
    # what is made
    files: ModelFiles = nested(ModelFiles)
    photograph: PhotographSettings = nested(PhotographSettings)
    generate: GenerateSettings = nested(GenerateSettings)
    interpolate: InterpolateSettings = nested(InterpolateSettings)
    edit: EditSettings = nested(EditSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        mode, draws = self.mode, self.generate
        if self.interpolate.target_image and mode not in ("interpolate", "all"):
            raise ValueError(f"--target_image is for --mode interpolate, and this is {mode}")
        if mode == "counterfactual" and not self.edit.attributes:
            raise ValueError("--mode counterfactual needs --attributes: what is to flip: Smiling=0")
        if draws.sampling.cfg_scale is not None and mode in ("edit", "counterfactual"):
            raise ValueError(
                f"--cfg_scale is of new faces, and this is --mode {mode}: use --edit_cfg_scale"
            )
        if draws.unconditional and mode not in ("generate", "all"):
            raise ValueError(f"--unconditional draws new faces, and this is --mode {mode}")
        if draws.unconditional and self.interpolate.start:
            raise ValueError("--unconditional draws without any request: leave --from out")

    def makes(self, mode: str) -> bool:
        """Whether this mode is asked for. "all" leaves out counterfactuals, which must be told what to
        flip."""
        if self.mode != "all":
            return mode == self.mode
        return mode == "generate" or (mode != "counterfactual" and not self.generate.unconditional)

    def arguments(self) -> dict[str, Any]:
        """All settings, in one level, for the manifest."""
        arguments = {"mode": self.mode, "output_dir": self.output_dir, "paste_back": self.paste_back}
        arguments |= {"data_root": self.data_root, "dataset": self.dataset}
        for part in (self.files, self.photograph, self.generate, self.interpolate, self.edit):
            arguments |= asdict(part)
        return arguments

    @property
    def mixes_photographs(self) -> bool:
        return bool(self.makes("interpolate") and self.interpolate.target_image)


def parse_args(argv: Sequence[str] | None = None) -> ManipulateConfig:
    return flags.parse(ManipulateConfig, __doc__, argv)


# -------------------------------------------------------------------- photographs


def find_source(config: ManipulateConfig) -> Path | None:
    """The photograph to edit or to interpolate from: --source_image, else the first test image of
    --data_root. None if no mode needs one.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if a mode needs one and there is none.
    """
    from image_data.datasets import find_dataset

    if not (config.mixes_photographs or config.makes("edit") or config.makes("counterfactual")):
        return None
    source = Path(config.photograph.source_image) if config.photograph.source_image else None
    if source is None and config.data_root:
        dataset = find_dataset(config.data_root, config.dataset)
        print(dataset)
        source = dataset.first_image("test")
    if source is None and config.mode == "all" and not config.mixes_photographs:
        return None
    if source is None:
        raise ValueError(
            f"--mode {config.mode} needs a photograph: give --source_image, or a --data_root of files"
        )
    if not source.is_file():
        raise FileNotFoundError(f"no source image at {source}: check --source_image")
    return source


def open_photograph(model: ConditionalDiffusion, settings: PhotographSettings) -> Photograph:
    """A photograph as the model sees it. Says what was done to it beyond what was asked for."""
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
    return photograph


def open_source(config: ManipulateConfig, model: ConditionalDiffusion, path: Path) -> Photograph:
    """The photograph of ``find_source``. Faces are searched for in a file that is named, not in a
    dataset's."""
    settings = config.photograph
    if settings.source_image is None:
        settings = PhotographSettings(str(path), face=0)
    return open_photograph(model, settings)


# -------------------------------------------------------------------- the script


def load(
    config: ManipulateConfig, reads_photographs: bool
) -> tuple[ConditionalDiffusion, GuidanceClassifier | None]:
    """The model, and the guide if one is needed.

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
    studio.resolve(config.generate, model)  # refuses what it was not trained for
    guide = None
    if guidance != "free" or reads_photographs:
        guide = studio.load_guide_of(files, model, guidance, config.mode == "counterfactual")
    model.attribute_rows(requests)  # refuses unknown names before anything is drawn
    if guide is not None and guidance == "guide":
        studio.check_is_read([name for request in requests for name in request], guide)
    draws = config.makes("generate") or config.makes("interpolate")
    completes = not (config.generate.open or config.generate.unconditional)
    if draws and completes and not model.config.prior_rows:
        print(f"{files.checkpoint} has no attribute rows: what is not named is left to the network")
    return model, guide


def draw_faces(
    config: ManipulateConfig, model: ConditionalDiffusion, guide: GuidanceClassifier | None
) -> dict[str, dict[str, Any]]:
    """Run the modes that need no photograph. Returns what the manifest says of each."""
    import studio
    from figures import results

    out, settings = Path(config.output_dir), config.generate
    made = {}
    if config.makes("generate"):
        guidance = "unconditional"
        if not settings.unconditional:
            guidance = results.guidance_title(studio.resolve(settings, model), guide is not None)
        faces = studio.generate(model, guide, settings, progress=True)
        title = f"Generated: {guidance}, seed {settings.seed}"
        made["generate"] = results.save_new_faces(out, faces, title)
    if config.makes("interpolate"):
        frames = studio.interpolate(model, guide, config.interpolate, progress=True)
        made["interpolate"] = results.save_interpolation(out, frames)
    return made


def edit_photograph(
    config: ManipulateConfig,
    model: ConditionalDiffusion,
    guide: GuidanceClassifier | None,
    source: Photograph,
    target: Photograph | None,
) -> dict[str, dict[str, Any]]:
    """Run the modes that start from a photograph. Returns what the manifest says of each."""
    import studio
    from figures import results

    out, settings = Path(config.output_dir), config.edit
    facts = {"source": source.path, "landmarks": source.landmarks}
    made: dict[str, dict[str, Any]] = {}
    if target is not None:
        squares = source.square, target.square
        frames = studio.interpolate_photographs(model, guide, squares, config.interpolate, progress=True)
        strip = results.save_strip(out / "photographs", frames, "From one photograph to another")
        made["interpolate photographs"] = strip | {"from": source.path, "to": target.path}
    if config.makes("counterfactual") and guide is not None:
        flipped = studio.counterfactual(model, guide, source.square, settings, progress=True)
        made["counterfactual"] = results.save_counterfactual(out, source, flipped) | facts
        if config.paste_back:
            path = out / "counterfactual_whole.png"
            made["counterfactual"]["whole"] = results.save_whole(source, flipped.images[0], path)
    if config.makes("edit"):
        full = settings.manipulation_strength
        strengths = sorted({*STRENGTHS, full})
        guidance = results.guidance_title(studio.resolve(settings, model, guide), guide is not None)
        edits = studio.edit_each(model, guide, source.square, settings, strengths, progress=True)
        made["edit"] = results.save_edits(out, source, edits, strengths, full, guidance) | facts
        if len(settings.attributes) == 2:
            pairs = studio.edit_pairs(model, guide, source.square, settings, STRENGTHS, progress=True)
            made["edit"]["pairs"] = results.save_pairs(out, pairs, STRENGTHS)
        if config.paste_back:
            edited = edits.images[:, strengths.index(full)]
            made["edit"]["whole"] = [
                results.save_whole(source, image, out / "edits" / f"{i:03d}_whole.png")
                for i, image in enumerate(edited)
            ]
    return made


def manipulate(config: ManipulateConfig) -> None:
    """Run the modes asked for and write the manifest."""
    import devices
    import studio

    flags.check_writable(config.output_dir)
    path = find_source(config)
    model, guide = load(config, path is not None)
    source = open_source(config, model, path) if path else None
    target, target_file = None, config.interpolate.target_image
    if source and target_file:
        end = PhotographSettings(target_file, face=min(1, config.photograph.face))
        target = open_photograph(model, end)
    with devices.autocast(config.files.mixed_precision, model.device.type):
        made = draw_faces(config, model, guide)
        if source:
            made |= edit_photograph(config, model, guide, source, target)
    editing = replace(config.edit.editing, cfg_scale=studio.resolve(config.edit, model, guide).cfg_scale)
    manifest = {
        "arguments": config.arguments(),
        "sampling": asdict(studio.resolve(config.generate, model)),
        "editing": asdict(editing),
        **studio.model_facts(config.files, model, guide),
        "made": made,
    }
    manifest_file = Path(config.output_dir) / "manifest.json"
    manifest_file.write_text(json.dumps(manifest, indent=2, default=str) + "\n", encoding="utf-8")
    for mode, facts in made.items():
        print(f"{mode}: {facts.get('grid') or facts.get('strip') or facts.get('row')}")
    if config.makes("edit") and not source:
        print("edit: skipped, as there is no --source_image")
    print(f"manifest: {manifest_file}")


if __name__ == "__main__":
    flags.run(lambda: manipulate(parse_args()))
