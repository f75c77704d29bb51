"""Distances between feature sets against closed forms and torchmetrics; the judge; the report."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from helpers import one_line, train_judge
from torchmetrics.image.kid import poly_mmd

import evaluate
import flags
from attributes import CELEBA_ATTRIBUTES
from celeba_dataset import CelebADataset
from checkpoint import save_atomically, save_model
from classifiers.judge import Judge, fit_classifier, load_judge
from classifiers.probe import Probe, load_reader, save_probe
from config import ModelConfig, SamplingConfig
from diffusion_model import ConditionalDiffusion
from evaluation import metrics
from evaluation.features import FEATURE_SPACES
from evaluation.metrics import (
    distances,
    frechet_distance,
    kernel_distance,
    nearest,
    neighbourhoods,
    pooled_accuracy,
    pooled_accuracy_by_chance,
    with_error,
)
from evaluation.samples import SampleEvaluation
from evaluation.tables import mean_of_tasks, write_report
from studio import draw
from synthetic_faces.dataset import write_dataset

REPOSITORY = Path(__file__).resolve().parents[1]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(number: int, dim: int, seed: int) -> torch.Tensor:
    """Features of mean exactly 0 and covariance exactly 1."""
    x = normal(number, dim, seed=seed)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


def test_frechet_distance_of_gaussians_has_its_closed_form():
    a, b = whitened(50, 4, 0), whitened(70, 4, 1)
    assert frechet_distance(a, b) == pytest.approx(0, abs=1e-6)
    shift, scale = torch.tensor([1.0, -2, 0, 0.5]).double(), torch.tensor([1.0, 2, 3, 0.5]).double()
    expected = float((shift**2).sum() + ((scale - 1) ** 2).sum())  # they commute
    assert frechet_distance(a, b * scale + shift) == pytest.approx(expected, abs=1e-6)
    mixed = normal(4, 4, seed=3)  # not commuting: against the square root by eigenvectors
    c = b @ mixed
    values, vectors = torch.linalg.eigh(torch.cov((a * scale).T))
    root = vectors @ values.sqrt().diag() @ vectors.T
    inner = torch.linalg.eigvalsh(root @ torch.cov(c.T) @ root).sqrt().sum()
    expected = (a * scale).var(0).sum() + c.var(0).sum() - 2 * inner
    assert frechet_distance(a * scale, c) == pytest.approx(float(expected), rel=1e-8)


def test_kernel_distance_is_that_of_torchmetrics():
    a, b = normal(40, 6), normal(40, 6, seed=1) + 0.5
    assert kernel_distance(a, b) == pytest.approx(float(poly_mmd(a, b)), rel=1e-9)
    same = [kernel_distance(normal(40, 6, seed=i), normal(40, 6, seed=100 + i)) for i in range(60)]
    assert abs(sum(same) / 60) < 2.6 * torch.tensor(same).std() / math.sqrt(60)  # unbiased


def precision_recall_density_coverage(real: torch.Tensor, fake: torch.Tensor) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in neighbourhoods(real, fake).items()}


def test_neighbourhoods_by_hand():
    """Three points of each set on a line. With k = 1 the balls of 0, 1, 3 reach 1, 1, 2, and those of
    0.5, 10, 10.5 reach 9.5, 0.5, 0.5."""
    real, fake = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [10.0], [10.5]])
    result = {name: values.tolist() for name, values in neighbourhoods(real, fake, k=1).items()}
    assert result["precision"] == [1, 0, 0] and result["density"] == [2, 0, 0]
    assert result["recall"] == [1, 1, 1] and result["coverage"] == [1, 1, 0]


def test_neighbourhoods_tell_quality_from_variety():
    real = normal(400, 8)
    same = precision_recall_density_coverage(real, normal(400, 8, seed=1))
    assert same["precision"] > 0.85 and same["recall"] > 0.85 and 0.8 < same["density"] < 1.2
    narrow = precision_recall_density_coverage(real, 0.2 * normal(400, 8, seed=1))
    assert narrow["precision"] > 0.95 and narrow["recall"] < 0.1 and narrow["coverage"] < 0.6
    far = precision_recall_density_coverage(real, normal(400, 8, seed=1) + 10)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    with pytest.raises(ValueError, match="more images than 5"):
        neighbourhoods(real, real[:5])


def test_interval_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(100):
        x = normal(80, seed=seed)
        value, error = with_error("mean", lambda i, x=x: float(x[i].mean()), 80, seed=seed).values()
        assert value == pytest.approx(float(x.mean()))
        hits += abs(value) <= error
    assert 87 <= hits <= 99


def test_short_requests_are_judged_together():
    requests = torch.tensor([[1.0, 0, -1], [0, 1, 0], [0, -1, 1]])
    logits = torch.tensor([[1.0, 9, 1], [9, -1, 9], [9, -1, 1]])  # 2 of 3 present, 1 of 2 absent
    assert pooled_accuracy(logits, requests) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_others_requests_are_met_by_chance_as_over_all_pairs():
    generator = torch.Generator().manual_seed(0)
    requests = torch.randint(-1, 2, (7, 5), generator=generator).float()
    logits = torch.randn(7, 5, generator=generator)
    over_shifts = [pooled_accuracy(logits, requests.roll(shift, 0)) for shift in range(1, 7)]
    assert pooled_accuracy_by_chance(logits, requests) == pytest.approx(sum(over_shifts) / 6)


def test_many_images_are_compared_in_parts(monkeypatch):
    real, fake = normal(130, 5).float(), normal(90, 5, seed=1).float()
    whole = neighbourhoods(real, fake)
    monkeypatch.setattr(metrics, "PAIRS", 32 * 90)
    for name, values in neighbourhoods(real, fake).items():
        assert torch.equal(values, whole[name])
    monkeypatch.setattr(metrics, "KERNEL_IMAGES", 60)
    assert distances(fake, real)["kernel_error"] > 0


def test_memory_does_not_grow_with_the_pairs():
    """6,000 images against 6,000, in half of the 144 MB that one matrix of all pairs takes."""
    code = """
