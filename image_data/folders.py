"""Folders of picture files: described by label files or by class folders, split by split folders."""

from __future__ import annotations

import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np

from config import composed
from image_data.files import Picture, list_pictures, no_picture
from image_data.labelled import LabelledImages, split_named, split_number
from image_data.tables import UNLABELLED, class_rows, find_tables, read_tables

UNSPLIT = ""  # no split is given

# The split that a picture's folders give, UNSPLIT, or None outside of the split folders; and its other
# folders, from the outermost.
Place = tuple[str | None, list[str]]


def read_folder(root: Path, unspecified: int | None = None) -> LabelledImages:
    """The picture files below a folder, described by label files or by class folders."""
    pictures, passed_over = list_pictures(root)
    tables = find_tables(root)
    if tables:
        return read_tables(root, tables, pictures, passed_over, unspecified)
    if not pictures:
        raise no_picture(root, passed_over)
    return class_folders(root, pictures, passed_over)


def class_folders(root: Path, listed: list[Picture], passed_over: Counter) -> LabelledImages:
    """Pictures in root/<class>/, root/<split>/<class>/ or root/<class>/<split>/. Without two classes,
    all pictures are alike.

    Args:
        listed, passed_over: what lies in root, as of ``list_pictures``.
    """
    places = find_places(root, [picture.name.split(os.sep)[:-1] for picture in listed])
    classes = [composed(folders[0]) if folders else "" for _, folders in places]
    splits = [split for split, _ in places]
    numbered = are_numbered(classes, listed)
    if numbered:
        classes = [""] * len(classes)
    trained = {name for name, split in zip(classes, splits, strict=True) if split in (UNSPLIT, "train")}
    names = sorted(trained - {""})
    alike = not names or (len(names) == 1 and "" in trained)
    rows = []
    for row, (name, split) in enumerate(zip(classes, splits, strict=True)):
        if split is None and name:
            passed_over[f"in {places[row][1][0]}/, which is no split"] += 1
        elif split is None:
            passed_over["outside the split folders"] += 1
        elif alike or name in names:
            rows.append(row)
        elif name:
            passed_over[f"of class {name}, which has no picture in train"] += 1
        else:
            passed_over["outside the class folders"] += 1
    form = "pictures without labels" if alike else "class folders"
    if numbered:
        form += (
            " (its folders of numbers hold consecutive file numbers; if they are classes, rename them)"
        )
    names = [UNLABELLED] if alike else names
    attributes = class_rows(root, [classes[row] for row in rows], names)
    given = np.array([split_number(splits[row]) for row in rows])
    pictures = [listed[row] for row in rows]
    return LabelledImages(root, form, pictures, attributes, tuple(names), given, passed_over)


def are_numbered(folders: list[str], pictures: list[Picture]) -> bool:
    """Whether folders are those of a numbered set, as FFHQ's 00000/ and 01000/: folders and files are
    numbers, and the files' numbers rise from folder to folder."""
    numbers = dict[int, list[int]]()
    for folder, picture in zip(folders, pictures, strict=True):
        stem = Path(picture.name).stem
        if not (folder.isdecimal() and stem.isdecimal()):
            return False
        numbers.setdefault(int(folder), []).append(int(stem))
    ordered = [numbers[folder] for folder in sorted(numbers)]
    rise = all(max(before) < min(behind) for before, behind in pairwise(ordered))
    return rise and len(pictures) >= 2 * len(ordered) > 2


def find_places(root: Path, folders: list[list[str]]) -> list[Place]:
    """The place of each picture.

    Args:
        folders: those that hold each picture, from the root on.
    """
    folders = unwrapped(folders)
    tops = {folder[0] for folder in folders if folder}
    given = {top: split for top in tops if (split := split_named(top))}
    nested = any(len(folder) > 1 and folder[0] in given for folder in folders)
    if given and (nested or len(given) == len(tops)):  # split folders hold the classes
        check_splits(root, given, tops)
        places: list[Place] = [(None, folder) for folder in folders]
        for top, split in given.items():
            rows = [row for row, folder in enumerate(folders) if folder[:1] == [top]]
            inner = unwrapped([folders[row][1:] for row in rows])
            for row, rest in zip(rows, inner, strict=True):
                places[row] = split, rest
        return places
    # Or else each class has a train folder of its own.
    seconds = [split_named(folder[1]) if len(folder) > 1 else None for folder in folders]
    trained = {f[0] for f, split in zip(folders, seconds, strict=True) if split == "train"}
    if not trained or trained != tops:
        return [(UNSPLIT, folder) for folder in folders]
    return [
        (split, folder[:1]) if split else (None, [])
        for folder, split in zip(folders, seconds, strict=True)
    ]


def check_splits(root: Path, given: dict[str, str], tops: set[str]) -> None:
    """Raise FileNotFoundError or ValueError for split folders that may mean something else.

    Args:
        given: folder -> the split that it stands for; tops: these folders and all beside them.
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
