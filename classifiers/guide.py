"""The guide: an attribute classifier that knows noise, and steers sampling by what it sees in x_t."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from autoencoder_model import build_first_stage, specified_bce
from checkpoint import build, load_checkpoint, refusing
from config import LossConfig, ModelConfig
from layers import Norm, ResidualBlock, TimeEmbedding
from noise_schedule import NoiseSchedule
from unet_model import Block, attend, way_down

TYPICAL = 0.7  # share of unseen photographs whose ``distance`` is below 1
SHRINKAGE = 0.03  # of the covariance of features towards a multiple of the identity (docs/log.md)


class AttributeClassifier(nn.Module):
    """Logits of each attribute's presence in x_t: a UNet's way down (Dhariwal & Nichol 2021,
    arXiv:2105.05233, section 4), then attention pooling in which every attribute has a query of its own
    over the coarsest positions.

    Args:
        config: that of a model with this way down. The coarsest level attends to itself.
        side: of x_t, divisible by patch_size * 2 ** (levels - 1).
        image_channels: channels of x_t, 3 for pixels.

    Raises:
        ValueError: where the side does not divide.
    """

    def __init__(self, config: ModelConfig, side: int, image_channels: int):
        super().__init__()
        channels, num_heads, patch_size = config.channels, config.num_heads, config.patch_size
        num_attributes = len(config.attribute_names)
        stride = patch_size * 2 ** (len(channels) - 1)
        if side % stride:
            raise ValueError(f"the classifier's side {side} is not divisible by {stride}")
        if channels[-1] % num_heads:
            raise ValueError(f"{channels[-1]} channels do not divide into {num_heads} heads")
        embedding_dim, width = 4 * max(channels[0], 128), channels[-1]
        self.patch_size, self.num_heads = patch_size, num_heads
        self.time = TimeEmbedding(embedding_dim)
        self.stem = nn.Conv2d(image_channels * patch_size**2, channels[0], 3, padding=1)

        def block(c_in: int, c_out: int, level: int) -> Block:
            options = {"norm": config.norm, "activation": config.activation}
            residual = ResidualBlock(c_in, c_out, embedding_dim, config.dropout, **options)
            coarsest = level == len(channels) - 1
            return Block(residual, num_heads, self_attention=coarsest, context_dim=None)

        self.down, self.downsample = way_down(channels, config.blocks_per_level, block)
        self.norm = Norm(width)
        self.where = nn.Parameter(0.02 * torch.randn((side // stride) ** 2, width))
        self.query = nn.Parameter(torch.randn(num_attributes, width))
        self.key_value = nn.Linear(width, 2 * width)
        self.weight = nn.Parameter(torch.zeros(num_attributes, width))
        self.bias = nn.Parameter(torch.zeros(num_attributes))

    def positions(self, x: Tensor, t: Tensor) -> Tensor:
        """The coarsest features of x_t (B, C, side, side) at timesteps (B,): (B, width, h, w)."""
        embedding = F.silu(self.time(t))
        h = F.pixel_unshuffle(x, self.patch_size)  # (B, C p p, H / p, W / p)
        h = self.stem(h.contiguous(memory_format=torch.channels_last))
        for level, blocks in enumerate(self.down):
            if level:
                h = self.downsample[level - 1](h)
            for block in blocks:
                h = block(h, embedding, None)
        return self.norm(h)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x_t (B, C, side, side) and timesteps (B,) -> logits float32 (B, A)."""
        tokens = rearrange(self.positions(x, t), "b c h w -> b (h w) c") + self.where
        key, value = rearrange(
            self.key_value(tokens), "b n (two k d) -> two b k n d", two=2, k=self.num_heads
        )
        query = rearrange(self.query, "a (k d) -> k a d", k=self.num_heads).to(key.dtype)
        seen = attend(query.expand(len(x), -1, -1, -1), key, value)  # (B, heads, A, C / heads)
        seen = rearrange(seen, "b k a d -> b a (k d)").float()
        return (seen * self.weight).sum(2) + self.bias


