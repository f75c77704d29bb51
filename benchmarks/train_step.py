"""Optimiser steps per second of our UNet and of its peers, alternating, with what the machine can do.

    python benchmarks/train_step.py

Peers: diffusers' UNet2DConditionModel with the same channels, blocks_per_level, attention levels and 40
context tokens, as it ships (float32) and under our precision, memory format and optimiser; and
denoising-diffusion-pytorch's Unet as it ships; each in a process of its own. At equal settings theirs
are larger: diffusers' way up has a block more on each level and its attention blocks a feed-forward
part; GFLOP/image says by how much. FLOPs are counted by torch; the ceiling is the fastest of a few
bfloat16 convolutions and matrix products in the same run. The last line is one JSON object.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from denoising_diffusion_pytorch import Unet
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import devices
import flags
from attributes import CELEBA_ATTRIBUTES
from config import Config, ModelConfig, count, flag
from training.process import keep_freed_memory
from unet_model import ConditionalUNet

CONFIG = ModelConfig(CELEBA_ATTRIBUTES)


@dataclass(frozen=True)
class Options(Config):
    """Flags of this benchmark."""

    batch_size: int = count(16, "images of a step")
    rounds: int = count(3, "steps of each, in turn")
    device: str = flag("auto", "cuda where there is one", choices=("auto", "cpu", "cuda"))


def ours():
    """Our UNet at its defaults, without the latent token, which the peers have no place for."""
    unet = ConditionalUNet(latent_dim=0)
    return unet, lambda x, t, rows: unet(x, t, rows)


def diffusers_unet(config: ModelConfig):
    """diffusers' text-conditioned UNet with the channels, blocks and cross-attention of ours, and the
    width of its context tokens."""
    cross = [level in config.cross_attention_levels for level in range(len(config.channels))]
    width, folded = max(config.channels[0], 128), 3 * config.patch_size**2
    unet = UNet2DConditionModel(
        sample_size=config.image_size // config.patch_size,
        in_channels=folded,
        out_channels=folded,
        block_out_channels=config.channels,
        layers_per_block=config.blocks_per_level,
        down_block_types=["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross],
        up_block_types=["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)],
        cross_attention_dim=width,
        attention_head_dim=config.num_heads,  # diffusers reads this as the number of heads
        norm_num_groups=math.gcd(32, *config.channels),
    )
    return unet, width


def diffusers():
    """The same at our defaults, its tokens learned vectors times the attributes."""
    unet, width = diffusers_unet(CONFIG)
    tokens = torch.nn.Parameter(torch.randn(len(CONFIG.attribute_names), width))
    unet.register_parameter("tokens", tokens)
    return unet, lambda x, t, rows: unet(x, t, rows[..., None] * tokens).sample


def ddpm_pytorch():
    """denoising-diffusion-pytorch's unconditional Unet at the same widths."""
    first, *_ = CONFIG.channels
    unet = Unet(dim=first, dim_mults=tuple(c // first for c in CONFIG.channels), flash_attn=False)
    return unet, lambda x, t, rows: unet(x, t)


class Contender:
    """A network, its optimiser, and one training step of it."""

    def __init__(self, build: Callable, tuned: bool, device: str, batch_size: int):
        torch.manual_seed(0)
        self.network, self.call = build()
        self.network.to(device)
        if tuned:
            self.network.to(memory_format=torch.channels_last)
        self.tuned, self.device = tuned, device
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=tuned or None)
        generator = torch.Generator().manual_seed(0)
        side = CONFIG.image_size
        self.x = torch.randn(batch_size, 3, side, side, generator=generator).to(device)
        self.t = torch.randint(1000, (batch_size,), generator=generator).to(device)
        rows = torch.randn(batch_size, len(CONFIG.attribute_names), generator=generator)
        self.rows = rows.sign().to(device)

    def step(self) -> None:
        """Forward, backward, clip, update."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.tuned):
            loss = (self.call(self.x, self.t, self.rows).float() - self.x).pow(2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def facts(self) -> dict[str, float]:
        """Millions of parameters, GFLOP per image of forward and backward as torch counts them, and on a
        GPU the GiB that a step takes at most."""
        self.step()  # the first allocates
        cuda = self.device == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        with FlopCounterMode(display=False) as counter:
            self.step()
        return {
            "millions": sum(p.numel() for p in self.network.parameters()) / 1e6,
            "gflop": counter.get_total_flops() / 1e9 / len(self.x),
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
        }


def serve(pipe, build: Callable, tuned: bool, device: str, batch_size: int) -> None:
    """In a process of its own: facts first, then a step's seconds for every True received."""
    with keep_freed_memory(device if tuned else ""):  # as train.py does; what ships does not
        contender = Contender(build, tuned, device, batch_size)
        pipe.send(contender.facts())
        while pipe.recv():
            pipe.send(seconds_of(contender.step, device))


def seconds_of(work: Callable[[], object], device: str) -> float:
    """How long a call takes, the GPU's work included."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def ceiling(device: str) -> dict[str, float]:
    """GFLOP/s of the fastest bfloat16 convolution and matrix product of a few sizes."""

    def rate(gflop: float, work: Callable[..., object], *inputs: torch.Tensor) -> float:
        calls = 50 if device == "cuda" else 1  # to hide what a launch costs

        def repeated() -> None:
            for _ in range(calls):
                work(*inputs)

        repeated()
        return calls * gflop / min(seconds_of(repeated, device) for _ in range(5))

    def normal(*shape: int) -> torch.Tensor:
        x = torch.randn(shape, device=device, dtype=torch.bfloat16)
        return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x

    convolve = partial(F.conv2d, padding=1)
    batch, convolutions, products = 256 if device == "cuda" else 16, [], []
    with torch.inference_mode():
        for channels, side in ((128, 32), (256, 16), (256, 32), (512, 16)):
            inputs = normal(batch, channels, side, side), normal(channels, channels, 3, 3)
            gflop = 2 * 9 * channels**2 * side**2 * batch / 1e9
            convolutions.append(rate(gflop, convolve, *inputs))
        for size in (4096, 8192) if device == "cuda" else (1024, 2048):
            a = normal(size, size)
            products.append(rate(2 * size**3 / 1e9, torch.matmul, a, a))
    return {"convolution": max(convolutions), "matmul": max(products)}


CONTENDERS = {  # how it is built, and whether under our precision and memory format
    "ours": (ours, True),
    "diffusers, as shipped": (diffusers, False),
    "diffusers, our precision": (diffusers, True),
    "denoising-diffusion-pytorch": (ddpm_pytorch, False),
}


def take_turns(batch_size: int, rounds: int, device: str) -> dict[str, dict[str, float]]:
    """The facts of each contender, with its images per second: the median of rounds in turn."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes, facts, seconds = {}, [], {}, {}
    for name, (build, tuned) in CONTENDERS.items():
        pipes[name], other_end = spawn.Pipe()
        arguments = (other_end, build, tuned, device, batch_size)
        processes.append(spawn.Process(target=serve, args=arguments, daemon=True))
        processes[-1].start()
        other_end.close()  # so that a contender that dies ends the wait for it
        facts[name], seconds[name] = pipes[name].recv(), []
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds[name].append(pipe.recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()
    for name, fact in facts.items():
        fact["rate"] = batch_size / statistics.median(seconds[name])
    return facts


def main() -> None:
    options = flags.parse(Options, __doc__)
    device = devices.choose_device(options.device)
    facts = take_turns(options.batch_size, options.rounds, device)
    limits = ceiling(device)
    print(f"{'':<30}{'M parameters':>13}{'GFLOP/image':>13}{'images/s':>10}{'GFLOP/s':>9}")
    for name, fact in facts.items():
        reached = fact["rate"] * fact["gflop"]
        print(f"{name:<30}{fact['millions']:>13.1f}{fact['gflop']:>13.1f}", end="")
        print(f"{fact['rate']:>10.2f}{reached:>9.0f}")
    print(f"bfloat16 ceilings: {limits['convolution']:.0f} convolution, {limits['matmul']:.0f} matmul")
    ours = facts["ours"]
    reached = ours["rate"] * ours["gflop"]

    def speedup(peer: str) -> float:
        return round(ours["rate"] / facts[peer]["rate"], 3)

    result: dict[str, object] = {
        "speedup_vs_diffusers_as_shipped": speedup("diffusers, as shipped"),
        "speedup_vs_diffusers_same_precision": speedup("diffusers, our precision"),
        "speedup_vs_ddpm_pytorch": speedup("denoising-diffusion-pytorch"),
        "ceiling_fraction": round(reached / limits["convolution"], 3),
        "images_per_second": round(ours["rate"], 2),
        "batch_size": options.batch_size,
        "device": device,
    }
    if device == "cuda":
        result["model_flop_utilisation"] = round(reached / limits["matmul"], 3)
        result["peak_gib"] = {name: round(fact["peak_gib"], 2) for name, fact in facts.items()}
    print(json.dumps(result | {"torch": torch.__version__, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    flags.run(main)
