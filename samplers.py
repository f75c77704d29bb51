"""Timestep grids and samplers: from noise to images with any denoiser, and back.

A denoiser is a function ``(x_t, t) -> (x0_hat, eps_hat)`` with t an int. A sampler never sees networks,
labels or guidance. A grid is a list of timesteps to visit; it ends in -1, the clean image.
Every sampler is a generator. All have the same leading arguments and yield ``(step, t, x_t, x0_hat)``:
the state ``x_t`` after the step, its timestep ``t``, and the prediction ``x0_hat`` that the step used.
The last x_t is the sample. Tensors are (B, C, H, W).

The signal may be 0 at the first timestep (flow, zero_terminal_snr), so a sampler must not divide by
it. ``_transition`` moves x_t from one timestep to another, and ``schedule.eps_from_x0`` gives the
eps_hat of a changed x0_hat.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from config import CFG_SCALE, SamplingConfig
from noise_schedule import Denoiser, NoiseSchedule

Steps = Iterator[tuple[int, int, Tensor, Tensor]]
Generator: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
# Whether to show a progress bar, or what shows one: (steps, label, their number) -> the same steps.
Progress: TypeAlias = bool | Callable[[Steps, str, int], Steps]
# log(signal / noise) where sampling starts in Karras et al. 2022, arXiv:2206.00364
NOISIEST = -math.log(80)


def leading(schedule: NoiseSchedule, number: int) -> np.ndarray:
    """From T - stride down to 0, stride = T / number (Lin et al. 2023, arXiv:2305.08891, table 2)."""
    return np.arange(number)[::-1] * (schedule.num_timesteps // number)


def trailing(schedule: NoiseSchedule, number: int) -> np.ndarray:
    """From T - 1 down to stride - 1, stride = T / number (Lin et al. 2023, table 2)."""
    return np.round(np.arange(number, 0, -1) * schedule.num_timesteps / number) - 1


def linspace(schedule: NoiseSchedule, number: int) -> np.ndarray:
    """From T - 1 to 0 (Lin et al. 2023, table 2)."""
    return np.linspace(schedule.num_timesteps - 1, 0, number).round()


def quadratic(schedule: NoiseSchedule, number: int) -> np.ndarray:
    """From T - 1 to 0 with sqrt(t) evenly spaced (Song et al. 2021, arXiv:2010.02502, appendix D.2)."""
    return _distinct(np.linspace((schedule.num_timesteps - 1) ** 0.5, 0, number) ** 2)


def log_snr(schedule: NoiseSchedule, number: int) -> np.ndarray:
    """From T - 1 down, with the log-SNR as evenly spaced as whole timesteps allow (Lu et al. 2022,
    arXiv:2206.00927, section 3.3). The first step skips from T - 1 over all timesteps that are noisier
    than ``NOISIEST``, because nothing of the image shows there. 15 steps or more end at 0. Fewer end
    where log(signal / noise) is number / 2 - 2, so that enough are left for high noise (docs/log.md)."""
    steps = np.arange(schedule.num_timesteps)
    values = schedule.half_log_snr(torch.from_numpy(steps)).numpy()  # they fall with t
    levels = np.linspace(max(values[-1], NOISIEST), min(values[0], number / 2 - 2), number)
    levels[0] = values[-1]  # sampling starts at the last timestep
    return _distinct(np.interp(levels, values[::-1], steps[::-1]))


# (schedule, number of steps) -> timesteps, falling
SPACINGS: dict[str, Callable[[NoiseSchedule, int], np.ndarray]] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "quadratic": quadratic,
    "log_snr": log_snr,
}


def timestep_grid(
    schedule: NoiseSchedule, num_inference_steps: int, spacing: str = "trailing"
) -> list[int]:
    """Timesteps to visit, descending, -1 last: num_inference_steps + 1 integers, spaced by one of
    ``SPACINGS``.

    Raises:
        ValueError: unless 1 <= num_inference_steps <= T, or for an unknown spacing.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"unknown spacing {spacing!r}: choose one of {', '.join(SPACINGS)}")
    if not 1 <= num_inference_steps <= schedule.num_timesteps:
        raise ValueError(
            f"num_inference_steps must lie in 1 ... {schedule.num_timesteps} (the timesteps the model "
            f"was trained with), got {num_inference_steps}"
        )
    return [*map(int, SPACINGS[spacing](schedule, num_inference_steps)), -1]


def _distinct(grid: np.ndarray) -> np.ndarray:
    """A falling grid of distinct whole timesteps: each is rounded, then moved if two would be equal."""
    steps, length = grid.round().astype(int), len(grid)
    for i in range(length):
        highest = steps[i - 1] - 1 if i else steps[0]
        steps[i] = max(min(steps[i], highest), length - 1 - i)
    return steps


