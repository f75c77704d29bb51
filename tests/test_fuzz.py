"""Files and flags from strangers: thousands of inputs, each accepted or refused in one line; no
traceback, no hang, nothing written."""

from __future__ import annotations

import io
import json
import os
import random
import shlex
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from test_photograph import icc_profile

import celeba_dataset
import encode_latents
import evaluate
import export
import flags
import manipulate
import train
import visualize
from checkpoint import FORMAT, load_checkpoint, load_first_stage, save_model
from classifiers.guide import load_guide
from classifiers.judge import load_judge
from config import ModelConfig
from diffusion_model import ConditionalDiffusion, load_model
from image_data import encoded
from image_data.datasets import find_dataset
from image_data.picture import decode_image
from image_data.tables import ANNOTATIONS, METADATA

pytestmark = pytest.mark.slow
REFUSALS = (ValueError, OSError)
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))  # so many times the inputs


def refused(call, *args) -> bool:
    """Whether a call ends in one line; anything but success or that fails the test."""
    try:
        call(*args)
    except REFUSALS as error:
        text = " ".join(str(error).split())
        assert text, repr(error)
        return True
    return False


def mutated(data: bytes, pick: random.Random) -> bytes:
    """A file cut, with bytes changed, doubled, or with a part of it moved."""
    data = bytearray(data)
    kind = pick.choice(["cut", "bytes", "insert", "empty", "swap"][: 5 if len(data) > 1 else 4])
    if kind == "cut":
        return bytes(data[: pick.randrange(len(data))])
    if kind == "empty":
        return bytes(pick.randrange(64))
    if kind == "insert":
        at = pick.randrange(len(data))
        return bytes(data[:at]) + pick.randbytes(pick.randrange(1, 200)) + bytes(data[at:])
    if kind == "swap":
        a, b = sorted(pick.sample(range(len(data)), 2))
        return bytes(data[b:] + data[a:b] + data[:a])
    for _ in range(pick.choice([1, 8, 64])):
        data[pick.randrange(len(data))] = pick.randrange(256)
    return bytes(data)


@pytest.fixture
def small(make_model, tmp_path_factory):
    """best_model.pth of as small a model as there is, since it is read two thousand times."""
    path = tmp_path_factory.mktemp("small") / "best_model.pth"
    save_model(make_model(image_size=4, channels=(8,), blocks_per_level=1), path)
    return path


def test_damaged_checkpoints(small, tmp_path):
    whole, pick, path, count = small.read_bytes(), random.Random(0), tmp_path / "c.pth", 0
    head = 4096  # where the structure lies, besides the end
    for number in range(600 * TIMES):
        data = mutated(whole, pick)
        if number % 3 == 0:  # damage the pickled structure
            data = bytearray(whole)
            for _ in range(pick.choice([1, 4])):
                data[pick.randrange(head)] = pick.randrange(256)
        path.write_bytes(bytes(data))
        count += refused(load_model, path)
    assert count > 300 * TIMES
    assert [each.name for each in tmp_path.iterdir()] == ["c.pth"]


def test_a_checkpoint_that_runs_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    path = tmp_path / "evil.pth"
    torch.save({"format": "attribute-face-diffusion/1", "config": Evil()}, path)
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "touched").exists()


def nested(depth: int) -> list:
    """A list of a few hundred bytes in a file that would be 2 ** depth values written out."""
    value: list = [0]
    for _ in range(depth):
        value = [value, value]
    return value


