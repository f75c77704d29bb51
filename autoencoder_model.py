"""The attribute-predicting VAE, and the first stage between stored images and what diffuses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norm import Norm


class PixelFirstStage:
    """Stored images <-> x0 for diffusion in pixels: uint8 (B, H, W, 3) <-> float (B, 3, H, W) in
    [-1, 1]. The only place where ranges change."""

    clip_x0 = True  # x0 is bounded by [-1, 1], so samplers may clip their estimate of it

    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: for any other dtype or layout.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(
                "images must be uint8 (B, H, W, 3), as load_and_preprocess_image and the dataset give "
                f"them, got {images.dtype} {tuple(images.shape)}"
            )
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1

    def decode(self, x0: Tensor) -> Tensor:
        """float (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3), rounded; what lies outside is clipped."""
        return ((x0.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def conv_block(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1), Norm(out_channels, groups=8)
    )


class AttributeVAE(nn.Module):
    """x -> (mu, logvar) of a semantic latent -> x_hat, with the attributes read off the latent.

    (Kingma & Welling 2014, arXiv:1312.6114.) One strided level per entry of ``channels``; the
    attribute head is linear, so its rows are directions in the latent.

    Args:
        image_size: side of the square images, divisible by 2 ** len(channels).
        channels: width of each level, finest first.
        latent_dim: D, size of the latent.
        num_attributes: A.

    Raises:
        ValueError: where the image size does not divide.
    """

    def __init__(
        self,
        image_size: int = 64,
        channels: Sequence[int] = (32, 64, 128, 256),
        latent_dim: int = 512,
        num_attributes: int = 40,
    ):
        super().__init__()
        stride = 2 ** len(channels)
        if image_size % stride:
            raise ValueError(f"image size {image_size} is not divisible by {stride}, as the VAE needs")
        self.image_size, self.latent_dim = image_size, latent_dim
        self.grid = (channels[-1], image_size // stride, image_size // stride)
        flat = math.prod(self.grid)

        encoder: list[nn.Module] = []
        width = 3
        for c in channels:
            encoder += [nn.Conv2d(width, c, 4, stride=2, padding=1), nn.SiLU(), conv_block(c, c)]
            width = c
        self.encoder = nn.Sequential(*encoder)
        self.to_moments = nn.Linear(flat, 2 * latent_dim)

        self.from_latent = nn.Linear(latent_dim, flat)
        decoder: list[nn.Module] = []
        for c in reversed(channels[:-1]):
            decoder += [nn.Upsample(scale_factor=2.0), conv_block(width, c)]
            width = c
        # The last doubling is a pixel shuffle: nothing runs at the full side, the dearest by far.
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))
        self.attribute_head = nn.Linear(latent_dim, num_attributes)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 3, S, S) in [-1, 1] -> mu, logvar of q(z | x), each float32 (B, D).

        Raises:
            ValueError: for images of another size.
        """
        if x.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"the autoencoder takes {self.image_size}x{self.image_size} images, got "
                f"{x.shape[2]}x{x.shape[3]}"
            )
        h = self.encoder(x.contiguous(memory_format=torch.channels_last))  # (B, C, S / 2^n, S / 2^n)
        mu, logvar = self.to_moments(h.flatten(1)).float().chunk(2, dim=1)
        return mu, logvar.clamp(-20, 10)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, D) -> x_hat float32 (B, 3, S, S)."""
        return self.decoder(F.silu(self.from_latent(z)).unflatten(1, self.grid)).float()

    def attribute_logits(self, z: Tensor) -> Tensor:
        """z (B, D) -> logits of each attribute's presence, float32 (B, A)."""
        return self.attribute_head(z).float()

    def losses(
        self, x: Tensor, attributes: Tensor, free_bits: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Scalar terms ``reconstruction``, ``kl`` and ``attributes``, and mu (B, D).

        - reconstruction: mean squared error per pixel value, x_hat from a reparameterised z.
        - kl: KL(q(z | x) || N(0, I)) *per pixel value*: summed over the D dimensions and divided by
          the 3 S S values of an image, so that it weighs against the reconstruction as it does in the
          evidence lower bound, whatever D and S (kl_weight is then 2 sigma^2 of the decoder's noise).
          Each dimension counts at least ``free_bits`` nats: below that nothing pushes it towards the
          prior, so the posterior does not collapse (Kingma et al. 2016, arXiv:1606.04934, appendix C8).
        - attributes: binary cross-entropy over the attributes that are specified (not 0); fractions
          are soft targets.
        """
        mu, logvar = self.encode(x)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        reconstruction = F.mse_loss(self.decode(z), x)
        kl_per_dim = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).mean(0)  # (D,) nats
        kl = kl_per_dim.clamp(min=free_bits).sum() / x[0].numel()
        specified = (attributes != 0).float()
        bce = F.binary_cross_entropy_with_logits(
            self.attribute_logits(z), (attributes + 1) / 2, weight=specified, reduction="sum"
        )
        terms = {
            "reconstruction": reconstruction,
            "kl": kl,
            "attributes": bce / specified.sum().clamp(min=1),
        }
        return terms, mu
