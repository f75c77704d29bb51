"""Images per second when sampling, against diffusers, and what fewer steps cost.

    python benchmarks/sampling.py --checkpoint checkpoints/best_model.pth --data_root /path/to/celeba

Equal steps: our DDIM under guidance against diffusers' DDIMScheduler around its UNet2DConditionModel,
which has the same channels, blocks_per_level and attention levels. That runs once as it ships (float32)
and once under our precision and memory format. Both branches of guidance are in one batch everywhere.

Equal quality: the Frechet distance of each solver at several numbers of network evaluations, from the
same noise under the same rows. The last line is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train_step import diffusers_unet

import devices
import flags
from attributes import CELEBA_ATTRIBUTES
from celeba_dataset import CelebADataset
from classifiers.judge import load_judge
from config import CACHE_HELP, Config, ModelConfig, SamplingConfig, count, flag, weight
from diffusion_model import ConditionalDiffusion, load_model
from evaluation.metrics import frechet_distance, with_error
from evaluation.reading import read
from figures.plots import save_curves
from studio import draw

EVALUATIONS = (10, 20, 50, 100)
SOLVERS = {
    "DDIM": {"sampler": "ddim"},
    "DPM-Solver++(2M)": {"sampler": "dpm_solver", "eta": 0.0},
    "SDE-DPM-Solver++(2M)": {"sampler": "dpm_solver", "eta": 1.0},
}


@dataclass(frozen=True)
class Options(Config):
    """Flags of this benchmark."""

    checkpoint: str | None = flag(None, "none given: the speed of an untrained model with the defaults")
    data_root: str | None = flag(None, "folder in CelebA's layout; none given: speed only")
    judge: str = flag("./checkpoints/judge.pth", "of evaluate.py --train_judge")
    num_samples: int = count(500, "behind each Frechet distance")
    cfg_scale: float = weight(1.0, "of the Frechet distances")
    batch_size: int = count(16, "of the speed")
    num_inference_steps: int = count(20, "of the speed")
    plot: str | None = flag(None, "picture file for the Frechet distances")
    rounds: int = count(3, "of which the median counts")
    cache_dir: str = flag("data/cache", CACHE_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_root and not self.checkpoint:
            raise ValueError("--data_root is for the quality of a trained --checkpoint: give one")


def diffusers_pipeline(config, tuned: bool):
    """A function that draws images as diffusers' pipelines do, with a network of the checkpoint's
    shape. ``tuned`` means bfloat16 and channels-last."""
    unet, width = diffusers_unet(config)
    unet.eval()
    if tuned:
        unet.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def sample(number: int, num_steps: int, cfg_scale: float) -> None:
        scheduler = DDIMScheduler(config.num_timesteps, prediction_type="v_prediction")
        scheduler.set_timesteps(num_steps)
        x = torch.randn(number, unet.config.in_channels, *[unet.config.sample_size] * 2)
        tokens = torch.randn(number, len(config.attribute_names), width)
        tokens = torch.cat([torch.zeros_like(tokens), tokens])
        with torch.autocast("cpu", torch.bfloat16, enabled=tuned):
            for t in scheduler.timesteps:
                base, conditional = unet(x.repeat(2, 1, 1, 1), t, tokens).sample.float().chunk(2)
                x = scheduler.step(base + cfg_scale * (conditional - base), t, x).prev_sample

    return sample


def equal_steps(model, autocast, number: int, num_steps: int, rounds: int) -> dict[str, float]:
    """Images per second of each contender: the median over rounds in which they take turns."""
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
    for contender in work.values():
        contender(number, 1, 2.0)  # the first pass allocates
    for _ in range(rounds):
        for name, contender in work.items():
            started = time.perf_counter()
            contender(number, num_steps, 2.0)
            seconds[name].append(time.perf_counter() - started)
    return {name: number / statistics.median(values) for name, values in seconds.items()}


def equal_quality(model, judge, autocast, options: Options) -> tuple[float, float]:
    """Print and plot the Frechet distance of every solver at every number of network evaluations. All
    draw from the same noise.

    Returns the distance after the default solver's 20 evaluations over that after DDIM's 100, and the
    error of that ratio (95 %), for which both are resampled together.
    """
    config = model.config
    common = {"image_size": config.image_size, "crop": config.crop, "cache_dir": options.cache_dir}
    asked, real = (CelebADataset(options.data_root, split, **common) for split in ("val", "test"))
    reference = read(judge, real.images)[0]
    rows = asked.attributes[torch.arange(options.num_samples) % len(asked)]
    features, curves = {}, {}
    print(f"{'Frechet distance after':<24}" + "".join(f"{steps:>8}" for steps in EVALUATIONS))
    for name, how in SOLVERS.items():
        for steps in EVALUATIONS:
            sampling = SamplingConfig(num_inference_steps=steps, cfg_scale=options.cfg_scale, **how)
            with tqdm(total=len(rows), desc=f"{name} {steps}", unit="image", leave=False) as bar:
                images = draw(model, rows, sampling, autocast, bar=bar)
            features[sampling] = read(judge, images)[0]
            score = frechet_distance(features[sampling], reference)
            curves.setdefault(name, []).append((steps, score))
        print(f"{name:<24}" + "".join(f"{score:>8.2f}" for _, score in curves[name]))
    if options.plot:
        save_curves(options.plot, curves, "network evaluations", ["Frechet distance"])
    few = features[SamplingConfig(num_inference_steps=20, cfg_scale=options.cfg_scale)]
    many = features[SamplingConfig("ddim", 100, cfg_scale=options.cfg_scale)]

    def ratio(i, j) -> float:
        return frechet_distance(few[i], reference[j]) / frechet_distance(many[i], reference[j])

    return with_error(ratio, len(rows), len(reference))


def main() -> None:
    options = flags.parse(Options, __doc__)
    autocast = devices.autocast("auto", "cpu")
    if options.checkpoint:
        model = load_model(options.checkpoint)
    else:
        model = ConditionalDiffusion(ModelConfig(CELEBA_ATTRIBUTES)).eval()
        model.to(memory_format=torch.channels_last)
    if options.data_root:
        config = model.config
        judge, _ = load_judge(options.judge, config.attribute_names, config.crop)
    num_steps = options.num_inference_steps
    rates = equal_steps(model, autocast, options.batch_size, num_steps, options.rounds)
    for name, rate in rates.items():
        print(f"{num_steps} DDIM steps, {name}: {rate:.2f} images/s")
    ours = rates["ours"]
    result = {
        "speedup_vs_diffusers": round(ours / rates["diffusers as shipped"], 2),
        "speedup_vs_diffusers_same_precision": round(ours / rates["diffusers, our precision"], 2),
    }
    if options.data_root:
        ratio, error = equal_quality(model, judge, autocast, options)
        result["score_20_evaluations_over_ddim_100"] = round(ratio, 4)
        result["its_error"] = round(error, 4)
    print(json.dumps(result | {"torch": torch.__version__, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    flags.run(main)
