"""How well an inverted photograph comes back, and what guidance does to that.

    python benchmarks/inversion.py --checkpoint checkpoints/best_model.pth --data_root /path/to/celeba

DDIM inversion takes held-out photographs to noise, without guidance, under their own attributes. They
come back under the same attributes, with classifier-free guidance of several scales. It prints PSNR over
the number of steps. "plain" is the network's own prediction near the clean image. "no latent" leaves out
the semantic latent. The last line is one JSON object.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import devices
import flags
from config import CACHE_HELP, DATASET_HELP, DATASETS, Config, count, flag, weight

STEPS = (10, 20, 50, 100)


@dataclass(frozen=True)
class InversionConfig(Config):
    """Flags of this benchmark."""

    checkpoint: str = flag("./checkpoints/best_model.pth", "model of train.py")
    data_root: str = flag("", "folder of labelled images", required=True)
    dataset: str | None = flag(None, DATASET_HELP, choices=DATASETS)
    num_images: int = count(32, "photographs of the test split")
    cfg_scale: tuple[float, ...] = weight((1.0, 1.5, 2.0, 3.0), "guidance on the way back")
    plot: str | None = flag(None, "picture file to write")
    cache_dir: str = flag("data/cache", CACHE_HELP)


def round_trip(model, images, rows, latent, steps: int, cfg_scale: float, plain: bool):
    """Images uint8 (B, S, S, 3) after inversion and the way back."""
    from config import SamplingConfig
    from editing import Editor
    from samplers import ddim, last, timestep_grid

    schedule, grid = model.schedule, timestep_grid(model.schedule, steps)
    sampling = SamplingConfig(cfg_scale=cfg_scale)
    own, guided = model.denoiser(rows, latent), model.guided_denoiser(rows, sampling, latent)
    if not plain:
        editor = Editor(model)
        own, guided = editor.near_clean(own), editor.near_clean(guided)
    x0 = model.first_stage.encode(images)
    x_T = last(ddim(own, schedule, x0, grid[::-1]))
    return model.first_stage.decode(last(ddim(guided, schedule, x_T, grid)))


def main() -> None:
    config = flags.parse(InversionConfig, __doc__)

    import torch
    from tqdm import tqdm

    from diffusion_model import load_model
    from evaluation.metrics import psnr
    from figures.plots import save_curves
    from image_data.datasets import find_dataset

    model, autocast = load_model(config.checkpoint), devices.autocast("auto", "cpu")
    found = find_dataset(config.data_root, config.dataset)
    faces = found.open_for(model.config, "test", config.cache_dir)
    batch = faces.__getitems__(range(min(config.num_images, len(faces))))
    images, rows = batch["image"], batch["attributes"]
    latent = model.encode_latent(images)
    ways = {f"cfg_scale {scale:g}": (latent, scale, False) for scale in config.cfg_scale}
    ways |= {"plain": (latent, 1.0, True), "no latent": (None, 1.0, False)}
    curves = {name: [] for name in ways}
    print(f"{'PSNR in dB after steps':<24}" + "".join(f"{steps:>8}" for steps in STEPS))
    with tqdm(total=len(ways) * len(STEPS), unit="round trip", leave=False) as bar:
        for name, (who, scale, plain) in ways.items():
            for steps in STEPS:
                with autocast, torch.no_grad():
                    back = round_trip(model, images, rows, who, steps, scale, plain)
                curves[name].append((steps, float(psnr(images, back).mean())))
                bar.update()
            bar.write(f"{name:<24}" + "".join(f"{value:>8.2f}" for _, value in curves[name]))
    if config.plot:
        save_curves(config.plot, curves, "DDIM steps, there and back", ["PSNR, dB"])
    print(json.dumps({"psnr_at_50_steps": {name: round(c[2][1], 2) for name, c in curves.items()}}))


if __name__ == "__main__":
    flags.run(main)
