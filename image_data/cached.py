"""What every dataset of pictures is: ``ImageDataset``, and its cache of decoded pictures on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from joblib import cpu_count
from torch import Tensor
from tqdm import tqdm

from image_data.files import Picture
from image_data.picture import decode_image

DECODING = "bilinear-3"  # part of every cache's key: change it when `decode_image` changes its pixels


class ImageDataset:
    """Pictures with attribute rows. train.py reads ``__getitems__``; a ``DataLoader`` of one's own takes
    ``collate_fn=dataset.collate``.

    Attributes:
        images: uint8 (N, H, W, 3), an array or what is indexed like one.
        attributes: float32 (N, A) in [-1, 1], 0 unspecified.
        attribute_names: A names.
        filenames: N names.
        flips: whether a mirror image is as good as the image.
        one_hot: whether the attributes are classes (``are_classes``).
    """

    def __init__(
        self,
        images: Any,
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
        return len(self.attributes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """{"image": uint8 (H, W, 3), "attributes": float32 (A,)}."""
        return {key: values[0] for key, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """The pictures and attributes of many indices, in their order, gathered at once."""
        rows = np.asarray(indices, dtype=np.int64)
        return {
            "image": torch.from_numpy(self.images[rows]),  # (B, H, W, 3)
            "attributes": self.attributes[torch.from_numpy(rows)],  # (B, A)
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


# -------------------------------------------------------------------- the cache


def open_cache(
    pictures: Sequence[Picture],
    slot: str,
    image_size: int,
    crop: int,
    cache_dir: str | os.PathLike,
    num_workers: int | None,
) -> tuple[np.ndarray, set[str]]:
    """Pictures as a memory-mapped file uint8 (N, image_size, image_size, 3) under ``cache_dir``, made
    unless it is there and whole; and the names of unreadable pictures, which are left out.

    Files of the slot with another ``fingerprint`` are out of date and are removed. One process builds
    while the others wait. The system frees the lock of a process that is killed, and the next process
    starts anew.

    Args:
        slot: names the folder, split, share, size and crop.
        num_workers: decoding threads; None is one for each CPU core.

    Raises:
        ValueError: one line, where the cache cannot be written or too many pictures are unreadable.
    """
    folder = Path(cache_dir).expanduser().resolve()
    cache = folder / f"{slot}-{fingerprint(pictures, image_size, crop)}.u8"
    record_file = cache.with_suffix(".json")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{slot}.lock"):
            record: dict[str, Any] = {}
            with contextlib.suppress(OSError, ValueError, KeyError):  # missing or cut short: build it
                stored = json.loads(record_file.read_text(encoding="utf-8"))
                if cache.stat().st_size == stored["count"] * image_size * image_size * 3:
                    record = stored
            if not record:
                for stale in folder.glob(f"{slot}-*"):
                    with contextlib.suppress(PermissionError):  # Windows keeps a file that is in use
                        stale.unlink()
                skipped = _build_cache(cache, pictures, image_size, crop, num_workers)
                record = {"count": len(pictures) - len(skipped), "skipped": skipped}
                record_file.write_text(json.dumps(record, indent=1), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write the picture cache: {error}; choose another cache_dir") from None
    shape = (record["count"], image_size, image_size, 3)
    return np.memmap(cache, np.uint8, "r", shape=shape), set(record["skipped"])


def _build_cache(
    cache: Path, pictures: Sequence[Picture], image_size: int, crop: int, workers: int | None
) -> list[str]:
    """Decode the pictures into ``cache``, end to end. Returns the unreadable ones' names.

    Threads suffice: Pillow decodes and resizes outside the interpreter's lock. They need no main guard
    and end with their process. One window of pictures at a time bounds the memory.
    """
    workers = max(1, workers or cpu_count())
    broken: dict[str, str] = {}
    limit = max(10, len(pictures) // 100)
    temporary = cache.with_suffix(".tmp")

    def decode(picture: Picture) -> np.ndarray | Exception:
        try:
            return decode_image(picture.file(), image_size, crop)
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


def fingerprint(pictures: Sequence[Picture], image_size: int, crop: int) -> str:
    """A hash that changes with the choice of pictures and with their sizes and dates.

    Attribute values are no part of it. They are read from their file each time and never cached.
    """
    digest = hashlib.sha256(f"{DECODING} {image_size} {crop}\n".encode())
    for picture in pictures:
        status = picture.stat()
        digest.update(os.fsencode(f"{picture.path} {status.st_size} {status.st_mtime_ns}\n"))
    return digest.hexdigest()[:16]
