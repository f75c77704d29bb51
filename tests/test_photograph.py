"""Photographs into the model's square and back: any file, alignment, pasting."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from image_data.photograph import CELEBA_LANDMARKS, CELEBA_SIZE, Photograph, similarity
from image_data.picture import crop_box, decode_image


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture: random colours, magnified."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def save(picture: Image.Image, path, **options):
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("size", [(178, 218), (400, 300), (30, 30)])
def test_without_landmarks_it_is_the_dataset_s_square(tmp_path, size):
    path = save(scene(*size), tmp_path / "a.png")
    for crop in (178, 128):
        seen = Photograph(path, 64, crop)
        np.testing.assert_array_equal(seen.square, decode_image(path, 64, crop))
        left, top, right, bottom = crop_box(*size, crop)
        np.testing.assert_allclose(seen._corners()[[0, 3]], [(left, top), (right, bottom)])


def test_similarity_recovers_a_rotation_scale_and_shift():
    points = np.random.default_rng(0).normal(size=(5, 2))
    angle, scale, shift = 0.3, 2.5, np.array([4.0, -7.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = similarity(points, points @ turn.T + shift)
    np.testing.assert_allclose(found, np.column_stack([turn, shift]), atol=1e-12)


@pytest.mark.parametrize("angle", [0, 20, -35])
def test_landmarks_bring_the_face_where_celeba_s_are(tmp_path, angle):
    """A picture in CelebA's frame, turned and enlarged, comes back as it was."""
    upright = scene(*CELEBA_SIZE)
    expected = Photograph(save(upright, tmp_path / "up.png"), 64, 128).square
    large = upright.resize((CELEBA_SIZE[0] * 3, CELEBA_SIZE[1] * 3), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (900, 900), "grey")
    canvas.paste(large, (180, 120))
    turned = canvas.rotate(angle, Image.Resampling.BICUBIC, center=(450, 450))
    radians = np.deg2rad(angle)  # Pillow turns anticlockwise, y pointing down
    turn = np.array([[np.cos(radians), np.sin(radians)], [-np.sin(radians), np.cos(radians)]])
    points = (CELEBA_LANDMARKS * 3 + (180, 120) - 450) @ turn.T + 450 - 0.5
    seen = Photograph(save(turned, tmp_path / "turned.png"), 64, 128, points.ravel())
    error = np.abs(seen.square.astype(int) - expected).mean()
    assert error < 2, f"mean error {error:.2f} of 255"


def test_a_face_at_the_edge_goes_on_beyond_the_picture(tmp_path):
    path = save(Image.new("RGB", CELEBA_SIZE, (200, 100, 50)), tmp_path / "a.png")
    seen = Photograph(path, 32, 178, (CELEBA_LANDMARKS - (50, 20)).clip(0).ravel())
    assert np.abs(seen.square.astype(int) - (200, 100, 50)).max() <= 1


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        ([1.0] * 8, "5 points"),
        ([5.0] * 10, "different points"),
        ([1000.0, *range(9)], "do not lie in the 60x50 picture"),
        ([float("nan"), *range(9)], "do not lie"),
    ],
)
def test_landmarks_that_do_not_fit_are_refused(tmp_path, landmarks, message):
    with pytest.raises(ValueError, match=message):
        Photograph(save(scene(60, 50), tmp_path / "a.png"), 32, 178, landmarks)


@pytest.mark.parametrize("aligned", [False, True])
def test_pasting_changes_what_the_edit_changed(tmp_path, aligned):
    path = save(scene(600, 500), tmp_path / "a.png")
    points = (CELEBA_LANDMARKS * 1.5 + (150, 60)).ravel() if aligned else None
    seen = Photograph(path, 64, 128, points)
    original = np.asarray(seen.picture)
    np.testing.assert_array_equal(np.asarray(seen.paste(seen.square)), original)

    middle = seen.square.astype(int)
    middle[24:40, 24:40] = np.clip(middle[24:40, 24:40] + 40, 0, 255)
    pasted = np.asarray(seen.paste(middle.astype(np.uint8))).astype(int)
    change = np.abs(pasted - original).max(2)
    at = (seen.matrix @ [32, 32, 1]).astype(int)
    assert change[at[1], at[0]] >= 30
    corners = seen._corners()
    inside = np.zeros(change.shape, bool)
    inside[int(corners[0, 1]) : int(corners[3, 1]), int(corners[0, 0]) : int(corners[3, 0])] = True
    assert not change[~inside].any()
    all_white = np.asarray(seen.paste(np.full_like(seen.square, 255))).astype(int)
    border = int(np.ceil(corners[0, 1])), int(at[0])
    assert np.abs(all_white[border] - original[border]).max() < 25, "it fades in, without a seam"


def test_any_file_is_edited_or_refused_in_one_line(tmp_path, monkeypatch):
    large = scene(400, 300)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    upright = Photograph(save(large, tmp_path / "exif.jpg", exif=exif), 32, 178)
    assert upright.picture.size == (300, 400)
    Photograph(save(large.convert("P"), tmp_path / "palette.png"), 32, 178)
    grey = Image.fromarray((np.linspace(0, 65535, 64 * 64).reshape(64, 64)).astype(np.uint16))
    assert np.ptp(Photograph(save(grey, tmp_path / "grey16.png"), 32, 178).square) > 200
    frames = [scene(50, 50, seed) for seed in range(3)]
    animated = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert Photograph(animated, 32, 178).picture.size == (50, 50)
    whole = save(large, tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    save(Image.new("1", (200, 200)), tmp_path / "bomb.png")
    for name, most in (("cut.jpg", 10**6), ("bomb.png", 10**4)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(ValueError, match=name) as refused:
            Photograph(tmp_path / name, 32, 178)
        assert "\n" not in str(refused.value)
