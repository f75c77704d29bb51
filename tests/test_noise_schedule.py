"""The noise schedule against diffusers, closed forms and brute-force Bayes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from noise_schedule import NoiseSchedule

T = 1000
PREDICTIONS = ("eps", "x0", "v", "flow")
DIFFUSERS_SCHEDULE = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
STEPS = torch.tensor([0, 1, 7, 250, 500, 998, 999])


def peer(kind: str) -> DDPMScheduler:
    return DDPMScheduler(T, beta_schedule=DIFFUSERS_SCHEDULE[kind], beta_start=1e-4, beta_end=0.02)


def pictures(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(len(STEPS), 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=DIFFUSERS_SCHEDULE)
def schedule(request) -> NoiseSchedule:
    return NoiseSchedule(request.param, T)


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
    assert ours.alpha_bar[-1] == 0
    assert ours.alpha_bar[0] == pytest.approx(float(schedule.alpha_bar[0]))


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
@pytest.mark.parametrize("kind", DIFFUSERS_SCHEDULE)
def test_alpha_bar_falls_strictly_within_0_and_1(kind, num_timesteps):
    alpha_bar = NoiseSchedule(kind, num_timesteps).alpha_bar
    assert alpha_bar.shape == (num_timesteps,)
    assert alpha_bar.dtype == torch.float64
    assert alpha_bar[-1] > 0 and alpha_bar[0] < 1
    assert (alpha_bar.diff() < 0).all()


def test_alpha_bar_lookup_of_ints_tensors_and_the_clean_image(schedule):
    like = pictures(0, torch.float32)
    table, _ = schedule.squares_at(STEPS, like)
    assert table.shape == (len(STEPS), 1, 1, 1)
    assert table.dtype == torch.float64
    assert table.flatten().tolist() == [schedule.squares_at(int(t), like)[0].item() for t in STEPS]
    assert table.flatten().tolist() == schedule.alpha_bar[STEPS].tolist()
    assert [square.item() for square in schedule.squares_at(-1, like)] == [1, 0]
    assert schedule.signal_and_noise(STEPS, like)[0].dtype == torch.float32


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


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_conversion_inverts_target(schedule, prediction):
    x0, eps = pictures(3), pictures(4)
    x_t = schedule.q_sample(x0, STEPS, eps)
    output = schedule.target(prediction, x0, eps, STEPS)
    x0_hat, eps_hat = schedule.to_x0_eps(prediction, output, x_t, STEPS)
    # From eps to x0 divides by sqrt(alpha_bar), 5e-5 at the cosine's end: 5 of the 16 digits go.
    torch.testing.assert_close(x0_hat, x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(eps_hat, eps, rtol=0, atol=1e-10)
    for i, t in enumerate(STEPS.tolist()):  # an int t is that t for the whole batch
        row = slice(i, i + 1)
        one = schedule.to_x0_eps(prediction, output[row], x_t[row], t)
        torch.testing.assert_close(one, (x0_hat[row], eps_hat[row]), rtol=0, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_any_output_is_read_consistently_with_x_t(schedule, prediction):
    x_t, output = pictures(5), pictures(6)
    x0_hat, eps_hat = schedule.to_x0_eps(prediction, output, x_t, STEPS)
    torch.testing.assert_close(schedule.q_sample(x0_hat, STEPS, eps_hat), x_t, rtol=0, atol=1e-10)
    torch.testing.assert_close(schedule.target(prediction, x0_hat, eps_hat, STEPS), output)
    torch.testing.assert_close(schedule.eps_from_x0(x0_hat, x_t, STEPS), eps_hat)


# ---------------------------------------------------------------- loss weights


def test_snr_is_signal_power_over_noise_power(schedule):
    one = torch.ones(len(STEPS), 1, 1, 1, dtype=torch.float64)
    signal = schedule.q_sample(one, STEPS, 0 * one)
    noise = schedule.q_sample(0 * one, STEPS, one)
    torch.testing.assert_close(schedule.snr(STEPS), (signal / noise).pow(2).flatten(), rtol=1e-9, atol=0)


def test_min_snr_weights_match_the_paper(schedule, gamma=5.0):
    alpha_bar = peer(schedule.kind).alphas_cumprod.double().numpy()[STEPS]
    snr = alpha_bar / (1 - alpha_bar)
    expected = {
        "eps": np.minimum(gamma / snr, 1),
        "x0": np.minimum(snr, gamma),
        "v": np.minimum(snr, gamma) / (snr + 1),
        "flow": np.minimum(snr, gamma) / (np.sqrt(snr) + 1) ** 2,
    }
    for prediction in PREDICTIONS:
        ours = schedule.loss_weight("min_snr", prediction, STEPS)
        assert ours.dtype == torch.float32
        # float32 on their side: 1 - alpha_bar at t = 0 is 1e-4 or less, so 6e-8 of it is up to 2e-3.
        np.testing.assert_allclose(ours, expected[prediction], rtol=2e-3, atol=1e-8)
        assert schedule.loss_weight("none", prediction, STEPS).tolist() == [1.0] * len(STEPS)


def test_weighted_losses_agree_in_every_unit(schedule):
    """One wrong prediction scores the same whether written as eps, as x0 or as v."""
    x0, eps, output = pictures(7), pictures(8), pictures(9)
    x_t = schedule.q_sample(x0, STEPS, eps)
    x0_hat, eps_hat = schedule.to_x0_eps("v", output, x_t, STEPS)
    losses = {}
    for prediction in PREDICTIONS:
        wrong = schedule.target(prediction, x0_hat, eps_hat, STEPS)
        right = schedule.target(prediction, x0, eps, STEPS)
        weight = schedule.loss_weight("min_snr", prediction, STEPS)
        losses[prediction] = weight * (wrong - right).pow(2).mean((1, 2, 3))
    torch.testing.assert_close(losses["eps"], losses["x0"], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses["v"], losses["x0"], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses["flow"], losses["x0"], rtol=1e-5, atol=0)


# ---------------------------------------------------------------- posterior


@pytest.mark.parametrize("t", [1, 250, 998])
def test_posterior_of_one_step_is_ho_equation_7(schedule, t):
    x0, x_t = pictures(10), pictures(11)
    beta, alpha_bar = schedule.beta.tolist(), schedule.alpha_bar.tolist()
    mean, variance = schedule.q_posterior(x0, x_t, t, t - 1)
    beta_tilde = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta[t]
    expected = (
        math.sqrt(alpha_bar[t - 1]) * beta[t] / (1 - alpha_bar[t]) * x0
        + math.sqrt(1 - beta[t]) * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * x_t
    )
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-12)
    assert variance.item() == pytest.approx(beta_tilde, rel=1e-9)


@pytest.mark.parametrize(("t", "s"), [(1, 0), (60, 19), (500, 250), (900, 30), (999, 949)])
def test_posterior_is_bayes_rule_done_by_brute_force(schedule, t, s):
    """q(x_s | x_t, x0) as the normalised product q(x_s | x0) q(x_t | x_s) on a grid of x_s, the second
    factor walked step by step from the betas."""
    x0, x_t = 0.7, -0.4
    alpha_bar_s = math.prod(1 - b for b in schedule.beta[: s + 1].tolist())
    alpha = math.prod(1 - b for b in schedule.beta[s + 1 : t + 1].tolist())
    x_s = np.linspace(-9, 9, 2_000_001)
    log_density = -((x_s - math.sqrt(alpha_bar_s) * x0) ** 2) / (2 * (1 - alpha_bar_s))
    log_density -= (x_t - math.sqrt(alpha) * x_s) ** 2 / (2 * (1 - alpha))
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    mean = (density * x_s).sum()
    variance = (density * (x_s - mean) ** 2).sum()
    ones = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    our_mean, our_variance = schedule.q_posterior(x0 * ones, x_t * ones, t, s)
    assert our_mean.item() == pytest.approx(mean, rel=1e-6)
    assert our_variance.item() == pytest.approx(variance, rel=1e-6)


def test_posterior_of_the_clean_image_is_x0(schedule):
    x0, x_t = pictures(12), pictures(13)
    mean, variance = schedule.q_posterior(x0, x_t, 49, -1)
    torch.testing.assert_close(mean, x0, rtol=1e-12, atol=1e-12)
    assert variance.item() == 0
