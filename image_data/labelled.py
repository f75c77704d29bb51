"""Labelled pictures: their attributes, their splits, one line on them, and a split as a dataset."""

from __future__ import annotations

import hashlib
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
from PIL import Image

from attributes import columns_of
from config import SPLITS, ModelConfig
from image_data.cached import ImageDataset, are_classes, open_cache
from image_data.files import Picture, in_words
from image_data.picture import check_geometry, to_square

HELD_OUT = 0.1  # share of the pictures held out where no split is given, half for val, half for test
MOST_NAMES = 8  # classes or attributes in one line, by eye
SPLIT_NAME = re.compile(
    r"(?:(?:seg|images?)[\W_]+)?(?:(train(?:ing)?)|(val(?:id(?:ation)?)?|dev)|(test(?:ing)?))"
    r"(?:[\W_]*(?:set|data|split|images?))?"
)
NO_SPLIT = -1  # the number of a picture's split where none is given; else it counts in SPLITS
TRAIN, VAL, TEST = range(len(SPLITS))


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


def as_signs(values: np.ndarray, unspecified: int | None) -> np.ndarray:
    """Attributes as a file has them, 1, 0, -1 or nan, as +1 present, -1 absent, 0 unspecified, which nan
    is, too."""
    signs = np.where(values == 1, 1, -1)
    signs[np.isnan(values) | (values == unspecified)] = 0
    return signs.astype(np.float32)


def which_is_unspecified(values: np.ndarray) -> str:
    """How often attributes are 1, 0, -1 or something else, and the way out where they are all three."""
    counts = [f"{(values == number).sum():,} are {number}" for number in (1, 0, -1)]
    if (np.abs(values) > 1).any():
        return ", ".join([*counts, f"{(np.abs(values) > 1).sum():,} another number"])
    return f"{', '.join(counts)}; give --unspecified 0 or --unspecified -1, the one that is not known"


@dataclass(frozen=True)
class LabelledImages:
    """All pictures of a folder with their labels. As text it is the one line that says what it holds.

    root: the folder; form: what it holds, in words.
    pictures: N objects with the members of `Picture`, or an array (N, H, W) or (N, H, W, 3).
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
        """The number of each picture's split, (N,).

        Pictures without a given split go to train. Where no picture is given for val (or test), some are
        taken from train: half of HELD_OUT, chosen by a hash of the name, so that a picture keeps its
        split when others are added. At least one is taken, if there are two.
        """
        names = [getattr(picture, "name", str(row)) for row, picture in enumerate(self.pictures)]
        hashes = np.array([zlib.crc32(os.fsencode(name)) / 2**32 for name in names])
        splits = np.where(self.given_splits == NO_SPLIT, TRAIN, self.given_splits)
        for split, low in ((VAL, 0), (TEST, HELD_OUT / 2)):
            if (self.given_splits == split).any():
                continue
            rows = np.flatnonzero(splits == TRAIN)
            taken = rows[(hashes[rows] >= low) & (hashes[rows] < low + HELD_OUT / 2)]
            if not len(taken) and len(rows) > 1:
                taken = rows[:1]
            splits[taken] = split
        return splits

    def rows(self, split: str) -> np.ndarray:
        """The numbers of a split's pictures, in its order. ValueError for an unknown or empty split."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        rows = np.flatnonzero(self.splits == SPLITS.index(split))
        if not len(rows):
            raise ValueError(
                f"{self.root} has no picture in the {split} split: give it one, or more pictures"
            )
        return np.random.default_rng(0).permutation(rows) if self.shuffled else rows

    def open(
        self,
        split: str = "train",
        image_size: int = 64,
        crop: int = 178,
        data_fraction: float = 1.0,
        cache_dir: str | os.PathLike = "data/cache",
        num_workers: int | None = None,
    ) -> ImageDataset:
        """One split, as uint8 pictures. Picture files are decoded only once: see ``open_cache``.

        Args:
            split: train, val or test.
            image_size: pixels of the square result.
            crop: see `crop_box`.
            data_fraction: in (0, 1], a fixed random part, inside every larger one. Only its pictures are
                decoded and cached, so that a trial on 1 % costs 1 %.
            cache_dir: the folder of the cache.
            num_workers: decoding threads; None is one for each CPU core.

        Raises:
            ValueError: one line, for a wrong argument or too many unreadable pictures.
        """
        check_geometry(image_size, crop)
        if not 0.0 < data_fraction <= 1.0:
            raise ValueError(f"data_fraction is {data_fraction}; it must be above 0 and at most 1")
        rows = self.rows(split)
        order = np.random.default_rng(0).permutation(len(rows))
        chosen = np.sort(order[: max(1, round(data_fraction * len(rows)))])
        rows = rows[chosen]
        if isinstance(self.pictures, np.ndarray):
            images = np.empty((len(rows), image_size, image_size, 3), np.uint8)
            for image, row in zip(images, rows, strict=True):
                rgb = Image.fromarray(self.pictures[row]).convert("RGB")
                image[...] = to_square(rgb, image_size, crop)
            names = [f"{split}/{number}" for number in chosen]
        else:
            root_hash = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]
            slot = f"{split}_{100 * data_fraction:g}pct_{image_size}px_crop{crop}_{root_hash}"
            pictures = [self.pictures[int(row)] for row in rows]
            images, skipped = open_cache(pictures, slot, image_size, crop, cache_dir, num_workers)
            rows = rows[[picture.name not in skipped for picture in pictures]]
            names = [picture.name for picture in pictures if picture.name not in skipped]
        return ImageDataset(images, self.attributes[rows], self.names, names, self.flips)

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
        """The same pictures with only these of their attributes, in the folder's order. ValueError for
        one that they do not have."""
        columns = columns_of(self.names, names)
        names = tuple(self.names[column] for column in columns)
        return replace(self, attributes=self.attributes[:, columns], names=names)

    def attribute_rows(self, split: str) -> np.ndarray:
        """The attribute rows of a split, float32 (N, A). No picture is decoded."""
        return np.asarray(self.attributes[self.rows(split)], np.float32)

    def first_image(self, split: str) -> Path | None:
        """The path of a split's first picture. None for a dataset whose pictures are no files."""
        first = self.pictures[int(self.rows(split)[0])]
        return Path(first.path) if isinstance(first, Picture) else None

    def __str__(self) -> str:
        counts = [f"{(self.splits == number).sum():,} {split}" for number, split in enumerate(SPLITS)]
        taken = [SPLITS[split] for split in (VAL, TEST) if not (self.given_splits == split).any()]
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
