"""The attribute-predicting VAE, and the first stages, which map stored images to x0 and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_vae import SpatialVAE, StableDiffusionVAE, Upscaler
from layers import Norm


def draw_posterior(mean: Tensor, logvar: Tensor) -> Tensor:
    """A reparameterised draw z ~ N(mean, exp(logvar)), in the same shape."""
    return mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)


def kl_to_prior(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of each value, in nats."""
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar)


def specified_bce(logits: Tensor, attributes: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy (B, A) of logits (B, A), and a mask (B, A) that is 1 where an attribute is
    specified. Both are 0 where an attribute (B, A) is unspecified (0). Fractions are soft targets."""
    specified = (attributes != 0).float()
    bce = F.binary_cross_entropy_with_logits(
        logits, (attributes + 1) / 2, weight=specified, reduction="none"
    )
    return bce, specified


def attribute_loss(logits: Tensor, attributes: Tensor) -> Tensor:
    """The mean of ``specified_bce`` over the specified attributes of a batch."""
    bce, specified = specified_bce(logits, attributes)
    return bce.sum() / specified.sum().clamp(min=1)


class PixelFirstStage(nn.Module):
    """Stored images <-> x0 for diffusion in pixels: uint8 (B, H, W, 3) <-> float (B, 3, H, W) in
    [-1, 1]. The only place where a diffusion model's images change range; judges have
    ``network_input``."""

    clip_x0 = True  # x0 is bounded by [-1, 1], so samplers may clip their estimate of it
    channels, factor = 3, 1  # channels of x0; side of the image / side of x0

    def encode(self, images: Tensor, sample: bool = False) -> Tensor:
        """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]. ``sample`` changes nothing. Raises
        ValueError for any other dtype or layout."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(
                "images must be uint8 (B, H, W, 3), as load_and_preprocess_image and the dataset give "
                f"them, got {images.dtype} {tuple(images.shape)}"
            )
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1

    def to_pixels(self, x0: Tensor) -> Tensor:
        """x0 as float32 pixels (B, 3, H, W), in [-1, 1] up to the model's error."""
        return x0.float()

    def decode(self, x0: Tensor) -> Tensor:
        """float (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3), rounded; values outside are clipped."""
        return ((x0.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


class LatentFirstStage(nn.Module):
    """Stored images, or their moments, <-> x0 in the latent space of a frozen autoencoder.

    ``x0 = (z - mean) / std`` with a mean and a std for each channel, measured on a training set or the
    autoencoder's own. So x0 has the unit variance that noise schedules expect (Rombach et al. 2022,
    arXiv:2112.10752, appendix G). Mean and std are buffers and travel with the weights.

    Args:
        autoencoder: its ``encode`` maps x (B, 3, H, W) in [-1, 1] to the mean and log-variance of the
            latent, and its ``decode`` maps z back. It also has ``latent_channels``, ``factor``,
            ``clip_x0``, and ``latent_mean`` and ``latent_std``, which are used until others are
            measured.
    """

    def __init__(self, autoencoder: nn.Module):
        super().__init__()
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.clip_x0 = autoencoder.clip_x0  # whether x0 is bounded by [-1, 1]
        self.channels, self.factor = autoencoder.latent_channels, autoencoder.factor
        self.register_buffer("mean", torch.full((self.channels,), float(autoencoder.latent_mean)))
        self.register_buffer("std", torch.full((self.channels,), float(autoencoder.latent_std)))
        self.pixels = PixelFirstStage()

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> mean and log-variance of z, float32 (B, 2 C, H / f, W / f)."""
        return torch.cat(self.autoencoder.encode(self.pixels.encode(images)), dim=1).float()

    def encode(self, stored: Tensor, sample: bool = False) -> Tensor:
        """x0 (B, C, H / f, W / f) of images uint8 (B, H, W, 3), or of floating-point moments as
        ``moments`` gives them. It is the posterior's mean, or with ``sample`` a draw. Raises ValueError
        for any other dtype or layout."""
        moments = stored.float() if stored.is_floating_point() else self.moments(stored)
        if moments.ndim != 4 or moments.shape[1] != 2 * self.channels:
            raise ValueError(
                f"moments must be (B, {2 * self.channels}, H, W), got {tuple(moments.shape)}"
            )
        z, logvar = moments.chunk(2, dim=1)
        if sample:
            z = draw_posterior(z, logvar)
        return (z - self.mean[:, None, None]) / self.std[:, None, None]

    @torch.no_grad()
    def to_pixels(self, x0: Tensor) -> Tensor:
        """x0 (B, C, h, w) -> float32 pixels (B, 3, f h, f w), in [-1, 1] up to the decoder's error."""
        return self.autoencoder.decode(x0.float() * self.std[:, None, None] + self.mean[:, None, None])

    def decode(self, x0: Tensor) -> Tensor:
        """x0 (B, C, h, w) -> uint8 (B, f h, f w, 3)."""
        return self.pixels.decode(self.to_pixels(x0))


def conv_block(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1), Norm(out_channels, groups=8)
    )


class AttributeVAE(nn.Module):
    """x -> (mu, logvar) of a semantic latent -> x_hat. A head predicts the attributes from the latent.

    (Kingma & Welling 2014, arXiv:1312.6114.) Each entry of ``channels`` is one strided level. The
    attribute head is linear, so its rows are directions in the latent.

    Args:
        image_size: side S of x. ValueError unless 2 ** len(channels) divides it.
        channels: width of each level, finest first.
        latent_dim: D, size of the latent.
        num_attributes: A.
        image_channels: C of x, 3 for pixels.
    """

    def __init__(
        self,
        image_size: int = 64,
        channels: Sequence[int] = (32, 64, 128, 256),
        latent_dim: int = 512,
        num_attributes: int = 40,
        image_channels: int = 3,
    ):
        super().__init__()
        stride = 2 ** len(channels)
        if image_size % stride:
            raise ValueError(f"image size {image_size} is not divisible by {stride}, as the VAE needs")
        self.image_size, self.latent_dim = image_size, latent_dim
        self.grid = (channels[-1], image_size // stride, image_size // stride)
        flat = math.prod(self.grid)

        encoder: list[nn.Module] = []
        width = image_channels
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
        # The last doubling is a pixel shuffle. No convolution runs at the full side, which costs most.
        decoder += [nn.Conv2d(width, 4 * image_channels, 3, padding=1), nn.PixelShuffle(2)]
        self.decoder = nn.Sequential(*decoder)
        self.attribute_head = nn.Linear(latent_dim, num_attributes)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, S, S) -> mu, logvar of q(z | x), each float32 (B, D). Raises ValueError for images of
        another size."""
        if x.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"the autoencoder takes {self.image_size}x{self.image_size} images, got "
                f"{x.shape[2]}x{x.shape[3]}"
            )
        h = self.encoder(x.contiguous(memory_format=torch.channels_last))  # (B, C, S / 2^n, S / 2^n)
        mu, logvar = self.to_moments(h.flatten(1)).float().chunk(2, dim=1)
        return mu, logvar.clamp(-20, 10)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, D) -> x_hat float32 (B, C, S, S)."""
        return self.decoder(F.silu(self.from_latent(z)).unflatten(1, self.grid)).float()

    def attribute_logits(self, z: Tensor) -> Tensor:
        """z (B, D) -> logits of each attribute's presence, float32 (B, A)."""
        return self.attribute_head(z).float()

    def losses(
        self, x: Tensor, attributes: Tensor, free_bits: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Scalar terms ``reconstruction``, ``kl`` and ``attributes``, and mu (B, D).

        - reconstruction: mean squared error per pixel value, x_hat from a reparameterised z.
        - kl: KL(q(z | x) || N(0, I)) per pixel value: summed over the D dimensions, then divided by the
          C S S values of an image. Its ratio to the reconstruction is then that of the evidence lower
          bound for every D and S, and kl_weight is 2 sigma^2 of the decoder's noise. Each dimension
          counts at least ``free_bits`` nats. Below that nothing pulls it towards the prior, so the
          posterior does not collapse (Kingma et al. 2016, arXiv:1606.04934, appendix C8).
        - attributes: ``attribute_loss`` of the head.
        """
        mu, logvar = self.encode(x)
        z = draw_posterior(mu, logvar)
        reconstruction = F.mse_loss(self.decode(z), x)
        kl_per_dim = kl_to_prior(mu, logvar).mean(0)  # (D,)
        kl = kl_per_dim.clamp(min=free_bits).sum() / x[0].numel()
        terms = {
            "reconstruction": reconstruction,
            "kl": kl,
            "attributes": attribute_loss(self.attribute_logits(z), attributes),
        }
        return terms, mu


# -------------------------------------------------------------------- the kinds of first stages


# configuration -> first stage; its weights are loaded with the rest of a checkpoint
FIRST_STAGES: dict[str, Callable[[dict], nn.Module]] = {
    "pixels": lambda config: PixelFirstStage(),
    "vae": lambda config: LatentFirstStage(SpatialVAE(**config)),
    "upscaler": lambda config: LatentFirstStage(Upscaler(**config)),
    "sd-vae": lambda config: LatentFirstStage(StableDiffusionVAE(config)),
}


def build_first_stage(kind: str, config: dict) -> nn.Module:
    """The first stage of this kind: see ``FIRST_STAGES``."""
    return FIRST_STAGES[kind](config)
