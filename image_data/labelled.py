"""Labelled pictures before any is decoded: their attributes, their splits, and one line on them."""

from __future__ import annotations

import itertools
import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from attributes import columns_of
from config import SPLITS, ModelConfig
from image_data.cached import CachedDataset, ImageDataset, Source, are_classes, array_dataset
from image_data.files import Picture, in_words

HELD_OUT = 0.1  # share of the pictures held out where no split is given, half for val, half for test
MOST_NAMES = 8  # classes or attributes in one line, by eye
SPLIT_NAME = re.compile(
    r"(?:(?:seg|images?)[\W_]+)?(?:(train(?:ing)?)|(val(?:id(?:ation)?)?|dev)|(test(?:ing)?))"
    r"(?:[\W_]*(?:set|data|split|images?))?"
)
NO_SPLIT = -1  # the number of a picture's split where none is given; else it counts in SPLITS


def split_named(name: str) -> str | None:
    """The split that a name stands for, in any case: Training, valid, test_set. None for other names."""
    match = SPLIT_NAME.fullmatch(name.casefold())
    return SPLITS[match.lastindex - 1] if match and match.lastindex else None


def split_number(split: str | None) -> int:
    """The number of a split of SPLITS; NO_SPLIT for nothing."""
    return SPLITS.index(split) if split else NO_SPLIT


def one_hot(classes: np.ndarray, number: int) -> np.ndarray:
    """Class numbers (N,) as attributes (N, number): +1 for the class, -1 for the others."""
    return 2 * np.eye(number, dtype=np.int8)[classes] - 1


def complete_splits(names: Sequence[str], given: np.ndarray) -> np.ndarray:
    """The number of each picture's split.

    Pictures without a given split go to train. Where no picture is given for val (or test), some are
    taken from train: half of HELD_OUT, chosen by a hash of the name, so that a picture keeps its split
    when others are added. At least one is taken, if there are two.

    Args:
        names: of the pictures.
        given: the number of each picture's split, or NO_SPLIT.
    """
    hashes = np.array([zlib.crc32(os.fsencode(name)) / 2**32 for name in names])
    ranges = {"val": (0, HELD_OUT / 2), "test": (HELD_OUT / 2, HELD_OUT)}
    splits = np.where(given == NO_SPLIT, SPLITS.index("train"), given)
    for split, (low, high) in ranges.items():
        number = SPLITS.index(split)
        if (given == number).any():
            continue
        rows = np.flatnonzero(splits == SPLITS.index("train"))
        taken = rows[(hashes[rows] >= low) & (hashes[rows] < high)]
        if not len(taken) and len(rows) > 1:
            taken = rows[:1]
        splits[taken] = number
    return splits


@dataclass(frozen=True)
class LabelledImages:
    """All pictures of a folder with their labels. As text it is the one line that says what it holds.

    root: the folder; form: what it holds, in words.
    pictures: N picture files, as `Source` takes them, or an array (N, H, W) or (N, H, W, 3).
    attributes: (N, A), +1 present, -1 absent, 0 unspecified; names: A names.
    given_splits: (N,), the number of the split that is given for each picture, or NO_SPLIT.
    passed_over: how many files or rows are not used, for each reason.
    shuffled: whether a split's pictures come in a fixed random order. Folders come class by class, and
        the first few pictures should show all classes.
    flips: whether a mirror image is as good as the image.
    """

    root: Path
    form: str
    pictures: Sequence | np.ndarray
    attributes: np.ndarray
    names: tuple[str, ...]
    given_splits: np.ndarray
    passed_over: Counter = field(default_factory=Counter)
    shuffled: bool = True
    flips: bool = True

    @cached_property
    def splits(self) -> np.ndarray:
        """The number of each picture's split, (N,)."""
        names = [getattr(picture, "name", str(row)) for row, picture in enumerate(self.pictures)]
        return complete_splits(names, self.given_splits)

    def part(self, split: str) -> Source:
        """The pictures of a split. ValueError for an unknown or an empty split."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        rows = np.flatnonzero(self.splits == SPLITS.index(split))
        if not len(rows):
            raise ValueError(
                f"{self.root} has no picture in the {split} split: give it one, or more pictures"
            )
        if self.shuffled:
            rows = np.random.default_rng(0).permutation(rows)
        if isinstance(self.pictures, np.ndarray):
            pictures: Sequence | np.ndarray = self.pictures[rows]
        else:
            pictures = [self.pictures[int(row)] for row in rows]
        return Source(self.root, split, pictures, self.attributes[rows], self.names, self.flips)

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
        source = self.part(split)
        if isinstance(source.pictures, np.ndarray):
            return array_dataset(source, image_size, crop, data_fraction)
        return CachedDataset(source, image_size, crop, data_fraction, cache_dir, num_workers)

    def open_for(self, config: ModelConfig, split: str, cache_dir: str | os.PathLike) -> ImageDataset:
        """A split at the size and crop of a model, with those attributes that the model has. ValueError
        where it has others, or lacks some of the classes."""
        names = self.names
        if not config.one_hot:
            names = tuple(name for name in names if name in config.attribute_names)
        for name, expected in itertools.zip_longest(names or self.names, config.attribute_names):
            if name != expected:
                raise ValueError(
                    f"{self.root} has attribute {name} where the checkpoint has {expected}: give the "
                    "data it was trained on, or data with the same attributes"
                )
        size, crop = config.image_size, config.crop
        return self.keeping(names).open(split, size, crop, cache_dir=cache_dir)

    def keeping(self, names: Sequence[str]) -> LabelledImages:
        """The same pictures with only these of their attributes, in the folder's order.

        Raises:
            ValueError: for an attribute that they do not have.
        """
        columns = columns_of(self.names, names)
        names = tuple(self.names[column] for column in columns)
        return replace(self, attributes=self.attributes[:, columns], names=names)

    def attribute_rows(self, split: str) -> np.ndarray:
        """The attribute rows of a split, float32 (N, A). No picture is decoded."""
        return np.asarray(self.part(split).attributes, np.float32)

    def first_image(self, split: str) -> Path | None:
        """The path of a split's first picture. None for a dataset whose pictures are no files."""
        first = self.part(split).pictures[0]
        return Path(first.path) if isinstance(first, Picture) else None

    def __str__(self) -> str:
        counts = [f"{(self.splits == number).sum():,} {split}" for number, split in enumerate(SPLITS)]
        taken = [
            split for split in ("val", "test") if not (self.given_splits == SPLITS.index(split)).any()
        ]
        source = f" ({' and '.join(taken)} taken from train)" if taken else ""
        parts = [f"{self.root}: {self.form}", f"{', '.join(counts)} pictures{source}", self._labels()]
        if self.passed_over:
            parts.append(f"passed over: {in_words(self.passed_over)}")
        return " ".join("; ".join(parts).splitlines())  # a folder's name may have line ends

    def _labels(self) -> str:
        """The classes or attributes, in words."""
        if len(self.names) == 1 and (self.attributes == 1).all():
            return f"nothing but {self.names[0]}, so it trains unconditionally"
        kind = "classes" if are_classes(self.attributes) else "attributes"
        kind = kind if len(self.names) > 1 else "attribute"
        more = ", ..." if len(self.names) > MOST_NAMES else ""
        return f"{len(self.names):,} {kind}: {', '.join(self.names[:MOST_NAMES])}{more}"
