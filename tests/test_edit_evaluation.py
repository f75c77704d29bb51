"""The judge of edits, on pictures whose verdict is known."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import one_line, train_judge
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio

import evaluate
import flags
from attributes import CELEBA_ATTRIBUTES, attr_dict
from celeba_dataset import CelebADataset
from checkpoint import save_model
from classifiers.guide import GuidanceClassifier
from classifiers.judge import Judge
from diffusion_model import load_model
from evaluation.changes import ChangeMeter, null_edits
from evaluation.edits import Task, measure, paired_differences
from evaluation.metrics import psnr
from evaluation.recogniser import SAME_PERSON, Recogniser
from evaluation.tables import on_the_way
from image_data.files import DRAWN_FACES
from studio import FLIP_MARGIN, smallest_flip
from synthetic_faces.attributes import attributes_are_possible
from synthetic_faces.dataset import counterfactuals, draw_parameters, write_dataset

NAMES_OF_SMALLEST = ["cfg 8, guide 5", "cfg 8, guide 5, smallest"]


@pytest.fixture
def judge():
    torch.manual_seed(0)
    return Judge(40).eval()


@pytest.fixture
def pictures():
    return torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8, generator=torch.manual_seed(0))


def figures_of(judge, source, edited, truth=None):
    """``measure`` of smiles, where nothing may change."""
    smile, everywhere = Task("Smiling", attr_dict["Smiling"], 1), torch.ones(32, 32, dtype=torch.bool)
    mean = torch.randn(20, 128, generator=torch.manual_seed(1)).relu().mean(0)
    return measure(judge, mean, source, edited, smile, everywhere, truth)


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
    figures = figures_of(judge, pictures, pictures)
    assert not figures["attributes_changed"].any()
    torch.testing.assert_close(figures["cosine"], torch.ones(6))
    assert figures["perceptual"].abs().max() < 1e-6 and (figures["psnr_outside"] == 100).all()


def test_the_target_is_not_counted_among_the_others(judge, pictures):
    """An edit that turns every logit round flips the target and 39 others."""
    with torch.no_grad():
        judge.head.weight.zero_()
        judge.head.bias.fill_(-1.0)
    assert figures_of(judge, pictures[:3], pictures[3:])["flip_rate"].sum() == 0
    read_before = judge.features

    def features(images):  # the head now reads the sign of a feature that says which half it is
        values = read_before(images)
        first = (images[:, None] == pictures[:3].to(images.device)[None]).flatten(2).all(2).any(1)
        values[:, 0] = torch.where(first, 0.0, 5.0)
        return values

    judge.features = features
    with torch.no_grad():
        judge.head.weight[:, 0] = 1.0
    figures = figures_of(judge, pictures[:3], pictures[3:])
    assert (figures["flip_rate"] == 1).all() and (figures["attributes_changed"] == 39).all()


def test_an_edit_that_is_the_truth_is_exact(judge, pictures):
    source, truth = pictures[:3], pictures[3:]
    figures = figures_of(judge, source, truth, truth)
    assert (figures["psnr_truth"] == 100).all() and (figures["attributes_exact"] == 1).all()
    torch.testing.assert_close(figures["psnr_no_edit"], psnr(source, truth))
    assert (figures["inside"] == 1).all() and figures["perceptual_truth"].abs().max() < 1e-6


def test_differences_are_taken_photograph_by_photograph():
    """A constant difference has no error, however much photographs differ."""
    values = torch.tensor([0.0, 5.0, 9.0])
    first = [{"cosine": values, "psnr_outside": values}, {"cosine": values, "psnr_outside": values}]
    other = [{"cosine": values + 2}, {"cosine": values + 2}]
    assert paired_differences(first, other) == {"cosine": 2.0, "cosine_error": 0.0}


class Reader(torch.nn.Module):
    """Log odds of three attributes: how bright red, green and blue are."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.weight * (images.float().mean((1, 2)) - 128)