def randn_like(x: Tensor, generator: Generator) -> Tensor:
    """Standard normal noise in the shape of x, drawn on the generator's device. A list has one generator
    for each sample, so sample i does not depend on its batch.

    Raises:
        ValueError: for a list of another length.
    """
    if isinstance(generator, Sequence):
        if len(generator) != len(x):
            raise ValueError(f"{len(generator)} generators for {len(x)} samples: give one for each")
        each = [torch.randn(x.shape[1:], generator=g, device=g.device, dtype=x.dtype) for g in generator]
        return torch.stack(each).to(x.device)
    device = generator.device if generator is not None else x.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


def rand(number: int, generator: Generator) -> Tensor:
    """Uniform numbers (number,) in [0, 1), on the CPU. A list of generators gives one number each."""
    if isinstance(generator, Sequence):
        return torch.cat([rand(1, each) for each in generator])
    device = generator.device if generator is not None else "cpu"
    return torch.rand(number, generator=generator, device=device).cpu()


def sample_generators(seed: int, samples: Sequence[int]) -> list[torch.Generator]:
    """One independent generator for each of these sample numbers."""
    seeds = [int(np.random.SeedSequence((seed, i)).generate_state(1)[0]) for i in samples]
    return [torch.Generator().manual_seed(each) for each in seeds]


def _predictions(
    denoiser: Denoiser, schedule: NoiseSchedule, x_t: Tensor, t: int, clip_x0: bool
) -> tuple[Tensor, Tensor]:
    """(x0_hat, eps_hat) at x_t. If x0_hat is clipped, eps_hat is recomputed from it."""
    x0_hat, eps_hat = denoiser(x_t, t)
    if clip_x0:
        x0_hat = x0_hat.clamp(-1, 1)
        eps_hat = schedule.eps_from_x0(x0_hat, x_t, t)
    return x0_hat, eps_hat


