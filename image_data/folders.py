"""Folders of picture files and their attributes: class folders, CSV, JSONL, CelebA-HQ."""

from __future__ import annotations

import csv
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from celeba_dataset import CELEBA_ATTRIBUTES, check_signs, read_table
from config import check_attribute_names
from image_data.cached import SPLITS, Source

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ANNOTATIONS = ("attributes.csv", "attributes.jsonl")
HQ_ANNOTATION, HQ_IMAGES = "CelebAMask-HQ-attribute-anno.txt", "CelebA-HQ-img"
HQ_MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
CELEBA_SPLIT_STARTS = (162_770, 182_637)  # first validation and test picture, counted from 0
MOST_VALUES = 2**28  # in an annotation file: 1 GiB of memory
HELD_OUT = 0.1  # share of the pictures held out where no split is given, half for val, half for test


@dataclass(frozen=True)
class Picture:
    """A picture file, in the form that `Source` takes."""

    name: str
    path: str

    def stat(self) -> os.stat_result:
        return os.stat(self.path)


@dataclass(frozen=True)
class Labelled:
    """Picture files with attribute rows (N, A). Splits (N,) holds the number of each one's split."""

    pictures: list[Picture]
    attributes: np.ndarray
    names: tuple[str, ...]
    splits: np.ndarray

    def part(self, root: Path, split: str) -> Source:
        """The pictures of a split, in a fixed random order: folders come class by class, and the first
        few pictures should show all classes. ValueError for an empty split."""
        rows = np.random.default_rng(0).permutation(np.flatnonzero(self.splits == SPLITS[split]))
        if not len(rows):
            raise ValueError(
                f"{root} has no picture in the {split} split: give it one, or more pictures"
            )
        return Source(root, split, [self.pictures[i] for i in rows], self.attributes[rows], self.names)


def one_hot(classes: np.ndarray, number: int) -> np.ndarray:
    """Class numbers (N,) as attributes (N, number): +1 for the class, -1 for the others."""
    return 2 * np.eye(number, dtype=np.int8)[classes] - 1


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


def held_out_splits(names: Sequence[str]) -> np.ndarray:
    """The number of a split for each picture, from a hash of its name: a share HELD_OUT in val and test,
    the others in train. A picture keeps its split when others are added."""
    drawn = np.array([zlib.crc32(name.encode()) / 2**32 for name in names])
    splits = np.full(len(names), SPLITS["train"])
    splits[drawn < HELD_OUT], splits[drawn < HELD_OUT / 2] = SPLITS["test"], SPLITS["val"]
    return splits


def folder_source(root: Path, split: str) -> Source:
    """The picture files of a split, described by an annotation file or by class folders.

    Raises:
        FileNotFoundError, ValueError: one line, for a folder that has neither, or an empty split.
    """
    for name in ANNOTATIONS:
        if (root / name).is_file():
            return _annotated(root, root / name).part(root, split)
    return _class_folders(root).part(root, split)


def celeba_hq_source(root: Path, split: str) -> Source:
    """The picture files of a split of CelebAMask-HQ, with CelebA's 40 attributes.

    Each picture is in the split of the CelebA picture that it was made of, where the mapping file is
    there.

    Raises:
        FileNotFoundError, ValueError: one line, for files that are missing or wrong, or an empty split.
    """
    names, attributes = read_table(root / HQ_ANNOTATION, header=CELEBA_ATTRIBUTES)
    check_signs(root / HQ_ANNOTATION, attributes)
    pictures = [Picture(name, str(root / HQ_IMAGES / name)) for name in names]
    lacking = next((each.name for each in pictures if not Path(each.path).is_file()), None)
    if lacking:
        raise FileNotFoundError(f"{root / HQ_IMAGES} has no {lacking}, which {HQ_ANNOTATION} names")
    mapped = (root / HQ_MAPPING).is_file()
    splits = _celeba_splits(root / HQ_MAPPING, names) if mapped else held_out_splits(names)
    return Labelled(pictures, attributes, CELEBA_ATTRIBUTES, splits).part(root, split)


def _celeba_splits(path: Path, names: Sequence[str]) -> np.ndarray:
    """The number of the split in CelebA of each picture, from CelebAMask-HQ's mapping file: rows of the
    number here, the number in CelebA and the name in CelebA."""
    lines = [line.split() for line in path.read_text().splitlines()[1:]]
    numbered = [line for line in lines if len(line) >= 2 and line[1].isdecimal()]
    origin = {f"{line[0]}.jpg": int(line[1]) for line in numbered}
    lacking = [name for name in names if name not in origin]
    if lacking:
        raise ValueError(f"{path} has no whole row for {lacking[0]}")
    return np.digitize(np.array([origin[name] for name in names]), CELEBA_SPLIT_STARTS)


