from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from helpers import refused
from safetensors.torch import save_file

import checkpoint as checkpoint_module
import studio
from checkpoint import EMA, FORMAT, load_checkpoint, save_atomically, save_model
from config import ModelFiles
from diffusion_model import load_model


def test_model_returns_from_its_file_alone(make_model, tmp_path):
    model = make_model()
    path = tmp_path / "deep" / "best_model.pth"
    save_model(model, path, step=7)
    torch.load(path, weights_only=True)  # plain tensors and plain types only
    loaded = load_model(path)
    assert loaded.config == model.config
    assert not loaded.training
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    row = torch.tensor([[1.0, 0.0, -1.0]])
    first, second = (
        m.ddim_sample(1, None, row, 2.0, 3, generator=g)
        for m, g in zip((model, loaded), generators, strict=True)
    )
    assert torch.equal(first, second)
    assert load_checkpoint(path)["step"] == 7


def test_norm_and_activation_travel_and_files_from_before_have_the_defaults(make_model, tmp_path):
    model, plain = make_model(norm="instance", activation="relu"), make_model()
    save_model(model, tmp_path / "new.pth")
    config = plain.config.to_dict()
    del config["norm"], config["activation"]
    save_atomically({"config": config, "model": plain.state_dict()}, tmp_path / "old.pth")
    assert load_model(tmp_path / "new.pth").config == model.config
    assert load_model(tmp_path / "old.pth").config == plain.config
    x, t, row = torch.randn(1, 3, 16, 16), torch.tensor([3]), torch.tensor([[1.0, 0.0, -1.0]])
    assert plain.state_dict().keys() == model.state_dict().keys()
    plain.load_state_dict(model.state_dict())
    assert (plain.unet(x, t, row) - model.unet(x, t, row)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="norm instance needs more than one position"):
        make_model(norm="instance", channels=(16, 16, 16, 16, 16))
    with pytest.raises(ValueError, match="norm must be one of group, instance, got 'batch'"):
        make_model(norm="batch")


def flip_a_bit(path):
    """In the weights. torch does not look at the sums of what it reads."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped": flip_a_bit,
    "text": lambda path: path.write_text("not a checkpoint"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5000]),
    "foreign": lambda path: torch.save({"state_dict": {}}, path),
    "code": lambda path: torch.save({"format": FORMAT, "args": copy.copy}, path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_other_files_are_refused_in_one_line(make_model, tmp_path, damage):
    path = tmp_path / "best_model.pth"
    save_model(make_model(), path)
    DAMAGE[damage](path)
    refused(lambda: load_model(path), str(path), error=ValueError)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_without_their_configuration_say_what_is_missing(make_model, tmp_path, suffix):
    weights, path = make_model().state_dict(), tmp_path / f"weights{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    refused(
        lambda: load_model(path), f"{path} holds weights alone, and not the ModelConfig", "save_model"
    )


def test_another_architecture_is_refused_with_both_shapes(make_model, tmp_path):
    state = {"config": make_model().config.to_dict(), "model": make_model(latent_dim=4).state_dict()}
    save_atomically(state, tmp_path / "mixed.pth")
    with pytest.raises(ValueError, match=r"another architecture: .* is .* there and .* in this model"):
        load_model(tmp_path / "mixed.pth")


def test_ema_follows_its_formula(make_model):
    model = make_model()
    ema = EMA(model, decay=0.3)
    expected = model.unet.stem.weight.detach().clone()
    for n in range(6):
        with torch.no_grad():
            model.unet.stem.weight.add_(1.0)
        ema.update(model, n)
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model.unet.stem.weight.detach()
    torch.testing.assert_close(ema.model.unet.stem.weight, expected)
    assert not any(p.requires_grad for p in ema.model.parameters())


def test_of_a_run_s_last_file_the_averaged_weights_are_loaded(make_model, tmp_path):
    model, averaged = make_model(), make_model()
    with torch.no_grad():
        averaged.unet.stem.weight.add_(1.0)
    save_model(model, tmp_path / "last.pth", ema=averaged.state_dict())
    loaded = load_model(tmp_path / "last.pth")
    assert torch.equal(loaded.unet.stem.weight, averaged.unet.stem.weight)


@pytest.mark.parametrize("suffix", (".pth", ".safetensors"))
def test_the_hash_is_that_of_what_was_loaded(make_model, tmp_path, monkeypatch, suffix):
    """Another file takes the place of the first while that is read."""
    path, digest = tmp_path / f"model{suffix}", checkpoint_module._digest
    save_model(make_model(), path)
    before = hashlib.sha256(path.read_bytes()).hexdigest()[:12]

    def digest_and_replace(file):
        try:
            return digest(file)
        finally:
            save_model(make_model(("Bald",)), path)

    monkeypatch.setattr(checkpoint_module, "_digest", digest_and_replace)
    model = load_model(path)
    assert len(model.config.attribute_names) == 3
    facts = studio.model_facts(ModelFiles(checkpoint=str(path)), model, None)
    assert facts["checkpoint"] == before != hashlib.sha256(path.read_bytes()).hexdigest()[:12]
