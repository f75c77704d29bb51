"""From picture files to a memory-mapped cache of pixels: cropping, resizing, decoding once."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import stat
import sys
import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

CROPS: tuple[int, ...] = (178, 148, 140, 128)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # no EPS, which would run a program
MOST_PIXELS = 89_478_485  # where Pillow begins to warn of decompression bombs
DECODING = "bilinear-1"  # part of every cache's key: change it when `decode_image` changes its pixels


def crop_box(width: int, height: int, crop: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a square `crop`, measured in CelebA's frame of 178 x 218 pixels.

    Another frame's box scales with its short side. 178, 148 and 140 are centred; 128 is centred at
    121/218 of the height: rows 57-185, columns 25-153 of CelebA (Song et al. 2020, arXiv:2010.02502).
    """
    short = min(width, height)
    side = max(1, round(crop / 178 * short))
    left = round((width - side) / 2)
    centre = height * 121 / 218 if crop == 128 else height / 2
    top = min(max(round(centre - side / 2), 0), height - side)
    return left, top, left + side, top + side


def check_geometry(image_size: int, crop: int) -> None:
    """Raise ValueError for a side or a crop that cannot be."""
    if not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"image_size is {image_size!r}; it must be a whole number of pixels above 0")
    if crop not in CROPS:
        raise ValueError(f"crop {crop!r} is not one of {', '.join(map(str, CROPS))}")


def open_picture(path: str | os.PathLike) -> Image.Image:
    """A picture file upright and as RGB over white; ValueError if it is not a whole one."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise ValueError("it is no file")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"picture {os.fspath(path)} does not exist") from None
    except Exception as error:  # Pillow's decoders raise many types, all meaning the same here
        reason = textwrap.shorten(str(error), 160) or type(error).__name__
        raise ValueError(f"{os.fspath(path)} is not a readable picture: {reason}") from None


def decode_image(path: str | os.PathLike, image_size: int, crop: int) -> np.ndarray:
    """uint8 (image_size, image_size, 3) of a picture file, as ``open_picture`` and ``to_square``."""
    return to_square(open_picture(path), image_size, crop)


def to_square(rgb: Image.Image, image_size: int, crop: int) -> np.ndarray:
    """The picture's crop as uint8 (image_size, image_size, 3), by Pillow's bilinear filter, whose
    support grows with the reduction: antialiased."""
    width, height = rgb.size
    square = rgb.crop(crop_box(width, height, crop))
    return np.array(square.resize((image_size, image_size), Image.Resampling.BILINEAR))


def _to_rgb(image: Image.Image) -> Image.Image:
    """The picture as RGB: 16-bit grey scaled rather than clipped, transparency over white."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int32).clip(0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def ensure_cache(
    cache: Path, slot: str, pictures: Sequence, image_size: int, crop: int, workers: int | None
) -> list[str]:
    """Builds `cache` and the .json beside it unless both are whole; the names it had to skip. Pictures
    have .name, .path and .stat(), as os.DirEntry has.

    One process builds while the others wait: the lock goes with its process, however that ends. The
    slot names root, split, size and crop; a file of the slot under another key is out of date.
    """
    import fcntl

    record_file = cache.with_suffix(".json")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with open(cache.parent / f"{slot}.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with contextlib.suppress(OSError, ValueError, KeyError):  # absent or cut short: build
                record = json.loads(record_file.read_text())
                if cache.stat().st_size == record["count"] * image_size * image_size * 3:
                    return record["skipped"]
            for stale in cache.parent.glob(f"{slot}-*"):
                stale.unlink()
            skipped = _build_cache(cache, pictures, image_size, crop, workers)
            record = {"count": len(pictures) - len(skipped), "skipped": skipped}
            record_file.write_text(json.dumps(record, indent=1))
            return skipped
    except OSError as error:
        raise ValueError(f"cannot write the picture cache: {error}; choose another cache_dir") from None


def _build_cache(
    cache: Path, pictures: Sequence, image_size: int, crop: int, workers: int | None
) -> list[str]:
    """Decodes the pictures into `cache`, uint8 (N, H, W, 3) end to end; the unreadable ones' names.

    Threads, because Pillow decodes and resizes outside the interpreter's lock, and because they
    need no main guard and cannot outlive their process. A window at a time bounds the memory.
    """
    from tqdm import tqdm

    def decode(chunk: Sequence) -> list[np.ndarray | ValueError | FileNotFoundError]:
        results: list[np.ndarray | ValueError | FileNotFoundError] = []
        for entry in chunk:
            try:
                results.append(decode_image(entry.path, image_size, crop))
            except (ValueError, FileNotFoundError) as error:
                results.append(error)
        return results

    workers = max(1, workers or os.cpu_count() or 1)
    broken: dict[str, str] = {}
    limit = max(10, len(pictures) // 100)
    temporary = cache.with_suffix(".tmp")
    try:
        with (
            open(temporary, "wb") as file,
            tqdm(total=len(pictures), desc=f"decoding to {cache.parent}", unit="img") as bar,
            ThreadPoolExecutor(workers) as pool,
        ):
            for start in range(0, len(pictures), 128 * workers):
                window = pictures[start : start + 128 * workers]
                chunks = [window[i : i + 32] for i in range(0, len(window), 32)]
                decoded = itertools.chain.from_iterable(pool.map(decode, chunks))
                for entry, picture in zip(window, decoded, strict=True):
                    if isinstance(picture, Exception):
                        broken[entry.name] = str(picture)
                    else:
                        file.write(picture.tobytes())
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

    Attribute values are no part of it: they are read from their file each time, never cached.
    """
    digest = hashlib.sha256(f"{DECODING} {image_size} {crop}\n".encode())
    for entry in pictures:
        found = entry.stat()
        digest.update(f"{entry.path} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
