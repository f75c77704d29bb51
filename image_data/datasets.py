"""Any dataset of labelled images as an `ImageDataset`: what a folder holds, and how it is read.

``DATASETS`` is the only list of the kinds. An entry more is all that a new one takes.

Class labels become one-hot attributes, +1 for the class and -1 for the others. Pictures are made RGB,
cropped to a square (see `crop_box`) and resized.
"""

from __future__ import annotations

import itertools
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from celeba_dataset import ATTRIBUTE_FILE, IMAGE_FOLDER, celeba_source
from config import ModelConfig
from image_data.cached import SPLITS, CachedDataset, ImageDataset, Source, check_split, chosen_rows
from image_data.folders import (
    ANNOTATIONS,
    HQ_ANNOTATION,
    celeba_hq_source,
    folder_source,
    held_out_splits,
    one_hot,
)
from image_data.picture import check_geometry, to_square


@dataclass(frozen=True)
class ClassArrays:
    """The pictures of a split in memory: (N, H, W) or (N, H, W, 3); class numbers (N,); class names."""

    pictures: np.ndarray
    classes: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """How one kind of dataset is recognised and read.

    signs: files or folders. A folder that has any of them holds this kind.
    read: (root, split) -> the split's picture files, or its pictures where they are kept as arrays.
    flips: whether a mirror image is as good as the image.
    """

    signs: tuple[str, ...]
    read: Callable[[Path, str], Source | ClassArrays]
    flips: bool = True


# -------------------------------------------------------------------- arrays that torchvision reads

# torchvision is imported where it is needed: that takes as long as importing torch.


def read_mnist(root: Path, split: str) -> ClassArrays:
    """MNIST's digits in torchvision's files.

    Raises:
        ValueError: one line, for files that are missing or damaged.
    """
    from torchvision.datasets import mnist

    part = "t10k" if split == "test" else "train"
    raw = root / "MNIST" / "raw" if (root / "MNIST").is_dir() else root / "raw"
    try:
        pictures = mnist.read_image_file(str(raw / f"{part}-images-idx3-ubyte")).numpy()
        classes = mnist.read_label_file(str(raw / f"{part}-labels-idx1-ubyte")).numpy()
    except Exception as error:  # this reader raises many types, AssertionError among them
        raise _not_whole(root, "mnist", split, error) from None
    return _part(root, split, ClassArrays(pictures, classes, tuple("0123456789")))


def read_cifar10(root: Path, split: str) -> Source | ClassArrays:
    """CIFAR-10 in torchvision's files, or as class folders of picture files.

    Raises:
        FileNotFoundError, ValueError: one line, for files that are missing or damaged.
    """
    holders = [each for each in (root, root.parent) if (each / "cifar-10-batches-py").is_dir()]
    if not holders:
        return folder_source(root, split)
    from torchvision.datasets import CIFAR10

    try:
        source = CIFAR10(str(holders[0]), train=split != "test")
        found = ClassArrays(source.data, np.array(source.targets), tuple(source.classes))
    except Exception as error:  # this reader raises many types
        raise _not_whole(root, "cifar10", split, error) from None
    return _part(root, split, found)


def _not_whole(root: Path, kind: str, split: str, error: Exception) -> ValueError:
    """The one line for files that torchvision cannot read."""
    reason = textwrap.shorten(str(error), 160) or type(error).__name__
    return ValueError(f"{root} holds no whole {kind}, {split} split: {reason}")


def _part(root: Path, split: str, found: ClassArrays) -> ClassArrays:
    """The pictures of a split. The test pictures are those of the test file. A twentieth of the training
    file is val.

    Raises:
        ValueError: where pictures and classes do not match.
    """
    pictures, classes = found.pictures, found.classes
    wrong = classes.min(initial=0) < 0 or classes.max(initial=0) >= len(found.names)
    if wrong or len(pictures) != len(classes):
        raise ValueError(f"{root}: {len(pictures)} pictures and {len(classes)} labels do not match")
    if split == "test":
        return found
    validates = held_out_splits(list(map(str, range(len(pictures))))) == SPLITS["val"]
    kept = validates if split == "val" else ~validates
    return ClassArrays(pictures[kept], classes[kept], found.names)


# -------------------------------------------------------------------- kinds of datasets


DATASETS: dict[str, Kind] = {
    "celeba": Kind((IMAGE_FOLDER, f"celeba/{IMAGE_FOLDER}", ATTRIBUTE_FILE), celeba_source),
    "celebahq": Kind((HQ_ANNOTATION,), celeba_hq_source),
    "mnist": Kind(("MNIST/raw", "raw/train-images-idx3-ubyte"), read_mnist, flips=False),
    "cifar10": Kind(("cifar-10-batches-py", "data_batch_1"), read_cifar10),
    "folder": Kind(ANNOTATIONS, folder_source),  # and any folder of folders: see `recognise`
}


