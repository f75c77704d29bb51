"""Folders of picture files and what is said of them: class folders, label files, CelebA-HQ."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attributes import CELEBA_ATTRIBUTES
from celeba_dataset import match_rows, read_attributes, require
from config import check_attribute_names, composed
from image_data.cached import SPLITS
from image_data.files import Listing, Picture, csv_rows, list_pictures, no_picture, read_text
from image_data.labelled import Labelled, one_hot, split_named

ANNOTATIONS = ("attributes.csv", "attributes.jsonl")  # our own label files
METADATA = ("metadata.csv", "metadata.jsonl")  # Hugging Face's, if they name pictures in `file_name`
PICTURE_COLUMNS = ("file", "file_name", "filename", "image_id")
CLASS_COLUMNS = ("label", "class")
PRESENT = {"1": 1, "-1": -1, "0": -1, "true": 1, "false": -1, "": 0}
UNLABELLED = "picture"  # what all pictures are called where nothing is said of them
HQ_ANNOTATION, HQ_IMAGES = "CelebAMask-HQ-attribute-anno.txt", "CelebA-HQ-img"
HQ_MASKS, HQ_MAPPING = "CelebAMask-HQ-mask-anno", "CelebA-HQ-to-CelebA-mapping.txt"
CELEBA_SPLIT_STARTS = (162_770, 182_637)  # first validation and test picture, counted from 0
MOST_VALUES = 2**28  # attributes of all pictures: 1 GiB of memory
IMAGES = re.compile(r"(.*[\W_])?(images?|imgs?|photos?|pictures|jpegimages)")
MASKS = re.compile(r"(.*[\W_])?(masks|annotations|labels|trimaps|segmentations?|segmentationclass)")


def read_folder(root: Path) -> Labelled:
    """The picture files below a folder, described by label files or by class folders.

    Raises:
        FileNotFoundError, ValueError: one line, for a folder without pictures, or one that is unclear.
    """
    listing, tables = list_pictures(root), find_tables(root)
    if tables:
        return read_tables(root, tables, listing)
    if not listing.pictures:
        raise no_picture(root, listing)
    return class_folders(root, listing)


# -------------------------------------------------------------------- class folders


def class_folders(root: Path, listing: Listing) -> Labelled:
    """Pictures in root/<class>/, root/<split>/<class>/ or root/<class>/<split>/. Without two classes,
    all pictures are alike.

    Raises:
        FileNotFoundError, ValueError: one line, for folders that may mean several things.
    """
    skipped = listing.others.copy()
    folders = [picture.name.split(os.sep)[:-1] for picture in listing.pictures]
    splits, folders = take_splits(root, folders)
    classes = [composed(folder[0]) if folder else None for folder in folders]
    trained = {name for name, split in zip(classes, splits, strict=True) if split in ("", "train")}
    names = sorted(name for name in trained if name is not None)
    check_no_masks(root, names)
    alike = not names or (len(names) == 1 and None in trained)
    rows = []
    for row, (name, split) in enumerate(zip(classes, splits, strict=True)):
        if split is None:
            place = f"in {folders[row][0]}/, which is no split" if name else "outside the split folders"
            skipped[place] += 1
        elif alike or name in names:
            rows.append(row)
        elif name is None:
            skipped["outside the class folders"] += 1
        else:
            skipped[f"of class {name}, which has no picture in train"] += 1
    names = [UNLABELLED] if alike else names
    check_classes(root, names, len(rows))
    number_of = {name: number for number, name in enumerate(names)}
    numbers = np.array([number_of.get(str(classes[row]), 0) for row in rows])
    form = "pictures without labels" if alike else "class folders"
    pictures = [listing.pictures[row] for row in rows]
    said = np.array([SPLITS.get(str(splits[row]), -1) for row in rows])
    attributes = one_hot(numbers, len(names))
    return Labelled(root, form, pictures, attributes, tuple(names), said, skipped)


def take_splits(root: Path, folders: list[list[str]]) -> tuple[list[str | None], list[list[str]]]:
    """The split of each picture, "" where none is given and None outside of the split folders; and the
    folders of each picture without those that say the split or wrap all others.

    Args:
        folders: those that hold each picture, from the root on.
    """
    folders = unwrapped(folders)
    tops = {folder[0] for folder in folders if folder}
    given = {top: split for top in tops if (split := split_named(top))}
    nested = any(len(folder) > 1 and folder[0] in given for folder in folders)
    if given and (nested or len(given) == len(tops)):
        check_splits(root, given, tops)
        inner = {top: [folder[1:] for folder in folders if folder[:1] == [top]] for top in given}
        rest = {top: iter(unwrapped(found)) for top, found in inner.items()}
        splits = [given.get(folder[0]) if folder else None for folder in folders]
        return splits, [next(rest[f[0]]) if f and f[0] in given else f for f in folders]
    seconds = [split_named(folder[1]) if len(folder) > 1 else None for folder in folders]
    trained = {f[0] for f, split in zip(folders, seconds, strict=True) if split == "train"}
    if trained and trained == tops:  # each class has a train folder of its own
        rest_of = [[*folder[:1], *folder[2:]] for folder in folders]
        return seconds, [f if split else [] for f, split in zip(rest_of, seconds, strict=True)]
    return [""] * len(folders), folders


def check_splits(root: Path, given: dict[str, str], tops: set[str]) -> None:
    """Raise FileNotFoundError or ValueError for split folders that may mean something else.

    Args:
        given: the split that a folder stands for; tops: all folders beside them, too.
    """
    if "train" not in given.values():
        raise FileNotFoundError(f"{root} has {', '.join(sorted(given))}, but no train folder")
    if len(given) == 1 < len(tops):
        others = ", ".join(sorted(tops - given.keys())[:3])
        raise ValueError(
            f"{root} has {next(iter(given))} beside {others}: rename it if it is a class, or move the "
            "others away if it is the training split"
        )


def unwrapped(folders: list[list[str]]) -> list[list[str]]:
    """Folders of pictures without the outer ones that wrap all others: ``data/{cat,dog}`` is
    ``{cat,dog}``."""
    depth = 0
    while all(len(folder) > depth + 1 and folder[depth] == folders[0][depth] for folder in folders):
        depth += 1
    return [folder[depth:] for folder in folders]


def check_no_masks(root: Path, names: Sequence[str]) -> None:
    """Raise ValueError where folders are called photographs and masks, and no classes."""
    masks = [name for name in names if MASKS.fullmatch(name.casefold())]
    for mask in masks:
        stem = re.split(r"[\W_]", mask.casefold())[0]
        photos = [name for name in names if name != mask and name.casefold() in (stem, stem + "s")]
        photos += [name for name in names if IMAGES.fullmatch(name.casefold())]
        if photos:
            raise ValueError(
                f"{root} has {photos[0]}/ and {mask}/, photographs and what is drawn on them, and no "
                f"classes: give the folder {photos[0]}"
            )


def check_classes(root: Path, names: Sequence[str], number: int) -> None:
    """Raise ValueError unless these folders can name classes of so many pictures."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{root} has a class {name!a}, whose name is not UTF-8: rename it"
            ) from None
    try:
        check_attribute_names(names)
    except ValueError as error:
        raise ValueError(f"{root} has a class that cannot be one: {error}: rename it") from None
    if number * len(names) > MOST_VALUES:
        raise ValueError(f"{root} has {number:,} pictures of {len(names):,} classes: too many to read")


