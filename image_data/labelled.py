"""Labelled pictures before any is decoded: their attributes, their splits, and one line on them."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import fsencode
from pathlib import Path

import numpy as np

from image_data.cached import SPLITS, Source, are_classes, check_split
from image_data.files import told

HELD_OUT = 0.1  # share of the pictures held out where no split is given, half for val, half for test
MOST_NAMES = 8  # of classes or attributes that one line tells
SPLIT_NAME = re.compile(
    r"(?:(?:seg|images?)[\W_]+)?(?:(train(?:ing)?)|(val(?:id(?:ation)?)?|dev)|(test(?:ing)?))"
    r"(?:[\W_]*(?:set|data|split|images?))?"
)


def split_named(name: str) -> str | None:
    """The split that a name stands for, in any case: Training, valid, test_set. None for other names."""
    found = SPLIT_NAME.fullmatch(name.casefold())
    return tuple(SPLITS)[found.lastindex - 1] if found and found.lastindex else None


def one_hot(classes: np.ndarray, number: int) -> np.ndarray:
    """Class numbers (N,) as attributes (N, number): +1 for the class, -1 for the others."""
    return 2 * np.eye(number, dtype=np.int8)[classes] - 1


def held_out_splits(names: Sequence[str]) -> np.ndarray:
    """The number of a split for each picture, from a hash of its name: a share HELD_OUT in val and test,
    the others in train. A picture keeps its split when others are added."""
    drawn = np.array([zlib.crc32(fsencode(name)) / 2**32 for name in names])
    splits = np.full(len(names), SPLITS["train"])
    splits[drawn < HELD_OUT], splits[drawn < HELD_OUT / 2] = SPLITS["test"], SPLITS["val"]
    return splits


def filled_splits(names: Sequence[str], said: np.ndarray) -> np.ndarray:
    """The number of each picture's split.

    Args:
        names: of the pictures.
        said: the number of each picture's given split, or -1 for none given. Those go to train.

    Where no picture is given for val (or test), `held_out_splits` says which training pictures go there.
    At least one does, if there are two.
    """
    drawn, splits = held_out_splits(names), np.where(said < 0, SPLITS["train"], said)
    for split in ("val", "test"):
        if not (said == SPLITS[split]).any():
            rows = np.flatnonzero(splits == SPLITS["train"])
            taken = rows[drawn[rows] == SPLITS[split]]
            splits[taken if len(taken) else rows[: len(rows) > 1]] = SPLITS[split]
    return splits


@dataclass(frozen=True)
class Labelled:
    """All pictures of a folder with their labels.

    root: the folder; form: what it holds, in words.
    pictures: N picture files, as `Source` takes them, or an array (N, H, W) or (N, H, W, 3).
    attributes: (N, A), +1 present, -1 absent, 0 unspecified; names: A names.
    said: (N,), the number of the split that is given for each picture; -1: none is.
    passed_over: how many files or rows are not used, for each reason.
    shuffled: whether a split's pictures come in a fixed random order. Folders come class by class, and
    the first few pictures should show all classes.
    """

    root: Path
    form: str
    pictures: Sequence | np.ndarray
    attributes: np.ndarray
    names: tuple[str, ...]
    said: np.ndarray
    passed_over: Counter = field(default_factory=Counter)
    shuffled: bool = True

    @cached_property
    def splits(self) -> np.ndarray:
        """The number of each picture's split, (N,)."""
        names = [getattr(picture, "name", str(row)) for row, picture in enumerate(self.pictures)]
        return filled_splits(names, self.said)

    def part(self, split: str) -> Source:
        """The pictures of a split. ValueError for an unknown or an empty split."""
        check_split(split)
        rows = np.flatnonzero(self.splits == SPLITS[split])
        if not len(rows):
            raise ValueError(
                f"{self.root} has no picture in the {split} split: give it one, or more pictures"
            )
        if self.shuffled:
            rows = np.random.default_rng(0).permutation(rows)
        if isinstance(self.pictures, np.ndarray):
            pictures = self.pictures[rows]
        else:
            pictures = [self.pictures[int(row)] for row in rows]
        return Source(self.root, split, pictures, self.attributes[rows], self.names)

    def __str__(self) -> str:
        """One line: the kind, the pictures in each split, the classes, and what was passed over."""
        counts = [f"{(self.splits == number).sum():,} {split}" for split, number in SPLITS.items()]
        taken = [split for split in ("val", "test") if not (self.said == SPLITS[split]).any()]
        where = f" ({' and '.join(taken)} taken from train)" if taken else ""
        parts = [f"{self.root}: {self.form}", f"{', '.join(counts)} pictures{where}", self._labels()]
        parts += [f"passed over: {told(self.passed_over)}"] if self.passed_over else []
        return " ".join("; ".join(parts).splitlines())  # a folder's name may have line ends

    def _labels(self) -> str:
        """The classes or attributes, in words."""
        if len(self.names) == 1 and (self.attributes == 1).all():
            return f"nothing but {self.names[0]}, so it trains unconditionally"
        what = "classes" if are_classes(self.attributes) else "attributes"
        what = what if len(self.names) > 1 else "attribute"
        more = ", ..." if len(self.names) > MOST_NAMES else ""
        return f"{len(self.names):,} {what}: {', '.join(self.names[:MOST_NAMES])}{more}"
