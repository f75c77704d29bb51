"""The renderer: deterministic, every attribute visible and local, draws possible, files exact."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attributes import CELEBA_ATTRIBUTES, attr_dict
from benchmarks.probe import draw_labelled, train_probe
from evaluation.metrics import balanced_accuracy
from image_data.datasets import find_dataset
from synthetic_faces import dataset as synthetic_dataset
from synthetic_faces.attributes import BEARD, NAMES, present
from synthetic_faces.canvas import pose_of, to_pixels
from synthetic_faces.dataset import (
    attributes_are_possible,
    draw_parameters,
    parallel_draw,
    render,
    sample_attributes,
    sample_identity,
    write_dataset,
)
from synthetic_faces.renderer import layout

# Frequencies of list_attr_celeba.txt, rounded; the renderer's own table is not used here.
CELEBA_FREQUENCIES = (
    0.11, 0.27, 0.51, 0.20, 0.022, 0.15, 0.24, 0.23, 0.24, 0.15, 0.05, 0.21, 0.14, 0.06, 0.05,
    0.065, 0.06, 0.04, 0.39, 0.46, 0.42, 0.48, 0.04, 0.12, 0.83, 0.28, 0.04, 0.28, 0.08, 0.066,
    0.057, 0.48, 0.21, 0.32, 0.19, 0.05, 0.47, 0.12, 0.07, 0.77,
)  # fmt: skip
# All impossible pairs: (an attribute, what it excludes). A minus sign means that it is absent.
IMPOSSIBLE = (
    ("Bald", ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair", "Straight_Hair", "Wavy_Hair",
              "Bangs", "Receding_Hairline")),
    ("Black_Hair", ("Blond_Hair", "Brown_Hair", "Gray_Hair")),
    ("Blond_Hair", ("Brown_Hair", "Gray_Hair")),
    ("Brown_Hair", ("Gray_Hair",)),
    ("Straight_Hair", ("Wavy_Hair",)),
    ("Receding_Hairline", ("Bangs",)),
    ("No_Beard", BEARD),
    ("-Male", ("-No_Beard",)),
)  # fmt: skip
SIZE = 64
REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_attributes_are_celebas_in_its_order():
    assert NAMES == CELEBA_ATTRIBUTES


def row(**values: int) -> np.ndarray:
    """All absent but No_Beard, Young and Brown_Hair, then the given ones."""
    attributes = -np.ones(len(CELEBA_ATTRIBUTES), np.float32)
    for name, value in {"No_Beard": 1, "Young": 1, "Brown_Hair": 1, **values}.items():
        attributes[attr_dict[name]] = value
    return attributes


def identities(count: int):
    return [sample_identity(np.random.default_rng((7, number))) for number in range(count)]


def change(identity, name: str, size: int = SIZE, **values: int) -> np.ndarray:
    """Largest channel difference per pixel (H, W) between `name` absent and present."""
    absent = render(identity, row(**{**values, name: -1}), size).astype(int)
    present = render(identity, row(**{**values, name: 1}), size).astype(int)
    return np.abs(present - absent).max(-1)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_sizes_and_determinism(size):
    for index in range(4):
        identity, attributes = draw_parameters(index, seed=3)
        picture = render(identity, attributes, size)
        assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
        assert picture.std() > 20
        assert np.array_equal(picture, render(identity, attributes, size))
        double = render(identity, attributes, 2 * size).astype(float)
        reduced = double.reshape(size, 2, size, 2, 3).mean((1, 3))
        assert np.abs(reduced - picture).mean() < 5  # the same picture at any size


def test_identities_differ_and_are_not_attributes():
    first, second = identities(2)
    assert np.abs(render(first, row(), SIZE).astype(int) - render(second, row(), SIZE)).mean() > 10
    assert np.array_equal(render(first, np.zeros(40), SIZE), render(first, -np.ones(40), SIZE))


@pytest.mark.parametrize("name", CELEBA_ATTRIBUTES)
def test_every_attribute_is_visible(name):
    beard = {"Male": 1, "No_Beard": -1} if name in BEARD else {}
    colour = {"Brown_Hair": -1} if name.endswith("_Hair") or name == "Bald" else {}
    for identity in identities(6):
        touched = change(identity, name, **{**beard, **colour})
        assert touched.mean() > 0.3, "too faint"
        assert (touched > 20).sum() >= 12, "too small"


# Rows (in face heights from the eye line; the mouth is about 0.3 below) an attribute may touch.
BANDS = {
    "Eyeglasses": (-0.25, 0.25), "Narrow_Eyes": (-0.2, 0.2), "Heavy_Makeup": (-0.3, 0.2),
    "Bags_Under_Eyes": (0.0, 0.25), "Arched_Eyebrows": (-0.4, 0.0),
    "Bushy_Eyebrows": (-0.35, 0.0), "Big_Nose": (-0.05, 0.4), "Pointy_Nose": (-0.15, 0.35),
    "Smiling": (0.05, 0.6), "Mouth_Slightly_Open": (0.1, 0.6), "Wearing_Lipstick": (0.1, 0.6),
    "Big_Lips": (0.1, 0.6), "Rosy_Cheeks": (0.0, 0.45), "Wearing_Hat": (-1.2, -0.15),
    "Bangs": (-1.2, -0.05), "Receding_Hairline": (-1.2, 0.1), "Wearing_Necklace": (0.4, 1.2),
    "Wearing_Necktie": (0.4, 1.2), "Double_Chin": (0.2, 0.9), "Wearing_Earrings": (0.0, 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", BANDS)
def test_local_attributes_stay_in_their_rows(name):
    low, high = BANDS[name]
    for identity in identities(4):
        face, pose = layout(identity, present(row())), pose_of(identity)
        left, right = (to_pixels(pose, x, face.eye_y, SIZE)[1] for _, x in face.eyes)
        eye_line = (left + right) / 2
        tilt = abs(left - right) * 1.5 + 2  # a tilted head slants its rows
        unit = SIZE / 2 * 1.12
        rows = np.flatnonzero(change(identity, name).any(1))
        assert rows.size
        assert rows.min() > eye_line + low * unit - tilt
        assert rows.max() < eye_line + high * unit + tilt


@pytest.mark.parametrize("name", sorted(set(CELEBA_ATTRIBUTES) - {"Attractive", "Blurry"}))
def test_background_is_untouched(name):
    """Only Blurry (everything) and Attractive (its halo) reach the picture's upper corners."""
    for identity in identities(3):
        touched = change(identity, name)
        assert not touched[: SIZE // 3, :4].any() and not touched[: SIZE // 3, -4:].any()


def test_a_hat_hides_hair_but_not_baldness():
    for identity in identities(4):
        assert (change(identity, "Bald", Wearing_Hat=1, Brown_Hair=-1) > 20).sum() > 30
        assert (change(identity, "Receding_Hairline", Wearing_Hat=1) > 20).sum() > 12


@pytest.mark.parametrize("balanced", [False, True])
def test_impossible_pairs_are_never_drawn(balanced):
    rng = np.random.default_rng(5)
    for _ in range(3000):
        attributes = sample_attributes(rng, balanced)
        assert attributes.shape == (40,) and attributes.dtype == np.float32
        assert set(np.unique(attributes)) == {-1, 1}
        assert attributes_are_possible(attributes)


def test_each_impossible_pair_is_recognised():
    def value(term):
        return (term[1:], -1) if term.startswith("-") else (term, 1)

    assert attributes_are_possible(row()) and attributes_are_possible(row(Male=1, No_Beard=-1))
    for term, others in IMPOSSIBLE:
        for other in others:
            pair = dict((value(term), value(other)))
            assert not attributes_are_possible(row(**{"Brown_Hair": -1, **pair})), pair


def test_frequencies_are_celebas():
    rng = np.random.default_rng(11)
    drawn = np.stack([sample_attributes(rng) for _ in range(4000)]) > 0
    wrong = {
        name: (round(float(got), 3), expected)
        for name, got, expected in zip(CELEBA_ATTRIBUTES, drawn.mean(0), CELEBA_FREQUENCIES, strict=True)
        if abs(got - expected) > 0.03 or not expected / 2 < got < expected * 2
    }
    assert not wrong

    def rate(name, given, value=True):
        return drawn[drawn[:, attr_dict[given]] == value, attr_dict[name]].mean()

    assert rate("Wearing_Lipstick", "Male", False) > 3 * rate("Wearing_Lipstick", "Male")
    assert rate("Gray_Hair", "Young", False) > 3 * rate("Gray_Hair", "Young")
    assert rate("High_Cheekbones", "Smiling") > 2 * rate("High_Cheekbones", "Smiling", False)
    assert rate("Wearing_Necktie", "Male") > 2 * rate("Wearing_Necktie", "Male", False)


def test_balanced_draws_are_balanced():
    rng = np.random.default_rng(13)
    drawn = np.stack([sample_attributes(rng, balanced=True) for _ in range(4000)]) > 0
    constrained = {term.lstrip("-") for pair in IMPOSSIBLE for term in (pair[0], *pair[1])}
    free = [attr_dict[name] for name in CELEBA_ATTRIBUTES if name not in constrained - {"Male"}]
    assert np.abs(drawn[:, free].mean(0) - 0.5).max() < 0.04
    assert drawn.mean(0).min() > 0.12 and drawn.mean(0).max() < 0.75
    correlation = np.corrcoef(drawn[:, free].T) - np.eye(len(free))
    assert np.abs(correlation).max() < 0.08


def test_balanced_accuracy_by_hand():
    logits = torch.tensor([[2.0, 1, 1], [3, -1, 1], [-1, 1, 1], [1, -1, 1]])
    attributes = torch.tensor([[1.0, 1, 1], [1, -1, 1], [-1, 1, 1], [-1, 0, 1]])
    accuracy = balanced_accuracy(logits, attributes)
    assert accuracy[:2].tolist() == [0.75, 1.0] and accuracy[2].isnan()


def test_a_small_probe_learns():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small batches: threads would wait for each other
    faces = draw_labelled(480, 32, seed=0, num_workers=1)
    probe = train_probe(*faces, epochs=4, batch_size=16)
    torch.set_num_threads(threads)
    faces, attributes = draw_labelled(200, 32, seed=9, num_workers=1)
    accuracy = balanced_accuracy(probe(faces), attributes)
    assert accuracy.shape == (40,)
    assert accuracy[attr_dict["Wearing_Hat"]] > 0.95 and accuracy[attr_dict["Male"]] > 0.8


def read_folder(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_dataset_layout_and_worker_independence(tmp_path):
    one = read_folder(write_dataset(tmp_path / "one", 40, 32, 4, num_workers=1))
    two = read_folder(write_dataset(tmp_path / "two", 40, 32, 4, num_workers=2))
    assert one == two
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    lines = {name: text.decode().splitlines() for name, text in one.items() if name.endswith(".txt")}
    names = [f"{number:06d}.jpg" for number in range(1, 41)]
    assert [name for name in one if name.endswith(".jpg")] == [f"img_align_celeba/{n}" for n in names]
    header, *rows = lines["list_attr_celeba.txt"][1:]
    assert lines["list_attr_celeba.txt"][0] == "40" and header.split() == list(CELEBA_ATTRIBUTES)
    for index, line in enumerate(rows):
        name, *values = line.split()
        identity, attributes = draw_parameters(index, seed=4)
        assert name == names[index] and np.array_equal(np.array(values, int), attributes)
        with Image.open(tmp_path / "one" / "img_align_celeba" / name) as picture:
            error = np.asarray(picture).astype(int) - render(identity, attributes, 32)
        assert np.abs(error).mean() < 6
    parts = dict(line.split() for line in lines["list_eval_partition.txt"])
    assert list(parts) == names and set(parts.values()) == {"0", "1", "2"}
    three = zip(*[iter(parts.values())] * 3, strict=False)  # pictures of one person, in one split
    assert all(len({*splits}) == 1 for splits in three)
    shorter = read_folder(write_dataset(tmp_path / "shorter", 5, 32, 4, num_workers=1))
    assert all(one[name] == content for name, content in shorter.items() if name.endswith(".jpg"))


def test_existing_folders(tmp_path, capsys):
    out = write_dataset(tmp_path / "faces", 3, 32, 0, num_workers=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert str(find_dataset(out)).startswith(f"{out}: drawn faces, in CelebA's layout; ")
    assert write_dataset(out, 3, 32, 0) == out
    assert "already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(ValueError, match="already holds something else"):
        write_dataset(out, 4, 32, 0)
    (tmp_path / "empty").mkdir()
    assert read_folder(write_dataset(tmp_path / "empty", 3, 32, 0, num_workers=1)) == read_folder(out)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic_dataset, "render", stop)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "faces", 3, 32, 0, num_workers=1)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags",
    [["--num_images", "0"], ["--image_size", "8"], ["--seed", "-1"], ["--num_workers", "-2"],
     ["--num_images", "many"], ["--colour"]],
)  # fmt: skip
def test_wrong_flags_are_one_line_and_exit_code_2(tmp_path, flags):
    result = run_module("--out", str(tmp_path / "faces"), *flags)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("synthetic_faces: error: ")
    assert not any(tmp_path.iterdir())


