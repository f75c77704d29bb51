"""A dataset that a first stage has encoded once: the moments of its latents on disk, in shards.

A kill while it is written costs one shard at most. It is read in the same form as a dataset of pictures.

    folder/manifest.json            what was encoded, by what first stage, and whether all is there
    folder/first_stage.pth          the first stage with the mean and deviation of its latents
    folder/<split>_00000.npy ...    float16 (n, 2, 2 C, h, w): moments of images and mirror images
    folder/<split>_attributes.npy   int8 (N, A): +1, -1, 0 unspecified
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attributes import columns_of
from checkpoint import load_checkpoint, refusing, replace_file, save_atomically

FORMAT = "encoded-images/2"
SHARD = 512  # images


def names_hash(filenames: list[str]) -> str:
    """A short hash of file names. It tells one list of images from another."""
    return hashlib.sha256(os.fsencode("\n".join(filenames))).hexdigest()[:12]


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


def encode_images(
    stage, autocast: AbstractContextManager, images: np.ndarray, batch_size: int, device: str
) -> Iterator[np.ndarray]:
    """The moments of images and of their mirror images, batch by batch.

    Args:
        stage: a `LatentFirstStage` on the device.
        autocast: the context that it computes in.
        images: uint8 (N, H, W, 3).

    Yields:
        float16 (batch_size or fewer, 2, 2 C, h, w).
    """
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(images[start : start + batch_size].copy()).to(device)
        with autocast:
            both = stage.moments(torch.cat([batch, batch.flip(2)]))
        yield torch.stack(both.chunk(2), dim=1).half().cpu().numpy()


class LatentWriter:
    """Writes an encoded dataset, and knows which shards are still missing.

    Args:
        folder: made if it does not exist. If it holds part of this dataset, the rest is written.
        manifest: what is encoded, by what first stage, in plain values. ``splits`` maps each split to
            its ``count`` of images and to ``images``, the hash of their names.

    Raises:
        ValueError: where the folder holds something else. Names what differs.
    """

    def __init__(self, folder: str | Path, manifest: dict):
        self.folder, self.manifest = Path(folder), {"format": FORMAT, "shard": SHARD, **manifest}
        self.file = self.folder / "manifest.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.file.is_file():
            found = read_manifest(self.file)
            for key, wanted in self.manifest.items():
                if found.get(key) != wanted:
                    raise ValueError(
                        f"{folder} was encoded with {key} {found.get(key)}, not {wanted}: choose "
                        "another --output_dir, or remove that folder"
                    )
        elif any(path.name[0] != "." for path in self.folder.iterdir()):  # a kill may leave .*.tmp
            raise ValueError(
                f"{folder} holds other files and no manifest.json: choose another --output_dir"
            )
        else:
            self._write_manifest(self.manifest)

    def _write_manifest(self, manifest: dict) -> None:
        replace_file(self.file, lambda file: file.write(json.dumps(manifest, indent=1).encode()))

    def missing(self, split: str) -> Iterator[tuple[str, range]]:
        """File name and image numbers of each shard of a split that is not written yet."""
        count, shard = self.manifest["splits"][split]["count"], self.manifest["shard"]
        for i, name in enumerate(shard_names(self.manifest, split)):
            if not (self.folder / name).is_file():
                yield name, range(i * shard, min((i + 1) * shard, count))

    def write(self, name: str, array: np.ndarray) -> None:
        """Write one array file."""
        replace_file(self.folder / name, lambda file: np.save(file, array))

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C,) of each channel of z over the training split.

        z is drawn from the posteriors, so var(z) = var(mean) + E[exp(logvar)].
        """
        count = total = square = 0.0
        for name in shard_names(self.manifest, "train"):
            moments = np.load(self.folder / name, mmap_mode="r").astype(np.float64)
            mean, logvar = np.split(moments, 2, axis=2)  # (n, 2, C, h, w)
            axes = (0, 1, 3, 4)
            count += mean[:, :, 0].size
            total, square = total + mean.sum(axes), square + (mean**2 + np.exp(logvar)).sum(axes)
        mean = total / count
        std = np.sqrt(square / count - mean**2)
        return torch.from_numpy(mean).float(), torch.from_numpy(std).float()

    def finish(self, first_stage: dict) -> None:
        """Write the first stage with its statistics, then a manifest that says that all is there."""
        save_atomically(first_stage, self.folder / "first_stage.pth")
        self._write_manifest(self.manifest | {"complete": True})


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
        self.folder, file = Path(folder), Path(folder) / "manifest.json"
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no manifest.json: make it with encode_latents.py")
        with refusing(folder, "encoded dataset"):
            self._read(read_manifest(file), split)

    def _read(self, manifest: dict, split: str) -> None:
        file, folder = self.folder / "manifest.json", self.folder
        if manifest.get("format") != FORMAT:
            raise ValueError(f"{file} is of format {manifest.get('format')!r}, not {FORMAT!r}")
        if not manifest.get("complete"):
            raise ValueError(f"{folder} is not whole: run the same encode_latents.py again to go on")
        self.image_size, self.crop = manifest["image_size"], manifest["crop"]
        self.first_stage, self.attribute_names = manifest["first_stage"], manifest["attribute_names"]
        self._files = [self.folder / name for name in shard_names(manifest, split)]
        self.attributes = torch.from_numpy(np.load(self.folder / f"{split}_attributes.npy")).float()
        self.flips, self.one_hot = bool(manifest["flips"]), bool(manifest["one_hot"])
        self._open()
        if self._ends[-1:] != [len(self.attributes)]:
            raise ValueError(
                f"{folder} has {self._ends[-1]} {split} images and {len(self.attributes)} rows of "
                "attributes: encode again into another folder"
            )

    def _open(self) -> None:
        self._shards = [np.load(file, mmap_mode="r") for file in self._files]
        self._ends = list(accumulate(map(len, self._shards)))

    def keep(self, names: Sequence[str]) -> None:
        """Leave these attributes alone, in their order. ValueError for one that is not there."""
        columns = columns_of(self.attribute_names, names)
        self.one_hot = self.one_hot and len(columns) == len(self.attribute_names)
        self.attributes = self.attributes[:, columns]
        self.attribute_names = [self.attribute_names[column] for column in columns]

    def first_stage_weights(self) -> dict[str, Tensor]:
        """The weights of the first stage, with the mean and deviation of its latents."""
        path = self.folder / "first_stage.pth"
        with refusing(path, "first stage"):
            return load_checkpoint(path)["first_stage"]

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
