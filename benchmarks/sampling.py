"""Images per second when sampling, against diffusers.

    python benchmarks/sampling.py --checkpoint checkpoints/best_model.pth

Equal steps: our DDIM under guidance against diffusers' DDIMScheduler around its UNet2DConditionModel,
which has the same channels, blocks_per_level and attention levels. That runs once as it ships (float32)
and once under our precision and memory format. Both branches of guidance are in one batch everywhere.
What fewer steps cost in quality, `evaluate.py samples --num_inference_steps 10 20 50 100` says. The last
line is one JSON object.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train_step import diffusers_unet

import devices
import flags
from attributes import CELEBA_ATTRIBUTES
from config import Config, ModelConfig, count, flag
from diffusion_model import ConditionalDiffusion, load_model


@dataclass(frozen=True)
class Options(Config):
    """Flags of this benchmark."""

    checkpoint: str | None = flag(None, "none given: an untrained model with the defaults")
    batch_size: int = count(16, "images drawn at once")
    num_inference_steps: int = count(20, "DDIM steps")
    rounds: int = count(3, "of which the median counts")


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


def images_per_second(model, options: Options) -> dict[str, float]:
    """Of each contender: the median over rounds in which they take turns."""
    config, number = model.config, options.batch_size
    rows = torch.randn(number, len(config.attribute_names)).sign()

    def ours(number: int, num_steps: int, cfg_scale: float) -> None:
        with devices.autocast("auto", "cpu"):
            model.ddim_sample(number, None, rows, cfg_scale, num_steps)

    contenders = {
        "ours": ours,
        "diffusers as shipped": diffusers_pipeline(config, tuned=False),
        "diffusers, our precision": diffusers_pipeline(config, tuned=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for sample in contenders.values():
        sample(number, 1, 2.0)  # the first pass allocates
    for _ in range(options.rounds):
        for name, sample in contenders.items():
            started = time.perf_counter()
            sample(number, options.num_inference_steps, 2.0)
            seconds[name].append(time.perf_counter() - started)
    return {name: number / statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    options = flags.parse(Options, __doc__)
    if options.checkpoint:
        model = load_model(options.checkpoint)
    else:
        model = ConditionalDiffusion(ModelConfig(CELEBA_ATTRIBUTES)).eval()
        model.to(memory_format=torch.channels_last)
    rates = images_per_second(model, options)
    for name, rate in rates.items():
        print(f"{options.num_inference_steps} DDIM steps, {name}: {rate:.2f} images/s")
    ours = rates["ours"]
    result = {
        "speedup_vs_diffusers": round(ours / rates["diffusers as shipped"], 2),
        "speedup_vs_diffusers_same_precision": round(ours / rates["diffusers, our precision"], 2),
    }
    print(json.dumps(result | {"torch": torch.__version__, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    flags.run(main)
