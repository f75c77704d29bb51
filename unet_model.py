"""The cross-attention UNet: (x_t, t, attributes, latent) -> prediction, and its embedders.

The timestep enters every residual block as a scale and a shift. Attributes enter in three ways. Each is
a token that image positions attend to. Each is added to the timestep embedding, which reaches every
block from the first training step. Each has a learned map, which is added to the first features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layers import Norm, ResidualBlock, TimeEmbedding, zero_init

WRITTEN_OUT = 2**18  # on a CPU, attention is written out up to this many query-key pairs per head


class AttributeMaps(nn.Module):
    """map_0 + sum_i a_i map_i, learned maps of where each attribute shows: (B, A) -> (B, C, H, W).

    Convolutions and attention learn slowly which attribute changes which place. In aligned pictures,
    such as faces, these maps show it from the first training steps. They start at zero. They have
    ``side`` x ``side`` cells and are resized to the features that they are added to.
    """

    def __init__(self, num_attributes: int, channels: int, side: int = 16):
        super().__init__()
        self.shape = (channels, side, side)
        self.maps = nn.Parameter(torch.zeros(num_attributes, math.prod(self.shape)))
        self.always = nn.Parameter(torch.zeros(math.prod(self.shape)))

    def forward(self, attributes: Tensor, size: torch.Size) -> Tensor:
        maps = F.linear(attributes, self.maps.T, self.always).unflatten(1, self.shape)
        maps = maps.contiguous(memory_format=torch.channels_last)
        if maps.shape[2:] == size:
            return maps
        return F.interpolate(maps, size, mode="bilinear")  # (B, C, H, W)


class ConditionEmbedding(nn.Module):
    """Timestep, attributes and latent -> FiLM embedding (B, E) and context tokens (B, A + 1, C). With
    latent_dim 0 the tokens are (B, A, C). With context_dim 0 there are none.

    The token of attribute i is LayerNorm(name_i + a_i * value_i). It is affine in a_i before the norm,
    so fractions lie between the two ends. a_i = 0 leaves only the name, which means "unspecified".
    The last token is the semantic latent, or a learned token for a sample without a latent.
    """

    def __init__(self, num_attributes: int, latent_dim: int, context_dim: int, embedding_dim: int):
        super().__init__()
        self.time = TimeEmbedding(embedding_dim)
        self.tokens = context_dim > 0
        if self.tokens:
            self.name = nn.Parameter(torch.randn(num_attributes, context_dim))
            self.value = nn.Parameter(torch.randn(num_attributes, context_dim))
            self.norm = nn.LayerNorm(context_dim)
        # No bias: the all-zero row adds nothing, so it is the unconditional branch.
        self.attributes = nn.Linear(num_attributes, embedding_dim, bias=False)
        self.latent = nn.Linear(latent_dim, embedding_dim, bias=False) if latent_dim else None
        if latent_dim and self.tokens:
            self.latent_token = nn.Linear(latent_dim, context_dim)
            self.no_latent_token = nn.Parameter(torch.randn(context_dim))

    def forward(
        self, t: Tensor, attributes: Tensor, latent: Tensor | None, latent_keep: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        embedding = self.time(t) + self.attributes(attributes)  # (B, E)
        if self.latent is not None and latent is not None:
            keep = torch.ones_like(t) if latent_keep is None else latent_keep
            keep = keep[:, None].to(latent.dtype)  # (B, 1)
            embedding = embedding + keep * self.latent(latent)
        embedding = F.silu(embedding)
        if not self.tokens:
            return embedding, None
        tokens = self.name + attributes[..., None] * self.value  # (B, A, C)
        if self.latent is not None:
            token = self.no_latent_token.expand(len(t), -1)  # (B, C)
            if latent is not None:
                token = keep * self.latent_token(latent) + (1 - keep) * token
            tokens = torch.cat([tokens, token[:, None]], dim=1)  # (B, A + 1, C)
        return embedding, self.norm(tokens)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V: (B, heads, N, D), (B, heads, M, D) twice -> (B, heads, N, D).

    It uses the fused kernel, so memory grows with N + M. On a CPU, small N x M are written out instead:
    in bfloat16 this trains 3 to 6 times faster (docs/log.md).
    """
    if not query.is_cpu or query.shape[2] * key.shape[2] > WRITTEN_OUT:
        return F.scaled_dot_product_attention(query, key, value)
    heads, scale = query.shape[1], query.shape[3] ** -0.5
    query, key, value = (tensor.flatten(0, 1) for tensor in (query, key, value))
    weights = torch.softmax((scale * query) @ key.mT, dim=-1)  # (B heads, N, M)
    return (weights @ value).unflatten(0, (-1, heads))


