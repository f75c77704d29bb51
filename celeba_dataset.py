"""CelebA's files: pictures, labels and splits; ``CelebADataset``."""

from __future__ import annotations

import os
import textwrap
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attributes import CELEBA_ATTRIBUTES, nearest_names
from image_data.cached import SPLITS, CachedDataset
from image_data.files import Picture, checked_root, csv_rows, list_pictures, no_picture, read_text
from image_data.labelled import Labelled
from image_data.picture import check_geometry, decode_image

CELEBA_HOME = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
IMAGE_FOLDER = "img_align_celeba"
# The lists as CelebA has them, and as Kaggle does.
ATTRIBUTE_FILES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
PARTITION_FILES = ("list_eval_partition.txt", "list_eval_partition.csv")
# Files of CelebA that nothing here reads: not to be taken for a misspelt one of the above.
OTHER_FILES = ("identity_CelebA.txt", "list_landmarks_align_celeba.txt", "list_bbox_celeba.txt")
OTHER_FILES += ("list_landmarks_align_celeba.csv", "list_bbox_celeba.csv")


# -------------------------------------------------------------------- pictures


def load_and_preprocess_image(path: str | os.PathLike, image_size: int = 64, crop: int = 178) -> Tensor:
    """One picture file, upright, RGB over white, cropped and resized exactly as in the dataset.

    Returns:
        uint8 (1, image_size, image_size, 3) in [0, 255].

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a file that is not a whole picture, one so large that it may be a decompression
            bomb, or an impossible image_size or crop.
    """
    check_geometry(image_size, crop)
    return torch.from_numpy(decode_image(path, image_size, crop))[None]  # (1, H, W, 3)


# -------------------------------------------------------------------- CelebA's folder


def celeba_folder(root: str | os.PathLike) -> Path:
    """The folder that holds CelebA's files: root, or root/celeba, as torchvision leaves it.

    Raises:
        FileNotFoundError: if root is no folder.
    """
    root = checked_root(root, "CelebA")
    inside = root / "celeba"
    return inside if (inside / IMAGE_FOLDER).is_dir() and not (root / IMAGE_FOLDER).is_dir() else root


def read_celeba(root: str | os.PathLike) -> Labelled:
    """CelebA's pictures, attributes and splits, in the order of the attribute file. No picture is read.

    The lists are CelebA's .txt files, or .csv files as Kaggle has them. The pictures may lie one folder
    deeper, as Kaggle's do. Rows without a picture are left out.

    Raises:
        FileNotFoundError, ValueError: one line, for files that are missing, wrong or do not match.
    """
    root = celeba_folder(root)
    folder = require(root, IMAGE_FOLDER)
    listing = list_pictures(folder, deep=False)
    if not listing.pictures and (folder / IMAGE_FOLDER).is_dir():
        folder /= IMAGE_FOLDER
        listing = list_pictures(folder, deep=False)
    if not listing.pictures:
        raise no_picture(folder, listing)

    path = require(root, *ATTRIBUTE_FILES)
    names, attributes = read_attributes(path)
    pictures, rows = match_rows(path, names, folder, listing.pictures)
    skipped = listing.others
    skipped["rows without a picture"] += len(names) - len(rows)

    path = require(root, *PARTITION_FILES)
    listed, splits = read_table(path)
    matched = zip(*match_rows(path, listed, folder, listing.pictures), strict=True)
    split_of = {picture.name: splits[row, 0] for picture, row in matched}
    partition = np.array([split_of[picture.name] for picture in pictures])
    bad = np.flatnonzero(~np.isin(partition, list(SPLITS.values())))
    if len(bad):
        value = f"{pictures[bad[0]].name} has {partition[bad[0]]}"
        raise ValueError(f"{path}: {value}; use 0 (train), 1 (val) or 2 (test)")
    labels = attributes[rows], CELEBA_ATTRIBUTES, partition
    return Labelled(root, "CelebA", pictures, *labels, +skipped, shuffled=False)


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


def read_attributes(path: Path) -> tuple[list[str], np.ndarray]:
    """N file names and attributes (N, 40), +1 or -1, of a list that says 1 and -1, or 1 and 0.

    Raises:
        ValueError: one line, for a list with other columns or values.
    """
    names, attributes = read_table(path, header=CELEBA_ATTRIBUTES)
    absent = -1 if (attributes == -1).any() else 0
    bad = np.argwhere((attributes != 1) & (attributes != absent))
    if len(bad):
        row, column = bad[0]
        value = f"{CELEBA_ATTRIBUTES[column]} is {attributes[row, column]}"
        raise ValueError(
            f"{path}: {value} for {names[row]}; attributes are 1 or -1, or 1 or 0 in the whole file"
        )
    return names, np.where(attributes == 1, 1, -1).astype(np.int32)