def test_small_files_that_unfold(small, tmp_path):
    """Shared references and shared memory: refused at once, and nothing is built of them."""
    state, path = load_checkpoint(small), tmp_path / "c.pth"
    large = {"channels": [1024] * 6, "blocks_per_level": 32, "image_size": 2048, "num_heads": 4}
    large |= {"self_attention_levels": [], "cross_attention_levels": []}
    config = ModelConfig(**state["config"] | large)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in ConditionalDiffusion(config).state_dict().items()}
    one = torch.zeros(max(shape.numel() for shape in shapes.values()))
    shared = {name: one[: shape.numel()].view(shape) for name, shape in shapes.items()}
    crafted = [{"format": nested(40)}, {**state, "config": state["config"] | {"image_size": nested(40)}}]
    crafted += [{**state, "config": state["config"] | {"first_stage_config": {"a": nested(40)}}}]
    crafted += [{**state, "config": config.to_dict(), "model": shared}]
    stage = {"first_stage": "vae", "first_stage_config": {"channels": (8,) * 90}}
    crafted += [{**state, "config": state["config"] | stage}]
    stage = {"first_stage": "vae", "first_stage_config": {"channels": [8], "blocks_per_level": 60000}}
    crafted += [{**state, "config": state["config"] | stage}]
    for each in crafted:
        torch.save(each, path)
        assert refused(load_model, path)


@pytest.mark.parametrize("part", ["autoencoder", "judge", "first_stage"])
def test_other_checkpoints(part, tmp_path):
    """Of first stages, judges and encoded folders: a right key with any value."""
    path = tmp_path / "first_stage.pth"
    for value in VALUES:
        state = {"format": FORMAT, part: value, "config": value, "trained_on": value}
        state |= {"attribute_names": ["a"], "crop": 178, "balanced_accuracy": value, "recipe": value}
        torch.save(state, path)
        assert refused(load_first_stage, path)
        assert refused(load_judge, path, ["a"], 178)
        manifest = dict.fromkeys(("image_size", "crop", "first_stage", "splits", "shard"), value)
        manifest |= {"format": encoded.FORMAT, "complete": True, "attribute_names": value}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        assert refused(encoded.LatentDataset, tmp_path, "train")


VALUES = [None, -1, 0, 1, 3, 10**9, 2**70, 0.5, float("nan"), "x", "", [], [0], [10**9] * 3, {}, True]
VALUES += [["a"], [[1]], {"a": 1}, "sd-vae", "vae", [8] * 40]


def test_crafted_configurations(small, tmp_path):
    """Any value in any field: no memory is taken for what the weights do not hold."""
    state, pick, path = load_checkpoint(small), random.Random(1), tmp_path / "c.pth"
    fields = list(ModelConfig.__dataclass_fields__)
    for _ in range(400 * TIMES):
        config = dict(state["config"])
        for name in pick.sample(fields, pick.choice([1, 1, 2])):
            config[name] = pick.choice(VALUES)
        if pick.random() < 0.1:
            config[pick.choice(["", "unknown", "self"])] = 1
        torch.save({**state, "config": config}, path)
        refused(load_model, path)
    for key in ("config", "model"):
        for value in VALUES:
            torch.save({**state, key: value}, path)
            assert refused(load_model, path), (key, value)
            assert refused(load_guide, path)


def picture_forms() -> list[bytes]:
    """A small picture in the formats, modes and profiles that people have, as the bytes of files."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    rgb, p3 = Image.fromarray(noise), {"icc_profile": icc_profile()}
    turned = Image.Exif()
    turned[274] = 6
    kinds = ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]
    kinds += ["AVIF"] if features.check("avif") else []
    saved = [(rgb, kind, {}) for kind in kinds]
    saved += [(rgb.crop((0, 0, 8, 8)), "JPEG", p3), (rgb.crop((0, 0, 8, 8)), "PNG", p3)]
    saved += [(rgb.convert("CMYK"), "JPEG", {}), (rgb.convert("LAB"), "TIFF", {})]
    saved += [
        (rgb.convert("L"), "PPM", {}),
        (Image.fromarray(noise[..., 0] * np.uint16(257)), "PNG", {}),
        (rgb.convert("1"), "PNG", {}),
    ]
    saved += [(rgb.convert("P"), "PNG", {"transparency": 0}), (rgb, "JPEG", {"exif": turned})]
    saved += [(rgb, "GIF", {"save_all": True, "append_images": [rgb.convert("L")] * 3})]
    forms = []
    for page, kind, options in saved:
        file = io.BytesIO()
        page.save(file, kind, **options)
        forms.append(file.getvalue())
    return forms


def as_large(jpeg: bytes) -> bytes:
    """A JPEG that says it is as large as a phone's, and ends early."""
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + struct.pack(">HH", 9000, 12000) + jpeg[start + 4 :]


