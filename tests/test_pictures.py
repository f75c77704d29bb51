"""Images as files: grids with captions, single images, GIFs."""

from __future__ import annotations

from itertools import combinations

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from attributes import CELEBA_ATTRIBUTES
from figures import fonts, grids
from figures.grids import caption, labelled_grid, readable, save_gif, save_grid, save_image
from figures.plots import save_bars, save_curves, save_matrix, save_scatter
from figures.unet_drawing import save_unet_drawing
from unet_model import ConditionalUNet


def squares(number: int) -> np.ndarray:
    return np.stack([np.full((32, 32, 3), 40 * i + 10, np.uint8) for i in range(number)])


@pytest.mark.parametrize(
    ("number", "columns", "title"),
    [(2000, 8, "a title (128 of 2,000 images)"), (2000, 1000, ""), (9000, 90, ""), (130, 130, "")],
)
def test_a_large_grid_shows_some_of_its_images_and_says_so(monkeypatch, number, columns, title):
    """Images of their own number as colour. Rows and columns stay whole."""
    texts, draw = [], grids._wrapped
    monkeypatch.setattr(grids, "_wrapped", lambda text, *more: texts.append(text) or draw(text, *more))
    monkeypatch.setattr(grids, "MOST_PIXELS", 130 * 16 * 16)
    images = np.zeros((number, 16, 16, 3), np.uint8)
    images[:, ..., :2] = np.stack(np.divmod(np.arange(number), 256), 1)[:, None, None]
    labelled_grid(images, [f"label {i}" for i in range(number)], columns, "a title", scale=1)
    labels = [int(text.split()[1]) for text in texts if text.startswith("label")]
    (said,) = (text for text in texts if text.startswith("a title"))
    if number == 130:
        assert labels == list(range(130)) and said == "a title"
        return
    assert len(labels) <= 130 and said == f"a title ({len(labels)} of {number:,} images)"
    assert not title or said == title
    rows, across = ({*values} for values in np.divmod(labels, columns))
    assert len(labels) == len(rows) * len(across), "whole rows and columns"
    assert labels[0] == 0 and labels[-1] == number - 1


def test_a_grid_of_ten_thousand_can_be_opened(tmp_path):
    images = np.zeros((10_000, 2, 2, 3), np.uint8)
    path = save_grid(tmp_path / "grid.png", images, [""] * len(images), 8)
    with Image.open(path) as page:
        assert 20e6 < page.width * page.height < 60e6


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
    short = labelled_grid(squares(1), ["Smiling"], 1)
    long = labelled_grid(squares(1), ["Smiling, not Male, Young, Blond_Hair, Wearing_Hat"], 1)
    assert long.width == short.width and long.height > short.height, "long captions wrap to the image"
    with pytest.raises(ValueError, match="2 images but 1 labels"):
        labelled_grid(squares(2), ["one"], 2)


LONG = ("Mouth_Slightly_Open", "5_o_Clock_Shadow", "Male", "Wearing_Necklace", "Bags_Under_Eyes")
LONG += ("No_Beard",)


def test_captions_are_words():
    request = {"Mouth_Slightly_Open": 1, "Male": 0, "Young": 0.5}
    assert caption(request) == "mouth slightly open, not male, young 0.5"
    assert caption({"5_o_Clock_Shadow": 1, "No_Beard": 0}) == "5 o'clock shadow, beard"
    assert caption({"BMW": 1, "T-shirt": 0}) == "BMW, not T-shirt"
    assert caption({}) == "anything"


@pytest.mark.parametrize("side", [28, 64, 128])
@pytest.mark.parametrize(
    "label", [caption(dict.fromkeys(LONG, 1)), "Donaudampfschiffahrtsgesellschaft" * 2]
)
def test_a_caption_stays_below_its_own_image(side, label):
    white = np.full((3, side, side, 3), 255, np.uint8)
    page = np.asarray(labelled_grid(white, ["", label, ""], 3))
    inked = np.nonzero((page < 128).any((0, 2)))[0]
    assert len(inked) and page.shape[1] / 3 < inked.min() and inked.max() < page.shape[1] * 2 / 3
    alone = np.asarray(labelled_grid(white[:1], [""], 1, title=label))
    assert (alone[:, [0, -1]] == 255).all() and (alone < 128).any(), "so does a title"


def test_files(tmp_path):
    images = squares(4)
    assert np.array_equal(Image.open(save_image(images[2], tmp_path / "a" / "i.png")), images[2])
    assert Image.open(save_grid(tmp_path / "b" / "g.png", images, [""] * 4, 2)).width > 64
    assert Image.open(save_gif(tmp_path / "c" / "a.gif", images)).n_frames == 6


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
        drawable, file = fonts.legible(text)
        assert drawable == text and file.endswith("DejaVuSans.ttf")
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


@pytest.fixture
def drawn(monkeypatch):
    """The pages of the figures that would be saved, with the box of every text in pixels."""
    figures, texts, draw = [], [], Text.draw

    def note(text, renderer):
        texts.append(text)
        draw(text, renderer)

    def look(figure, path, **_):
        texts.clear()
        figure.draw_without_rendering()
        visible = [text for text in texts if text.get_visible() and text.get_text().strip()]
        figures.append((figure.bbox, [(text.get_text(), text.get_window_extent()) for text in visible]))

    monkeypatch.setattr(Text, "draw", note)
    monkeypatch.setattr(Figure, "savefig", look)
    return figures


@pytest.mark.parametrize("number", [2, 40])
def test_no_text_of_a_plot_is_cut_or_lies_on_another(drawn, tmp_path, number):
    names = [readable(name) for name in LONG + CELEBA_ATTRIBUTES][:number]
    values = np.linspace(0, 1, number)
    title = "Semantic latents of 1000 test images (a_checkpoint_with_quite_a_long_name.pth)"
    splits = {f"{split}, 18000 images": values for split in ("train", "val", "test")}
    save_bars(tmp_path / "bars.png", splits, names, "share of images", title)
    save_matrix(tmp_path / "matrix.png", np.outer(values, values), names, title)
    curves = {f"ddim, guide scale {i}, request whole": [(0, 1, 2), (1, 2, 3)] for i in range(4)}
    save_curves(tmp_path / "curves.png", curves, "step", ["Fréchet distance", "request met"], title)
    points = {("PCA", "component 1 (15 %)", ""): np.stack([values, values], 1)}
    save_scatter(tmp_path / "scatter.png", points, values > 0.5, names[0], title)
    for page, boxes in drawn:
        for text, box in boxes:
            assert page.x0 <= box.x0 and box.x1 <= page.x1, f"{text} is cut"
            assert page.y0 <= box.y0 and box.y1 <= page.y1, f"{text} is cut"
        for (one, first), (two, second) in combinations(boxes, 2):
            assert not first.padded(-1).overlaps(second.padded(-1)), f"{one} lies on {two}"


def test_the_unet_s_boxes_hold_their_text(drawn, tmp_path):
    unet = ConditionalUNet(3, (32, 64), 40, 8, 2, (1,), (1,), num_heads=2)
    save_unet_drawing(tmp_path / "unet", unet, 64, "a model")
    _, texts = drawn[0]
    assert len([text for text, _ in texts if "residual +" in text]) == 5
    for text, box in texts:
        assert box.width < 2.4 * 100 or text.startswith("UNet"), f"{text} is wider than its box"
    for (one, first), (two, second) in combinations(texts, 2):
        assert not first.overlaps(second), f"{one} lies on {two}"
