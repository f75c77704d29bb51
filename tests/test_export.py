from __future__ import annotations

import pytest
import torch

import cli
import export
from checkpoint import load_checkpoint, load_first_stage, load_guide, load_model, save_model
from classifier_model import GuidanceClassifier
from model_config import ModelConfig
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


def run_export(checkpoint, out) -> None:
    cli.run(
        lambda: export.export(export.parse_args(["--checkpoint", str(checkpoint), "--out", str(out)]))
    )


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


def test_a_guide_as_safetensors(tmp_path):
    model = GuidanceClassifier(ModelConfig(("a", "b"), image_size=16, channels=(16, 32), num_heads=2))
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter)
    save_model(model.eval(), tmp_path / "guide.safetensors")
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
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        load_model(path)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("zero", [False, True])
def test_diffusers_steps_as_we_do(make_model, tmp_path, schedule, zero):
    """The exported scheduler on one denoiser's predictions, against our sampler."""
    from diffusers import DDIMScheduler

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
    flags = export.flags_of(tmp_path / "folder" / "scheduler")
    assert flags == options | {"prediction": "v"}


def test_flags_of_a_scheduler_are_printed(make_model, tmp_path, capsys):
    """Of a long schedule, whose end is nearly noise in either case."""
    for zero in (False, True):
        model = make_model(num_timesteps=4000, zero_terminal_snr=zero)
        save_model(model, tmp_path / "model.pth")
        run_export(tmp_path / "model.pth", tmp_path / str(zero))
        capsys.readouterr()
        export.export(export.parse_args(["--flags_of", str(tmp_path / str(zero) / "scheduler")]))
        said = capsys.readouterr().out
        assert "--num_timesteps 4000" in said and ("--zero_terminal_snr" in said) == zero


def test_the_vae_and_back(make_model, tmp_path):
    model = make_model(first_stage="sd-vae", first_stage_config=SMALL_KL)
    save_model(model, tmp_path / "model.pth")
    run_export(tmp_path / "model.pth", tmp_path / "folder")
    kind, config, weights, _ = load_first_stage(tmp_path / "folder" / "vae")
    assert kind == "sd-vae"
    from autoencoder_model import build_first_stage

    again = build_first_stage(kind, config)
    again.autoencoder.load_state_dict(weights)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.autoencoder.decode(z), model.first_stage.autoencoder.decode(z))


def test_no_scheduler_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no scheduler"):
        export.flags_of(tmp_path)
    (tmp_path / "scheduler_config.json").write_text('{"beta_schedule": "exponential"}')
    with pytest.raises(ValueError, match="no scheduler that train"):
        export.flags_of(tmp_path)
