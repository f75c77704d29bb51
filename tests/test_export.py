"""Exported files: read back by our own scripts, and by diffusers, whose schedulers step as ours do."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

import checkpoint as checkpoints
import export
import flags
from autoencoder_model import build_first_stage
from checkpoint import load_checkpoint, load_first_stage, save_model
from classifiers.guide import GuidanceClassifier, load_guide
from config import ModelConfig
from diffusion_model import load_model
from noise_schedule import NoiseSchedule
from samplers import ddim, timestep_grid

SMALL_KL = {
    "block_out_channels": [8, 8],
    "norm_num_groups": 4,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "sample_size": 16,
}


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
    with pytest.raises(SystemExit):
        run_export(checkpoint, there)
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["m.onnx", "m.pt", "m.PTH", "model.v2"])
def test_files_that_are_not_written_are_refused(checkpoint, tmp_path, capsys, name):
    with pytest.raises(SystemExit):
        run_export(checkpoint, tmp_path / name)
    said = capsys.readouterr().err.strip()
    assert f"--out {tmp_path / name}: no file of that kind is written" in said and "\n" not in said
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
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter)
    save_model(model.eval(), tmp_path / "guide.pth", "guide")
    run_export(tmp_path / "guide.pth", tmp_path / "guide.safetensors")
    again = load_guide(tmp_path / "guide.safetensors")
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    torch.testing.assert_close(model.predict_attributes(images), again.predict_attributes(images))


def test_the_checkpoint_is_read_once(checkpoint, tmp_path, monkeypatch):
    read = []

    def load(path):
        read.append(path)
        return load_checkpoint(path)

    monkeypatch.setattr(checkpoints, "load_checkpoint", load)
    run_export(checkpoint, tmp_path / "model.safetensors")
    run_export(checkpoint, tmp_path / "folder")
    assert read == [str(checkpoint)] * 2


@pytest.mark.parametrize("damage", ["cut", "text", "other metadata"])
def test_damaged_safetensors_are_refused(checkpoint, tmp_path, damage):
    path = tmp_path / "model.safetensors"
    run_export(checkpoint, path)
    data = path.read_bytes()
    new = {"cut": data[:-9], "text": b"hello", "other metadata": data.replace(b"facts", b"tcafs")}
    path.write_bytes(new[damage])
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        load_model(path)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("zero", [False, True])
def test_diffusers_steps_as_we_do(make_model, tmp_path, schedule, zero):
    """The exported scheduler on one denoiser's predictions, against our sampler."""
    options = {"schedule": schedule, "num_timesteps": 50, "zero_terminal_snr": zero}
    model = make_model(prediction="v", **options)
    save_model(model, tmp_path / "model.pth")
    run_export(tmp_path / "model.pth", tmp_path / "folder")
    theirs = DDIMScheduler.from_pretrained(tmp_path / "folder" / "scheduler")
    ours = NoiseSchedule(schedule, 50, zero)
    torch.testing.assert_close(theirs.alphas_cumprod, ours.alpha_bar.float(), atol=1e-6, rtol=0)

    def network(x):
        return torch.tanh(x)

    def denoise(x, t):
        return ours.to_x0_eps("v", network(x), x, t)

    x_T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    theirs.set_timesteps(10)
    x = x_T
    for t in theirs.timesteps:
        x = theirs.step(network(x), t, x, use_clipped_model_output=True).prev_sample
    grid = timestep_grid(ours, 10, "trailing")
    *_, (_, _, mine, _) = ddim(denoise, ours, x_T, grid, clip_x0=True)
    torch.testing.assert_close(mine, x, atol=1e-4, rtol=1e-4)


def test_rectified_flow_steps_as_in_diffusers(make_model, tmp_path):
    model = make_model(schedule="flow", prediction="flow", num_timesteps=50)
    save_model(model, tmp_path / "model.pth")
    run_export(tmp_path / "model.pth", tmp_path / "folder")
    theirs = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "folder" / "scheduler")
    ours = NoiseSchedule("flow", 50)

    def network(x, t):
        return torch.tanh(x + t / 50)

    def denoise(x, t):
        return ours.to_x0_eps("flow", network(x, t), x, t)

    x_T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    theirs.set_timesteps(8)
    x = x_T
    for t in theirs.timesteps:  # 1 ... 50 for our 0 ... 49
        x = theirs.step(network(x, float(t) - 1), t, x).prev_sample
    grid = timestep_grid(ours, 8, "linspace")
    *_, (_, _, mine, _) = ddim(denoise, ours, x_T, grid, clip_x0=False)
    torch.testing.assert_close(mine, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("schedule", "prediction"), [("cosine", "flow"), ("flow", "x0")])
def test_what_diffusers_cannot_say_is_refused_in_one_line(
    make_model, tmp_path, capsys, schedule, prediction
):
    model = make_model(schedule=schedule, prediction=prediction)
    save_model(model, tmp_path / "model.pth")
    with pytest.raises(SystemExit):
        run_export(tmp_path / "model.pth", tmp_path / "folder")
    said = capsys.readouterr().err.strip()
    assert f"no scheduler for prediction {prediction} on schedule {schedule}" in said
    assert "\n" not in said and not (tmp_path / "folder").exists()
    run_export(tmp_path / "model.pth", tmp_path / "model.safetensors")


def test_the_vae_and_back(make_model, tmp_path):
    model = make_model(first_stage="sd-vae", first_stage_config=SMALL_KL)
    save_model(model, tmp_path / "model.pth")
    run_export(tmp_path / "model.pth", tmp_path / "folder")
    kind, config, weights, _ = load_first_stage(tmp_path / "folder" / "vae")
    assert kind == "sd-vae"
    again = build_first_stage(kind, config)
    again.autoencoder.load_state_dict(weights)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.autoencoder.decode(z), model.first_stage.autoencoder.decode(z))
