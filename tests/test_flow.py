"""Rectified flow against diffusers' FlowMatchEulerDiscreteScheduler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from noise_schedule import NoiseSchedule
from samplers import ddim, dpm_solver, last, timestep_grid

T = 1000


def noise(seed: int) -> Tensor:
    return torch.randn(3, 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(x_t: Tensor, sigma: float) -> Tensor:
    """A velocity that depends on state and time."""
    return torch.cos(2 * x_t) + sigma * torch.tanh(x_t.roll(1, -1)) - 0.3


@pytest.fixture
def schedule() -> NoiseSchedule:
    return NoiseSchedule("flow", T)


def test_noise_is_diffusers_sigma(schedule):
    theirs = FlowMatchEulerDiscreteScheduler(T)
    x0, eps = noise(0), noise(1)
    for t in (0, 1, 400, 998, 999):
        signal, sigma = schedule.signal_and_noise(t, x0)
        assert float(sigma) == pytest.approx(float(theirs.sigmas[T - 1 - t]), abs=1e-6)
        assert float(signal) == pytest.approx(1 - float(sigma), abs=1e-12)
        timestep = theirs.timesteps[T - 1 - t : T - t]
        scaled = theirs.scale_noise(x0, timestep, eps)
        torch.testing.assert_close(schedule.q_sample(x0, t, eps), scaled, atol=1e-6, rtol=0)
    assert schedule.signal_and_noise(-1, x0) == (1, 0)
    assert schedule.target("flow", x0, eps, 5).equal(eps - x0)


@pytest.mark.parametrize("steps", [1, 4, 10, 50])
def test_ddim_on_a_flow_is_diffusers_euler_step(schedule, steps):
    grid = timestep_grid(schedule, steps)
    sigmas = [(t + 1) / T for t in grid]

    def denoise(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        return schedule.to_x0_eps("flow", network(x_t, (t + 1) / T), x_t, t)

    ours = last(ddim(denoise, schedule, noise(2), grid))
    theirs = FlowMatchEulerDiscreteScheduler(T)
    theirs.set_timesteps(sigmas=np.array(sigmas[:-1]))
    x_t = noise(2)
    for timestep in theirs.timesteps:
        output = network(x_t, float(timestep) / T)
        x_t = theirs.step(output, timestep, x_t).prev_sample
    torch.testing.assert_close(ours, x_t, atol=2e-5, rtol=0)  # their sigmas are float32


def test_the_exact_velocity_of_a_gaussian_leads_to_it(schedule):
    """x0 ~ N(m, w^2): the posterior mean is linear in x_t, and the flow ends in that Gaussian."""
    mean, width = 0.7, 0.3

    def denoise(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        signal, sigma = (float(each) for each in schedule.signal_and_noise(t, x_t))
        variance = signal**2 * width**2 + sigma**2
        x0_hat = mean + signal * width**2 / variance * (x_t - signal * mean)
        return x0_hat, (x_t - signal * x0_hat) / sigma

    x_T = noise(3)
    for sampler in (ddim, dpm_solver):
        x0 = last(sampler(denoise, schedule, x_T, timestep_grid(schedule, 500)))
        torch.testing.assert_close(x0, mean + width * x_T, atol=0.01, rtol=0)


@pytest.mark.parametrize(("t", "s"), [(999, 400), (500, 499), (10, -1)])
def test_the_posterior_is_bayes_rule_on_two_gaussians(schedule, t, s):
    x0, x_t = noise(4), noise(5)
    (signal_t, noise_t), (signal_s, noise_s) = (
        (float(v) for v in schedule.signal_and_noise(u, x0)) for u in (t, s)
    )
    alpha = signal_t / signal_s
    step = noise_t**2 - alpha**2 * noise_s**2  # variance of x_t given x_s
    mean, variance = schedule.q_posterior(x0, x_t, t, s)
    if s < 0:
        torch.testing.assert_close(mean, x0)
        assert float(variance) == 0
        return
    expected = 1 / (1 / noise_s**2 + alpha**2 / step)
    assert float(variance) == pytest.approx(expected, rel=1e-9)
    by_bayes = expected * (signal_s * x0 / noise_s**2 + alpha * x_t / step)
    torch.testing.assert_close(mean, by_bayes)
