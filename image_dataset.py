"""Pictures with attribute rows, in memory or in a memory-mapped cache: what every dataset is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from image_cache import check_geometry, ensure_cache, fingerprint

if TYPE_CHECKING:
    import torch

SPLITS: dict[str, int] = {"train": 0, "val": 1, "test": 2}  # as list_eval_partition.txt numbers them


def check_split(split: str) -> None:
    """Raise ValueError for what is none of SPLITS."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")


def chosen_rows(number: int, data_fraction: float) -> np.ndarray:
    """A fixed random part of `number` rows, in their order; smaller parts lie inside larger ones."""
    if not 0.0 < data_fraction <= 1.0:
        raise ValueError(f"data_fraction is {data_fraction}; it must be above 0 and at most 1")
    order = np.random.default_rng(0).permutation(number)
    return np.sort(order[: max(1, round(data_fraction * number))])


class ImageDataset:
    """A map-style dataset for ``DataLoader(dataset, collate_fn=dataset.collate)``, which gathers a batch
    in one indexing operation.

    Attributes: images uint8 (N, H, W, 3); attributes float32 (N, A) in [-1, 1], 0 unspecified;
    attribute_names; filenames; flips, whether a mirror image is as good; one_hot, whether every row
    has exactly one attribute, so that these are classes.
    """

    def __init__(
        self,
        images: np.ndarray,
        attributes: np.ndarray,
        attribute_names: Sequence[str],
        filenames: Sequence[str],
        flips: bool = True,
    ) -> None:
        import torch

        self.images, self.filenames = images, list(filenames)
        self.attributes = torch.from_numpy(np.asarray(attributes, np.float32))  # (N, A)
        self.attribute_names, self.flips = tuple(attribute_names), flips
        one_each = ((self.attributes == 1).sum(1) == 1) & (self.attributes != 0).all(1)
        self.one_hot = len(attribute_names) > 1 and bool(one_each.all())

    def __len__(self) -> int:
        return len(self.filenames)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """{"image": uint8 (H, W, 3), "attributes": float32 (A,)}."""
        return {key: values[0] for key, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """The pictures and attributes of many indices, in their order: what DataLoader calls."""
        import torch

        indices = np.asarray(indices, dtype=np.int64)
        return {
            "image": torch.from_numpy(self.images[indices]),  # (B, H, W, 3)
            "attributes": self.attributes[torch.from_numpy(indices)],  # (B, A)
        }

    @staticmethod
    def collate(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What ``__getitems__`` has gathered already."""
        return batch


@dataclass(frozen=True)
class Source:
    """The picture files of a split, with .name, .path and .stat(), in the folder root; their attributes
    (N, A)."""

    root: Path
    split: str
    pictures: Sequence
    attributes: np.ndarray
    attribute_names: Sequence[str]


class CachedDataset(ImageDataset):
    """Picture files, decoded once into a memory-mapped file under `cache_dir`, which the first process
    that needs it makes, and makes again when the source has changed.

    Args: source; image_size, pixels of the square result; crop, see `crop_box`; data_fraction in (0, 1],
    a fixed random part; cache_dir; num_workers, decoding threads (default: one per CPU core).
    Attributes: those of `ImageDataset`; skipped, the names of unreadable pictures that were left out;
    rows, which of the source's pictures are here.
    Raises: ValueError, one line, for an argument that is wrong or too many unreadable pictures.
    """

    def __init__(
        self,
        source: Source,
        image_size: int,
        crop: int,
        data_fraction: float,
        cache_dir: str | os.PathLike,
        num_workers: int | None = None,
    ) -> None:
        check_geometry(image_size, crop)
        chosen = chosen_rows(len(source.pictures), data_fraction)
        pictures = [source.pictures[row] for row in chosen]
        where = hashlib.sha256(str(source.root).encode()).hexdigest()[:12]
        slot = f"{source.split}_{100 * data_fraction:g}pct_{image_size}px_crop{crop}_{where}"
        key = fingerprint(pictures, image_size, crop)
        self._cache = Path(cache_dir).expanduser().resolve() / f"{slot}-{key}.u8"
        self.skipped = ensure_cache(self._cache, slot, pictures, image_size, crop, num_workers)
        broken = set(self.skipped)
        kept = [i for i, each in enumerate(pictures) if each.name not in broken]
        self.rows = chosen[kept]
        self._shape = (len(kept), image_size, image_size, 3)
        images = np.memmap(self._cache, np.uint8, "r", shape=self._shape)
        names = [pictures[i].name for i in kept]
        super().__init__(images, source.attributes[self.rows], source.attribute_names, names)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "images"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)  # a worker maps the file itself instead of receiving the pixels
        self.images = np.memmap(self._cache, np.uint8, "r", shape=self._shape)
