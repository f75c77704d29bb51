"""Guidance: each function wraps a denoiser and returns a denoiser, so every sampler takes either."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import EditConfig, ModelConfig
from noise_schedule import Denoiser, NoiseSchedule

LEAST_SIGNAL = 0.01  # a guide steers only if signal_t is at least this
FADE = 2.0  # log odds before its aim at which the guidance of an edit begins to fade
LogProb = Callable[[Tensor, int], Tensor]  # x_t (B, C, H, W), t -> (B,)


class Guide(Protocol):
    """The guide steers sampling. It is an attribute classifier for noisy images."""

    config: ModelConfig
    first_stage: nn.Module

    def log_prob(self, x_t: Tensor, t: int, attributes: Tensor) -> Tensor:
        """log p(attributes | x_t) of each sample (B,)."""
        ...

    def log_odds(self, x_t: Tensor, t: int) -> Tensor:
        """How far each attribute (B, A) is above the threshold from which it counts as there."""
        ...

    def predict_attributes(self, images: Tensor) -> Tensor:
        """Predicted attributes (B, A) in [-1, 1] of clean images uint8 (B, S, S, 3)."""
        ...


def classifier_free(
    denoiser: Denoiser, schedule: NoiseSchedule, cfg_scale: float, rescale: float = 0.0
) -> Denoiser:
    """eps_hat = eps_base + cfg_scale (eps_cond - eps_base) (Ho & Salimans 2022, arXiv:2207.12598).

    Args:
        denoiser: conditioned on twice the batch: first the base rows, then the conditional rows. So both
            predictions come from one pass. The base is usually the unconditional (all-zero) row; in
            editing it is the source's own attributes.
        schedule: the schedule of the denoiser.
        cfg_scale: 0 gives the base, 1 the conditional prediction, more than 1 amplifies.
        rescale: in [0, 1]: how far each sample's x0_hat is scaled back to the standard deviation of the
            conditional prediction. This prevents over-exposure (Lin et al. 2023, arXiv:2305.08891,
            section 3.4, applied to x0_hat).
    """

    def guided(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        x0_hat, eps_hat = denoiser(x_t.repeat(2, 1, 1, 1), t)  # (2B, C, H, W)
        x0_base, x0_cond = x0_hat.chunk(2)
        eps_base, eps_cond = eps_hat.chunk(2)
        # x0_hat and eps_hat are affine in each other at fixed x_t, so both extrapolate alike.
        x0_hat = x0_base + cfg_scale * (x0_cond - x0_base)
        eps_hat = eps_base + cfg_scale * (eps_cond - eps_base)
        if rescale > 0:
            ratio = x0_cond.std((1, 2, 3), keepdim=True) / x0_hat.std((1, 2, 3), keepdim=True)
            x0_hat = x0_hat * (1 - rescale + rescale * ratio)
            eps_hat = schedule.eps_from_x0(x0_hat, x_t, t)
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


def towards(
    denoiser: Callable[[Tensor], Denoiser],
    base: Tensor,
    target: Tensor,
    schedule: NoiseSchedule,
    guide: Guide,
    columns: Sequence[int],
    wanted: Tensor,
    source_odds: Mapping[int, Tensor],
    editing: EditConfig,
    strength: float,
) -> Denoiser:
    """Guidance of an edit that ends where the guide sees what is asked for, and holds the rest.

    x0_hat = x0_base + m cfg_scale (x0_target - x0_base) + noise_t^2 / signal_t grad(guide_scale sum over
    wanted of m_i log p_i(x_t) - hold sum over held of (p(x_t) - p(source x_t))^2), where p is the
    guide's probability of an attribute. m_i in [0, 1] says how much of a wanted attribute is missing. It
    is 1 where its log odds are FADE or more below their aim, and falls to 0 at the aim. At strength 1
    the aim is editing.margin, at 0 what the source has. The gradients are those of Dhariwal & Nichol
    2021, arXiv:2105.05233.

    m is the largest m_i. Of several wanted attributes, each moves in the target row by its m_i / m, so
    what is there already is not overdone. cfg_scale is divided by the norm of the m_i / m, so that the
    step is as long as for one attribute.

    Args:
        denoiser: attribute rows (2B, A) -> the denoiser under them.
        base, target: rows (B, A): what the picture shows, and what is asked for. What is equal in sign
            in both is held.
        columns: of the attributes that the guide reads.
        wanted: (B, len(columns)) of +1, -1, and 0 for the others.
        source_odds: ``guide.log_odds`` (B, len(columns)), or those of a single source, with the same
            noise, for each timestep.
    """
    named = wanted != 0
    read = named.any(1, keepdim=True)  # by the guide
    held = (base.sign() == target.sign())[:, columns]

    def guided(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_(True)
            odds = guide.log_odds(x, t)
            start = source_odds[t] * wanted
            aim = torch.lerp(start, torch.full_like(start, editing.margin), strength)
            missing = named * ((aim - odds.detach() * wanted) / FADE).clamp(0, 1)  # (B, len(columns))
            asked = (missing * F.logsigmoid(wanted * odds)).sum(1)
            moved = (held * (odds.sigmoid() - source_odds[t].sigmoid()).square()).sum(1)
            wish = editing.guide_scale * asked - editing.hold * moved
            (gradient,) = torch.autograd.grad(wish.sum(), x)
        most = torch.where(read, missing.amax(1, keepdim=True), 1.0)
        left = missing / most.clamp(min=1e-6)
        share = torch.ones_like(target)
        share[:, columns] = torch.where(named, left, 1.0).to(share.dtype)
        rows = torch.cat([base, torch.lerp(base, target, share)])
        x0_base, x0_target = denoiser(rows)(x_t.repeat(2, 1, 1, 1), t)[0].chunk(2)
        signal, noise = schedule.signal_and_noise(t, x_t)
        scale = editing.cfg_scale * most / left.norm(dim=1, keepdim=True).clamp(min=1)
        x0_hat = x0_base + scale.view(-1, 1, 1, 1) * (x0_target - x0_base)
        if float(signal) >= LEAST_SIGNAL:
            x0_hat = x0_hat + noise * noise / signal * gradient
        return x0_hat, schedule.eps_from_x0(x0_hat, x_t, t)

    return guided


def through_x0(denoiser: Denoiser, log_prob: Callable[[Tensor], Tensor]) -> LogProb:
    """log p(y | x0_hat(x_t)) in place of log p(y | x_t), for a classifier of clean images,
    x0 (B, C, H, W) -> (B,). The gradient goes through the denoiser (Bansal et al. 2023,
    arXiv:2302.07121, forward guidance), so each step costs a backward pass of the network."""

    def of_x_t(x_t: Tensor, t: int) -> Tensor:
        return log_prob(denoiser(x_t, t)[0])

    return of_x_t


def guidance_interval(
    guided: Denoiser, conditional: Denoiser, lowest: float, highest: float
) -> Denoiser:
    """``guided`` at timesteps lowest ... highest, elsewhere the conditional prediction at half the cost.
    Guidance reduces variety at high noise and has no effect at low noise (Kynkaanniemi et al. 2024,
    arXiv:2404.07724)."""

    def within(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        return (guided if lowest <= t <= highest else conditional)(x_t, t)

    return within


def dynamic_threshold(denoiser: Denoiser, schedule: NoiseSchedule, quantile: float) -> Denoiser:
    """x0_hat clipped to [-s, s] and divided by s. For each sample, s is this quantile of |x0_hat|, but
    at least 1. So large guidance scales do not saturate images (Saharia et al. 2022, arXiv:2205.11487,
    section 2.3)."""

    def thresholded(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        x0_hat, _ = denoiser(x_t, t)
        s = x0_hat.flatten(1).abs().quantile(quantile, dim=1).clamp(min=1)
        s = s.view(-1, *[1] * (x0_hat.ndim - 1))
        x0_hat = x0_hat.clamp(-s, s) / s
        return x0_hat, schedule.eps_from_x0(x0_hat, x_t, t)

    return thresholded


def weighed_with_input(denoiser: Denoiser, schedule: NoiseSchedule, error_std: float) -> Denoiser:
    """x0_hat as the precision-weighted mean of two estimates of x0: the posterior mean of two
    independent Gaussian measurements. One is the network's x0_hat, with an error of standard deviation
    ``error_std``. The other is x_t / signal_t, with an error of standard deviation noise_t / signal_t.

    Near the clean image, x_t counts more. Editing needs this: there the network's eps_hat is its error
    divided by almost no noise, which would spoil the inversion.
    """

    def weighed(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        x0_hat, _ = denoiser(x_t, t)
        signal2, noise2 = schedule.squares_at(t, x_t)
        weight = error_std**2 * signal2.sqrt() / (error_std**2 * signal2 + noise2)
        share = weight * signal2.sqrt()  # of x_t / signal_t, which may be infinite
        x0_hat = weight.to(x_t.dtype) * x_t + (1 - share).to(x_t.dtype) * x0_hat
        return x0_hat, schedule.eps_from_x0(x0_hat, x_t, t)

    return weighed
