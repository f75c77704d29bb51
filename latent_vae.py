"""The autoencoders of latent diffusion: our own, an upscaler, and diffusers'. A model in pixels needs
none."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import check_pulled
from layers import Norm, TimeEmbedding, zero_init


class AttentionGate(nn.Module):
    """Channel attention, then spatial attention (Woo et al. 2018, arXiv:1807.06521). The first scales
    each channel, from the means of the channels. The second scales each position, from the mean and
    maximum over channels. Starts as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(8, channels // 8)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = zero_init(nn.Linear(hidden, channels))
        self.where = zero_init(nn.Conv2d(2, 1, 7, padding=3))

    def forward(self, x: Tensor) -> Tensor:
        which = self.excite(F.silu(self.squeeze(x.mean((2, 3)))))  # (B, C)
        x = x * (2 * torch.sigmoid(which))[:, :, None, None]
        where = self.where(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1))
        return x * (2 * torch.sigmoid(where))  # (B, C, H, W)


class AttentionBlock(nn.Module):
    """x + gate(conv(silu(norm(conv(silu(norm(x)))))))."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = Norm(channels), Norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate = AttentionGate(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate(self.conv2(self.norm2(self.conv1(self.norm1(x)))))


class SpatialVAE(nn.Module):
    """x (B, 3, S, S) -> mean and log-variance of a latent (B, latent_channels, S / f, S / f) -> x_hat. A
    head predicts the attributes from the latent. This is the project's own first stage (Rombach et al.
    2022, arXiv:2112.10752, section 3.1).

    Args:
        channels: width of each level, finest first; f = 2 ** len(channels). The first halving is a pixel
            unshuffle, so no convolution runs at the full side.
        latent_channels: channels of the latent.
        blocks_per_level: residual blocks of each level, in the encoder and again in the decoder.
        num_attributes: A.
        shortcut: add a linear map of f x f patches to the encoder, and one back to the decoder. Then the
            convolutions learn only what is left (residual autoencoding, Chen et al. 2024,
            arXiv:2410.10733, section 3.2). See ``start_from_patches``.
    """

    clip_x0 = False
    latent_mean, latent_std = 0.0, 1.0
    HEAD_SIDE = 8  # the attribute head gets the latent averaged to this side
    FIRST_LOGVAR = -8.0  # of a VAE with a shortcut: its noise starts too low to be seen

    def __init__(
        self,
        channels: Sequence[int] = (64, 128),
        latent_channels: int = 4,
        blocks_per_level: int = 1,
        num_attributes: int = 40,
        shortcut: bool = False,
    ):
        super().__init__()
        self.latent_channels, self.factor = latent_channels, 2 ** len(channels)
        encoder: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, channels[0], 3, padding=1)]
        for level, c in enumerate(channels):
            if level:
                encoder.append(nn.Conv2d(channels[level - 1], c, 3, stride=2, padding=1))
            encoder += [AttentionBlock(c) for _ in range(blocks_per_level)]
        wide = channels[-1]
        to_moments = nn.Conv2d(wide, 2 * latent_channels, 3, padding=1)
        self.encoder = nn.Sequential(*encoder, Norm(wide), to_moments)
        decoder: list[nn.Module] = [nn.Conv2d(latent_channels, wide, 3, padding=1)]
        for level, c in reversed(list(enumerate(channels))):
            decoder += [AttentionBlock(c) for _ in range(blocks_per_level)]
            if level:
                up = nn.Conv2d(c, channels[level - 1], 3, padding=1)
                decoder += [nn.Upsample(scale_factor=2.0), up]
        self.last = nn.Conv2d(channels[0], 12, 3, padding=1)
        self.decoder = nn.Sequential(*decoder, Norm(channels[0]), self.last, nn.PixelShuffle(2))
        self.to_latent = self.to_patches = None
        if shortcut:
            f = self.factor
            self.to_latent = nn.Conv2d(3, latent_channels, f, stride=f)
            self.to_patches = nn.ConvTranspose2d(latent_channels, 3, f, stride=f)
            zero_init(to_moments)
            zero_init(self.last)
            nn.init.constant_(to_moments.bias[latent_channels:], self.FIRST_LOGVAR)
        self.attribute_head = nn.Linear(latent_channels * self.HEAD_SIDE**2, num_attributes)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 3, S, S) in [-1, 1] -> mean, log-variance, each float32 (B, C, S / f, S / f). Raises
        ValueError if f does not divide S."""
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            size = f"{x.shape[2]}x{x.shape[3]}"
            raise ValueError(f"image size {size} is not divisible by the first stage's {self.factor}")
        x = x.contiguous(memory_format=torch.channels_last)
        mean, logvar = self.encoder(x).float().chunk(2, dim=1)
        if self.to_latent is not None:
            mean = mean + self.to_latent(x).float()
        return mean, logvar.clamp(-20, 10)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, C, S / f, S / f) -> x_hat float32 (B, 3, S, S)."""
        z = z.contiguous(memory_format=torch.channels_last)
        x_hat = self.decoder(z).float()
        return x_hat if self.to_patches is None else x_hat + self.to_patches(z).float()

    @torch.no_grad()
    def start_from_patches(self, x: Tensor) -> None:
        """Set the linear maps to the principal components of the f x f patches of x (N, 3, S, S). Each
        component of z has unit variance then. Does nothing without a shortcut."""
        if self.to_latent is None or self.to_patches is None:
            return
        f, offset = self.factor, x.mean((0, 2, 3))  # (3,)
        patches = F.unfold(x - offset[:, None, None], f, stride=f)  # (N, 3 f f, patches)
        patches = patches.transpose(1, 2).flatten(0, 1).double()
        variances, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))  # rising
        std = variances.flip(0)[: self.latent_channels].clamp(min=1e-8).sqrt()
        components = vectors.flip(1)[:, : self.latent_channels].T  # (C, 3 f f)
        to_latent = (components / std[:, None]).unflatten(1, (3, f, f))
        self.to_latent.weight.copy_(to_latent)
        self.to_latent.bias.copy_(-(to_latent.sum((2, 3)) @ offset.double()))
        self.to_patches.weight.copy_((components * std[:, None]).unflatten(1, (3, f, f)))
        self.to_patches.bias.copy_(offset)

    def attribute_logits(self, z: Tensor) -> Tensor:
        """z -> logits of each attribute's presence, float32 (B, A)."""
        return self.attribute_head(F.adaptive_avg_pool2d(z, self.HEAD_SIDE).flatten(1)).float()


