"""Any labelled images in the item contract of `ImageDataset`: what a folder holds, and how it is read.

Class labels become one-hot attributes, +1 for the class and -1 for the others. Pictures are made RGB,
cropped to a centre square of their short side (or less, see `crop_box`) and resized.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import textwrap
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from celeba_dataset import (
    CELEBA_ATTRIBUTES,
    IMAGE_FOLDER,
    CelebADataset,
    celeba_rows,
    check_signs,
    read_table,
)
from celeba_dataset import first_image as celeba_first_image
from image_cache import check_geometry, to_square
from image_dataset import SPLITS, CachedDataset, ImageDataset, Source, check_split, chosen_rows
from model_config import ModelConfig, check_attribute_names

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
            raise ValueError(f"{root} has no picture in the {split} split")
        return Source(root, split, [self.pictures[i] for i in rows], self.attributes[rows], self.names)


def recognise(root: Path) -> str:
    """Which kind of dataset a folder holds.

    Raises:
        FileNotFoundError: for no folder, or one that holds none.
        ValueError: for one that holds several.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"data root {root} is not a folder; give the one that holds the pictures"
        )
    signs = {
        "celeba": (IMAGE_FOLDER, f"celeba/{IMAGE_FOLDER}", "list_attr_celeba.txt"),
        "celebahq": (HQ_ANNOTATION,),
        "mnist": ("MNIST/raw", "raw/train-images-idx3-ubyte"),
        "cifar10": ("cifar-10-batches-py", "data_batch_1"),
        "folder": ANNOTATIONS,
    }
    found = [kind for kind, names in signs.items() if any((root / name).exists() for name in names)]
    if len(found) > 1:
        raise ValueError(f"{root} holds {' and '.join(found)}: give the folder of one of them")
    if found:
        return found[0]
    if any(path.is_dir() for path in root.iterdir()):
        return "folder"
    raise FileNotFoundError(
        f"{root} holds no CelebA, CelebA-HQ, MNIST or CIFAR-10, no class folders and no {ANNOTATIONS[0]}"
    )


def open_dataset(
    root: str | os.PathLike,
    split: str = "train",
    image_size: int = 64,
    crop: int = 178,
    data_fraction: float = 1.0,
    cache_dir: str | os.PathLike = "data/cache",
    kind: str | None = None,
    num_workers: int | None = None,
) -> ImageDataset:
    """One split of whatever labelled images a folder holds.

    Args: kind, celeba, celebahq, folder, mnist or cifar10 (default: what `recognise` says); the others
    as of `CelebADataset`.
    Raises: FileNotFoundError or ValueError, one line, for what cannot be read.
    """
    check_split(split)
    check_geometry(image_size, crop)
    root = Path(root).expanduser().resolve()
    kind = kind or recognise(root)
    if kind == "celeba":
        return CelebADataset(root, split, image_size, crop, data_fraction, cache_dir, num_workers)
    if _has_arrays(kind, root):
        return _in_memory(kind, root, split, image_size, crop, data_fraction)
    source = _labelled(kind, root).part(root, split)
    return CachedDataset(source, image_size, crop, data_fraction, cache_dir, num_workers)


def open_for(
    config: ModelConfig, root: str | os.PathLike, split: str, cache_dir: str | os.PathLike
) -> ImageDataset:
    """A split as a model of this configuration sees it; ValueError where its attributes are others."""
    data = open_dataset(root, split, config.image_size, config.crop, cache_dir=cache_dir)
    check_names(data.attribute_names, config.attribute_names, root)
    return data


def attribute_rows(root: str | os.PathLike, split: str = "test") -> tuple[np.ndarray, tuple[str, ...]]:
    """The attribute rows float32 (N, A) of a split and the attributes' names; no picture is decoded."""
    root = Path(root).expanduser().resolve()
    kind = recognise(root)
    if kind == "celeba":
        rows, names = celeba_rows(root, split), CELEBA_ATTRIBUTES
    elif _has_arrays(kind, root):
        _, classes, names = _arrays(kind, root, split)
        rows = one_hot(classes, len(names))
    else:
        source = _labelled(kind, root).part(root, split)
        rows, names = source.attributes, source.attribute_names
    return np.asarray(rows, np.float32), tuple(names)


def check_names(found: Sequence[str], expected: Sequence[str], root: str | os.PathLike) -> None:
    """ValueError unless a folder's attributes are those a model was trained on."""
    for theirs, ours in itertools.zip_longest(found, expected):
        if theirs != ours:
            raise ValueError(
                f"{root} has attribute {theirs} where the checkpoint has {ours}: give the data it was "
                "trained on, or such as has the same attributes"
            )


def first_image(root: str | os.PathLike, split: str = "test") -> Path | None:
    """The path of a split's first picture file; None for a dataset that is not kept in such."""
    root = Path(root).expanduser().resolve()
    kind = recognise(root)
    if kind == "celeba":
        return celeba_first_image(root, split)
    if _has_arrays(kind, root):
        return None
    return Path(_labelled(kind, root).part(root, split).pictures[0].path)


def one_hot(classes: np.ndarray, number: int) -> np.ndarray:
    """Class numbers (N,) as attributes (N, number): +1 for the class, -1 for the others."""
    return 2 * np.eye(number, dtype=np.int8)[classes] - 1


