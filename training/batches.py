"""The batches of a run: which images a step sees, and what is random in it. Both follow from the seed
and the step alone, so that a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from config import TrainConfig
from image_data.cached import ImageDataset, random_flip
from image_data.encoded import LatentDataset

Dataset = ImageDataset | LatentDataset


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


def to_device(
    batch: dict[str, Tensor], accelerator: Accelerator, flip: bool = False
) -> tuple[Tensor, Tensor]:
    """A batch's images (or moments), with ``flip`` mirrored at random, and its attributes."""
    images, attributes = (
        batch[key].to(accelerator.device, non_blocking=True) for key in ("image", "attributes")
    )
    if flip:
        return random_flip(images), attributes
    return images[:, 0] if images.ndim == 5 else images, attributes  # encoded: its mirror image, too


def load_batches(
    dataset: Dataset, config: TrainConfig, accelerator: Accelerator, step: int
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Images and attributes of every batch from a step on, on the device. Before each batch, torch is
    seeded from the run's seed, the step and the process. So a resumed run repeats exactly. ``close``
    ends the loader's workers."""
    rank, world = accelerator.process_index, accelerator.num_processes
    first = step * config.grad_accum
    loader = DataLoader(
        dataset,
        batch_sampler=BatchOrder(len(dataset), config.batch_size, config.seed, rank, world, first),
        num_workers=config.num_workers,
        collate_fn=dataset.collate,
        worker_init_fn=ignore_signals,
        pin_memory=accelerator.device.type == "cuda",
    )
    iterator = iter(loader)
    try:
        for number, batch in enumerate(iterator, first):
            step, micro = divmod(number, config.grad_accum)
            seed_everything(config.seed, step, micro * world + rank)
            yield to_device(batch, accelerator, config.flip and dataset.flips)
    finally:  # an error's traceback keeps the iterator alive, and so its workers, beyond the exit
        getattr(iterator, "_shutdown_workers", lambda: None)()