# -------------------------------------------------------------------- label files


@dataclass(frozen=True)
class Row:
    """What a label file says of one picture: where it says so, the picture's name, its split as it is
    written, and each attribute's value as it is written."""

    where: str
    name: str
    split: str
    values: dict[str, Any] = field(default_factory=dict)


def find_tables(root: Path) -> list[tuple[Path, str]]:
    """The label files of a folder, with the split that each is of: its own one (""), or those of its
    split folders."""
    found = [root / name for name in (*ANNOTATIONS, *METADATA) if is_table(root / name)]
    if found:
        return [(found[0], "")]
    inner = sorted(path for path in root.iterdir() if split_named(path.name))
    tables = [(each / name, each.name) for each in inner for name in (*ANNOTATIONS, *METADATA)]
    return [(path, split) for path, split in tables if is_table(path)]


def is_table(path: Path) -> bool:
    """Whether this is a label file. Many datasets have a metadata file of another kind."""
    if not path.is_file():
        return False
    return path.name in ANNOTATIONS or "file_name" in read_text(path).lstrip().partition("\n")[0]


def read_tables(root: Path, tables: list[tuple[Path, str]], listing: Listing) -> Labelled:
    """Pictures that label files name: CSV with a header, or JSONL.

    A row names a picture, by its path from the label file's folder; optionally ``split``; and a value
    for each attribute, which JSONL may have under ``attributes``: 1 present, -1 or 0 absent, empty or
    null unspecified. A column ``label`` or ``class`` may name classes instead.
    """
    skipped, rows, pictures = listing.others.copy(), [], []
    for path, _ in tables:
        skipped[path.suffix] -= 1
    by_name = {composed(picture.name): picture for picture in listing.pictures}
    lacking: list[Row] = []
    seen: set[str] = set()
    for path, split in tables:
        read = csv_table if path.suffix == ".csv" else jsonl_table
        for row in read(path):
            picture = find_picture(root, path.parent, row, by_name)
            if picture is None:
                lacking.append(row)
                continue
            if picture.path in seen:
                raise ValueError(f"{row.where}: {row.name} is named twice")
            seen.add(picture.path)
            pictures.append(picture)
            rows.append(Row(row.where, row.name, row.split or split, row.values))
    spare = [each for each in listing.pictures if not {each.path, os.path.realpath(each.path)} & seen]
    path = tables[0][0]
    if not pictures and not lacking:
        raise ValueError(f"{path} names no picture")
    if lacking and (spare or not pictures):
        also = f", and {spare[0].name} has no row" if spare else ""
        raise FileNotFoundError(f"{lacking[0].where}: there is no {lacking[0].name} in {root}{also}")
    skipped["rows without a picture"] += len(lacking)
    skipped["pictures without a row"] += len(spare)
    attributes, names = read_values(path, rows, path.stem == "metadata", skipped)
    said = np.array([split_number(row) for row in rows])
    form = " and ".join(dict.fromkeys(path.name for path, _ in tables))
    return Labelled(root, form, pictures, attributes, names, said, +skipped)