def test_damaged_pictures(tmp_path):
    pick, path, count, forms = random.Random(2), tmp_path / "p", 0, picture_forms()
    for number in range(1500 * TIMES):
        form = forms[number % len(forms)] if number % 100 else as_large(forms[0])
        path.write_bytes(mutated(form, pick))
        count += refused(decode_image, path, 8, 178)
    assert count > 500 * TIMES


def test_files_that_are_no_pictures(tmp_path):
    """A program, a pipe, and more pixels than memory."""
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n")
    os.mkfifo(tmp_path / "b.jpg")
    Image.new("L", (13_000, 13_000)).save(tmp_path / "c.png")
    (tmp_path / "d.jpg").mkdir()
    for path in sorted(tmp_path.iterdir()):
        assert refused(decode_image, path, 8, 178), path


def as_written(text: str, pick: random.Random) -> bytes:
    """A label file as some program may have written it: other marks between cells, 0 for -1, empty
    rows, another encoding. Often it is damaged, too."""
    for old, new in ((",", ";"), ("-1", "0"), ("\n", "\n\n"), ("\n", "\r\n"), ("\n", "\n,,\n")):
        text = text.replace(old, new) if pick.random() < 0.2 else text
    data = text.encode(pick.choice(["utf-8", "utf-8-sig", "utf-16"]), "surrogateescape")
    return mutated(data, pick) if pick.random() < 0.9 else data


def test_damaged_label_files(faces, tmp_path):
    """CelebA's files, also as Kaggle has them; what is read of them must fit the pictures."""
    pick = random.Random(3)
    root = tmp_path / "root"
    root.mkdir()
    (root / "img_align_celeba").symlink_to(faces / "img_align_celeba")
    names = ("list_attr_celeba.txt", "list_eval_partition.txt")
    whole = {name: (faces / name).read_bytes() for name in names}
    rows = [line.split() for line in whole["list_attr_celeba.txt"].decode().splitlines()[1:]]
    tables = {"list_attr_celeba.csv": [["image_id", *rows[0]], *rows[1:]]}
    rows = [line.split() for line in whole["list_eval_partition.txt"].decode().splitlines()]
    tables["list_eval_partition.csv"] = [["image_id", "partition"], *rows]
    csv = {name: "\n".join(map(",".join, table)).encode() for name, table in tables.items()}
    count = 0
    for number in range(500 * TIMES):
        files = whole if number % 2 else csv
        for path in root.glob("*.*"):
            path.unlink()
        for name, data in files.items():
            (root / name).write_bytes(data)
        name = pick.choice([*files])
        (root / name).write_bytes(as_written(files[name].decode(), pick))
        count += refused(celeba_dataset.read_celeba, root)
    assert count > 250 * TIMES


@pytest.mark.parametrize("name", [*ANNOTATIONS, *METADATA])
def test_damaged_tables(name, tmp_path):
    pick = random.Random(name)
    rows = [{"file_name": f"a{i}.png", "split": "Valid", "Red": i % 2, "label": "ü"} for i in range(9)]
    text = "\n".join(map(json.dumps, rows))
    if name.endswith(".csv"):
        text = "\n".join(";".join(map(str, row)) for row in [rows[0], *(row.values() for row in rows)])
    for i in range(9):
        (tmp_path / f"a{i}.png").touch()
    for _ in range(150 * TIMES):
        (tmp_path / name).write_bytes(as_written(text, pick))
        refused(find_dataset, tmp_path)


