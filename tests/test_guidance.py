"""Classifier-free guidance against the score it stands for, and its algebra."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import noise
from torch import Tensor
from torch.distributions import Normal

from config import EditConfig, SamplingConfig
from editing import Steering, towards, weighed_with_input
from guidance import GUIDANCE, Conditions, classifier_free, classifier_guided
from noise_schedule import NoiseSchedule
from samplers import ddim, last, timestep_grid

T = 1000
SCALES = [-1.0, 0.0, 0.5, 1.0, 2.0, 7.5]


class PairDenoiser:
    """A nonlinear denoiser that answers the first and the second half of its batch differently, and
    records what it was asked."""

    def __init__(self, schedule: NoiseSchedule):
        self.schedule = schedule
        self.asked: list[tuple[tuple[int, ...], int]] = []

    def branch(self, x_t: Tensor, t: int, conditional: bool) -> tuple[Tensor, Tensor]:
        output = torch.cos(2 * x_t) + 1 if conditional else torch.tanh(x_t.roll(1, -1)) - 0.3
        return self.schedule.to_x0_eps("v", output, x_t, t)

    def __call__(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        self.asked.append((tuple(x_t.shape), t))
        halves = [self.branch(x, t, c) for x, c in zip(x_t.chunk(2), (False, True), strict=True)]
        x0_hat, eps_hat = zip(*halves, strict=True)
        return torch.cat(x0_hat), torch.cat(eps_hat)


@pytest.mark.parametrize("t", [0, 400, 999])
@pytest.mark.parametrize("cfg_scale", SCALES)
def test_guidance_extrapolates_from_base_to_conditional(schedule, cfg_scale, t):
    x_t, denoiser = noise(3, 3, 4, 5), PairDenoiser(schedule)
    guided = classifier_free(denoiser, cfg_scale)(x_t, t)
    assert denoiser.asked == [((6, 3, 4, 5), t)]  # both branches in one pass
    base, conditional = denoiser.branch(x_t, t, False), denoiser.branch(x_t, t, True)
    for ours, b, c in zip(guided, base, conditional, strict=True):
        assert ours.shape == x_t.shape
        torch.testing.assert_close(ours, (1 - cfg_scale) * b + cfg_scale * c, rtol=1e-10, atol=1e-9)
    x0_hat, eps_hat = guided
    torch.testing.assert_close(schedule.q_sample(x0_hat, t, eps_hat), x_t, rtol=0, atol=1e-9)


def test_a_sampler_takes_a_guided_denoiser_and_asks_once_a_step(schedule):
    denoiser, grid = PairDenoiser(schedule), timestep_grid(schedule, 10)
    x_T = noise(2, 3, 4, 5)
    guided = last(ddim(classifier_free(denoiser, 1.0), schedule, x_T, grid))
    assert denoiser.asked == [((4, 3, 4, 5), t) for t in grid[:-1]]
    alone = last(ddim(lambda x_t, t: denoiser.branch(x_t, t, True), schedule, x_T, grid))
    torch.testing.assert_close(guided, alone, rtol=1e-8, atol=1e-8)  # scale 1 is no guidance


# ---------------------------------------------------------------- Gaussian classes

MEANS, STD = torch.tensor([-0.6, 0.6]).double(), 0.3  # of two classes, each as likely


class TwoGaussians:
    """Data of two classes, N(MEANS[y], STD^2): every score has a closed form."""

    def __init__(self, schedule: NoiseSchedule):
        self.schedule = schedule

    def log_densities(self, x_t: Tensor, t: int) -> Tensor:
        """(2, *x_t.shape): log p_t(x_t | y)."""
        signal, spread = self.schedule.signal_and_noise(t, x_t)
        scale = (signal**2 * STD**2 + spread**2).sqrt()
        return torch.stack([Normal(signal * mean, scale).log_prob(x_t) for mean in MEANS])

    def log_prob(self, x_t: Tensor, t: int) -> Tensor:
        """log p(y = 1 | x_t), Bayes' rule, summed over the pixels."""
        return self.log_densities(x_t, t).log_softmax(0)[1].flatten(1).sum(1)

    def of_class(self, y: int, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """x0_hat and eps_hat of one class alone: the posterior mean of a Gaussian."""
        signal, spread = self.schedule.signal_and_noise(t, x_t)
        x0_hat = (signal * STD**2 * x_t + spread**2 * MEANS[y]) / (signal**2 * STD**2 + spread**2)
        return x0_hat, (x_t - signal * x0_hat) / spread

    def denoiser(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Those of the mixture."""
        shares = self.log_densities(x_t, t).softmax(0)
        each = [self.of_class(y, x_t, t) for y in (0, 1)]
        return tuple(shares[0] * first + shares[1] * second for first, second in zip(*each, strict=True))

    def pair(self, base) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
        """A denoiser whose batch is that of a base, and then that of the class y = 1."""

        def denoise(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
            first, second = x_t.chunk(2)
            halves = base(first, t), self.of_class(1, second, t)
            return tuple(map(torch.cat, zip(*halves, strict=True)))

        return denoise


@pytest.mark.parametrize("t", [5, 200, 600, 950])
@pytest.mark.parametrize("cfg_scale", SCALES)
def test_guided_score_is_that_of_the_sharpened_density(schedule, cfg_scale, t):
    """eps_hat = -noise d/dx log(p(x | y)^w p(x)^(1 - w)), differentiated by autograd."""
    data, x_t = TwoGaussians(schedule), noise(50, 1, 1, 1).requires_grad_()
    logs = data.log_densities(x_t, t)
    [score] = torch.autograd.grad((cfg_scale * logs[1] + (1 - cfg_scale) * logs.logsumexp(0)).sum(), x_t)
    signal, spread = schedule.signal_and_noise(t, x_t)
    x0_hat, eps_hat = classifier_free(data.pair(data.denoiser), cfg_scale)(x_t.detach(), t)
    torch.testing.assert_close(eps_hat, -spread * score, rtol=1e-9, atol=1e-9)
    tweedie = (x_t.detach() + spread**2 * score) / signal
    torch.testing.assert_close(x0_hat, tweedie, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0, 3.0])
def test_guided_samples_centre_where_the_closed_form_says(schedule, cfg_scale):
    """Between two Gaussians of one width the sharpened density is a Gaussian about base + w (asked -
    base), the same quantile of which DDIM reaches from x_T."""
    data, quantile = TwoGaussians(schedule), noise(20, 1, 1, 1)
    guided = classifier_free(data.pair(partial(data.of_class, 0)), cfg_scale)
    mean = MEANS[0] + cfg_scale * (MEANS[1] - MEANS[0])
    signal, spread = schedule.signal_and_noise(T - 1, quantile)
    x_T = signal * mean + (signal**2 * STD**2 + spread**2).sqrt() * quantile
    samples = last(ddim(guided, schedule, x_T, timestep_grid(schedule, T)))
    torch.testing.assert_close(samples, mean + STD * quantile, rtol=0, atol=0.02)


@pytest.mark.parametrize("t", [0, 30, 400, 999])
def test_weighing_is_the_posterior_mean_of_two_measurements(schedule, t):
    x_t, denoiser = noise(2, 3, 4, 5), PairDenoiser(schedule)
    x0_hat, eps_hat = weighed_with_input(denoiser, schedule, 0.2)(x_t, t)
    bar = float(schedule.alpha_bar[t])
    measured, precision = x_t / bar**0.5, bar / (1 - bar)
    expected = (denoiser(x_t, t)[0] / 0.2**2 + measured * precision) / (1 / 0.2**2 + precision)
    torch.testing.assert_close(x0_hat, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(bar**0.5 * x0_hat + (1 - bar) ** 0.5 * eps_hat, x_t, rtol=1e-9, atol=1e-9)


def test_weighing_keeps_inversion_sane_where_the_network_errs(schedule):
    """A network that is wrong by 0.1 about a clean image: divided by the noise near t = 0, that error is
    many times the noise itself, and inversion carries it into x_T."""
    x0 = noise(1, 3, 8, 8, seed=1).clamp(-1, 1)

    def wrong(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        x0_hat = x0 + 0.1 * torch.sin(20 * x_t)
        return x0_hat, schedule.eps_from_x0(x0_hat, x_t, t)

    grid = timestep_grid(schedule, 50)[::-1]
    plain = last(ddim(wrong, schedule, x0, grid))
    weighed = last(ddim(weighed_with_input(wrong, schedule, 0.1), schedule, x0, grid))
    assert weighed.std() < 1.5 < 2 < plain.std()


# ------------------------------------------------------------------ classifier guidance


@pytest.mark.parametrize("t", [0, 100, 500, 900])
def test_classifier_guidance_of_scale_1_gives_the_class_s_own_mean(schedule, t):
    data, x_t = TwoGaussians(schedule), noise(4, 3, 2, 2)
    x0_hat, eps_hat = classifier_guided(data.denoiser, schedule, data.log_prob, 1.0)(x_t, t)
    torch.testing.assert_close((x0_hat, eps_hat), data.of_class(1, x_t, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("classifier_scale", [0.5, 3.0])
def test_classifier_guidance_is_linear_in_its_scale(schedule, classifier_scale):
    data, x_t = TwoGaussians(schedule), noise(4, 3, 2, 2)
    eps, one = (
        classifier_guided(data.denoiser, schedule, data.log_prob, scale)(x_t, 400)[1]
        for scale in (0.0, 1.0)
    )
    guided = classifier_guided(data.denoiser, schedule, data.log_prob, classifier_scale)(x_t, 400)[1]
    torch.testing.assert_close(guided, eps + classifier_scale * (one - eps), rtol=1e-9, atol=1e-9)


def test_classifier_guidance_of_scale_0_is_the_denoiser_itself(schedule):
    data = TwoGaussians(schedule)
    assert classifier_guided(data.denoiser, schedule, data.log_prob, 0.0) == data.denoiser


def test_sampling_under_classifier_guidance_ends_in_the_class(schedule):
    data = TwoGaussians(schedule)
    denoise = classifier_guided(data.denoiser, schedule, data.log_prob, 1.0)
    with torch.no_grad():  # as samplers run
        x0 = last(ddim(denoise, schedule, noise(2000, 1, 1, 1), timestep_grid(schedule, 200)))
    assert abs(float(x0.mean() - MEANS[1])) < 0.03
    assert abs(float(x0.std()) - STD) < 0.03


# ------------------------------------------------------------------ the kinds of guidance


def conditions(schedule, guide=None) -> Conditions:
    """A network that answers rows of zeros differently, and a guide of its first attribute. Where it is
    perturbed, its answer is twice as large."""
    pair = PairDenoiser(schedule)

    def denoiser(rows: Tensor, perturbed: Tensor | None = None):
        def denoise(x_t: Tensor, t: int):
            halves = [
                pair.branch(x, t, bool(row.any())) for x, row in zip(x_t.split(1), rows, strict=True)
            ]
            factor = 1 if perturbed is None else (1 + perturbed.to(x_t)).view(-1, 1, 1, 1)
            return tuple(factor * torch.cat(half) for half in zip(*halves, strict=True))

        return denoise

    rows = torch.tensor([[1.0, 0.0]])
    return Conditions(denoiser, rows, schedule, guide, None if guide is None else rows[:, :1])


def test_each_kind_of_guidance_is_what_its_name_says(schedule, t=400):
    class Guide(TwoGaussians):
        def log_prob(self, x_t, t, attributes):
            return attributes[:, 0] * super().log_prob(x_t, t)

    guide, x_t = Guide(schedule), noise(1, 3, 2, 2)
    pair = PairDenoiser(schedule)
    base, conditional = (lambda x, t, c=c: pair.branch(x, t, c) for c in (False, True))

    def log_prob(x, t):
        return TwoGaussians(schedule).log_prob(x, t)

    sampling = SamplingConfig(cfg_scale=2.0, guide_scale=1.5, perturb=False)
    amplified = lambda x, t: tuple(  # noqa: E731
        b + 2 * (c - b) for b, c in zip(base(x, t), conditional(x, t), strict=True)
    )
    expected = {
        "free": amplified,
        "guide": classifier_guided(base, schedule, log_prob, 1.5),
        "both": classifier_guided(amplified, schedule, log_prob, 1.5),
    }
    for name, kind in GUIDANCE.items():
        guided = kind.wrap(conditions(schedule, guide if kind.guide else None), sampling)
        torch.testing.assert_close(guided(x_t, t), expected[name](x_t, t))
    with pytest.raises(ValueError, match=r"guide_scale 1\.5 needs a guide"):
        GUIDANCE["both"].wrap(conditions(schedule), sampling)


def test_only_the_unconditional_prediction_is_perturbed(schedule, t=400):
    """In guidance. At scales 0 and 1, and where nothing is asked for, nothing is."""
    x_t, pair, both_rows = noise(1, 3, 2, 2), PairDenoiser(schedule), conditions(schedule)
    (base, _), (conditional, _) = (pair.branch(x_t, t, c) for c in (False, True))
    nothing = replace(both_rows, rows=torch.zeros(1, 2))
    for given, scale, expected in (
        (both_rows, 1.5, 2 * base + 1.5 * (conditional - 2 * base)),
        (both_rows, 1.0, conditional),
        (both_rows, 0.0, base),
        (nothing, 1.5, base),
    ):
        sampling = SamplingConfig(cfg_scale=scale)
        torch.testing.assert_close(GUIDANCE["free"].wrap(given, sampling)(x_t, t)[0], expected)


class MeanGuide:
    """A guide of two attributes: one is there where the mean of x_t is above 0, the other above 3."""

    def log_odds(self, x_t: Tensor, t: int) -> Tensor:
        mean = x_t.mean((1, 2, 3))
        return torch.stack([5 * mean, mean - 3], dim=1)


def edit_guidance(schedule, t, x_t, source, strength=1.0, **options):
    """x0_hat of an edit that wants the first attribute and holds the second."""
    guide, editing = MeanGuide(), EditConfig(cfg_scale=3.0, margin=4.0, **options)
    base, target, wanted = torch.tensor([[[-1.0, 1.0]], [[1.0, 1.0]], [[1.0, 0.0]]])
    odds, pair = {t: guide.log_odds(source, t)}, PairDenoiser(schedule)
    steering = Steering(guide, [0, 1], wanted, odds, torch.full((2,), editing.hold), editing)
    return towards(lambda rows: pair, base, target, schedule, steering, strength)(x_t, t)[0]


def test_the_guidance_of_an_edit_is_classifier_free_until_the_guide_is_content(schedule, t=400):
    """At the aim it ends; between, it fades. Of a scale of 3, 3 (1/4 + 3/4 0.6) is left at t = 0.4 T."""
    branch, alone = PairDenoiser(schedule).branch, {"guide_scale": 0.0, "hold": 0.0}
    for odds, left in ((-2.0, 1.0), (3.0, 0.5), (4.5, 0.0)):
        x_t = noise(1, 3, 8, 8)
        x_t += odds / 5 - x_t.mean()
        base, asked = branch(x_t, t, False)[0], branch(x_t, t, True)[0]
        found = edit_guidance(schedule, t, x_t, x_t - 1, **alone)
        torch.testing.assert_close(found, base + left * 2.1 * (asked - base))


def test_the_aim_of_an_edit_grows_with_its_strength(schedule, t=400):
    """At strength 0 it is what the source has, so nothing is left to do."""
    x_t, alone = noise(1, 3, 8, 8) - 1, {"guide_scale": 0.0, "hold": 0.0}
    base = PairDenoiser(schedule).branch(x_t, t, False)[0]
    moved = [
        float((edit_guidance(schedule, t, x_t, x_t, strength, **alone) - base).abs().max())
        for strength in (0.0, 0.1, 0.2, 0.3, 1.0)
    ]
    assert moved[0] < 1e-12 and moved[1] > 0 and moved == sorted(moved)


def test_each_of_several_wanted_attributes_fades_when_it_is_there(schedule, t=400):
    """The target row loses the one that is there. Two that are missing share what the scale grew by."""
    base, wanted = torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2)
    editing = EditConfig(cfg_scale=3.0, margin=4.0, guide_scale=0.0, hold=0.0)
    guide, pair, rows = MeanGuide(), PairDenoiser(schedule), []

    def under(asked: Tensor):
        rows.append(asked)
        return pair

    for mean, share, scale in ((2.0, 0.0, 2.1), (-2.0, 1.0, 0.75 + 1.35 / math.sqrt(2))):
        x_t = noise(1, 3, 8, 8)
        x_t += mean - x_t.mean()
        odds, firmness = {t: guide.log_odds(x_t, t)}, torch.zeros(2)
        steering = Steering(guide, [0, 1], wanted, odds, firmness, editing)
        found, _ = towards(under, base, -base, schedule, steering, 1.0)(x_t, t)
        torch.testing.assert_close(rows[-1], torch.tensor([[-1.0, -1.0], [2 * share - 1, 1.0]]))
        from_base, from_target = (pair.branch(x_t, t, which)[0] for which in (False, True))
        torch.testing.assert_close(found, from_base + scale * (from_target - from_base))


def test_a_guide_pushes_to_what_is_wanted_and_holds_the_rest(schedule, t=400):
    """Against the gradients by hand: of log sigmoid(5 m), and of -(sigmoid(m - 3) - its source)^2."""
    x_t = noise(1, 3, 8, 8)
    mean, size = x_t.mean(), x_t[0].numel()
    signal, spread = schedule.signal_and_noise(t, x_t)
    plain = edit_guidance(schedule, t, x_t, x_t - 1, guide_scale=0.0, hold=0.0)
    pushed = edit_guidance(schedule, t, x_t, x_t - 1, guide_scale=2.0, hold=0.0)
    push = spread**2 / signal * 2 * torch.sigmoid(-5 * mean) * 5 / size
    torch.testing.assert_close(pushed - plain, push.expand_as(x_t))
    held = edit_guidance(schedule, t, x_t, x_t - 1, guide_scale=0.0, hold=7.0)
    now, was = torch.sigmoid(mean - 3), torch.sigmoid(mean - 4)
    pull = -(spread**2) / signal * 7 * 2 * (now - was) * now * (1 - now) / size
    torch.testing.assert_close(held - plain, pull.expand_as(x_t))
