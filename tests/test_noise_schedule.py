"""The noise schedule against diffusers, closed forms and brute-force Bayes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from itertools import product

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from config import ModelConfig
from noise_schedule import LOSS_WEIGHTINGS, PREDICTIONS, SCHEDULES, NoiseSchedule

T = 1000
DIFFUSERS_SCHEDULE = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
STEPS = torch.tensor([0, 1, 7, 250, 500, 998, 999])


def allowed() -> Iterator[tuple[str, bool, str]]:
    """(schedule, zero_terminal_snr, prediction), all that a model may have together."""
    for kind, zero, prediction in product(SCHEDULES, (False, True), PREDICTIONS):
        with suppress(ValueError):
            ModelConfig(schedule=kind, zero_terminal_snr=zero, prediction=prediction)
            yield kind, zero, prediction


ALLOWED = list(allowed())
VARIANTS = list(dict.fromkeys((kind, zero) for kind, zero, _ in ALLOWED))  # of schedules


def peer(kind: str) -> DDPMScheduler:
    return DDPMScheduler(T, beta_schedule=DIFFUSERS_SCHEDULE[kind], beta_start=1e-4, beta_end=0.02)


def pictures(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(len(STEPS), 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=VARIANTS, ids=str)
def every(request) -> NoiseSchedule:
    return NoiseSchedule(request.param[0], T, request.param[1])


@pytest.fixture(params=ALLOWED, ids=str)
def pair(request) -> tuple[NoiseSchedule, str]:
    kind, zero, prediction = request.param
    return NoiseSchedule(kind, T, zero), prediction


def test_every_schedule_has_a_prediction_and_every_prediction_a_schedule():
    assert {kind for kind, _, _ in ALLOWED} == set(SCHEDULES)
    assert {prediction for _, _, prediction in ALLOWED} == set(PREDICTIONS)


# ---------------------------------------------------------------- alpha_bar


def test_alpha_bar_matches_diffusers(schedule):
    theirs = peer(schedule.kind)
    # diffusers keeps float32: 6e-8 per beta, and per factor of the product.
    torch.testing.assert_close(schedule.beta, theirs.betas.double(), rtol=1e-6, atol=1e-7)
    in_double = torch.cumprod(1 - theirs.betas.double(), 0)
    # The last cosine factor is 1 - 0.999, so float32 rounds it by 6e-8 / 1e-3.
    torch.testing.assert_close(schedule.alpha_bar, in_double, rtol=1e-4, atol=0)
    torch.testing.assert_close(schedule.alpha_bar[:-1], in_double[:-1], rtol=2e-5, atol=0)
    torch.testing.assert_close(schedule.alpha_bar, theirs.alphas_cumprod.double(), rtol=1e-4, atol=1e-6)


def test_zero_terminal_snr_is_that_of_diffusers(schedule):
    ours = NoiseSchedule(schedule.kind, T, zero_terminal_snr=True)
    theirs = rescale_zero_terminal_snr(schedule.beta)
    torch.testing.assert_close(ours.beta, theirs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.alpha_bar, torch.cumprod(1 - theirs, 0), rtol=1e-9, atol=1e-15)


def test_cosine_alpha_bar_is_the_squared_cosine():
    t = np.arange(1, T) / T  # all but the capped last step
    expected = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    np.testing.assert_allclose(NoiseSchedule("cosine", T).alpha_bar[:-1], expected, rtol=1e-9)


@pytest.mark.parametrize("num_timesteps", [100, 250, 500, 4000])
def test_linear_ends_equally_noisy_for_every_length(num_timesteps):
    ends = [NoiseSchedule("linear", n).alpha_bar[-1].item() for n in (num_timesteps, T)]
    # log alpha_bar = -sum(beta + beta^2 / 2 + ...): only the second-order term depends on T.
    assert math.log(ends[0]) == pytest.approx(math.log(ends[1]), rel=0.08)


@pytest.mark.parametrize("num_timesteps", [2, 3, 10, 50, T, 4000])
@pytest.mark.parametrize(("kind", "zero"), VARIANTS)
def test_the_signal_falls_and_the_noise_rises_from_the_clean_image_on(kind, zero, num_timesteps):
    schedule = NoiseSchedule(kind, num_timesteps, zero)
    squares = torch.stack(schedule.squares_at(torch.arange(-1, num_timesteps), torch.ones(1)))
    assert squares.dtype == torch.float64 and squares[:, 0].tolist() == [1, 0]
    assert (squares[0].diff() < 0).all() and (squares[1].diff() > 0).all()
    assert squares[0, -1] >= 0 and squares[1, -1] <= 1
    if zero:
        assert squares[:, -1].tolist() == [0, 1]
    else:
        assert squares[:, 1:].equal(torch.stack(SCHEDULES[kind](num_timesteps)))
    preserving = bool(((squares.sum(0) - 1).abs() < 1e-12).all())  # what prediction v asks for
    assert preserving == ((kind, zero, "v") in ALLOWED)


def test_x_t_has_the_moments_of_the_table(every):
    """With eps of mean 0 and variance 1: mean signal x0, variance noise^2."""
    eps = pictures(0)
    eps = (eps - eps.mean((1, 2, 3), True)) / eps.std((1, 2, 3), correction=0, keepdim=True)
    x0 = torch.full_like(eps, 0.7)
    x_t = every.q_sample(x0, STEPS, eps)
    signal2, noise2 = (square.flatten() for square in every.squares_at(STEPS, x0))
    torch.testing.assert_close(x_t.mean((1, 2, 3)), 0.7 * signal2.sqrt())
    torch.testing.assert_close(x_t.var((1, 2, 3), correction=0), noise2)
    assert every.q_sample(x0, -1, eps).equal(x0)
    torch.testing.assert_close(every.snr(STEPS), signal2 / noise2)
    torch.testing.assert_close(2 * every.half_log_snr(STEPS), (signal2 / noise2).clamp(min=1e-20).log())
    for i, t in enumerate(STEPS.tolist()):  # an int t is that t for the whole batch
        assert every.q_sample(x0, t, eps)[i].equal(x_t[i])


@pytest.mark.parametrize(
    ("args", "named"), [(("curve", 10), "'curve'"), (("cosine", 1), "1"), (("linear", 0), "0")]
)
def test_wrong_schedules_are_refused_in_one_line(args, named):
    with pytest.raises(ValueError, match=named) as error:
        NoiseSchedule(*args)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- q_sample, targets, conversions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_q_sample_and_v_match_diffusers(schedule, dtype):
    x0, eps = pictures(1, dtype), pictures(2, dtype)
    theirs = peer(schedule.kind)
    close = {"rtol": 1e-5, "atol": 1e-5}  # float32 alpha_bar on their side
    x_t = schedule.q_sample(x0, STEPS, eps)
    assert x_t.dtype == dtype
    torch.testing.assert_close(x_t, theirs.add_noise(x0, eps, STEPS), **close)
    v = schedule.target("v", x0, eps, STEPS)
    torch.testing.assert_close(v, theirs.get_velocity(x0, eps, STEPS), **close)
    assert schedule.target("eps", x0, eps, STEPS) is eps
    assert schedule.target("x0", x0, eps, STEPS) is x0


def test_the_noise_of_a_flow_is_diffusers_sigma():
    schedule, theirs = NoiseSchedule("flow", T), FlowMatchEulerDiscreteScheduler(T)
    x0, eps = pictures(0), pictures(1)
    for t in (0, 1, 400, 998, 999):
        signal, sigma = schedule.signal_and_noise(t, x0)
        assert float(sigma) == pytest.approx(float(theirs.sigmas[T - 1 - t]), abs=1e-6)
        assert float(signal) == pytest.approx(1 - float(sigma), abs=1e-12)
        scaled = theirs.scale_noise(x0, theirs.timesteps[T - 1 - t : T - t], eps)
        torch.testing.assert_close(schedule.q_sample(x0, t, eps), scaled, atol=1e-6, rtol=0)
    assert schedule.signal_and_noise(-1, x0) == (1, 0)
    assert schedule.target("flow", x0, eps, 5).equal(eps - x0)


def test_conversion_inverts_target(pair):
    """And two outputs differ in x0_hat as Prediction.x0_error says."""
    schedule, prediction = pair
    x0, eps, other = pictures(3), pictures(4), pictures(5)
    x_t = schedule.q_sample(x0, STEPS, eps)
    output = schedule.target(prediction, x0, eps, STEPS)
    x0_hat, eps_hat = schedule.to_x0_eps(prediction, output, x_t, STEPS)
    # From eps to x0 divides by sqrt(alpha_bar), 5e-5 at the cosine's end: 5 of the 16 digits go.
    torch.testing.assert_close(x0_hat, x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(eps_hat, eps, rtol=0, atol=1e-10)
    torch.testing.assert_close(schedule.eps_from_x0(x0, x_t, STEPS), eps)
    error = (schedule.to_x0_eps(prediction, other, x_t, STEPS)[0] - x0) ** 2
    factor = PREDICTIONS[prediction].x0_error(*schedule.squares_at(STEPS, x_t))
    torch.testing.assert_close(error, factor * (other - output) ** 2, rtol=1e-6, atol=1e-12)


# ---------------------------------------------------------------- loss weights


@pytest.mark.parametrize("weighting", LOSS_WEIGHTINGS)
def test_every_loss_weight_is_finite_and_not_negative(pair, weighting):
    schedule, prediction = pair
    weight = schedule.loss_weight(weighting, prediction, torch.arange(T), gamma=20)
    assert weight.shape == (T,) and weight.dtype == torch.float32
    assert weight.isfinite().all() and (weight >= 0).all() and weight.any()


def test_min_snr_weights_match_the_paper(schedule, gamma=5.0):
    alpha_bar = peer(schedule.kind).alphas_cumprod.double().numpy()[STEPS]
    snr = alpha_bar / (1 - alpha_bar)
    expected = {
        "eps": np.minimum(gamma / snr, 1),
        "x0": np.minimum(snr, gamma),
        "v": np.minimum(snr, gamma) / (snr + 1),
        "flow": np.minimum(snr, gamma) / (np.sqrt(snr) + 1) ** 2,
    }
    for prediction, weight in expected.items():
        ours = schedule.loss_weight("min_snr", prediction, STEPS, gamma)
        # float32 on their side: 1 - alpha_bar at t = 0 is 1e-4 or less, so 6e-8 of it is up to 2e-3.
        np.testing.assert_allclose(ours, weight, rtol=2e-3, atol=1e-8)
        assert schedule.loss_weight("none", prediction, STEPS, gamma).tolist() == [1.0] * len(STEPS)


def test_without_its_cap_a_clamped_loss_is_that_of_v(schedule):
    """Weights snr + 1 on the error of x0 give the error of v. The cap acts where they are more."""
    snr = schedule.snr(STEPS)
    for gamma in (5.0, 100.0):
        ours = schedule.loss_weight("clamped_v", "x0", STEPS, gamma)
        torch.testing.assert_close(ours, (snr + 1).clamp(max=gamma).float())
        of_v = schedule.loss_weight("clamped_v", "v", STEPS, gamma)
        torch.testing.assert_close(of_v, (gamma / (snr + 1)).clamp(max=1).float())


# ---------------------------------------------------------------- posterior


@pytest.mark.parametrize(("t", "s"), [(1, 0), (60, 19), (500, 250), (900, 30), (999, 949), (998, 997)])
def test_posterior_is_bayes_rule_done_by_brute_force(every, t, s):
    """q(x_s | x_t, x0) as the normalised product q(x_s | x0) q(x_t | x_s) on a grid of x_s."""
    x0, x_t = 0.7 * torch.ones(1).double(), -0.4 * torch.ones(1).double()
    signal2, noise2 = (square.tolist() for square in every.squares_at(torch.tensor([s, t]), x0))
    alpha = signal2[1] / signal2[0]
    x_s = np.linspace(-9, 9, 200_001)
    log_density = -((x_s - math.sqrt(signal2[0]) * 0.7) ** 2) / (2 * noise2[0])
    log_density -= (-0.4 - math.sqrt(alpha) * x_s) ** 2 / (2 * (noise2[1] - alpha * noise2[0]))
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    mean = (density * x_s).sum()
    our_mean, our_variance = every.q_posterior(x0, x_t, t, s)
    assert our_mean.item() == pytest.approx(mean, rel=1e-6)
    assert our_variance.item() == pytest.approx((density * (x_s - mean) ** 2).sum(), rel=1e-6)
    mean, variance = every.q_posterior(x0, x_t, t, -1)
    assert mean.item() == pytest.approx(0.7) and variance.item() == 0  # the clean image is x0
