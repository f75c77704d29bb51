"""Datasets other than CelebA: what a folder holds, its splits, its labels, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused
from PIL import Image

from attributes import CELEBA_ATTRIBUTES, deny_other_classes
from config import ModelConfig
from image_data.datasets import DATASETS, find_dataset, recognise
from image_data.labelled import one_hot

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"


def picture(path: Path, value: int, size=(20, 16), mode="RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value)).save(path)
    return path


@pytest.fixture
def classes(tmp_path):
    root = tmp_path / "classes"
    for number, name in enumerate(("cat", "dog", "owl")):
        for i in range(40):
            picture(root / name / f"{i}.png", 100 * number + i)
    return root


def load(root: Path, split="train", size=8, **more):
    return find_dataset(root).open(split, size, cache_dir=root.parent / "cache", num_workers=1, **more)


def test_class_folders_become_one_hot_rows_and_three_splits(classes):
    parts = {split: load(classes, split) for split in ("train", "val", "test")}
    assert parts["train"].attribute_names == ("cat", "dog", "owl") and parts["train"].one_hot
    assert 3 <= len(parts["val"]) <= 12 and 3 <= len(parts["test"]) <= 12, "a twentieth each"
    names = [name for part in parts.values() for name in part.filenames]
    assert len(set(names)) == len(names) == 120, "no picture is in two splits"
    for data in parts.values():
        for i, name in enumerate(data.filenames):
            kind = ("cat", "dog", "owl").index(name.split("/")[0])
            expected = torch.full((3,), -1.0)
            expected[kind] = 1
            assert torch.equal(data.attributes[i], expected)
            assert abs(int(data.images[i, 4, 4, 0]) - 100 * kind - int(Path(name).stem)) <= 0


def test_given_splits_are_kept_and_the_lacking_one_comes_from_train(tmp_path):
    root = tmp_path / "given"
    for i in range(40):
        picture(root / "train" / "a" / f"{i}.png", i)
        picture(root / "train" / "b" / f"{i}.png", 100 + i)
    for i in range(4):
        picture(root / "test" / "b" / f"t{i}.png", 200 + i)
    assert len(load(root, "test")) == 4
    assert all(name.startswith("train/") for name in load(root, "val").filenames)
    assert len(load(root)) + len(load(root, "val")) == 80, "what tests elsewhere trains here"
    assert load(root, "test").attributes[0].tolist() == [-1, 1]


SPLIT_OF_ROWS = ["train", "train", "train", "val", "test", "test"]
CSV = [f"pictures/{i}.png,{s},{i % 2},{'' if i else -1}" for i, s in enumerate(SPLIT_OF_ROWS)]
JSONL = [
    {
        "file": f"pictures/{i}.png",
        "split": s,
        "attributes": {"Red": i % 2} | ({} if i else {"Round": -1}),
    }
    for i, s in enumerate(SPLIT_OF_ROWS)
]


@pytest.mark.parametrize(
    ("name", "lines"),
    [("csv", ["file,split,Red,Round", *CSV]), ("jsonl", [json.dumps(row) for row in JSONL])],
)
def test_annotations_name_pictures_attributes_and_splits(tmp_path, name, lines):
    root = tmp_path / "root"
    for i in range(6):
        picture(root / "pictures" / f"{i}.png", 40 * i)
    (root / f"attributes.{name}").write_text("\n".join(lines))
    data = load(root)
    assert data.attribute_names == ("Red", "Round") and not data.one_hot
    assert sorted(data.attributes.tolist()) == [[-1, -1], [-1, 0], [1, 0]]
    assert sorted(find_dataset(root).attribute_rows("test").tolist()) == [[-1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,Red\n../outside.png,1\n", "there is no ../outside.png"),
        ("file,Red\na.png,maybe\n", "line 2: Red is 'maybe'"),
        ("name,Red\na.png,1\n", "name each column once"),
        ("file,Red\na.png\n", "line 2 has 1 columns, and its header 2"),
        ("file,split,Red\na.png,tune,1\n", "split 'tune'"),
        ("file,Red\n", "names no picture"),
        ("file,Red\n1.png,1\n", "attributes.csv line 2: there is no 1.png"),
    ],
)
def test_wrong_annotations_are_one_line(tmp_path, text, message):
    root = tmp_path / "root"
    picture(root / "a.png", 3)
    picture(tmp_path / "outside.png", 3)
    (root / "attributes.csv").write_text(text)
    refused(lambda: load(root), message)


def idx(path: Path, array: np.ndarray) -> None:
    """MNIST's file format: magic number, sizes, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = np.array([0x0800 + array.ndim, *array.shape], ">i4").tobytes()
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def test_mnist_in_torchvision_s_files(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    generator = np.random.default_rng(0)
    for part, number in (("train", 200), ("t10k", 10)):
        idx(raw / f"{part}-images-idx3-ubyte", generator.integers(0, 256, (number, 28, 28)))
        idx(raw / f"{part}-labels-idx1-ubyte", np.arange(number) % 10)
    for root in (tmp_path, tmp_path / "MNIST"):
        assert recognise(root) == (root, "mnist")
        sizes = [len(load(root, split, 28)) for split in ("train", "val", "test")]
        assert sum(sizes) == 210 and sizes[2] == 10 and 3 <= sizes[1] <= 20
    data = load(tmp_path, "test", 28)
    assert data.attribute_names == tuple("0123456789")
    assert data.attributes.argmax(1).tolist() == list(range(10)) and data.one_hot and not data.flips
    assert (data.images[..., 0] == data.images[..., 2]).all(), "grey becomes RGB"
    assert data[3]["image"].shape == (28, 28, 3)
    (raw / "train-labels-idx1-ubyte").write_bytes(gzip.compress(b"no"))
    refused(lambda: load(tmp_path, "train", 28), "no whole MNIST")


def test_celeba_hq_is_split_as_celeba(tmp_path):
    root = tmp_path / "hq"
    lines = ["4", " ".join(CELEBA_ATTRIBUTES)]
    for i in range(4):
        picture(root / "CelebA-HQ-img" / f"{i}.jpg", 50 * i)
        lines.append(f"{i}.jpg  " + " ".join(["1", *["-1"] * 39]))
    (root / "CelebAMask-HQ-attribute-anno.txt").write_text("\n".join(lines) + "\n")
    mapping = ["idx orig_idx orig_file", "0 5 000006.jpg", "1 162769 162770.jpg"]
    mapping += ["2 162770 162771.jpg", "3 182637 182638.jpg"]
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(mapping) + "\n")
    assert recognise(root) == (root, "celebahq")
    assert [len(load(root, split)) for split in ("train", "val", "test")] == [2, 1, 1]
    assert load(root, "val").attributes[0, :2].tolist() == [1, -1]


