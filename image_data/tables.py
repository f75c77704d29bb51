"""Label files, CSV or JSONL: which pictures they name, in which split, and with which attributes."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from config import SPLITS, check_attribute_names, composed
from image_data.files import Picture, csv_rows, in_words, picture_suffixes, read_text
from image_data.labelled import (
    LabelledImages,
    as_signs,
    one_hot,
    split_named,
    split_number,
    which_is_unspecified,
)

ANNOTATIONS = ("attributes.csv", "attributes.jsonl")  # our own label files
METADATA = ("metadata.csv", "metadata.jsonl")  # Hugging Face's, if they name pictures in `file_name`
PICTURE_COLUMNS = ("file", "file_name", "filename", "image_id")
CLASS_COLUMNS = ("label", "class")
WORDS = {"true": 1, "yes": 1, "false": 0, "no": 0}
NOT_KNOWN = ("", "nan", "na", "n/a", "null")  # as programs write it
UNLABELLED = "picture"  # the one attribute of pictures without labels
MOST_VALUES = 2**28  # attributes of all pictures: 1 GiB of memory


@dataclass(frozen=True)
class Row:
    """A row of a label file: its place in the file, the picture's name, and as they are written the
    split and each attribute's value."""

    place: str
    name: str
    split: str
    values: dict[str, Any]


def find_tables(root: Path) -> list[tuple[Path, str]]:
    """The label files of a folder, each with its split: the folder's own one (""), or those of its split
    folders."""
    names = (*ANNOTATIONS, *METADATA)
    for name in names:
        if is_table(root / name):
            return [(root / name, "")]
    folders = sorted(path for path in root.iterdir() if split_named(path.name))
    tables = [(folder / name, folder.name) for folder in folders for name in names]
    return [(path, split) for path, split in tables if is_table(path)]


def is_table(path: Path) -> bool:
    """Whether this is a label file. Many datasets have a metadata file of another kind."""
    if not path.is_file():
        return False
    return path.name in ANNOTATIONS or "file_name" in read_text(path).lstrip().partition("\n")[0]


def read_tables(
    root: Path,
    tables: list[tuple[Path, str]],
    listed: list[Picture],
    passed_over: Counter,
    unspecified: int | None = None,
) -> LabelledImages:
    """Pictures that label files name: CSV with a header, or JSONL.

    A row names a picture, by its path from the label file's folder; optionally ``split``; and a value
    for each attribute, which JSONL may have under ``attributes``: 1 present, -1 or 0 absent, empty or
    null unspecified. A column ``label`` or ``class`` may name classes instead. A name that no picture
    has may lack its suffix, or have it in another form.

    Args:
        tables: as of ``find_tables``.
        listed, passed_over: what lies in root, as of ``list_pictures``.
        unspecified: see ``find_dataset``.
    """
    named = {composed(picture.name): picture for picture in listed}
    entries = list[tuple[str, Row]]()
    for table, split in tables:
        passed_over[table.suffix] -= 1
        folder = table.parent.relative_to(root)
        for row in READERS[table.suffix](table, split):
            name = row.name.replace("\\", "/")  # as Windows writes it
            entries.append((composed(os.path.normpath(folder / name)), row))  # macOS has another form
    path = tables[0][0]
    if not entries:
        raise ValueError(f"{path} names no picture")
    exact = {name for name, _ in entries}
    by_stem = dict[str, list[str]]()  # of pictures that no row names exactly
    for name in named:
        if name not in exact:
            by_stem.setdefault(_stem(name), []).append(name)
    row_of, notes, lacking = dict[str, Row](), Counter[str](), list[Row]()
    for name, row in entries:
        names = [name] if name in named else by_stem.get(_stem(name), [])
        if not names:
            lacking.append(row)
            continue
        if len(names) > 1:
            raise ValueError(
                f"{row.place}: {row.name} may be {names[0]} or {names[1]}: write its suffix"
            )
        if names != [name]:
            notes["names with another suffix, or none"] += 1
        first = row_of.setdefault(names[0], row)
        if (first.split, first.values) != (row.split, row.values):
            raise ValueError(
                f"{row.place}: {row.name} is named twice, with other values in {first.place}"
            )
        if first is not row:
            passed_over["rows that repeat another"] += 1
    remaining = named.keys() - row_of.keys()
    if lacking and (remaining or not row_of):
        also = f", and {min(remaining)} has no row" if remaining else ""
        raise FileNotFoundError(f"{lacking[0].place}: there is no {lacking[0].name} in {root}{also}")
    pictures, rows = [named[name] for name in row_of], [*row_of.values()]
    passed_over["rows without a picture"] += len(lacking)
    passed_over["pictures without a row"] += len(remaining)
    labels = read_labels(path, rows, path.name in METADATA, passed_over, notes, unspecified)
    form = " and ".join(dict.fromkeys(table.name for table, _ in tables)) + in_brackets(notes)
    return LabelledImages(root, form, pictures, *labels, +passed_over)


