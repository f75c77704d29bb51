"""CelebA and CelebA-HQ: their lists of attributes and splits, matched with their picture files."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from attributes import CELEBA_ATTRIBUTES, nearest_names
from config import SPLITS
from image_data.files import (
    DRAWN_FACES,
    Picture,
    checked_root,
    csv_rows,
    list_pictures,
    no_picture,
    read_text,
)
from image_data.labelled import NO_SPLIT, LabelledImages

CELEBA_HOME = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
IMAGE_FOLDER = "img_align_celeba"
# The lists as CelebA has them, and as Kaggle does.
ATTRIBUTE_FILES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
PARTITION_FILES = ("list_eval_partition.txt", "list_eval_partition.csv")
# Files of CelebA that nothing here reads: not to be taken for a misspelt one of the above.
OTHER_FILES = ("identity_CelebA.txt", "list_landmarks_align_celeba.txt", "list_bbox_celeba.txt")
OTHER_FILES += ("list_landmarks_align_celeba.csv", "list_bbox_celeba.csv")
HQ_ANNOTATION, HQ_IMAGES = "CelebAMask-HQ-attribute-anno.txt", "CelebA-HQ-img"
HQ_MASKS, HQ_MAPPING = "CelebAMask-HQ-mask-anno", "CelebA-HQ-to-CelebA-mapping.txt"
# First validation and test picture, counted from 0, in list_eval_partition.txt.
FIRST_OF_SPLITS = (162_770, 182_637)


def read_celeba(root: str | os.PathLike) -> LabelledImages:
    """CelebA's pictures, attributes and splits, in the order of the attribute file. No picture is read.

    The lists are CelebA's .txt files, or .csv files as Kaggle has them. The files lie in root or, as
    torchvision leaves them, in root/celeba. The pictures may lie one folder deeper, as Kaggle's do. Rows
    without a picture are left out.
    """
    root = checked_root(root)
    if (root / "celeba" / IMAGE_FOLDER).is_dir() and not (root / IMAGE_FOLDER).is_dir():
        root = root / "celeba"
    folder = require(root, IMAGE_FOLDER)
    listed, passed_over = list_pictures(folder, deep=False)
    if not listed and (folder / IMAGE_FOLDER).is_dir():
        folder = folder / IMAGE_FOLDER
        listed, passed_over = list_pictures(folder, deep=False)
    if not listed:
        raise no_picture(folder, passed_over)

    path = require(root, *ATTRIBUTE_FILES)
    pictures, attributes, spare_rows = read_attributes(path, folder, listed)
    passed_over["rows without a picture"] += spare_rows

    path = require(root, *PARTITION_FILES)
    names, numbers = read_table(path)
    matched, rows = match_rows(path, names, folder, listed)
    split_of = {picture.name: numbers[row, 0] for picture, row in zip(matched, rows, strict=True)}
    splits = np.array([split_of[picture.name] for picture in pictures])
    for picture, split in zip(pictures, splits, strict=True):
        if not 0 <= split < len(SPLITS):
            value = f"{picture.name} has {split}"
            raise ValueError(f"{path}: {value}; use 0 (train), 1 (val) or 2 (test)")
    drawn = (root / DRAWN_FACES).is_file()
    form = "drawn faces, in CelebA's layout" if drawn else "CelebA"
    labels = attributes, CELEBA_ATTRIBUTES, splits
    return LabelledImages(root, form, pictures, *labels, +passed_over, shuffled=False)


def read_celeba_hq(root: Path) -> LabelledImages:
    """The picture files of CelebAMask-HQ, with CelebA's 40 attributes.

    With the mapping file, each picture is in the split of the CelebA picture that it was made of.
    """
    path = require(root, HQ_ANNOTATION, reason="without it, nothing tells its photographs' attributes")
    folder = require(root, HQ_IMAGES)
    listed, passed_over = list_pictures(folder, deep=False)
    pictures, attributes, spare_rows = read_attributes(path, folder, listed)
    passed_over["rows without a picture"] += spare_rows
    splits = np.full(len(pictures), NO_SPLIT)
    if (root / HQ_MAPPING).is_file():
        splits = _splits_of_origins(root / HQ_MAPPING, pictures)
    labels = attributes, CELEBA_ATTRIBUTES, splits
    return LabelledImages(root, "CelebA-HQ", pictures, *labels, +passed_over)


def _splits_of_origins(path: Path, pictures: Sequence[Picture]) -> np.ndarray:
    """The number of the split in CelebA of each picture, from CelebAMask-HQ's mapping file: rows of the
    number here, the number in CelebA and the name in CelebA."""
    lines = [line.split() for line in read_text(path).splitlines()[1:]]
    numbered = [line for line in lines if len(line) >= 2 and line[1].isdecimal()]
    origins = {line[0]: int(line[1]) for line in numbered}
    stems = [_stem(picture.name) for picture in pictures]
    lacking = [stem for stem in stems if stem not in origins]
    if lacking:
        raise ValueError(f"{path} has no whole row for picture {lacking[0]}")
    return np.digitize(np.array([origins[stem] for stem in stems]), FIRST_OF_SPLITS)


def require(root: Path, *names: str, reason: str = "") -> Path:
    """The first of root / name that exists. FileNotFoundError, with the nearest name that does or the
    reason why it is needed, if none does."""
    for name in names:
        if (root / name).exists():
            return root / name
    own = {IMAGE_FOLDER, *ATTRIBUTE_FILES, *PARTITION_FILES, *OTHER_FILES}
    near = nearest_names(names[0], {path.name for path in root.iterdir()} - own)
    hint = reason or (f"rename or unpack {near}?" if near else f"CelebA's files are at {CELEBA_HOME}")
    raise FileNotFoundError(f"{root} has no {' or '.join(names)}; {hint}")


# -------------------------------------------------------------------- lists


def read_attributes(
    path: Path, folder: Path, listed: list[Picture]
) -> tuple[list[Picture], np.ndarray, int]:
    """The pictures of a list of attributes, in its order; their attributes (N, 40), +1 or -1; and how
    many rows have no picture. The list says 1 and -1, or 1 and 0."""
    names, attributes = read_table(path, header=CELEBA_ATTRIBUTES)
    absent = -1 if (attributes == -1).any() else 0
    wrong = np.argwhere((attributes != 1) & (attributes != absent))
    if len(wrong):
        row, column = wrong[0]
        value = f"{CELEBA_ATTRIBUTES[column]} is {attributes[row, column]}"
        raise ValueError(
            f"{path}: {value} for {names[row]}; attributes are 1 or -1, or 1 or 0 in the whole file"
        )
    pictures, rows = match_rows(path, names, folder, listed)
    signs = np.where(attributes[rows] == 1, 1, -1).astype(np.int32)
    return pictures, signs, len(names) - len(rows)


def read_table(path: Path, header: tuple[str, ...] = ()) -> tuple[list[str], np.ndarray]:
    """The file names of a list, and a row of whole numbers for each. Empty rows are left out.

    Args:
        path: rows of a file name and its numbers. A .csv has a header.
        header: the columns. In a .txt, line 1 is the number of rows and line 2 names the columns.
            Empty: one column, and a .txt has no such lines.

    Returns:
        N names, int32 (N, columns).
    """
    is_csv = path.suffix == ".csv"
    rows = csv_rows(path) if is_csv else _txt_rows(path)
    width = len(header) or 1
    count: list[str] = []
    if header and not is_csv:
        _, count = next(rows, (1, []))
    if header or is_csv:
        line, columns = next(rows, (2, []))
        _check_columns(f"{path} line {line}", columns[1:] if is_csv else columns, header)
    names, numbers = [], array("i")
    for line, (name, *values) in rows:
        if len(values) != width:
            raise ValueError(f"{path} line {line} has {len(values)} values; expected {width}")
        if "/" in name or "\\" in name:
            raise ValueError(f"{path} line {line}: {name} is a path; give a bare file name")
        try:
            numbers.extend(map(int, values))
        except (ValueError, OverflowError):
            raise ValueError(f"{path} line {line}: {' '.join(values)[:60]!r} is not numeric") from None
        names.append(name)
    if count and count != [str(len(names))]:
        raise ValueError(
            f"{path} line 1 says {' '.join(count)[:40]!r} but {len(names)} rows follow; "
            f"correct the count or fetch the file again"
        )
    return names, np.array(numbers, dtype=np.int32).reshape(-1, width)


def _check_columns(line: str, columns: list[str], header: tuple[str, ...]) -> None:
    """Raise ValueError where a line does not name these columns. Without any, it names one."""
    width = len(header) or 1
    if len(columns) != width:
        raise ValueError(f"{line} names {len(columns)} columns; CelebA has {width}")
    for number, (name, expected) in enumerate(zip(columns, header, strict=False), 1):
        if name != expected:
            raise ValueError(f"{line}: column {number} is {name}; CelebA has {expected}")


def _txt_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and words of each line that has any."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            yield number, line.split()


def match_rows(
    path: Path, names: list[str], folder: Path, pictures: list[Picture]
) -> tuple[list[Picture], list[int]]:
    """The pictures that a list's rows name, in the rows' order, and the numbers of those rows.

    Names may differ in their suffix: CelebA's lists say .jpg of its .png files, too.

    Raises:
        ValueError: where a picture has no row, no row has a picture, or one is named twice.
    """
    by_name = {picture.name: picture for picture in pictures}
    keys = names
    if not any(name in by_name for name in names):
        by_name = {_stem(picture.name): picture for picture in pictures}
        keys = [_stem(name) for name in names]
    spare = sorted(by_name.keys() - set(keys))
    if spare:
        lacking = sorted(set(keys) - by_name.keys())
        raise ValueError(
            f"{path} has {len(names)} rows and {folder.name}/ {len(pictures)} pictures: "
            f"{len(lacking)} rows without a picture{_first(lacking)}, {len(spare)} pictures without "
            f"a row{_first(spare)}; remove or restore them"
        )
    if len({*keys}) < len(keys):
        twice = names[keys.index(Counter(keys).most_common(1)[0][0])]
        raise ValueError(f"{path} lists {twice} twice; every picture has one row")
    if len(by_name) < len(pictures):
        raise ValueError(f"{folder} has two pictures of one name, with other suffixes; keep one of them")
    rows = [row for row, key in enumerate(keys) if key in by_name]
    return [by_name[keys[row]] for row in rows], rows


def _stem(name: str) -> str:
    """A file name without its suffix."""
    return os.path.splitext(name)[0]


def _first(names: list[str]) -> str:
    """The first names in brackets, for a message. Empty for no names."""
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
