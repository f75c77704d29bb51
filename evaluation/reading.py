"""Reading many images, batch by batch, in all the processes that were started together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from studio import in_parallel

if TYPE_CHECKING:
    from classifiers.judge import Judge

Result = TypeVar("Result")


def say(text: str) -> None:
    """Print on the main process only."""
    if PartialState().is_main_process:
        print(text)


def in_batches(
    work: Callable[[Tensor], Result], images, batch_size: int = 250, label: str = ""
) -> list[Result]:
    """``work`` of every batch of images. The processes share the batches.

    Args:
        images: uint8 (N, H, W, 3), an array or a tensor; ``work`` gets tensors.
        label: of the progress bar; without one there is no bar.
    """
    starts = range(0, len(images), batch_size)
    processes = PartialState()
    hidden = not label or not processes.is_main_process
    with tqdm(total=len(starts), desc=label, leave=False, unit="batch", disable=hidden) as bar:

        def part(start: int) -> Result:
            batch = images[start : start + batch_size]
            batch = batch if isinstance(batch, Tensor) else torch.from_numpy(batch.copy())  # read-only
            done = work(batch)
            bar.update(processes.num_processes)
            return done

        return in_parallel(part, starts)


def read(judge: Judge, images, label: str = "") -> tuple[Tensor, Tensor]:
    """The judge's features (N, D) and logits (N, A) of uint8 images (N, H, W, 3), on the CPU."""
    features = torch.cat(in_batches(judge.read_features, images, label=label))
    return features, judge.read_logits(features)