NAMES = [
    *("train", "Training", "val", "Validation", "TEST", "test_set", "cat", "dog", "Café", "Cafe\u0301"),
    *("한국어", ".hidden", "__MACOSX", "@eaDir", "images", "masks", "CelebA-HQ-img", "img_align_celeba"),
    *("raw", "MNIST", "a b", "a=b", "x\ny", "\udce9", "data", "n" * 120, "list_attr_celeba.csv", "$1"),
]
SUFFIXES = [*(".jpg", ".JPEG", ".png", "", ".jfif", ".pgm", ".ppm", ".avif", ".heic", ".txt"), ".2"]
SUFFIXES += [".csv", ".zip", ".parquet"]
KINDS = [*[None] * 9, "folder", "celeba", "celebahq", "mnist", "cifar10", "parquet"]
LABELS = [
    "file,Red\n{},1\n",
    "file_name;label\n{};cat\n",
    '{{"file_name": "{}", "label": 3}}',
    "file",
]


# Datasets as people have them. Each word is three pictures ({}) or a label file of all of them.
LAYOUTS = [
    *(
        "",
        "{}",
        "cat/{}",
        "a/{} b/{} .hidden/{} @eaDir/a/{}",
        "images/{} masks/{}",
        "a/TRAIN/{} b/Train/{}",
    ),
    "train/cat/{} train/dog/{} valid/cat/{} __MACOSX/train/cat/._{}",
    "Training/a/{} Training/b/{} Validation/a/{} Testing/b/{}",
    "CelebA-HQ-img/{} CelebAMask-HQ-mask-anno/0/{}",
    "img_align_celeba/img_align_celeba/{} list_attr_celeba.csv list_eval_partition.csv",
    *("{} metadata.csv", "train/{} train/metadata.jsonl", "faces/{} attributes.csv"),
]


def lay_out(root: Path, pick: random.Random, forms: list[bytes]) -> None:
    """One of LAYOUTS, with other suffixes, and folders in any case."""
    pictures: list[Path] = []
    for word in pick.choice(LAYOUTS).split():
        top, slash, rest = word.partition("/")
        word = pick.choice([str, str, str.upper, str.lower])(top) + slash + rest if slash else word
        path = root / word
        path.parent.mkdir(parents=True, exist_ok=True)
        if "{}" in word:
            suffix = pick.choice(SUFFIXES)
            added = [Path(str(path).format(f"{i}{suffix}")) for i in range(3)]
            for each in added:
                each.write_bytes(pick.choice(forms))
            pictures += added
            continue
        names = [os.path.relpath(each, path.parent) for each in pictures]
        if "celeba" in word:
            names = [os.path.basename(name) for name in names]
            header = celeba_dataset.CELEBA_ATTRIBUTES if "attr" in word else ["partition"]
            values = (["1", "-1"] * 20)[: len(header)]
            rows = [["image_id", *header], *([name, *values] for name in names)]
        else:
            rows = [["file_name", "Red", "split"], *([name, "1", "valid"] for name in names)]
        text = "\n".join(map(",".join, rows))
        if word.endswith("jsonl"):
            text = "\n".join(json.dumps({"file_name": name, "label": 3}) for name in names)
        path.write_bytes(as_written(text, pick))


