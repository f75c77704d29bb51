"""Reading many images, batch by batch, in all the processes that were started together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from progress import progress_bar

if TYPE_CHECKING:
    from classifiers.judge import Judge

Part = TypeVar("Part")
Result = TypeVar("Result")


def say(text: str) -> None:
    """Print on the main process only."""
    if PartialState().is_main_process:
        print(text)


def in_parallel(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """[work(part) for part in parts], with the parts shared among the processes.

    Every process must call this, and every process gets all results. So what follows is the same in all
    of them.
    """
    processes = PartialState()
    number = processes.num_processes
    own = [work(part) for part in parts[processes.process_index :: number]]
    done = gather_object([own])  # done[p]: what process p did
    return [done[i % number][i // number] for i in range(len(parts))]


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
    with progress_bar(total=len(starts), desc=label, leave=False, unit="batch", disable=hidden) as bar:

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