def read_table(path: Path, header: tuple[str, ...] | None = None) -> tuple[list[str], np.ndarray]:
    """The file names, and one row of whole numbers for each, of a label file. Empty rows are left out.

    Args:
        path: rows of a file name and its numbers. A .csv has a header.
        header: the columns. In a .txt, line 1 is the number of rows and line 2 names the columns. None:
            one column, and a .txt has no such lines.

    Returns:
        N names, int32 (N, columns).

    Raises:
        ValueError: one line that says which line of the file is wrong.
    """
    is_csv = path.suffix == ".csv"
    rows = csv_rows(path) if is_csv else _txt_rows(path)
    width = 1 if header is None else len(header)
    count: list[str] = []
    if header is not None and not is_csv:
        _, count = next(rows, (1, []))
    if header is not None or is_csv:
        line, columns = next(rows, (2, []))
        columns = columns[1:] if is_csv else columns
        if len(columns) != width:
            raise ValueError(f"{path} line {line} names {len(columns)} columns; CelebA has {width}")
        for number, (name, expected) in enumerate(zip(columns, header or columns, strict=True), 1):
            if name != expected:
                where = f"{path} line {line}: column {number}"
                raise ValueError(f"{where} is {name}; CelebA has {expected}")
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


def _txt_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and words of each line that has any."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            yield number, line.split()


def match_rows(
    path: Path, names: list[str], folder: Path, pictures: list[Picture]
) -> tuple[list[Picture], list[int]]:
    """The pictures that a label file's rows name, in the rows' order, and the numbers of those rows.

    Names may differ in their suffix: CelebA's lists say .jpg of its .png files, too.

    Raises:
        ValueError: where a picture has no row, no row has a picture, or one is named twice.
    """
    by_name = {picture.name: picture for picture in pictures}
    wanted = names
    if not any(name in by_name for name in names):
        by_name = {_stem(picture.name): picture for picture in pictures}
        wanted = [_stem(name) for name in names]
    rows = [row for row, name in enumerate(wanted) if name in by_name]
    spare = sorted(by_name.keys() - set(wanted))
    if spare:
        lacking = sorted(set(wanted) - by_name.keys())
        raise ValueError(
            f"{path} has {len(names)} rows and {folder.name}/ {len(pictures)} pictures: "
            f"{len(lacking)} rows without a picture{_first(lacking)}, {len(spare)} pictures without "
            f"a row{_first(spare)}; remove or restore them"
        )
    if len({*wanted}) < len(wanted):
        twice = names[wanted.index(Counter(wanted).most_common(1)[0][0])]
        raise ValueError(f"{path} lists {twice} twice; every picture has one row")
    if len(by_name) < len(pictures):
        raise ValueError(f"{folder} has two pictures of one name, with other suffixes; keep one of them")
    return [by_name[wanted[row]] for row in rows], rows


def _stem(name: str) -> str:
    """A file name without its suffix."""
    return os.path.splitext(name)[0]


def _first(names: list[str]) -> str:
    """The first names in brackets, for a message. Empty for no names."""
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


class CelebADataset(CachedDataset):
    """One split of a CelebA-layout folder as uint8 pictures and +-1 attributes, decoded only once.

    Args:
        root: the folder that holds img_align_celeba/ and the label files, or its parent, as torchvision
            leaves it.
        split: train, val or test.
        data_fraction: in (0, 1], a fixed random part, inside every larger one. Only its pictures are
            decoded and cached, so that a trial on 1 % costs 1 %.
        image_size, crop, cache_dir, num_workers: see `CachedDataset`.

    Raises:
        FileNotFoundError, ValueError: one line, for a layout or argument that is wrong.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str = "train",
        image_size: int = 64,
        crop: int = 178,
        data_fraction: float = 1.0,
        cache_dir: str | os.PathLike = "data/cache",
        num_workers: int | None = None,
    ) -> None:
        check_geometry(image_size, crop)
        source = read_celeba(root).part(split)
        super().__init__(source, image_size, crop, data_fraction, cache_dir, num_workers)


def download_celeba(root: str | os.PathLike) -> Path:
    """Fetch CelebA (for non-commercial research only) through torchvision. Returns its folder, checked.

    Raises:
        ValueError: one line that says how to get the files by hand, when anything fails.
    """
    folder = Path(root).expanduser() / "celeba"
    try:
        return read_celeba(root).root  # it is there already
    except (ValueError, FileNotFoundError):
        pass
    try:
        from torchvision.datasets import CelebA  # here, since it takes as long to import as torch

        CelebA(str(folder.parent), download=True)
        return read_celeba(root).root
    except Exception as error:  # quota, network, checksum, disk: the way out is the same
        reason = textwrap.shorten(str(error), 160) or type(error).__name__
        raise ValueError(
            f"could not download CelebA ({reason}); fetch {IMAGE_FOLDER}.zip, {ATTRIBUTE_FILES[0]} and "
            f"{PARTITION_FILES[0]} from {CELEBA_HOME}, put them in {folder} and unpack the zip there"
        ) from None
