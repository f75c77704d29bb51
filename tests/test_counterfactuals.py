"""The protocol of counterfactual explanations, against figures worked out by hand."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import evaluate
from checkpoint import save_atomically, save_model
from classifiers.guide import GuidanceClassifier
from classifiers.judge import Judge
from diffusion_model import load_model
from editing import Editor
from evaluate import EvaluateConfig
from evaluation import counterfactuals, edits
from evaluation.counterfactuals import (
    CounterfactualEvaluation,
    correlation_difference,
    correlations,
    cout,
    split_frechet,
)
from evaluation.metrics import frechet_distance
from synthetic_faces.dataset import write_dataset

# -------------------------------------------------------------------- figures


@pytest.fixture(autouse=True)
def own_editor(monkeypatch):
    """A model that edits by itself needs no Editor."""
    own = lambda model: model if hasattr(model, "prepare_edit") else Editor(model)  # noqa: E731
    monkeypatch.setattr(edits, "Editor", own)


def test_cout_is_the_share_of_pixels_that_an_edit_needs():
    """The pixel that changes by v is the v-th of 100 from the end."""
    source = torch.zeros(2, 10, 10, 3, dtype=torch.uint8)
    edited = torch.arange(1, 101, dtype=torch.uint8).view(1, 10, 10, 1).expand(2, -1, -1, 3)

    def copied(images):
        return (images[..., 0] > 0).sum((1, 2))

    # It flips when 30 pixels are there, after 15 of 50 steps: 14 at -1, one from -1 to 1, 35 at 1.
    found = cout(source, edited, lambda images: torch.where(copied(images) >= 30, 50.0, -50.0))
    torch.testing.assert_close(found, torch.full((2,), (35 - 14) / 50))
    # The greatest change comes first: the pixel that changes by 71 is the 30th.
    found = cout(source, edited, lambda images: torch.where(images[:, 7, 0, 0] > 0, 50.0, -50.0))
    torch.testing.assert_close(found, torch.full((2,), (35 - 14) / 50))
    # A probability that rises with the share of pixels is above one half for as long as below.
    found = cout(source, edited, lambda images: torch.logit(copied(images) / 100, eps=1e-6))
    torch.testing.assert_close(found, torch.zeros(2), atol=1e-5, rtol=0)
    # One that never moves: 2 p - 1.
    found = cout(source, source, lambda images: torch.logit(torch.full((2,), 0.2)))
    torch.testing.assert_close(found, torch.full((2,), 2 * 0.2 - 1))


def test_correlations_are_numpy_s():
    values = torch.randn(30, 4, generator=torch.manual_seed(0))
    expected = np.corrcoef(values.numpy().T)[2]
    torch.testing.assert_close(correlations(values, 2), torch.from_numpy(expected))
    values[:, 1] = 3.0  # never varies
    assert correlations(values, 2)[1] == 0 and not correlations(values, 1).any()


def test_correlation_difference_is_nothing_where_edits_change_what_goes_together():
    labels = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, 1.0], [-1.0, -1.0, -1.0]])
    together = torch.tensor([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0]])
    assert correlation_difference(together, labels, 0) == pytest.approx(0)
    alone = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])  # lacks the correlation of 1
    assert correlation_difference(alone, labels, 0) == pytest.approx(1)
    against = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]])
    assert correlation_difference(against, labels, 0) == pytest.approx(2)
    nothing = torch.zeros(2, 3)  # lacks that with itself, too
    assert correlation_difference(nothing, labels, 0) == pytest.approx(2)


def test_no_edit_is_compared_with_its_own_original_where_halves_are():
    features = torch.randn(40, 3, generator=torch.manual_seed(0))
    every = torch.ones(40, dtype=torch.bool)
    found = split_frechet(features, features, every)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9) and found > 0.01
    # The distance of two means, where edits shift all features: |3|^2 in each of three.
    shifted = split_frechet(features, features + 3.0, every)
    assert shifted == pytest.approx(found + 27, rel=0.2)
    assert split_frechet(features, features, torch.arange(40) < 12) is None, "too few in a half"


# -------------------------------------------------------------------- a world of which all is known


class Toy:
    """Photographs in which each attribute is a pixel: 100 absent, 200 present. The guide reads it in the
    first channel, the judge in the second. What an edit of A does depends on the photograph's kind:

    0 changes A; 1 changes A for the guide alone; 2 changes A, and makes C like it for the judge.
    """

    names = ("A", "B", "C")

    def __init__(self, number: int = 36):
        torch.manual_seed(0)
        self.present = torch.tensor([[i % 2, i % 3 > 0, i % 5 > 0] for i in range(number)]).bool()
        self.images = torch.zeros(number, 4, 4, 3, dtype=torch.uint8)
        self.images[:, 0, :3, :2] = torch.where(self.present, 200, 100)[..., None].byte()
        self.images[:4, 0, 0, 1] = 300 - self.images[:4, 0, 0, 1]  # the judge sees A otherwise in four
        self.kinds = torch.arange(number) // 4 % 3  # 12 of each; the four are of the first kind
        self.images[:, 3, 3, 2] = self.kinds.byte()

    @staticmethod
    def logits(images, channel):
        return images[:, 0, :3, channel].float() - 150

    def face(self, images):
        """(1, 0), or (1, 2) where C is there: two people whose cosine is 1 / sqrt(5)."""
        there = (self.logits(images, 1)[:, 2] > 0).float()
        return torch.stack([torch.ones(len(images)), 2 * there], dim=1)

    def prepare_edit(self, source, target, editing, **how):
        def edit_at(strength):
            edited, value = source.clone(), 200 if target[0, 0] > 0 else 100
            edited[:, 0, 0, 0] = value
            edited[source[:, 3, 3, 2] != 1, 0, 0, 1] = value
            edited[source[:, 3, 3, 2] == 2, 0, 2, 1] = value
            return edited

        return edit_at

    def work(self, **changes):
        judge = SimpleNamespace(
            read_features=lambda images: self.logits(images, 1), read_logits=lambda features: features
        )
        labels = self.present.float() * 2 - 1
        split = SimpleNamespace(
            images=self.images.numpy(), attributes=labels, attribute_names=self.names
        )
        model = SimpleNamespace(
            config=SimpleNamespace(one_hot=False), prepare_edit=self.prepare_edit, device="cpu"
        )
        work = {
            "config": EvaluateConfig(data_root="x", counterfactual=("A",), guide="g", batch_size=5),
            "model": model,
            "guide": None,
            "judge": judge,
            "names": self.names,
            "held_out": split,
            "held_out_number": len(self.images),
            "train": split,
            "reference_set": split,
            "spaces": {"judge": judge.read_features, "face": self.face},
            "autocast": nullcontext(),
            "writes": False,
        }
        return SimpleNamespace(**work | changes)

    def guide(self):
        known = ("A", "C")  # fewer than the model has
        return SimpleNamespace(
            config=SimpleNamespace(attribute_names=known, one_hot=False),
            prior=torch.tensor([10.0, 0.0]),  # 40 and -60 of the threshold
            read_logits=lambda images: self.logits(images, 0)[:, [0, 2]],
        )


def test_the_figures_of_a_world_of_which_all_is_known():
    toy = Toy()
    explain = CounterfactualEvaluation(toy.work(), toy.guide())
    before = explain.no_edit("A")
    assert (before.direction == 1 - 2 * toy.present[:, 0].long()).all()
    edited = explain.edit(before, "edit", explain.config.editing)
    assert (explain.originals[..., :2] != edited.images[..., :2]).any()
    guide, judge = explain.rows(edited)
    assert guide["photographs"] == 36 and guide["flip_rate"] == 1
    assert judge["photographs"] == 32, "those that the judge reads as the guide does"
    assert judge["flip_rate"] == pytest.approx(20 / 32), "8 of the first kind, 12 of the last"
    # The oracle sees A turn in 8 + 12 of 36 (in four it was so already), and C where it was otherwise.
    last = toy.kinds == 2
    others = int((toy.present[last, 2] == toy.present[last, 0]).sum())
    assert guide["mnac"] == pytest.approx((20 + others) / 36)
    assert judge["mnac"] == pytest.approx((20 + others) / 20)
    seen = [x["judge"] > 0 for x in (explain.features, edited.features)]
    changes = (seen[1].float() - seen[0].float()).numpy()
    labels = toy.present.float().numpy()
    of_changes = [np.corrcoef(changes[:, 0], changes[:, i])[0, 1] if i != 1 else 0 for i in range(3)]
    of_labels = [np.corrcoef(labels[:, 0], labels[:, i])[0, 1] for i in range(3)]
    expected = np.abs(np.subtract(of_changes, of_labels)).sum()
    assert guide["cd"] == pytest.approx(expected)
    assert judge["fva"] == pytest.approx(1 - others / 20)
    assert judge["fs"] == pytest.approx(1 - others / 20 * (1 - 5**-0.5))
    # The pixel of A changes most. Of 16 pixels it is the first, copied at the second of 50 steps: after
    # it p is 1 for 48 steps, before it 0 for one. The judge sees no flip of the 12 of the second kind.
    assert guide["cout"] == pytest.approx(47 / 50)
    assert judge["cout"] == pytest.approx((20 * 47 / 50 - 12) / 32)
    assert guide["split_frechet_judge"] > 0 and guide["frechet_judge"] > 0


def test_no_edit_flips_nothing_and_is_at_no_distance():
    toy = Toy()
    explain = CounterfactualEvaluation(toy.work(), toy.guide())
    for row in explain.rows(explain.no_edit("A")):
        assert row["edit"] == "no edit" and row["flip_rate"] == 0 and row["mnac"] == 0
        assert row["frechet_judge"] == pytest.approx(0, abs=1e-6) and row["split_frechet_judge"] > 0
        assert row["fva"] == 1 and row["fs"] == pytest.approx(1) and row["cout"] < -0.9


def test_an_attribute_that_every_picture_has_is_refused():
    toy = Toy()
    toy.present[:, 0] = True
    with pytest.raises(ValueError, match="every training picture of x has A"):
        CounterfactualEvaluation(toy.work(), toy.guide())


# -------------------------------------------------------------------- the command


class FaceNetwork(nn.Module):
    """RGB in [-1, 1] -> 48 numbers."""

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)


@pytest.fixture(scope="module")
def given(checkpoint, tmp_path_factory):
    """A folder with faces, an untrained guide of two attributes, an untrained judge, a face network, and
    the flags that name them."""
    root = tmp_path_factory.mktemp("counterfactuals")
    write_dataset(root / "faces", num_images=60, image_size=32, seed=0, num_workers=1)
    config = load_model(checkpoint).config
    torch.manual_seed(0)
    guide = GuidanceClassifier(replace(config, attribute_names=("Male", "Smiling"), prior_rows=0))
    nn.init.normal_(guide.network.weight)
    save_model(guide, root / "guide.pth", "guide")
    judge = {
        "judge": Judge(40).state_dict(),
        "attribute_names": list(config.attribute_names),
        "balanced_accuracy": [0.5] * 40,
        "crop": config.crop,
    }
    save_atomically(judge, root / "judge.pth")
    torch.jit.save(torch.jit.trace(FaceNetwork(), torch.zeros(2, 3, 32, 32)), root / "face.pt")
    flags = ["--checkpoint", checkpoint, "--data_root", root / "faces", "--judge", root / "judge.pth"]
    flags += ["--cache_dir", root / "cache", "--device", "cpu", "--attribute_split", "train"]
    flags += ["--num_samples", 32, "--num_inference_steps", 1]
    return root, flags


def run(*flags):
    argv = [str(flag) for flag in flags]
    flags.run(lambda: evaluate.evaluate(evaluate.parse_args(argv)))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_command_writes_a_table_and_pictures(given, tmp_path, capsys, monkeypatch):
    root, flags = given
    monkeypatch.setattr(counterfactuals, "COUT_STEPS", 2)
    flags = [*flags, "--guide", root / "guide.pth", "--face_network", root / "face.pt"]
    run(*flags, "--counterfactual", "Smiling", "--output_dir", tmp_path)
    report = json.loads((tmp_path / "counterfactuals.json").read_text())
    text = (tmp_path / "counterfactuals.md").read_text()
    assert text in capsys.readouterr().out
    (entry,) = report["counterfactuals"]
    assert entry["attribute"] == "Smiling" and len(entry["rows"]) == 4
    first = entry["rows"][0]
    assert first["edit"] == "no edit" and first["by"] == "guide" and first["flip_rate"] == 0
    assert first["photographs"] == 32 and first["fs"] == pytest.approx(1)
    assert report["protocol"]["photographs"].startswith("the first 32 of")
    assert len(report["protocol"]["edits"]) == 1
    heads = ("flip rate", "Frechet, judge", "FVA", "FS", "MNAC", "CD", "COUT")
    assert all(f"| {head} |" in text for head in heads) and "| no edit | judge |" in text
    assert len([*(tmp_path / "counterfactuals").glob("Smiling_*.png")]) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--counterfactual Smiling", "--counterfactual needs --guide"),
        ("--counterfactual Young --guide {root}/guide.pth", "does not read Young: name one of"),
        (
            "--counterfactual Male --guide {root}/guide.pth --face_network {root}/no.pt",
            "no face network at",
        ),
        (
            "--counterfactual Male --guide {root}/guide.pth --face_network {root}/judge.pth",
            "holds no network",
        ),
        ("--counterfactual Male --guide {root}/guide.pth --cfg_scale 2", "use --edit_cfg_scale"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_one_line(given, tmp_path, capsys, more, message):
    root, flags = given
    with pytest.raises(SystemExit) as stopped:
        run(*flags, "--output_dir", tmp_path, *more.format(root=root).split())
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and message in lines[-1] and "Traceback" not in "".join(lines)
    assert not [*tmp_path.iterdir()]
