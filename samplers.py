"""Timestep grids and samplers: from noise to images with any denoiser, and back.

A *denoiser* is a function ``(x_t, t) -> (x0_hat, eps_hat)`` with t an int; a sampler never sees
networks, labels or guidance. A *grid* is a list of timesteps to visit; it ends in -1, the clean image.
Every sampler is a generator with the same leading arguments that yields ``(step, t, x_t, x0_hat)``:
``x_t`` is the state reached, ``t`` its timestep, ``x0_hat`` the prediction that led there. The last
x_t is the sample. Tensors are (B, C, H, W).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from noise_schedule import Denoiser, NoiseSchedule

Steps = Iterator[tuple[int, int, Tensor, Tensor]]

SPACINGS = ("leading", "trailing", "linspace")


def timestep_grid(num_timesteps: int, num_inference_steps: int, spacing: str = "trailing") -> list[int]:
    """Timesteps to visit, descending, -1 last: num_inference_steps + 1 integers.

    ``leading`` visits 0 and starts a stride below T, ``trailing`` visits T - 1 and ends a stride above
    -1, ``linspace`` visits both ends (the names of Lin et al. 2023, arXiv:2305.08891, table 2).

    Raises:
        ValueError: unless 1 <= num_inference_steps <= num_timesteps, or for an unknown spacing.
    """
    if not 1 <= num_inference_steps <= num_timesteps:
        raise ValueError(
            f"num_inference_steps must lie in 1 ... {num_timesteps} (the timesteps the model was "
            f"trained with), got {num_inference_steps}"
        )
    if spacing == "leading":
        grid = np.arange(num_inference_steps)[::-1] * (num_timesteps // num_inference_steps)
    elif spacing == "trailing":
        grid = np.round(np.arange(num_inference_steps, 0, -1) * num_timesteps / num_inference_steps) - 1
    elif spacing == "linspace":
        grid = np.linspace(num_timesteps - 1, 0, num_inference_steps).round()
    else:
        raise ValueError(f"unknown spacing {spacing!r}: choose one of {', '.join(SPACINGS)}")
    return [*map(int, grid), -1]


def randn_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise in the shape of x, drawn on the generator's own device."""
    device = generator.device if generator is not None else x.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


def _predictions(
    denoiser: Denoiser, schedule: NoiseSchedule, x_t: Tensor, t: int, clip_x0: bool
) -> tuple[Tensor, Tensor]:
    """(x0_hat, eps_hat) at x_t; a clipped x0_hat gets the eps_hat that belongs to it."""
    x0_hat, eps_hat = denoiser(x_t, t)
    if clip_x0:
        x0_hat = x0_hat.clamp(-1, 1)
        eps_hat = schedule.eps_from_x0(x0_hat, x_t, t)
    return x0_hat, eps_hat


def ddpm(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_t: Tensor,
    grid: list[int],
    clip_x0: bool = False,
    generator: torch.Generator | None = None,
) -> Steps:
    """Ancestral sampling: x_s ~ q(x_s | x_t, x0_hat), with the posterior's full variance for the
    stride actually taken (Ho et al. 2020, algorithm 2)."""
    for step, (t, s) in enumerate(pairwise(grid)):
        x0_hat, _ = _predictions(denoiser, schedule, x_t, t, clip_x0)
        mean, variance = schedule.q_posterior(x0_hat, x_t, t, s)
        x_t = mean + variance.sqrt() * randn_like(x_t, generator) if s >= 0 else mean
        yield step, s, x_t, x0_hat


def ddim(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_t: Tensor,
    grid: list[int],
    clip_x0: bool = False,
    generator: torch.Generator | None = None,
    eta: float = 0.0,
) -> Steps:
    """x_s = sqrt(alpha_bar_s) x0_hat + sqrt(1 - alpha_bar_s - sigma^2) eps_hat + sigma z, with
    sigma = eta times the posterior's standard deviation (Song et al. 2021, arXiv:2010.02502,
    equations 12 and 16). eta = 0 is deterministic, eta = 1 is DDPM.

    A *reversed* (ascending) grid with eta = 0 is DDIM inversion: it turns an image into the noise
    that leads back to it. There the first prediction, of the clean image, is made as at t = 0.

    Raises:
        ValueError: for eta outside [0, 1], or eta > 0 on an ascending grid.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    if eta > 0 and grid[0] < grid[-1]:
        raise ValueError(f"inversion is deterministic: eta must be 0 on an ascending grid, got {eta}")
    for step, (t, s) in enumerate(pairwise(grid)):
        x0_hat, eps_hat = _predictions(denoiser, schedule, x_t, max(t, 0), clip_x0)
        bar_s = schedule.alpha_bar_at(s, x_t)
        variance = eta**2 * schedule.posterior_variance(t, s) if eta > 0 else 0.0
        noise = (1 - bar_s - variance).clamp(min=0).sqrt()  # float64: the difference may be tiny
        x_t = bar_s.sqrt().to(x_t.dtype) * x0_hat + noise.to(x_t.dtype) * eps_hat
        if eta > 0 and s >= 0:
            x_t = x_t + variance.sqrt().to(x_t.dtype) * randn_like(x_t, generator)
        yield step, s, x_t, x0_hat


def last(steps: Steps) -> Tensor:
    """Run a sampler to its end and return the final x_t."""
    [(_, _, x_t, _)] = deque(steps, maxlen=1)
    return x_t
