"""One picture file as a model sees it: opened upright as RGB, cropped to a square, resized."""

from __future__ import annotations

import os
import stat
import textwrap
from functools import cache

import numpy as np
from PIL import Image, ImageOps

from config import CROPS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")  # no EPS: it runs a program
MOST_PIXELS = 89_478_485  # Pillow warns of decompression bombs from here on


@cache
def picture_formats() -> tuple[str, ...]:
    """The formats that are read: FORMATS, and HEIF where the library pillow-heif is installed."""
    try:
        import pillow_heif
    except ImportError:
        return FORMATS
    pillow_heif.register_heif_opener()
    return *FORMATS, "HEIF"


def crop_box(width: int, height: int, crop: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a square with side ``crop``, measured in CelebA's frame of 178 x 218
    pixels.

    In another frame the box scales with the short side. 178, 148 and 140 are centred. 128 is centred at
    121/218 of the height: rows 57-185, columns 25-153 of CelebA (Song et al. 2020, arXiv:2010.02502).
    """
    short = min(width, height)
    side = max(1, round(crop / 178 * short))
    left = round((width - side) / 2)
    centre = height * 121 / 218 if crop == 128 else height / 2
    top = min(max(round(centre - side / 2), 0), height - side)
    return left, top, left + side, top + side


def check_geometry(image_size: int, crop: int) -> None:
    """Raise ValueError for an impossible image size or an unknown crop."""
    if not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"image_size is {image_size!r}; it must be a whole number of pixels above 0")
    if crop not in CROPS:
        raise ValueError(f"crop {crop!r} is not one of {', '.join(map(str, CROPS))}")


def open_picture(path: str | os.PathLike) -> Image.Image:
    """A picture file, upright and as RGB over white.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a whole picture, or has more than ``MOST_PIXELS`` pixels.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would wait for its writer
            raise ValueError("it is no file")
        with Image.open(path, formats=picture_formats()) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"picture {os.fspath(path)} does not exist") from None
    except Exception as error:  # Pillow's decoders raise many types for a damaged file
        reason = textwrap.shorten(str(error), 160) or type(error).__name__
        raise ValueError(f"{os.fspath(path)} is not a readable picture: {reason}") from None


def decode_image(path: str | os.PathLike, image_size: int, crop: int) -> np.ndarray:
    """A picture file as uint8 (image_size, image_size, 3): ``open_picture``, then ``to_square``."""
    return to_square(open_picture(path), image_size, crop)


def to_square(rgb: Image.Image, image_size: int, crop: int) -> np.ndarray:
    """The picture's crop as uint8 (image_size, image_size, 3).

    Pillow's bilinear filter widens when it reduces, so the result is antialiased.
    """
    width, height = rgb.size
    square = rgb.crop(crop_box(width, height, crop))
    return np.array(square.resize((image_size, image_size), Image.Resampling.BILINEAR))


def _to_rgb(image: Image.Image) -> Image.Image:
    """The picture as RGB. 16-bit grey is scaled, not clipped; transparency shows white."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int32).clip(0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
