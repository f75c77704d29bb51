"""CelebA's files as people have them, right and wrong; the crops; the cache of decoded pictures."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers import refused
from PIL import Image
from torch.utils.data import DataLoader

from attributes import (
    CELEBA_ATTRIBUTES,
    HAIR_COLOURS,
    attr_dict,
    create_attribute_vector,
    parse_request,
    with_implied,
)
from celeba_dataset import CelebADataset, download_celeba, load_and_preprocess_image
from config import CROPS, SPLITS
from image_data import cached, picture
from image_data.cached import random_flip
from image_data.datasets import find_dataset
from image_data.picture import crop_box

REPOSITORY = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("CELEBA_ROOT") or Path(__file__).resolve().parents[2] / "shared/data/celeba")
ATTR, PART = "list_attr_celeba.txt", "list_eval_partition.txt"
GOLDEN = (
    "000001.jpg -1  1  1 -1 -1 -1 -1 -1 -1 -1 -1  1 -1 -1 -1 -1 -1 -1  1  1"
    " -1  1 -1 -1  1 -1 -1  1 -1 -1 -1  1  1 -1  1 -1  1 -1 -1  1"
)
GOLDEN_PRESENT = {
    "Arched_Eyebrows", "Attractive", "Brown_Hair", "Heavy_Makeup", "High_Cheekbones", "No_Beard",
    "Mouth_Slightly_Open", "Pointy_Nose", "Smiling", "Straight_Hair", "Wearing_Earrings",
    "Wearing_Lipstick", "Young",
}  # fmt: skip


def make_celeba(root: Path, count: int = 12, size: tuple[int, int] = (24, 24)) -> Path:
    """Flat pictures whose grey level is 10 x their number; the first row is CelebA's own."""
    (root / "img_align_celeba").mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [f"{i:06d}.jpg" for i in range(1, count + 1)]
    for i, name in enumerate(names, 1):
        Image.new("RGB", size, (10 * i % 256,) * 3).save(root / "img_align_celeba" / name)
    rows = [GOLDEN] + [f"{n} {' '.join(map(str, random.choice([-1, 1], 40)))}" for n in names[1:]]
    (root / ATTR).write_text("\n".join([str(count), " ".join(CELEBA_ATTRIBUTES) + " ", *rows, ""]))
    splits = [0] * (count - count // 3) + [1] * (count // 3 - count // 6) + [2] * (count // 6)
    lines = [f"{name} {split}\n" for name, split in zip(names, splits, strict=True)]
    (root / PART).write_text("".join(lines))
    return root


@pytest.fixture
def celeba(tmp_path) -> Path:
    return make_celeba(tmp_path / "faces")


def load(root: Path, split: str = "train", **options) -> CelebADataset:
    options = {"image_size": 8, "cache_dir": root.parent / "cache", "num_workers": 2} | options
    return CelebADataset(root, split, **options)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_readme_has_all_names_in_their_groups():
    _, _, after = (
        (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("CelebA's forty names")
    )
    table = after.partition("##")[0]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(CELEBA_ATTRIBUTES)


def test_attribute_vector():
    vector = create_attribute_vector(attr_dict, Smiling=1, Male=0, Young=0.75, **{"5_o_Clock_Shadow": 1})
    assert vector.shape == (40,) and vector.dtype == torch.float32
    named = {"Smiling": 1.0, "Male": -1.0, "Young": 0.5, "5_o_Clock_Shadow": 1.0}
    assert {n: vector[attr_dict[n]].item() for n in named} == named
    assert vector.count_nonzero() == len(named)
    refused(lambda: create_attribute_vector(attr_dict, smilling=1), "'smilling'", "Smiling")
    refused(lambda: create_attribute_vector(attr_dict, EYEGLASSES=1), "Eyeglasses")
    for value in (1.01, -0.1, float("nan"), "often", None):
        refused(lambda value=value: create_attribute_vector(attr_dict, Male=value), "Male", repr(value))


def test_golden_row(celeba):
    data = load(celeba)
    expected = [1.0 if name in GOLDEN_PRESENT else -1.0 for name in CELEBA_ATTRIBUTES]
    assert data.attributes.shape == (8, 40) and data.attributes[0].tolist() == expected
    assert data.attributes[0, 0] == -1 and data.attributes[0, 39] == 1
    assert (CELEBA_ATTRIBUTES[0], CELEBA_ATTRIBUTES[39]) == ("5_o_Clock_Shadow", "Young")
    assert data.attribute_names == CELEBA_ATTRIBUTES and data.filenames[0] == "000001.jpg"


def test_windows_line_ends_spaces_and_byte_order_mark(celeba):
    plain = load(celeba)
    for name in (ATTR, PART):
        text = (celeba / name).read_text().replace(" ", "   ").replace("\n", "  \r\n") + "\r\n"
        (celeba / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    other = load(celeba)
    assert torch.equal(plain.attributes, other.attributes) and plain.filenames == other.filenames


def test_splits(celeba):
    splits = [load(celeba, split) for split in ("train", "val", "test")]
    assert [len(split) for split in splits] == [8, 2, 2]
    names = [name for split in splits for name in split.filenames]
    assert names == sorted(p.name for p in (celeba / "img_align_celeba").iterdir())
    assert find_dataset(celeba).first_image("test") == celeba / "img_align_celeba" / "000011.jpg"
    # rows in another order than the attributes' must still meet their own picture
    rows = (celeba / PART).read_text().splitlines()
    (celeba / PART).write_text("\n".join(reversed(rows)))
    assert [load(celeba, split).filenames for split in SPLITS] == [s.filenames for s in splits]


def test_requests():
    assert parse_request(["Smiling=1", "Male=0", "Young=.5"]) == {"Smiling": 1, "Male": 0, "Young": 0.5}
    assert parse_request([]) == {}
    refused(lambda: parse_request(["Smiling"]), "NAME=VALUE", "'Smiling'")
    refused(lambda: parse_request(["Smiling=very"]), "'Smiling=very'")
    refused(lambda: parse_request(["Male=0", "Male=1"]), "Male is given twice: 0 and 1")


def test_torchvision_folder(tmp_path):
    make_celeba(tmp_path / "root" / "celeba")
    assert len(load(tmp_path / "root")) == 8


def test_wrong_arguments(celeba):
    refused(lambda: load(celeba, "valid"), "'valid'", "train, val, test")
    refused(lambda: load(celeba, crop=150), "150", "178, 148, 140, 128")
    refused(lambda: load(celeba, image_size=-4), "-4")
    for fraction in (0, 1.5, float("nan")):
        refused(lambda fraction=fraction: load(celeba, data_fraction=fraction), str(fraction))


THIRD = "000003.jpg"
BROKEN_LABELS = {
    "header lacks the first name": (ATTR, "5_o_Clock_Shadow ", "", ["line 2", "39", "40"]),
    "header has one more": (ATTR, "5_o_", "image_id 5_o_", ["line 2", "41", "40"]),
    "header renamed": (ATTR, " Young", " Youth", ["column 40", "Youth", "Young"]),
    "no count": (ATTR, "12\n", "", ["line 2", "CelebA has 40"]),
    "row too short": (ATTR, GOLDEN[-4:], "", ["line 3", "39", "40"]),
    "row too long": (ATTR, GOLDEN, GOLDEN + " 1", ["line 3", "41", "40"]),
    "value 0": (ATTR, "000001.jpg -1  1", "000001.jpg -1  0", ["000001.jpg", "Arched_Eyebrows is 0"]),
    "value is a word": (ATTR, "000001.jpg -1", "000001.jpg yes", ["line 3", "yes"]),
    "path in a name": (ATTR, THIRD, "../x.jpg", ["1 rows without", "../x.jpg", THIRD]),
    "row of no picture": (ATTR, THIRD, "9.jpg", ["1 rows without", "9.jpg", "1 pictures", THIRD]),
    "partition of no picture": (PART, THIRD, "9.jpg", [PART, "12 rows", "12 pictures", "9.jpg"]),
    "twice": (PART, "000012.jpg 2\n", "000012.jpg 2\n000003.jpg 0\n", ["000003 twice"]),
    "unknown split": (PART, "000003.jpg 0", "000003.jpg 3", [PART, THIRD, "has 3"]),
}


@pytest.mark.parametrize("case", BROKEN_LABELS)
def test_broken_labels(celeba, case):
    file, old, new, words = BROKEN_LABELS[case]
    edit(celeba / file, old, new)
    refused(lambda: load(celeba), file, *words, error=ValueError)
    assert not (celeba.parent / "cache").exists()


def test_missing_files(celeba):
    missing, images = FileNotFoundError, celeba / "img_align_celeba"
    refused(lambda: load(celeba / "nowhere"), "nowhere", error=missing)
    for path in (celeba / ATTR, celeba / PART, images):
        path.rename(celeba / "elsewhere")
        refused(lambda path=path: load(celeba), path.name, "mmlab.ie.cuhk.edu.hk", error=missing)
        (celeba / "elsewhere").rename(path)
    images.rename(celeba / "elsewhere")
    images.mkdir()
    refused(lambda: load(celeba), "has no picture", error=missing)


def test_picture_without_a_row(celeba):
    Image.new("RGB", (24, 24)).save(celeba / "img_align_celeba" / "000013.jpg")
    (celeba / "img_align_celeba" / "Thumbs.db").write_text("not a picture")
    refused(lambda: load(celeba), "12 rows", "13 pictures", "1 pictures without a row", "000013.jpg")


def coordinates(width: int, height: int) -> Image.Image:
    """Red is the column, green the row: a crop shows where it was taken."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


@pytest.mark.parametrize(
    ("crop", "left", "top"), [(178, 0, 20), (148, 15, 35), (140, 19, 39), (128, 25, 57)]
)
def test_published_crops(tmp_path, crop, left, top):
    coordinates(178, 218).save(tmp_path / "face.png")
    pixels = load_and_preprocess_image(tmp_path / "face.png", image_size=crop, crop=crop)[0]
    assert pixels.dtype == torch.uint8 and pixels.shape == (crop, crop, 3)
    assert pixels[0, 0, :2].tolist() == [left, top]
    assert pixels[-1, -1, :2].tolist() == [left + crop - 1, top + crop - 1]


def test_crops_of_other_frames():
    assert crop_box(64, 64, 178) == (0, 0, 64, 64)
    assert crop_box(356, 436, 128) == (50, 114, 306, 370)  # twice CelebA's frame, twice its box
    assert crop_box(400, 200, 178) == (100, 0, 300, 200)
    for width, height in ((1, 1), (1, 50), (50, 1), (97, 31), (218, 178)):
        for crop in CROPS:
            left, top, right, bottom = crop_box(width, height, crop)
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            assert right - left == bottom - top


def test_resize_is_antialiased(tmp_path):
    y, x = np.mgrid[:256, :256]
    stripes = np.where((x // 3 + y // 3) % 2 == 0, 255, 0).astype(np.uint8)
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    small = load_and_preprocess_image(tmp_path / "stripes.png", 16)[0, ..., 0].double().numpy()
    average = stripes.reshape(16, 16, 16, 16).mean((1, 3))
    assert np.abs(small - average).max() < 12
    assert np.abs(stripes[8::16, 8::16] - average).max() > 100  # what picking pixels would give


def save_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn clockwise to show
    picture = Image.new("RGB", (16, 16), "blue")
    picture.paste("red", (0, 0, 8, 16))  # the left half ends up on top
    picture.save(path, exif=exif, quality=95, subsampling=0)


def test_picture_formats(tmp_path):
    def top_and_bottom(name: str) -> list[list[int]]:
        pixels = load_and_preprocess_image(tmp_path / name, image_size=16)
        assert pixels.shape == (1, 16, 16, 3) and pixels.dtype == torch.uint8
        return [pixels[0, row, 8].tolist() for row in (2, 13)]

    save_rotated(tmp_path / "exif.jpg")
    assert np.abs(np.array(top_and_bottom("exif.jpg")) - [[255, 0, 0], [0, 0, 255]]).max() < 12
    half = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
    half.paste((0, 0, 0, 0), (0, 8, 16, 16))
    half.save(tmp_path / "rgba.png")
    assert top_and_bottom("rgba.png") == [[255, 0, 0], [255, 255, 255]]
    half.convert("RGB").convert("P").save(tmp_path / "palette.png")
    assert top_and_bottom("palette.png") == [[255, 0, 0], [0, 0, 0]]
    grey = np.full((16, 16), 65535, np.uint16)
    grey[8:] = 100 * 257
    Image.fromarray(grey).save(tmp_path / "grey16.png")
    assert top_and_bottom("grey16.png") == [[255] * 3, [100] * 3]
    Image.new("LA", (16, 16), (0, 0)).save(tmp_path / "la.png")
    assert top_and_bottom("la.png") == [[255] * 3] * 2
    Image.new("L", (16, 16), 77).save(tmp_path / "grey.png")
    assert top_and_bottom("grey.png") == [[77] * 3] * 2
    frames = [Image.new("L", (16, 16), value) for value in (9, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert top_and_bottom("a.gif") == [[9] * 3] * 2
    Image.new("CMYK", (16, 16), (0, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    assert np.abs(np.array(top_and_bottom("cmyk.jpg")) - 255).max() < 4


def test_unreadable_pictures(tmp_path, monkeypatch):
    def refuse(name: str, *words: str, error=ValueError) -> None:
        refused(lambda: load_and_preprocess_image(tmp_path / name), name, *words, error=error)

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "whole.jpg")
    noise.save(tmp_path / "whole.png")
    (tmp_path / "text.jpg").write_text("hello\n" * 99)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    (tmp_path / "folder.jpg").mkdir()
    refuse("no.jpg", "does not exist", error=FileNotFoundError)
    for name in ("text.jpg", "cut.jpg"):
        refuse(name, "is not a readable picture")
    refuse("folder.jpg", "is a folder: name one picture in it")
    monkeypatch.setattr(picture, "MOST_PIXELS", 1000)
    for name in ("whole.jpg", "whole.png"):
        refuse(name, "64 x 64 pixels, more than 1,000: save it smaller")


def test_dataset_and_single_picture_agree(tmp_path):
    root = make_celeba(tmp_path / "faces", size=(178, 218))
    noise = np.random.default_rng(1).integers(0, 256, (218, 178, 3), np.uint8)
    Image.fromarray(noise).save(root / "img_align_celeba" / "000002.jpg")
    for crop in CROPS:
        data = load(root, image_size=16, crop=crop)
        alone = load_and_preprocess_image(root / "img_align_celeba" / "000002.jpg", 16, crop)[0]
        assert torch.equal(data[1]["image"], alone) and alone.float().std() > 1


def forbid_decoding(monkeypatch) -> None:
    def decode(path, image_size, crop):
        raise AssertionError(f"decoded {path} again")

    monkeypatch.setattr(cached, "decode_image", decode)


def test_cache_is_reused(celeba, monkeypatch):
    first = load(celeba)
    forbid_decoding(monkeypatch)
    again = load(celeba)
    assert np.array_equal(first.images, again.images) and again.images.shape == (8, 8, 8, 3)
    assert again.images.dtype == np.uint8 and isinstance(again.images, np.memmap)
    with pytest.raises(AssertionError, match="decoded"):
        load(celeba, image_size=4)


def cache_files(root: Path, suffix: str = ".u8") -> list[str]:
    return sorted(p.name for p in (root.parent / "cache").iterdir() if p.suffix == suffix)


def test_cache_follows_its_source(celeba, monkeypatch):
    load(celeba)
    before = cache_files(celeba)
    Image.new("RGB", (24, 24), (250,) * 3).save(celeba / "img_align_celeba" / "000002.jpg")
    data = load(celeba)
    assert data[1]["image"].unique().tolist() == [250]
    edit(celeba / PART, "000012.jpg 2", "000012.jpg 0")
    data = load(celeba)
    assert data.filenames[-1] == "000012.jpg" and data[8]["image"].unique().tolist() == [120]
    after = cache_files(celeba)
    assert len(before) == len(after) == 1 and before != after  # the stale ones are gone
    assert cache_files(celeba, ".tmp") == []
    later = time.time() + 100  # a picture of the same size, changed in place
    os.utime(celeba / "img_align_celeba" / "000002.jpg", (later, later))
    load(celeba)
    assert cache_files(celeba) != after
    forbid_decoding(monkeypatch)  # labels are never cached: a corrected one costs no decoding
    edit(celeba / ATTR, "000001.jpg -1", "000001.jpg  1")
    assert load(celeba).attributes[0, 0] == 1


@pytest.mark.parametrize(
    "damage", ["truncated pictures", "lost pictures", "lost record", "half a record"]
)
def test_damaged_cache_is_rebuilt(celeba, damage):
    expected = np.array(load(celeba).images)
    cache = celeba.parent / "cache" / cache_files(celeba)[0]
    record = cache.with_suffix(".json")
    if damage == "truncated pictures":
        os.truncate(cache, 100)
    elif damage == "lost pictures":
        cache.unlink()
    elif damage == "lost record":
        record.unlink()
        cache.write_bytes(bytes(cache.stat().st_size))
    else:
        record.write_text(record.read_text()[:20])
    assert np.array_equal(load(celeba).images, expected)


def break_pictures(root: Path, numbers) -> None:
    for number in numbers:
        (root / "img_align_celeba" / f"{number:06d}.jpg").write_text("no picture")


def test_broken_pictures_are_skipped_and_rows_stay_aligned(tmp_path, capfd):
    root = make_celeba(tmp_path / "faces", count=24)
    whole = load(root)
    break_pictures(root, (2, 5, 16))
    data = load(root)
    assert "skipped 3" in (errors := capfd.readouterr().err) and "000005.jpg" in errors
    assert len(data) == 13 == len(data.images) == len(data.attributes)
    kept = [i for i in range(16) if i + 1 not in (2, 5, 16)]
    assert data.filenames == [whole.filenames[i] for i in kept]
    assert torch.equal(data.attributes, whole.attributes[kept])
    assert np.array_equal(data.images, whole.images[kept])
    assert load(root).filenames == data.filenames  # from the cache's record, too


def test_too_many_broken_pictures(tmp_path):
    root = make_celeba(tmp_path / "faces", count=24)
    break_pictures(root, range(2, 13))
    refused(lambda: load(root), "11 of 16", "000002.jpg", error=ValueError)
    assert [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"] == []
    break_pictures(root, (23, 24, 21, 22))
    refused(lambda: load(root, "test"), "4 of 4", error=ValueError)


def test_unwritable_cache(celeba):
    (celeba.parent / "cache").write_text("a file")
    refused(lambda: load(celeba), "cache_dir", error=ValueError)


def test_data_fraction_is_nested(tmp_path):
    root = make_celeba(tmp_path / "faces", count=60)
    chosen = [load(root, data_fraction=f).filenames for f in (0.001, 0.25, 0.5, 1.0)]
    assert [len(names) for names in chosen] == [1, 10, 20, 40]
    assert set(chosen[0]) < set(chosen[1]) < set(chosen[2]) < set(chosen[3])
    assert chosen[1] != chosen[3][:10] and chosen[1] == sorted(chosen[1])
    half = load(root, data_fraction=0.5)
    for item, name in zip(half, half.filenames, strict=True):
        assert abs(int(item["image"][0, 0, 0]) - 10 * int(name[:6]) % 256) <= 2
    (quarter,) = (tmp_path / "cache").glob("*_25pct_*.u8")
    assert quarter.stat().st_size == 10 * 8 * 8 * 3  # what was not chosen was not decoded


BUILDER = """
import sys, time
import celeba_dataset
from image_data import cached
decode, slowness = cached.decode_image, float(sys.argv[3])
def slow(*arguments):
    print("decoded", flush=True)
    time.sleep(slowness)
    return decode(*arguments)
cached.decode_image = slow
celeba_dataset.CelebADataset(sys.argv[1], image_size=8, cache_dir=sys.argv[2], num_workers=1)
"""


def start_builder(root: Path, slowness: float) -> subprocess.Popen:
    command = [sys.executable, "-c", BUILDER, str(root), str(root.parent / "cache"), str(slowness)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_at_once_build_one_cache(celeba):
    builders = [start_builder(celeba, 0.1) for _ in range(2)]
    outputs = [builder.communicate(timeout=60) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], outputs
    assert sum(out.count("decoded") for out, _ in outputs) == 8  # each picture once, by one of them
    assert load(celeba)[7]["image"].unique().tolist() == [80]


def test_killed_builder_leaves_no_lock_and_no_cache(celeba):
    builder = start_builder(celeba, 60)
    assert builder.stdout.readline() == "decoded\n"  # it holds the lock and has begun
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    started = time.monotonic()
    assert load(celeba)[7]["image"].unique().tolist() == [80]
    assert time.monotonic() - started < 10
    assert cache_files(celeba, ".tmp") == []


def test_loader_batches(celeba):
    data = load(celeba)
    order = [[3, 1], [7, 0], [2, 2], [5]]
    expected = [(data.images[rows], data.attributes[rows]) for rows in order]
    for workers in (0, 2):
        loader = DataLoader(
            data, batch_sampler=order, num_workers=workers, collate_fn=CelebADataset.collate
        )
        for batch, (images, attributes) in zip(loader, expected, strict=True):
            assert batch["image"].dtype == torch.uint8 and batch["attributes"].dtype == torch.float32
            assert np.array_equal(batch["image"].numpy(), images)
            assert torch.equal(batch["attributes"], attributes)
    assert torch.equal(data[3]["image"], data.__getitems__([3, 1])["image"][0])
    with pytest.raises(IndexError):
        data[8]


def test_random_flip():
    images = torch.randint(0, 256, (400, 3, 5, 3), dtype=torch.uint8)
    flipped = random_flip(images, torch.Generator().manual_seed(0))
    mirrored = (flipped == images.flip(2)).all((1, 2, 3))
    same = (flipped == images).all((1, 2, 3))
    assert flipped.dtype == torch.uint8 and (mirrored ^ same).all()
    assert 150 < mirrored.sum() < 250
    assert torch.equal(flipped, random_flip(images, torch.Generator().manual_seed(0)))


def test_refused_download_says_what_to_fetch(tmp_path, monkeypatch):
    def celeba(root, download):
        raise RuntimeError("quota exceeded\nfor this file")

    monkeypatch.setattr(torchvision.datasets, "CelebA", celeba)
    files = ("img_align_celeba.zip", ATTR, PART)
    place = str(tmp_path / "data" / "celeba")
    refused(
        lambda: download_celeba(tmp_path / "data"),
        "quota exceeded", "mmlab.ie.cuhk.edu.hk", place, "unpack", *files, error=ValueError,
    )  # fmt: skip
    ready = make_celeba(tmp_path / "data" / "celeba")
    assert download_celeba(tmp_path / "data") == ready.resolve()  # nothing to fetch


def test_real_celeba(tmp_path):
    if not (REAL / ATTR).is_file():
        pytest.skip(f"no CelebA at {REAL}; CELEBA_ROOT names its folder")
    data = CelebADataset(REAL, "val", cache_dir=tmp_path, num_workers=2, data_fraction=0.1)
    assert data.images.shape == (len(data), 64, 64, 3)
    picture = REAL / "img_align_celeba" / data.filenames[0]
    assert torch.equal(data[0]["image"], load_and_preprocess_image(picture)[0])
    lines = {line.split()[0]: line.split()[1:] for line in (REAL / ATTR).open() if ".jpg" in line}
    for name, row in zip(data.filenames, data.attributes, strict=True):
        assert row.tolist() == [float(value) for value in lines[name]]


def test_an_edit_of_hair_takes_the_other_colours_away_or_the_next_one():
    names = ("Smiling", *HAIR_COLOURS)  # black, blond, brown, gray
    read = torch.tensor([[0.9, 0.8, -0.9, -0.2, -1.0]])
    for named, expected in (
        ([0, 0, 1, 0, 0], [0, -1, 1, -1, -1]),
        ([0, -1, 0, 0, 0], [0, -1, 0, 1, 0]),  # not black any more
        ([-1, 0, 0, 0, 0], [-1, 0, 0, 0, 0]),  # nothing to do with hair
        ([0, -1, 1, 0, 0], [0, -1, 1, -1, -1]),
    ):
        assert with_implied(torch.tensor([named]) * 1.0, read, names).tolist() == [expected]
    others = torch.zeros(4, 2)  # black hair alone excludes no colour
    assert torch.equal(with_implied(others, read[:, :2].expand(4, -1), names[:2]), others)


def test_what_is_asked_for_denies_what_never_goes_with_it():
    """And what is named stays as it is named, though both cannot be."""
    names = ("Goatee", "No_Beard", "Bald", "Bangs", "Blond_Hair")
    for named, expected in (
        ([1, 0, 0, 0, 0], [1, -1, 0, 0, 0]),
        ([0, 1, 0, 0, 0], [-1, 1, 0, 0, 0]),
        ([0, 0, 1, 0, 0], [0, 0, 1, -1, -1]),
        ([0, 0, 0, 1, 0], [0, 0, -1, 1, 0]),
        ([1, 1, 0, 0, 0], [1, 1, 0, 0, 0]),
        ([-1, 0, 0, 0, 0], [-1, 0, 0, 0, 0]),
    ):
        request = torch.tensor([named]) * 1.0
        assert with_implied(request, torch.zeros(1, 5), names).tolist() == [expected]
        assert request.tolist() == [named], "a request is not written to"
    bald = torch.tensor([[1.0, 0.0]])  # which does not say that what is left is not gray
    assert torch.equal(with_implied(bald, torch.zeros(1, 2), ("Bald", "Gray_Hair")), bald)
    names = ("Bald", *HAIR_COLOURS)
    named = torch.tensor([[1.0, 0, -1, 0, 0]])  # bald and not blond: no other colour comes
    assert with_implied(named, torch.zeros(1, 5), names).tolist() == [[1, -1, -1, -1, 0]]
