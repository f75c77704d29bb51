"""Any labelled images in the item contract of `ImageDataset`: what a folder holds, and how it is read.

Class labels become one-hot attributes, +1 for the class and -1 for the others. Pictures are made RGB,
cropped to a centre square of their short side (or less, see `crop_box`) and resized.
"""

from __future__ import annotations

import itertools
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from celeba_dataset import IMAGE_FOLDER, CelebADataset, celeba_source
from image_cache import check_geometry, to_square
from image_dataset import SPLITS, CachedDataset, ImageDataset, Source, check_split, chosen_rows
from model_config import ModelConfig
from picture_folders import ANNOTATIONS, HQ_ANNOTATION, held_out_splits, one_hot, read_folder


def checked_root(root: str | os.PathLike) -> Path:
    """The folder as an absolute path; FileNotFoundError where it is none."""
    root = Path(root).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(
            f"data root {root} is not a folder; give the one that holds the pictures"
        )
    return root


def recognise(root: Path) -> str:
    """Which kind of dataset a folder holds.

    Raises:
        FileNotFoundError: for a folder that holds none.
        ValueError: for one that holds several.
    """
    signs = {
        "celeba": (IMAGE_FOLDER, f"celeba/{IMAGE_FOLDER}", "list_attr_celeba.txt"),
        "celebahq": (HQ_ANNOTATION,),
        "mnist": ("MNIST/raw", "raw/train-images-idx3-ubyte"),
        "cifar10": ("cifar-10-batches-py", "data_batch_1"),
        "folder": ANNOTATIONS,
    }
    found = [kind for kind, names in signs.items() if any((root / name).exists() for name in names)]
    if len(found) > 1:
        raise ValueError(f"{root} holds {' and '.join(found)}: give the folder of one of them")
    if found:
        return found[0]
    if any(path.is_dir() for path in root.iterdir()):
        return "folder"
    raise FileNotFoundError(
        f"{root} holds no CelebA, CelebA-HQ, MNIST or CIFAR-10, no class folders and no {ANNOTATIONS[0]}"
    )


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
    """One split of whatever labelled images a folder holds.

    Args: kind, celeba, celebahq, folder, mnist or cifar10 (default: what `recognise` says); the others
    as of `CelebADataset`.
    Raises: FileNotFoundError or ValueError, one line, for what cannot be read.
    """
    check_split(split)
    check_geometry(image_size, crop)
    root = checked_root(root)
    kind = kind or recognise(root)
    if kind == "celeba":
        return CelebADataset(root, split, image_size, crop, data_fraction, cache_dir, num_workers)
    if _has_arrays(kind, root):
        return _in_memory(kind, root, split, image_size, crop, data_fraction)
    source = _source(kind, root, split)
    return CachedDataset(source, image_size, crop, data_fraction, cache_dir, num_workers)


def open_for(
    config: ModelConfig, root: str | os.PathLike, split: str, cache_dir: str | os.PathLike
) -> ImageDataset:
    """A split as a model of this configuration sees it; ValueError where its attributes are others."""
    data = open_dataset(root, split, config.image_size, config.crop, cache_dir=cache_dir)
    check_names(data.attribute_names, config.attribute_names, root)
    return data


def attribute_rows(root: str | os.PathLike, split: str = "test") -> tuple[np.ndarray, tuple[str, ...]]:
    """The attribute rows float32 (N, A) of a split and the attributes' names; no picture is decoded."""
    root = checked_root(root)
    kind = recognise(root)
    if _has_arrays(kind, root):
        _, classes, names = _arrays(kind, root, split)
        rows = one_hot(classes, len(names))
    else:
        source = _source(kind, root, split)
        rows, names = source.attributes, source.attribute_names
    return np.asarray(rows, np.float32), tuple(names)


def check_names(found: Sequence[str], expected: Sequence[str], root: str | os.PathLike) -> None:
    """ValueError unless a folder's attributes are those a model was trained on."""
    for theirs, ours in itertools.zip_longest(found, expected):
        if theirs != ours:
            raise ValueError(
                f"{root} has attribute {theirs} where the checkpoint has {ours}: give the data it was "
                "trained on, or such as has the same attributes"
            )


def first_image(root: str | os.PathLike, split: str = "test") -> Path | None:
    """The path of a split's first picture file; None for a dataset that is not kept in such."""
    root = checked_root(root)
    kind = recognise(root)
    if _has_arrays(kind, root):
        return None
    return Path(_source(kind, root, split).pictures[0].path)


def _source(kind: str, root: Path, split: str) -> Source:
    """The picture files of a split, for the kinds that have such."""
    if kind == "celeba":
        return celeba_source(root, split)
    return read_folder(kind, root).part(root, split)


# -------------------------------------------------------------------- arrays that torchvision reads


def _has_arrays(kind: str, root: Path) -> bool:
    return kind == "mnist" or (kind == "cifar10" and _cifar_root(root) is not None)


def _cifar_root(root: Path) -> Path | None:
    """The folder that holds cifar-10-batches-py, of this folder or of itself."""
    return next((each for each in (root, root.parent) if (each / "cifar-10-batches-py").is_dir()), None)


def _arrays(kind: str, root: Path, split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Pictures (N, H, W) or (N, H, W, 3), class numbers (N,) and class names of MNIST or CIFAR-10 in
    torchvision's files. The test split is theirs; a twentieth of their training pictures validates."""
    from torchvision.datasets import CIFAR10, mnist

    try:
        if kind == "mnist":
            part = "t10k" if split == "test" else "train"
            raw = root / "MNIST" / "raw" if (root / "MNIST").is_dir() else root / "raw"
            pictures = mnist.read_image_file(str(raw / f"{part}-images-idx3-ubyte")).numpy()
            classes = mnist.read_label_file(str(raw / f"{part}-labels-idx1-ubyte")).numpy()
            names = tuple("0123456789")
        else:
            source = CIFAR10(str(_cifar_root(root)), train=split != "test")
            pictures, classes, names = source.data, np.array(source.targets), tuple(source.classes)
    except Exception as error:  # these readers raise anything, AssertionError among it
        reason = textwrap.shorten(str(error), 160) or type(error).__name__
        raise ValueError(f"{root} holds no whole {kind}, {split} split: {reason}") from None
    if (
        len(pictures) != len(classes)
        or classes.min(initial=0) < 0
        or classes.max(initial=0) >= len(names)
    ):
        raise ValueError(f"{root}: {len(pictures)} pictures and {len(classes)} labels do not match")
    if split != "test":
        validates = held_out_splits(list(map(str, range(len(pictures))))) == SPLITS["val"]
        kept = validates if split == "val" else ~validates
        pictures, classes = pictures[kept], classes[kept]
    return pictures, classes, names


def _in_memory(
    kind: str, root: Path, split: str, image_size: int, crop: int, data_fraction: float
) -> ImageDataset:
    """MNIST or CIFAR-10, kept in memory. Digits are not mirrored."""
    pictures, classes, names = _arrays(kind, root, split)
    rows = chosen_rows(len(pictures), data_fraction)
    images = np.empty((len(rows), image_size, image_size, 3), np.uint8)
    for image, picture in zip(images, pictures[rows], strict=True):
        image[...] = to_square(Image.fromarray(picture).convert("RGB"), image_size, crop)
    files = [f"{split}/{row}" for row in rows]
    attributes = one_hot(classes[rows], len(names))
    return ImageDataset(images, attributes, names, files, flips=kind != "mnist")