def _transition(
    schedule: NoiseSchedule,
    t: int,
    s: int,
    x0_hat: Tensor,
    eps_hat: Tensor,
    eta: float,
    generator: Generator,
) -> Tensor:
    """x_s from the predictions at t (Song et al. 2021, arXiv:2010.02502, equation 12), with fresh noise
    of eta times the posterior's standard deviation (equation 16)."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    signal2, noise2 = schedule.squares_at(s, x0_hat)
    variance = eta**2 * schedule.posterior_variance(t, s) if eta > 0 else torch.zeros(())
    noise = (noise2 - variance).clamp(min=0).sqrt()  # float64: the difference may be tiny
    x_s = signal2.sqrt().to(x0_hat.dtype) * x0_hat + noise.to(x0_hat.dtype) * eps_hat
    if eta > 0 and s >= 0:
        x_s = x_s + variance.sqrt().to(x0_hat.dtype) * randn_like(x0_hat, generator)
    return x_s


def ddpm(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_t: Tensor,
    grid: list[int],
    clip_x0: bool = False,
    generator: Generator = None,
) -> Steps:
    """Ancestral sampling: x_s ~ q(x_s | x_t, x0_hat), with the posterior's full variance for the
    step from t to s (Ho et al. 2020, algorithm 2)."""
    for step, (t, s) in enumerate(pairwise(grid)):
        x0_hat, _ = _predictions(denoiser, schedule, x_t, t, clip_x0)
        x_t, variance = schedule.q_posterior(x0_hat, x_t, t, s)
        if s >= 0:
            x_t = x_t + variance.sqrt() * randn_like(x_t, generator)
        yield step, s, x_t, x0_hat


def ddim(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_t: Tensor,
    grid: list[int],
    clip_x0: bool = False,
    generator: Generator = None,
    eta: float = 0.0,
) -> Steps:
    """x_s = signal_s x0_hat + sqrt(noise_s^2 - sigma^2) eps_hat + sigma z, with
    sigma = eta times the posterior's standard deviation (Song et al. 2021, arXiv:2010.02502).
    eta = 0 is deterministic, eta = 1 is DDPM.

    A reversed (ascending) grid with eta = 0 gives DDIM inversion: it turns an image into the noise
    that leads back to it. Its first prediction, from the clean image, uses t = 0.

    Raises:
        ValueError: for eta outside [0, 1], or eta > 0 on an ascending grid.
    """
    if eta > 0 and grid[0] < grid[-1]:
        raise ValueError(f"inversion is deterministic: eta must be 0 on an ascending grid, got {eta}")
    for step, (t, s) in enumerate(pairwise(grid)):
        x0_hat, eps_hat = _predictions(denoiser, schedule, x_t, max(t, 0), clip_x0)
        x_t = _transition(schedule, t, s, x0_hat, eps_hat, eta, generator)
        yield step, s, x_t, x0_hat


def dpm_solver(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_t: Tensor,
    grid: list[int],
    clip_x0: bool = False,
    generator: Generator = None,
    eta: float = 0.0,
    corrects: bool = False,
) -> Steps:
    """DPM-Solver++(2M) at eta = 0, SDE-DPM-Solver++(2M) at eta = 1 (Lu et al. 2022, arXiv:2211.01095,
    algorithm 2 and section 5).

    Both use the step of ``ddim``, which is exact for a constant x0_hat. From the second step on, x0_hat
    is extrapolated from the two latest predictions by half a step in lambda = log(signal / noise). This
    makes the step second order. The last step, to the clean image, is first order. ``corrects`` is of
    ``unipc``.

    Raises:
        ValueError: for eta outside [0, 1].
    """
    before: tuple[int, Tensor, Tensor, float] | None = None  # t, x_t, x0_hat, width in lambda
    for step, (t, s) in enumerate(pairwise(grid)):
        x0_hat, eps_hat = _predictions(denoiser, schedule, x_t, t, clip_x0)
        if corrects and before is not None:
            t_before, x_before, x0_before, _ = before
            mean = (x0_before + x0_hat) / 2
            eps_mean = schedule.eps_from_x0(mean, x_before, t_before)
            x_t = _transition(schedule, t_before, t, mean, eps_mean, 0.0, None)
            eps_hat = schedule.eps_from_x0(x0_hat, x_t, t)
        d, width = x0_hat, float(schedule.half_log_snr(s) - schedule.half_log_snr(t))
        if before is not None and s >= 0:
            d = x0_hat + width / (2 * before[3]) * (x0_hat - before[2])
            eps_hat = schedule.eps_from_x0(d, x_t, t)
        before = t, x_t, x0_hat, width
        x_t = _transition(schedule, t, s, d, eps_hat, eta, generator)
        yield step, s, x_t, x0_hat


def unipc(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_t: Tensor,
    grid: list[int],
    clip_x0: bool = False,
    generator: Generator = None,
) -> Steps:
    """UniPC (Zhao et al. 2023, arXiv:2302.04867): ``dpm_solver`` at eta = 0, with each step corrected
    once the next prediction is there.

    The next x0_hat, at x_s, shows how x0_hat changed over the step from t to s. The step is then taken
    again with the mean of both (UniC-1 with B(h) = e^h - 1), and the sampler goes on from there. The
    prediction is not made anew, so this costs no evaluation. What is yielded is not corrected yet.
    """
    yield from dpm_solver(denoiser, schedule, x_t, grid, clip_x0, generator, corrects=True)


@dataclass(frozen=True)
class Sampler:
    """A sampler, and the timesteps that suit it: their spacing, and how many (None: all T)."""

    steps: Callable[..., Steps]
    spacing: str = "trailing"
    num_steps: int | None = 20

    def options(self, **options: float) -> dict[str, float]:
        """Those of the options that this sampler takes.

        Raises:
            ValueError: for an option that it does not take, unless the value is 0.
        """
        parameters = inspect.signature(self.steps).parameters
        for name, value in options.items():
            if value and name not in parameters:
                raise ValueError(f"{self.steps.__name__} takes no {name}, got {name} {value:g}")
        return {name: value for name, value in options.items() if name in parameters}


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(ddpm, num_steps=None),
    "ddim": Sampler(ddim),
    "dpm_solver": Sampler(dpm_solver, "log_snr"),
    "unipc": Sampler(unipc, "log_snr"),
}


def resolve(sampling: SamplingConfig, schedule: NoiseSchedule, guidable: bool) -> SamplingConfig:
    """The same settings with nothing left open. The spacing and the number of steps are those that suit
    the sampler. cfg_scale is CFG_SCALE, or 1 for a model that was always trained under its attributes.

    Args:
        schedule: of the model.
        guidable: whether the model was trained without condition, too.

    Raises:
        ValueError: for more steps than the schedule has timesteps, or a cfg_scale other than 1 where the
            model is not guidable.
    """
    sampler, T = SAMPLERS[sampling.sampler], schedule.num_timesteps
    number = sampling.num_inference_steps or min(sampler.num_steps or T, T)
    spacing = sampling.spacing or sampler.spacing
    timestep_grid(schedule, number, spacing)  # refuses too many steps
    cfg_scale = sampling.cfg_scale
    if cfg_scale is None:
        cfg_scale = CFG_SCALE if guidable else 1.0
    if cfg_scale != 1 and not guidable:
        what = f"cfg_scale {cfg_scale:g}" if cfg_scale else "drawing without any request"
        raise ValueError(
            f"{what} is for models trained without condition, too, and this one "
            "was trained with --cfg_dropout 0: draw under requests, at cfg_scale 1"
        )
    return replace(sampling, num_inference_steps=number, spacing=spacing, cfg_scale=cfg_scale)


def with_bar(steps: Steps, label: str, grid: list[int], progress: Progress) -> Steps:
    """The same steps behind a progress bar, in the terminal or of the caller's own."""
    if not isinstance(progress, bool):
        return progress(steps, label, len(grid) - 1)
    return tqdm(steps, label, len(grid) - 1, unit="step", leave=False, disable=not progress)


def last(steps: Steps) -> Tensor:
    """Run a sampler to its end and return the final x_t."""
    [(_, _, x_t, _)] = deque(steps, maxlen=1)
    return x_t
