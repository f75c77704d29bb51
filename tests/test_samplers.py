"""Samplers against diffusers, the exact posterior mean of a tiny dataset, and Gaussian closed forms."""

from __future__ import annotations

import inspect
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from helpers import noise, seeded
from test_noise_schedule import DIFFUSERS_SCHEDULE as KINDS
from test_noise_schedule import VARIANTS
from torch import Tensor

from config import CFG_SCALE, SamplingConfig
from noise_schedule import NoiseSchedule
from samplers import (
    SAMPLERS,
    SPACINGS,
    ddim,
    ddpm,
    dpm_solver,
    last,
    resolve,
    sample_generators,
    timestep_grid,
    unipc,
)

T = 1000
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
GRIDS = ("leading", "trailing", "linspace")
# Every sampler, also with some and with full noise where it takes eta
WALKS = {name: sampler.steps for name, sampler in SAMPLERS.items()}
for name in [name for name in SAMPLERS if SAMPLERS[name].options(eta=0.0)]:
    WALKS |= {f"{name} eta {eta}": partial(WALKS[name], eta=eta) for eta in (0.5, 1.0)}


@pytest.fixture(params=VARIANTS, ids=str)
def every(request) -> NoiseSchedule:
    return NoiseSchedule(request.param[0], T, request.param[1])


# ---------------------------------------------------------------- grids


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 20, 50, 333, 999, T])
@pytest.mark.parametrize("spacing", GRIDS)
def test_grid_is_that_of_diffusers(spacing, num_steps):
    theirs = DDIMScheduler(T, timestep_spacing=spacing)
    theirs.set_timesteps(num_steps)
    expected = theirs.timesteps.tolist()
    if spacing == "linspace" and num_steps == 1:
        expected = [T - 1]  # theirs is [0], which asks for no denoising
    assert timestep_grid(NoiseSchedule("cosine", T), num_steps, spacing) == [*expected, -1]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("kind", "zero"), VARIANTS)
def test_every_grid_falls_strictly_in_whole_steps_to_the_clean_image(kind, zero, spacing):
    for num_timesteps, stride in ((2, 1), (10, 1), (37, 1), (T, 111)):
        schedule = NoiseSchedule(kind, num_timesteps, zero)
        for number in range(1, num_timesteps + 1, stride):
            grid = timestep_grid(schedule, number, spacing)
            assert grid == [*SPACINGS[spacing](schedule, number), -1] and len(grid) == number + 1
            assert grid[0] < num_timesteps and all(t > s for t, s in pairwise(grid))


@pytest.mark.parametrize(
    ("args", "named"),
    [((10, 0), "got 0"), ((10, 11), "1 ... 10 .* got 11"), ((10, 5, "karras"), "'karras'")],
)
def test_wrong_grids_are_refused_in_one_line(args, named):
    with pytest.raises(ValueError, match=named) as error:
        timestep_grid(NoiseSchedule("cosine", args[0]), *args[1:])
    assert "\n" not in str(error.value)


def test_grids_are_even_in_what_they_say(schedule):
    root = [t**0.5 for t in timestep_grid(schedule, 20, "quadratic")[:-1]]
    grid = timestep_grid(schedule, 20, "log_snr")
    log_snr = schedule.half_log_snr(torch.tensor(grid[:-1]))
    assert grid[0] == T - 1 and grid[1] < T - 10  # no step is spent where all is noise
    log_snr[0] = -math.log(80)
    for values in (-torch.tensor(root), log_snr):
        width = (values[-1] - values[0]) / 19
        middle = values.diff()[7:13]  # towards the ends whole timesteps lie too far apart
        assert ((middle - width).abs() < 0.3 * width).all()


def test_few_steps_are_not_spent_where_hardly_any_noise_is_left(schedule):
    for number, end in ((5, 0.5), (8, 2.0)):
        last_step = timestep_grid(schedule, number, "log_snr")[-2]
        assert abs(float(schedule.half_log_snr(last_step)) - end) < 0.1
    assert timestep_grid(schedule, 20, "log_snr")[-2] == 0


