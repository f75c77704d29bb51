"""A latent first stage: its training, a dataset encoded by it, and a model trained in its latents."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_script, run_training, start_child, train_judge

import encode_latents
import manipulate
import visualize
from autoencoder_model import LatentFirstStage, build_first_stage
from celeba_dataset import CelebADataset
from checkpoint import EMA, load_checkpoint, load_first_stage, weights_hash
from classifiers.likeness import perceptual_distance
from config import FirstStageConfig, FirstStageLossConfig
from diffusion_model import load_model
from image_data.cached import random_flip
from image_data.encoded import LatentDataset
from latent_vae import SpatialVAE, Upscaler
from training import encoding as writer
from training.encoding import first_stage_weights
from training.first_stage_loss import FirstStageTraining, UpscalerTraining

VAE_FLAGS = ["--stage", "first_stage", "--channels", "8", "16"]


def small_vae() -> SpatialVAE:
    torch.manual_seed(0)
    return SpatialVAE((8, 16), latent_channels=3, num_attributes=4)


def encode(*argv: object) -> None:
    run_script(encode_latents, *argv)


def pictures(number: int, side: int = 32) -> torch.Tensor:
    return torch.randint(256, (number, side, side, 3), generator=torch.Generator().manual_seed(0)).byte()


# ---------------------------------------------------------------- the first stage


def test_a_first_stage_starts_from_the_principal_components_of_patches():
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.randn(6, 3, 8, 8), (16, 16), mode="bilinear").clamp(-1, 1)
    whole = SpatialVAE((8, 16), latent_channels=48, num_attributes=4, shortcut=True)
    whole.start_from_patches(x)
    mean, logvar = whole.encode(x)
    torch.testing.assert_close(whole.decode(mean), x, atol=1e-4, rtol=0)
    torch.testing.assert_close(mean[:, :8].std((0, 2, 3)), torch.ones(8), atol=0.05, rtol=0)
    assert (logvar == SpatialVAE.FIRST_LOGVAR).all()

    some = SpatialVAE((8, 16), latent_channels=5, num_attributes=4, shortcut=True)
    some.start_from_patches(x)
    centred = (x - x.mean((0, 2, 3), keepdim=True)).unfold(2, 4, 4).unfold(3, 4, 4)
    patches = centred.permute(0, 2, 3, 1, 4, 5).reshape(-1, 48).numpy()
    lost = (np.linalg.svd(patches, compute_uv=False)[5:] ** 2).sum()  # Eckart and Young 1936
    error = (some.decode(some.encode(x)[0]) - x).square().sum()
    assert float(error) == pytest.approx(lost, rel=1e-3)


def test_shapes_of_a_first_stage():
    vae = small_vae()
    mean, logvar = vae.encode(torch.rand(2, 3, 32, 24))
    assert vae.factor == 4
    assert mean.shape == logvar.shape == (2, 3, 8, 6)
    assert vae.decode(mean).shape == (2, 3, 32, 24)
    assert vae.attribute_logits(mean).shape == (2, 4)
    with pytest.raises(ValueError, match="30x32 is not divisible by the first stage's 4"):
        vae.encode(torch.rand(1, 3, 30, 32))


def test_an_upscaler_starts_as_bicubic_interpolation_and_keeps_the_small_image():
    upscaler, x = Upscaler(8), torch.rand(2, 3, 16, 16) * 2 - 1
    small, logvar = upscaler.encode(x)
    assert small.shape == logvar.shape == (2, 3, 8, 8)
    torch.testing.assert_close(upscaler.encode(torch.full_like(x, 0.3))[0], torch.full_like(small, 0.3))
    bicubic = torch.nn.functional.interpolate(small, scale_factor=2, mode="bicubic")
    torch.testing.assert_close(upscaler.decode(small), bicubic)
    with pytest.raises(ValueError, match="15x15 is not divisible"):
        upscaler.encode(x[:, :, 1:, 1:])


def test_an_upscaler_draws_the_detail_that_its_flow_leads_to():
    upscaler, small = Upscaler(8, detail_width=8), torch.rand(2, 3, 8, 8) * 2 - 1
    detail = torch.randn(2, 12, 8, 8)

    class ToDetail(torch.nn.Module):  # the exact velocity where the detail is certain
        def forward(self, r_t, t, features):
            return (r_t - detail) / t[:, None, None, None]

    upscaler.detail = ToDetail()
    bicubic = torch.nn.functional.interpolate(small, scale_factor=2, mode="bicubic")
    drawn = upscaler.decode(small) - bicubic
    expected = Upscaler.DETAIL * torch.nn.functional.pixel_shuffle(detail, 2)
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=1e-4)


def test_an_upscaler_draws_the_same_where_latents_are_alike():
    torch.manual_seed(0)
    upscaler, small = Upscaler(8, detail_width=8), torch.rand(1, 3, 64, 64)
    torch.nn.init.normal_(upscaler.detail.last.weight, std=0.1)
    other = small.clone()
    other[:, :, :, 60:] = 1
    a, b = upscaler.decode(small), upscaler.decode(torch.cat([other, small]))
    torch.testing.assert_close(a[0], b[1])
    torch.testing.assert_close(a[0, :, :, :20], b[0, :, :, :20])
    assert (a[0, :, :, 120:] - b[0, :, :, 120:]).abs().max() > 0.1


def test_the_losses_of_an_upscaler_are_those_of_its_two_parts():
    torch.manual_seed(0)
    images = torch.randint(256, (256, 16, 16, 3), dtype=torch.uint8)
    training = UpscalerTraining(FirstStageConfig(), Upscaler(8, detail_width=8))
    terms = training(images)[0]  # it starts as bicubic interpolation, and the flow as zero everywhere
    left_out = (training.reconstruct(images).float() - images.float()) / 127.5
    torch.testing.assert_close(terms["l1"], left_out.abs().mean(), rtol=0.02, atol=0.0)
    detail = (left_out / Upscaler.DETAIL).square().mean()
    torch.testing.assert_close(terms["detail"], detail + 1, rtol=0.02, atol=0.0)
    torch.testing.assert_close(terms["total"], terms["l1"] / Upscaler.DETAIL + terms["detail"])


def test_moments_serve_as_images_and_decoding_undoes_the_standardisation():
    stage, images = LatentFirstStage(small_vae()), pictures(2)
    stage.mean += torch.tensor([1.0, -2.0, 0.5])
    stage.std *= torch.tensor([2.0, 0.5, 3.0])
    x0 = stage.encode(images)
    assert torch.equal(stage.encode(stage.moments(images)), x0)
    mean, _ = stage.autoencoder.encode(stage.pixels.encode(images))
    plain = stage.pixels.decode(stage.autoencoder.decode(mean))
    assert (stage.decode(x0).int() - plain.int()).abs().max() <= 1  # rounding of the way there and back
    assert not torch.equal(stage.encode(images, sample=True), x0)
    with pytest.raises(ValueError, match=r"moments must be \(B, 6, H, W\), got \(1, 3, 8, 8\)"):
        stage.encode(torch.zeros(1, 3, 8, 8))


def test_flipping_encoded_images_takes_one_of_their_halves():
    moments = torch.stack([torch.zeros(64, 6, 4, 4), torch.ones(64, 6, 4, 4)], dim=1)
    chosen = random_flip(moments, torch.Generator().manual_seed(0))
    assert chosen.shape == (64, 6, 4, 4)
    assert 16 < chosen[:, 0, 0, 0].sum() < 48
    assert torch.equal(chosen, chosen[:, :1, :1, :1].expand_as(chosen))


# ---------------------------------------------------------------- its loss


def training(**loss) -> tuple[FirstStageTraining, FirstStageLossConfig]:
    torch.manual_seed(0)
    config = FirstStageConfig(("A", "B"), 32, vae_channels=(8, 16), latent_channels=3)
    return FirstStageTraining(config, SpatialVAE(**config.network())), FirstStageLossConfig(**loss)


def gradient_of(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat(
        [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in module.parameters()]
    )


def test_the_adversarial_loss_starts_when_it_should():
    model, loss = training(adversarial_start=0.5)
    attributes = torch.ones(4, 2)
    model.progress = 0.49
    assert "discriminator" not in model(pictures(4), attributes, loss)[0]
    model.progress = 0.5
    assert "discriminator" in model(pictures(4), attributes, loss)[0]


def test_first_stage_and_discriminator_have_separate_losses_in_one_backward_pass():
    model, loss = training(adversarial_start=0.0, adversarial_weight=0.5)
    model.progress, attributes = 1.0, torch.ones(4, 2)
    torch.manual_seed(1)
    terms, _, _ = model(pictures(4), attributes, loss)
    terms["total"].backward()
    joint = gradient_of(model.autoencoder), gradient_of(model.discriminator)

    model.zero_grad()
    torch.manual_seed(1)
    terms, _, _ = model(pictures(4), attributes, loss)
    terms["discriminator"].backward()
    assert not gradient_of(model.autoencoder).any()
    torch.testing.assert_close(gradient_of(model.discriminator), joint[1])

    model.zero_grad()
    torch.manual_seed(1)
    terms, _, _ = model(pictures(4), attributes, loss)
    (terms["total"] - terms["discriminator"]).backward()
    torch.testing.assert_close(gradient_of(model.autoencoder), joint[0])


def test_the_adversarial_gradient_is_as_long_as_that_of_likeness():
    model, loss = training(adversarial_start=0.0)
    model.progress = 1.0
    terms, _, _ = model(pictures(4), torch.ones(4, 2), loss)
    last = model.autoencoder.last.weight
    likeness, adversarial = (
        torch.autograd.grad(terms[name], last, retain_graph=True)[0].norm()
        for name in ("likeness", "adversarial")
    )
    torch.testing.assert_close(terms["balance"] * adversarial, likeness, rtol=1e-3, atol=1e-6)


def test_perceptual_distance_is_zero_for_equal_images_only():
    stages = [torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 8, 3, stride=2)]
    a, b = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    assert perceptual_distance(stages, a, a).abs().max() == 0
    assert perceptual_distance(stages, a, b).min() > 0


# ---------------------------------------------------------------- training it, encoding once


@pytest.fixture(scope="module")
def first_stage(flags, faces, tmp_path_factory):
    """first_stage.pth after three steps on the tiny faces, the discriminator at work in the last."""
    folder = tmp_path_factory.mktemp("first_stage")
    judge = folder / "judge.pth"
    data = ["--data_root", faces, "--cache_dir", folder / "cache", "--device", "cpu"]
    train_judge(judge, *data, "--judge_epochs", 1)
    flags = [*flags, *VAE_FLAGS, "--sample_interval", "1"]
    last = run_training(flags, folder, "--judge", judge, "--max_steps", 3)
    return last.with_name("first_stage.pth")


@pytest.fixture(scope="module")
def encoding(first_stage, faces, tmp_path_factory):
    """Command line for encode_latents.py, without --output_dir."""
    cache = str(tmp_path_factory.mktemp("cache"))
    return [
        *("--data_root", str(faces), "--first_stage", str(first_stage), "--image_size", "32"),
        *("--cache_dir", cache, "--device", "cpu", "--mixed_precision", "no", "--batch_size", "4"),
        *("--dataset", "celeba"),
    ]


@pytest.fixture(scope="module")
def latents(encoding, tmp_path_factory):
    """The tiny faces, encoded."""
    out = tmp_path_factory.mktemp("encoded") / "latents"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SHARD", 8)
        encode(*encoding, "--output_dir", out)
    return out


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(writer, "SHARD", 8)


def test_without_perceptual_loss_no_judge_is_needed_and_the_figures_are_drawn(
    flags, faces, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))  # no VGG16 either
    flags = [*flags, *VAE_FLAGS, "--judge", str(tmp_path / "none.pth"), "--max_steps", "1"]
    with pytest.raises(FileNotFoundError, match=r"no judge at .*: --perceptual_weight 0"):
        run_training(flags, tmp_path / "run")
    run_training(flags, tmp_path / "run", "--perceptual_weight", 0)
    file, out = tmp_path / "run" / "first_stage.pth", tmp_path / "figures"
    assert load_first_stage(file).judge == ""

    def draw(what: str, *more: str) -> set[str]:
        where = ["--checkpoint", file, "--output_dir", out / what, "--device", "cpu"]
        run_script(visualize, what, *where, *more)
        return {path.name for path in (out / what).iterdir()}

    data = ["--data_root", str(faces), "--cache_dir", str(tmp_path / "cache"), "--num_samples", "2"]
    everything = draw("all", *data, "--attributes", "Smiling")
    assert everything >= {"reconstructions.png", "latent_space_Smiling.png"}
    assert not {"samples.png", "denoising.png"} & everything
    for what, more in (("samples", data), ("architecture", []), ("all", [])):
        with pytest.raises(ValueError, match="is a first stage, not a model: with --data_root"):
            draw(what, *more)
    with pytest.raises(ValueError, match="did you mean Smiling"):
        draw("latent-space", *data, "--attributes", "Smilin")
    with pytest.raises(ValueError, match="--own_scale is for an AutoencoderKL"):
        data = ["--data_root", faces, "--first_stage", file]
        encode(*data, "--own_scale", "--output_dir", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_two_processes_write_the_same_folder(encoding, launch_two, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SHARD", 512)  # what the script's own processes use
    alone, together = tmp_path / "alone", tmp_path / "together"
    encode(*encoding, "--output_dir", alone)
    said = launch_two("encode_latents.py", *encoding, "--output_dir", together)
    assert "2 processes" in said and said.count("images, ") == 1
    names = sorted(path.name for path in alone.iterdir())
    assert names == sorted(path.name for path in together.iterdir())
    for name in names:
        if name.endswith(".npy"):
            a, b = (np.load(folder / name).astype(float) for folder in (alone, together))
            np.testing.assert_allclose(a, b, atol=2e-3)


def test_encoded_images_are_those_of_the_first_stage(latents, faces, first_stage, tmp_path):
    data = LatentDataset(latents, "train")
    some = LatentDataset(latents, "train")
    some.keep(["Smiling", "Male"])
    assert some.attribute_names == ("Male", "Smiling")
    columns = [data.attribute_names.index(name) for name in some.attribute_names]
    assert torch.equal(some.attributes, data.attributes[:, columns])
    images = CelebADataset(faces, "train", 32, cache_dir=tmp_path)
    assert len(data) == len(images) > 16  # three shards
    assert torch.equal(data.attributes, images.attributes)
    stored = load_first_stage(first_stage)
    stage = stored.module
    assert stored.judge
    some = [0, 16, 9]  # the first of the third shard, too
    moments = data.__getitems__(some)["image"]
    stored = torch.from_numpy(images.images[some])
    expected = torch.stack([stage.moments(stored), stage.moments(stored.flip(2))], dim=1)
    torch.testing.assert_close(moments.float(), expected, rtol=2e-3, atol=2e-3)  # half precision
    stage.load_state_dict(first_stage_weights(latents))
    every = data.__getitems__(range(len(data)))["image"].flatten(0, 1)
    x0 = stage.encode(every, sample=True)
    torch.testing.assert_close(x0.mean((0, 2, 3)), torch.zeros(4), atol=0.05, rtol=0)
    torch.testing.assert_close(x0.std((0, 2, 3)), torch.ones(4), atol=0.05, rtol=0)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_encoding_goes_on_and_ends_byte_for_byte_the_same(
    latents, encoding, tmp_path, monkeypatch
):
    out, write = tmp_path / "latents", writer.LatentWriter.write

    def write_slowly(*shard) -> None:
        write(*shard)
        time.sleep(0.3)

    with monkeypatch.context() as patch:
        patch.setattr(writer.LatentWriter, "write", write_slowly)
        child = start_child(lambda: encode(*encoding, "--output_dir", out))
    deadline = time.monotonic() + 60
    while not (out / "train_00001.npy").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("train_0*.npy")}
    assert 2 <= len(before) < len(list(latents.glob("train_0*.npy")))
    with pytest.raises(ValueError, match="not whole: run the same"):
        LatentDataset(out, "train")
    (out / ".train_00002.npy.tmp").write_bytes(b"cut short")  # what a kill within a shard leaves
    encode(*encoding, "--output_dir", out)
    assert contents(out) == contents(latents)
    assert all((out / name).stat().st_mtime_ns == written for name, written in before.items())


def test_a_folder_of_something_else_is_refused_by_name(latents, encoding, tmp_path):
    before = contents(latents)
    for flag, value, named in (
        ("--crop", "148", "crop 178, not 148"),
        ("--image_size", "64", "image_size 32"),
    ):
        with pytest.raises(ValueError, match=named):
            encode(*encoding, "--output_dir", latents, flag, value)
    other = load_checkpoint(encoding[3])
    other["autoencoder"]["decoder.0.bias"] += 1
    torch.save(other, tmp_path / "other.pth")
    changed = [*encoding, "--output_dir", str(latents), "--first_stage", str(tmp_path / "other.pth")]
    with pytest.raises(ValueError, match=weights_hash(other["autoencoder"])):
        encode(*changed)
    assert contents(latents) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        encode(*encoding, "--output_dir", tmp_path)


# ---------------------------------------------------------------- diffusion in it


SMALL = ["--channels", "16", "32", "--latent_dim", "8", "--batch_size", "4", "--max_steps", "3"]
SMALL += ["--blocks_per_level", "1", "--device", "cpu", "--mixed_precision", "no", "--val_images", "4"]


def train_in(latents: Path, folder: Path, *more: object) -> Path:
    return run_training([*SMALL, "--data_root", str(latents)], folder, *more).with_name("best_model.pth")


def draw_and_edit(checkpoint: Path, faces: Path, out: Path) -> None:
    """Everything manipulate.py does, with no flag about latents."""
    flags = ["--checkpoint", checkpoint, "--data_root", faces, "--output_dir", out, "--device", "cpu"]
    few = ["--num_inference_steps", 3, "--num_samples", 1, "--interpolation_steps", 2]
    run_script(manipulate, *flags, *few)
    made = json.loads((out / "manifest.json").read_text())["made"]
    assert {*made} == {"generate", "interpolate", "edit"}


def test_a_latent_model_trains_resumes_draws_and_edits(latents, faces, tmp_path, monkeypatch):
    monkeypatch.setattr("training.stages.FEWEST_SAMPLES", 8)  # the guide inside learns what is typical
    checkpoint = train_in(latents, tmp_path / "run")
    model = load_model(checkpoint)
    assert model.guide.config.knows_typical
    assert (model.first_stage.channels, model.config.image_size) == (4, 32)
    assert model.config.first_stage_judge.startswith("judge ")
    assert model.unet.stem.in_channels == 4
    assert model.sample(1).shape == (1, 32, 32, 3)
    stage = first_stage_weights(latents)
    assert all(torch.equal(stage[name], value) for name, value in model.first_stage.state_dict().items())
    train_in(latents, tmp_path / "run", "--resume", "--max_steps", 4, "--report_to", "none")
    draw_and_edit(checkpoint, faces, tmp_path / "out")
    with pytest.raises(ValueError, match="30x32 is not divisible by 4"):
        model.sample(1, (30, 32))


def test_the_average_shares_what_is_frozen(latents, tmp_path):
    model = load_model(train_in(latents, tmp_path / "run", "--report_to", "none")).requires_grad_(True)
    model.first_stage.requires_grad_(False)
    ema = EMA(model, 0.9)
    assert ema.model.first_stage.autoencoder.last.weight is model.first_stage.autoencoder.last.weight
    assert ema.model.unet.conv_out.weight is not model.unet.conv_out.weight


def test_stable_diffusion_s_format_trains_draws_and_edits(faces, tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.25,
    ).save_pretrained(tmp_path / "vae")
    stored = load_first_stage(tmp_path / "vae")
    stage = stored.module
    assert (stage.factor, stage.channels) == (4, 4)
    assert torch.equal(
        stage.std, torch.full((4,), 4.0)
    )  # 1 / scaling_factor before anything is measured
    out = tmp_path / "latents"
    flags = ["--data_root", faces, "--first_stage", tmp_path / "vae", "--output_dir", out]
    flags += ["--image_size", 32, "--cache_dir", tmp_path / "cache", "--device", "cpu"]
    encode(*flags)
    checkpoint = train_in(out, tmp_path / "run", "--report_to", "none")
    draw_and_edit(checkpoint, faces, tmp_path / "pictures")
    # In the VAE's own scale: no image is encoded again.
    shards = {file.name: file.stat().st_mtime_ns for file in out.glob("*_0*.npy")}
    encode(*flags, "--own_scale")
    assert shards == {file.name: file.stat().st_mtime_ns for file in out.glob("*_0*.npy")}
    own = first_stage_weights(out)
    assert (own["mean"] == 0).all() and (own["std"] == 4).all()
    shifted = build_first_stage("sd-vae", stored.config | {"shift_factor": 0.5})  # Stable Diffusion 3's
    assert (shifted.mean == 0.5).all() and (shifted.std == 4).all()
    with pytest.raises(FileNotFoundError, match=r"no AutoencoderKL at .*vae/ of Stable Diffusion"):
        load_first_stage(tmp_path / "nothing")
