"""CelebA and CelebA-HQ: their lists of attributes and splits, matched with their picture files."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from attributes import CELEBA_ATTRIBUTES
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
from image_data.labelled import NO_SPLIT, LabelledImages, as_signs, which_is_unspecified

CELEBA_HOME = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
IMAGE_FOLDER = "img_align_celeba"
IMAGE_FOLDERS = (IMAGE_FOLDER, "img_align_celeba_png")
PARTS = ("", "Anno", "Eval", "Img")  # the home page's folders
# The lists as CelebA has them, and as Kaggle does.
ATTRIBUTE_FILES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
PARTITION_FILES = ("list_eval_partition.txt", "list_eval_partition.csv")
HQ_ANNOTATION, HQ_IMAGES = "CelebAMask-HQ-attribute-anno.txt", "CelebA-HQ-img"
HQ_MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
# What shows that a folder holds the one or the other: see `image_data/datasets.py`.
SIGNS = (*IMAGE_FOLDERS, *ATTRIBUTE_FILES, f"celeba/{IMAGE_FOLDER}")
SIGNS += ("Img/img_align*", "Anno/list_attr_celeba*")
HQ_SIGNS = (HQ_ANNOTATION, HQ_IMAGES, "CelebAMask-HQ-mask-anno")
# First validation and test picture, counted from 0, in list_eval_partition.txt.
FIRST_OF_SPLITS = (162_770, 182_637)


def read_celeba(root: str | os.PathLike, unspecified: int | None = None) -> LabelledImages:
    """CelebA's pictures, attributes and splits, in the order of the attribute file. No picture is read.

    The lists are CelebA's .txt files, or .csv files as Kaggle has them. The files lie in root, in the
    folders of the home page (PARTS) or, as torchvision leaves them, in root/celeba. The pictures may lie
    one folder deeper, as Kaggle's do. Rows without a picture are left out. ``unspecified``: see
    ``find_dataset``.
    """
    root = checked_root(root)
    if root.name in PARTS:
        root = root.parent
    if (root / "celeba" / IMAGE_FOLDER).is_dir() and not (root / IMAGE_FOLDER).is_dir():
        root = root / "celeba"
    folder = require(root, *IMAGE_FOLDERS)
    if (folder / folder.name).is_dir():
        folder = folder / folder.name
    path = require(root, *ATTRIBUTE_FILES)
    pictures, attributes, passed_over = read_attributes(path, folder, unspecified)

    path = require(root, *PARTITION_FILES)
    names, numbers = read_list(path, ("partition",))
    row_of = match_rows(path, names, folder, pictures)
    splits = numbers[[row_of[picture] for picture in pictures], 0]
    wrong = np.flatnonzero((splits < 0) | (splits >= len(SPLITS)))
    if len(wrong):
        value = f"{pictures[wrong[0]].name} has {splits[wrong[0]]}"
        raise ValueError(f"{path}: {value}; use 0 (train), 1 (val) or 2 (test)")
    drawn = (root / DRAWN_FACES).is_file()
    form = "drawn faces, in CelebA's layout" if drawn else "CelebA"
    labels = attributes, CELEBA_ATTRIBUTES, splits
    return LabelledImages(root, form, pictures, *labels, passed_over, shuffled=False)


def read_celeba_hq(root: Path, unspecified: int | None = None) -> LabelledImages:
    """The picture files of CelebAMask-HQ, with CelebA's 40 attributes.

    With the mapping file, each picture is in the split of the CelebA picture that it was made of.
    """
    path = require(root, HQ_ANNOTATION, hint="without it, nothing tells its photographs' attributes")
    pictures, attributes, passed_over = read_attributes(path, require(root, HQ_IMAGES), unspecified)
    splits = np.full(len(pictures), NO_SPLIT)
    if (root / HQ_MAPPING).is_file():
        splits = _splits_of_origins(root / HQ_MAPPING, pictures)
    return LabelledImages(
        root, "CelebA-HQ", pictures, attributes, CELEBA_ATTRIBUTES, splits, passed_over
    )


def _splits_of_origins(path: Path, pictures: Sequence[Picture]) -> np.ndarray:
    """The number of the split in CelebA of each picture, from CelebAMask-HQ's mapping file: rows of the
    number here, the number in CelebA and the name in CelebA."""
    lines = [words for _, words in _txt_rows(path)]
    origins = {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}
    stems = [_stem(picture.name) for picture in pictures]
    lacking = [stem for stem in stems if stem not in origins]
    if lacking:
        raise ValueError(f"{path} has no whole row for picture {lacking[0]}")
    return np.digitize(np.array([origins[stem] for stem in stems]), FIRST_OF_SPLITS)


def require(root: Path, *names: str, hint: str = f"CelebA's files are at {CELEBA_HOME}") -> Path:
    """The first of these files or folders that exists, in root or a part of it. FileNotFoundError, with
    the hint, if none does."""
    for path in (root / part / name for name in names for part in PARTS):
        if path.exists():
            return path
        for packed in path.parent.glob(f"{path.name}*.[z7]*"):
            hint = f"unpack {packed}"
    raise FileNotFoundError(f"{root} has no {' or '.join(names)}; {hint}")


# -------------------------------------------------------------------- lists


def read_attributes(
    path: Path, folder: Path, unspecified: int | None
) -> tuple[list[Picture], np.ndarray, Counter]:
    """The pictures in a folder, in the order of a list of attributes, which says 1 and -1, or 1 and 0;
    their attributes (N, 40), +1, -1, or 0 for ``unspecified`` values; and what is passed over."""
    listed, passed_over = list_pictures(folder, deep=False)
    if not listed:
        raise no_picture(folder, passed_over)
    names, attributes = read_list(path, CELEBA_ATTRIBUTES)
    absent = -1 if (attributes == -1).any() else 0
    allowed = (1, absent) if unspecified is None else (1, 0, -1)
    wrong = np.argwhere(~np.isin(attributes, allowed))
    if len(wrong):
        row, column = wrong[0]
        value = f"{CELEBA_ATTRIBUTES[column]} is {attributes[row, column]} for {names[row]}"
        rule = "attributes are 1 or -1, or 1 or 0 in the whole file"
        raise ValueError(f"{path}: {value}; {rule}: here {which_is_unspecified(attributes)}")
    row_of = match_rows(path, names, folder, listed)
    if len(row_of) < len(names):
        passed_over["rows without a picture"] = len(names) - len(row_of)
    return [*row_of], as_signs(attributes[[*row_of.values()]], unspecified), passed_over


def read_list(path: Path, columns: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The file names of a list, and a row of whole numbers for each: N names, int32 (N, columns).

    A .csv has a header. In a .txt of several columns, line 1 is the number of rows and line 2 names the
    columns. Empty rows are left out.
    """
    is_csv = path.suffix == ".csv"
    rows = csv_rows(path) if is_csv else _txt_rows(path)
    line, header = 1, list(columns)
    if is_csv:
        line, (_, *header) = next(rows, (1, [""]))
    elif len(columns) > 1:
        next(rows, None)
        line, header = next(rows, (2, []))
    if len(header) != len(columns):
        raise ValueError(f"{path} line {line} names {len(header)} columns; CelebA has {len(columns)}")
    for number, (name, expected) in enumerate(zip(header, columns, strict=True), 1):
        if name != expected:
            raise ValueError(f"{path} line {line}: column {number} is {name}; CelebA has {expected}")
    names, numbers = [], array("i")  # 8 million numbers: as lists of text they would take 1 GB
    for line, (name, *values) in rows:
        if len(values) != len(columns):
            raise ValueError(f"{path} line {line} has {len(values)} values; expected {len(columns)}")
        try:
            numbers.extend(map(int, values))
        except (ValueError, OverflowError):
            raise ValueError(f"{path} line {line}: {' '.join(values)[:60]!r} is not numeric") from None
        names.append(name)
    return names, np.array(numbers, dtype=np.int32).reshape(-1, len(columns))


