"""The judge of edits, on pictures whose verdict is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

import evaluate
from attributes import CELEBA_ATTRIBUTES, attr_dict
from celeba_dataset import CelebADataset
from classifiers.judge import Judge
from evaluation.edits import EditJudge, Task
from evaluation.metrics import psnr
from synthetic_faces.attributes import attributes_are_possible
from synthetic_faces.dataset import counterfactuals, draw_parameters, write_dataset

EVERYWHERE = torch.ones(32, 32, dtype=torch.bool)
SMILE = Task("Smiling", attr_dict["Smiling"], 1)


@pytest.fixture
def judge():
    torch.manual_seed(0)
    return EditJudge(Judge(40).eval(), torch.randn(20, 128))


@pytest.fixture
def pictures():
    return torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8, generator=torch.manual_seed(0))


def test_psnr_is_torchmetrics_s(pictures):
    a, b = pictures[:3], pictures[3:]
    expected = [
        peak_signal_noise_ratio(x.float(), y.float(), data_range=255.0)
        for x, y in zip(a, b, strict=True)
    ]
    torch.testing.assert_close(psnr(a, b), torch.stack(expected))
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:5] = True
    torch.testing.assert_close(psnr(a, b, mask), psnr(a[:, :5], b[:, :5]))
    assert (psnr(a, a) == 100).all()


def test_no_edit_keeps_everything(judge, pictures):
    found = judge.measure(pictures, pictures, SMILE, EVERYWHERE)
    assert not found["attributes_changed"].any()
    torch.testing.assert_close(found["cosine"], torch.ones(6))
    assert found["perceptual"].abs().max() < 1e-6 and (found["psnr_outside"] == 100).all()


def test_the_target_is_not_counted_among_the_others(judge, pictures):
    """An edit that turns every logit round flips the target and 39 others."""
    network = judge.judge
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.fill_(-1.0)
    assert judge.measure(pictures[:3], pictures[3:], SMILE, EVERYWHERE)["flip_rate"].sum() == 0
    read_before = network.features

    def features(images):  # the head now reads the sign of a feature that says which half it is
        found = read_before(images)
        first = (images[:, None] == pictures[:3].to(images.device)[None]).flatten(2).all(2).any(1)
        found[:, 0] = torch.where(first, 0.0, 5.0)
        return found

    network.features = features
    with torch.no_grad():
        network.head.weight[:, 0] = 1.0
    found = judge.measure(pictures[:3], pictures[3:], SMILE, EVERYWHERE)
    assert (found["flip_rate"] == 1).all() and (found["attributes_changed"] == 39).all()


def test_an_edit_that_is_the_truth_is_exact(judge, pictures):
    source, truth = pictures[:3], pictures[3:]
    found = judge.against_truth(source, truth, truth, SMILE)
    assert (found["psnr_truth"] == 100).all() and (found["attributes_exact"] == 1).all()
    torch.testing.assert_close(found["psnr_no_edit"], psnr(source, truth))


def test_true_counterfactuals_are_the_same_face_with_one_change(faces, tmp_path):
    data = CelebADataset(faces, "train", 32, cache_dir=tmp_path)
    turned, column = counterfactuals(faces, 32, 178), attr_dict["Smiling"]
    for row in range(4):
        name = data.filenames[row]
        picture = turned(name, column)
        assert picture.shape == (32, 32, 3)
        changed = np.abs(picture.astype(int) - data.images[row]).max(2) > 40
        assert changed.any(), "a smile must show"
        ys = changed.nonzero()[0]
        assert changed.mean() < 0.15 and ys.mean() > 14, "around the mouth, and nowhere else"
    impossible = 0
    for name in data.filenames:
        _, attributes = draw_parameters(int(name[:6]) - 1, seed=0)
        for other in range(len(CELEBA_ATTRIBUTES)):
            flipped = attributes.copy()
            flipped[other] *= -1
            if not attributes_are_possible(flipped):
                impossible += 1
                assert turned(name, other) is None
                break
    assert impossible
    assert counterfactuals(tmp_path, 32, 178) is None


def test_evaluate_judges_edits_and_says_how_they_were_made(checkpoint, tmp_path, launch_two, capsys):
    out, judge, faces = tmp_path / "out", tmp_path / "judge.pth", tmp_path / "faces"
    write_dataset(faces, num_images=100, image_size=32, seed=0, num_workers=1)
    flags = ["--checkpoint", checkpoint, "--data_root", faces, "--judge", judge]
    flags += ["--cache_dir", tmp_path / "cache", "--output_dir", out, "--device", "cpu"]
    flags += ["--attribute_split", "train", "--reference_split", "val", "--num_samples", 32]
    flags += ["--edit", "--edit_attributes", "Smiling", "--edit_sources", 3]
    flags += ["--num_inference_steps", 2, "--edit_cfg_scale", 1, 4]

    def run(*more):
        argv = [str(part) for part in (*flags, *more)]
        flags.run(lambda: evaluate.evaluate(evaluate.parse_args(argv)))

    run("--train_judge", "--judge_epochs", 1)
    report = json.loads((out / "edits.json").read_text())
    assert report["protocol"]["sources"].startswith("val")
    assert report["interpolation"]["worst_end_psnr"] == 100
    assert report["interpolation"]["largest_step_over_mean"] >= 1
    names = [entry["name"] for entry in report["edits"]]
    assert names == ["no edit", "cfg 1", "cfg 4"]
    how = ["--batch_size", 2, "--mixed_precision", "no", "--output_dir", tmp_path / "two"]
    assert "2 processes" in launch_two("evaluate.py", *flags, *how)
    together = json.loads((tmp_path / "two" / "edits.json").read_text())
    for alone, shared in zip(report["edits"], together["edits"], strict=True):
        assert [task["task"] for task in alone["tasks"]] == [task["task"] for task in shared["tasks"]]
        for a, b in zip(alone["tasks"], shared["tasks"], strict=True):
            assert a["cosine"] == pytest.approx(b["cosine"], abs=1e-2)
    for entry in report["edits"][1:]:
        assert [task["task"] for task in entry["tasks"]] == ["add Smiling", "remove Smiling"]
        for task in entry["tasks"]:
            assert 0 <= task["flip_rate"] <= 1 and task["faces"] == 3
            assert task["psnr_no_edit"] > 5
            assert set(task["flip_rate_over_strength"]) == {"0.5", "1.0"}
    text = (out / "edits.md").read_text()
    assert "| no edit |" in text and "median gain" in text
    assert (out / "flip_rate_over_strength.png").is_file()
    assert len(list((out / "edits").glob("*.png"))) == 4
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("--edit_attributes", "Smilling")
    assert "Smilling" in capsys.readouterr().err
