"""Images as files: grids with captions, single images, GIFs."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from figures.grids import labelled_grid, save_gif, save_grid, save_image


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