def _class_folders(root: Path) -> Labelled:
    """root/<class>/<picture>, or root/<split>/<class>/<picture>. With split folders there must be train.
    Where val or test is missing, it is taken from train."""
    given = {split: root / split for split in SPLITS if (root / split).is_dir()}
    if given and "train" not in given:
        raise FileNotFoundError(f"{root} has {', '.join(given)}, but no train folder")
    parts = given or {"": root}
    found = {split: _pictures_by_class(folder) for split, folder in parts.items()}
    names = sorted({name for by_class in found.values() for name in by_class})
    pictures, classes, splits = [], [], []
    for split, by_class in found.items():
        for name, paths in by_class.items():
            pictures += [Picture(str(path.relative_to(root)), str(path)) for path in paths]
            classes += [names.index(name)] * len(paths)
            splits += [SPLITS[split or "train"]] * len(paths)
    if len(names) < 2:
        raise FileNotFoundError(f"{root} has no two class folders with pictures ({', '.join(SUFFIXES)})")
    check_attribute_names(names)
    numbers = filled_splits([each.name for each in pictures], np.array(splits))
    return Labelled(pictures, one_hot(np.array(classes), len(names)), tuple(names), numbers)


def _pictures_by_class(folder: Path) -> dict[str, list[Path]]:
    """The picture files of each class folder that has any."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    found = {each.name: _pictures_in(each) for each in classes}
    return {name: paths for name, paths in found.items() if paths}


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _annotated(root: Path, path: Path) -> Labelled:
    """Pictures that an annotation file names: CSV with a header, or JSONL.

    A row has ``file``, a path within root; optionally ``split``; and one value for each attribute, which
    JSONL has under ``attributes``: 1 present, -1 or 0 absent, empty or null unspecified.
    """
    try:
        rows = list(_csv_rows(path) if path.suffix == ".csv" else _jsonl_rows(path))
    except (csv.Error, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not rows:
        raise ValueError(f"{path} names no picture")
    names = tuple(dict.fromkeys(name for _, _, values in rows for name in values))
    check_attribute_names(names)
    if len(rows) * len(names) > MOST_VALUES:
        raise ValueError(f"{path} has {len(rows)} rows of {len(names)} attributes: too many to read")
    column = {name: i for i, name in enumerate(names)}
    attributes = np.zeros((len(rows), len(names)), np.float32)
    pictures, splits, seen = [], [], set()
    for i, (number, (name, split), values) in enumerate(rows):
        picture = _inside(root, name, f"{path} line {number}")
        if picture.path in seen:
            raise ValueError(f"{path} line {number}: {name} is named twice")
        seen.add(picture.path)
        pictures.append(picture)
        splits.append(split)
        for attribute, value in values.items():
            attributes[i, column[attribute]] = _value(value, f"{path} line {number}: {attribute}")
    unknown = set(splits) - {*SPLITS, ""}
    if unknown:
        raise ValueError(f"{path} has split {unknown.pop()!r}; use {', '.join(SPLITS)}, or leave it out")
    said = np.array([SPLITS.get(split, -1) for split in splits])
    numbers = filled_splits([each.name for each in pictures], said)
    return Labelled(pictures, attributes, names, numbers)


def _csv_rows(path: Path) -> Iterable[tuple[int, tuple[str, str], dict[str, str]]]:
    """The line, (file, split) and {attribute: text} of each row of a CSV."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = [name.strip() for name in reader.fieldnames or ()]
        if columns.count("file") != 1 or len({*columns}) < len(columns):
            raise ValueError(f"{path} line 1 must name each column once, file among them: {columns}")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path} line {reader.line_num} has another number of columns than line 1"
                )
            row = {name.strip(): text.strip() for name, text in row.items()}
            where = row.pop("file"), row.pop("split", "")
            yield reader.line_num, where, row


def _jsonl_rows(path: Path) -> Iterable[tuple[int, tuple[str, str], dict]]:
    """The line, (file, split) and {attribute: value} of each row of a JSONL."""
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield number, (str(row["file"]), str(row.get("split") or "")), dict(row["attributes"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} line {number} is not {{file, attributes}}: {error}") from None


def _value(value, where: str) -> float:
    """An attribute's text or number as 1 or -1, or 0 if it is empty."""
    if value is None or value == "":
        return 0.0
    known = {"1": 1.0, "-1": -1.0, "0": -1.0, "true": 1.0, "false": -1.0}
    text = str(value).strip().lower().removesuffix(".0")
    if text not in known:
        raise ValueError(f"{where} is {value!r}; use 1, 0 or -1, or leave it empty")
    return known[text]


def _inside(root: Path, name: str, where: str) -> Picture:
    """A picture file within root. ValueError for one that ``..`` or a link leads outside."""
    try:
        path = (root / name).resolve()
    except (RuntimeError, ValueError) as error:  # links in a circle, a null character
        raise ValueError(f"{where}: {name!r} is no file name: {error}") from None
    if not path.is_relative_to(root):
        raise ValueError(f"{where}: {name} lies outside {root}")
    if not path.is_file():
        raise FileNotFoundError(f"{where}: there is no {name} in {root}")
    return Picture(name, str(path))