def _txt_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and words of each line that has any."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            yield number, line.split()


def match_rows(
    path: Path, names: list[str], folder: Path, pictures: list[Picture]
) -> dict[Picture, int]:
    """The pictures that a list's rows name, in the rows' order, each with the number of its row.

    Names may differ in their suffix: CelebA's lists say .jpg of its .png files, too.

    Raises:
        ValueError: where a picture has no row, or one is named or there twice.
    """
    by_stem = {_stem(picture.name): picture for picture in pictures}
    stems = [_stem(name) for name in names]
    spare = [by_stem[stem].name for stem in sorted(by_stem.keys() - {*stems})]
    if spare:
        lacking = [name for name, stem in zip(names, stems, strict=True) if stem not in by_stem]
        raise ValueError(
            f"{path} has {len(names)} rows and {folder.name}/ {len(pictures)} pictures: "
            f"{len(lacking)} rows without a picture{_first(lacking)}, {len(spare)} pictures without "
            f"a row{_first(spare)}; remove or restore them"
        )
    for place, keys in ((path, stems), (folder, [_stem(picture.name) for picture in pictures])):
        twice = [key for key, number in Counter(keys).items() if number > 1]
        if twice:
            raise ValueError(f"{place} has {twice[0]} twice; every picture has one row")
    return {by_stem[stem]: row for row, stem in enumerate(stems) if stem in by_stem}


def _stem(name: str) -> str:
    """A file name without its suffix."""
    return os.path.splitext(name)[0]


def _first(names: list[str]) -> str:
    """The first names in brackets, for a message. Empty for no names."""
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
