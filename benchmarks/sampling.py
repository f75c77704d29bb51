"""Images per second when sampling, against diffusers, and what fewer steps cost.

    python benchmarks/sampling.py --checkpoint checkpoints/best_model.pth --data_root /path/to/celeba

Equal steps: our DDIM under guidance (both branches in one batch, bfloat16, channels-last) against
diffusers' DDIMScheduler around its UNet2DConditionModel of the same channels, blocks and attention, as
it ships (float32, two passes). Equal quality: the Frechet distance of the default solver with 20 network
evaluations over that of DDIM with 100, from the same noise under the same rows. The last line is one
JSON object.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli


def diffusers_pipeline(config):
    """A function that draws images as diffusers' users do, with a network of the checkpoint's shape."""
    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel

    levels = range(len(config.channels))
    cross = [level in config.cross_attention_levels for level in levels]
    width = max(config.channels[0], 128)
    unet = UNet2DConditionModel(
        sample_size=config.image_size // config.patch_size,
        in_channels=3 * config.patch_size**2,
        out_channels=3 * config.patch_size**2,
        block_out_channels=config.channels,
        layers_per_block=config.blocks_per_level,
        down_block_types=["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross],
        up_block_types=["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)],
        cross_attention_dim=width,
        attention_head_dim=config.num_heads,  # diffusers reads this as the number of heads
    ).eval()

    @torch.no_grad()
    def draw(number: int, num_steps: int, cfg_scale: float):
        side = config.image_size // config.patch_size
        scheduler = DDIMScheduler(config.num_timesteps, prediction_type="v_prediction")
        scheduler.set_timesteps(num_steps)
        x = torch.randn(number, 3 * config.patch_size**2, side, side)
        tokens = torch.randn(number, len(config.attribute_names), width)
        for t in scheduler.timesteps:
            conditional = unet(x, t, tokens).sample
            base = unet(x, t, torch.zeros_like(tokens)).sample
            x = scheduler.step(base + cfg_scale * (conditional - base), t, x).prev_sample
        return x

    return draw


def equal_steps(model, autocast, number: int, num_steps: int, rounds: int) -> dict[str, float]:
    """Images per second of both, alternating, medians."""
    import torch

    config = model.config
    theirs = diffusers_pipeline(config)
    rows = torch.randn(number, len(config.attribute_names)).sign()

    def ours() -> None:
        with autocast:
            model.ddim_sample(number, None, rows, 2.0, num_steps)

    work = {"ours": ours, "diffusers": lambda: theirs(number, num_steps, 2.0)}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, draw in work.items():
            started = time.perf_counter()
            draw()
            seconds[name].append(time.perf_counter() - started)
    return {name: number / statistics.median(values) for name, values in seconds.items()}


def equal_quality(model, autocast, args) -> dict[str, float]:
    """Frechet distance to the training images by solver and steps."""
    import torch
    from tqdm import tqdm

    from celeba_dataset import CelebADataset
    from evaluation import draw, frechet_distance, load_classifier, read
    from model_config import SamplingConfig

    config = model.config
    sets = {
        split: CelebADataset(
            args.data_root, split, config.image_size, config.crop, cache_dir=args.cache_dir
        )
        for split in ("train", "test")
    }
    classifier, _ = load_classifier(args.classifier, config.attribute_names)
    reference = read(classifier, sets["train"].images, "training images")[0]
    rows = sets["test"].attributes[torch.arange(args.num_samples) % len(sets["test"])]
    scores = {}
    for sampler, steps in (("ddim", 100), ("ddim", 20), (SamplingConfig.sampler, 20)):
        sampling = SamplingConfig(sampler, steps, cfg_scale=args.cfg_scale)
        with tqdm(total=len(rows), desc=f"{sampler} {steps}", unit="image") as bar:
            images = draw(model, rows, sampling, autocast, bar=bar)
        scores[f"{sampler} {steps}"] = frechet_distance(read(classifier, images)[0], reference)
        print(f"{sampler} with {steps} network evaluations: Frechet {scores[f'{sampler} {steps}']:.2f}")
    return scores


def main() -> None:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True)
    add("--data_root", help="folder in CelebA's layout; without it, speed only")
    add("--classifier", default="./checkpoints/evaluation_classifier.pth")
    add("--num_samples", type=cli.positive_int, default=500, help="behind each Frechet distance")
    add("--cfg_scale", type=cli.non_negative, default=1.0, help="of the Frechet distances")
    add("--batch_size", type=cli.positive_int, default=16, help="of the speed")
    add("--rounds", type=cli.positive_int, default=3)
    add("--cache_dir", default="data/cache")
    args = parser.parse_args()

    from checkpoint import load_model
    from model_config import SamplingConfig

    model, autocast = load_model(args.checkpoint), cli.autocast("auto", "cpu")
    rates = equal_steps(model, autocast, args.batch_size, 20, args.rounds)
    print(f"20 DDIM steps: {rates['ours']:.2f} images/s, diffusers {rates['diffusers']:.2f}")
    result = {"speedup_vs_diffusers": round(rates["ours"] / rates["diffusers"], 2)}
    if args.data_root:
        scores = equal_quality(model, autocast, args)
        ratio = scores[f"{SamplingConfig.sampler} 20"] / scores["ddim 100"]
        result["score_20_evaluations_over_ddim_100"] = round(ratio, 4)
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
