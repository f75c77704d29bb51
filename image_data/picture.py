"""One picture file as a model sees it: opened upright as RGB, cropped to a square, resized."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from config import CROPS, check_local, check_pulled

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")  # no EPS: it runs a program
MOST_PIXELS = 89_478_485  # Pillow warns of decompression bombs from here on
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of pictures, by the colour space of their profile
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")
DARK = 0.25  # numbers that end below this share of their range may have another range
# Tags of EXIF that say how a file's pixels are stored, and which way up.
LAYOUT = {*range(254, 267), *range(273, 282), 284, 317, *range(320, 326), 330, *range(338, 342)}
LAYOUT |= {347, *range(512, 522), *range(529, 533), 34377, 34675}
NOTE = "face-diffusion"  # keyword of the text chunk that says what made a picture
MOST_NOTE = 10_000  # characters
SAME_COLOUR = 2  # levels by which a profile may differ from sRGB and count as sRGB; by eye


def shortened(error: Exception) -> str:
    """What an error says, in one line of at most 160 characters. Its type, if it says nothing."""
    return textwrap.shorten(str(error), 160) or type(error).__name__


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
    if there is none.

    bare: the pixels as the file has them under its transparency, alpha. Both None without transparency.
    """

    pixels: Image.Image
    profile: bytes | None = None
    is_grey: bool = False  # the file has no colours
    bare: Image.Image | None = None
    alpha: Image.Image | None = None

    def in_srgb(self) -> Image.Image:
        """The pixels in sRGB, as models see them."""
        transform = into_srgb(self.profile) if self.profile else None
        return transform.apply(self.pixels) if transform else self.pixels

    def from_srgb(self, pixels: np.ndarray) -> np.ndarray:
        """Colours uint8 (H, W, 3) of sRGB as this picture's profile has them."""
        transform = out_of_srgb(self.profile) if self.profile else None
        return np.asarray(transform.apply(Image.fromarray(pixels))) if transform else pixels


def read_picture(file: str | os.PathLike | io.BytesIO, most_pixels: int | None = None) -> Opened:
    """A picture file in its own colours. Those of CMYK and grey profiles are converted to sRGB.
    FileNotFoundError, or ValueError for what is not a whole picture or has more than ``most_pixels``, by
    default ``MOST_PIXELS``."""
    if not isinstance(file, io.BytesIO):
        check_picture_file(file)
    try:
        with Image.open(file, formats=picture_formats()) as image:
            width, height = image.size
            limit = most_pixels or MOST_PIXELS
            if width * height > limit:
                raise ValueError(f"{width} x {height} pixels, more than {limit:,}: save it smaller")
            is_deep = ";16" in str(image.tile)  # 16 bits a colour, of which Pillow drops 8
            ImageOps.exif_transpose(image, in_place=True)
            if is_deep and image.mode in ("RGB", "RGBA", "LA"):
                _check_depth(image)
            return _to_rgb(image)
    except Exception as error:  # Pillow's decoders raise many types for a damaged file
        if not isinstance(file, io.BytesIO):
            check_pulled(file)
        raise ValueError(f"{file} is not a readable picture: {shortened(error)}") from None


def check_picture_file(path: str | os.PathLike, name: str = "picture") -> None:
    """Raise FileNotFoundError or ValueError for what is no file: an address, a folder, nothing."""
    check_local(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{name} {path} does not exist")
    if os.path.isdir(path):
        raise ValueError(f"{name} {path} is a folder: name one picture in it")
    if not os.path.isfile(path):  # reading a pipe would wait for its writer
        raise ValueError(f"{name} {path} is not a readable picture: it is no file")


@dataclass(frozen=True)
class Note:
    """What made a picture: values of flags, and the name and the hash of each file, by its flag."""

    settings: dict[str, Any]
    files: dict[str, tuple[str, str]]

    def check_files(self, files: Mapping[str, tuple[str, str]], flags: Sequence[str]) -> None:
        """Raise ValueError where one of these flags would bring another file than made the picture."""
        for flag in flags:
            then, now = (each.get(flag, ("none", "")) for each in (self.files, files))
            if then[1] != now[1]:
                was, got = (f"{name!r} {digest[:12]}".strip() for name, digest in (then, now))
                raise ValueError(
                    f"the picture was made with --{flag} {was}, and this is {got}: give the former"
                )


def read_facts(path: str | os.PathLike) -> dict[str, Any]:
    """The EXIF data and the resolution of a picture, as options of Pillow's ``save``. Without the
    orientation, which ``read_picture`` applies, without the thumbnail, and without how it is stored."""
    with Image.open(path, formats=picture_formats()) as image:
        exif, facts = image.getexif(), dict[str, Any]()
        turned = exif.get(ExifTags.Base.Orientation, 1) > 4
        sides = image.size[::-1] if turned else image.size
        with contextlib.suppress(Exception):  # Pillow cannot write every damaged one
            inner = exif.get_ifd(ExifTags.IFD.Exif) if ExifTags.IFD.Exif in exif else {}
            names = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)
            inner |= {tag: side for tag, side in zip(names, sides, strict=True) if tag in inner}
            for tag in LAYOUT & exif.keys():
                del exif[tag]
            if exif:
                facts["exif"] = exif.tobytes()
        dpi = [float(each) for each in image.info.get("dpi", ())]
        if len(dpi) == 2 and all(0 < each < 1e6 for each in dpi):
            facts["dpi"] = tuple(dpi[::-1] if turned else dpi)
    return facts


