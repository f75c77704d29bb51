"""A dataset that a first stage has encoded once: the moments of its latents on disk, in shards.

`training/encoding.py` writes it. It is read in the same form as a dataset of pictures.

    folder/manifest.json            what was encoded, by what first stage, and whether all is there
    folder/first_stage.pth          the first stage with the mean and deviation of its latents
    folder/<split>_00000.npy ...    float16 (n, 2, 2 C, h, w): moments of images and mirror images
    folder/<split>_attributes.npy   int8 (N, A): +1, -1, 0 unspecified
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from attributes import columns_of
from config import check_pulled
from image_data.cached import ImageDataset, are_classes
from image_data.files import refusing_damaged

FORMAT = "encoded-images/2"
MANIFEST = "manifest.json"


def read_manifest(file: Path) -> dict:
    """The contents of manifest.json. ValueError where it is damaged."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        check_pulled(file)
        raise ValueError(f"{file} is damaged: encode again into another folder") from None


def shard_names(manifest: dict, split: str) -> list[str]:
    """The names of a split's shards, in order."""
    shards = -(-manifest["splits"][split]["count"] // manifest["shard"])
    return [f"{split}_{i:05d}.npy" for i in range(shards)]


class Shards:
    """Arrays in several files, read as one. Items are arrays (B, ...) for B row numbers."""

    def __init__(self, files: Sequence[Path]):
        self.parts = [np.load(file, mmap_mode="r") for file in files]
        self.ends = list(accumulate(map(len, self.parts)))

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        items = []
        for row in rows:
            part = bisect_right(self.ends, row)
            items.append(self.parts[part][row - self.ends[part]])  # counts from its end
        return np.stack(items)


class LatentDataset(ImageDataset):
    """One split of an encoded dataset. An item's ``image`` is float16 (2, 2 C, h, w): the moments of the
    image and of its mirror image. FileNotFoundError or ValueError where it is not whole.

    Attributes:
        folder: of the dataset.
        image_size, crop: of the pictures.
        first_stage: a dict with its ``kind``, ``config``, ``hash`` and ``judge``.
    """

    def __init__(self, folder: str | Path, split: str):
        self.folder = folder = Path(folder)
        file = folder / MANIFEST
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no {MANIFEST}: make it with encode_latents.py")
        manifest = read_manifest(file)
        if manifest.get("format") != FORMAT:
            raise ValueError(f"{file} is of format {manifest.get('format')!r}, not {FORMAT!r}")
        if not manifest.get("complete"):
            raise ValueError(f"{folder} is not whole: run the same encode_latents.py again to go on")
        with refusing_damaged(folder, "encoded dataset"):
            self.image_size, self.crop = manifest["image_size"], manifest["crop"]
            self.first_stage = manifest["first_stage"]
            shards = Shards([folder / name for name in shard_names(manifest, split)])
            attributes = np.load(folder / f"{split}_attributes.npy")
            if shards.ends[-1:] != [len(attributes)]:
                raise ValueError(
                    f"{folder} has {shards.ends[-1]} {split} images and {len(attributes)} rows of "
                    "attributes: encode again into another folder"
                )
            names = manifest["attribute_names"]
            super().__init__(shards, attributes, names, (), bool(manifest["flips"]))

    def keep(self, names: Sequence[str]) -> None:
        """Keep only these attributes, in their order. ValueError for one that it does not have."""
        columns = columns_of(self.attribute_names, names)
        self.attributes = self.attributes[:, columns]
        self.attribute_names = tuple(self.attribute_names[column] for column in columns)
        self.one_hot = are_classes(self.attributes.numpy())
