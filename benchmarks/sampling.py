"""Images per second when sampling, against diffusers, and what fewer steps cost.

    python benchmarks/sampling.py --checkpoint checkpoints/best_model.pth --data_root /path/to/celeba

Equal steps: our DDIM under guidance against diffusers' DDIMScheduler around its UNet2DConditionModel of
the same channels, blocks_per_level and attention levels, as it ships (float32) and under our precision
and memory format; both branches in one batch everywhere. Equal quality: the Frechet distance of each
solver at several numbers of network evaluations, from the same noise under the same rows. The last line
is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli

EVALUATIONS = (10, 20, 50, 100)
SOLVERS = {
    "DDIM": {"sampler": "ddim"},
    "DPM-Solver++(2M)": {"sampler": "dpm_solver", "eta": 0.0},
    "SDE-DPM-Solver++(2M)": {"sampler": "dpm_solver", "eta": 1.0},
}


def diffusers_pipeline(config, tuned: bool):
    """A function that draws images as diffusers' pipelines do, with a network of the checkpoint's
    shape; ``tuned`` in bfloat16 and channels-last."""
    import torch
    from diffusers import DDIMScheduler
    from train_step import diffusers_unet

    unet, width = diffusers_unet(config)
    unet.eval()
    if tuned:
        unet.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def draw(number: int, num_steps: int, cfg_scale: float) -> None:
        scheduler = DDIMScheduler(config.num_timesteps, prediction_type="v_prediction")
        scheduler.set_timesteps(num_steps)
        x = torch.randn(number, unet.config.in_channels, *[unet.config.sample_size] * 2)
        tokens = torch.randn(number, len(config.attribute_names), width)
        tokens = torch.cat([torch.zeros_like(tokens), tokens])
        with torch.autocast("cpu", torch.bfloat16, enabled=tuned):
            for t in scheduler.timesteps:
                base, conditional = unet(x.repeat(2, 1, 1, 1), t, tokens).sample.float().chunk(2)
                x = scheduler.step(base + cfg_scale * (conditional - base), t, x).prev_sample

    return draw


def equal_steps(model, autocast, number: int, num_steps: int, rounds: int) -> dict[str, float]:
    """Images per second of each, alternating, medians."""
    import torch

    config = model.config
    rows = torch.randn(number, len(config.attribute_names)).sign()

    def ours(number: int, num_steps: int, cfg_scale: float) -> None:
        with autocast:
            model.ddim_sample(number, None, rows, cfg_scale, num_steps)

    work = {
        "ours": ours,
        "diffusers as shipped": diffusers_pipeline(config, tuned=False),
        "diffusers, our precision": diffusers_pipeline(config, tuned=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for draw in work.values():
        draw(number, 1, 2.0)  # the first pass allocates
    for _ in range(rounds):
        for name, draw in work.items():
            started = time.perf_counter()
            draw(number, num_steps, 2.0)
            seconds[name].append(time.perf_counter() - started)
    return {name: number / statistics.median(values) for name, values in seconds.items()}


def equal_quality(model, classifier, autocast, args) -> tuple[float, float]:
    """Print the Frechet distance of every solver at every number of network evaluations, and plot it;
    all are drawn from the same noise. Returns that of the default solver's 20 over that of DDIM's 100,
    and the error of that ratio (95 %), both resampled together."""
    import torch
    from tqdm import tqdm

    from celeba_dataset import CelebADataset
    from evaluation import draw, frechet_distance, with_error
    from evaluation_classifier import read
    from model_config import SamplingConfig
    from pictures import save_curves

    config = model.config
    common = {"image_size": config.image_size, "crop": config.crop, "cache_dir": args.cache_dir}
    asked, real = (CelebADataset(args.data_root, split, **common) for split in ("val", "test"))
    reference = read(classifier, real.images)[0]
    rows = asked.attributes[torch.arange(args.num_samples) % len(asked)]
    features, curves = {}, {}
    print(f"{'Frechet distance after':<24}" + "".join(f"{steps:>8}" for steps in EVALUATIONS))
    for name, how in SOLVERS.items():
        for steps in EVALUATIONS:
            sampling = SamplingConfig(num_inference_steps=steps, cfg_scale=args.cfg_scale, **how)
            with tqdm(total=len(rows), desc=f"{name} {steps}", unit="image", leave=False) as bar:
                images = draw(model, rows, sampling, autocast, bar=bar)
            features[sampling] = read(classifier, images)[0]
            score = frechet_distance(features[sampling], reference)
            curves.setdefault(name, []).append((steps, score))
        print(f"{name:<24}" + "".join(f"{score:>8.2f}" for _, score in curves[name]))
    if args.plot:
        save_curves(args.plot, curves, "network evaluations", ["Frechet distance"])
    few = features[SamplingConfig(num_inference_steps=20, cfg_scale=args.cfg_scale)]
    many = features[SamplingConfig("ddim", 100, cfg_scale=args.cfg_scale)]

    def ratio(i, j) -> float:
        return frechet_distance(few[i], reference[j]) / frechet_distance(many[i], reference[j])

    return with_error(ratio, len(rows), len(reference))


def main() -> None:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", help="without it, the speed of an untrained model with train.py's defaults")
    add("--data_root", help="folder in CelebA's layout; without it, speed only")
    add("--classifier", default="./checkpoints/evaluation_classifier.pth")
    add("--num_samples", type=cli.positive_int, default=500, help="behind each Frechet distance")
    add("--cfg_scale", type=cli.non_negative, default=1.0, help="of the Frechet distances")
    add("--batch_size", type=cli.positive_int, default=16, help="of the speed")
    add("--num_inference_steps", type=cli.positive_int, default=20, help="of the speed")
    add("--plot", help="picture file for the Frechet distances")
    add("--rounds", type=cli.positive_int, default=3)
    add("--cache_dir", default="data/cache")
    args = parser.parse_args()
    if args.data_root and not args.checkpoint:
        parser.error("--data_root is for the quality of a trained --checkpoint: give one")

    import torch

    from celeba_dataset import CELEBA_ATTRIBUTES
    from checkpoint import load_model
    from diffusion_model import ConditionalDiffusion
    from evaluation_classifier import load_classifier
    from model_config import ModelConfig

    autocast = cli.autocast("auto", "cpu")
    if args.checkpoint:
        model = load_model(args.checkpoint)
    else:
        model = ConditionalDiffusion(ModelConfig(CELEBA_ATTRIBUTES)).eval()
        model.to(memory_format=torch.channels_last)
    if args.data_root:
        config = model.config
        classifier, _ = load_classifier(args.classifier, config.attribute_names, config.crop)
    rates = equal_steps(model, autocast, args.batch_size, args.num_inference_steps, args.rounds)
    for name, rate in rates.items():
        print(f"{args.num_inference_steps} DDIM steps, {name}: {rate:.2f} images/s")
    result = {
        "speedup_vs_diffusers": round(rates["ours"] / rates["diffusers as shipped"], 2),
        "speedup_vs_diffusers_same_precision": round(
            rates["ours"] / rates["diffusers, our precision"], 2
        ),
    }
    if args.data_root:
        ratio, error = equal_quality(model, classifier, autocast, args)
        result["score_20_evaluations_over_ddim_100"] = round(ratio, 4)
        result["its_error"] = round(error, 4)
    print(json.dumps(result | {"torch": torch.__version__, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    cli.run(main)