import resource, torch
from evaluation import metrics
from evaluation.metrics import distances, nearest
metrics.PAIRS, metrics.KERNEL_IMAGES = 2**21, 500
a, b = torch.randn(6000, 8), torch.randn(6000, 8)
megabytes = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
distances(a[:2000], b[:2000])
before = megabytes()
distances(a, b), nearest(a, b)
print(megabytes() - before)
"""
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert float(done.stdout) < 72


def test_distances_and_nearest():
    real, fake = normal(60, 5), normal(40, 5, seed=1)
    figures = distances(fake, real)
    assert figures["frechet"] == frechet_distance(fake, real)
    assert 0 < figures["frechet_error"] < 10 and 0 < figures["kernel_error"] < 10
    values, which = nearest(real[7:9] + 1e-6, real)
    assert which.tolist() == [7, 8] and values.max() < 1e-4


def test_image_i_does_not_depend_on_the_batch(make_model):
    model, sampling = make_model(), SamplingConfig(num_inference_steps=3)
    rows = torch.tensor([[1.0, -1, 1], [-1, 1, 1], [1, 1, 1]])
    whole = draw(model, rows, sampling, batch_size=3)
    alone = draw(model, rows, sampling, batch_size=1)
    assert (whole.int() - alone.int()).abs().max() <= 1
    assert (whole[0].int() - whole[2].int()).abs().max() > 1


def run_evaluate(*argv) -> None:
    flags.run(lambda: evaluate.evaluate(evaluate.parse_args([str(part) for part in argv])))


def test_the_judge_of_all_attributes_serves_a_model_of_some(tmp_path):
    judge, images = Judge(3), torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    state = {"judge": judge.state_dict(), "attribute_names": ["a", "b", "c"], "crop": 178}
    save_atomically(state | {"balanced_accuracy": [0.5, 0.6, 0.8]}, tmp_path / "judge.pth")
    some, facts = load_judge(tmp_path / "judge.pth", ("b", "c"), 178)
    torch.testing.assert_close(some(images), judge.eval()(images)[:, 1:])
    assert facts["test_balanced_accuracy"] == pytest.approx(0.7)
    with pytest.raises(ValueError, match="has other 2"):
        load_judge(tmp_path / "judge.pth", ("c", "d"), 178)


def test_a_judge_reads_at_the_side_that_its_file_says(tmp_path):
    judge, images = Judge(1, side=128).eval(), torch.randint(256, (2, 128, 128, 3), dtype=torch.uint8)
    state = {"judge": judge.state_dict(), "attribute_names": ["a"], "crop": 178, "side": 128}
    save_atomically(state | {"balanced_accuracy": [0.5]}, tmp_path / "judge.pth")
    loaded, _ = load_judge(tmp_path / "judge.pth", ("a",), 178)
    assert loaded.input(images).shape == (2, 3, 128, 128)
    torch.testing.assert_close(loaded(images), judge(images))
    probe = Probe(side=128).eval()
    save_probe(probe, tmp_path / "probe.safetensors", [0.5] * 40)
    loaded = load_reader(tmp_path / "probe.safetensors", CELEBA_ATTRIBUTES, 178)
    torch.testing.assert_close(loaded(images), probe(images), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("names", [{"attribute_names": ["a"]}, {}], ids=["judge", "probe"])
@pytest.mark.parametrize("side", ["64", 10**6, 0])
def test_a_side_that_cannot_be_is_refused(names, side, tmp_path):
    state = {"judge": {}, "crop": 178, "balanced_accuracy": [0.5], "side": side} | names
    save_atomically(state, tmp_path / "judge.pth")
    with pytest.raises(ValueError, match=f"judge.pth reads pictures of side {side}"):
        load_reader(tmp_path / "judge.pth", ("a",), 178)


def test_a_report_has_every_figure_its_protocol_and_pictures(checkpoint, tmp_path, capsys, monkeypatch):
    red_and_green = lambda images: images.float().mean((1, 2))[:, :2].cpu()  # noqa: E731
    monkeypatch.setitem(FEATURE_SPACES, "red and green", lambda config, judge: red_and_green)
    out, judge, faces = tmp_path / "out", tmp_path / "judge.pth", tmp_path / "faces"
    write_dataset(faces, num_images=100, image_size=32, seed=0, num_workers=1)
    common = ["--checkpoint", checkpoint, "--data_root", faces, "--judge", judge]
    common += ["--cache_dir", tmp_path / "cache", "--attribute_split", "train", "--output_dir", out]
    common += ["--reference_split", "val"]
    common += ["--num_samples", 32, "--num_inference_steps", 2]
    line = one_line(capsys, lambda: run_evaluate(*common))
    assert "make one with evaluate.py judge" in line and not out.exists()
    training = ("--data_root", faces, "--cache_dir", tmp_path / "cache", "--judge_epochs", 1)
    train_judge(judge, *training)
    assert f"written: {judge}" in capsys.readouterr().out and not out.exists()
    line = one_line(capsys, lambda: run_evaluate(*common, "--sampler", "ddim", "ddpm", "--eta", 0.5))
    assert "ddpm takes no eta" in line and not out.exists()
    run_evaluate("samples", *common, "--cfg_scale", 0, 2, "--requests", "none", "whole", "three")
    report = json.loads((out / "report.json").read_text())
    protocol = report["protocol"]
    assert protocol["num_samples"] == 32 and protocol["crop"] == 178
    assert protocol["checkpoint"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12]
    kinds = [(entry["sampling"]["cfg_scale"], entry["request"]) for entry in report["settings"]]
    assert kinds == [*product((0, 2), ("whole", "three", "none"))]
    for entry in report["settings"]:
        assert entry["sampling"]["spacing"] == "log_snr"
        for space in ("judge", "red and green"):
            assert entry[space]["frechet"] > 0 and entry[space]["coverage"] >= 0
        assert entry["median_distance_to_train"] > 0
        figures = entry["attributes"]
        if entry["request"] == "whole":
            assert 0 <= figures["balanced_accuracy"] <= 1 and len(figures["each"]) == 40
        else:
            assert all(0 <= rate <= 1 for rates in figures["unasked"].values() for rate in rates)
    three = report["settings"][4]["attributes"]
    assert 0 <= three["named_accuracy_by_chance"] <= 1 and 0 <= three["named_accuracy"] <= 1
    faces_rows = CelebADataset(faces, "train", 32, cache_dir=tmp_path / "cache").attributes
    nothing = report["settings"][5]["attributes"]["unasked"]
    expected = (faces_rows > 0).float().mean(0).tolist()
    assert [rates[1] for rates in nothing.values()] == pytest.approx(expected, abs=1e-5)
    assert report["autoencoder"]["psnr"] > 5 and report["real"]["judge"]["frechet"] > 0
    text = (out / "report.md").read_text()
    spaces = len({*report["real"]} & {*FEATURE_SPACES})
    assert protocol["checkpoint"] in text and text.count("| dpm_solver | log_snr |") == 6 * spaces
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures >= {
        "samples_three_dpm_solver_2_cfg2.png",
        "nearest_whole_dpm_solver_2_cfg0.png",
        "sweep_cfg_scale.png",
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("edits --guide_scale 2", "did you mean --edit_guide_scale"),
        ("edits --cfg_scale 2", "did you mean --edit_cfg_scale"),
        ("edit", "no subcommand 'edit': use one of judge, samples, edits"),
    ],
)
def test_a_flag_of_another_subcommand_is_one_line(argv, message, tmp_path, capsys):
    assert message in one_line(capsys, lambda: run_evaluate(*argv.split(), "--data_root", tmp_path))


def test_pictures_without_labels_have_no_judge(tmp_path, capsys):
    """Neither is one trained, nor does one that learned nothing measure."""
    root, judge = tmp_path / "pictures", tmp_path / "judge.pth"
    write_dataset(tmp_path / "faces", num_images=20, image_size=32, seed=0, num_workers=1)
    shutil.copytree(tmp_path / "faces" / "img_align_celeba", root)
    data = ["--data_root", root, "--cache_dir", tmp_path / "cache", "--judge", judge]
    line = one_line(capsys, lambda: run_evaluate("judge", *data, "--image_size", 32))
    assert f"a judge would learn nothing from {root}: no attribute is present in some" in line
    assert not judge.exists()
    names = ["picture"]
    state = {"judge": Judge(1).state_dict(), "attribute_names": names, "crop": 178}
    save_atomically(state | {"balanced_accuracy": [math.nan]}, judge)
    config = ModelConfig(
        names, image_size=32, channels=(16, 32), num_heads=2, latent_dim=8, prior_rows=1
    )
    save_model(ConditionalDiffusion(config), tmp_path / "model.pth")
    more = ["--checkpoint", tmp_path / "model.pth", "--output_dir", tmp_path / "out"]
    for command in ("samples", "edits"):
        line = one_line(capsys, lambda command=command: run_evaluate(command, *data, *more))
        assert f"{judge} learned nothing: no attribute was present in some test pictures" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("epochs", [1, 5])
def test_a_classifier_learns_in_few_steps(epochs):
    rows, generator = torch.ones(8, 1), torch.Generator()
    options = {"batch_size": 64, "lr": 1e-3, "weight_decay": 0.0, "generator": generator, "label": ""}
    model = torch.nn.Linear(2, 1)
    fit_classifier(model, lambda rows: torch.ones(len(rows), 2), rows, epochs, **options)


def test_a_rare_attribute_weighs_as_its_absence():
    """Where pictures say nothing, the best logit is 0, however rare the attribute is."""
    rows, model = -torch.ones(64, 1), torch.nn.Linear(2, 1)
    rows[:6] = 1
    options = {
        "batch_size": 64,
        "lr": 0.1,
        "weight_decay": 0.0,
        "generator": torch.Generator(),
        "label": "",
    }
    fit_classifier(model, lambda rows: torch.ones(len(rows), 2), rows, 200, **options)
    assert abs(model(torch.ones(1, 2)).item()) < 0.1


def test_a_small_reference_split_is_named(checkpoint, faces, tmp_path, capsys, monkeypatch):
    assert SampleEvaluation.fewest == 6  # five neighbours, and the image itself
    monkeypatch.setattr(SampleEvaluation, "fewest", 7)
    data = ["--data_root", faces, "--cache_dir", tmp_path / "cache", "--judge", tmp_path / "judge.pth"]
    names = CelebADataset(faces, "test", 32, cache_dir=tmp_path / "cache").attribute_names
    state = {"judge": Judge(40).state_dict(), "attribute_names": list(names), "crop": 178}
    save_atomically(state | {"balanced_accuracy": [0.5] * 40}, tmp_path / "judge.pth")
    out = ["--checkpoint", checkpoint, "--attribute_split", "train", "--output_dir", tmp_path / "out"]
    line = one_line(capsys, lambda: run_evaluate(*data, *out))
    assert "6 images in the test split, at least 7 are needed: choose another --reference_split" in line
    assert not (tmp_path / "out").exists()


def test_json_has_null_for_what_is_no_number(tmp_path):
    report = {"a": math.nan, "b": [1.0, math.inf], "c": {"d": (math.nan, 2)}, "e": "nan", "f": None}
    assert write_report(tmp_path, "report", report, lambda report: str(report["a"])) == "None"
    text = (tmp_path / "report.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    expected = {"a": None, "b": [1.0, None], "c": {"d": [None, 2]}, "e": "nan", "f": None}
    assert json.loads(text) == expected
    tasks = [{"task": "a", "cosine": None}, {"task": "b", "cosine": 0.5}]
    assert mean_of_tasks(tasks) == {"cosine": 0.5}


@pytest.mark.parametrize("argv", ["samples --guide_scale 2", "edits --smallest"])
def test_what_needs_a_guide_says_so(argv, make_model, faces, tmp_path, capsys):
    save_model(make_model(), tmp_path / "model.pth")
    files = ["--checkpoint", tmp_path / "model.pth", "--data_root", faces]
    line = one_line(capsys, lambda: run_evaluate(*argv.split(), *files))
    assert f"{argv.split()[1]} needs a guide" in line