def test_what_moves_no_more_than_noise_has_not_changed():
    """Red is asked for and moves; green moves, and green and blue go with red or do not."""
    images = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8)
    meter = ChangeMeter([Reader(), Reader()], images, flips=True)
    assert all((spread > 0).all() for spread in meter.spreads)
    unedited = null_edits(images, True, torch.Generator().manual_seed(1))
    figures = [meter.figures(images, edited, 0, torch.zeros(40, 3)) for edited in unedited]
    assert torch.stack([each["others_moved"] for each in figures]).mean() < 0.2  # of two attributes
    source = torch.full((2, 16, 16, 3), 120, dtype=torch.uint8)
    edited = source.clone()
    edited[..., :2] = 140  # red and green pass 128
    edited[1, ..., 2] = 100  # blue falls, and was below 128 before
    alone = meter.figures(source, edited, 0, torch.zeros(2, 3))
    assert alone["others_moved"].tolist() == [1, 2] and alone["others_turned"].tolist() == [1, 1]
    assert alone["along_moved"].tolist() == [0, 0]
    along = meter.figures(source, edited, 0, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0]]))
    assert along["others_moved"].tolist() == [0, 1] and along["along_moved"].tolist() == [1, 1]


def test_judges_that_contradict_each_other_see_no_change():
    images = torch.randint(0, 256, (20, 16, 16, 3), dtype=torch.uint8)
    contrary = Reader()
    with torch.no_grad():
        contrary.weight.fill_(-1.0)
    meter = ChangeMeter([Reader(), contrary], images, flips=True)
    source = torch.full((1, 16, 16, 3), 100, dtype=torch.uint8)
    figures = meter.figures(source, source + 50, 0, torch.zeros(1, 3))
    assert not figures["others_moved"].any()


def test_others_on_the_way_are_the_area_under_the_curve():
    def point(flips, others):
        return {"flip_rate": flips, "attributes_changed": others}

    points = [(0.0, point(0.1, 0.0)), (0.5, point(0.5, 1.0)), (1.0, point(0.9, 3.0))]
    assert on_the_way(points) == pytest.approx((0.4 * 0.5 + 0.4 * 2.0) / 0.8)
    assert on_the_way(points[:1]) is None


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
    for damaged in ("[1]", '{"drawing": 1}', "{"):
        (tmp_path / DRAWN_FACES).write_text(damaged)
        with pytest.raises(ValueError, match="holds no whole set of drawn faces"):
            counterfactuals(tmp_path, 32, 178)


class Brightness:
    """A guide of two attributes: by how much a picture is brighter, and darker, than 60."""

    config = SimpleNamespace(attribute_names=("Smiling", "Blurry"))
    prior = torch.zeros(2)

    @staticmethod
    def read_logits(images):
        odds = images[:, 0, 0, :1].float() - 60
        return torch.cat([odds, -odds], 1)


@pytest.mark.parametrize(
    "request_", [{"Smiling": 1.0}, {"Blurry": 0.0}, {"Smiling": 1.0, "Blurry": 0.0}]
)
@pytest.mark.parametrize(("start", "least"), [(20, 0.41), (200, 0.0), (-100, 1.0)])
def test_the_smallest_edit_is_the_weakest_that_the_guide_sees(start, least, request_):
    """It becomes bright enough; it is so already; it never does."""

    def edit_at(strength):
        value = min(max(start + 100 * strength, 0), 255)
        return torch.full((1, 4, 4, 3), value).to(torch.uint8)

    strength, edited = smallest_flip(edit_at, Brightness(), request_)
    assert strength == pytest.approx(least, abs=0.02)
    assert (edited[0, 0, 0, 0] >= 60 + FLIP_MARGIN) == (least < 1)


@pytest.fixture(scope="module")
def options(checkpoint, tmp_path_factory):
    """Flags of evaluate.py edits: drawn faces, a judge of one epoch, two steps; an untrained guide."""
    root = tmp_path_factory.mktemp("edits")
    write_dataset(root / "faces", num_images=100, image_size=32, seed=0, num_workers=1)
    torch.manual_seed(0)
    config = replace(load_model(checkpoint).config, attribute_names=("Male", "Smiling"), prior_rows=0)
    guide = GuidanceClassifier(config)
    torch.nn.init.normal_(guide.network.weight)
    save_model(guide, root / "guide.pth", "guide")
    data = ["--data_root", root / "faces", "--cache_dir", root / "cache", "--device", "cpu"]
    train_judge(root / "judge.pth", *data, "--judge_epochs", 1)
    data += ["--judge", root / "judge.pth"]
    edits = ["--checkpoint", checkpoint, "--reference_split", "val", "--num_inference_steps", 2]
    return [*data, *edits], root / "guide.pth"


def run(*argv):
    words = [str(word) for word in argv]
    flags.run(lambda: evaluate.evaluate(evaluate.parse_args(words)))