def run_module(*flags: str) -> subprocess.CompletedProcess:
    """What ``python -m synthetic_faces`` says to these flags."""
    command = [sys.executable, "-m", "synthetic_faces", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)


def test_the_module_writes_what_its_flags_say(tmp_path):
    expected = write_dataset(tmp_path / "one", 3, 32, 5, balanced=True, num_workers=1)
    flags = ["--num_images", "3", "--image_size", "32", "--seed", "5", "--balanced"]
    result = run_module("--out", str(tmp_path / "two"), *flags, "--num_workers", "1")
    assert result.returncode == 0, result.stderr
    assert read_folder(tmp_path / "two") == read_folder(expected)


def test_workers_that_are_spawned_as_on_macos_and_windows_draw_the_same(tmp_path):
    expected = write_dataset(tmp_path / "one", 3, 32, 5, num_workers=1)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        found = write_dataset(tmp_path / "two", 3, 32, 5, num_workers=2)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert read_folder(found) == read_folder(expected)


def test_drawing_needs_no_torch():
    program = "import sys, synthetic_faces.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0


def test_workers_end_though_the_parent_only_notes_sigterm():
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        for _ in range(5):
            assert len(list(parallel_draw(abs, 4, 2, "numbers"))) == 4
    finally:
        signal.signal(signal.SIGTERM, before)
