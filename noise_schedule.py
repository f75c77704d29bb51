"""Noise schedules, what a network may predict, and how its error is weighted.

A noisy image is ``x_t = signal_t x0 + noise_t eps`` for t = 0 ... T - 1, with eps standard normal.
``t = -1`` is the clean image (signal 1, noise 0), so a sampling grid can end there. On
variance-preserving schedules signal_t^2 is alpha_bar_t of Ho et al. 2020 (arXiv:2006.11239), and
noise_t^2 is 1 - alpha_bar_t. Rectified flow follows a straight line from the image to the noise.

A new entry of ``SCHEDULES``, ``PREDICTIONS`` or ``LOSS_WEIGHTINGS`` needs its name in ``config``, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from layers import widest

# (x_t, t) -> (x0_hat, eps_hat), t an int. Samplers and guidance see a network only in this form.
Denoiser = Callable[[Tensor, int], tuple[Tensor, Tensor]]


# -------------------------------------------------------------------- schedules


def linear(num_timesteps: int) -> tuple[Tensor, Tensor]:
    """beta_t rises linearly from 1e-4 to 0.02, scaled by 1000 / T. So the end is equally noisy for every
    T (Ho et al. 2020, section 4)."""
    scale = 1000 / num_timesteps
    beta = torch.linspace(1e-4 * scale, 0.02 * scale, num_timesteps, dtype=torch.float64)
    return variance_preserving(beta.clamp(max=0.999))


def cosine(num_timesteps: int, offset: float = 0.008) -> tuple[Tensor, Tensor]:
    """beta_t = min(0.999, 1 - f(t + 1) / f(t)), f(t) = cos^2((t / T + offset) / (1 + offset) pi / 2)
    (Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17)."""
    t = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    f = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return variance_preserving((1 - f[1:] / f[:-1]).clamp(max=0.999))


def variance_preserving(beta: Tensor) -> tuple[Tensor, Tensor]:
    """signal^2 = alpha_bar_t = prod_{i <= t} (1 - beta_i), noise^2 = 1 - alpha_bar_t."""
    alpha_bar = torch.cumprod(1 - beta, dim=0)
    return alpha_bar, 1 - alpha_bar


def flow(num_timesteps: int) -> tuple[Tensor, Tensor]:
    """signal = 1 - (t + 1) / T, noise = (t + 1) / T: a straight line that ends in pure noise (Liu et al.
    2022, arXiv:2209.03003). Use it with prediction ``flow``."""
    noise = torch.arange(1, num_timesteps + 1, dtype=torch.float64) / num_timesteps
    return (1 - noise) ** 2, noise**2


# T -> (signal^2, noise^2), each float64 (T,)
SCHEDULES: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "linear": linear,
    "cosine": cosine,
    "flow": flow,
}


# -------------------------------------------------------------------- predictions


@dataclass(frozen=True)
class Prediction:
    """What a network of one kind outputs. Image tensors (B, C, H, W); signal and noise broadcast.

    target: (x0, eps, signal, noise) -> what it should output.
    x0_eps: the inverse, (output, x_t, signal, noise) -> (x0_hat, eps_hat) with
        x_t = signal x0_hat + noise eps_hat.
    x0_error: (signal^2, noise^2) -> squared error of x0_hat / squared error of the output.
    """

    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    x0_eps: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    x0_error: Callable[[Tensor, Tensor], Tensor]


PREDICTIONS: dict[str, Prediction] = {
    "eps": Prediction(
        target=lambda x0, eps, signal, noise: eps,
        x0_eps=lambda out, x_t, signal, noise: ((x_t - noise * out) / signal, out),
        x0_error=lambda signal2, noise2: noise2 / signal2,
    ),
    "x0": Prediction(
        target=lambda x0, eps, signal, noise: x0,
        x0_eps=lambda out, x_t, signal, noise: (out, (x_t - signal * out) / noise),
        x0_error=lambda signal2, noise2: torch.ones_like(signal2),
    ),
    # v = signal eps - noise x0, for variance-preserving schedules (Salimans & Ho 2022, arXiv:2202.00512)
    "v": Prediction(
        target=lambda x0, eps, signal, noise: signal * eps - noise * x0,
        x0_eps=lambda out, x_t, signal, noise: (signal * x_t - noise * out, noise * x_t + signal * out),
        x0_error=lambda signal2, noise2: noise2,
    ),
    # The velocity eps - x0 of rectified flow (Liu et al. 2022, arXiv:2209.03003), on any schedule
    "flow": Prediction(
        target=lambda x0, eps, signal, noise: eps - x0,
        x0_eps=lambda out, x_t, signal, noise: (
            (x_t - noise * out) / (signal + noise),
            (x_t + signal * out) / (signal + noise),
        ),
        x0_error=lambda signal2, noise2: noise2 / (signal2.sqrt() + noise2.sqrt()) ** 2,
    ),
}


# -------------------------------------------------------------------- loss weightings

# (snr, Prediction.x0_error, gamma) -> weight of each sample's mean squared error. All but gamma are
# (B,), in the widest floating point of their device.
LOSS_WEIGHTINGS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "none": lambda snr, x0_error, gamma: torch.ones_like(snr),
    # min(snr, gamma) on the error of x0 (Hang et al. 2023, arXiv:2303.09556)
    "min_snr": lambda snr, x0_error, gamma: snr.clamp(max=gamma) * x0_error,
    # min(snr + 1, gamma) on the error of x0: the loss of v, but no more than gamma where there is little
    # noise
    "clamped_v": lambda snr, x0_error, gamma: (snr + 1).clamp(max=gamma) * x0_error,
}


# -------------------------------------------------------------------- timesteps


def stratified_timesteps(number: int, num_timesteps: int, device: torch.device) -> Tensor:
    """Timesteps (number,) in random order, one from each of ``number`` equal parts of 0 ... T - 1. Each
    is uniform in 0 ... T - 1, but the loss varies less from batch to batch (Kingma et al. 2021,
    arXiv:2107.00630, appendix I.1)."""
    part = torch.randperm(number, device=device) + torch.rand(number, device=device)
    return (part * (num_timesteps / number)).long().clamp(max=num_timesteps - 1)


class NoiseSchedule:
    """signal_t^2 and noise_t^2 of a schedule in float64, and what is computed from them.

    ``zero_terminal_snr`` shifts and scales the signal of a variance-preserving schedule so that x_{T-1}
    is pure noise (Lin et al. 2023, arXiv:2305.08891, algorithm 1). A network must not predict eps then.

    Every method takes ``t`` as an int or as an integer tensor (B,), in -1 ... T - 1, and image tensors
    (B, C, H, W) of any float dtype; results have the image's dtype and device.

    Raises:
        ValueError: for an unknown schedule or fewer than two timesteps.
    """

    def __init__(self, kind: str = "cosine", num_timesteps: int = 1000, zero_terminal_snr: bool = False):
        if kind not in SCHEDULES:
            raise ValueError(f"unknown noise schedule {kind!r}: choose one of {', '.join(SCHEDULES)}")
        if num_timesteps < 2:
            raise ValueError(f"a noise schedule needs at least 2 timesteps, got {num_timesteps}")
        self.kind = kind
        self.num_timesteps = num_timesteps
        self.alpha_bar, noise2 = SCHEDULES[kind](num_timesteps)  # alpha_bar is signal^2
        if zero_terminal_snr:
            signal = self.alpha_bar.sqrt()
            signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
            self.alpha_bar = signal**2
            noise2 = 1 - self.alpha_bar
        # The first entry is for t = -1. Each device gets its own copy, so indexing never waits.
        one, zero = torch.ones(1).double(), torch.zeros(1).double()
        table = torch.stack([torch.cat([one, self.alpha_bar]), torch.cat([zero, noise2])])
        self._tables = {"cpu": table}  # (2, T + 1)

    @property
    def beta(self) -> Tensor:
        """1 - alpha_bar_t / alpha_bar_{t-1}, float64 (T,), for variance-preserving schedules."""
        signal2 = self._tables["cpu"][0]
        return 1 - signal2[1:] / signal2[:-1]

    def squares_at(self, t: int | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(signal_t^2, noise_t^2) as ``widest``, ready to broadcast over ``like``: scalars for an int t,
        else (B, 1, 1, 1) on the device of ``like``."""
        if isinstance(t, int):
            signal2, noise2 = self._tables["cpu"][:, t + 1]
            return signal2, noise2
        device = str(like.device)
        if device not in self._tables:
            self._tables[device] = self._tables["cpu"].to(widest(like.device)).to(like.device)
        signal2, noise2 = self._tables[device][:, t + 1].reshape(2, -1, *[1] * (like.ndim - 1))
        return signal2, noise2

    def signal_and_noise(self, t: int | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(signal_t, noise_t) in the dtype of ``like``, ready to multiply it."""
        signal2, noise2 = self.squares_at(t, like)
        return signal2.sqrt().to(like.dtype), noise2.sqrt().to(like.dtype)

    def q_sample(self, x0: Tensor, t: int | Tensor, eps: Tensor) -> Tensor:
        """x_t = signal_t x0 + noise_t eps (Ho et al. 2020, equation 4)."""
        signal, noise = self.signal_and_noise(t, x0)
        return signal * x0 + noise * eps

    def draw_noisy(
        self, x0: Tensor, t: Tensor | None = None, eps: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, t (B,) and eps for a training step on x0 (B, C, H, W). By default t is stratified and eps
        is standard normal."""
        if t is None:
            t = stratified_timesteps(len(x0), self.num_timesteps, x0.device)
        if eps is None:
            eps = torch.randn_like(x0)
        return self.q_sample(x0, t, eps), t, eps

    def q_posterior(self, x0: Tensor, x_t: Tensor, t: int, s: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_s | x_t, x0) for any s < t, by Bayes' rule on two Gaussians
        (Ho et al. 2020, equations 6 and 7, for the stride from t to s)."""
        (signal2_t, noise2_t), (signal2_s, noise2_s) = (self.squares_at(u, x_t) for u in (t, s))
        alpha = signal2_t / signal2_s
        weight_x0 = signal2_s.sqrt() * (noise2_t - alpha * noise2_s) / noise2_t
        weight_xt = alpha.sqrt() * noise2_s / noise2_t
        mean = weight_x0.to(x_t.dtype) * x0 + weight_xt.to(x_t.dtype) * x_t
        return mean, self.posterior_variance(t, s).to(x_t.dtype)

    def posterior_variance(self, t: int, s: int) -> Tensor:
        """Variance of q(x_s | x_t, x0) for any s < t, a float64 scalar: noise_s^2 / noise_t^2 *
        (noise_t^2 - alpha noise_s^2), alpha = signal_t^2 / signal_s^2. For s = t - 1 it is Ho et al.
        2020's beta_tilde_t, equation 7."""
        signal2, noise2 = self._tables["cpu"][:, [t + 1, s + 1]]
        alpha = signal2[0] / signal2[1]
        return noise2[1] / noise2[0] * (noise2[0] - alpha * noise2[1])

    def target(self, prediction: str, x0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        """What a network of this prediction type should output."""
        return PREDICTIONS[prediction].target(x0, eps, *self.signal_and_noise(t, x0))

    def to_x0_eps(
        self, prediction: str, output: Tensor, x_t: Tensor, t: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        """(x0_hat, eps_hat) from a network's output: the inverse of ``target`` given x_t. t >= 0."""
        return PREDICTIONS[prediction].x0_eps(output, x_t, *self.signal_and_noise(t, x_t))

    def eps_from_x0(self, x0: Tensor, x_t: Tensor, t: int | Tensor) -> Tensor:
        """eps = (x_t - signal_t x0) / noise_t, for a clipped or guided x0."""
        return self.to_x0_eps("x0", x0, x_t, t)[1]

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio signal_t^2 / noise_t^2, as ``widest`` (B,)."""
        signal2, noise2 = self.squares_at(t, t)
        return signal2 / noise2

    def half_log_snr(self, t: int | Tensor) -> Tensor:
        """lambda_t = log(signal_t / noise_t), float64 in the shape of t (on the CPU). Infinite for
        t = -1, and very low (about -23) where there is no signal."""
        signal2, noise2 = self._tables["cpu"][:, t + 1]
        return 0.5 * (signal2.clamp(min=1e-20).log() - noise2.log())

    def loss_weight(self, weighting: str, prediction: str, t: Tensor, gamma: float) -> Tensor:
        """Weight of each sample's mean squared error, float32 (B,), by one of ``LOSS_WEIGHTINGS``."""
        x0_error = PREDICTIONS[prediction].x0_error(*self.squares_at(t, t))
        return LOSS_WEIGHTINGS[weighting](self.snr(t), x0_error, gamma).float()
