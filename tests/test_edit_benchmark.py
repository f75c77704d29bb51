"""The benchmark of edits with a truth: what is made, the figures of known edits, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from helpers import one_line
from PIL import Image

import flags
from attributes import CELEBA_ATTRIBUTES
from benchmarks import edit_baselines
from checkpoint import save_model
from classifiers.probe import PROBE, load_reader
from evaluation.edit_figures import edit_figures
from synthetic_faces import benchmark
from synthetic_faces.attributes import sample_identity
from synthetic_faces.benchmark import STREAMS, read_benchmark


def run(*argv: object) -> None:
    """``python -m synthetic_faces.benchmark`` with these words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["synthetic_faces.benchmark", *map(str, argv)])
        flags.run(benchmark.main)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A benchmark with one face for each attribute and direction."""
    folder = tmp_path_factory.mktemp("benchmark") / "made"
    run("make", "--out", folder, "--sources", 1)
    return folder


def test_each_attribute_is_turned_both_ways_in_a_face_that_can(made):
    edits = read_benchmark(made)
    requests = [(request["attribute"], request["value"]) for request in edits.requests]
    assert requests == [(name, value) for name in CELEBA_ATTRIBUTES for value in (1, 0)]
    assert all(r["attributes"][r["attribute"]] == 1 - r["value"] for r in edits.requests)
    assert edits.sources.shape == edits.truths.shape == (80, 64, 64, 3)
    assert len({source.tobytes() for source in edits.sources}) == 80
    change = np.square(edits.sources.astype(float) - edits.truths).mean((1, 2, 3))
    assert change.min() >= 2
    glasses = requests.index(("Eyeglasses", 1))
    where = (edits.sources[glasses] != edits.truths[glasses]).any(-1)
    assert where[20:44].any() and not where[50:].any(), "around the eyes and nowhere else"
    present = np.array([[*request["attributes"].values()] for request in edits.requests]) > 0
    with torch.no_grad():
        seen = load_reader(PROBE, CELEBA_ATTRIBUTES, 178)(torch.from_numpy(edits.sources)) > 0
    assert (seen.numpy() == present).mean() > 0.95, "the probe reads drawn faces"


def test_training_sets_never_draw_its_faces():
    """They draw identities from stream 0, and attributes from stream 1, of any seed."""
    assert not {0, 1} & {*STREAMS}
    identities = [sample_identity(np.random.default_rng((0, stream, 5))) for stream in (0, *STREAMS)]
    assert len({*identities}) == 3


def test_the_same_flags_make_the_same_set_and_others_another(made, tmp_path, capsys):
    run("make", "--out", tmp_path / "again", "--sources", 1)
    facts = read_benchmark(made).facts
    said = capsys.readouterr().out
    assert f"version 1, seed 0, hash {facts['hash']}" in said
    assert read_benchmark(tmp_path / "again").facts == facts
    run("make", "--out", tmp_path / "again", "--sources", 1)
    assert "is already there" in capsys.readouterr().out
    run("make", "--out", tmp_path / "other", "--sources", 1, "--seed", 1, "--image_size", 32)
    assert read_benchmark(tmp_path / "other").facts["hash"] != facts["hash"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]
    other = ("make", "--out", tmp_path / "again", "--sources", 1, "--seed", 1)
    assert "holds something else" in one_line(capsys, lambda: run(*other))


@pytest.mark.parametrize("part", ["sources", "truths"])
def test_a_folder_of_pictures_is_scored_the_same_twice(made, tmp_path, capsys, part):
    edits = shutil.copytree(made / part, tmp_path / "edits")
    printed = []
    for _ in range(2):
        run("score", "--edits", edits, "--benchmark", made)
        printed.append((capsys.readouterr().out, (edits / "score.json").read_bytes()))
    assert printed[0] == printed[1]
    report = json.loads(printed[0][1])
    assert report["benchmark"] == read_benchmark(made).facts and len(report["edits"]) == 80
    row = report["table"]["all"]
    assert row == report["table"]["no edit" if part == "sources" else "the truth"]
    if part == "sources":
        assert row["median_gain"] == row["gain"] == row["attributes_changed"] == 0
        assert "inside" not in row and row["flip_rate"] < 0.1
        assert 20 < row["median_psnr_truth"] < 40
    else:
        assert row["median_psnr_truth"] == row["psnr_truth"] == 100 and row["median_gain"] > 50
        assert row["inside"] == 1 and row["perceptual_truth"] < 1e-6
        assert row["flip_rate"] > 0.9
    rows = printed[0][0].splitlines()
    assert sum(row.startswith("| ") for row in rows) == 1 + 40 + 5


def test_figures_by_hand():
    """Two edits of one grey picture. The judge of attribute k reads pixel (0, k)."""

    class Pixels:
        def __call__(self, images):
            return images[:, 0, :3, 0].float() - 100

        def input(self, images):
            return images.permute(0, 3, 1, 2).float()

        def stages(self):
            return [torch.nn.Identity()]

    source = torch.full((2, 4, 4, 3), 90, dtype=torch.uint8)
    truth, edited = source.clone(), source.clone()
    truth[:, 0, 1] = 110  # attribute 1 is to come
    edited[0, 0, 1] = 110
    edited[0, 0, 2] = 110  # as much beside it, which adds attribute 2
    column = direction = torch.tensor([1, 1])
    figures = edit_figures(Pixels(), source, edited, column, direction, truth)
    assert figures["flip_rate"].tolist() == [1, 0]
    assert figures["attributes_changed"].tolist() == [1, 0]
    assert figures["inside"][0] == 0.5 and np.isnan(figures["inside"][1])
    expected = 10 * np.log10(255**2 * 16 / 400)  # one pixel of sixteen is off by 20
    np.testing.assert_allclose(figures["psnr_truth"], expected, rtol=1e-5)
    assert figures["gain"].tolist() == [0, 0]
    turned = edit_figures(Pixels(), source, edited, column, -direction, truth)
    assert turned["flip_rate"].tolist() == [0, 1] and turned["flip_rate_truth"].tolist() == [0, 0]


def png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("edits/003.png", None, "003.png does not exist"),
        ("edits/007.png", png(32), "007.png has 32 x 32 pixels, the benchmark 64 x 64"),
        ("edits/007.png", b"not a picture", "007.png is not a readable picture"),
        ("benchmark/benchmark.json", None, "no benchmark at"),
        ("benchmark/benchmark.json", b"[1, 2", "holds no benchmark that can be used"),
        ("benchmark/benchmark.json", b'{"version": 0}', "it is of version 0, and this is 1"),
        ("benchmark/truths/000.png", png(64), "it was changed"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(made, tmp_path, capsys, name, content, message):
    edits = shutil.copytree(made / "sources", tmp_path / "edits")
    own = shutil.copytree(made, tmp_path / "benchmark")
    (tmp_path / name).unlink()
    if content:
        (tmp_path / name).write_bytes(content)
    score = ("score", "--edits", edits, "--benchmark", own)
    assert message in one_line(capsys, lambda: run(*score))
    assert not (edits / "score.json").exists()


def test_baselines_write_edits_and_are_scored(made, make_model, tmp_path, capsys, monkeypatch):
    model = tmp_path / "model.pth"
    save_model(make_model(CELEBA_ATTRIBUTES, image_size=64, patch_size=8), model)
    options = ["--benchmark", made, "--output_dir", tmp_path, "--checkpoint", model, "--device", "cpu"]
    options += ["--num_faces", 50, "--num_inference_steps", 2, "--mixed_precision", "no"]
    methods = ("no_edit", "mean_difference")
    monkeypatch.setattr(sys, "argv", ["edit_baselines.py", *map(str, options), "--methods", *methods])
    edit_baselines.main()
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["edits"]
    assert [*rows] == [*methods]
    assert rows["no_edit"]["gain"] == 0 and rows["mean_difference"]["inside"] > 0.2
    config = flags.parse(edit_baselines.EditBaselinesConfig, "", [*map(str, options)])
    sources = torch.from_numpy(read_benchmark(made).sources[:2])
    for method in ("sdedit", "ours"):
        edited = edit_baselines.METHODS[method](config)(sources, "Smiling", 1)
        assert edited.shape == sources.shape and not torch.equal(edited, sources), method
    small = ["--checkpoint", "drawn64", "--benchmark", tmp_path / "small"]
    run("make", "--out", tmp_path / "small", "--sources", 1, "--image_size", 32)
    with pytest.raises(ValueError, match="64 pixels and knows 40 of 40"):
        edit_baselines.load(flags.parse(edit_baselines.EditBaselinesConfig, "", [*map(str, small)]))
