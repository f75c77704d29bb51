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
import torch
from torch import Tensor

from attributes import columns_of
from image_data.files import whole

FORMAT = "encoded-images/2"
MANIFEST = "manifest.json"


def read_manifest(file: Path) -> dict:
    """The contents of manifest.json. ValueError where it is damaged."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ValueError(f"{file} is damaged: encode again into another folder") from None


def shard_names(manifest: dict, split: str) -> list[str]:
    """The names of a split's shards, in order."""
    shards = -(-manifest["splits"][split]["count"] // manifest["shard"])
    return [f"{split}_{i:05d}.npy" for i in range(shards)]


class LatentDataset:
    """One split of an encoded dataset, with items like those of ``ImageDataset``. An item's ``image`` is
    float16 (2, 2 C, h, w): the moments of the image and of its mirror image.

    Attributes:
        attributes: float32 (N, A).
        attribute_names, flips, one_hot: as of ``ImageDataset``.
        image_size, crop: of the pictures.
        first_stage: a dict with its ``kind``, ``config``, ``hash`` and ``judge``.

    Raises:
        FileNotFoundError, ValueError: for a folder that is no encoded dataset, or not a whole one.
    """

    def __init__(self, folder: str | Path, split: str):
        self.folder, file = Path(folder), Path(folder) / MANIFEST
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no {MANIFEST}: make it with encode_latents.py")
        with whole(self.folder, "encoded dataset"):
            self._read(read_manifest(file), split)

    def _read(self, manifest: dict, split: str) -> None:
        folder = self.folder
        if manifest.get("format") != FORMAT:
            format = manifest.get("format")
            raise ValueError(f"{folder / MANIFEST} is of format {format!r}, not {FORMAT!r}")
        if not manifest.get("complete"):
            raise ValueError(f"{folder} is not whole: run the same encode_latents.py again to go on")
        self.image_size, self.crop = manifest["image_size"], manifest["crop"]
        self.first_stage, self.attribute_names = manifest["first_stage"], manifest["attribute_names"]
        self.flips, self.one_hot = bool(manifest["flips"]), bool(manifest["one_hot"])
        self._files = [folder / name for name in shard_names(manifest, split)]
        self._open()
        self.attributes = torch.from_numpy(np.load(folder / f"{split}_attributes.npy")).float()
        if self._ends[-1:] != [len(self.attributes)]:
            raise ValueError(
                f"{folder} has {self._ends[-1]} {split} images and {len(self.attributes)} rows of "
                "attributes: encode again into another folder"
            )

    def _open(self) -> None:
        self._shards = [np.load(file, mmap_mode="r") for file in self._files]
        self._ends = list(accumulate(map(len, self._shards)))

    def keep(self, names: Sequence[str]) -> None:
        """Keep only these attributes, in their order. ValueError for one that it does not have."""
        columns = columns_of(self.attribute_names, names)
        self.one_hot = self.one_hot and len(columns) == len(self.attribute_names)
        self.attributes = self.attributes[:, columns]
        self.attribute_names = [self.attribute_names[column] for column in columns]

    def __len__(self) -> int:
        return len(self.attributes)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """The moments and attributes of many indices, in their order. DataLoader calls this."""
        moments = []
        for index in indices:
            shard = bisect_right(self._ends, index)
            moments.append(self._shards[shard][index - self._ends[shard]])  # counts from its end
        return {
            "image": torch.from_numpy(np.stack(moments)),  # (B, 2, 2 C, h, w)
            "attributes": self.attributes[torch.as_tensor(indices)],  # (B, A)
        }

    @staticmethod
    def collate(batch: dict) -> dict[str, Tensor]:
        """The batch as it is: ``__getitems__`` has gathered it."""
        return batch

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("_shards", "_ends")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)  # a worker maps the files itself
        self._open()
