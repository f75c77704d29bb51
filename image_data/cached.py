"""What every dataset of pictures is: ``ImageDataset``, and its cache of decoded pictures on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from image_data.picture import check_geometry, decode_image, to_square

DECODING = "bilinear-2"  # part of every cache's key: change it when `decode_image` changes its pixels


def chosen_rows(number: int, data_fraction: float) -> np.ndarray:
    """A fixed random part of ``number`` rows, in their order. A larger part holds every smaller one.

    Raises:
        ValueError: unless 0 < data_fraction <= 1.
    """
    if not 0.0 < data_fraction <= 1.0:
        raise ValueError(f"data_fraction is {data_fraction}; it must be above 0 and at most 1")
    order = np.random.default_rng(0).permutation(number)
    return np.sort(order[: max(1, round(data_fraction * number))])


# -------------------------------------------------------------------- datasets


class ImageDataset:
    """Pictures with attribute rows, for ``DataLoader(dataset, collate_fn=dataset.collate)``.

    A batch is gathered in one indexing operation.

    Attributes:
        images: uint8 (N, H, W, 3).
        attributes: float32 (N, A) in [-1, 1], 0 unspecified.
        attribute_names: A names.
        filenames: N names.
        flips: whether a mirror image is as good as the image.
        one_hot: whether every row has exactly one attribute, so that the attributes are classes.
    """

    def __init__(
        self,
        images: np.ndarray,
        attributes: np.ndarray,
        attribute_names: Sequence[str],
        filenames: Sequence[str],
        flips: bool = True,
    ) -> None:
        self.images, self.filenames = images, list(filenames)
        self.attributes = torch.from_numpy(np.asarray(attributes, np.float32))  # (N, A)
        self.attribute_names, self.flips = tuple(attribute_names), flips
        self.one_hot = are_classes(self.attributes.numpy())

    def __len__(self) -> int:
        return len(self.filenames)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """{"image": uint8 (H, W, 3), "attributes": float32 (A,)}."""
        return {key: values[0] for key, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """The pictures and attributes of many indices, in their order. DataLoader calls this."""
        indices = np.asarray(indices, dtype=np.int64)
        return {
            "image": torch.from_numpy(self.images[indices]),  # (B, H, W, 3)
            "attributes": self.attributes[torch.from_numpy(indices)],  # (B, A)
        }

    @staticmethod
    def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch as it is: ``__getitems__`` has gathered it."""
        return batch


def are_classes(attributes: np.ndarray) -> bool:
    """Whether every row of attributes (N, A) has exactly one, and denies all others."""
    one_each = ((attributes == 1).sum(1) == 1) & (attributes != 0).all(1)
    return attributes.shape[1] > 1 and bool(one_each.all())


def random_flip(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Each picture of a uint8 batch (B, H, W, 3) mirrored left to right with probability 0.5. Of an
    encoded batch (B, 2, C, h, w), which holds the image and its mirror image, either half."""
    device = generator.device if generator is not None else images.device
    flip = torch.rand(len(images), generator=generator, device=device).to(images.device) < 0.5
    if images.ndim == 5:
        return images[torch.arange(len(images), device=images.device), flip.long()]
    return torch.where(flip[:, None, None, None], images.flip(2), images)


@dataclass(frozen=True)
class Source:
    """The pictures of a split and their attributes.

    root: the folder.
    pictures: N objects with the members of `image_data.files.Picture`, or an array.
    attributes: (N, A), under A names.
    flips: whether a mirror image is as good as the image.
    """

    root: Path
    split: str
    pictures: Sequence | np.ndarray
    attributes: np.ndarray
    attribute_names: tuple[str, ...]
    flips: bool = True


def array_dataset(source: Source, image_size: int, crop: int, data_fraction: float) -> ImageDataset:
    """The pictures of a source, an array (N, H, W) or (N, H, W, 3), as a dataset in memory."""
    check_geometry(image_size, crop)
    rows = chosen_rows(len(source.pictures), data_fraction)
    images = np.empty((len(rows), image_size, image_size, 3), np.uint8)
    for image, row in zip(images, rows, strict=True):
        image[...] = to_square(Image.fromarray(source.pictures[row]).convert("RGB"), image_size, crop)
    names = [f"{source.split}/{row}" for row in rows]
    return ImageDataset(images, source.attributes[rows], source.attribute_names, names, source.flips)


class CachedDataset(ImageDataset):
    """Picture files, decoded once into a memory-mapped file under ``cache_dir``.

    The first process that needs the file makes it. When the source changes, it is made again.

    Args:
        source: the pictures and their attributes.
        image_size: pixels of the square result.
        crop: see `crop_box`.
        data_fraction: in (0, 1], a fixed random part of the source.
        cache_dir: the folder of the cache.
        num_workers: decoding threads; None is one for each CPU core.

    Attributes:
        skipped: names of unreadable pictures, which are left out.

    Raises:
        ValueError: one line, for a wrong argument or too many unreadable pictures.
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
        root_hash = hashlib.sha256(os.fsencode(source.root)).hexdigest()[:12]
        slot = f"{source.split}_{100 * data_fraction:g}pct_{image_size}px_crop{crop}_{root_hash}"
        key = fingerprint(pictures, image_size, crop)
        self._cache = Path(cache_dir).expanduser().resolve() / f"{slot}-{key}.u8"
        self.skipped = ensure_cache(self._cache, slot, pictures, image_size, crop, num_workers)
        broken = set(self.skipped)
        kept = [i for i, picture in enumerate(pictures) if picture.name not in broken]
        self._shape = (len(kept), image_size, image_size, 3)
        images = np.memmap(self._cache, np.uint8, "r", shape=self._shape)
        names = [pictures[i].name for i in kept]
        attributes = source.attributes[chosen[kept]]
        super().__init__(images, attributes, source.attribute_names, names, source.flips)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "images"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)  # a worker maps the file itself, and is not sent the pixels
        self.images = np.memmap(self._cache, np.uint8, "r", shape=self._shape)