class Attention(nn.Module):
    """x + multi-head attention of the image positions to ``context`` tokens, or to each other. In the
    samples that are ``perturbed`` (B,), each position attends to itself alone."""

    def __init__(self, channels: int, num_heads: int, context_dim: int | None = None):
        super().__init__()
        self.num_heads = num_heads
        self.norm = Norm(channels, activation=None)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(context_dim or channels, 2 * channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(
        self, x: Tensor, context: Tensor | None = None, perturbed: Tensor | None = None
    ) -> Tensor:
        height = x.shape[2]
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        source = tokens if context is None else context  # (B, N, C)
        query = rearrange(self.query(tokens), "b n (k d) -> b k n d", k=self.num_heads)
        key, value = rearrange(
            self.key_value(source), "b n (two k d) -> two b k n d", two=2, k=self.num_heads
        )
        h = attend(query, key, value)  # (B, heads, HW, C / heads)
        if perturbed is not None:
            h = torch.where(perturbed[:, None, None, None], value, h)
        h = self.out(rearrange(h, "b k n d -> b n (k d)"))
        return x + rearrange(h, "b (h w) c -> b c h w", h=height)


class Block(nn.Module):
    """One residual block, then self-attention and cross-attention where the level has them."""

    def __init__(
        self, residual: ResidualBlock, num_heads: int, self_attention: bool, context_dim: int | None
    ):
        super().__init__()
        self.residual, channels = residual, residual.conv2.out_channels
        self.self_attention = Attention(channels, num_heads) if self_attention else None
        self.cross_attention = Attention(channels, num_heads, context_dim) if context_dim else None

    def forward(
        self, x: Tensor, embedding: Tensor, context: Tensor | None, perturbed: Tensor | None = None
    ) -> Tensor:
        x = self.residual(x, embedding)
        if self.self_attention is not None:
            x = self.self_attention(x, perturbed=perturbed)
        if self.cross_attention is not None:
            x = self.cross_attention(x, context)
        return x


def way_down(
    channels: Sequence[int], blocks_per_level: int, block: Callable[[int, int, int], Block]
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The blocks of each level, from ``block(c_in, c_out, level)``, and the halvings between levels."""
    levels, halvings = nn.ModuleList(), nn.ModuleList()
    width = channels[0]
    for level, c in enumerate(channels):
        if level:
            conv = nn.Conv2d(width, width, 3, stride=2, padding=1)
            halvings.append(nn.Sequential(Norm(width, activation=None), conv))
        inputs = [width] + [c] * (blocks_per_level - 1)
        levels.append(nn.ModuleList(block(c_in, c, level) for c_in in inputs))
        width = c
    return levels, halvings


class ConditionalUNet(nn.Module):
    """UNet with one level for each entry of ``channels`` (Ronneberger et al. 2015, arXiv:1505.04597; Ho
    et al. 2020, appendix B; cross-attention after Rombach et al. 2022, arXiv:2112.10752). The side
    halves between levels, and features are normalised there. Without this norm, activations grow from
    level to level, and long training at a high learning rate diverges.

    Args:
        image_channels: channels of x_t, 3 for pixels.
        channels: width of each level, finest first.
        num_attributes: A, the length of an attribute row.
        latent_dim: size of the semantic latent, 0 for none.
        blocks_per_level: residual blocks of each level, on the way down and again on the way up.
        self_attention_levels, cross_attention_levels: levels (0 is the finest) whose blocks have this
            kind of attention.
        num_heads: attention heads.
        attr_emb_dim: width of an attribute's token; None: as the finest level, at least 128.
        time_emb_dim: width of the time embedding, a multiple of 4; None: 4 times that of a token.
        patch_size: p. Each p x p patch of the input is folded into channels (pixel unshuffle), and the
            output is unfolded again. Every level then works on a p times smaller side.
        attribute_maps: add ``AttributeMaps`` to the first features.
        bottleneck_attention: give the bottleneck both kinds. Without any cross-attention, attributes
            enter only through the embedding and the maps.
        shared_film: all blocks of the same width share one projection of the embedding.
        dropout: rate inside the residual blocks.
        norm, activation: of the residual blocks, as of ``ResidualBlock``.

    Set ``gradient_checkpointing`` to store only the inputs of blocks and recompute the rest in the
    backward pass. This takes less memory and about a third more time, and gives the same gradients (Chen
    et al. 2016, arXiv:1604.06174).

    Raises:
        ValueError: for a level that does not exist, channels that num_heads does not divide, or a
            time_emb_dim that 4 does not divide.
    """

    gradient_checkpointing = False

    def __init__(
        self,
        image_channels: int = 3,
        channels: Sequence[int] = (64, 128, 256, 512),
        num_attributes: int = 40,
        latent_dim: int = 512,
        blocks_per_level: int = 2,
        self_attention_levels: Sequence[int] = (2, 3),
        cross_attention_levels: Sequence[int] = (1, 2, 3),
        num_heads: int = 4,
        attr_emb_dim: int | None = None,
        time_emb_dim: int | None = None,
        patch_size: int = 1,
        attribute_maps: bool = True,
        bottleneck_attention: bool = True,
        shared_film: bool = False,
        dropout: float = 0.0,
        norm: str = "group",
        activation: str = "silu",
    ):
        super().__init__()
        levels = len(channels)
        for level in (*self_attention_levels, *cross_attention_levels, levels - 1):
            if not 0 <= level < levels:
                raise ValueError(f"attention at level {level}, but there are levels 0 ... {levels - 1}")
            if channels[level] % num_heads:
                raise ValueError(f"{num_heads} attention heads do not divide {channels[level]} channels")
        self.patch_size = patch_size
        self.stride = patch_size * 2 ** (levels - 1)
        self.perturbed_level = min(self_attention_levels, default=-1)  # -1: the bottleneck
        context_dim = attr_emb_dim or max(channels[0], 128)
        embedding_dim = time_emb_dim or 4 * context_dim
        if embedding_dim % 4:
            raise ValueError(f"time_emb_dim must be a multiple of 4, got {embedding_dim}")
        tokens = context_dim if bottleneck_attention or cross_attention_levels else 0
        self.condition = ConditionEmbedding(num_attributes, latent_dim, tokens, embedding_dim)

        films = {c: nn.Linear(embedding_dim, 2 * c) for c in sorted({*channels})} if shared_film else {}

        def block(c_in: int, c_out: int, level: int, with_attention: bool = False) -> Block:
            film = films.get(c_out)
            residual = ResidualBlock(c_in, c_out, embedding_dim, dropout, film, norm, activation)
            crosses = with_attention or level in cross_attention_levels
            attends = with_attention or level in self_attention_levels
            return Block(residual, num_heads, attends, context_dim if crosses else None)

        patch_channels = image_channels * patch_size**2
        self.stem = nn.Conv2d(patch_channels, channels[0], 3, padding=1)
        self.maps = AttributeMaps(num_attributes, channels[0]) if attribute_maps else None
        self.down, self.downsample = way_down(channels, blocks_per_level, block)
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        width = channels[-1]
        middle = [block(width, width, -1, bottleneck_attention), block(width, width, -1)]
        self.middle = nn.ModuleList(middle)
        for level, c in reversed(list(enumerate(channels))):
            inputs = [width + c] + [2 * c] * (blocks_per_level - 1)
            self.up.append(nn.ModuleList(block(c_in, c, level) for c_in in inputs))
            width = c
            if level > 0:
                between, conv = Norm(c, activation=None), nn.Conv2d(c, c, 3, padding=1)
                self.upsample.append(nn.Sequential(between, nn.Upsample(scale_factor=2.0), conv))
        self.norm_out = Norm(width)
        self.conv_out = zero_init(nn.Conv2d(width, patch_channels, 3, padding=1))

    def _run(self, block: Block, *inputs: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        attributes: Tensor,
        latent: Tensor | None = None,
        latent_keep: Tensor | None = None,
        perturbed: Tensor | None = None,
    ) -> Tensor:
        """Prediction at x_t, in the shape of x.

        Args:
            x: (B, C, H, W), H and W divisible by patch_size * 2 ** (levels - 1).
            t: timesteps (B,).
            attributes: (B, A) in [-1, 1]; 0 is unspecified.
            latent: (B, latent_dim), or None if no sample of the batch has one.
            latent_keep: (B,); 1 uses a sample's latent, 0 ignores it; all 1 by default.
            perturbed: bool (B,); where true, the self-attention of the finest level that has it lets
                each position see itself alone. None: nowhere.

        Raises:
            ValueError: if H or W is not divisible.
        """
        height, width = x.shape[2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"image size {height}x{width} is not divisible by {self.stride} (patch size "
                f"{self.patch_size} times 2 to the power of the {len(self.down) - 1} downsamplings)"
            )
        embedding, context = self.condition(t, attributes, latent, latent_keep)
        x = F.pixel_unshuffle(x, self.patch_size)  # (B, C p p, H / p, W / p)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        if self.maps is not None:
            x = x + self.maps(attributes, x.shape[2:])

        def at(level: int) -> Tensor | None:
            return perturbed if level == self.perturbed_level else None

        skips = []
        for level, blocks in enumerate(self.down):
            for block in blocks:
                x = self._run(block, x, embedding, context, at(level))
                skips.append(x)
            if level < len(self.downsample):
                x = self.downsample[level](x)  # (B, C_l, H / 2, W / 2)
        for block in self.middle:
            x = self._run(block, x, embedding, context, at(-1))
        for i, blocks in enumerate(self.up):
            level = len(self.up) - 1 - i
            for block in blocks:
                x = self._run(block, torch.cat([x, skips.pop()], dim=1), embedding, context, at(level))
            if i < len(self.upsample):
                x = self.upsample[i](x)  # (B, C_l, 2 H, 2 W)
        x = self.conv_out(self.norm_out(x))
        return F.pixel_shuffle(x, self.patch_size)  # (B, C, H, W)
