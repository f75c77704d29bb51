"""What lies in a folder: picture files, and files of other kinds. The text and rows of label files."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from config import check_local, check_pulled, composed
from image_data.picture import picture_formats, shortened

# What systems leave in folders, besides names that start with a dot.
SYSTEM_NAMES = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "lost+found"}
SYSTEM_NAMES |= {"$recycle.bin", "#recycle", "@eadir", "system volume information", "__pycache__"}
ADVICE = {
    **dict.fromkeys((".heic", ".heif"), "pip install pillow-heif, or convert to JPEG"),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"), "unpack"),
}
MOST_REASONS = 8  # in one line, by eye
DRAWN_FACES = "synthetic_faces.json"  # python -m synthetic_faces leaves its recipe in this file


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or the system's own."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def checked_root(root: str | os.PathLike) -> Path:
    """A folder of pictures as an absolute path. FileNotFoundError if it is not a folder."""
    check_local(root)
    root = Path(root).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(f"data root {root} is no folder; give the one that holds the pictures")
    return root


@contextmanager
def refusing_damaged(root: Path, kind: str) -> Iterator[None]:
    """Turn any error from damaged files of this kind into one ValueError that names root."""
    try:
        yield
    except Exception as error:  # libraries raise many types, AssertionError among them
        if isinstance(error, ValueError) and str(root) in str(error):
            raise
        check_pulled(root)
        raise ValueError(f"{root} holds no whole {kind}: {shortened(error)}") from None


# -------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Picture:
    """A picture file: its name within the dataset, and its path."""

    name: str
    path: str

    def stat(self) -> os.stat_result:
        """The size and date that show whether it has changed."""
        return os.stat(self.path)

    def file(self) -> str | io.BytesIO:
        """What to decode: the path of a file, or its content."""
        return self.path


def list_pictures(root: Path, deep: bool = True) -> tuple[list[Picture], Counter]:
    """The picture files in a folder and, if ``deep``, below it, sorted, with names relative to it; and
    how many other files are passed over for each reason. OSError for a folder that may not be read.

    A file counts by its suffix. One without a suffix counts if it starts as a picture does. What is
    hidden or the system's own is passed over. Links are followed, but no folder is read twice.
    """
    pictures, passed_over = list[Picture](), Counter[str]()
    folders, visited = [str(root)], set()
    start = len(os.path.join(root, ""))
    while folders:
        folder = folders.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                reason = _reason_to_pass_over(entry)
                if reason:
                    passed_over[reason] += 1
                elif not entry.is_dir():
                    pictures.append(Picture(entry.path[start:], entry.path))
                elif deep:
                    folders.append(entry.path)
    pictures.sort(key=lambda picture: picture.name.replace(os.sep, "\0"))  # folder by folder
    return pictures, passed_over


def _reason_to_pass_over(entry: os.DirEntry) -> str:
    """Why this is neither a picture nor a folder to look into. Empty if it is one of them."""
    if is_hidden(entry.name):
        return "hidden or system files"
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:  # a link in a circle
        return "broken link or no file"
    if is_folder:
        return ""
    if not is_file:
        return "broken link or no file"
    stem, _, suffix = entry.name.rpartition(".")
    if stem and suffix and not suffix.isdecimal():  # as in IMG_2020.07.31
        suffix = f".{suffix.lower()}"
        return "" if suffix in picture_suffixes() else suffix
    try:
        with Image.open(entry.path, formats=picture_formats()):
            return ""
    except Exception:  # Pillow's readers raise many types
        return "without a suffix"


@cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes of the formats that Pillow reads here: .jpg, ..."""
    formats = picture_formats()
    return frozenset(s for s, name in Image.registered_extensions().items() if name in formats)


def no_picture(folder: Path, passed_over: Counter) -> FileNotFoundError:
    """The error for a folder without a picture that can be read. It names what else is there."""
    others = f" but {in_words(passed_over)}" if passed_over else ""
    return FileNotFoundError(f"{folder} has no picture that can be read{others}")


def in_words(passed_over: Counter) -> str:
    """'12 .txt, 3 .zip (unpack)': how many are passed over for each reason, the most first."""
    parts = []
    for reason, number in Counter(dict(sorted(passed_over.items()))).most_common(MOST_REASONS):
        advice = f" ({ADVICE[reason]})" if reason in ADVICE else ""
        parts.append(f"{number:,} {reason}{advice}")
    return ", ".join(parts) + (", ..." if len(passed_over) > MOST_REASONS else "")


# -------------------------------------------------------------------- label files


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 where its first bytes say so, normalised to NFC.
    ValueError for other bytes."""
    check_pulled(path)
    data = path.read_bytes()
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return composed(data.decode("utf-16" if is_utf16 else "utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(
            f"{path} is not a text file in UTF-8: save it as UTF-8, or fetch it again"
        ) from None


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row of a CSV, the header first. Rows of empty cells are left out,
    and so are empty cells behind the header's last. The header shows what separates cells: , ; or a tab.
    ValueError, one line, where it cannot be read, or a row has another number of cells.
    """
    text = read_text(path)
    header = text.lstrip().partition("\n")[0]
    delimiter = max(",", ";", "\t", key=header.count)
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
