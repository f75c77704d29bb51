"""Images per second of our loader against torchvision's way, on the same files with as many workers.

    python benchmarks/data_loading.py --data_root /path/to/celeba

torchvision's way: its CelebA class, without the check of the full archive's sums. Each item is decoded,
cropped and resized in a DataLoader. Our way: decode once into a memory-mapped cache, then gather
batches in threads. Prints first and later epochs, and peak memory. Each loader has a process of its
own. Without --data_root it reads synthetic faces. The last line is one JSON object.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import flags
from celeba_dataset import CelebADataset
from config import Config, count, flag
from image_data.cached import random_flip
from synthetic_faces.dataset import write_dataset
from training.batches import BatchOrder, read_ahead

BATCH = 64
Epochs = tuple[int, Callable[[], Iterator[dict]]]  # images, and what gives the batches of an epoch


@dataclass(frozen=True)
class LoadingConfig(Config):
    """Flags of this benchmark."""

    data_root: str | None = flag(None, "folder in CelebA's layout; none given: synthetic faces")
    image_size: int = count(64, "side of the square images")
    num_workers: tuple[int, ...] = count((0, 2), "processes or threads that load", low=0)
    batches: int = count(100, "most batches of an epoch")


def torchvision_loader(root: Path, image_size: int, num_workers: int, scratch: Path) -> Epochs:
    """A DataLoader as torchvision's users write it."""
    from torchvision import transforms
    from torchvision.datasets import CelebA

    CelebA._check_integrity = lambda self: True  # on the class itself: workers must find it

    # CelebA insists on every annotation file. Those that a folder lacks are written with zeros.
    folder = scratch / "celeba"
    folder.mkdir()
    for entry in root.iterdir():
        (folder / entry.name).symlink_to(entry.resolve())
    names = [
        line.split()[0]
        for line in (root / "list_attr_celeba.txt").read_text(encoding="utf-8").splitlines()[2:]
    ]
    zeros = {"list_bbox_celeba.txt": 4, "list_landmarks_align_celeba.txt": 10}
    for file, columns in zeros.items():
        if not (folder / file).exists():
            header = " ".join(f"c{i}" for i in range(columns))
            rows = "\n".join(" ".join([name, *["0"] * columns]) for name in names)
            (folder / file).write_text(f"{len(names)}\n{header}\n{rows}\n", encoding="utf-8")
    if not (folder / "identity_CelebA.txt").exists():
        (folder / "identity_CelebA.txt").write_text(
            "\n".join(f"{name} 0" for name in names) + "\n", encoding="utf-8"
        )
    crop = min(178, *_size(next((root / "img_align_celeba").iterdir())))
    transform = transforms.Compose(
        [
            transforms.CenterCrop(crop),
            transforms.Resize(image_size, antialias=True),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )
    dataset = CelebA(str(scratch), "train", "attr", transform)
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        dataset, BATCH, shuffle=True, num_workers=num_workers, drop_last=True, generator=generator
    )
    return len(dataset), lambda: iter(loader)


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def our_loader(root: Path, image_size: int, num_workers: int, scratch: Path) -> Epochs:
    """Our dataset, read as training reads it."""
    dataset = CelebADataset(root, "train", image_size, cache_dir=scratch)

    def epoch() -> Iterator[dict]:
        order = iter(BatchOrder(len(dataset), BATCH, 0, 0, 1, 0))
        with closing(read_ahead(dataset.__getitems__, order, num_workers)) as batches:
            for batch in islice(batches, len(dataset) // BATCH):
                yield batch.result()

    return len(dataset), epoch


def _epoch(batches: Iterator[dict], flip, limit: int) -> tuple[int, float]:
    """Images and seconds of one pass, or of its first ``limit`` batches."""
    images, started = 0, time.perf_counter()
    for step, batch in enumerate(batches):
        if flip:  # training does this with a batch; torchvision's loader has done it with each item
            flip(batch["image"]).permute(0, 3, 1, 2).float().div_(255)
        images += BATCH
        if step + 1 == limit:
            break
    return images, time.perf_counter() - started


def _work(name: str, root: str, image_size: int, num_workers: int, limit: int, results) -> None:
    """Measure one loader, and put what was found into the queue ``results``. Importing takes no part."""
    if name == "torchvision":  # not at the head of the file, or its memory would count as ours
        import torchvision  # noqa: F401

    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        build = {"ours": our_loader, "torchvision": torchvision_loader}[name]
        total, epoch = build(Path(root), image_size, num_workers, Path(scratch))
        flip = random_flip if name == "ours" else None
        preparing = time.perf_counter() - started
        images, seconds = _epoch(epoch(), flip, limit)
        first = total / (preparing + seconds * total / images)
        images, seconds = 0, 0.0
        while seconds < 1:
            more = _epoch(epoch(), flip, limit)
            images, seconds = images + more[0], seconds + more[1]
    kib = sum(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    results.put({"first": first, "later": images / seconds, "peak_mib": kib / 1024})


def measure(root: str, image_size: int, num_workers: int, limit: int) -> dict[str, dict[str, float]]:
    """Both loaders, each in a fresh process."""
    for path in (Path(root) / "img_align_celeba").iterdir():
        path.read_bytes()  # both loaders then read from memory; otherwise the first would read from disk
    context, measured = multiprocessing.get_context("spawn"), {}
    for name in ("torchvision", "ours"):
        results = context.Queue()
        process = context.Process(
            target=_work, args=(name, root, image_size, num_workers, limit, results)
        )
        process.start()
        process.join()
        if process.exitcode:
            raise ValueError(f"the {name} loader failed, see above")
        measured[name] = results.get()
    return measured


def main() -> None:
    config = flags.parse(LoadingConfig, __doc__)
    root = config.data_root
    if root is None:
        root = f"data/synthetic_faces_{config.image_size}"
        write_dataset(root, num_images=6000, image_size=config.image_size, seed=0)
    best = {"torchvision": 0.0, "ours": 0.0}
    print(f"{'loader':<14}{'workers':>8}{'first epoch, images/s':>23}{'later':>12}{'peak MiB':>10}")
    for workers in config.num_workers:
        for name, row in measure(root, config.image_size, workers, config.batches).items():
            print(
                f"{name:<14}{workers:>8}{row['first']:>23.0f}{row['later']:>12.0f}{row['peak_mib']:>10.0f}"
            )
            best[name] = max(best[name], row["later"])
    rates = {f"{name}_images_per_second": round(rate) for name, rate in best.items()}
    print(json.dumps({"speedup_vs_torchvision": round(best["ours"] / best["torchvision"], 1)} | rates))


if __name__ == "__main__":
    flags.run(main)