def held_out_splits(names: Sequence[str]) -> np.ndarray:
    """A split for each picture by a hash of its name, so that it keeps it when others come: HELD_OUT
    apart, half of it to validate and half to test."""
    drawn = np.array([zlib.crc32(name.encode()) / 2**32 for name in names])
    splits = np.full(len(names), SPLITS["train"])
    splits[drawn < HELD_OUT], splits[drawn < HELD_OUT / 2] = SPLITS["test"], SPLITS["val"]
    return splits


# -------------------------------------------------------------------- arrays that torchvision reads


def _has_arrays(kind: str, root: Path) -> bool:
    return kind == "mnist" or (kind == "cifar10" and _cifar_root(root) is not None)


def _cifar_root(root: Path) -> Path | None:
    """The folder that holds cifar-10-batches-py, of this folder or of itself."""
    return next((each for each in (root, root.parent) if (each / "cifar-10-batches-py").is_dir()), None)


def _arrays(kind: str, root: Path, split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Pictures (N, H, W) or (N, H, W, 3), class numbers (N,) and class names of MNIST or CIFAR-10 in
    torchvision's files. The test split is theirs; a twentieth of their training pictures validates."""
    from torchvision.datasets import CIFAR10, mnist

    try:
        if kind == "mnist":
            part = "t10k" if split == "test" else "train"
            raw = root / "MNIST" / "raw" if (root / "MNIST").is_dir() else root / "raw"
            pictures = mnist.read_image_file(str(raw / f"{part}-images-idx3-ubyte")).numpy()
            classes = mnist.read_label_file(str(raw / f"{part}-labels-idx1-ubyte")).numpy()
            names = tuple("0123456789")
        else:
            source = CIFAR10(str(_cifar_root(root)), train=split != "test")
            pictures, classes, names = source.data, np.array(source.targets), tuple(source.classes)
    except Exception as error:  # these readers raise anything, AssertionError among it
        reason = textwrap.shorten(str(error), 160) or type(error).__name__
        raise ValueError(f"{root} holds no whole {kind}, {split} split: {reason}") from None
    if (
        len(pictures) != len(classes)
        or classes.min(initial=0) < 0
        or classes.max(initial=0) >= len(names)
    ):
        raise ValueError(f"{root}: {len(pictures)} pictures and {len(classes)} labels do not match")
    if split != "test":
        validates = held_out_splits(list(map(str, range(len(pictures))))) == SPLITS["val"]
        kept = validates if split == "val" else ~validates
        pictures, classes = pictures[kept], classes[kept]
    return pictures, classes, names


def _in_memory(
    kind: str, root: Path, split: str, image_size: int, crop: int, data_fraction: float
) -> ImageDataset:
    """MNIST or CIFAR-10, kept in memory. Digits are not mirrored."""
    pictures, classes, names = _arrays(kind, root, split)
    rows = chosen_rows(len(pictures), data_fraction)
    images = [to_square(Image.fromarray(p).convert("RGB"), image_size, crop) for p in pictures[rows]]
    files = [f"{split}/{row}" for row in rows]
    attributes = one_hot(classes[rows], len(names))
    return ImageDataset(np.stack(images), attributes, names, files, flips=kind != "mnist")


# -------------------------------------------------------------------- picture files


def _labelled(kind: str, root: Path) -> Labelled:
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
    splits, drawn = np.array(splits), held_out_splits([each.name for each in pictures])
    for split in ("val", "test"):
        if split not in given:
            splits[(splits == SPLITS["train"]) & (drawn == SPLITS[split])] = SPLITS[split]
    check_attribute_names(names)
    return Labelled(pictures, one_hot(np.array(classes), len(names)), tuple(names), splits)


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
    given = set(splits) - {""}
    drawn = held_out_splits([each.name for each in pictures])
    for split in given:  # the rest trains
        drawn[drawn == SPLITS[split]] = SPLITS["train"]
    numbers = np.array([SPLITS.get(split, own) for split, own in zip(splits, drawn, strict=True)])
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
    return Picture(name, str(path))


def _celebahq(root: Path) -> Labelled:
    """CelebAMask-HQ's pictures and attributes; split as the CelebA pictures they were made of, where the
    mapping file is there."""
    names, attributes = read_table(root / HQ_ANNOTATION, header=CELEBA_ATTRIBUTES)
    check_signs(root / HQ_ANNOTATION, attributes)
    pictures = [_inside(root, f"{HQ_IMAGES}/{name}", HQ_ANNOTATION) for name in names]
    splits: np.ndarray = held_out_splits(names)
    if (root / HQ_MAPPING).is_file():
        lines = [line.split() for line in (root / HQ_MAPPING).read_text().splitlines()[1:]]
        origin = {f"{line[0]}.jpg": int(line[1]) for line in lines if len(line) >= 2}
        lacking = [name for name in names if name not in origin]
        if lacking:
            raise ValueError(f"{root / HQ_MAPPING} has no row for {lacking[0]}")
        origins = np.array([origin[name] for name in names])
        splits = np.digitize(origins, CELEBA_SPLIT_STARTS)
    return Labelled(pictures, attributes, CELEBA_ATTRIBUTES, splits)
