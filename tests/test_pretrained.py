"""The models in pretrained/: that they load by name, are small, and draw faces rather than noise."""

from __future__ import annotations

import json

import pytest
import torch

import manipulate
from checkpoint import save_model
from classifiers.guide import load_guide
from config import PRETRAINED, LossConfig, SamplingConfig
from diffusion_model import load_model
from train import TrainConfig
from training.stages import STAGES, spread_timesteps

MODELS = sorted(path.stem for path in PRETRAINED.glob("*.safetensors") if "_" not in path.stem)


def test_they_are_there_and_small():
    files = [path.stat().st_size for path in PRETRAINED.glob("*.safetensors")]
    assert len(MODELS) == 3
    assert max(files) <= 25e6
    assert sum(files) <= 120e6


@pytest.mark.parametrize("name", MODELS)
def test_they_draw_pictures_and_fit_their_guides(name):
    model = load_model(name)
    generator = torch.Generator().manual_seed(0)
    sampling = SamplingConfig(num_inference_steps=6)
    pictures = model.sample(2, None, {"Smiling": 1}, sampling, generator).float()
    side = 128 if name.endswith("128") else 64
    assert pictures.shape == (2, side, side, 3)
    rough = (pictures[:, 1:] - pictures[:, :-1]).abs().mean()
    assert 1 < rough < 20, "neither flat nor noise, which is at 85"
    if (PRETRAINED / f"{name}_guide.safetensors").is_file():
        assert len(model.check_guide(load_guide(f"{name}_guide"))) == 40


def test_manipulate_draws_with_one_where_no_checkpoint_is_given(tmp_path, capsys):
    flags = ["--mode", "generate", "--attributes", "Smiling=1", "--num_samples", "1"]
    flags += ["--num_inference_steps", "2"]
    flags += ["--output_dir", str(tmp_path), "--device", "cpu"]
    manipulate.manipulate(manipulate.parse_args(flags))
    assert json.loads((tmp_path / "manifest.json").read_text())["arguments"]["checkpoint"] == "celeba128"
    assert "celeba128" in capsys.readouterr().out


def test_training_starts_from_a_model(make_model, tmp_path):
    model = make_model()
    path = tmp_path / "model.pth"
    save_model(model, path)
    images = torch.zeros(4, 16, 16, 3, dtype=torch.uint8)
    config = TrainConfig(model=model.config, train_guide=False)

    class Faces:
        attributes = torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, 1, 1], [1, 1, 1]])
        attribute_names, one_hot = model.config.attribute_names, False

    started = STAGES["diffusion"].build(config, Faces)
    assert STAGES["diffusion"].start_from(str(path), started).endswith("M weights"), "all of them"
    assert started.config.prior_rows == 3, "the rows are those of the new data"
    t, eps = spread_timesteps(4, 1000), torch.zeros(4, 3, 16, 16)
    loss = LossConfig(cfg_dropout=0, attr_dropout=0, latent_dropout=1)
    with torch.random.fork_rng():
        losses = [m(images, Faces.attributes, loss, t, eps)[1] for m in (model, started.eval())]
    assert torch.equal(*losses)