def write_note(path: str | os.PathLike, note: Note) -> None:
    """Add to a PNG file what made it, as JSON in a text chunk behind its header."""
    file = Path(path)
    data, body = file.read_bytes(), b"tEXt" + f"{NOTE}\0{json.dumps(asdict(note))}".encode()
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    part = file.with_name(f"{file.name}.part")  # so that the picture is whole whenever this ends
    part.write_bytes(data[:33] + chunk + data[33:])
    os.replace(part, file)


def read_note(path: str | os.PathLike) -> Note:
    """What ``write_note`` added to a picture. Anyone may have written it.

    Raises:
        FileNotFoundError, ValueError: for a file without one, or one of another form.
    """
    check_picture_file(path)
    try:
        with Image.open(path, formats=("PNG",)) as image:
            text = image.info.get(NOTE)
    except Exception as error:  # Pillow raises many types for a damaged file
        raise ValueError(f"{path} is not a readable PNG: {shortened(error)}") from None
    if not isinstance(text, str):
        raise ValueError(f"{path} does not say what made it: it has no text chunk {NOTE}")
    try:
        note: Any = json.loads(text) if len(text) <= MOST_NOTE else None
        settings, files = note["settings"], note["files"].items()
        names = {flag: (str(name)[:100], str(digest)[:64]) for flag, (name, digest) in files}
        if isinstance(settings, dict):
            return Note(settings, names)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{path} says what made it, but not as we write it")


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
    """The picture as RGB. Other ranges than 0 ... 255 are scaled; transparency shows white."""
    profile, is_grey = image.info.get("icc_profile"), image.mode in GREY
    bare = alpha = None
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        bare, alpha = image.convert("RGB"), image.getchannel("A")
        image = over_white(image)
    to_srgb = into_srgb(profile) if profile else None
    if to_srgb and to_srgb.input_mode == "RGB" and image.mode != "CMYK":
        image = image.convert("RGB")
        if out_of_srgb(profile):
            return Opened(image, profile, is_grey, bare, alpha)
    if to_srgb and to_srgb.input_mode == image.mode:
        return Opened(to_srgb.apply(image), None, is_grey, bare and to_srgb.apply(bare), alpha)
    return Opened(image.convert("RGB"), None, is_grey, bare, alpha)


def over_white(image: Image.Image) -> Image.Image:
    """A picture as RGB. What is transparent shows white."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16-bit numbers or floats as one of 0 ... 255. ValueError where neither its file
    nor its numbers say which is white."""
    values = np.asarray(image, np.float64)
    lowest, highest = values.min(), values.max()
    for black, white, is_sure in _ranges(image):
        is_dark = black < highest <= black + DARK * (white - black)
        if black <= lowest and highest <= white and (is_sure or not is_dark):
            shares = (values - black) / (white - black)
            if _tag(image, 262) == 0:  # white is 0
                shares = 1 - shares
            return Image.fromarray((255 * shares).round().astype(np.uint8))
    raise ValueError(
        f"its values lie in {lowest:g} ... {highest:g}, and the file does not say which is white: save "
        "it with 8 bits, or scale it to 0 ... 65535, floats to 0 ... 1"
    )


def _ranges(image: Image.Image) -> list[tuple[float, float, bool]]:
    """What may be black and white in a picture of numbers, the likeliest first; and whether its file
    says so."""
    black, white = _tag(image, 340, 280, usual=0), _tag(image, 341, 281)
    stated = [] if white is None or white <= black else [(black, white, True)]
    if image.mode == "F":
        return [*stated, (0, 1, True), (0, 255, False)]
    bits = _tag(image, 258, usual=16)
    bits = 16 if bits > 16 else bits - (_tag(image, 339) == 2)  # one is the sign
    # The tags of whole numbers are often those of the darkest and the brightest pixel.
    return [(0, 2**bits - 1, bits < 15), *stated]


def _tag(image: Image.Image, *tags: int, usual: Any = None) -> Any:
    """The first value of the first of these tags of a TIFF file."""
    values = getattr(image, "tag_v2", {})
    return next((np.ravel(values[tag])[0] for tag in tags if tag in values), usual)


def _check_depth(image: Image.Image) -> None:
    """Raise ValueError for colours of 16 bits of which only the lowest are used."""
    highest = max(image.getchannel(band).getextrema()[1] for band in image.getbands() if band != "A")
    if 0 < highest <= 255 * DARK:
        raise ValueError(
            f"its values end near {257 * highest} of 65535, as those of 12 bits in a file of 16: scale "
            "them to 0 ... 65535, or save it with 8 bits"
        )


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