class GuidanceClassifier(nn.Module):
    """An ``AttributeClassifier`` with the first stage and the noise schedule under which it is trained.
    ``forward`` is its loss, in the form of ``ConditionalDiffusion.forward``.

    Its ``prior`` (A,) holds the log odds of each attribute in the training set. The bias starts there,
    and balanced accuracy takes it as threshold. So probabilities stay calibrated, as guidance needs.

    Args:
        first_stage: that of the model which the guide is a part of; None builds one.
    """

    def __init__(self, config: ModelConfig, first_stage: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.schedule = NoiseSchedule(config.schedule, config.num_timesteps, config.zero_terminal_snr)
        self.first_stage = first_stage or build_first_stage(
            config.first_stage, config.first_stage_config
        )
        side = config.image_size // self.first_stage.factor
        config.check_norm(side)
        self.network = AttributeClassifier(config, side, self.first_stage.channels)
        self.register_buffer("prior", torch.zeros(len(config.attribute_names)))
        if config.knows_typical:
            number = 4 * config.channels[-1]
            self.register_buffer("typical", torch.zeros(number))
            self.register_buffer("whitener", torch.zeros(number, number))

    @torch.no_grad()
    def set_prior(self, attributes: Tensor) -> None:
        """Take the prior from the rows (N, A) of a training set."""
        specified = (attributes != 0).sum(0).clamp(min=1)
        share = (attributes > 0).sum(0) / specified
        share = share.clamp(1 / len(attributes), 1 - 1 / len(attributes))
        self.prior.copy_(torch.logit(share))
        self.network.bias.copy_(self.prior)

    def forward(
        self,
        images: Tensor,
        attributes: Tensor,
        loss_config: LossConfig,
        t: Tensor | None = None,
        eps: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Binary cross-entropy of the logits at x_t over the attributes that are specified, averaged.

        Args, result: as ``ConditionalDiffusion.forward``; ``loss_config`` is not used.
        """
        x0 = self.first_stage.encode(images, sample=True)
        x_t, t, _ = self.schedule.draw_noisy(x0, t, eps)
        per_sample = self.losses(x_t, t, attributes)
        terms = {"attributes": per_sample.mean()}
        return terms | {"total": terms["attributes"]}, per_sample.detach(), t

    def losses(self, x_t: Tensor, t: Tensor, attributes: Tensor) -> Tensor:
        """The loss of each sample (B,) at x_t (B, C, h, w), timesteps (B,)."""
        bce, specified = specified_bce(self.network(x_t, t), attributes)
        return bce.sum(1) / specified.sum(1).clamp(min=1)

    def log_prob(self, x_t: Tensor, t: int, attributes: Tensor) -> Tensor:
        """log p(y | x_t) (B,): the sum over attributes of |a| log p(present) where a > 0, and of
        |a| log p(absent) where a < 0. A row (B, A) of zeros asks for nothing and gives 0."""
        logits = self.network(x_t, torch.full((len(x_t),), t, device=x_t.device))
        return (attributes.abs() * F.logsigmoid(attributes.sign() * logits)).sum(1)

    def log_odds(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        """How far each attribute (B, A) is above its threshold of balanced accuracy in x_t: logits less
        the prior. t is one timestep, or (B,)."""
        labels = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
        return self.network(x_t, labels) - self.prior

    @torch.no_grad()
    def read_logits(self, images: Tensor) -> Tensor:
        """Logits (B, A) of each attribute's presence in clean images uint8 (B, S, S, 3)."""
        x0 = self.first_stage.encode(images.to(self.prior.device))
        return self.network(x0, torch.zeros(len(x0), device=x0.device))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What the guide sees in clean images uint8 (B, S, S, 3): its coarsest features, averaged over
        each quarter of the picture, float32 (B, D)."""
        x0 = self.first_stage.encode(images.to(self.prior.device))
        positions = self.network.positions(x0, torch.zeros(len(x0), device=x0.device))
        return F.adaptive_avg_pool2d(positions.float(), 2).flatten(1)

    def set_typical(self, features: Tensor) -> None:
        """Learn what is typical from ``features`` (N, D) of training images, N >= 8. Three of four give
        mean and covariance; the others give the unit of ``distance``."""
        is_rest = torch.arange(len(features), device=features.device) % 4 == 0
        fitted, rest = features.double()[~is_rest], features.double()[is_rest]
        mean = fitted.mean(0)
        variances, directions = torch.linalg.eigh(torch.cov(fitted.T, correction=0))
        whitener = directions / (variances + SHRINKAGE * variances.mean()).clamp(min=1e-12).sqrt()
        unit = torch.quantile(((rest - mean) @ whitener).norm(dim=1), TYPICAL)
        self.register_buffer("typical", mean.float())
        self.register_buffer("whitener", (whitener / unit.clamp(min=1e-6)).float())
        self.config = replace(self.config, knows_typical=True)

    def distance(self, images: Tensor) -> Tensor:
        """How far images uint8 (B, S, S, 3) lie from the training images: the Mahalanobis distance of
        their features (Lee et al. 2018, arXiv:1807.03888), (B,). 1 is what a share TYPICAL of
        unseen photographs stay below."""
        features = self.features(images)
        with torch.autocast(features.device.type, enabled=False):  # the whitener spans a wide range
            return ((features - self.typical) @ self.whitener).norm(dim=1)

    def predict_attributes(self, images: Tensor) -> Tensor:
        """What is seen in clean images uint8 (B, S, S, 3): (B, A) in [-1, 1], the expectation 2 p - 1 of
        an attribute present with probability p."""
        return torch.tanh(self.read_logits(images) / 2)


def guide_widths(config: ModelConfig) -> tuple[int, ...]:
    """Widths of the guide that is trained beside a model. Each level is wider than the one before by
    half of the model's finest width. That of configs/small.yaml takes an eighth of the time."""
    step = max(1, config.channels[0] // (2 * config.num_heads)) * config.num_heads
    return tuple(step * (level + 1) for level in range(len(config.channels)))


def load_guide(path: str | Path, device: str | torch.device = "cpu") -> GuidanceClassifier:
    """The guide in a checkpoint of ``train.py --stage guide``, or inside that of a model, frozen, in
    evaluation mode.

    Raises:
        FileNotFoundError, ValueError: as ``checkpoint.load_checkpoint`` and ``checkpoint.build``.
    """
    state = load_checkpoint(path)
    with refusing(path, "guide"):
        config = ModelConfig(**state["config"])
        if config.guide_channels and "guide" not in state:  # the file of a model
            weights = state["ema"] if "ema" in state else state["model"]
            prefix = "guide."
            own = {name[len(prefix) :]: w for name, w in weights.items() if name.startswith(prefix)}
            facts = {"config": config.own_guide().to_dict(), "file_hash": state["file_hash"]}
            state = facts | {"guide": own}
    guide = build(GuidanceClassifier, "guide", state, path).requires_grad_(False)
    return guide.to(device, memory_format=torch.channels_last)
