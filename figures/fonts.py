"""A font that has the characters of a text, or the text in characters that a font has."""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path

from PIL import ImageFont

LAST_RESORT = "lastresort"  # a font of boxes that say which script is missing


@cache
def pillow_font(size: int, file: str | None = None) -> ImageFont.FreeTypeFont:
    """A font file for Pillow, or its own font."""
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


def font_files() -> list[str]:
    """The fonts at hand: matplotlib's, which has European scripts and Arabic, then the system's."""
    from matplotlib import font_manager, get_data_path  # slow, and few texts need it

    own = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    system = sorted(font_manager.findSystemFonts(), key=lambda file: ("Sans" not in file, file))
    return [str(own), *(file for file in system if LAST_RESORT not in file.lower())]


@cache
def characters(file: str) -> frozenset[int]:
    """The codes of the characters that a font file has; none for a file that cannot be drawn with."""
    from matplotlib.ft2font import FT2Font

    try:
        pillow_font(12, file)  # fonts of coloured pictures have fixed sizes
        return frozenset(FT2Font(file).get_charmap())
    except Exception:  # a damaged font, for which both libraries raise many types
        return frozenset()


@cache
def legible(text: str) -> tuple[str, str | None]:
    """The text as it can be drawn, and the font file that has it; None: any font has it.

    Where no font at hand has all characters, those that are missing are spelled: a syllable by its
    sound, an ideograph by its number.
    """
    if text.isascii():
        return text, None
    codes = {ord(character) for character in text if not character.isspace()}
    files = font_files()
    for file in files:
        if codes <= characters(file):
            return text, file
    drawable = characters(files[0])
    return "".join(each if ord(each) in drawable else spelled(each) for each in text), files[0]


def spelled(character: str) -> str:
    """A character in Latin letters, by its name in Unicode: '한' (HANGUL SYLLABLE HAN) is 'han'."""
    name = unicodedata.name(character, "").split(" ")[-1]
    is_sound = name.isalpha() and name.isascii()
    return name.lower() if is_sound else f"U+{ord(character):04X}"


def make_legible(figure) -> None:
    """Give every text of a matplotlib figure a font that has it, and take its $ for dollars."""
    from matplotlib.text import Text

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [label.get_text() for label in axis.get_ticklabels()]
            drawable = [legible(label)[0] for label in labels]
            if drawable != labels:
                axis.set_ticklabels(drawable)
    for text in figure.findobj(Text):
        drawable, file = legible(text.get_text())
        text.set_text(drawable)
        text.set_parse_math(False)
        if file:
            text.get_fontproperties().set_file(file)
