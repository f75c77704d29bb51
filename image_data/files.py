"""What lies in a folder: picture files, and what is passed over. The text and rows of label files."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from config import composed
from image_data.picture import picture_formats

# What systems leave in folders, besides names that start with a dot.
SYSTEM_NAMES = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "lost+found"}
SYSTEM_NAMES |= {"$recycle.bin", "#recycle", "@eadir", "system volume information", "__pycache__"}
NOT_READ = {".pfm"}  # numbers without a fixed range, not levels
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
WAYS_OUT = {
    **dict.fromkeys((".heic", ".heif"), "pip install pillow-heif, or convert to JPEG"),
    **dict.fromkeys(ARCHIVES, "unpack"),
}
MOST_REASONS = 8  # that one line tells
DELIMITERS = (",", ";", "\t")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or the system's own."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


@cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes, in small letters with their dot, of the formats that Pillow reads here."""
    formats = picture_formats()
    found = {suffix for suffix, kind in Image.registered_extensions().items() if kind in formats}
    return frozenset(found - NOT_READ)


def checked_root(root: str | os.PathLike, holds: str) -> Path:
    """The folder that holds this, as an absolute path. FileNotFoundError if it is not a folder."""
    root = Path(root).expanduser().resolve()
    if not root.is_dir():
        unpack = "unpack it, and " if root.is_file() else ""
        raise FileNotFoundError(
            f"data root {root} is not a folder; {unpack}give the one that holds {holds}"
        )
    return root


# -------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Picture:
    """A picture file: its name within the dataset, and its path."""

    name: str
    path: str

    def stat(self) -> os.stat_result:
        """The size and date that show whether it has changed."""
        return os.stat(self.path)

    def file(self) -> AbstractContextManager[str]:
        """A context with the path of a file to decode."""
        return nullcontext(self.path)


@dataclass
class Listing:
    """The picture files below a folder, and how many other files were passed over for each reason."""

    pictures: list[Picture] = field(default_factory=list)
    others: Counter = field(default_factory=Counter)


def list_pictures(root: Path, deep: bool = True) -> Listing:
    """The picture files in a folder, sorted, with names relative to it.

    A file counts by its suffix. One without a suffix counts if it starts as a picture does. What is
    hidden or the system's own is passed over. Links to folders are followed, but no folder is read
    twice.

    Args:
        deep: look into the folders below, too.

    Raises:
        OSError: for a folder that may not be read.
    """
    listing, folders, seen = Listing(), [str(root)], set()
    suffixes, start = picture_suffixes(), len(os.path.join(root, ""))
    while folders:
        folder = folders.pop()
        found = os.stat(folder)
        if (found.st_dev, found.st_ino) in seen:
            continue
        seen.add((found.st_dev, found.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                suffix = _suffix(entry.name)
                try:
                    is_folder, is_file = entry.is_dir(), entry.is_file()
                except OSError:  # a link in a circle
                    is_folder = is_file = False
                if is_hidden(entry.name):
                    listing.others["hidden or system files"] += 1
                elif is_folder:
                    folders += [entry.path] if deep else []
                elif not is_file:
                    listing.others["broken link or no file"] += 1
                elif suffix in suffixes or (not suffix and _starts_as_picture(entry.path)):
                    listing.pictures.append(Picture(entry.path[start:], entry.path))
                else:
                    listing.others[suffix or "without a suffix"] += 1
    listing.pictures.sort(key=lambda picture: picture.name.replace(os.sep, "\0"))  # folder by folder
    return listing


def _suffix(name: str) -> str:
    """The suffix of a file name in small letters. A number is none: 'IMG_2020.07.31' has no suffix."""
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() if stem and suffix and not suffix.isdecimal() else ""


def _starts_as_picture(path: str) -> bool:
    """Whether a file's first bytes are those of a picture."""
    try:
        with Image.open(path, formats=picture_formats()):
            return True
    except Exception:  # Pillow's readers raise many types
        return False


def no_picture(folder: Path, listing: Listing) -> FileNotFoundError:
    """The error for a folder without a picture that can be read. It says what is there instead."""
    there = f" but {told(listing.others)}" if listing.others else ""
    return FileNotFoundError(f"{folder} has no picture that can be read{there}")


def told(reasons: Counter) -> str:
    """'12 .txt, 3 .heic (convert to JPEG)': what was passed over, the most frequent first."""
    parts = []
    for reason, number in sorted(reasons.items(), key=lambda each: (-each[1], each[0]))[:MOST_REASONS]:
        way_out = f" ({WAYS_OUT[reason]})" if reason in WAYS_OUT else ""
        parts.append(f"{number:,} {reason}{way_out}")
    rest = len(reasons) - MOST_REASONS
    return ", ".join(parts) + (f", and {rest} more kinds" if rest > 0 else "")


# -------------------------------------------------------------------- label files


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 as its first bytes say, normalised to NFC.

    Raises:
        ValueError: for other bytes.
    """
    data = path.read_bytes()
    encoding = "utf-8-sig"
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # starts as UTF-16 does
        encoding = "utf-32"
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        return composed(data.decode(encoding))
    except UnicodeDecodeError:
        raise ValueError(
            f"{path} is not a text file in UTF-8: save it as UTF-8, or fetch it again"
        ) from None


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row of a CSV, the header first. Rows of empty cells are left out,
    and so are empty cells behind the header's last. The header shows what separates cells: , ; or a tab.

    Raises:
        ValueError: one line, where it cannot be read, or a row has another number of cells.
    """
    text = read_text(path)
    first = text.lstrip().partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    width = 0
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            while cells and not cells[-1] and len(cells) > width:
                cells.pop()
            if not any(cells):
                continue
            width = width or len(cells)
            if len(cells) != width:
                raise ValueError(
                    f"{path} line {reader.line_num} has {len(cells)} columns, and its header {width}"
                )
            yield reader.line_num, cells
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num} cannot be read: {error}") from None
