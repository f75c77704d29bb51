"""Picture files and what is said of them: class folders, CSV, JSONL, CelebA-HQ's table."""

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
from image_dataset import SPLITS, Source
from model_config import check_attribute_names

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ANNOTATIONS = ("attributes.csv", "attributes.jsonl")
HQ_ANNOTATION, HQ_IMAGES = "CelebAMask-HQ-attribute-anno.txt", "CelebA-HQ-img"
HQ_MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
CELEBA_SPLIT_STARTS = (162_770, 182_637)  # of CelebA's validation and test pictures, counted from 0
MOST_VALUES = 2**28  # of an annotation file: 1 GiB in memory
HELD_OUT = 0.1  # of the pictures where nothing says which: half validates, half tests


@dataclass(frozen=True)
class Picture:
    """A picture file, as `ensure_cache` takes it."""

    name: str
    path: str

    def stat(self) -> os.stat_result:
        return os.stat(self.path)


@dataclass(frozen=True)
class Labelled:
    """Picture files with attribute rows (N, A); split of each (N,), as SPLITS numbers them."""

    pictures: list[Picture]
    attributes: np.ndarray
    names: tuple[str, ...]
    splits: np.ndarray

    def part(self, root: Path, split: str) -> Source:
        """Those of a split, in a fixed random order, for folders come class by class and the first few
        shall be a sample of all. ValueError where there is none."""
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
    """A split for each picture: the one it is said to be in, or train where it is -1. What nothing is
    said to be in, val or test, is taken from train as `held_out_splits` says, one picture at least."""
    drawn, splits = held_out_splits(names), np.where(said < 0, SPLITS["train"], said)
    for split in ("val", "test"):
        if not (said == SPLITS[split]).any():
            rows = np.flatnonzero(splits == SPLITS["train"])
            taken = rows[drawn[rows] == SPLITS[split]]
            splits[taken if len(taken) else rows[: len(rows) > 1]] = SPLITS[split]
    return splits


def held_out_splits(names: Sequence[str]) -> np.ndarray:
    """A split for each picture by a hash of its name, so that it keeps it when others come: HELD_OUT
    apart, half of it to validate and half to test."""
    drawn = np.array([zlib.crc32(name.encode()) / 2**32 for name in names])
    splits = np.full(len(names), SPLITS["train"])
    splits[drawn < HELD_OUT], splits[drawn < HELD_OUT / 2] = SPLITS["test"], SPLITS["val"]
    return splits


def read_folder(kind: str, root: Path) -> Labelled:
    """CelebA-HQ, pictures with an annotation file, or class folders."""
    if kind == "celebahq":
        return _celebahq(root)
    for name in ANNOTATIONS:
        if (root / name).is_file():
            return _annotated(root, root / name)
    return _class_folders(root)


def _class_folders(root: Path) -> Labelled:
    """root/<class>/<picture>, or root/<split>/<class>/<picture> with train, and val or test or both;
    what is lacking of these is taken from train."""
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
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    found = {each.name: _pictures_in(each) for each in classes}
    return {name: paths for name, paths in found.items() if paths}


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _annotated(root: Path, path: Path) -> Labelled:
    """Pictures named by a file: `file` within root, optionally `split`, and one value per attribute:
    1 present, -1 or 0 absent, empty or null unspecified. CSV with a header, or JSONL with the values
    under `attributes`."""
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
    """(line, (file, split), {attribute: text}) of each row."""
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
    """As `_csv_rows`."""
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield number, (str(row["file"]), str(row.get("split") or "")), dict(row["attributes"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} line {number} is not {{file, attributes}}: {error}") from None


def _value(value, where: str) -> float:
    """1 or -1 of an attribute's text or number, 0 if it is empty."""
    if value is None or value == "":
        return 0.0
    known = {"1": 1.0, "-1": -1.0, "0": -1.0, "true": 1.0, "false": -1.0}
    text = str(value).strip().lower().removesuffix(".0")
    if text not in known:
        raise ValueError(f"{where} is {value!r}; use 1, 0 or -1, or leave it empty")
    return known[text]


def _inside(root: Path, name: str, where: str) -> Picture:
    """A picture within root, not outside by way of `..` or a link."""
    try:
        path = (root / name).resolve()
    except (RuntimeError, ValueError) as error:  # links in a circle, a null character
        raise ValueError(f"{where}: {name!r} is no file name: {error}") from None
    if not path.is_relative_to(root):
        raise ValueError(f"{where}: {name} lies outside {root}")
    if not path.is_file():
        raise FileNotFoundError(f"{where}: there is no {name} in {root}")
    return Picture(name, str(path))


def _celebahq(root: Path) -> Labelled:
    """CelebAMask-HQ's pictures and attributes; split as the CelebA pictures they were made of, where the
    mapping file is there."""
    names, attributes = read_table(root / HQ_ANNOTATION, header=CELEBA_ATTRIBUTES)
    check_signs(root / HQ_ANNOTATION, attributes)
    pictures = [Picture(name, str(root / HQ_IMAGES / name)) for name in names]
    lacking = next((each.name for each in pictures if not Path(each.path).is_file()), None)
    if lacking:
        raise FileNotFoundError(f"{root / HQ_IMAGES} has no {lacking}, which {HQ_ANNOTATION} names")
    splits: np.ndarray = held_out_splits(names)
    if (root / HQ_MAPPING).is_file():
        lines = [line.split() for line in (root / HQ_MAPPING).read_text().splitlines()[1:]]
        numbered = [line for line in lines if len(line) >= 2 and line[1].isdecimal()]
        origin = {f"{line[0]}.jpg": int(line[1]) for line in numbered}
        lacking = [name for name in names if name not in origin]
        if lacking:
            raise ValueError(f"{root / HQ_MAPPING} has no whole row for {lacking[0]}")
        origins = np.array([origin[name] for name in names])
        splits = np.digitize(origins, CELEBA_SPLIT_STARTS)
    return Labelled(pictures, attributes, CELEBA_ATTRIBUTES, splits)
