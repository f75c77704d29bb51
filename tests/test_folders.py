"""What a folder holds, said aloud: splits, classes, label files and names as people have them."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import TINY_FLAGS, refused
from PIL import Image, features

import train
from attributes import CELEBA_ATTRIBUTES, create_attribute_vector
from checkpoint import load_checkpoint
from image_data import files, picture
from image_data.datasets import find_dataset
from image_data.encoded import LatentDataset
from image_data.labelled import split_named

DECOMPOSED, COMPOSED = (unicodedata.normalize(form, "Café") for form in ("NFD", "NFC"))


def put(root: Path, folders: dict[str, int], suffix: str = ".jpg") -> Path:
    """Empty files with the suffixes of pictures, so many in each folder, each with a name of its own."""
    for folder, number in folders.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            (root / folder / f"{len(folder)}_{i:03d}{suffix}").touch()
    return root


def sizes(root: Path) -> tuple[int, ...]:
    """The number of pictures in train, val and test."""
    return tuple((find_dataset(root).splits == split).sum() for split in range(3))


# -------------------------------------------------------------------- splits and classes

SPLIT_FOLDERS = {
    "Training and Validation": ({"Training/a": 8, "Training/b": 8, "Validation/a": 3}, (15, 3, 1)),
    "Train and Test": ({"Train/a": 8, "Train/b": 8, "Test/a": 3}, (15, 1, 3)),
    "valid": ({"train/a": 8, "train/b": 8, "valid/a": 3, "testing/b": 2}, (16, 3, 2)),
    "sets in sets": ({"training_set/training_set/a": 9, "training_set/training_set/b": 9,
                      "test_set/test_set/b": 3, "dev/a": 2}, (18, 2, 3)),
    "class before split": ({"a/TRAIN": 9, "b/TRAIN": 9, "a/Val": 2, "b/test": 3}, (18, 2, 3)),
    "class before split, and more": ({"a/train": 9, "b/train/x": 9, "a/test": 3, "a/ground_truth": 3,
                                      "b/dev": 1}, (18, 1, 3)),
    "in a wrapper": ({"archive/data/seg_train/a": 9, "archive/data/seg_train/b": 9,
                      "archive/data/seg_test/b": 4, "archive/data/val/a": 1}, (18, 1, 4)),
}  # fmt: skip


@pytest.mark.parametrize("case", SPLIT_FOLDERS)
def test_split_folders_in_any_case_and_form(tmp_path, case):
    folders, expected = SPLIT_FOLDERS[case]
    root = put(tmp_path, folders)
    assert find_dataset(root).names == ("a", "b")
    assert sizes(root) == expected


def test_names_that_contain_a_split_name_no_split():
    others = ("trainer", "freight_train", "contest", "test_tube", "value", "not_valid", "")
    assert [split_named(name) for name in others] == [None] * len(others)


def test_a_class_may_be_called_train(tmp_path):
    root = put(tmp_path, {"bus": 9, "car": 9, "train": 9})
    assert find_dataset(root).names == ("bus", "car", "train")
    put(root, {"train/steam": 3})
    refused(lambda: find_dataset(root), "train beside bus, car", "rename it")


def numbered(root: Path, folders: dict[str, range], suffix: str = ".png") -> Path:
    """Empty pictures with these numbers as their names."""
    for folder, numbers in folders.items():
        (root / folder).mkdir(parents=True)
        for number in numbers:
            (root / folder / f"{number:05d}{suffix}").touch()
    return root


def test_folders_of_a_numbered_set_are_no_classes(tmp_path):
    """FFHQ's, and shards. Digits are classes: the numbers of their files do not rise with them."""
    kinds = {
        "ffhq/images": {f"{i:02d}000": range(1000 * i, 1000 * i + 9) for i in range(3)},
        "shards": {str(i): range(9 * i, 9 * i + 9) for i in range(3)},
        "split": {f"{s}/{i}": range(i, i + 9) for s, i in (("train", 0), ("train", 50), ("val", 90))},
    }
    for name, folders in kinds.items():
        found = find_dataset(
            numbered(tmp_path / name, folders).parent
            if "/" in name
            else numbered(tmp_path / name, folders)
        )
        assert found.names == ("picture",) and len(found.pictures) == 27
        assert "hold consecutive file numbers; if they are classes, rename them" in str(found)
    digits = numbered(tmp_path / "digits", {str(i): range(i, 90, 10) for i in range(10)})
    assert find_dataset(digits).names == tuple("0123456789")
    again = numbered(tmp_path / "again", {"000": range(9), "001": range(9)})
    assert find_dataset(again).names == ("000", "001")
    named = numbered(tmp_path / "named", {"0": range(9), "cat": range(10, 19)})
    assert find_dataset(named).names == ("0", "cat")


