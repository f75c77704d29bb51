"""Guidance: wraps a denoiser and returns a denoiser, so that every sampler takes either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from config import ModelConfig
from noise_schedule import Denoiser, NoiseSchedule

LEAST_SIGNAL = 0.01  # signal_t from which a guide steers
LogProb = Callable[[Tensor, int], Tensor]  # x_t (B, C, H, W), t -> (B,)


class Guide(Protocol):
    """What steers sampling: an attribute classifier that knows noisy images."""

    config: ModelConfig
    first_stage: nn.Module

    def log_prob(self, x_t: Tensor, t: int, attributes: Tensor) -> Tensor:
        """log p(attributes | x_t) of each sample (B,)."""
        ...

    def predict_attributes(self, images: Tensor) -> Tensor:
        """What is seen in clean images uint8 (B, S, S, 3): (B, A) in [-1, 1]."""
        ...


def classifier_free(
    denoiser: Denoiser, schedule: NoiseSchedule, cfg_scale: float, rescale: float = 0.0
) -> Denoiser:
    """eps_hat = eps_base + cfg_scale (eps_cond - eps_base) (Ho & Salimans 2022, arXiv:2207.12598).

    Args:
        denoiser: conditioned on twice the batch, the base rows first, then the conditional rows; both
            predictions come from one pass. The base is usually the unconditional (all-zero) row; in
            editing it is the source's own attributes.
        schedule: the schedule of the denoiser.
        cfg_scale: 0 gives the base, 1 the conditional prediction, more than 1 amplifies.
        rescale: in [0, 1], how far x0_hat is scaled back to the conditional prediction's standard
            deviation, per sample, against over-exposure (Lin et al. 2023, arXiv:2305.08891, section
            3.4, applied to x0_hat).
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
    arXiv:2105.05233, algorithm 2), and the x0_hat that goes with it.

    Args:
        denoiser: what is guided: unconditional, conditional, or guided otherwise already.
        schedule: the schedule of the denoiser.
        log_prob: (x_t, t) -> log p(y | x_t) of each sample (B,), of a classifier that knows x_t.
        guide_scale: 1 samples from p(x) p(y | x), more amplifies y; 0 gives back ``denoiser``.

    Where x_t is all but pure noise there is nothing to classify, and nothing is guided: x0_hat would
    move by the gradient's error over next to no signal.
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


def through_x0(denoiser: Denoiser, log_prob: Callable[[Tensor], Tensor]) -> LogProb:
    """log p(y | x_t) taken as that of x0_hat(x_t), for a classifier of clean images, x0 (B, C, H, W) ->
    (B,). Its gradient goes through the denoiser (Bansal et al. 2023, arXiv:2302.07121, forward
    guidance), at the cost of a backward pass of the network for each step."""

    def of_x_t(x_t: Tensor, t: int) -> Tensor:
        return log_prob(denoiser(x_t, t)[0])

    return of_x_t


def guidance_interval(
    guided: Denoiser, conditional: Denoiser, lowest: float, highest: float
) -> Denoiser:
    """``guided`` at timesteps lowest ... highest, and the conditional prediction, at half the cost,
    elsewhere: guidance harms variety at high noise and does nothing at low noise (Kynkaanniemi et al.
    2024, arXiv:2404.07724)."""

    def within(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        return (guided if lowest <= t <= highest else conditional)(x_t, t)

    return within


def dynamic_threshold(denoiser: Denoiser, schedule: NoiseSchedule, quantile: float) -> Denoiser:
    """x0_hat clipped to [-s, s] and divided by s, s being that quantile of its |values| per sample, but
    at least 1: large guidance scales then do not saturate (Saharia et al. 2022, arXiv:2205.11487,
    section 2.3)."""

    def thresholded(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        x0_hat, _ = denoiser(x_t, t)
        s = x0_hat.flatten(1).abs().quantile(quantile, dim=1).clamp(min=1)
        s = s.view(-1, *[1] * (x0_hat.ndim - 1))
        x0_hat = x0_hat.clamp(-s, s) / s
        return x0_hat, schedule.eps_from_x0(x0_hat, x_t, t)

    return thresholded


def weighed_with_input(denoiser: Denoiser, schedule: NoiseSchedule, error_std: float) -> Denoiser:
    """x0_hat as the mean of two estimates of x0, each weighed by its precision: the network's, with an
    error of standard deviation ``error_std``, and x_t / signal_t, with an error of
    noise_t / signal_t (the posterior mean of two independent Gaussian measurements).

    Near the clean image it trusts the image. Editing needs that: eps_hat there is the network's error
    divided by next to no noise, and inversion would carry it off.
    """

    def weighed(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        x0_hat, _ = denoiser(x_t, t)
        signal2, noise2 = schedule.squares_at(t, x_t)
        weight = error_std**2 * signal2.sqrt() / (error_std**2 * signal2 + noise2)
        share = weight * signal2.sqrt()  # of x_t / signal_t, which may be infinite
        x0_hat = weight.to(x_t.dtype) * x_t + (1 - share).to(x_t.dtype) * x0_hat
        return x0_hat, schedule.eps_from_x0(x0_hat, x_t, t)

    return weighed
