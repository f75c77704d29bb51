"""One picture file as a model sees it: opened upright as RGB, cropped to a square, resized."""

from __future__ import annotations

import io
import os
import stat
import textwrap
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageCms, ImageOps

from config import CROPS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")  # no EPS: it runs a program
MOST_PIXELS = 89_478_485  # Pillow warns of decompression bombs from here on
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of pictures, by the colour space of their profile
SAME_COLOUR = 2  # levels by which a profile may differ from sRGB and count as sRGB; by eye


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
    """(left, top, right, bottom) of a square with side ``crop``, in CelebA's frame of 178 x 218 pixels.

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


@dataclass(frozen=True)
class Opened:
    """A picture file, upright and as RGB over white. Its colours are those of an ICC profile, or of sRGB
    if there is none."""

    pixels: Image.Image
    profile: bytes | None = None

    def in_srgb(self) -> Image.Image:
        """The pixels in sRGB, as models see them."""
        transform = into_srgb(self.profile) if self.profile else None
        return transform.apply(self.pixels) if transform else self.pixels

    def from_srgb(self, pixels: np.ndarray) -> np.ndarray:
        """Colours uint8 (H, W, 3) of sRGB as this picture's profile has them."""
        transform = out_of_srgb(self.profile) if self.profile else None
        return np.asarray(transform.apply(Image.fromarray(pixels))) if transform else pixels


def read_picture(file: str | os.PathLike | io.BytesIO) -> Opened:
    """A picture file in its own colours. Those of CMYK and grey profiles are converted to sRGB.
    FileNotFoundError, or ValueError for what is not a whole picture or has more than ``MOST_PIXELS``."""
    try:
        if not isinstance(file, io.BytesIO) and not stat.S_ISREG(os.stat(file).st_mode):
            raise ValueError("it is no file")  # reading a pipe would wait for its writer
        with Image.open(file, formats=picture_formats()) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise ValueError(
                    f"{width} x {height} pixels, more than {MOST_PIXELS:,}: save it smaller"
                )
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"picture {file} does not exist") from None
    except Exception as error:  # Pillow's decoders raise many types for a damaged file
        reason = textwrap.shorten(str(error), 160) or type(error).__name__
        raise ValueError(f"{file} is not a readable picture: {reason}") from None


def open_picture(file: str | os.PathLike | io.BytesIO) -> Image.Image:
    """A picture file, upright, in sRGB and over white. Raises as ``read_picture``."""
    return read_picture(file).in_srgb()


def to_square(rgb: Image.Image, image_size: int, crop: int) -> np.ndarray:
    """The picture's crop as uint8 (image_size, image_size, 3). Pillow's filter widens when it reduces,
    so the result is antialiased."""
    width, height = rgb.size
    square = rgb.crop(crop_box(width, height, crop))
    return np.array(square.resize((image_size, image_size), Image.Resampling.BILINEAR))


def decode_image(file: str | os.PathLike | io.BytesIO, image_size: int, crop: int) -> np.ndarray:
    """A picture file as uint8 (image_size, image_size, 3): ``open_picture``, then ``to_square``."""
    return to_square(open_picture(file), image_size, crop)


def _to_rgb(image: Image.Image) -> Opened:
    """The picture as RGB. 16-bit grey is scaled, not clipped; transparency shows white."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int32).clip(0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    to_srgb = into_srgb(profile) if profile else None
    if to_srgb and to_srgb.input_mode == "RGB" and image.mode != "CMYK":
        image = image.convert("RGB")
        if out_of_srgb(profile):
            return Opened(image, profile)
    if to_srgb and to_srgb.input_mode == image.mode:
        return Opened(to_srgb.apply(image))
    return Opened(image.convert("RGB"))


# -------------------------------------------------------------------- colours


@lru_cache(maxsize=32)
def into_srgb(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours to sRGB, for pictures of the transform's ``input_mode``. None for a
    profile that is damaged, or as good as sRGB."""
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = MODES[own.profile.xcolor_space.strip()]
        transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ImportError, ValueError, KeyError):  # Pillow may lack LCMS
        return None
    if mode == "RGB":
        levels = np.linspace(0, 255, 9).astype(np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3)
        change = np.asarray(transform.apply(Image.fromarray(colours))).astype(int) - colours
        if np.abs(change).max() <= SAME_COLOUR:
            return None
    return transform


@lru_cache(maxsize=32)
def out_of_srgb(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """From sRGB to a profile's colours. None for a profile that goes one way only, as of scanners."""
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(ImageCms.createProfile("sRGB"), own, "RGB", "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
