"""The data of a run, and its batches: which images a step sees, and what is random in it. Both follow
from the seed and the step only, so that a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from image_data.cached import ImageDataset, random_flip
from image_data.datasets import find_dataset
from image_data.encoded import MANIFEST, LatentDataset
from synthetic_faces.dataset import write_dataset

if TYPE_CHECKING:
    from train import TrainConfig

SYNTHETIC_FACES = 6000  # drawn where no folder is given


def is_encoded(folder: str) -> bool:
    """Whether a folder holds latents of encode_latents.py."""
    return (Path(folder) / MANIFEST).is_file()


def load_datasets(config: TrainConfig, accelerator: Accelerator) -> Sequence[ImageDataset]:
    """The training and the validation dataset. Draws the synthetic faces if no folder is given."""
    root, size, crop = config.data_folder, config.model.image_size, config.model.crop
    if is_encoded(root):
        if config.stage in ("first_stage", "upscaler") or config.data_fraction < 1:
            raise ValueError(f"{root} is encoded: for a model or a guide only, without --data_fraction")
        latents = [LatentDataset(root, split) for split in ("train", "val")]
        if config.attribute:
            for data in latents:
                data.keep(config.attribute)
        return latents
    if config.data_root is None:
        with accelerator.main_process_first():
            write_dataset(root, num_images=SYNTHETIC_FACES, image_size=size, seed=0)
    labelled = find_dataset(root, config.dataset, config.unspecified)
    if config.attribute:
        labelled = labelled.keeping(config.attribute)
    accelerator.print(labelled)
    train_set = labelled.open("train", size, crop, config.data_fraction, config.cache_dir)
    return [train_set, labelled.open("val", size, crop, 1.0, config.cache_dir)]


def seed_everything(*numbers: int) -> None:
    """Seed torch from these numbers. What is random in a step then depends on nothing before it."""
    entropy = (len(numbers), *numbers)  # numpy takes (1,) and (1, 0) for the same
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


def batch_order(
    num_images: int, batch_size: int, seed: int, rank: int, world: int, start: int
) -> Iterator[list[int]]:
    """Image indices of every batch from number ``start`` on, for one process of ``world``: an endless
    stream of epochs, each a permutation drawn from (seed, epoch)."""
    epoch, order = -1, np.array([])
    for number in count(start):
        first = (number * world + rank) * batch_size
        batch = []
        for position in range(first, first + batch_size):
            if position // num_images != epoch:
                epoch = position // num_images
                order = np.random.default_rng([seed, epoch]).permutation(num_images)
            batch.append(int(order[position % num_images]))
        yield batch


def ready_batch(
    batch: dict[str, Tensor], accelerator: Accelerator, flip: bool = False
) -> tuple[Tensor, Tensor]:
    """A batch on its device: images (or moments), with ``flip`` mirrored at random, and attributes."""
    device = accelerator.device
    images, attributes = (
        batch[key].to(device, non_blocking=device.type == "cuda") for key in ("image", "attributes")
    )
    if flip:
        return random_flip(images), attributes
    return images[:, 0] if images.ndim == 5 else images, attributes  # encoded: its mirror image, too


def read_ahead(
    read: Callable[[list[int]], dict[str, Tensor]], order: Iterator[list[int]], threads: int
) -> Generator[dict[str, Tensor], None, None]:
    """``read`` of every item of an endless ``order``, in that order. Each thread reads two items ahead.
    Without threads, an item is read when it is needed.

    Threads suffice, as a batch is copied outside the interpreter's lock. Processes would have to send it
    through shared memory, which is small in containers, and could be killed one by one.
    """
    if not threads:
        yield from map(read, order)  # which never ends
    pool = ThreadPoolExecutor(threads, "reader")
    try:
        ahead = deque(pool.submit(read, indices) for indices in islice(order, 2 * threads))
        while True:
            ahead.append(pool.submit(read, next(order)))
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def load_batches(
    dataset: ImageDataset, config: TrainConfig, accelerator: Accelerator, step: int
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Images and attributes of every batch from a step on, on the device. Before each batch, torch is
    seeded from the run's seed, the step and the process. So a resumed run repeats exactly. ``close``
    ends the reading threads."""
    rank, world = accelerator.process_index, accelerator.num_processes
    first = step * config.grad_accum
    on_gpu = accelerator.device.type == "cuda"

    def read(indices: list[int]) -> dict[str, Tensor]:
        batch = dataset.__getitems__(indices)
        if not on_gpu:
            return batch
        with torch.cuda.device(accelerator.device):  # a thread starts with the first GPU
            return {name: each.pin_memory() for name, each in batch.items()}

    order = batch_order(len(dataset), config.batch_size, config.seed, rank, world, first)
    with closing(read_ahead(read, order, config.num_workers)) as batches:
        for number, batch in enumerate(batches, first):
            step, micro = divmod(number, config.grad_accum)
            seed_everything(config.seed, step, micro * world + rank)
            yield ready_batch(batch, accelerator, dataset.flips)
