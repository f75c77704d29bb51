"""How well an inverted photograph comes back, and what guidance does to that.

    python benchmarks/inversion.py --checkpoint checkpoints/best_model.pth --data_root /path/to/celeba

Held-out photographs go into noise by DDIM under their own attributes, unguided, and come back under the
same, with classifier-free guidance of several scales: PSNR over the number of steps. "plain" is the
network's own prediction near the clean image, "no latent" leaves out the semantic latent. The last line
is one JSON object.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli

STEPS = (10, 20, 50, 100)


def round_trip(model, images, rows, latent, steps: int, cfg_scale: float, plain: bool):
    """Images uint8 (B, S, S, 3) after inversion and the way back."""
    from samplers import ddim, last, timestep_grid

    schedule, grid = model.schedule, timestep_grid(model.schedule, steps)

    own, guided = model.denoiser(rows, latent), model.guided_denoiser(rows, latent, cfg_scale)
    if not plain:
        own, guided = model.near_clean(own), model.near_clean(guided)
    x0 = model.first_stage.encode(images)
    x_T = last(ddim(own, schedule, x0, grid[::-1]))
    return model.first_stage.decode(last(ddim(guided, schedule, x_T, grid)))


def main() -> None:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", default="./checkpoints/best_model.pth")
    add("--data_root", required=True, help="folder in CelebA's layout")
    add("--num_images", type=cli.positive_int, default=32)
    add("--cfg_scale", type=cli.non_negative, nargs="+", default=[1.0, 1.5, 2.0, 3.0])
    add("--plot", help="picture file")
    add("--cache_dir", default="data/cache")
    args = parser.parse_args()

    import torch
    from tqdm import tqdm

    from celeba_dataset import CelebADataset
    from checkpoint import load_model
    from edit_evaluation import psnr
    from pictures import save_curves

    model, autocast = load_model(args.checkpoint), cli.autocast("auto", "cpu")
    config = model.config
    size = {"image_size": config.image_size, "crop": config.crop, "cache_dir": args.cache_dir}
    faces = CelebADataset(args.data_root, "test", **size)
    batch = faces.__getitems__(range(min(args.num_images, len(faces))))
    images, rows = batch["image"], batch["attributes"]
    latent = model.encode_latent(images)
    ways = {f"cfg_scale {scale:g}": (latent, scale, False) for scale in args.cfg_scale}
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
    if args.plot:
        save_curves(args.plot, curves, "DDIM steps, there and back", ["PSNR, dB"])
    print(json.dumps({"psnr_at_50_steps": {name: round(c[2][1], 2) for name, c in curves.items()}}))


if __name__ == "__main__":
    cli.run(main)
