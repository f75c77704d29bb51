"""Label files, CSV or JSONL: which pictures they name, in which split, and with which attributes."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from config import SPLITS, check_attribute_names, composed
from image_data.files import Picture, csv_rows, read_text
from image_data.labelled import LabelledImages, one_hot, split_named, split_number

ANNOTATIONS = ("attributes.csv", "attributes.jsonl")  # our own label files
METADATA = ("metadata.csv", "metadata.jsonl")  # Hugging Face's, if they name pictures in `file_name`
PICTURE_COLUMNS = ("file", "file_name", "filename", "image_id")
CLASS_COLUMNS = ("label", "class")
SIGNS = {"1": 1, "-1": -1, "0": -1, "true": 1, "false": -1, "": 0}
UNLABELLED = "picture"  # the one attribute of pictures without labels
MOST_VALUES = 2**28  # attributes of all pictures: 1 GiB of memory


@dataclass(frozen=True)
class Row:
    """A picture in a label file: the row's place in the file, the picture's name, its split as it is
    written, and each attribute's value as it is written."""

    place: str
    name: str
    split: str
    values: dict[str, Any]


def find_tables(root: Path) -> list[tuple[Path, str]]:
    """The label files of a folder, each with its split: the folder's own one (""), or those of its split
    folders."""
    names = (*ANNOTATIONS, *METADATA)
    own = [root / name for name in names if is_table(root / name)]
    if own:
        return [(own[0], "")]
    folders = sorted(path for path in root.iterdir() if split_named(path.name))
    tables = [(folder / name, folder.name) for folder in folders for name in names]
    return [(path, split) for path, split in tables if is_table(path)]


def is_table(path: Path) -> bool:
    """Whether this is a label file. Many datasets have a metadata file of another kind."""
    if not path.is_file():
        return False
    return path.name in ANNOTATIONS or "file_name" in read_text(path).lstrip().partition("\n")[0]


def read_tables(
    root: Path, tables: list[tuple[Path, str]], listed: list[Picture], passed_over: Counter
) -> LabelledImages:
    """Pictures that label files name: CSV with a header, or JSONL.

    A row names a picture, by its path from the label file's folder; optionally ``split``; and a value
    for each attribute, which JSONL may have under ``attributes``: 1 present, -1 or 0 absent, empty or
    null unspecified. A column ``label`` or ``class`` may name classes instead.

    Args:
        tables: as of ``find_tables``.
        listed, passed_over: what lies in root, as of ``list_pictures``.
    """
    by_name = {composed(picture.name): picture for picture in listed}
    pictures, rows, lacking = list[Picture](), list[Row](), list[Row]()
    paths: set[str] = set()
    for table, split in tables:
        passed_over[table.suffix] -= 1
        for row in (csv_table if table.suffix == ".csv" else jsonl_table)(table, split):
            picture = find_picture(root, table.parent, row, by_name)
            if picture is None:
                lacking.append(row)
                continue
            if picture.path in paths:
                raise ValueError(f"{row.place}: {row.name} is named twice")
            paths.add(picture.path)
            pictures.append(picture)
            rows.append(row)
    spare = [each for each in listed if not {each.path, os.path.realpath(each.path)} & paths]
    path = tables[0][0]
    if not pictures and not lacking:
        raise ValueError(f"{path} names no picture")
    if lacking and (spare or not pictures):
        also = f", and {spare[0].name} has no row" if spare else ""
        raise FileNotFoundError(f"{lacking[0].place}: there is no {lacking[0].name} in {root}{also}")
    passed_over["rows without a picture"] += len(lacking)
    passed_over["pictures without a row"] += len(spare)
    attributes, names = read_values(path, rows, path.name in METADATA, passed_over)
    form = " and ".join(dict.fromkeys(table.name for table, _ in tables))
    return LabelledImages(root, form, pictures, attributes, names, read_splits(rows), +passed_over)


def csv_table(path: Path, split: str) -> Iterator[Row]:
    """The rows of a CSV, in this split where they name none. Columns without a name are left out."""
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
        yield Row(f"{path} line {line}", values.pop(key), values.pop("split", "") or split, values)