def test_what_lies_beside_the_splits_is_passed_over_aloud(tmp_path):
    root = put(tmp_path, {"train/a": 9, "train/b": 9, "test": 4, "extra/a": 3, "val/c": 2, "": 1})
    line = str(find_dataset(root))
    for part in (
        "4 outside the class folders", "3 in extra/, which is no split", "1 outside the split folders",
        "2 of class c, which has no picture in train", "2 classes: a, b",
        "(val and test taken from train)",
    ):  # fmt: skip
        assert part in line, line
    assert sum(sizes(root)) == 18


@pytest.mark.parametrize("folders", [{"": 12}, {"cat": 12}, {"train": 8, "Test": 4}, {"": 9, "more": 3}])
def test_without_two_classes_a_model_is_unconditional(tmp_path, folders):
    found = find_dataset(put(tmp_path, folders))
    assert found.names == (("cat",) if "cat" in folders else ("picture",))
    assert (found.attributes == 1).all() and sum(sizes(tmp_path)) == 12
    assert f"nothing but {found.names[0]}, so it trains unconditionally" in str(found)


def test_an_unlabelled_folder_trains_and_one_line_says_on_what(tmp_path, capsys):
    for i in range(12):
        Image.new("RGB", (20, 20), (20 * i, 9, 9)).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".cache").mkdir()
    run = ["--data_root", tmp_path, "--cache_dir", tmp_path / ".cache", *TINY_FLAGS, "--dry_run"]
    train.train(train.parse_args([*map(str, run)]))
    lines = [line for line in capsys.readouterr().out.splitlines() if str(tmp_path) in line]
    counted = "10 train, 1 val, 1 test pictures (val and test taken from train)"
    only = "nothing but picture, so it trains unconditionally; passed over: "
    rest = "1 .txt, 1 hidden or system files"
    assert lines == [f"{tmp_path}: pictures without labels; {counted}; {only}{rest}"]


# -------------------------------------------------------------------- what is no picture


def test_hidden_and_system_files_are_skipped_anywhere(tmp_path):
    root = put(tmp_path, {"a": 9, "b": 9, ".thumbnails": 9, "a/@eaDir": 9, "__MACOSX/a": 9, "A/.x": 2})
    for i in range(30):
        (root / "a" / f"._{i}.jpg").touch()
    (root / "b" / "Thumbs.db").touch()
    found = find_dataset(root)
    assert sum(sizes(root)) == 18 and found.names == ("a", "b")
    assert "35 hidden or system files" in str(found)


def test_celeba_hq_without_its_annotations_is_refused(tmp_path):
    """Photographs and masks would be taken for two classes."""
    root = put(tmp_path / "hq", {"CelebA-HQ-img": 3, "CelebAMask-HQ-mask-anno/0": 3})
    refused(lambda: find_dataset(root), "has no CelebAMask-HQ-attribute-anno.txt")


READ = {".jfif": "JPEG", ".JPE": "JPEG", ".pgm": "PPM", ".ppm": "PPM", "": "PNG", ".2021": "JPEG"}
READ |= {".avif": "AVIF"} if features.check("avif") else {}


