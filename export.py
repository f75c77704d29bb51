"""Give a model to other programs: as safetensors, or as a folder for the Hugging Face hub.

--out FILE.safetensors writes the weights for inference, with the configuration in the metadata. Every
script reads such a file as it reads a .pth file, and --out FILE.pth turns it back. Any other --out is a
folder for the hub, with the same weights and a model card. Scripts and
ConditionalDiffusion.from_pretrained read it.

--first_stage FILE, of train.py --stage upscaler, makes a model or guide in pixels one of twice the size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flags
from config import Config, flag

FILES = (".safetensors", ".pth")  # what --out may end in, if it is a file


@dataclass(frozen=True)
class ExportConfig(Config):
    """Flags of export.py."""

    checkpoint: str = flag("./checkpoints/best_model.pth", "model of train.py")
    first_stage: str | None = flag(None, "upscaler to put behind the model; none given: as it is")
    out: str = flag("", "a .safetensors or .pth file, or a folder for the hub", required=True)
    half: bool = flag(False, "write the weights in half precision")


def parse_args(argv: list[str] | None = None) -> ExportConfig:
    return flags.parse(ExportConfig, __doc__, argv)


def enlarged(model: Any, path: str) -> Any:
    """A model or guide in pixels with the same weights in the latents of the upscaler in this file, so
    of images of twice the side. Raises ValueError for a model in latents, or for another first stage."""
    from checkpoint import load_first_stage

    stored = load_first_stage(path)
    kinds = (model.config.first_stage, stored.kind)
    if kinds != ("pixels", "upscaler"):
        raise ValueError(
            f"--first_stage puts an upscaler behind a model in pixels, and {path} holds a first stage "
            f"of kind {kinds[1]}, the checkpoint one of kind {kinds[0]}; train.py --stage upscaler "
            "makes an upscaler"
        )
    config = replace(
        model.config,
        image_size=model.config.image_size * stored.module.factor,
        first_stage=stored.kind,
        first_stage_config=stored.config,
        first_stage_judge=stored.judge,
    )
    larger = type(model)(config)
    weights, of_stage = model.state_dict(), stored.module.state_dict()
    owners = ["", "guide."] if config.guide_channels else [""]  # the guide inside has the same stage
    for owner in owners:
        weights |= {f"{owner}first_stage.{name}": weight for name, weight in of_stage.items()}
    larger.load_state_dict(weights)
    larger.facts = model.facts
    return larger.eval()


def export(config: ExportConfig) -> None:
    """Write the file or the folder of --out.

    Raises:
        FileNotFoundError, ValueError: for a checkpoint that cannot be read or exported, or an --out that
            exists.
    """
    from checkpoint import build, load_checkpoint, save_model
    from classifiers.guide import GuidanceClassifier
    from diffusion_model import ConditionalDiffusion

    out = Path(config.out)
    if out.suffix not in ("", *FILES):
        raise ValueError(f"--out {out}: no file of that kind is written; end it in {' or '.join(FILES)}")
    if out.exists():
        raise ValueError(f"{out} exists: choose another --out, or remove it")
    flags.check_writable(out.parent, "--out")
    state = load_checkpoint(config.checkpoint)
    if "guide" in state or state.get("stage") == "guide":
        model, key = build(GuidanceClassifier, "guide", state, config.checkpoint), "guide"
    else:
        model, key = build(ConditionalDiffusion, "model", state, config.checkpoint), "model"
    if key == "guide" and not out.suffix:
        raise ValueError(f"{config.checkpoint} is a guide: end --out in {' or '.join(FILES)}")
    if config.first_stage:
        model = enlarged(model, config.first_stage)
    model = model.half() if config.half else model
    if out.suffix:
        save_model(model, out, key, **model.facts)
    else:
        model.save_pretrained(out)
    print(f"written: {out}")


if __name__ == "__main__":
    flags.run(lambda: export(parse_args()))