def read_values(
    path: Path, rows: list[Row], lenient: bool, skipped: Counter
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Attribute rows float32 (N, A) and the names of what rows say.

    Args:
        lenient: pass over columns of other values, and count them in ``skipped``.

    Raises:
        ValueError: one line, for a value that is no attribute's.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    if len(rows) * len(names) > MOST_VALUES:
        raise ValueError(f"{path} has {len(rows)} rows of {len(names)} attributes: too many to read")
    column = {name: i for i, name in enumerate(names)}
    attributes = np.zeros((len(rows), len(names)), np.float32)
    others: dict[str, Row] = {}  # the first row where a column has another value
    for i, row in enumerate(rows):
        for name, value in row.values.items():
            sign = presence(value)
            if sign is None:
                others.setdefault(name, row)
            else:
                attributes[i, column[name]] = sign
    parts = [attributes[:, [column[name] for name in names if name not in others]]]
    kept = [name for name in names if name not in others]
    for name, row in others.items():
        values = [row.values.get(name) for row in rows]
        if name.casefold() in CLASS_COLUMNS and all(isinstance(v, str | int | None) for v in values):
            texts = ["" if value is None else str(value).strip() for value in values]
            classes = sorted({*texts} - {""})
            check_classes(path, classes, len(rows))
            numbers = {text: number for number, text in enumerate(classes)}
            found = np.array([numbers.get(text, -1) for text in texts])
            parts.append(np.where(found[:, None] < 0, 0, one_hot(found, len(classes))))
            kept += classes
        elif lenient:
            skipped[f"column {name}, which is neither 1 and 0 nor a label"] += 1
        else:
            wrong = row.values[name]
            raise ValueError(f"{row.where}: {name} is {wrong!r}; use 1, 0 or -1, or leave it empty")
    if not kept:
        kept, parts = [UNLABELLED], [np.ones((len(rows), 1), np.float32)]
    check_attribute_names(kept)
    return np.concatenate(parts, axis=1), tuple(kept)


def presence(value: Any) -> int | None:
    """An attribute's value as it is written: 1, -1, 0 for nothing, or None for another."""
    if value is None:
        return 0
    if not isinstance(value, str | int | float):
        return None
    text = str(value)
    return PRESENT.get(text) if text in PRESENT else PRESENT.get(text.strip().lower().removesuffix(".0"))


def split_number(row: Row) -> int:
    """The number of the split that a row names; -1 if it names none."""
    split = split_named(row.split)
    if row.split and split is None:
        raise ValueError(f"{row.where}: split {row.split!r}: use {', '.join(SPLITS)}, or leave it out")
    return SPLITS[split] if split else -1


def csv_table(path: Path) -> Iterator[Row]:
    """The rows of a CSV. Columns without a name are left out."""
    rows = csv_rows(path)
    _, columns = next(rows, (1, []))
    named = [name for name in columns if name]
    key = next((name for name in PICTURE_COLUMNS if name in named), "")
    if not key or len({*named}) < len(named):
        raise ValueError(
            f"{path} line 1 must name each column once, and one {' or '.join(PICTURE_COLUMNS)}: {named}"
        )
    for line, cells in rows:
        values = {name: cell for name, cell in zip(columns, cells, strict=True) if name}
        yield Row(f"{path} line {line}", values.pop(key), values.pop("split", ""), values)


def jsonl_table(path: Path) -> Iterator[Row]:
    """The rows of a JSONL. Attributes stand under ``attributes``, or beside the picture's name."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = dict(json.loads(line))
            key = next((name for name in PICTURE_COLUMNS if name in values), PICTURE_COLUMNS[0])
            name, split = str(values.pop(key)), str(values.pop("split", None) or "")
            values = dict(values["attributes"]) if "attributes" in values else values
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} line {number} is not {{file, attributes}}: {error}") from None
        yield Row(f"{path} line {number}", name, split, values)


def find_picture(root: Path, folder: Path, row: Row, by_name: dict[str, Picture]) -> Picture | None:
    """The picture file that a row names; None if there is none.

    Args:
        folder: what the name counts from, within root.
        by_name: the pictures in root, by their names in NFC.

    Raises:
        ValueError: for a file outside root, where ``..`` or a link leads to.
    """
    try:
        path = (folder / row.name).resolve()
        there = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a null character
        raise ValueError(f"{row.where}: {row.name!r} is no file name: {error}") from None
    if not path.is_relative_to(root):
        raise ValueError(f"{row.where}: {row.name} lies outside {root}")
    name = row.name if folder == root else f"{folder.name}/{row.name}"
    if there:
        return Picture(name, str(path))
    return by_name.get(
        composed(os.path.normpath(name.replace("\\", "/")))
    )  # as Windows or macOS write it


# -------------------------------------------------------------------- CelebA-HQ


def read_celeba_hq(root: Path) -> Labelled:
    """The picture files of CelebAMask-HQ, with CelebA's 40 attributes.

    Each picture is in the split of the CelebA picture that it was made of, where the mapping file is
    there.

    Raises:
        FileNotFoundError, ValueError: one line, for files that are missing or wrong.
    """
    path = require(root, HQ_ANNOTATION, reason="without it, nothing tells its photographs' attributes")
    names, attributes = read_attributes(path)
    listing = list_pictures(require(root, HQ_IMAGES), deep=False)
    skipped = listing.others
    pictures, rows = match_rows(path, names, root / HQ_IMAGES, listing.pictures)
    skipped["rows without a picture"] += len(names) - len(rows)
    names = [names[row] for row in rows]
    said = np.full(len(names), -1)
    if (root / HQ_MAPPING).is_file():
        said = _celeba_splits(root / HQ_MAPPING, names)
    return Labelled(root, "CelebA-HQ", pictures, attributes[rows], CELEBA_ATTRIBUTES, said, +skipped)


def _celeba_splits(path: Path, names: Sequence[str]) -> np.ndarray:
    """The number of the split in CelebA of each picture, from CelebAMask-HQ's mapping file: rows of the
    number here, the number in CelebA and the name in CelebA."""
    lines = [line.split() for line in read_text(path).splitlines()[1:]]
    numbered = [line for line in lines if len(line) >= 2 and line[1].isdecimal()]
    origin = {f"{line[0]}.jpg": int(line[1]) for line in numbered}
    lacking = [name for name in names if name not in origin]
    if lacking:
        raise ValueError(f"{path} has no whole row for {lacking[0]}")
    return np.digitize(np.array([origin[name] for name in names]), CELEBA_SPLIT_STARTS)
