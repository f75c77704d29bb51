"""Any dataset of labelled images: what a folder holds, and how it is read.

``DATASETS`` is the only list of the kinds. A new one takes an entry here, and its name
in `config.py`, where `--dataset` chooses it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from image_data.celeba import HQ_SIGNS, SIGNS, read_celeba, read_celeba_hq
from image_data.files import checked_root, is_hidden, refusing_damaged
from image_data.folders import read_folder
from image_data.labelled import TEST, TRAIN, LabelledImages, one_hot
from image_data.parquet import read_parquet
from image_data.tables import ANNOTATIONS, METADATA

MOST_WRAPPERS = 4  # folders in each other that are looked into, by eye


@dataclass(frozen=True)
class Kind:
    """How one kind of dataset is recognised and read.

    signs: files or folders, where * stands for anything. A folder that has any of them holds this kind.
    read: the folder, and ``unspecified`` of ``find_dataset`` -> all its labelled pictures.
        FileNotFoundError or ValueError, one line, for files that are missing or wrong.
    """

    signs: tuple[str, ...]
    read: Callable[[Path, int | None], LabelledImages]

    def is_in(self, root: Path) -> bool:
        """Whether a folder has one of the signs. One inside a folder of the same name does not count:
        Kaggle packs img_align_celeba/ like that."""
        return any(next(root.glob(sign), None) for sign in self.signs if sign != root.name)


# torchvision is imported where it is needed: that takes as long as importing torch.


def read_mnist(root: Path, _: int | None = None) -> LabelledImages:
    """MNIST's digits in torchvision's files. Without test files, training pictures test."""
    from torchvision.datasets import mnist

    raw = root / "MNIST" / "raw" if (root / "MNIST").is_dir() else root / "raw"
    parts = ["train", "t10k"] if [*raw.glob("t10k-*-ubyte")] else ["train"]
    with refusing_damaged(root, "MNIST"):
        pictures = [mnist.read_image_file(str(raw / f"{p}-images-idx3-ubyte")).numpy() for p in parts]
        classes = [mnist.read_label_file(str(raw / f"{p}-labels-idx1-ubyte")).numpy() for p in parts]
        data = _from_arrays(root, "MNIST", pictures, classes, tuple("0123456789"))
    return replace(data, flips=False)


def read_cifar10(root: Path, unspecified: int | None = None) -> LabelledImages:
    """CIFAR-10 in torchvision's files, or as class folders of picture files."""
    if not (root / "cifar-10-batches-py").is_dir():
        return read_folder(root, unspecified)
    from torchvision.datasets import CIFAR10

    with refusing_damaged(root, "CIFAR-10"):
        parts = [CIFAR10(str(root), train=train) for train in (True, False)]
        pictures, classes = [part.data for part in parts], [np.array(part.targets) for part in parts]
        return _from_arrays(root, "CIFAR-10", pictures, classes, tuple(parts[0].classes))


def _from_arrays(
    root: Path, form: str, pictures: list[np.ndarray], classes: list[np.ndarray], names: tuple[str, ...]
) -> LabelledImages:
    """The pictures and class numbers of the training file and, if there is one, of the test file."""
    numbers = [len(labels) for labels in classes]
    if [len(images) for images in pictures] != numbers:
        raise ValueError(f"{numbers} labels are not those of its pictures")
    given = np.repeat([TRAIN, TEST][: len(classes)], numbers)
    attributes = one_hot(np.concatenate(classes), len(names))
    images = np.concatenate(pictures)
    return LabelledImages(root, form, images, attributes, names, given, shuffled=False)


# -------------------------------------------------------------------- kinds of datasets


DATASETS: dict[str, Kind] = {
    "celeba": Kind(SIGNS, read_celeba),
    "celebahq": Kind(HQ_SIGNS, read_celeba_hq),
    "mnist": Kind(("MNIST/raw", "raw/train-images-idx3-ubyte"), read_mnist),
    "cifar10": Kind(("cifar-10-batches-py",), read_cifar10),
    "parquet": Kind(("*.parquet", "data/*.parquet", "*/train/*.parquet"), read_parquet),
    # and any folder of pictures: see `recognise`
    "folder": Kind((*ANNOTATIONS, *METADATA), read_folder),
}


def recognise(root: Path) -> tuple[Path, str]:
    """Which kind of dataset a folder holds, and in which folder its signs lie: in this one; in the one
    above, if this is only its part with the pictures; or in one that this wraps. ValueError for a
    folder that holds several."""
    for folder in candidates(root):
        kinds = [name for name, kind in DATASETS.items() if kind.is_in(folder)]
        if folder in root.parents:
            kinds = [name for name in kinds if root.name in DATASETS[name].signs]
        if len(kinds) > 1 and not any((folder / name).is_file() for name in ANNOTATIONS):
            kinds = [name for name in kinds if name != "folder"]  # a metadata file of another kind
        if len(kinds) > 1:
            raise ValueError(f"{folder} holds {' and '.join(kinds)}: give the folder of one of them")
        if kinds:
            return folder, kinds[0]
    return root, "folder"


def candidates(root: Path) -> Iterator[Path]:
    """The folders that a dataset's signs may lie in, where this one is given, the likeliest first."""
    signs = {sign for kind in DATASETS.values() for sign in kind.signs}
    yield root
    above, inner = root, [root]
    while above.name in signs:  # img_align_celeba/ itself, or even the one in it
        above = above.parent
        yield above
    for _ in range(MOST_WRAPPERS):
        inner = [path for path in inner[0].iterdir() if path.is_dir() and not is_hidden(path.name)]
        if len(inner) != 1:
            break
        yield inner[0]


def find_dataset(
    root: str | os.PathLike, kind: str | None = None, unspecified: int | None = None
) -> LabelledImages:
    """What a folder holds, of a kind in DATASETS; None: of the kind that `recognise` says.
    FileNotFoundError or ValueError, one line, for a folder that cannot be read.

    Args:
        unspecified: the number, 0 or -1, that stands for attributes that are not known. None: neither
            does, and data with 1, 0 and -1 is refused.
    """
    root = checked_root(root)
    if kind is None:
        root, kind = recognise(root)
    elif kind in DATASETS:
        root = next((folder for folder in candidates(root) if DATASETS[kind].is_in(folder)), root)
    else:
        raise ValueError(f"dataset {kind!r} is not one of {', '.join(DATASETS)}")
    return DATASETS[kind].read(root, unspecified)