def test_a_folder_that_holds_nothing_says_what_it_could_hold(tmp_path):
    refused(lambda: load(tmp_path), f"{tmp_path} has no picture that can be read")
    refused(lambda: load(tmp_path / "nowhere"), "no folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "pictures.zip").touch()
    refused(lambda: load(tmp_path), "has no picture that can be read but 1 .zip (unpack)")


def test_naming_a_class_denies_the_others():
    rows = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0.5, 0.2, 0], [0, -1, 0]])
    expected = [[1, -1, -1], [0, 0, 0], [0.5, 0.2, -1], [0, -1, 0]]
    torch.testing.assert_close(deny_other_classes(rows), torch.tensor(expected))
    refused(lambda: deny_other_classes(torch.ones(1, 3)), "exclude each other")
    assert one_hot(np.array([2, 0]), 3).tolist() == [[-1, -1, 1], [1, -1, -1]]


@pytest.mark.skipif(not (REAL / "cifar10").is_dir(), reason="the real digits are not here")
def test_real_digits_and_objects():
    data = find_dataset(REAL / "MNIST").open("test", 28)
    assert len(data) == 1000 and 100 < data.images[:, 8:20, 8:20].max() <= 255
    found = find_dataset(REAL / "cifar10")
    assert found.attribute_rows("test").shape == (1000, 10) and found.names[3] == "cat"


def test_a_few_class_pictures_are_of_all_classes(colours):
    few = load(colours, "train").attributes[:16]
    assert ((few == 1).sum(0) > 0).all()


def test_a_named_kind_is_read_whatever_else_the_folder_holds(classes):
    (classes / "MNIST" / "raw").mkdir(parents=True)
    (classes / "CelebAMask-HQ-attribute-anno.txt").touch()
    refused(lambda: find_dataset(classes), "holds celebahq and mnist")
    refused(lambda: find_dataset(classes, "mnist"), "no whole MNIST")
    refused(lambda: find_dataset(classes, "nist"), f"'nist' is not one of {', '.join(DATASETS)}")
    folder, cache = find_dataset(classes, "folder"), classes.parent / "cache"
    config = ModelConfig(("cat", "dog", "owl"), image_size=8)
    assert folder.open("test", 8, cache_dir=cache).attribute_names == config.attribute_names
    assert folder.open_for(config, "test", cache).images.shape[1:] == (8, 8, 3)
    assert folder.first_image("test").suffix == ".png"
    cifar10 = find_dataset(classes, "cifar10").open("test", 8, cache_dir=cache)
    assert cifar10.one_hot, "CIFAR-10 may lie in class folders"


def test_a_dataset_in_arrays_has_no_first_image(tmp_path):
    """Without test files, training pictures test."""
    raw = tmp_path / "MNIST" / "raw"
    idx(raw / "train-images-idx3-ubyte", np.zeros((9, 28, 28)))
    idx(raw / "train-labels-idx1-ubyte", np.arange(9))
    found = find_dataset(tmp_path)
    assert found.first_image("test") is None and "val and test taken from train" in str(found)


def test_two_datasets_in_one_folder_are_told_apart(tmp_path):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "cifar-10-batches-py").mkdir()
    refused(lambda: recognise(tmp_path), "holds mnist and cifar10: give the folder of one")
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").touch()
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").touch()
    assert recognise(tmp_path / "MNIST") == (tmp_path / "MNIST", "mnist")
    assert recognise(tmp_path / "cifar-10-batches-py") == (tmp_path, "cifar10")
