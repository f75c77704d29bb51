"""Exported files, read back by our own scripts."""

from __future__ import annotations

import pytest
import torch
from helpers import draw_zeros, one_line

import export
import flags
import train
from checkpoint import load_checkpoint, save_model
from classifiers.guide import GuidanceClassifier, load_guide
from config import ModelConfig, SamplingConfig
from diffusion_model import load_model


def run_export(checkpoint, out, *more: str) -> None:
    options = ["--checkpoint", str(checkpoint), "--out", str(out), *more]
    flags.run(lambda: export.export(export.parse_args(options)))


def test_safetensors_and_back(checkpoint, tmp_path, capsys):
    there, back = tmp_path / "model.safetensors", tmp_path / "model.pth"
    run_export(checkpoint, there)
    run_export(there, back)
    models = [load_model(path) for path in (checkpoint, there, back)]
    rows = torch.ones(1, 40)
    first, *others = (m.ddim_sample(1, None, rows, 2.0, 2, generator=torch.Generator()) for m in models)
    assert all(torch.equal(first, other) for other in others)
    states = [load_checkpoint(path) for path in (checkpoint, there, back)]
    assert all(state["config"] == states[0]["config"] for state in states)
    assert all(state["step"] == 3 for state in states)
    assert "exists" in one_line(capsys, lambda: run_export(checkpoint, there))


def test_an_upscaler_makes_a_model_of_images_of_twice_the_side(checkpoint, faces, tmp_path, capsys):
    data = ["--data_root", faces, "--cache_dir", tmp_path, "--save_dir", tmp_path, "--log_dir", tmp_path]
    options = ["--image_size", "64", "--channels", "8", "--max_steps", "2", "--perceptual_weight", "0"]
    train.train(train.parse_args(["--stage", "upscaler", *options, *map(str, data)]))
    upscaler = ["--first_stage", str(tmp_path / "first_stage.pth")]
    run_export(checkpoint, tmp_path / "large.pth", *upscaler)
    small, large = load_model(checkpoint), load_model(tmp_path / "large.pth")
    assert (small.config.image_size, large.config.image_size) == (32, 64)
    rows = torch.ones(1, 40)
    options = {"num_inference_steps": 2, "cfg_scale": 2.0}
    before, after = (
        m.sample(1, None, rows, SamplingConfig(**options), torch.Generator()) for m in (small, large)
    )
    shrunk, _ = large.first_stage.autoencoder.encode(large.first_stage.pixels.encode(after))
    assert after.shape == (1, 64, 64, 3)
    assert (large.first_stage.pixels.decode(shrunk).int() - before.int()).abs().float().mean() < 6
    twice = tmp_path / "large.pth", tmp_path / "larger.pth", *upscaler
    assert "the checkpoint one of kind upscaler" in one_line(capsys, lambda: run_export(*twice))


@pytest.mark.parametrize("name", ["m.onnx", "m.pt", "m.PTH", "model.v2"])
def test_files_that_are_not_written_are_refused(checkpoint, tmp_path, capsys, name):
    line = one_line(capsys, lambda: run_export(checkpoint, tmp_path / name))
    assert f"--out {tmp_path / name}: no file of that kind is written" in line
    assert not (tmp_path / name).exists()


def test_half_precision_with_shared_weights_takes_half_the_room(make_model, tmp_path):
    model = make_model(shared_film=True, blocks_per_level=2)
    save_model(model, tmp_path / "model.pth")
    run_export(tmp_path / "model.pth", tmp_path / "model.safetensors", "--half")
    again = load_model(tmp_path / "model.safetensors")
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.half().float(), b)
    size = (tmp_path / "model.safetensors").stat().st_size
    names = 100 * len(model.state_dict())
    assert size < 2 * sum(p.numel() for p in model.parameters()) + names + 4000


def test_a_guide_as_safetensors(tmp_path):
    model = GuidanceClassifier(ModelConfig(("a", "b"), image_size=16, channels=(16, 32), num_heads=2))
    draw_zeros(model, std=1.0)
    save_model(model.eval(), tmp_path / "guide.pth", "guide")
    run_export(tmp_path / "guide.pth", tmp_path / "guide.safetensors")
    again = load_guide(tmp_path / "guide.safetensors")
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    torch.testing.assert_close(model.predict_attributes(images), again.predict_attributes(images))


@pytest.mark.parametrize("damage", ["cut", "text", "other metadata"])
def test_damaged_safetensors_are_refused(checkpoint, tmp_path, damage):
    path = tmp_path / "model.safetensors"
    run_export(checkpoint, path)
    data = path.read_bytes()
    new = {"cut": data[:-9], "text": b"hello", "other metadata": data.replace(b"facts", b"tcafs")}
    path.write_bytes(new[damage])
    said = "holds weights alone" if damage == "other metadata" else "is not a whole checkpoint"
    with pytest.raises(ValueError, match=f"{path} {said}"):
        load_model(path)