# -------------------------------------------------------------------- the cache


def ensure_cache(
    cache: Path, slot: str, pictures: Sequence, image_size: int, crop: int, workers: int | None
) -> list[str]:
    """Make the file ``cache``, with a record in a .json beside it, unless both are whole. Returns the
    names of unreadable pictures, which are left out.

    ``slot`` names split, size, crop and folder. Files of the slot with another key are out of date and
    are removed. One process builds while the others wait. The system frees the lock of a process that is
    killed, and the next process starts anew.

    Raises:
        ValueError: one line, where the cache cannot be written or too many pictures are unreadable.
    """
    record_file = cache.with_suffix(".json")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cache.parent / f"{slot}.lock"):
            with contextlib.suppress(OSError, ValueError, KeyError):  # missing or cut short: build it
                record = json.loads(record_file.read_text(encoding="utf-8"))
                if cache.stat().st_size == record["count"] * image_size * image_size * 3:
                    return record["skipped"]
            for stale in cache.parent.glob(f"{slot}-*"):
                with contextlib.suppress(PermissionError):  # Windows keeps a file that is in use
                    stale.unlink()
            skipped = _build_cache(cache, pictures, image_size, crop, workers)
            record = {"count": len(pictures) - len(skipped), "skipped": skipped}
            record_file.write_text(json.dumps(record, indent=1), encoding="utf-8")
            return skipped
    except OSError as error:
        raise ValueError(f"cannot write the picture cache: {error}; choose another cache_dir") from None


def _build_cache(
    cache: Path, pictures: Sequence, image_size: int, crop: int, workers: int | None
) -> list[str]:
    """Decode the pictures into ``cache``, uint8 (N, H, W, 3) end to end. Returns the unreadable ones'
    names.

    Threads suffice: Pillow decodes and resizes outside the interpreter's lock. They need no main guard
    and end with their process. One window of pictures at a time bounds the memory.
    """
    workers = max(1, workers or os.cpu_count() or 1)
    broken: dict[str, str] = {}
    limit = max(10, len(pictures) // 100)
    temporary = cache.with_suffix(".tmp")

    def decode(picture) -> np.ndarray | Exception:
        try:
            with picture.file() as path:
                return decode_image(path, image_size, crop)
        except (ValueError, FileNotFoundError) as error:
            return error

    try:
        with (
            open(temporary, "wb") as file,
            tqdm(total=len(pictures), desc=f"decoding to {cache.parent}", unit="img") as bar,
            ThreadPoolExecutor(workers) as pool,
        ):
            for start in range(0, len(pictures), 128 * workers):
                window = pictures[start : start + 128 * workers]
                for picture, pixels in zip(window, pool.map(decode, window), strict=True):
                    if isinstance(pixels, Exception):
                        broken[picture.name] = str(pixels)
                    else:
                        file.write(pixels.tobytes())
                    bar.update()
                if len(broken) > limit or len(broken) == len(pictures):
                    raise ValueError(
                        f"{len(broken)} of {start + len(window)} pictures cannot be read, too many to "
                        f"skip; fetch them again, first: {next(iter(broken.values()))}"
                    )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, cache)
    finally:
        temporary.unlink(missing_ok=True)
    if broken:
        print(f"skipped {len(broken)} unreadable pictures:", file=sys.stderr)
        print(*list(broken.values())[:5], sep="\n", file=sys.stderr)
    return list(broken)


def fingerprint(pictures: Sequence, image_size: int, crop: int) -> str:
    """A hash that changes with the choice of pictures and with their sizes and dates.

    Attribute values are no part of it. They are read from their file each time and never cached.
    """
    digest = hashlib.sha256(f"{DECODING} {image_size} {crop}\n".encode())
    for picture in pictures:
        status = picture.stat()
        digest.update(os.fsencode(f"{picture.path} {status.st_size} {status.st_mtime_ns}\n"))
    return digest.hexdigest()[:16]