@pytest.mark.parametrize("suffix", READ)
def test_every_suffix_that_pillow_reads(tmp_path, suffix):
    for name, grey in (("a", 60), ("b", 180)):
        (tmp_path / "set" / name).mkdir(parents=True)
        page = Image.new("RGB", (20, 20), (grey,) * 3).convert("L" if suffix == ".pgm" else "RGB")
        for i in range(6):
            page.save(tmp_path / "set" / name / f"{i}{suffix}", READ[suffix])
    (tmp_path / "set" / "LICENSE").write_text("no picture")
    found = find_dataset(tmp_path / "set")
    assert sum(sizes(tmp_path / "set")) == 12 and "passed over: 1 without a suffix" in str(found)
    data = found.open("train", 8, cache_dir=tmp_path / "cache", num_workers=1)
    for item in data:
        assert abs(int(item["image"][4, 4, 0]) - (60 if item["attributes"][0] > 0 else 180)) < 4


def test_heic_is_named_with_the_way_out_and_read_with_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    cached = picture.picture_formats, files.picture_suffixes
    for function in cached:
        function.cache_clear()
    root = put(put(tmp_path, {"a": 9, "b": 9}), {"a": 3}, ".HEIC")
    way_out = "3 .heic (pip install pillow-heif, or convert to JPEG)"
    assert f"passed over: {way_out}" in str(find_dataset(root))
    refused(lambda: find_dataset(put(tmp_path / "b" / "c", {"d": 3}, ".heic")), way_out)
    library = SimpleNamespace(register_heif_opener=lambda: Image.register_extension("HEIF", ".heic"))
    monkeypatch.setitem(sys.modules, "pillow_heif", library)
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    for function in cached:
        function.cache_clear()
    assert sum(sizes(root)) == 24
    monkeypatch.undo()
    for function in cached:
        function.cache_clear()


def test_parquet_without_its_library_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    put(tmp_path / "data", {"": 1}, ".parquet")
    refused(lambda: find_dataset(tmp_path), "holds Parquet files: pip install datasets")


def test_links_are_followed_once(tmp_path):
    root = put(tmp_path / "set", {"a": 9, "b": 9})
    outside = put(tmp_path / "outside", {"": 5})
    (root / "c").symlink_to(outside)
    (root / "a" / "again").symlink_to(root)
    (root / "a" / "lost.jpg").symlink_to(root / "nowhere.jpg")
    (root / "a" / "circle.jpg").symlink_to(root / "a" / "circle.jpg")
    assert find_dataset(root).names == ("a", "b", "c") and sum(sizes(root)) == 23
    assert "2 broken link or no file" in str(find_dataset(root))


# -------------------------------------------------------------------- label files