def odd_folder(root: Path, pick: random.Random, forms: list[bytes]) -> None:
    """A dataset, or none, and in it more folders of such names, with pictures, empty files, label files,
    links and pipes."""
    root.mkdir()
    lay_out(root, pick, forms)
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for _ in range(pick.choice([0, 0, 1, 4, 8])):
        folder = pick.choice(folders) / pick.choice(NAMES)
        if folder.is_file():
            continue
        folder.mkdir(exist_ok=True)
        folders.append(folder)
        for i in range(pick.choice([0, 1, 3, 6])):
            path = folder / f"{pick.choice(NAMES)}{i}{pick.choice(SUFFIXES)}"
            path.write_bytes(pick.choice([pick.choice(forms), b"", forms[0][:20]]))
    folder = pick.choice(folders)
    inside = [path for path in folder.iterdir() if path.is_file()]
    if pick.random() < 0.3 and inside:
        text = pick.choice(LABELS).format(os.fsencode(pick.choice(inside).name).decode("latin-1"))
        (folder / pick.choice([*ANNOTATIONS, *METADATA])).write_bytes(as_written(text, pick))
    if pick.random() < 0.2:
        (pick.choice(folders) / "link").symlink_to(
            pick.choice([root, root / "link", folder, root.parent])
        )
    if pick.random() < 0.1:
        os.mkfifo(folder / "pipe.jpg")


def test_odd_folders(tmp_path):
    """Whatever lies in a folder: it is refused, or one line says what it is and every split opens."""
    pick, forms, count = random.Random(6), picture_forms(), 0
    for number in range(200 * TIMES):
        root = tmp_path / str(number)
        odd_folder(root, pick, forms)
        try:
            found = find_dataset(root, pick.choice(KINDS))
            assert len(str(found).splitlines()) == 1 and len(found.names) > 0
            split = pick.choice(["train", "val", "test"])
            refused(found.open, split, 8, 178, 1.0, tmp_path / "cache", 1)
            count += 1
        except REFUSALS as error:
            assert str(error), repr(error)
        shutil.rmtree(root)
    assert count > 50 * TIMES


WORDS = [
    *("--lr", "--config", "--data_root", "--mode", "edit", "--attributes", "Smiling=1", "Male=", "="),
    *("--", "--channels", "0", "-1", "1e999", "nan", "64", "--image_size", "--sampler", "ddim", "all"),
    *("--resume", "--landmarks", "--stage", "guide", "--dataset", "mnist", "--edit_sources", "--seed"),
    *("--strengths", "2", "--cfg_scale", "--edit_cfg_scale", "--from", "--to", "\x00", "ü"),
    *("--save_dir", "9" * 20, "--unconditional", "denoising", "--attribute"),
]


@pytest.mark.parametrize("script", [train, manipulate, evaluate, visualize, encode_latents, export])
def test_any_flags(script, tmp_path, monkeypatch, capsys):
    """Parsed or refused by the parser: exit code 2 and one line after the usage."""
    monkeypatch.chdir(tmp_path)
    pick = random.Random(script.__name__)
    for _ in range(400 * TIMES):
        argv = [pick.choice(WORDS) for _ in range(pick.randrange(1, 8))]
        try:
            flags.run(lambda argv=argv: script.parse_args(argv))
        except SystemExit as stopped:
            assert stopped.code == 2, shlex.join(argv)
            assert "Traceback" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


YAML = [
    "lr: !!python/object/apply:os.system [touch x]",
    *("lr: [&a [0, 0], &b [*a, *a], [*b, *b]]", "<<: [&a {lr: 1}, *a]", "num_workers: off", "flip: 3"),
    *("lr: [1, 2", "- a", "lr: {a: 1}", "1: 2", "lr: ~", "a: &a [*a]", "\x00", "lr: 1e-3\nlr: 2"),
    *("channels: [a, b]", "config: x.yaml", "image_size: 9" * 9),
]


def test_any_configuration_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pick, path = random.Random(5), tmp_path / "c.yaml"
    texts = [*YAML, "channels: [64, 128]\nlr: 1.0e-3\nstage: first_stage\n"]
    for number in range(300 * TIMES):
        text = texts[number % len(texts)].encode()
        path.write_bytes(text if number < len(texts) else mutated(text, pick))
        try:
            flags.run(lambda: train.parse_args(["--config", str(path)]))
        except SystemExit as stopped:
            assert stopped.code == 2
    assert [each.name for each in tmp_path.iterdir()] == ["c.yaml"]