def in_brackets(notes: Counter) -> str:
    """What was read although written in an unusual form, as text for the data's line."""
    return f" (taken: {in_words(+notes)})" if +notes else ""


def _stem(name: str) -> str:
    """A picture's name in lower case, without its suffix."""
    stem, suffix = os.path.splitext(name.casefold())
    return stem if suffix in picture_suffixes() else name.casefold()


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


# Suffix of a label file -> (path, its split) -> its rows.
READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {".csv": csv_table, ".jsonl": jsonl_table}


# -------------------------------------------------------------------- labels


def read_labels(
    path: Path,
    rows: list[Row],
    lenient: bool,
    passed_over: Counter,
    notes: Counter,
    unspecified: int | None,
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """The attributes float32 (N, A) of rows; their A names, first those of 1 and 0, then classes; and
    the number of the split that each row names, (N,), or NO_SPLIT. Columns of other values raise
    ValueError or, if ``lenient``, are counted in ``passed_over``. ``notes`` counts what is not written
    as usual. A column of 1, 0 and -1 raises ValueError unless one is ``unspecified``.
    """
    columns = dict.fromkeys(name for row in rows for name in row.values)
    check_size(path, len(rows), len(columns))
    attributes, classes = list[tuple[str, np.ndarray]](), list[tuple[str, np.ndarray]]()
    for name in columns:
        values = [row.values.get(name) for row in rows]
        numbers, words = [number_of(value) for value in values], Counter(map(_text, values))
        is_text = None in numbers or "yes" in words or "no" in words
        has_three = unspecified is None and {-1, 0, 1} <= {*numbers}
        may_be_class = all(isinstance(v, str | int | None) or v != v for v in values)
        if name.casefold() in CLASS_COLUMNS and may_be_class and (is_text or has_three):
            classes += class_columns(path, values)
        elif None not in numbers:
            column = np.array(numbers, np.float32)
            if has_three:
                raise ValueError(f"{path}: of {name}, {which_is_unspecified(column)}")
            attributes.append((name, as_signs(column, unspecified)))
            notes.update({"yes as 1": words["yes"], "no as 0": words["no"]})
        elif lenient:
            passed_over[f"column {name}, which is neither 1 and 0 nor a label"] += 1
        else:
            wrong = numbers.index(None)
            raise ValueError(
                f"{rows[wrong].place}: {name} is {values[wrong]!r}; use 1, 0 or -1, or leave it empty"
            )
        notes.update({f"{word} as unspecified": words[word] for word in NOT_KNOWN[1:]})
    labels = [*attributes, *classes] or [(UNLABELLED, np.ones(len(rows), np.float32))]
    names = tuple(name for name, _ in labels)
    check_attribute_names(names)
    splits = []
    for row in rows:
        split = split_named(row.split)
        if row.split and not split:
            raise ValueError(
                f"{row.place}: split {row.split!r}: use {', '.join(SPLITS)}, or leave it out"
            )
        splits.append(split_number(split))
    return np.stack([column for _, column in labels], axis=1), names, np.array(splits)


def number_of(value: Any) -> float | None:
    """An attribute's value as it is written: 1, 0 or -1, nan for nothing, or None for another."""
    text = _text(value)
    if text in NOT_KNOWN:
        return math.nan
    try:
        number = float(WORDS.get(text, text))
    except ValueError:
        return None
    return number if number in (-1, 0, 1) else None


def _text(value: Any) -> str:
    """A value of a label file as plain text."""
    return "" if value is None else str(value).strip().lower()


def class_columns(path: Path, values: Sequence[str | int | None]) -> list[tuple[str, np.ndarray]]:
    """The classes that values name, each with its column float32 (N,): 1, -1, and 0 where none is
    named."""
    texts = ["" if _text(value) in NOT_KNOWN else str(value).strip() for value in values]
    names = sorted({*texts} - {""})
    columns = class_rows(path, texts, names).astype(np.float32)
    columns[[text == "" for text in texts]] = 0
    return list(zip(names, columns.T, strict=True))


def class_rows(root: Path, classes: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """The class of each picture as attributes int8 (N, A): +1 for it, -1 for the others; one without a
    class counts to the first. ValueError for names that cannot be those of classes."""
    try:
        check_attribute_names(names)
    except ValueError as error:
        raise ValueError(f"{root} has a class that cannot be one: {error}: rename it") from None
    check_size(root, len(classes), len(names))
    numbers = {name: number for number, name in enumerate(names)}
    return one_hot(np.array([numbers.get(each, 0) for each in classes]), len(names))


def check_size(root: Path, rows: int, columns: int) -> None:
    """Raise ValueError for more attributes of all pictures than memory holds."""
    if rows * columns > MOST_VALUES:
        raise ValueError(f"{root} has {rows:,} pictures of {columns:,} attributes: too many to read")