def test_evaluate_judges_edits_and_says_how_they_were_made(options, tmp_path, launch_two, capsys):
    out, edits = tmp_path / "out", [*options[0], "--edit_attributes", "Smiling", "--edit_sources", 3]
    edits += ["--edit_cfg_scale", 1, 4]
    run("edits", *edits, "--output_dir", out)
    report = json.loads((out / "edits.json").read_text())
    assert report["protocol"]["reference"].startswith("val")
    assert report["interpolation"]["worst_end_psnr"] == 100
    assert report["interpolation"]["largest_step_over_mean"] >= 1
    names = [entry["name"] for entry in report["edits"]]
    assert names == ["no edit", "cfg 1, guide 5", "cfg 4, guide 5"]  # by the guide inside the model
    precise = ["--batch_size", 2, "--mixed_precision", "no", "--output_dir", tmp_path / "two"]
    assert "2 processes" in launch_two("evaluate.py", "edits", *edits, *precise)
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
            assert set(task["at_strength"]) == {"0.5"}
    text = (out / "edits.md").read_text()
    assert "| no edit |" in text and "median gain" in text
    assert (out / "flip_rate_over_strength.png").is_file()
    assert (out / "others_over_flips.png").is_file()
    assert "## Less cfg 1, guide 5, paired by photograph" in text
    assert len(list((out / "edits").glob("*.png"))) == 4
    wrong = ("edits", *edits, "--edit_attributes", "Smilling", "--output_dir", out)
    assert "Smilling" in one_line(capsys, lambda: run(*wrong))


def test_noise_identity_and_repetition_stand_in_the_report(options, tmp_path):
    common, guide = options
    common = [*common, "--guide", guide, "--edit_attributes", "Smiling", "--edit_sources", 2]
    common += ["--strengths", 1, "--num_inference_steps", 1, "--second_judge", "drawn64_probe"]
    recogniser = ["--identity"] if find_spec("dlib") else []
    run("edits", *common, "--repeat", *recogniser, "--output_dir", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "edits.json").read_text())
    assert len(report["protocol"]["second_judge"]) > 8
    assert report["edits"][0]["tasks"][0]["others_moved"] == 0, "no edit"
    for task in report["edits"][1]["tasks"]:
        assert task["others_turned"] <= task["others_moved"]
        assert task["psnr_back"] > 5 and task["seed_spread"] > 0 and task["needless"] >= 0
        assert "along_moved" in task and ("same_person" in task) == bool(recogniser)


def test_a_recogniser_finds_a_face_again(tmp_path):
    """Drawn faces are nearer to themselves with noise than to each other."""
    pytest.importorskip("dlib")
    write_dataset(tmp_path / "faces", num_images=6, image_size=128, seed=0, num_workers=1)
    images = np.stack([np.array(Image.open(path)) for path in sorted(tmp_path.rglob("*.jpg"))])
    images = torch.from_numpy(images)
    described = Recogniser(178).describe(images)
    assert described.shape == (6, 128)
    noisy = null_edits(images, False, torch.Generator().manual_seed(0))[2]
    distance = torch.cdist(Recogniser(178).describe(noisy), described)
    assert (distance.argmin(1) == torch.arange(6)).all() and distance.diagonal().max() < SAME_PERSON


def test_a_recogniser_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("evaluation.recogniser.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install dlib-bin face_recognition_models"):
        Recogniser(178)


def test_the_smallest_edits_stand_in_the_same_table(options, tmp_path, capsys):
    common, guide = options
    common = [*common, "--guide", guide, "--smallest", "--repeat", "--output_dir", tmp_path / "out"]
    common += ["--edit_sources", 2, "--strengths", 1, "--num_inference_steps", 1]
    run("edits", *common, "--edit_attributes", "Smiling")
    report = json.loads((tmp_path / "out" / "edits.json").read_text())
    assert [entry["name"] for entry in report["edits"]] == ["no edit", *NAMES_OF_SMALLEST]
    assert all(task["needless"] >= 0 for task in report["edits"][1]["tasks"]), "by one judge"
    for task in report["edits"][2]["tasks"]:
        assert 0 <= task["strength"] <= 1 and 0 <= task["flip_rate"] <= 1 and "cosine" in task
    assert "| strength |" in (tmp_path / "out" / "edits.md").read_text()
    line = one_line(capsys, lambda: run("edits", *common, "--edit_attributes", "Young"))
    assert "the guide does not read Young: name one of" in line