# ---------------------------------------------------------------- agreement with diffusers


def dummy_network(x_t: Tensor, t: int) -> Tensor:
    """Fixed and smooth, but mixing pixels and channels and changing with t."""
    mixed = 0.9 * x_t + 0.5 * x_t.roll(1, -1) - 0.4 * x_t.flip(1) + 0.1
    return torch.tanh(mixed) * (1.2 + math.cos(t / 150))


def dummy_denoiser(schedule: NoiseSchedule, prediction: str):
    return lambda x_t, t: schedule.to_x0_eps(prediction, dummy_network(x_t, t), x_t, t)


def peer(scheduler_class, schedule: NoiseSchedule, prediction: str, **kwargs):
    """diffusers' scheduler given our float64 alpha_bar (itself compared in test_noise_schedule), so that
    steps agree to rounding and not only to float32."""
    theirs = scheduler_class(T, prediction_type=PREDICTIONS[prediction], **kwargs)
    theirs.alphas_cumprod = schedule.alpha_bar
    return theirs


def walk(scheduler, x_t: Tensor, timesteps: list[int], labels: list[int], **kwargs):
    """Their trajectory as (x_t, x0_hat), the network asked with these labels."""
    steps = []
    for t, label in zip(timesteps, labels, strict=True):
        step = scheduler.step(dummy_network(x_t, label), t, x_t, **kwargs)
        x_t = step.prev_sample
        steps.append((x_t, step.pred_original_sample))
    return steps


def assert_same_steps(ours, theirs, tolerance: float = 1e-9) -> None:
    """Both are lists of (x_t, x0_hat); the difference is relative to the largest value of a tensor."""
    assert len(ours) == len(theirs) > 0
    for step, their_step in zip(ours, theirs, strict=True):
        for a, b in zip(step, their_step, strict=True):
            assert (a - b).abs().max() <= tolerance * b.abs().max()


def states(steps) -> list[tuple[Tensor, Tensor]]:
    return [(x_t, x0_hat) for _, _, x_t, x0_hat in steps]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_walks_with_diffusers(schedule, eta, prediction, spacing, clip):
    theirs = peer(DDIMScheduler, schedule, prediction, clip_sample=clip, timestep_spacing=spacing)
    theirs.set_timesteps(20)
    x_T, grid = noise(2, 3, 6, 5), timestep_grid(schedule, 20, spacing)
    flags = {"eta": eta, "use_clipped_model_output": True, "generator": seeded(1)}
    expected = walk(theirs, x_T, grid[:-1], grid[:-1], **flags)
    ours = ddim(dummy_denoiser(schedule, prediction), schedule, x_T, grid, clip, seeded(1), eta)
    assert_same_steps(states(ours), expected)


@pytest.mark.parametrize(
    ("num_steps", "spacing", "clip"),
    [(T, "leading", True), *((20, spacing, clip) for spacing in GRIDS for clip in (False, True))],
)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm_walks_with_diffusers(schedule, prediction, num_steps, spacing, clip):
    theirs = peer(DDPMScheduler, schedule, prediction, clip_sample=clip, variance_type="fixed_small")
    grid = timestep_grid(schedule, num_steps, spacing)
    theirs.set_timesteps(timesteps=grid[:-1])
    x_T = noise(2, 3, 6, 5)
    expected = walk(theirs, x_T, grid[:-1], grid[:-1], generator=seeded(1))
    ours = ddpm(dummy_denoiser(schedule, prediction), schedule, x_T, grid, clip, seeded(1))
    assert_same_steps(states(ours), expected)  # their last step adds noise of variance 1e-20


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_inversion_walks_with_diffusers(schedule, prediction, spacing):
    theirs = peer(
        DDIMInverseScheduler,
        schedule,
        prediction,
        clip_sample=False,
        set_alpha_to_one=False,  # the clean image counts as t = 0, as it does here
        timestep_spacing=spacing,
    )
    theirs.initial_alpha_cumprod = schedule.alpha_bar[0]
    theirs.set_timesteps(20)
    x0, grid = noise(2, 3, 6, 5).clamp(-1, 1), timestep_grid(schedule, 20, spacing)[::-1]
    assert grid[1:] == theirs.timesteps.tolist()
    expected = walk(theirs, x0, grid[1:], [0, *grid[1:-1]])
    ours = ddim(dummy_denoiser(schedule, prediction), schedule, x0, grid)
    assert_same_steps(states(ours), expected)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 20])
