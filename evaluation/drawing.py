"""Drawing many images, image i from a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from config import SamplingConfig
from diffusion_model import ConditionalDiffusion
from evaluation.reading import Result, in_parallel
from samplers import sample_generators


def draw_batches(
    then: Callable[[Tensor], Result],
    model: ConditionalDiffusion,
    rows: Tensor,
    sampling: SamplingConfig,
    autocast,
    seed: int = 0,
    batch_size: int = 50,
    bar: tqdm | None = None,
    numbers: Sequence[int] | None = None,
    **options,
) -> list[Result]:
    """``then`` of every batch of images uint8 (B, H, W, 3), drawn under attribute rows (N, A). Only one
    batch is in memory. The processes share the batches.

    Args:
        seed, numbers: image i is drawn from the seed (seed, numbers[i]), by default (seed, i).
        bar: counts images; where none is given, each batch has a bar of its own.
        options: of ``ConditionalDiffusion.sample``.
    """
    processes = PartialState()
    options |= {"progress": bar is None and processes.is_main_process}
    numbers = range(len(rows)) if numbers is None else numbers

    def part(start: int) -> Result:
        batch = rows[start : start + batch_size]
        generators = sample_generators(seed, numbers[start : start + batch_size])
        with autocast:
            images = model.sample(len(batch), None, batch, sampling, generators, **options)
        if bar is not None:
            bar.update(len(batch) * processes.num_processes)
        return then(images)

    return in_parallel(part, range(0, len(rows), batch_size))


def draw(*args, **options) -> Tensor:
    """``draw_batches`` that keeps the images: uint8 (N, H, W, 3), on the CPU."""
    return torch.cat(draw_batches(Tensor.cpu, *args, **options))
