"""Layers of the UNet, the VAE and the guide: normalisation, residual blocks, the time embedding."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu": F.relu}
# channels -> ``groups`` of a ``Norm``. With a group for each channel it is instance normalisation
# (Ulyanov et al. 2016, arXiv:1607.08022).
NORMS: dict[str, Callable[[int], int]] = {
    "group": lambda channels: 32,
    "instance": lambda channels: channels,
}


def widest(device: torch.device) -> torch.dtype:
    """The most precise floating point that a device has: float64, and float32 on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


def _total(x: Tensor) -> Tensor:
    """Sum over height and width in at least float32: (B, C, H, W) -> (B, C)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, HW, C), in channels-last memory a view
    sums = torch.bmm(rows.new_ones(len(x), 1, rows.shape[1]), rows)  # five times as fast as x.sum
    return sums[:, 0].to(dtype)


class NormFunction(torch.autograd.Function):
    """z = gain * (x - mean) / sqrt(var + eps) + offset, then SiLU if ``silu``. Mean and variance are
    over a group of channels and all positions (Wu & He 2018, arXiv:1803.08494).

    For CPUs: the backward passes of torch's own functions take ten times as long there in channels-last
    memory. The backward pass here uses the stored normalised x and recomputes z.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        batch, channels, height, width = x.shape
        # torch takes four times as long for small maps of half precision in channels-last memory.
        is_slow = (
            x.dtype != torch.float32
            and height * width < 1024
            and x.is_contiguous(memory_format=torch.channels_last)
        )
        h, _, rstd = torch.native_group_norm(
            x.contiguous() if is_slow else x, None, None, batch, channels, height * width, groups, eps
        )  # rstd (B, groups)
        if is_slow:
            h = h.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(h, gain, offset, rstd)
        ctx.silu = silu
        z = _affine(h, gain, offset)
        return F.silu(z, inplace=True) if silu else z

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        h, gain, offset, rstd = ctx.saved_tensors
        if ctx.silu:
            grad = torch.ops.aten.silu_backward(grad, _affine(h, gain, offset))
        d_offset, d_gain = _total(grad), _total(grad * h)  # (B, C)
        size = h.shape[1] // rstd.shape[1]  # channels of a group

        def over_group(per_channel: Tensor) -> Tensor:
            mean = per_channel.unflatten(1, (-1, size)).sum(2) / (size * h.shape[2] * h.shape[3])
            return mean.repeat_interleave(size, 1)

        rstd = rstd.to(d_gain.dtype).repeat_interleave(size, 1)  # (B, C)
        # dx = rstd (g - mean(g) - h mean(g h)), g = gain * grad
        d_x = _affine(h, -rstd * over_group(gain * d_gain), -rstd * over_group(gain * d_offset))
        d_x.addcmul_(grad, (rstd * gain).to(grad.dtype)[..., None, None])
        return d_x, d_gain.sum_to_size(gain.shape), d_offset.sum_to_size(offset.shape), None, None, None


def norm_written_out(
    x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float, silu: bool
) -> Tensor:
    """``NormFunction`` in torch's own operations, which torch.compile fuses into one kernel. For GPUs:
    CUDA's group_norm does not keep channels-last memory, nor bfloat16 under autocast."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    grouped = x.unflatten(1, (groups, -1)).to(dtype)  # (B, groups, C / groups, H, W)
    variance, mean = torch.var_mean(grouped, (2, 3, 4), correction=0, keepdim=True)
    h = ((grouped - mean) * (variance + eps).rsqrt()).flatten(1, 2)
    z = h * gain[..., None, None] + offset[..., None, None]
    return (F.silu(z) if silu else z).to(x.dtype)


def _affine(x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """gain * x + offset in x's dtype; gain and offset are (B, C), or (1, C) for all samples."""
    gain, offset = gain.to(x.dtype)[..., None, None], offset.to(x.dtype)[..., None, None]
    return torch.addcmul(offset, x, gain)


class Norm(nn.GroupNorm):
    """Group normalisation, then FiLM if a scale and a shift (B, C) are given (Perez et al. 2018,
    arXiv:1709.07871), then an activation: (B, C, H, W) -> the same shape.

    Args:
        activation: a name in ACTIVATIONS; None for none.
        groups: the number of groups is the greatest common divisor of this and ``channels``.
    """

    def __init__(self, channels: int, activation: str | None = "silu", groups: int = 32):
        super().__init__(math.gcd(groups, channels), channels)
        self.activation = activation

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        gain, offset = self.weight[None], self.bias[None]
        if scale is not None:
            gain, offset = gain * (1 + scale), offset * (1 + scale) + shift
        norm = NormFunction.apply if x.is_cpu else norm_written_out
        silu = self.activation == "silu"
        z = norm(x, gain, offset, self.num_groups, self.eps, silu)
        return z if silu or self.activation is None else ACTIVATIONS[self.activation](z)


def zero_init(layer: nn.Module) -> nn.Module:
    """Start a residual branch at zero, so that the block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def sinusoidal_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """[cos(t w_i), sin(t w_i)] with w_i from 1 down to 1 / max_period: (B,) -> float32 (B, dim)
    (Vaswani et al. 2017, arXiv:1706.03762). t in timesteps."""
    frequencies = torch.exp(-math.log(max_period) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angles = t.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Sequential):
    """A two-layer network on the sinusoidal embedding: t (B,) -> (B, dim)."""

    def __init__(self, dim: int):
        super().__init__(nn.Linear(dim // 2, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        return super().forward(sinusoidal_embedding(t, self[0].in_features))


class ResidualBlock(nn.Module):
    """x + conv(activation(FiLM(norm(conv(activation(norm(x))))))). The second convolution starts at
    zero. ``film`` is a projection of the embedding that several blocks share; by default the block has
    its own (FiLM: Perez et al. 2018, arXiv:1709.07871). ``norm`` and ``activation`` are names in NORMS
    and ACTIVATIONS."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        dropout: float,
        film: nn.Linear | None = None,
        norm: str = "group",
        activation: str = "silu",
    ):
        super().__init__()
        self.norm1 = Norm(in_channels, activation, NORMS[norm](in_channels))
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.film = nn.Linear(embedding_dim, 2 * out_channels) if film is None else film
        self.norm2 = Norm(out_channels, activation, NORMS[norm](out_channels))
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))  # (B, C_out, H, W)
        scale, shift = self.film(embedding).chunk(2, dim=1)  # (B, C_out)
        return self.skip(x) + self.conv2(self.dropout(self.norm2(h, scale, shift)))
