"""The guide: its loss, its probabilities, and how it steers faces."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from helpers import run_script, run_training
from PIL import Image

import manipulate
import studio
from classifiers.guide import GuidanceClassifier, load_guide
from config import EditSettings, LossConfig, ModelConfig, SamplingConfig
from diffusion_model import FAR, ConditionalDiffusion, load_model
from editing import STRENGTH_TOLERANCE, Editor
from samplers import sample_generators


def small(names=("Above", "Left"), **changes) -> GuidanceClassifier:
    torch.manual_seed(0)
    config = {"image_size": 16, "channels": (16, 32), "num_heads": 2, "blocks_per_level": 1}
    return GuidanceClassifier(ModelConfig(names, **config | changes))


def load_state(guide: GuidanceClassifier) -> GuidanceClassifier:
    """The same guide, built from its configuration and its weights."""
    copy = GuidanceClassifier(guide.config)
    copy.load_state_dict(guide.state_dict())
    return copy


def test_shapes_and_starting_at_the_prior():
    model = small()
    model.set_prior(torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]))
    logits = model.network(torch.randn(5, 3, 16, 16), torch.arange(5))
    assert logits.shape == (5, 2)
    torch.testing.assert_close(logits[0], torch.logit(torch.tensor([0.75, 0.75])))


def test_unspecified_attributes_cost_nothing():
    model, images = small(), torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    torch.nn.init.normal_(model.network.weight)
    t, eps = torch.tensor([10, 600]), torch.randn(2, 3, 16, 16)
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    terms, per_sample, _ = model(images, rows, LossConfig(), t, eps)
    logits = model.network(model.schedule.q_sample(model.first_stage.encode(images), t, eps), t)
    torch.testing.assert_close(per_sample[0], -torch.nn.functional.logsigmoid(logits[0, 0]))
    assert per_sample[1] == 0
    assert terms["total"] == per_sample.mean()


def test_log_prob_weighs_by_what_is_asked():
    model = small()
    torch.nn.init.normal_(model.network.weight)
    x = torch.randn(3, 3, 16, 16)
    p = torch.sigmoid(model.network(x, torch.full((3,), 400)))
    asked = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, 0.0]])
    expected = torch.stack([p[0, 0].log(), (1 - p[1, 0]).log() + 0.5 * p[1, 1].log(), torch.zeros(())])
    torch.testing.assert_close(model.log_prob(x, 400, asked), expected)


def test_it_learns_to_read_clean_and_noisy_images():
    """Pictures that are bright above or below, and on the left or on the right."""
    model = small()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)

    def batch(number: int):
        rows = torch.randn(number, 2, generator=generator).sign()
        ramp = torch.linspace(1, -1, 16)
        above, left = (rows[:, i, None, None] for i in range(2))
        images = 128 + 60 * (above * ramp[:, None] + left * ramp[None])  # (N, 16, 16)
        return images.byte()[..., None].expand(-1, -1, -1, 3), rows

    for _ in range(60):
        terms, _, _ = model(*batch(32), LossConfig())
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
    images, rows = batch(64)
    x0 = model.first_stage.encode(images)
    for t in (0, 300):
        x_t = model.schedule.q_sample(x0, t, torch.randn_like(x0))
        right = (model.network(x_t, torch.full((64,), t)) > 0) == (rows > 0)
        assert right.float().mean() > 0.95
    assert ((model.predict_attributes(images) > 0) == (rows > 0)).float().mean() > 0.95


def test_a_side_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="side 18 is not divisible by 4"):
        small(image_size=18, channels=(8, 8, 8))


@pytest.fixture(scope="module")
def guide(flags, tmp_path_factory):
    """guide_best.pth of three steps on the tiny faces."""
    folder = tmp_path_factory.mktemp("guide")
    run_training(flags, folder, "--stage", "guide", "--max_steps", 3)
    return folder / "guide_best.pth"


def run_manipulate(checkpoint, out, *more: str) -> dict:
    flags = ["--checkpoint", checkpoint, "--output_dir", out, "--num_samples", 2]
    flags += ["--num_inference_steps", 3, "--device", "cpu", "--no_metadata"]
    run_script(manipulate, *flags, *more)
    return json.loads((out / "manifest.json").read_text())["made"]


def test_training_resumes_and_some_attributes_can_be_learned(flags, guide, checkpoint, tmp_path):
    flags = [*flags, "--stage", "guide"]
    run_training(flags, guide.parent, "--max_steps", 4, "--resume")
    run_training(flags, tmp_path, "--max_steps", 2, "--attribute", "Smiling", "Eyeglasses")
    one = tmp_path / "guide_best.pth"
    assert load_guide(one).config.attribute_names == ("Eyeglasses", "Smiling")
    asked = ["--mode", "generate", "--guidance", "guide", "--guide", str(one)]
    with pytest.raises(ValueError, match="does not read Male"):  # so the picture would not show it
        run_manipulate(checkpoint, tmp_path / "out", *asked, "--attributes", "Male=1")
    made = run_manipulate(checkpoint, tmp_path / "out", *asked, "--num_samples", "1")["generate"]
    assert {name for request in made["attributes"] for name in request} == {"Eyeglasses", "Smiling"}


def test_guidance_changes_faces_and_scale_0_does_not(checkpoint, guide, tmp_path):
    asked = ["--mode", "generate", "--attributes", "Smiling=1"]
    with_guide = [*asked, "--guide", str(guide), "--guidance", "both"]
    run_manipulate(checkpoint, tmp_path / "zero", *with_guide, "--guide_scale", "0")
    run_manipulate(checkpoint, tmp_path / "plain", *asked)
    run_manipulate(checkpoint, tmp_path / "much", *with_guide, "--guide_scale", "300")
    zero, plain, much = (
        (tmp_path / name / "samples" / "000.png").read_bytes() for name in ("zero", "plain", "much")
    )
    assert zero == plain
    assert much != plain


def test_what_lies_far_from_the_training_images_is_drawn_again(make_model, class_checkpoint):
    """The nearest of the drawings is kept, image by image, from noise of its own; strips share one. A
    guide knows what is typical at the end of its training."""
    trained = load_guide(class_checkpoint)
    assert trained.config.knows_typical and trained.whitener.abs().sum() > 0
    images = torch.randint(256, (64, 16, 16, 3), dtype=torch.uint8)
    guide = small(("Smiling", "Male", "Young"))
    guide.set_typical(guide.features(images))
    near = guide.distance(torch.randint(256, (400, 16, 16, 3), dtype=torch.uint8))
    assert 0.4 < float((near < 1).double().mean()) <= 1  # as those it was fitted to
    flat = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    assert guide.distance(flat).min() > 1
    assert load_state(guide).distance(flat).tolist() == guide.distance(flat).tolist()

    model = make_model()

    def draw(tries: int, numbers: range) -> torch.Tensor:
        sampling = SamplingConfig(num_inference_steps=2, tries=tries)
        generators = sample_generators(0, numbers)
        return model.sample(len(numbers), None, {"Smiling": 1}, sampling, generators, guide=guide)

    fourth, fifth = guide.distance(draw(1, range(8))).sort().values[3:5]
    guide.whitener *= 2 * FAR / (fourth + fifth)  # half of them are far
    first, chosen = draw(1, range(8)), draw(4, range(8))
    distance = guide.distance(first)
    same = (first == chosen).flatten(1).all(1)
    assert same[distance <= FAR].all() and not same.all()
    assert (guide.distance(chosen) <= distance).all()
    alone = draw(4, range(3, 5)).int()
    assert (chosen[3:5].int() - alone).abs().max() <= 1  # but for rounding, in any batch
    strip = partial(model.interpolate_between_attributes, {"Male": 1}, {"Male": 0}, 3)
    options = {"sampling": SamplingConfig(num_inference_steps=2)}
    with_guide = strip(generator=torch.Generator().manual_seed(0), guide=guide, **options)
    assert torch.equal(with_guide, strip(generator=torch.Generator().manual_seed(0), **options))


@pytest.mark.parametrize(("threshold", "strength", "flips"), [(0.3, 0.3, True), (9.0, 1.0, False)])
def test_counterfactual_finds_the_least_strength_that_flips(
    checkpoint, guide, faces, tmp_path, monkeypatch, threshold, strength, flips
):
    """With a guide whose log odds pass FLIP_MARGIN at the threshold."""

    def read_logits(self, images):  # whose brightness says the strength
        log_odds = 5 * (images.float().mean() / 250 - threshold) + studio.FLIP_MARGIN
        return torch.full((len(images), 40), -float(log_odds))

    def prepare_edit(self, image, *args, **options):
        return lambda strength, watch=None: torch.full_like(image, round(250 * strength))

    monkeypatch.setattr(GuidanceClassifier, "read_logits", read_logits)
    monkeypatch.setattr(Editor, "prepare_edit", prepare_edit)
    monkeypatch.setattr(ConditionalDiffusion, "predict_attributes", lambda self, images, guide: None)
    without_prior = load_guide(guide)
    without_prior.prior.zero_()
    monkeypatch.setattr(studio, "load_guide", lambda *_: without_prior)
    flags = ["--mode", "counterfactual", "--attributes", "Smiling=0", "--data_root", str(faces)]
    made = run_manipulate(checkpoint, tmp_path, *flags, "--guide", str(guide))["counterfactual"]
    assert made["flipped"] is flips
    assert made["strength"] == pytest.approx(strength, abs=2 * STRENGTH_TOLERANCE)


def test_counterfactual_shows_the_change(checkpoint, guide, faces, tmp_path):
    flags = ["--mode", "counterfactual", "--attributes", "Smiling=0", "--guide", str(guide)]
    flags += ["--data_root", str(faces), "--guidance", "both"]
    made = run_manipulate(checkpoint, tmp_path, *flags)["counterfactual"]
    assert 0 <= made["strength"] <= 1
    assert made["flipped"] == (made["margin"] >= studio.FLIP_MARGIN)
    with Image.open(tmp_path / "counterfactual.png") as row:
        assert row.width > 3 * 128


def test_a_model_is_trained_with_its_guide(flags, checkpoint, tmp_path, capsys):
    """It travels in the checkpoint, and steers where no other is named. Without it, the rest starts from
    the same weights, and its losses are the same."""
    model = load_model(checkpoint)
    assert model.guide is not None
    own = load_guide(checkpoint)
    images = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(own.read_logits(images), model.guide.read_logits(images))
    assert model.check_guide(own) == model.check_guide(model.guide) == [*range(40)]

    def edit(guide_scale: float = 1e5, **options) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        request = {"Smiling": 1}
        options |= {"num_inference_steps": 3, "localise": 0.0, "guide_scale": guide_scale}
        return Editor(model).edit(images, request, generator=generator, **options)

    assert torch.equal(edit(), edit(guide=own)) and not torch.equal(edit(), edit(guide_scale=0.0))
    out = run_manipulate(checkpoint, tmp_path / "out", "--guidance", "both", "--mode", "generate")
    assert out["generate"]  # by the guide inside: no other was trained

    step = ("--max_steps", 1, "--attribute", "Smiling", "Male")
    run_training(flags, tmp_path / "with", *step)
    assert "with its guide" in capsys.readouterr().out
    run_training(flags, tmp_path / "without", *step, "--no-train_guide")
    assert "without a guide" in capsys.readouterr().out
    first = [
        json.loads((tmp_path / name / "logs/0001/metrics.jsonl").read_text().splitlines()[0])
        for name in ("with", "without")
    ]
    assert first[0]["loss/diffusion"] == first[1]["loss/diffusion"]
    assert first[0]["loss/total"] == pytest.approx(first[1]["loss/total"] + first[0]["loss/guide"])
    with pytest.raises(ValueError, match=r"guide_channels \(none with --no-train_guide\)"):
        run_training(flags, tmp_path / "without", *step, "--max_steps", 2, "--resume")
    with pytest.raises(ValueError, match="holds no guide"):
        load_guide(tmp_path / "without" / "best_model.pth")


def test_a_guide_of_another_schedule_is_refused(guide, make_model):
    model = make_model(names=load_guide(guide).config.attribute_names, image_size=32, schedule="linear")
    with pytest.raises(ValueError, match="trained at schedule cosine, the model at linear"):
        model.sample(1, attributes=torch.ones(1, 40), guide=load_guide(guide))


def test_the_nearest_of_three_drawings_is_kept(make_model, monkeypatch):
    """Also where the third is nearer than the first, but not than the second."""
    model, guide = make_model(), small(("Smiling", "Male", "Young"))
    guide.set_typical(guide.features(torch.randint(256, (64, 16, 16, 3), dtype=torch.uint8)))
    distances, drawings = iter([3.0, 1.5, 2.0]), []

    def distance(images):
        drawings.append(images.clone())
        return torch.full((len(images),), next(distances))

    monkeypatch.setattr(guide, "distance", distance)
    sampling, generators = SamplingConfig(num_inference_steps=2, tries=3), sample_generators(0, [0])
    kept = model.sample(1, None, {"Smiling": 1}, sampling, generators, guide=guide)
    assert len(drawings) == 3 and torch.equal(kept, drawings[1])
    assert not torch.equal(drawings[1], drawings[2])


def test_held_attributes_leave_something_to_edit(make_model):
    model = make_model()
    settings = EditSettings(pins=model.config.attribute_names)
    with pytest.raises(ValueError, match="--hold leaves nothing to edit"):
        studio.requests_to_edit(model, None, settings, torch.zeros(3))
