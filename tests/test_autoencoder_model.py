from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from autoencoder_model import AttributeVAE, PixelFirstStage


def make_vae() -> AttributeVAE:
    torch.manual_seed(0)
    return AttributeVAE(image_size=16, latent_dim=8, num_attributes=4)


def test_first_stage_is_exact_on_every_byte():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    stage = PixelFirstStage()
    x0 = stage.encode(images)
    assert x0.shape == (1, 3, 16, 16)
    assert (x0.min(), x0.max()) == (-1, 1)
    assert torch.equal(stage.decode(x0), images)
    assert stage.decode(torch.full((1, 3, 2, 2), 7.0)).max() == 255


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 8, 8), torch.zeros(8, 8, 3, dtype=torch.uint8)])
def test_first_stage_refuses_other_layouts(images):
    with pytest.raises(ValueError, match="uint8"):
        PixelFirstStage().encode(images)


def test_shapes():
    vae = make_vae()
    x = torch.rand(3, 3, 16, 16) * 2 - 1
    mu, logvar = vae.encode(x)
    assert mu.shape == logvar.shape == (3, 8)
    assert vae.decode(mu).shape == x.shape
    assert vae.attribute_logits(mu).shape == (3, 4)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="24 is not divisible by 16"):
        AttributeVAE(image_size=24)
    with pytest.raises(ValueError, match="takes 16x16 images, got 32x32"):
        make_vae().encode(torch.zeros(1, 3, 32, 32))


def moments(vae: AttributeVAE, mu: torch.Tensor, logvar: torch.Tensor) -> None:
    vae.encode = lambda x: (mu, logvar)


def test_kl_is_torch_s_between_gaussians_per_pixel_value():
    vae = make_vae()
    mu, logvar = torch.randn(5, 8), torch.randn(5, 8)
    moments(vae, mu, logvar)
    x = torch.zeros(5, 3, 16, 16)
    terms, _ = vae.losses(x, torch.ones(5, 4), free_bits=0.0)
    posterior = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(terms["kl"], divergence.sum(1).mean() / (3 * 16 * 16))


def test_free_bits_leave_small_dimensions_alone():
    """A dimension under its free bits gets no push towards the prior; one above does."""
    vae = make_vae()
    mu = torch.tensor([[0.01] * 4 + [3.0] * 4], requires_grad=True)
    moments(vae, mu, torch.zeros(1, 8))
    terms, _ = vae.losses(torch.zeros(1, 3, 16, 16), torch.zeros(1, 4), free_bits=0.1)
    (gradient,) = torch.autograd.grad(terms["kl"], mu)
    assert (gradient[0, :4] == 0).all()
    assert (gradient[0, 4:] > 0).all()


def test_attribute_loss_counts_only_what_is_specified():
    vae = make_vae()
    attributes = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.5, -1.0, 0.0]])
    x = torch.rand(2, 3, 16, 16)
    torch.manual_seed(1)
    terms, mu = vae.losses(x, attributes, 0.0)
    torch.manual_seed(1)
    logvar = vae.encode(x)[1]
    logits = vae.attribute_logits(mu + (0.5 * logvar).exp() * torch.randn_like(mu))
    rows, columns = attributes.nonzero(as_tuple=True)
    targets = torch.tensor([1.0, 0.0, 0.75, 0.0])
    expected = F.binary_cross_entropy_with_logits(logits[rows, columns], targets)
    torch.testing.assert_close(terms["attributes"], expected)
    unspecified, _ = vae.losses(x, torch.zeros(2, 4), 0.0)
    assert unspecified["attributes"] == 0


def test_learns_to_reconstruct_without_collapse():
    """After a few steps on a handful of images the latent carries which image it was."""
    vae = make_vae()
    torch.manual_seed(0)
    x = F.interpolate(torch.rand(8, 3, 2, 2) * 2 - 1, 16)
    optimizer = torch.optim.Adam(vae.parameters(), 2e-3)
    for _ in range(250):
        terms, _ = vae.losses(x, torch.zeros(8, 4), free_bits=0.02)
        optimizer.zero_grad()
        (terms["reconstruction"] + 0.01 * terms["kl"]).backward()
        optimizer.step()
    assert F.mse_loss(vae.decode(vae.encode(x)[0]), x) < 0.3 * x.var()
    assert (vae.encode(x)[0].std(0) > 0.1).sum() >= 3


def test_free_bits_are_of_a_dimension_not_of_a_sample(monkeypatch):
    """One sample's surplus counts for another's lack: the mean over the batch is what is clamped."""
    vae = AttributeVAE(16, (8,), 4, 3)
    kl = torch.tensor([[4.0, 0.0, 0.2, 0.0], [0.0, 0.0, 0.2, 3.0]])
    monkeypatch.setattr("autoencoder_model.kl_to_prior", lambda *_: kl)
    terms, _ = vae.losses(torch.randn(2, 3, 16, 16), torch.ones(2, 3), 0.5)
    expected = (2.0 + 0.5 + 0.5 + 1.5) / (3 * 16 * 16)
    assert float(terms["kl"]) == pytest.approx(expected)
