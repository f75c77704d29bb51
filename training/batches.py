"""Which images a step sees, and what is random in it. Both follow from the seed and the step alone, so
that a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader


def seed_everything(*numbers: int) -> None:
    """Seed torch from these numbers. What is random in a step then depends on nothing before it."""
    entropy = (len(numbers), *numbers)  # numpy takes (1,) and (1, 0) for the same
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


class BatchOrder:
    """Image indices of every batch from number ``start`` on, for one process of ``world``: an endless
    stream of epochs, each a permutation drawn from (seed, epoch)."""

    def __init__(self, num_images: int, batch_size: int, seed: int, rank: int, world: int, start: int):
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.stride = batch_size * world
        self.first = start * self.stride + rank * batch_size

    def __iter__(self) -> Iterator[list[int]]:
        first, epoch, order = self.first, -1, []
        while True:
            batch = []
            for position in range(first, first + self.batch_size):
                if position // self.num_images != epoch:
                    epoch = position // self.num_images
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
                batch.append(int(order[position % self.num_images]))
            yield batch
            first += self.stride


def ignore_signals(_worker: int) -> None:
    """Workers ignore Ctrl-C and SIGTERM. The main process stops them after it has saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def load_batches(
    dataset, order: BatchOrder, num_workers: int, pin_memory: bool
) -> Generator[dict[str, Tensor], None, None]:
    """Batches of a dataset in this order. ``close`` ends the loader's workers."""
    loader = DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=num_workers,
        collate_fn=dataset.collate,
        worker_init_fn=ignore_signals,
        pin_memory=pin_memory,
    )
    iterator = iter(loader)
    try:
        yield from iterator
    finally:  # an error's traceback keeps the iterator alive, and so its workers, beyond the exit
        getattr(iterator, "_shutdown_workers", lambda: None)()
