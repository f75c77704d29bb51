"""Any dataset of labelled images as an `ImageDataset`: what a folder holds, and how it is read.

``DATASETS`` is the only list of the kinds. An entry more is all that a new one takes.

Class labels become one-hot attributes, +1 for the class and -1 for the others. Pictures are made RGB,
cropped to a square (see `crop_box`) and resized.
"""

from __future__ import annotations

import itertools
import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from attributes import columns_of
from celeba_dataset import ATTRIBUTE_FILES, IMAGE_FOLDER, read_celeba
from config import ModelConfig
from image_data.cached import SPLITS, CachedDataset, ImageDataset, Source, chosen_rows
from image_data.files import Picture, checked_root, is_hidden
from image_data.folders import (
    ANNOTATIONS,
    HQ_ANNOTATION,
    HQ_IMAGES,
    HQ_MASKS,
    METADATA,
    read_celeba_hq,
    read_folder,
)
from image_data.labelled import Labelled, one_hot
from image_data.parquet import read_parquet
from image_data.picture import check_geometry, to_square

MOST_WRAPPERS = 4  # folders in each other that are looked into


@dataclass(frozen=True)
class Kind:
    """How one kind of dataset is recognised and read.

    signs: files or folders, where * stands for anything. A folder that has any of them holds this kind.
    read: the folder -> all its labelled pictures.
    flips: whether a mirror image is as good as the image.
    """

    signs: tuple[str, ...]
    read: Callable[[Path], Labelled]
    flips: bool = True

    def shows(self, root: Path) -> bool:
        """Whether a folder has one of the signs. One inside a folder of the same name, as Kaggle packs
        img_align_celeba/, is none."""
        return any(next(root.glob(sign), None) for sign in self.signs if sign != root.name)


# -------------------------------------------------------------------- arrays that torchvision reads

# torchvision is imported where it is needed: that takes as long as importing torch.


def read_mnist(root: Path) -> Labelled:
    """MNIST's digits in torchvision's files. Without test files, training pictures test.

    Raises:
        ValueError: one line, for files that are missing or damaged.
    """
    from torchvision.datasets import mnist

    raw = root / "MNIST" / "raw" if (root / "MNIST").is_dir() else root / "raw"
    parts = ["train", *(["t10k"] if [*raw.glob("t10k-*-ubyte")] else [])]
    try:
        pictures = [mnist.read_image_file(str(raw / f"{p}-images-idx3-ubyte")).numpy() for p in parts]
        classes = [mnist.read_label_file(str(raw / f"{p}-labels-idx1-ubyte")).numpy() for p in parts]
    except Exception as error:  # this reader raises many types, AssertionError among them
        raise _not_whole(root, "MNIST", error) from None
    return _from_arrays(root, "MNIST", pictures, classes, tuple("0123456789"))


def read_cifar10(root: Path) -> Labelled:
    """CIFAR-10 in torchvision's files, or as class folders of picture files.

    Raises:
        FileNotFoundError, ValueError: one line, for files that are missing or damaged.
    """
    if not (root / "cifar-10-batches-py").is_dir():
        return read_folder(root)
    from torchvision.datasets import CIFAR10

    try:
        parts = [CIFAR10(str(root), train=train) for train in (True, False)]
        classes = [np.array(part.targets) for part in parts]
        pictures, names = [part.data for part in parts], tuple(parts[0].classes)
    except Exception as error:  # this reader raises many types
        raise _not_whole(root, "CIFAR-10", error) from None
    return _from_arrays(root, "CIFAR-10", pictures, classes, names)


def _not_whole(root: Path, kind: str, error: Exception) -> ValueError:
    """The one line for files that torchvision cannot read."""
    reason = textwrap.shorten(str(error), 160) or type(error).__name__
    return ValueError(f"{root} holds no whole {kind}: {reason}")


def _from_arrays(
    root: Path, form: str, pictures: list[np.ndarray], classes: list[np.ndarray], names: tuple[str, ...]
) -> Labelled:
    """The pictures and class numbers of the training file and, if it is there, of the test file.

    Raises:
        ValueError: where pictures and classes do not match.
    """
    for images, labels in zip(pictures, classes, strict=True):
        wrong = labels.min(initial=0) < 0 or labels.max(initial=0) >= len(names)
        if wrong or len(images) != len(labels) or images.shape[1:] != pictures[0].shape[1:]:
            raise ValueError(f"{root}: {len(images)} pictures and {len(labels)} labels do not match")
    said = np.repeat([SPLITS["train"], SPLITS["test"]][: len(classes)], [len(each) for each in classes])
    attributes = one_hot(np.concatenate(classes), len(names))
    return Labelled(root, form, np.concatenate(pictures), attributes, names, said, shuffled=False)


# -------------------------------------------------------------------- kinds of datasets


DATASETS: dict[str, Kind] = {
    "celeba": Kind((IMAGE_FOLDER, f"celeba/{IMAGE_FOLDER}", *ATTRIBUTE_FILES), read_celeba),
    "celebahq": Kind((HQ_ANNOTATION, HQ_IMAGES, HQ_MASKS), read_celeba_hq),
    "mnist": Kind(("MNIST/raw", "raw/train-images-idx3-ubyte"), read_mnist, flips=False),
    "cifar10": Kind(("cifar-10-batches-py",), read_cifar10),
    "parquet": Kind(("*.parquet", "data/*.parquet", "*/train/*.parquet"), read_parquet),
    # and any folder of pictures: see `recognise`
    "folder": Kind((*ANNOTATIONS, *METADATA), read_folder),
}