def recognise(root: Path) -> str:
    """Which kind of dataset a folder holds.

    Raises:
        FileNotFoundError: for a folder that holds none.
        ValueError: for a folder that holds several.
    """
    found = [
        name for name, kind in DATASETS.items() if any((root / sign).exists() for sign in kind.signs)
    ]
    if len(found) > 1:
        raise ValueError(f"{root} holds {' and '.join(found)}: give the folder of one of them")
    if found:
        return found[0]
    if any(path.is_dir() for path in root.iterdir()):
        return "folder"
    raise FileNotFoundError(
        f"{root} holds no CelebA, CelebA-HQ, MNIST or CIFAR-10, no class folders and no {ANNOTATIONS[0]}"
    )


def checked_root(root: str | os.PathLike) -> Path:
    """The folder as an absolute path. FileNotFoundError if it is not a folder."""
    root = Path(root).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(
            f"data root {root} is not a folder; give the one that holds the pictures"
        )
    return root


def find_kind(root: Path, kind: str | None) -> Kind:
    """The kind of that name, or what `recognise` says for None. ValueError for an unknown name."""
    name = kind or recognise(root)
    if name not in DATASETS:
        raise ValueError(f"dataset {name!r} is not one of {', '.join(DATASETS)}")
    return DATASETS[name]


# -------------------------------------------------------------------- reading them


def _read(root: str | os.PathLike, split: str, kind: str | None) -> tuple[Kind, Source | ClassArrays]:
    """The kind of a folder, and a split as that kind reads it."""
    check_split(split)
    root = checked_root(root)
    found = find_kind(root, kind)
    return found, found.read(root, split)


def open_dataset(
    root: str | os.PathLike,
    split: str = "train",
    image_size: int = 64,
    crop: int = 178,
    data_fraction: float = 1.0,
    cache_dir: str | os.PathLike = "data/cache",
    kind: str | None = None,
    num_workers: int | None = None,
) -> ImageDataset:
    """One split of a folder of labelled images.

    Args:
        kind: a name in DATASETS; None: what `recognise` says.
        root, split, image_size, crop, data_fraction, cache_dir, num_workers: see `CelebADataset`.

    Raises:
        FileNotFoundError, ValueError: one line, for a folder that cannot be read or a wrong argument.
    """
    check_geometry(image_size, crop)
    found, source = _read(root, split, kind)
    if isinstance(source, Source):
        return CachedDataset(source, image_size, crop, data_fraction, cache_dir, num_workers)
    return _in_memory(source, split, image_size, crop, data_fraction, found.flips)


def open_for(
    config: ModelConfig,
    root: str | os.PathLike,
    split: str,
    cache_dir: str | os.PathLike,
    kind: str | None = None,
) -> ImageDataset:
    """A split at the size and crop of a model. ValueError where its attributes are not the model's."""
    data = open_dataset(root, split, config.image_size, config.crop, cache_dir=cache_dir, kind=kind)
    check_names(data.attribute_names, config.attribute_names, root)
    return data


def attribute_rows(
    root: str | os.PathLike, split: str = "test", kind: str | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The attribute rows float32 (N, A) of a split, and the attributes' names. No picture is decoded."""
    _, source = _read(root, split, kind)
    if isinstance(source, Source):
        return np.asarray(source.attributes, np.float32), tuple(source.attribute_names)
    return np.asarray(one_hot(source.classes, len(source.names)), np.float32), source.names


def check_names(found: Sequence[str], expected: Sequence[str], root: str | os.PathLike) -> None:
    """Raise ValueError unless a folder's attributes are those that a model was trained on."""
    for theirs, ours in itertools.zip_longest(found, expected):
        if theirs != ours:
            raise ValueError(
                f"{root} has attribute {theirs} where the checkpoint has {ours}: give the data it was "
                "trained on, or data with the same attributes"
            )


def first_image(root: str | os.PathLike, split: str = "test", kind: str | None = None) -> Path | None:
    """The path of a split's first picture file. None for a dataset that is kept as arrays."""
    _, source = _read(root, split, kind)
    return Path(source.pictures[0].path) if isinstance(source, Source) else None


def _in_memory(
    source: ClassArrays, split: str, image_size: int, crop: int, data_fraction: float, flips: bool
) -> ImageDataset:
    """The pictures of a split as a dataset in memory."""
    rows = chosen_rows(len(source.pictures), data_fraction)
    images = np.empty((len(rows), image_size, image_size, 3), np.uint8)
    for image, picture in zip(images, source.pictures[rows], strict=True):
        image[...] = to_square(Image.fromarray(picture).convert("RGB"), image_size, crop)
    files = [f"{split}/{row}" for row in rows]
    attributes = one_hot(source.classes[rows], len(source.names))
    return ImageDataset(images, attributes, source.names, files, flips)
