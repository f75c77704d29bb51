"""A training step in latents against one in pixels of the same images: speed and memory.

    python benchmarks/latent_training.py [--image_size 128] [--batch_size 8]

The same UNet and semantic VAE train in turn on three things: on moments as encode_latents.py writes them
with our first stage (a quarter of the side, 4 channels), on pixels, and on pixels folded into channels.
A step is that of train.py: joint loss in bfloat16, backward, clipping, AdamW, EMA. Prints medians of
alternating rounds, and memory as train_memory.py counts it. The last line is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train_memory import count_step

import devices
import flags
from attributes import CELEBA_ATTRIBUTES
from checkpoint import EMA
from config import Config, FirstStageConfig, LossConfig, ModelConfig, count, flag
from diffusion_model import ConditionalDiffusion

FIRST_STAGE = FirstStageConfig(CELEBA_ATTRIBUTES).network()
SPACES = {
    "latents": {"first_stage": "vae", "first_stage_config": FIRST_STAGE},
    "pixels": {},
    "pixels, patch_size 2": {"patch_size": 2},
    "pixels, patch_size 4": {"patch_size": 4},
}


@dataclass(frozen=True)
class LatentConfig(Config):
    """Flags of this benchmark."""

    image_size: int = count(128, "side of the square images")
    batch_size: int = count(8, "images of a step")
    rounds: int = count(5, "medians are over these")
    device: str = flag("auto", "cuda where there is one", choices=("auto", "cpu", "cuda"))


class Contender:
    """A model in training on one random batch."""

    def __init__(self, config: ModelConfig, batch_size: int, device: str):
        self.config, self.device = config, device
        model = ConditionalDiffusion(config).to(device, memory_format=torch.channels_last)
        side = config.image_size // model.first_stage.factor
        if config.first_stage == "pixels":
            self.images = torch.randint(256, (batch_size, side, side, 3), dtype=torch.uint8)
        else:
            self.images = torch.randn(batch_size, 2 * model.first_stage.channels, side, side).half()
        self.images = self.images.to(device)
        self.rows = torch.randn(batch_size, len(CELEBA_ATTRIBUTES)).sign().to(device)
        self.model, self.ema = model, EMA(model, 0.999)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, fused=True)

    def seconds(self) -> float:
        """The time of one step."""
        started = time.perf_counter()
        with torch.autocast(self.device, torch.bfloat16):
            terms, _, _ = self.model(self.images, self.rows, LossConfig())
        terms["total"].backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model, 0)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started


def measure(image_size: int, batch_size: int, rounds: int, device: str) -> dict[str, dict]:
    """Images per second, GiB and millions of parameters for each space."""
    small = {"channels": (64, 128, 256), "blocks_per_level": 1, "latent_dim": 256}
    small |= {"self_attention_levels": (), "cross_attention_levels": ()}
    contenders = {
        name: Contender(
            ModelConfig(CELEBA_ATTRIBUTES, image_size=image_size, **small, **how), batch_size, device
        )
        for name, how in SPACES.items()
    }
    times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            contender.seconds()  # warms the caches, which hold the last contender's data
            times[name].append(min(contender.seconds() for _ in range(2)))
    return {
        name: {
            "images_per_second": batch_size / statistics.median(times[name]),
            "gib": count_step(each.config, each.images, device)["counted_gib"],
            "unet_millions": sum(p.numel() for p in each.model.unet.parameters()) / 1e6,
        }
        for name, each in contenders.items()
    }


def main() -> None:
    config = flags.parse(LatentConfig, __doc__)
    device = devices.choose_device(config.device)
    found = measure(config.image_size, config.batch_size, config.rounds, device)
    for name, row in found.items():
        print(f"{name:<22}" + "".join(f"{value:10.2f} {key}" for key, value in row.items()))
    speed = {name: row["images_per_second"] for name, row in found.items()}
    over = {name: round(speed["latents"] / value, 2) for name, value in speed.items()}
    print(json.dumps({"speedup_over_pixels": over["pixels"], "speedup_over": over}))


if __name__ == "__main__":
    flags.run(main)
