"""Count the memory and the operations of one training step, or measure its memory on a GPU.

    python benchmarks/train_memory.py [flags of train.py, such as --config configs/celeba64.yaml]
    python benchmarks/train_memory.py --config configs/celeba256-sd.yaml --image_size 256 --factor 8

Of the stage in pixels; with --factor, of the same network in latents of 4 channels, which read moments.
Weights, gradients, Adam's moments and the EMA are counted from the parameters; activations as the bytes
autograd really keeps between forward and backward, under bf16 autocast (each storage once); operations
by torch.utils.flop_counter, forward and backward. On CUDA the peak that the allocator saw stands beside
the count. The last line is one JSON object.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import devices
import flags
from attributes import CELEBA_ATTRIBUTES
from checkpoint import EMA
from config import LossConfig, count
from diffusion_model import ConditionalDiffusion
from train import TrainConfig


def count_step(config, images, device: str) -> dict[str, float]:
    """GiB of each part of a training step of a model on a batch: uint8 images, or moments. And its GFLOP
    for an image."""
    model = ConditionalDiffusion(config).to(device, memory_format=torch.channels_last)
    ema = EMA(model, 0.999)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    attributes = torch.randn(len(images), 40).sign().to(device)
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with FlopCounterMode(display=False) as operations:
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast(device, torch.bfloat16),
        ):
            terms, _, _ = model(images.to(device), attributes, LossConfig())
        activations = sum(size for pointer, size in kept.items() if pointer not in own)
        terms["total"].backward()
    optimizer.step()
    ema.update(model, 0)
    number = sum(p.numel() for p in trained)
    states = [value for state in optimizer.state.values() for value in state.values()]
    moments = sum(value.numel() * value.element_size() for value in states)
    sizes = {
        "weights": 4 * sum(p.numel() for p in model.parameters()),
        "gradients": 4 * number,
        "optimizer": moments,
        "ema": 4 * number,
        "activations": activations,
    }
    result = {name: size / 2**30 for name, size in sizes.items()}
    result["counted_gib"] = sum(result.values())
    if device == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    gflop = operations.get_total_flops() / len(images) / 1e9
    return {"parameters_millions": number / 1e6, "gflop_an_image": gflop} | result


@dataclass(frozen=True)
class MemoryConfig(TrainConfig):
    """Flags of train.py, and the latents."""

    factor: int = count(1, "of latents: 2, 4, 8; 1: pixels")


def main() -> None:
    config = flags.parse(MemoryConfig, __doc__)
    model, side = replace(config.model, attribute_names=CELEBA_ATTRIBUTES), config.model.image_size
    images = torch.zeros(config.batch_size, side, side, 3, dtype=torch.uint8)
    if config.factor > 1:
        levels = config.factor.bit_length() - 1
        model = replace(model, first_stage="vae", first_stage_config={"channels": [16] * levels})
        images = torch.zeros(config.batch_size, 8, side // config.factor, side // config.factor)
    sizes = count_step(model, images, devices.choose_device(config.device))
    for name, size in sizes.items():
        print(f"{name:<22}{size:8.3f}")
    print(json.dumps({name: round(size, 3) for name, size in sizes.items()}))


if __name__ == "__main__":
    flags.run(main)