TABLES = {
    "attributes.csv": "file,Red,Round\n{}",
    "semicolons and empty rows": "file;Red;Round;;\n;;\n\n{}\n;;;;\n",
    "tabs": "file\tRed\tRound\n{}",
    "UTF-16": "file,Red,Round\n{}",
    "an index column": ",image_id,Red,Round\n{}",
    "decomposed": f"file,Red,Round,{DECOMPOSED}\n{{}}",
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_as_programs_write_them(tmp_path, case):
    root = put(tmp_path, {"pictures": 9})
    names = sorted(path.name for path in (root / "pictures").iterdir())
    header = TABLES[case].splitlines()[0]
    separator = next(each for each in ("\t", ";", ",") if each in header)
    rows = [
        ["pictures\\" + name if i else f"pictures/{name}", str(i % 2), ""]
        for i, name in enumerate(names)
    ]
    rows = [[str(i), *row] if header[0] == "," else row for i, row in enumerate(rows)]
    rows = [[*row, "1"] if "Caf" in header else row for row in rows]
    text = TABLES[case].format("\n".join(map(separator.join, rows)))
    (root / "attributes.csv").write_bytes(text.encode("utf-16" if case == "UTF-16" else "utf-8-sig"))
    labelled = find_dataset(root)
    assert labelled.names == ("Red", "Round", COMPOSED)[: 3 if case == "decomposed" else 2]
    assert labelled.attributes[:, :2].tolist() == [[1.0 if i % 2 else -1.0, 0.0] for i in range(9)]


def test_hugging_face_s_folders(tmp_path):
    """metadata.csv or metadata.jsonl beside the pictures, or in each split; labels and attributes."""
    root = put(tmp_path / "split", {"train": 6, "validation": 2})
    for part, label in (("train", ["cat", "dog"]), ("validation", ["dog", "dog"])):
        names = sorted(path.name for path in (root / part).iterdir())
        rows = [{"file_name": n, "label": label[i % 2], "text": "x"} for i, n in enumerate(names)]
        (root / part / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = find_dataset(root)
    assert found.names == ("cat", "dog") and "2 classes: cat, dog" in str(found)
    assert "8 column text, which is" in str(found).replace("1 column", "8 column")
    assert sizes(root) == (5, 2, 1)
    assert found.attribute_rows("val").tolist() == [[-1, 1]] * 2
    root = put(tmp_path / "flat", {"": 4})
    rows = "".join(f"{path.name},{i % 2}\n" for i, path in enumerate(sorted(root.iterdir())))
    (root / "metadata.csv").write_text("file_name,Red\n" + rows)
    assert find_dataset(root).attributes[:, 0].tolist() == [-1, 1, -1, 1]


def test_a_metadata_file_of_another_kind_is_none_of_ours(tmp_path):
    for root in (put(tmp_path / "classes", {"a": 9, "b": 9}), celeba(tmp_path / "celeba")):
        (root / "metadata.csv").write_text("id,age\n1,2\n")
        assert len(find_dataset(root).pictures) in (12, 18)


def table(root: Path, *rows: str, number: int = 4, suffix: str = ".png") -> Path:
    """Pictures 0, 1, ... with a label file of these rows."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        (root / f"{i}{suffix}").touch()
    (root / "attributes.csv").write_text("\n".join(rows) + "\n")
    return root


def test_words_for_present_absent_and_not_known(tmp_path):
    """As programs write them. The line says what was taken for what."""
    root = table(tmp_path, "file,Red", "0.png,Yes", "1.png,no", "2.png,NaN", "3.png,N/A")
    found = find_dataset(root)
    assert found.attributes[:, 0].tolist() == [1, -1, 0, 0]
    taken = "(taken: 1 n/a as unspecified, 1 nan as unspecified, 1 no as 0, 1 yes as 1)"
    assert f"{root}: attributes.csv {taken}; " in str(found)
    table(root, "file,Red", "0.png,1.00", "1.png,-1.0", "2.png,TRUE", "3.png,")
    assert find_dataset(root).attributes[:, 0].tolist() == [1, -1, 1, 0]
    assert f"{root}: attributes.csv; " in str(find_dataset(root))
    for value in ("0.87", "-0.5", "87", "inf", "maybe", "none"):
        table(root, "file,Red", "0.png,1", f"1.png,{value}")
        refused(lambda: find_dataset(root), f"attributes.csv line 3: Red is '{value}'; use 1, 0 or -1")
    table(root, "file,label", "0.png,cat", "1.png,dog", "2.png,nan", "3.png,")
    found = find_dataset(root)
    assert found.names == ("cat", "dog") and found.attributes.tolist()[2:] == [[0, 0]] * 2
    table(root, "file,label", "0.png,yes", "1.png,no")
    assert find_dataset(root).names == ("no", "yes"), "in such a column words are classes"
    (root / "attributes.csv").unlink()
    lines = [
        {"file": f"{i}.png", "Red": value} for i, value in enumerate((True, float("nan"), None, -1))
    ]
    (root / "attributes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert find_dataset(root).attributes[:, 0].tolist() == [1, 0, 0, -1]


def test_names_without_their_suffix_or_in_another_form(tmp_path):
    rows = ("file,Red", "0,1", "1.PNG,0", "2.jpg,1", "3.png,0")
    found = find_dataset(table(tmp_path, *rows))
    signs = {picture.name: sign for picture, sign in zip(found.pictures, found.attributes, strict=True)}
    assert signs == {"0.png": 1, "1.png": -1, "2.png": 1, "3.png": -1}
    assert "(taken: 3 names with another suffix, or none)" in str(found)
    (tmp_path / "0.jpg").touch()
    refused(lambda: find_dataset(tmp_path), "line 2: 0 may be 0.jpg or 0.png: write its suffix")
    (tmp_path / "a.jpg").touch()
    table(tmp_path, *rows[:1], "a.png,1", "a.jpg,0", "0.jpg,1", "0.png,1", *rows[2:])
    found = find_dataset(tmp_path)
    assert "1 rows without a picture" in str(found), "the exact name comes first"
    assert found.attributes[[p.name for p in found.pictures].index("a.jpg"), 0] == -1


def test_a_picture_named_twice(tmp_path):
    root = table(
        tmp_path, "file,Red,Round", "0.png,1,0", "1.png,1,", "2.png,0,1", "3.png,1,1", "1.png,1,"
    )
    found = find_dataset(root)
    assert "passed over: 1 rows that repeat another" in str(found) and len(found.pictures) == 4
    table(root, "file,Red,Round", "0.png,1,0", "1.png,1,", "2.png,0,1", "3.png,1,1", "./1.png,0,")
    refused(lambda: find_dataset(root), "line 6: ./1.png is named twice, with other values in", "line 3")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "CelebA", "Parquet"])
def test_a_column_of_1_0_and_minus_1_needs_to_be_told_which_is_not_known(tmp_path, kind):
    column, name = (1, 0, -1, 1, 0, -1, -1, 1), "Red"
    root = table(tmp_path, "file,Red,Round", *(f"{i}.png,{v},1" for i, v in enumerate(column)), number=8)
    if kind == "jsonl":
        (root / "attributes.csv").unlink()
        lines = [json.dumps({"file": f"{i}.png", "Red": v, "Round": 1}) for i, v in enumerate(column)]
        (root / "attributes.jsonl").write_text("\n".join(lines))
    if kind == "CelebA":
        root, name = celeba(tmp_path / "celeba", 8, values=("1", "1")), CELEBA_ATTRIBUTES[0]
        path = root / "list_attr_celeba.txt"
        first, second, *rows = path.read_text().splitlines()
        rows = [row.replace(" 1", f" {v}", 1) for row, v in zip(rows, column, strict=True)]
        path.write_text("\n".join([first, second, *rows]) + "\n")
    if kind == "Parquet":
        datasets = pytest.importorskip("datasets")
        Image.new("RGB", (9, 9)).save(picture := tmp_path / "p.png")
        parts = {"image": [str(picture)] * 8, "Red": column, "Round": [1] * 8}
        table_of = datasets.Dataset.from_dict(parts).cast_column("image", datasets.Image())
        (root := tmp_path / "parquet").mkdir()
        table_of.to_parquet(str(root / "train-00000.parquet"))
    counts = "are 1, 2 are 0, 3 are -1; give --unspecified 0 or --unspecified -1"
    refused(lambda: find_dataset(root), name, counts)
    for unspecified, expected in ((0, [1, 0, -1, 1, 0, -1, -1, 1]), (-1, [1, -1, 0, 1, -1, 0, 0, 1])):
        found = find_dataset(root, unspecified=unspecified)
        assert found.attributes[:, list(found.names).index(name)].tolist() == expected
        assert (found.attributes[:, 1] == 1).all()


def test_labels_of_1_0_and_minus_1_are_three_classes(tmp_path):
    root = table(tmp_path, "file,label", "0.png,-1", "1.png,0", "2.png,1", "3.png,1")
    assert find_dataset(root).names == ("-1", "0", "1")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def test_pointers_of_git_lfs_say_what_to_do(tmp_path):
    """In the place of a picture, a label file, a list, a whole dataset, weights."""
    line = "is a pointer of Git LFS, and not the file: run git lfs pull"
    root = table(tmp_path / "a", "file,Red", "0.png,1", "1.png,0")
    for path in root.glob("*.png"):
        path.write_text(POINTER)
    found = find_dataset(root)
    refused(lambda: found.open("train", 8, cache_dir=tmp_path / "cache", num_workers=1), ".png", line)
    (root / "attributes.csv").write_text(POINTER)
    refused(lambda: find_dataset(root), "attributes.csv", line)
    root = celeba(tmp_path / "celeba")
    (root / "list_attr_celeba.txt").write_text(POINTER)
    refused(lambda: find_dataset(root), "list_attr_celeba.txt", line)
    put(tmp_path / "mnist" / "MNIST" / "raw", {"": 0})
    for part in ("images-idx3", "labels-idx1"):
        (tmp_path / "mnist" / "MNIST" / "raw" / f"train-{part}-ubyte").write_text(POINTER)
    refused(lambda: find_dataset(tmp_path / "mnist"), "ubyte", line)
    for name in ("a.pth", "a.safetensors", "folder/model.safetensors"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / name).write_text(POINTER)
        refused(lambda path=tmp_path / name: load_checkpoint(path), name, line)
    refused(lambda: load_checkpoint(tmp_path / "folder"), line)
    (tmp_path / "manifest.json").write_text(POINTER)
    refused(lambda: LatentDataset(tmp_path, "train"), line)


def test_rows_without_pictures_are_said_and_misaligned_ones_refused(tmp_path):
    root = put(tmp_path, {"": 4})
    names = sorted(path.name for path in root.iterdir())
    rows = "".join(f"{name},1\n" for name in [*names, "gone.jpg"])
    (root / "attributes.csv").write_text("file,Red\n" + rows)
    assert "passed over: 1 rows without a picture" in str(find_dataset(root))
    (root / "attributes.csv").write_text("file,Red\n" + rows.replace(names[0], "other.jpg"))
    refused(lambda: find_dataset(root), "there is no other.jpg", f"{names[0]} has no row")
    (root / "attributes.csv").write_bytes(b"\xff\x00 no text \xd8\x00")
    refused(lambda: find_dataset(root), "save it as UTF-8")


# -------------------------------------------------------------------- CelebA


def celeba(root: Path, number: int = 12, kind: str = "txt", values=("-1", "1"), deep="", suffix=".jpg"):
    """CelebA's folder with empty pictures: half train, the rest val and test."""
    put(root / "img_align_celeba" / deep, {"": 0})
    names = [f"{i:06d}.jpg" for i in range(1, number + 1)]
    for name in names:
        (root / "img_align_celeba" / deep / name).with_suffix(suffix).touch()
    rows = [[name, *(values[(i + j) % 2] for j in range(40))] for i, name in enumerate(names)]
    splits = [[name, str(max(0, 4 * i // number - 1))] for i, name in enumerate(names)]
    if kind == "csv":
        rows, splits = [["image_id", *CELEBA_ATTRIBUTES], *rows], [["image_id", "partition"], *splits]
        (root / "list_bbox_celeba.csv").touch()
    else:
        rows = [[str(number)], CELEBA_ATTRIBUTES, *rows]
    mark = "," if kind == "csv" else " "
    for name, table in (("list_attr_celeba", rows), ("list_eval_partition", splits)):
        (root / f"{name}.{kind}").write_text("\n".join(map(mark.join, table)) + "\n")
    return root


CELEBA = {
    "CelebA's own": {},
    "Kaggle's": {"kind": "csv", "deep": "img_align_celeba"},
    "0 and 1": {"values": ("0", "1")},
    "Kaggle's with 0 and 1": {"kind": "csv", "values": ("0", "1")},
    "PNG under names of JPEG": {"suffix": ".png"},
}


@pytest.mark.parametrize("case", CELEBA)
def test_celeba_as_people_have_it(tmp_path, case):
    root = celeba(tmp_path / "wrapper" / "archive", **CELEBA[case])
    for given in (root, root.parent, root / "img_align_celeba"):
        found = find_dataset(given)
        assert str(found).startswith(f"{root}: CelebA; 6 train, 3 val, 3 test pictures; 40 attributes")
        rows = found.attribute_rows("train")
        assert rows[0].tolist() == [-1.0, 1.0] * 20 and rows[1].tolist() == [1.0, -1.0] * 20


@pytest.mark.parametrize("pictures", ["img_align_celeba", "img_align_celeba_png"])
def test_celeba_as_its_home_page_packs_it(tmp_path, pictures):
    root = celeba(tmp_path / "wrapper" / "CelebA", suffix=".png" if "png" in pictures else ".jpg")
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba"):
        part = {"list_a": "Anno", "list_e": "Eval", "img_al": "Img"}[name[:6]]
        (root / part).mkdir()
        (root / name).rename(root / part / (pictures if part == "Img" else name))
    (root / "README.txt").touch()
    for given in (root, root.parent, root / "Img", root / "Img" / pictures, root / "Anno"):
        found = find_dataset(given)
        assert str(found).startswith(f"{root}: CelebA; 6 train, 3 val, 3 test pictures; 40 attributes")
        assert found.attribute_rows("train")[0].tolist() == [-1.0, 1.0] * 20
    packed = root / "Img" / f"{pictures}.zip"
    (root / "Img" / pictures).rename(packed)
    refused(lambda: find_dataset(root), "has no img_align_celeba", f"unpack {packed}")


def test_celeba_s_lists_with_other_habits(tmp_path):
    root = celeba(tmp_path)
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        text = (root / name).read_text().replace("000005", "\n000005") + "\n\n"
        (root / name).write_text(text, encoding="utf-16")
    assert sizes(root) == (6, 3, 3)
    path = root / "list_attr_celeba.txt"
    path.write_text(path.read_text(encoding="utf-16").replace("-1", "0", 1))
    refused(lambda: find_dataset(root), "5_o_Clock_Shadow is 0 for 000001.jpg", "in the whole file")


def test_the_first_pictures_of_celeba_with_all_its_rows(tmp_path):
    root = celeba(tmp_path)
    for i in range(6, 13):
        (root / "img_align_celeba" / f"{i:06d}.jpg").unlink()
    found = find_dataset(root)
    assert sizes(root) == (3, 1, 1), (
        "what the lists give to train, since they give nothing to the others"
    )
    assert "val and test taken from train" in str(found) and "7 rows without a picture" in str(found)
    (root / "img_align_celeba" / "900001.jpg").touch()
    refused(lambda: find_dataset(root), "1 pictures without a row (900001.jpg)")


def test_pictures_keep_their_own_rows_where_another_is_gone(tmp_path):
    root = celeba(tmp_path)
    path = root / "list_attr_celeba.txt"
    head, names, *rows = path.read_text().splitlines()
    first = rows[1].replace(" 1", " -1").split()
    rows[1] = " ".join([first[0], "1", *first[2:]])  # only the second has the first attribute
    rows[2:] = [" ".join([row.split()[0], "-1", *row.split()[2:]]) for row in rows[2:]]
    path.write_text("\n".join([head, names, *rows]))
    (root / "img_align_celeba" / "000001.jpg").unlink()
    found = find_dataset(root)
    has = [
        picture.name for picture, row in zip(found.pictures, found.attributes, strict=True) if row[0] > 0
    ]
    assert has == ["000002.jpg"] and "1 rows without a picture" in str(found)


# -------------------------------------------------------------------- names


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names are Unicode there")
def test_names_that_are_not_utf_8(tmp_path, capsys):
    """A picture's name may be anything, and so may the folder's. A class says what to rename."""
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    for folder, grey in (("a", 60), ("b", 180)):
        for i in range(4):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (grey,) * 3).save(os.fsencode(root / folder) + b"/\xe9%d.png" % i)
    found = find_dataset(root)
    data = found.open("train", 8, cache_dir=tmp_path / "cache", num_workers=1)
    again = found.open("train", 8, cache_dir=tmp_path / "cache", num_workers=1)
    assert len(data) == len(again) == 6 and "\udce9" in data.filenames[0]
    (root / "a").rename(Path(os.fsdecode(os.fsencode(root) + b"/\xe9")))
    refused(lambda: find_dataset(root), "'\\udce9' cannot name", "rename it")


def test_one_name_in_two_forms_is_one_name(tmp_path):
    root = put(tmp_path, {DECOMPOSED: 9, "dog": 9})
    put(root, {COMPOSED: 1})
    assert find_dataset(root).names == (COMPOSED, "dog")
    for known, asked in ((DECOMPOSED, COMPOSED), (COMPOSED, DECOMPOSED)):
        assert create_attribute_vector({known: 0}, **{asked: 1}).tolist() == [1]
    flags = ["--stage", "guide", "--attribute", DECOMPOSED, "--data_root", "x"]
    assert train.parse_args(flags).attribute == (COMPOSED,)