def jsonl_table(path: Path, split: str) -> Iterator[Row]:
    """The rows of a JSONL, in this split where they name none. Attributes stand under ``attributes``, or
    beside the picture's name."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = dict(json.loads(line))
            key = next((name for name in PICTURE_COLUMNS if name in values), PICTURE_COLUMNS[0])
            name, own_split = str(values.pop(key)), str(values.pop("split", None) or split)
            values = dict(values["attributes"]) if "attributes" in values else values
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} line {number} is not {{file, attributes}}: {error}") from None
        yield Row(f"{path} line {number}", name, own_split, values)


def find_picture(root: Path, folder: Path, row: Row, by_name: dict[str, Picture]) -> Picture | None:
    """The picture file that a row names; None if there is none.

    Args:
        folder: of the label file, within root. The name counts from here.
        by_name: the pictures in root, by their names in NFC.
    """
    try:
        path = (folder / row.name).resolve()
        exists = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a null character
        raise ValueError(f"{row.place}: {row.name!r} is no file name: {error}") from None
    if not path.is_relative_to(root):
        raise ValueError(f"{row.place}: {row.name} lies outside {root}")
    name = row.name if folder == root else f"{folder.name}/{row.name}"
    if exists:
        return Picture(name, str(path))
    name = os.path.normpath(name.replace("\\", "/"))  # as Windows writes it
    return by_name.get(composed(name))  # macOS writes another form


# -------------------------------------------------------------------- values


def read_splits(rows: Sequence[Row]) -> np.ndarray:
    """The number of the split that each row names, (N,); NO_SPLIT where it names none. ValueError for a
    name of no split."""
    numbers = []
    for row in rows:
        split = split_named(row.split)
        if row.split and not split:
            raise ValueError(
                f"{row.place}: split {row.split!r}: use {', '.join(SPLITS)}, or leave it out"
            )
        numbers.append(split_number(split))
    return np.array(numbers)


def read_values(
    path: Path, rows: list[Row], lenient: bool, passed_over: Counter
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The attributes float32 (N, A) of rows, and their A names; first those of 1 and 0, then classes.

    Args:
        lenient: pass over columns of other values, and count them in ``passed_over``. Otherwise they
            raise ValueError.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    if len(rows) * len(names) > MOST_VALUES:
        raise ValueError(f"{path} has {len(rows)} rows of {len(names)} attributes: too many to read")
    attributes: list[tuple[str, np.ndarray]] = []
    classes: list[tuple[str, np.ndarray]] = []
    for name in names:
        values = [row.values.get(name) for row in rows]
        signs = [sign_of(value) for value in values]
        if None not in signs:
            attributes.append((name, np.array(signs, np.float32)))
        elif name.casefold() in CLASS_COLUMNS and all(isinstance(v, str | int | None) for v in values):
            classes += class_columns(path, values)
        elif lenient:
            passed_over[f"column {name}, which is neither 1 and 0 nor a label"] += 1
        else:
            wrong = signs.index(None)
            raise ValueError(
                f"{rows[wrong].place}: {name} is {values[wrong]!r}; use 1, 0 or -1, or leave it empty"
            )
    columns = [*attributes, *classes] or [(UNLABELLED, np.ones(len(rows), np.float32))]
    names = [name for name, _ in columns]
    check_attribute_names(names)
    return np.stack([column for _, column in columns], axis=1), tuple(names)


def sign_of(value: Any) -> int | None:
    """An attribute's value as it is written: 1, -1, 0 for nothing, or None for another."""
    if value is None:
        return 0
    if not isinstance(value, str | int | float):
        return None
    return SIGNS.get(str(value).strip().lower().removesuffix(".0"))


def class_columns(path: Path, values: Sequence[str | int | None]) -> list[tuple[str, np.ndarray]]:
    """The classes that values name, each with its column float32 (N,): 1, -1, and 0 where none is
    named."""
    texts = ["" if value is None else str(value).strip() for value in values]
    names = sorted({*texts} - {""})
    check_classes(path, names, len(texts))
    numbers = {name: number for number, name in enumerate(names)}
    columns = one_hot(np.array([numbers.get(text, 0) for text in texts]), len(names)).astype(np.float32)
    columns[[text == "" for text in texts]] = 0
    return list(zip(names, columns.T, strict=True))


def check_classes(root: Path, names: Sequence[str], number: int) -> None:
    """Raise ValueError unless these can be the names of classes of so many pictures."""
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
