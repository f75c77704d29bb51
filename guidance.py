"""Guidance: from the network's denoiser to a guided one. Every sampler takes either.

``GUIDANCE`` lists the kinds of guidance. A new one needs one entry here, and its name in
``config.GUIDANCE``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from config import SamplingConfig
from noise_schedule import Denoiser, NoiseSchedule

# A guide steers only if signal_t is at least this. Chosen by eye: of 1000 timesteps, the last 7 of the
# cosine schedule are noisier.
LEAST_SIGNAL = 0.01
LogProb = Callable[[Tensor, int], Tensor]  # x_t (B, C, H, W), t -> (B,)


def classifier_free(denoiser: Denoiser, cfg_scale: float) -> Denoiser:
    """eps_hat = eps_base + cfg_scale (eps_cond - eps_base) (Ho & Salimans 2022, arXiv:2207.12598).

    Args:
        denoiser: conditioned on twice the batch: first the base rows, then the conditional rows. So both
            predictions come from one pass. The base is usually the unconditional (all-zero) row; in
            editing it is the source's own attributes.
        cfg_scale: 0 gives the base, 1 the conditional prediction, more than 1 amplifies.
    """

    def guided(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        x0_hat, eps_hat = denoiser(x_t.repeat(2, 1, 1, 1), t)  # (2B, C, H, W)
        x0_base, x0_cond = x0_hat.chunk(2)
        eps_base, eps_cond = eps_hat.chunk(2)
        # x0_hat and eps_hat are affine in each other at fixed x_t, so both extrapolate alike.
        x0_hat = x0_base + cfg_scale * (x0_cond - x0_base)
        eps_hat = eps_base + cfg_scale * (eps_cond - eps_base)
        return x0_hat, eps_hat

    return guided


def classifier_guided(
    denoiser: Denoiser, schedule: NoiseSchedule, log_prob: LogProb, guide_scale: float
) -> Denoiser:
    """eps_hat - sqrt(1 - alpha_bar_t) guide_scale grad log p(y | x_t) (Dhariwal & Nichol 2021,
    arXiv:2105.05233, algorithm 2), and the matching x0_hat.

    Args:
        denoiser: unconditional, conditional, or already guided in another way.
        schedule: the schedule of the denoiser.
        log_prob: (x_t, t) -> log p(y | x_t) of each sample (B,), from a classifier of noisy images.
        guide_scale: 1 samples from p(x) p(y | x), more amplifies y; 0 gives back ``denoiser``.

    Nothing is guided where signal_t < LEAST_SIGNAL. There x_t is almost pure noise, and the shift of
    x0_hat would be mostly the gradient's error, divided by almost no signal.
    """
    if guide_scale == 0:
        return denoiser

    def guided(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        x0_hat, eps_hat = denoiser(x_t, t)
        signal, noise = schedule.signal_and_noise(t, x_t)
        if float(signal) < LEAST_SIGNAL:
            return x0_hat, eps_hat
        with torch.enable_grad():
            x = x_t.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(log_prob(x, t).sum(), x)
        shift = noise * guide_scale * gradient
        return x0_hat + noise / signal * shift, eps_hat - shift

    return guided


# -------------------------------------------------------------------- the kinds of guidance


@dataclass(frozen=True)
class Conditions:
    """What a kind of guidance may use.

    Attributes:
        denoiser: attribute rows (B, A) or (2 B, A) -> the network's unguided denoiser under them, for as
            many images. Rows of zeros are without condition. ``perturbed``, bool for each image, is that
            of ``ConditionalUNet``.
        rows: what is asked for, (B, A).
        schedule: of the denoiser.
        guide: what --guide names, or None.
        guide_rows: ``rows``, of the attributes that the guide knows.
    """

    denoiser: Callable[..., Denoiser]  # (rows, perturbed=None)
    rows: Tensor
    schedule: NoiseSchedule
    guide: Any = None
    guide_rows: Tensor | None = None


@dataclass(frozen=True)
class Guidance:
    """A kind of guidance.

    Attributes:
        wrap: (conditions, sampling) -> the guided denoiser. It takes its scales from ``sampling``, which
            ``samplers.resolve`` has filled.
        guide: what --guide names: "guide" for a classifier of ``train.py --stage guide``, "model" for
            another model, "" if nothing is needed.
        alone: whether the guide alone knows the request, and the network draws without any.
    """

    wrap: Callable[[Conditions, SamplingConfig], Denoiser]
    guide: str = ""
    alone: bool = False


def free(conditions: Conditions, sampling: SamplingConfig) -> Denoiser:
    """``classifier_free`` from the unconditional prediction by cfg_scale. Scale 1, or rows that ask for
    nothing, cost a single pass. If ``sampling.perturb``, the unconditional prediction has perturbed
    self-attention, too, and draws no whole shapes: so guidance leads away from broken ones (Ahn et al.
    2024, arXiv:2403.17377, who perturb a third prediction)."""
    rows, scale = conditions.rows, sampling.cfg_scale
    assert scale is not None  # resolved
    if scale == 1 or not rows.any():
        return conditions.denoiser(rows)
    base = torch.zeros_like(rows)
    if scale == 0:
        return conditions.denoiser(base)
    perturbed = None
    if sampling.perturb:
        perturbed = torch.arange(2 * len(rows), device=rows.device) < len(rows)  # the base rows
    return classifier_free(conditions.denoiser(torch.cat([base, rows]), perturbed), scale)


def steered(denoiser: Denoiser, conditions: Conditions, sampling: SamplingConfig) -> Denoiser:
    """``denoiser``, steered by the guide with guide_scale.

    Raises:
        ValueError: for a scale without a guide.
    """
    if conditions.guide is None:
        if sampling.guide_scale:
            raise ValueError(f"guide_scale {sampling.guide_scale} needs a guide, and got none")
        return denoiser
    log_prob = partial(conditions.guide.log_prob, attributes=conditions.guide_rows)
    return classifier_guided(denoiser, conditions.schedule, log_prob, sampling.guide_scale)


def by_guide(conditions: Conditions, sampling: SamplingConfig) -> Denoiser:
    """The unconditional denoiser, steered."""
    return steered(conditions.denoiser(torch.zeros_like(conditions.rows)), conditions, sampling)


def both(conditions: Conditions, sampling: SamplingConfig) -> Denoiser:
    """``free``, steered."""
    return steered(free(conditions, sampling), conditions, sampling)


GUIDANCE: dict[str, Guidance] = {
    "free": Guidance(free),
    "guide": Guidance(by_guide, "guide", alone=True),
    "both": Guidance(both, "guide"),
}
