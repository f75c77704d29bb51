"""Give a model to other programs: as safetensors, as a folder for the hub or in diffusers' format.

--out FILE.safetensors writes the weights for inference, with the configuration in the metadata. Every
script reads such a file as it reads a .pth file, and --out FILE.pth turns it back. Any other --out is a
folder. With --hub it holds the same weights and a model card, for the Hugging Face hub; scripts and
ConditionalDiffusion.from_pretrained read it. Without, it is for diffusers: scheduler/, and vae/ if the
first stage is Stable Diffusion's VAE, which encode_latents.py reads back. The UNet is not exported:
diffusers has none of its kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import flags
from config import Config, ModelConfig, flag

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

FILES = (".safetensors", ".pth")  # what --out may end in, if it is a file
# Names in diffusers of the predictions that its schedulers take on variance-preserving schedules.
PREDICTION_TYPES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


@dataclass(frozen=True)
class ExportConfig(Config):
    """Flags of export.py."""

    checkpoint: str = flag("./checkpoints/best_model.pth", "model of train.py")
    out: str = flag("", "a .safetensors or .pth file, or a folder", required=True)
    hub: bool = flag(False, "the folder is for the Hugging Face hub, not for diffusers")
    half: bool = flag(False, "write the weights in half precision")


def parse_args(argv: list[str] | None = None) -> ExportConfig:
    """The configuration that the command line gives."""
    return flags.parse(ExportConfig, __doc__, argv)


def scheduler_of(config: ModelConfig) -> SchedulerMixin:
    """diffusers' scheduler with a model's noise schedule and kind of prediction.

    A ``DDIMScheduler`` for a variance-preserving schedule; it clips x0 for pixels only. Rectified flow
    becomes a ``FlowMatchEulerDiscreteScheduler``, whose timesteps 1 ... T are our 0 ... T - 1.

    Raises:
        ValueError: for a combination that neither of them has.
    """
    import torch
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    from noise_schedule import NoiseSchedule

    number = config.num_timesteps
    schedule = NoiseSchedule(config.schedule, number, config.zero_terminal_snr)
    t = torch.arange(number)
    signal2, noise2 = schedule.squares_at(t, t)  # float64 (T,)
    line = (t + 1).double() / number
    variance_preserving = torch.allclose(signal2 + noise2, torch.ones_like(signal2))
    rectified_flow = torch.allclose(noise2, line**2) and torch.allclose(signal2, (1 - line) ** 2)
    if variance_preserving and config.prediction in PREDICTION_TYPES:
        return DDIMScheduler(
            num_train_timesteps=number,
            trained_betas=schedule.beta.tolist(),
            prediction_type=PREDICTION_TYPES[config.prediction],
            clip_sample=config.first_stage == "pixels",
            set_alpha_to_one=True,
            timestep_spacing="trailing",
        )
    if rectified_flow and config.prediction == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=number)
    raise ValueError(
        f"diffusers has no scheduler for prediction {config.prediction} on schedule {config.schedule}"
        ": export to a .safetensors file instead"
    )


def export(config: ExportConfig) -> None:
    """Write what --out names.

    Raises:
        FileNotFoundError, ValueError: for a checkpoint that cannot be read or exported, or an --out that
            exists.
    """
    from checkpoint import build, load_checkpoint, save_model
    from classifiers.guide import GuidanceClassifier
    from diffusion_model import ConditionalDiffusion

    out = Path(config.out)
    if out.suffix not in ("", *FILES):
        raise ValueError(
            f"--out {out}: no file of that kind is written; end it in {' or '.join(FILES)}, or give a "
            "folder for diffusers, without a suffix"
        )
    if config.hub and out.suffix:
        raise ValueError(f"--hub writes a folder, and --out {out} names a file: leave its suffix out")
    if out.exists():
        raise ValueError(f"{out} exists: choose another --out, or remove it")
    flags.check_writable(out.parent, "--out")
    state = load_checkpoint(config.checkpoint)
    if "guide" in state or state.get("stage") == "guide":
        model, key = build(GuidanceClassifier, "guide", state, config.checkpoint), "guide"
    else:
        model, key = build(ConditionalDiffusion, "model", state, config.checkpoint), "model"
    if config.hub and key == "guide":
        raise ValueError(f"--hub is for models, and {config.checkpoint} is a guide: leave --hub out")
    model = model.half() if config.half else model
    written = [str(out)]
    if out.suffix:
        save_model(model, out, key, **model.facts)
    elif config.hub:
        model.save_pretrained(out)
    else:
        scheduler_of(model.config).save_pretrained(str(out / "scheduler"))
        written = [str(out / "scheduler")]
        if model.config.first_stage == "sd-vae":
            model.first_stage.autoencoder.vae.save_pretrained(str(out / "vae"))
            written.append(str(out / "vae"))
        print("diffusers has no UNet of this kind: the weights are not in there")
    print(f"written: {' and '.join(written)}")


if __name__ == "__main__":
    flags.run(lambda: export(parse_args()))
