"""Encode a dataset by a first stage, shard by shard, in the form that `image_data/encoded.py` reads.

A kill while it is written costs one shard at most.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from checkpoint import load_checkpoint, refusing, replace_file, save_atomically
from image_data.cached import ImageDataset
from image_data.encoded import FORMAT, MANIFEST, read_manifest, shard_names

FIRST_STAGE = "first_stage.pth"
SHARD = 512  # images


def describe(data: ImageDataset) -> dict:
    """What tells the images of one split from others: how many, and a hash of their files' names."""
    names = os.fsencode("\n".join(data.filenames))
    return {"count": len(data), "images": hashlib.sha256(names).hexdigest()[:12]}


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
        manifest: what is encoded, by what first stage, in plain values. ``splits`` has what ``describe``
            says of each split.

    Raises:
        ValueError: where the folder holds something else. Names what differs.
    """

    def __init__(self, folder: str | Path, manifest: dict):
        self.folder, self.manifest = Path(folder), {"format": FORMAT, "shard": SHARD, **manifest}
        self.file = self.folder / MANIFEST
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.file.is_file():
            present = read_manifest(self.file)
            for key, value in self.manifest.items():
                if present.get(key) != value:
                    raise ValueError(
                        f"{folder} was encoded with {key} {present.get(key)}, not {value}: choose "
                        "another --output_dir, or remove that folder"
                    )
        elif any(path.name[0] != "." for path in self.folder.iterdir()):  # a kill may leave .*.tmp
            raise ValueError(
                f"{folder} holds other files and no {MANIFEST}: choose another --output_dir"
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
        save_atomically(first_stage, self.folder / FIRST_STAGE)
        self._write_manifest(self.manifest | {"complete": True})


def first_stage_weights(folder: str | Path) -> dict[str, Tensor]:
    """The weights of an encoded dataset's first stage, with the mean and deviation of its latents."""
    path = Path(folder) / FIRST_STAGE
    with refusing(path, "first stage"):
        return load_checkpoint(path)["first_stage"]