class DetailNetwork(nn.Module):
    """The velocity of an upscaler's fine detail r_t (B, 12, h, w), in the same shape. h and w are half
    the image's: ``pixel_unshuffle`` makes four channels of each colour. There are no norms, so what it
    draws depends only on what is near.

    Args:
        features: channels of what it sees besides r_t.
        width: channels of its blocks.
        num_blocks: its residual blocks.
    """

    def __init__(self, features: int, width: int, num_blocks: int = 4):
        super().__init__()
        self.time = TimeEmbedding(width)
        self.first = nn.Conv2d(12 + features, width, 3, padding=1)
        self.film = nn.Linear(width, 2 * width)  # of all blocks
        self.conv1 = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(num_blocks))
        self.conv2 = nn.ModuleList(
            zero_init(nn.Conv2d(width, width, 3, padding=1)) for _ in range(num_blocks)
        )
        self.last = zero_init(nn.Conv2d(width, 12, 3, padding=1))

    def forward(self, r_t: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """r_t (B, 12, h, w), t (B,) from 0 (detail) to 1 (noise), features (B, features, h, w) ->
        float32 (B, 12, h, w)."""
        scale, shift = self.film(self.time(1000 * t))[:, :, None, None].chunk(2, dim=1)
        h = self.first(torch.cat([r_t, features], dim=1).contiguous(memory_format=torch.channels_last))
        for conv1, conv2 in zip(self.conv1, self.conv2, strict=True):
            h = h + conv2(F.silu(conv1(h) * (1 + scale) + shift))
        return self.last(F.silu(h)).float()


class Upscaler(nn.Module):
    """x (B, 3, S, S) <-> the image at half the side, as latent. So a model of small images draws and
    edits large ones with the weights that it has: the second stage of a cascade (Ho et al. 2022,
    arXiv:2106.15282). The encoder is a fixed filter. The decoder has two parts, as in Mardani et al.
    2023, arXiv:2309.15214: a regression learns what bicubic interpolation leaves out, and a rectified
    flow (Liu et al. 2022, arXiv:2209.03003) draws the fine detail that the regression leaves out. In
    training, noise disturbs the small image as a model's errors do: else the flow makes streaks of them.

    Args:
        width: channels of the regression.
        num_blocks: residual blocks of the regression, at half the side.
        detail_width: channels of the flow; 0, as in files of before: no detail is drawn.
    """

    clip_x0 = True
    latent_channels, factor = 3, 2
    latent_mean, latent_std = 0.0, 1.0
    LOGVAR = -9.0  # of that noise: a standard deviation of 1.4 levels of 255
    # With this filter, CelebA's faces at 128 pixels shrink to those at 64, to 54 dB. Both come from
    # larger photographs by Pillow's bilinear filter. Bilinear once more, from 128, blurs: 45 dB.
    FILTER = (0.077, 0.423, 0.423, 0.077)
    DETAIL = 0.032  # root mean square of the detail, of CelebA at 128 pixels
    STEPS = 4  # in which it is drawn

    def __init__(self, width: int = 64, num_blocks: int = 5, detail_width: int = 0):
        super().__init__()
        taps = torch.tensor(self.FILTER)
        self.register_buffer("taps", taps.outer(taps).expand(3, 1, -1, -1).clone(), persistent=False)
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.SiLU(),
                zero_init(nn.Conv2d(width, width, 3, padding=1)),
            )
            for _ in range(num_blocks)
        )
        self.last = zero_init(nn.Conv2d(width, 12, 3, padding=1))
        self.detail = DetailNetwork(width, detail_width) if detail_width else None

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 3, S, S) in [-1, 1] -> mean, log-variance, each float32 (B, 3, S / 2, S / 2). Raises
        ValueError for an odd S."""
        if x.shape[2] % 2 or x.shape[3] % 2:
            raise ValueError(
                f"image size {x.shape[2]}x{x.shape[3]} is not divisible by the upscaler's 2"
            )
        padded = F.pad(x.float(), (1, 1, 1, 1), mode="replicate")
        mean = F.conv2d(padded, self.taps.float(), stride=2, groups=3)
        return mean, torch.full_like(mean, self.LOGVAR)

    def regress(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, 3, S / 2, S / 2) -> x_hat without the flow's detail, float32 (B, 12, S / 2, S / 2) as
        ``pixel_unshuffle`` gives it, and features (B, width, S / 2, S / 2)."""
        h = self.first(z.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            h = h + block(h)
        bicubic = F.interpolate(z.float(), scale_factor=2, mode="bicubic")
        return F.pixel_unshuffle(bicubic, 2) + self.last(F.silu(h)).float(), h

    def decode(self, z: Tensor) -> Tensor:
        """z (B, 3, S / 2, S / 2) -> x_hat float32 (B, 3, S, S). The flow's noise is the same for every
        z: where two latents are alike, so are the two images."""
        x_hat, features = self.regress(z)
        if self.detail is not None:
            noise = torch.randn(1, *x_hat.shape[1:], generator=torch.Generator().manual_seed(0))
            r = noise.to(x_hat.device).expand_as(x_hat)
            for step in range(self.STEPS, 0, -1):
                t = torch.full((len(z),), step / self.STEPS, device=z.device)
                r = r - self.detail(r, t, features) / self.STEPS
            x_hat = x_hat + self.DETAIL * r
        return F.pixel_shuffle(x_hat, 2)


class StableDiffusionVAE(nn.Module):
    """diffusers' ``AutoencoderKL`` as a first stage: Stable Diffusion's, with f = 8 and four channels,
    or any other in diffusers' format. ``config`` holds plain values and is enough to build it."""

    clip_x0 = False

    def __init__(self, config: dict):
        super().__init__()
        from diffusers import AutoencoderKL

        self.vae = AutoencoderKL.from_config(config)
        self.latent_channels = self.vae.config.latent_channels
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        if not self.vae.config.scaling_factor > 0:
            raise ValueError(f"scaling_factor is {self.vae.config.scaling_factor}: it must be positive")
        self.latent_mean = self.vae.config.get("shift_factor") or 0.0  # of Stable Diffusion 3 on
        self.latent_std = 1 / self.vae.config.scaling_factor

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As ``SpatialVAE.encode``."""
        posterior = self.vae.encode(x).latent_dist
        return posterior.mean, posterior.logvar

    def decode(self, z: Tensor) -> Tensor:
        """As ``SpatialVAE.decode``."""
        return self.vae.decode(z).sample.float()


def pretrained_vae(name: str) -> tuple[dict, dict[str, Tensor]]:
    """Config and weights for a ``StableDiffusionVAE``, from an ``AutoencoderKL``. ``name`` is a folder
    in diffusers' format, or a name on the hub. Raises FileNotFoundError if there is none."""
    from diffusers import AutoencoderKL

    try:
        vae = AutoencoderKL.from_pretrained(name)
    except Exception as error:  # a wrong config.json may raise any error
        check_pulled(name)
        raise FileNotFoundError(
            f"no AutoencoderKL at {name!r} ({textwrap.shorten(str(error), 100)}): give a folder with "
            "config.json and diffusion_pytorch_model.safetensors, such as the vae/ of Stable Diffusion "
            "v1.5, or its name on the hub"
        ) from None
    config = {k: v for k, v in vae.config.items() if not k.startswith("_")}
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
    return config, {f"vae.{name}": weight for name, weight in vae.state_dict().items()}
