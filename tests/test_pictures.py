"""Images as files: grids with captions, single images, GIFs."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from figures import fonts
from figures.grids import labelled_grid, save_gif, save_grid, save_image
from figures.plots import save_bars


def squares(number: int) -> np.ndarray:
    return np.stack([np.full((32, 32, 3), 40 * i + 10, np.uint8) for i in range(number)])


def test_grid_shows_every_image_in_its_place_with_its_label():
    page = np.asarray(labelled_grid(squares(5), ["one", "two", "", "four", "five"], 3, scale=1))
    for value in (10, 50, 90, 130, 170):
        assert (page == value).all(-1).sum() >= 32 * 32
    ys, xs = np.nonzero((page == 130).all(-1))
    assert ys.min() > 32 and xs.min() < 10, "the fourth image opens the second row"
    plain = labelled_grid(squares(5), [""] * 5, 3, scale=1)
    assert plain.height < page.shape[0], "captions take room"
    titled = labelled_grid(squares(5), [""] * 5, 3, scale=1, title="a title")
    assert titled.height > plain.height


def test_long_captions_wrap_to_the_image():
    short = labelled_grid(squares(1), ["Smiling"], 1)
    long = labelled_grid(squares(1), ["Smiling, not Male, Young, Blond_Hair, Wearing_Hat"], 1)
    assert long.width == short.width and long.height > short.height


def test_labels_must_match():
    with pytest.raises(ValueError, match="2 images but 1 labels"):
        labelled_grid(squares(2), ["one"], 2)


def test_files(tmp_path):
    images = squares(4)
    assert np.array_equal(Image.open(save_image(images[2], tmp_path / "a" / "i.png")), images[2])
    assert Image.open(save_grid(tmp_path / "b" / "g.png", images, [""] * 4, 2)).width > 64
    assert Image.open(save_gif(tmp_path / "c" / "a.gif", images)).n_frames == 6


DEJAVU = "DejaVuSans.ttf"
SPELLED = {"고양이": "goyangi", "猫": "U+732B", "ねこ 0.5": "neko 0.5", "x\udce9": "xU+DCE9"}


@pytest.fixture
def no_system_fonts(monkeypatch):
    monkeypatch.setattr(matplotlib.font_manager, "findSystemFonts", lambda: [])
    fonts.legible.cache_clear()
    yield monkeypatch
    fonts.legible.cache_clear()


def test_captions_are_never_boxes(no_system_fonts):
    """European scripts are in matplotlib's font. What no font has is spelled, or numbered."""
    assert fonts.legible("Smiling, not Male") == ("Smiling, not Male", None)
    for text in ("собака", "Café", "Καλός", "عربي"):
        shown, file = fonts.legible(text)
        assert shown == text and file.endswith(DEJAVU)
    for text, expected in SPELLED.items():
        assert fonts.legible(text)[0] == expected
    pages = [labelled_grid(squares(1), [text], 1, title=text) for text in ("собака", "кошкам")]
    assert np.asarray(pages[0]).shape == np.asarray(pages[1]).shape
    assert not np.array_equal(*map(np.asarray, pages)), "each letter has a shape of its own"


def test_a_system_s_font_is_used_where_it_has_the_characters(no_system_fonts, tmp_path):
    pen = TTGlyphPen(None)
    for step in (pen.moveTo, pen.lineTo, pen.lineTo):
        step((100 * len(pen.points), 700 if len(pen.points) == 1 else 0))
    pen.closePath()
    builder, glyphs = FontBuilder(1000), [".notdef", "han"]
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap({ord("한"): "han"})
    builder.setupGlyf(dict.fromkeys(glyphs, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (500, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Han", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "han.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    files = [str(tmp_path / name) for name in ("broken.ttf", "han.ttf")]
    no_system_fonts.setattr(matplotlib.font_manager, "findSystemFonts", lambda: files)
    assert fonts.legible("한") == ("한", files[1])
    assert fonts.legible("한 собака")[0] == "han собака", "one font for a text"
    assert labelled_grid(squares(1), ["한"], 1).height > 128


@pytest.mark.filterwarnings("error:Glyph")
def test_plots_of_any_names(no_system_fonts, tmp_path):
    names = ["собака", "고양이", "猫", "$1 to $2", "plain"]
    path = save_bars(tmp_path / "bars.png", {"한": np.linspace(0, 1, 5)}, names, "доля", "제목")
    assert path.is_file()