def recognise(root: Path) -> tuple[Path, str]:
    """Which kind of dataset a folder holds, and in which folder its signs lie: in this one; in the one
    above, if this is only its part with the pictures; or in one that this wraps.

    Raises:
        ValueError: for a folder that holds several.
    """
    for folder in candidates(root):
        found = [name for name, kind in DATASETS.items() if kind.shows(folder)]
        if folder in root.parents:
            found = [name for name in found if root.name in DATASETS[name].signs]
        if len(found) > 1 and not any((folder / name).is_file() for name in ANNOTATIONS):
            found = [name for name in found if name != "folder"]  # a metadata file of another kind
        if len(found) > 1:
            raise ValueError(f"{folder} holds {' and '.join(found)}: give the folder of one of them")
        if found:
            return folder, found[0]
    return root, "folder"


def candidates(root: Path) -> Iterator[Path]:
    """The folders that a dataset's signs may lie in, where this one is given, the likeliest first."""
    signs = {sign for kind in DATASETS.values() for sign in kind.signs}
    above, inner = root, [root]
    yield root
    while above.name in signs:  # img_align_celeba/ itself, or even the one in it
        above = above.parent
        yield above
    for _ in range(MOST_WRAPPERS):
        inner = [path for path in inner[0].iterdir() if path.is_dir() and not is_hidden(path.name)]
        if len(inner) != 1:
            break
        yield inner[0]


# -------------------------------------------------------------------- reading them


@dataclass(frozen=True)
class Found:
    """A folder of labelled images that has been recognised and read, except for the pictures themselves.

    As text it is the one line that says what it holds.
    """

    kind: Kind
    labelled: Labelled

    def __str__(self) -> str:
        return str(self.labelled)

    def keeping(self, names: Sequence[str]) -> Found:
        """The same pictures with these of their attributes alone, in the folder's order.

        Raises:
            ValueError: for an attribute that they do not have.
        """
        columns = columns_of(self.labelled.names, names)
        kept = tuple(self.labelled.names[column] for column in columns)
        attributes = self.labelled.attributes[:, columns]
        return replace(self, labelled=replace(self.labelled, attributes=attributes, names=kept))

    def open(
        self,
        split: str = "train",
        image_size: int = 64,
        crop: int = 178,
        data_fraction: float = 1.0,
        cache_dir: str | os.PathLike = "data/cache",
        num_workers: int | None = None,
    ) -> ImageDataset:
        """One split. The arguments, and what is raised, are those of `CelebADataset`."""
        source = self.labelled.part(split)
        if isinstance(source.pictures, np.ndarray):
            return _in_memory(source, image_size, crop, data_fraction, self.kind.flips)
        return CachedDataset(source, image_size, crop, data_fraction, cache_dir, num_workers)

    def open_for(self, config: ModelConfig, split: str, cache_dir: str | os.PathLike) -> ImageDataset:
        """A split at the size and crop of a model, with those attributes that the model has. ValueError
        where it has others, or lacks some of the classes."""
        names = self.labelled.names
        if not config.one_hot:
            names = tuple(name for name in names if name in config.attribute_names)
        check_names(names or self.labelled.names, config.attribute_names, self.labelled.root)
        kept = self.keeping(names)
        return kept.open(split, config.image_size, config.crop, cache_dir=cache_dir)

    def attribute_rows(self, split: str) -> np.ndarray:
        """The attribute rows of a split, float32 (N, A). No picture is decoded."""
        return np.asarray(self.labelled.part(split).attributes, np.float32)

    def first_image(self, split: str) -> Path | None:
        """The path of a split's first picture. None for a dataset whose pictures are no files."""
        first = self.labelled.part(split).pictures[0]
        return Path(first.path) if isinstance(first, Picture) else None


def find_dataset(root: str | os.PathLike, kind: str | None = None) -> Found:
    """What a folder holds.

    Args:
        kind: a name in DATASETS; None: what `recognise` says.

    Raises:
        FileNotFoundError, ValueError: one line, for a folder that cannot be read.
    """
    root = checked_root(root, "the pictures")
    if kind is None:
        root, kind = recognise(root)
    elif kind in DATASETS:
        root = next((each for each in candidates(root) if DATASETS[kind].shows(each)), root)
    else:
        raise ValueError(f"dataset {kind!r} is not one of {', '.join(DATASETS)}")
    return Found(DATASETS[kind], DATASETS[kind].read(root))


def check_names(found: Sequence[str], expected: Sequence[str], root: str | os.PathLike) -> None:
    """Raise ValueError unless a folder's attributes are those that a model was trained on."""
    for theirs, ours in itertools.zip_longest(found, expected):
        if theirs != ours:
            raise ValueError(
                f"{root} has attribute {theirs} where the checkpoint has {ours}: give the data it was "
                "trained on, or data with the same attributes"
            )


def _in_memory(
    source: Source, image_size: int, crop: int, data_fraction: float, flips: bool
) -> ImageDataset:
    """The pictures of a split, which are arrays, as a dataset in memory."""
    check_geometry(image_size, crop)
    rows = chosen_rows(len(source.pictures), data_fraction)
    images = np.empty((len(rows), image_size, image_size, 3), np.uint8)
    for image, row in zip(images, rows, strict=True):
        image[...] = to_square(Image.fromarray(source.pictures[row]).convert("RGB"), image_size, crop)
    files = [f"{source.split}/{row}" for row in rows]
    return ImageDataset(images, source.attributes[rows], source.attribute_names, files, flips)