@pytest.mark.parametrize("spacing", ["trailing", "log_snr"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("eta", "algorithm"), [(0.0, "dpmsolver++"), (1.0, "sde-dpmsolver++")])
def test_dpm_solver_walks_with_diffusers(schedule, eta, algorithm, prediction, spacing, num_steps):
    theirs = peer(
        DPMSolverMultistepScheduler,
        schedule,
        prediction,
        algorithm_type=algorithm,
        solver_order=2,
        final_sigmas_type="zero",
        beta_schedule=KINDS[schedule.kind],
        beta_start=1e-4,
        beta_end=0.02,
    )
    grid = timestep_grid(schedule, num_steps, spacing)
    theirs.set_timesteps(timesteps=grid[:-1])
    sigma = (1 / schedule.alpha_bar[grid[:-1]] - 1).sqrt()  # theirs are float32
    theirs.sigmas = torch.cat([sigma, torch.zeros(1)])
    x_T, own = noise(2, 3, 6, 5, dtype=torch.float32), seeded(1)  # their noise is float32
    denoiser = dummy_denoiser(schedule, prediction)
    ours = list(dpm_solver(denoiser, schedule, x_T, grid, generator=seeded(1), eta=eta))
    for (_, s, x_s, _), t in zip(ours, grid[:-1], strict=True):
        x_T = theirs.step(dummy_network(x_T, t), t, x_T, generator=own).prev_sample
        assert (x_s - x_T).abs().max() <= 1e-5 * x_T.abs().max(), s  # they step in float32


class FirstOrderCorrector(UniPCMultistepScheduler):
    """Theirs corrects with one prediction more, of which this leaves out the oldest."""

    def multistep_uni_c_bh_update(self, *args, order, **kwargs):
        return super().multistep_uni_c_bh_update(*args, order=1, **kwargs)


@pytest.mark.parametrize("num_steps", [2, 5, 20])
@pytest.mark.parametrize("spacing", ["trailing", "log_snr"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_unipc_walks_with_diffusers(prediction, spacing, num_steps):
    schedule = NoiseSchedule("cosine", T)
    theirs = peer(
        FirstOrderCorrector,
        schedule,
        prediction,
        solver_order=2,
        solver_type="bh2",
        final_sigmas_type="zero",
    )
    grid = timestep_grid(schedule, num_steps, spacing)
    theirs.set_timesteps(num_steps)
    theirs.timesteps = torch.tensor(grid[:-1])
    sigma = (1 / schedule.alpha_bar[grid[:-1]] - 1).sqrt()  # theirs are float32
    theirs.sigmas = torch.cat([sigma, torch.zeros(1)])
    x_T = noise(2, 3, 6, 5)
    ours = list(unipc(dummy_denoiser(schedule, prediction), schedule, x_T, grid))
    for (_, s, x_s, _), t in zip(ours, grid[:-1], strict=True):
        x_T = theirs.step(dummy_network(x_T, t), t, x_T).prev_sample
        assert (x_s - x_T).abs().max() <= 1e-6 * x_T.abs().max(), s


@pytest.mark.parametrize("num_steps", [1, 4, 10, 50])
def test_ddim_on_a_flow_walks_with_diffusers_euler_steps(num_steps):
    flow, x_t = NoiseSchedule("flow", T), noise(2, 3, 6, 5)
    grid = timestep_grid(flow, num_steps)

    ours = last(ddim(dummy_denoiser(flow, "flow"), flow, x_t, grid))
    theirs = FlowMatchEulerDiscreteScheduler(T)
    theirs.set_timesteps(sigmas=np.array([(t + 1) / T for t in grid[:-1]]))
    for timestep, t in zip(theirs.timesteps, grid[:-1], strict=True):
        x_t = theirs.step(dummy_network(x_t, t), timestep, x_t).prev_sample
    torch.testing.assert_close(ours, x_t, atol=2e-5, rtol=0)  # their sigmas are float32


def test_float32_ddim_agrees_with_untouched_diffusers(schedule):
    theirs = DDIMScheduler(T, beta_schedule=KINDS[schedule.kind], beta_start=1e-4, beta_end=0.02)
    theirs.set_timesteps(20)
    x_T, grid = noise(2, 3, 6, 5, dtype=torch.float32), timestep_grid(schedule, 20, "leading")
    expected = walk(theirs, x_T, grid[:-1], grid[:-1], use_clipped_model_output=True)
    ours = last(ddim(dummy_denoiser(schedule, "eps"), schedule, x_T, grid, clip_x0=True))
    torch.testing.assert_close(ours, expected[-1][0], rtol=0, atol=1e-4)  # float32 both


# ---------------------------------------------------------------- the road itself


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_take_the_same_arguments(name):
    parameters = list(inspect.signature(SAMPLERS[name].steps).parameters.values())
    assert parameters[:6] == list(inspect.signature(ddim).parameters.values())[:6]
    assert all(own.default is not own.empty for own in parameters[6:])
    assert inspect.isgeneratorfunction(SAMPLERS[name].steps) and SAMPLERS[name].spacing in SPACINGS


def test_what_is_left_open_suits_the_sampler_and_the_model():
    long, short = NoiseSchedule("cosine", 50), NoiseSchedule("cosine", 8)
    steps = {name: resolve(SamplingConfig(name), long, True).num_inference_steps for name in SAMPLERS}
    assert steps == dict.fromkeys(SAMPLERS, 20) | {"ddpm": 50}
    assert resolve(SamplingConfig("ddpm", 7), long, True).num_inference_steps == 7
    few = resolve(SamplingConfig("dpm_solver"), short, True)
    assert (few.num_inference_steps, few.spacing, few.cfg_scale) == (8, "log_snr", CFG_SCALE)
    assert resolve(few, short, True) == few
    assert resolve(SamplingConfig(cfg_scale=0.0), short, True).cfg_scale == 0
    assert resolve(SamplingConfig(), short, False).cfg_scale == 1
    with pytest.raises(ValueError, match="got 9"):
        resolve(SamplingConfig("ddim", 9), short, True)
    for scale, message in ((2.0, "cfg_scale 2 is for"), (0.0, "drawing without any request is for")):
        with pytest.raises(ValueError, match=message):
            resolve(SamplingConfig(cfg_scale=scale), short, False)


@pytest.mark.parametrize("num_steps", [1, 2, 20])
@pytest.mark.parametrize("name", WALKS)
def test_every_timestep_is_visited_in_order_and_the_clean_image_reached(every, name, num_steps):
    seen, grid, x_T = [], timestep_grid(every, num_steps), noise(1, 3, 4, 4)

    def denoiser(x_t, t):
        assert type(t) is int
        seen.append((t, x_t.sum().item()))
        return dummy_denoiser(every, "x0")(x_t, t)

    steps = list(WALKS[name](denoiser, every, x_T, grid, generator=seeded(0)))
    assert list(dict.fromkeys(t for t, _ in seen)) == grid[:-1] and len(set(seen)) == len(seen)
    assert [(step, t) for step, t, _, _ in steps] == list(enumerate(grid[1:]))
    torch.testing.assert_close(steps[-1][2], steps[-1][3], rtol=1e-12, atol=1e-12)  # x_{-1} is x0_hat
    clipped = WALKS[name](denoiser, every, x_T, grid, True, seeded(0))
    assert all(x0_hat.abs().max() <= 1 for _, _, _, x0_hat in clipped)


@pytest.mark.parametrize("name", WALKS)
def test_long_strides_stay_finite_in_float32(every, name):
    """noise_s^2 - sigma^2 nears 0 for a long first stride, and may round to below it."""
    denoiser, x_T = dummy_denoiser(every, "x0"), noise(1, 3, 2, 2, dtype=torch.float32)
    for s in range(0, T - 1, 37):
        sample = last(WALKS[name](denoiser, every, x_T, [T - 1, s, -1], generator=seeded(0)))
        assert sample.dtype == torch.float32 and sample.isfinite().all()  # a NaN on the way stays


@pytest.mark.parametrize(
    ("grid", "eta", "named"),
    [([9, -1], -0.1, "got -0.1"), ([9, -1], 1.1, "got 1.1"), ([-1, 9], 0.5, "inversion .* got 0.5")],
)
def test_wrong_eta_is_refused_in_one_line(schedule, grid, eta, named):
    with pytest.raises(ValueError, match=named) as error:
        last(ddim(dummy_denoiser(schedule, "v"), schedule, noise(1, 3, 4, 4), grid, eta=eta))
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- exact posterior means

FACES = torch.rand(5, 3, 4, 4, generator=seeded(3), dtype=torch.float64) * 2 - 1


def ideal_denoiser(schedule: NoiseSchedule, data: Tensor = FACES, width: float = 0.0):
    """E[x0 | x_t] for x0 an item of data (N, ...), each as likely, plus width times normal noise."""

    def denoiser(x_t, t):
        signal, noise = schedule.signal_and_noise(t, x_t)
        total = noise**2 + (signal * width) ** 2  # variance of x_t about one item
        gaps = x_t.flatten(1)[:, None] - signal * data.flatten(1)  # (B, N, D)
        weight = torch.softmax(-gaps.pow(2).sum(-1) / (2 * total), dim=1)  # (B, N)
        item = (weight @ data.flatten(1)).view_as(x_t)
        x0_hat = item + signal * width**2 / total * (x_t - signal * item)
        return x0_hat, (x_t - signal * x0_hat) / noise

    return denoiser


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", WALKS)
def test_ideal_denoiser_gives_the_dataset_back(every, name, spacing):
    x_T, grid = noise(100, 3, 4, 4), timestep_grid(every, 20, spacing)
    samples = last(WALKS[name](ideal_denoiser(every), every, x_T, grid, generator=seeded(1)))
    distance, nearest = (samples[:, None] - FACES).flatten(2).abs().amax(-1).min(1)
    assert distance.max() < 1e-6
    assert torch.bincount(nearest, minlength=len(FACES)).min() >= 8  # 20 each in the mean, s.d. 4


def test_ddim_with_eta_1_is_ddpm(every):
    denoiser, grid = ideal_denoiser(every, width=0.3), timestep_grid(every, 20)
    expected = ddpm(denoiser, every, noise(4, 3, 4, 4), grid, generator=seeded(1))
    ours = ddim(denoiser, every, noise(4, 3, 4, 4), grid, generator=seeded(1), eta=1.0)
    assert_same_steps(states(ours), states(expected), 1e-7)


def test_inverted_faces_come_back_better_with_more_steps(schedule):
    """A first-order method there and back: twice the steps, half the error."""
    x0 = FACES + 0.3 * noise(*FACES.shape, seed=9)
    denoiser, errors = ideal_denoiser(schedule, width=0.3), []
    for num_steps in (25, 50, 100, 200):
        grid = timestep_grid(schedule, num_steps)
        x_T = last(ddim(denoiser, schedule, x0, grid[::-1]))
        assert 0.8 < x_T.std() < 1.2
        errors.append((last(ddim(denoiser, schedule, x_T, grid)) - x0).pow(2).mean().sqrt().item())
    assert all(0.4 < after / before < 0.65 for before, after in pairwise(errors))
    assert errors[-1] < 0.02
    grid = timestep_grid(schedule, 20)  # and an item of the dataset itself comes back as it was
    x_T = last(ddim(ideal_denoiser(schedule), schedule, FACES, grid[::-1]))
    torch.testing.assert_close(last(ddim(ideal_denoiser(schedule), schedule, x_T, grid)), FACES)


# Gaussian data N(MU, WIDTH^2) is the same with a single item.
MU, WIDTH, QUANTILE = 0.6, 0.5, noise(300, 1, 1, 1)


def probability_flow(schedule: NoiseSchedule, t: int) -> Tensor:
    """Samples of x_t that keep their quantile: x_t = signal mu + sqrt(signal^2 s^2 + noise^2) q."""
    signal, sigma = schedule.signal_and_noise(t, QUANTILE)
    return signal * MU + (signal**2 * WIDTH**2 + sigma**2).sqrt() * QUANTILE


def test_ddim_tends_to_the_probability_flow(schedule):
    denoiser = ideal_denoiser(schedule, torch.full((1, 1), MU).double(), WIDTH)
    x_T, x0 = (probability_flow(schedule, t) for t in (T - 1, -1))
    for start, end, order in ((x_T, x0, 1), (x0, x_T, -1)):
        errors = []
        for num_steps in (250, 500, T):
            steps = ddim(denoiser, schedule, start, timestep_grid(schedule, num_steps)[::order])
            errors.append((last(steps) - end).abs().max().item())
        assert all(0.4 < after / before < 0.6 for before, after in pairwise(errors))
        assert errors[-1] < 0.02


def test_dpm_solver_is_of_second_order(schedule):
    """Against the probability flow's closed form, down to a noise level short of the first-order last
    step: halving the stride leaves about a quarter of the error, and less than DDIM has. UniPC's error
    is smaller yet, and its sign changes on the way, so it is held against the square of the stride."""
    denoiser = ideal_denoiser(schedule, torch.full((1, 1), MU).double(), WIDTH)
    start, end = (probability_flow(schedule, t) for t in (900, 100))
    errors = {}
    for sampler in (unipc, dpm_solver, ddim):
        for num_steps in (20, 40, 80):
            grid = [round(900 - i * 800 / num_steps) for i in range(num_steps + 1)]
            x_s = last(sampler(denoiser, schedule, start, grid))
            errors[sampler, num_steps] = (x_s - end).abs().max().item()
            assert errors[unipc, num_steps] < 0.004 * (20 / num_steps) ** 2
    for num_steps in (20, 40):
        assert errors[dpm_solver, 2 * num_steps] < 0.35 * errors[dpm_solver, num_steps]
        assert errors[dpm_solver, num_steps] < 0.5 * errors[ddim, num_steps]


@pytest.mark.parametrize("name", WALKS)
def test_each_sample_may_have_its_own_noise_and_repeats(every, name):
    """With one generator a sample, sample 2 of 4 is sample 0 of a batch that starts there."""
    denoiser, grid, x_T = dummy_denoiser(every, "x0"), timestep_grid(every, 5), noise(4, 3, 4, 4)
    whole, again, part = (
        last(WALKS[name](denoiser, every, x_T[i:], grid, generator=sample_generators(7, range(i, 4))))
        for i in (0, 0, 2)
    )
    assert whole.equal(again)
    torch.testing.assert_close(whole[2:], part)


@pytest.mark.parametrize("name", WALKS)
def test_samples_of_gaussian_data_have_its_moments(every, name):
    denoiser = ideal_denoiser(every, torch.full((1, 1), MU).double(), WIDTH)
    x_T, grid = noise(6_000, 1, 1, 1), timestep_grid(every, 500)
    samples = last(WALKS[name](denoiser, every, x_T, grid, generator=seeded(1)))
    # Four standard errors (s / sqrt(n), s / sqrt(2 n)), and 1.6 % of s for the finite steps.
    assert samples.mean().item() == pytest.approx(MU, abs=WIDTH * 4 / 6_000**0.5)
    assert samples.std().item() == pytest.approx(WIDTH, rel=4 / 12_000**0.5 + 0.016)


def test_sample_1_of_one_seed_is_not_sample_0_of_the_next():
    first, second = (
        torch.randn(4, generator=sample_generators(*each)[0]) for each in ((0, [1]), (1, [0]))
    )
    assert not torch.equal(first, second)
