"""EditorModel: a network that was taught to edit. It sees a picture, and what is to change in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoencoder_model import build_first_stage
from checkpoint import load
from config import LossConfig, ModelConfig
from noise_schedule import NoiseSchedule
from samplers import Steps, timestep_grid, unipc
from unet_model import ConditionalUNet, build_unet

# What an editor learns besides edits: shares of the pairs that ask for nothing, or for what is there.
# Both leave the picture as it is. By eye.
ASKS_NOTHING, IS_THERE = 0.05, 0.1
STEPS, SPACING = 4, "log_snr"  # of an edit; measured: docs/log.md; by eye
SMALL_CHANGE = 0.002  # mean square of a change below which an error is weighed no more; by eye


class EditorModel(nn.Module):
    """Denoises an edited picture, given the picture before and the change asked for (after Brooks et al.
    2023, InstructPix2Pix, arXiv:2211.09800; with attributes for instructions).

    Its UNet is that of ``ConditionalDiffusion``. The picture before is added to its input. Its output
    has one channel more: the gate m in [0, 1] of each position. x0_hat = source + m (own x0_hat -
    source), so what is to stay is copied.

    A change is a row (B, A): 1 for an attribute that is to come, -1 for one that is to go, 0 for what is
    to stay. ``forward`` is the loss, in the form of ``ConditionalDiffusion.forward``.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.facts: dict[str, Any] = {}
        self.file_hash = ""
        self.schedule = NoiseSchedule(config.schedule, config.num_timesteps, config.zero_terminal_snr)
        self.first_stage = build_first_stage(config.first_stage, config.first_stage_config)
        config.check_norm(config.image_size // self.first_stage.factor)
        channels = self.first_stage.channels
        self.unet = build_unet(config, 2 * channels, channels + 1)

    @torch.no_grad()
    def start_from(self, unet: ConditionalUNet) -> None:
        """Take the weights of the UNet of a model or an editor. What it lacks starts at 0: the picture
        before is not seen, and every gate is half open."""
        own = self.unet.state_dict()
        for name, weight in unet.state_dict().items():
            if weight.shape == own[name].shape:
                own[name].copy_(weight)
            else:  # of the first or the last layer: the model's channels come first
                own[name].zero_()
                own[name][tuple(map(slice, weight.shape))] = weight

    def predict(self, x_t: Tensor, t: Tensor, source: Tensor, change: Tensor) -> Tensor:
        """x0_hat of the edited picture, from x_t and the picture before, both (B, C, h, w), at timesteps
        (B,), for a change (B, A)."""
        output = self.unet(torch.cat([x_t, source], 1), t, change).float()
        own, _ = self.schedule.to_x0_eps(self.config.prediction, output[:, :-1], x_t, t)
        return source + output[:, -1:].sigmoid() * (own - source)

    def grid(self, num_inference_steps: int = STEPS) -> list[int]:
        """The falling timesteps of an edit, -1 last."""
        return timestep_grid(self.schedule, num_inference_steps, SPACING)

    def edit(
        self, source: Tensor, change: Tensor, grid: list[int], noise: Tensor, scale: float | Tensor = 1.0
    ) -> Steps:
        """The steps of an edit of pictures (B, C, h, w) by changes (B, A), by UniPC from noise of the
        pictures' shape. ``scale``, a number or (B, 1, 1, 1), multiplies what is predicted to change. 0
        leaves the picture as it is; more than 1 is guidance away from that."""

        def denoise(x_t: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
            labels = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
            x0_hat = self.predict(x_t, labels, source, change).to(x_t.dtype)
            x0_hat = source + scale * (x0_hat - source)
            return x0_hat, self.schedule.eps_from_x0(x0_hat, x_t, t)

        return unipc(denoise, self.schedule, noise, grid, clip_x0=self.first_stage.clip_x0)

    def forward(
        self,
        pairs: Tensor,
        changes: Tensor,
        loss_config: LossConfig,
        t: Tensor | None = None,
        eps: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The square error of x0_hat, as a share of the change in each pair, so that a small change
        counts as much as a large one. Most timesteps have much noise, where it is decided what changes.

        Args:
            pairs: uint8 (B, H, W, 6), the pictures before and after.
            changes: (B, A), what the pictures after show and those before do not.
            loss_config: not used.
            t, eps: drawn if not given.

        Returns:
            as ``ConditionalDiffusion.forward``.
        """
        before, after = (self.first_stage.encode(images, sample=True) for images in pairs.split(3, 3))
        if self.training:
            uniform = torch.rand(len(after), 1, device=after.device)
            is_same = (uniform < ASKS_NOTHING + IS_THERE).view(-1, 1, 1, 1)
            before = torch.where(is_same, after, before)
            changes = torch.where(uniform < ASKS_NOTHING, 0, changes)
        if t is None:
            drawn = torch.rand(len(after), device=after.device).sqrt()
            t = (drawn * self.schedule.num_timesteps).long().clamp(max=self.schedule.num_timesteps - 1)
        x_t, t, _ = self.schedule.draw_noisy(after, t, eps)
        error = (self.predict(x_t, t, before, changes) - after).square().mean((1, 2, 3))
        change = (before - after).square().mean((1, 2, 3))
        per_sample = error / (change + SMALL_CHANGE)
        return {"total": per_sample.mean()}, per_sample.detach(), t


def load_editor(path: str | Path, device: str | torch.device = "cpu") -> EditorModel:
    """The editor in a checkpoint of ``train.py --stage editor``, in evaluation mode. ``path`` may be a
    name in pretrained/. ``model.use_editor`` takes it. Raises as ``load_model``."""
    return load(EditorModel, "editor", path, device)
