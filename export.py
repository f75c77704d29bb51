"""Give a model to other programs: safetensors, or a folder in diffusers' format.

--out model.safetensors holds the inference weights, the configuration in its metadata; every script
reads it as it reads model.pth, and --out model.pth turns it back. Another --out is a folder for
diffusers: scheduler/, and vae/ where the first stage is Stable Diffusion's VAE, which encode_latents.py
reads back. The UNet stays behind: diffusers has none of its kind.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cli

PREDICTION_TYPES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}  # as diffusers names them


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", default="./checkpoints/best_model.pth", help="of train.py, or .safetensors")
    add("--out", help="FILE.safetensors, FILE.pth, or a folder for diffusers")
    back = "print the flags of train.py that give a diffusers scheduler's noise schedule, instead"
    add("--flags_of", metavar="FOLDER", help=back)
    args = parser.parse_args(argv)
    if bool(args.out) == bool(args.flags_of):
        parser.error("give --out, what to write, or --flags_of, the scheduler to read")
    return args


def scheduler_of(config):
    """diffusers' DDIMScheduler with the noise schedule and kind of prediction of a ``ModelConfig``; x0
    is clipped in pixels only."""
    from diffusers import DDIMScheduler

    from noise_schedule import NoiseSchedule

    schedule = NoiseSchedule(config.schedule, config.num_timesteps, config.zero_terminal_snr)
    return DDIMScheduler(
        num_train_timesteps=config.num_timesteps,
        trained_betas=schedule.beta.tolist(),
        prediction_type=PREDICTION_TYPES[config.prediction],
        clip_sample=config.first_stage == "pixels",
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )


def flags_of(folder: str | Path) -> dict[str, str | int | bool]:
    """The flags of train.py whose noise schedule and prediction are those of a scheduler's folder in
    diffusers' format.

    Raises:
        FileNotFoundError, ValueError: for no such folder, or a schedule that train.py has not.
    """
    from diffusers import DDIMScheduler

    from checkpoint import refusing

    with refusing(folder, "scheduler that train.py could have"):
        try:
            theirs = DDIMScheduler.from_pretrained(str(folder))
        except OSError as error:
            raise FileNotFoundError(f"no scheduler in {folder} ({str(error).splitlines()[0]})") from None
        return _matching_flags(folder, theirs)


def _matching_flags(folder: str | Path, theirs) -> dict[str, str | int | bool]:
    """``flags_of`` for a scheduler that was read."""
    import torch

    from noise_schedule import BETAS, NoiseSchedule

    steps, end = theirs.config.num_train_timesteps, bool(theirs.alphas_cumprod[-1] == 0)
    names = {value: name for name, value in PREDICTION_TYPES.items()}
    prediction = names.get(theirs.config.prediction_type)
    if len(theirs.alphas_cumprod) != steps or prediction is None:
        raise ValueError(
            f"{folder} has {len(theirs.alphas_cumprod)} betas for {steps} steps and predicts "
            f"{theirs.config.prediction_type}: train.py has no such"
        )
    for kind in BETAS:
        ours = NoiseSchedule(kind, steps, end).alpha_bar.float()
        if torch.allclose(ours, theirs.alphas_cumprod, atol=1e-5):
            flags = {"schedule": kind, "num_timesteps": steps, "zero_terminal_snr": end}
            return flags | {"prediction": prediction}
    raise ValueError(
        f"{folder} has a noise schedule that is none of {', '.join(BETAS)} over {steps} steps"
    )


def export(args: argparse.Namespace) -> None:
    """Write what --out names, or print the flags for what --flags_of names."""
    if args.flags_of:
        flags = flags_of(args.flags_of).items()
        given = (f"--{k}" if v is True else f"--{k} {v}" for k, v in flags if v is not False)
        print(" ".join(given))
        return
    from checkpoint import load_checkpoint, load_guide, load_model, save_model

    out, state = Path(args.out), load_checkpoint(args.checkpoint)
    if out.exists():
        raise ValueError(f"{out} exists: choose another --out, or remove it")
    guide = "guide" in state or state.get("stage") == "classifier"
    model = (load_guide if guide else load_model)(args.checkpoint)
    if out.suffix in (".safetensors", ".pth"):
        save_model(model, out, **{k: state[k] for k in ("step", "validation_loss") if k in state})
    else:
        scheduler_of(model.config).save_pretrained(str(out / "scheduler"))
        if model.config.first_stage == "sd-vae":
            model.first_stage.autoencoder.vae.save_pretrained(str(out / "vae"))
    print(f"written: {out}")


if __name__ == "__main__":
    cli.run(lambda: export(parse_args()))
