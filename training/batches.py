"""The data of a run, and its batches: which images a step sees, and what is random in it. Both follow
from the seed and the step only, so that a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from image_data.cached import ImageDataset, random_flip
from image_data.datasets import find_dataset
from image_data.encoded import LatentDataset
from synthetic_faces.dataset import write_dataset

if TYPE_CHECKING:
    from train import TrainConfig

Dataset = ImageDataset | LatentDataset
SYNTHETIC_FACES = 6000  # drawn where no folder is given


def load_datasets(config: TrainConfig, accelerator: Accelerator) -> tuple[TrainConfig, Dataset, Dataset]:
    """The configuration, with what the data decides, and the training and validation datasets. Draws
    the synthetic faces if no folder is given."""
    if config.latents:
        train_set, val_set = (LatentDataset(config.latents, split) for split in ("train", "val"))
        for data in (train_set, val_set) if config.attribute else ():
            data.keep(config.attribute)
        model = replace(config.model, image_size=train_set.image_size, crop=train_set.crop)
        return replace(config, model=model), train_set, val_set
    size, crop, root = config.model.image_size, config.model.crop, config.data_folder
    if config.data_root is None:
        with accelerator.main_process_first():
            write_dataset(root, num_images=SYNTHETIC_FACES, image_size=size, seed=0)
    labelled = find_dataset(root, None if config.dataset == "synthetic" else config.dataset)
    if config.attribute:
        labelled = labelled.keeping(config.attribute)
    accelerator.print(labelled)
    train_set = labelled.open("train", size, crop, config.data_fraction, config.cache_dir)
    val_set = labelled.open("val", size, crop, 1.0, config.cache_dir)
    return config, train_set, val_set


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


class Interrupted(Exception):
    """A stop was requested while a step waited for its images."""


def to_device(
    batch: dict[str, Tensor], accelerator: Accelerator, flip: bool = False
) -> tuple[Tensor, Tensor]:
    """A batch's images (or moments), with ``flip`` mirrored at random, and its attributes."""
    device = accelerator.device
    images, attributes = (
        batch[key].to(device, non_blocking=device.type == "cuda") for key in ("image", "attributes")
    )
    if flip:
        return random_flip(images), attributes
    return images[:, 0] if images.ndim == 5 else images, attributes  # encoded: its mirror image, too


def read_ahead(
    read: Callable[[list[int]], dict[str, Tensor]], order: Iterator[list[int]], threads: int
) -> Generator[Future, None, None]:
    """``read`` of every item of an endless ``order``, in that order, as futures. Each thread reads two
    items ahead. Without threads, an item is read when it is needed.

    Threads suffice, as a batch is copied outside the interpreter's lock. Processes would have to send it
    through shared memory, which is small in containers, and could be killed one by one.
    """
    if not threads:
        for indices in order:
            future: Future = Future()
            future.set_result(read(indices))
            yield future
        return
    pool = ThreadPoolExecutor(threads, "reader")
    try:
        ahead = deque(pool.submit(read, indices) for indices in islice(order, 2 * threads))
        while True:
            ahead.append(pool.submit(read, next(order)))
            yield ahead.popleft()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def load_batches(
    dataset: Dataset,
    config: TrainConfig,
    accelerator: Accelerator,
    step: int,
    stopping: Callable[[], bool] = lambda: False,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Images and attributes of every batch from a step on, on the device. Before each batch, torch is
    seeded from the run's seed, the step and the process. So a resumed run repeats exactly. ``close``
    ends the reading threads.

    Raises:
        Interrupted: if ``stopping`` becomes true while it waits for a batch: a disk may hang.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    first = step * config.grad_accum
    on_gpu = accelerator.device.type == "cuda"

    def read(indices: list[int]) -> dict[str, Tensor]:
        batch = dataset.__getitems__(indices)
        if not on_gpu:
            return batch
        with torch.cuda.device(accelerator.device):  # a thread starts with the first GPU
            return {name: each.pin_memory() for name, each in batch.items()}

    order = BatchOrder(len(dataset), config.batch_size, config.seed, rank, world, first)
    with closing(read_ahead(read, iter(order), config.num_workers)) as batches:
        for number, batch in enumerate(batches, first):
            while not wait([batch], timeout=1).done:
                if stopping():
                    raise Interrupted
            step, micro = divmod(number, config.grad_accum)
            seed_everything(config.seed, step, micro * world + rank)
            yield to_device(batch.result(), accelerator, dataset.flips)
