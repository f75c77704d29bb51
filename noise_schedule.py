"""Noise schedules: alpha_bar and everything derived from it.

Notation follows Ho et al. 2020 (arXiv:2006.11239): a noisy image is
``x_t = sqrt(alpha_bar_t) * x0 + sqrt(1 - alpha_bar_t) * eps`` for t = 0 ... T-1, with eps standard
normal. ``t = -1`` stands for the clean image (alpha_bar = 1), so a sampling grid can end in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# (x_t, t) -> (x0_hat, eps_hat), t an int: all that samplers and guidance know of a network.
Denoiser = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def linear_beta(num_timesteps: int) -> Tensor:
    """beta_t rising linearly from 1e-4 to 0.02, float64 (T,), scaled by 1000 / T so that the end is
    equally noisy for every T (Ho et al. 2020, section 4)."""
    scale = 1000 / num_timesteps
    beta = torch.linspace(1e-4 * scale, 0.02 * scale, num_timesteps, dtype=torch.float64)
    return beta.clamp(max=0.999)


def cosine_beta(num_timesteps: int, offset: float = 0.008) -> Tensor:
    """beta_t = min(0.999, 1 - f(t+1) / f(t)), f(t) = cos^2((t/T + offset) / (1 + offset) * pi/2),
    float64 (T,) (Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17)."""
    t = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    f = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


def _require(what: str, value: str, last: str) -> None:
    if value != last:
        raise ValueError(f"unknown {what} {value!r}")


BETAS = {"linear": linear_beta, "cosine": cosine_beta}


def stratified_timesteps(number: int, num_timesteps: int, device: torch.device) -> Tensor:
    """Timesteps (number,), each uniform in 0 ... T - 1, one from each of ``number`` equal parts of that
    range, in random order: the loss varies less from batch to batch (Kingma et al. 2021,
    arXiv:2107.00630, appendix I.1)."""
    part = torch.randperm(number, device=device) + torch.rand(number, device=device)
    return (part * (num_timesteps / number)).long().clamp(max=num_timesteps - 1)


class NoiseSchedule:
    """alpha_bar_t = prod_{i <= t} (1 - beta_i), kept in float64, and the quantities that follow.

    ``zero_terminal_snr`` shifts and scales sqrt(alpha_bar) so that x_{T-1} is pure noise (Lin et al.
    2023, arXiv:2305.08891, algorithm 1); a network must then predict v or x0.

    Every method takes ``t`` as an int or as an integer tensor (B,), in -1 ... T-1, and image tensors
    (B, C, H, W) of any float dtype; results have the image's dtype and device.

    Raises:
        ValueError: for an unknown schedule or fewer than two timesteps.
    """

    def __init__(self, kind: str = "cosine", num_timesteps: int = 1000, zero_terminal_snr: bool = False):
        if kind not in BETAS:
            raise ValueError(f"unknown noise schedule {kind!r}: choose one of {', '.join(BETAS)}")
        if num_timesteps < 2:
            raise ValueError(f"a noise schedule needs at least 2 timesteps, got {num_timesteps}")
        self.kind = kind
        self.num_timesteps = num_timesteps
        self.beta = BETAS[kind](num_timesteps)
        self.alpha_bar = torch.cumprod(1 - self.beta, dim=0)
        if zero_terminal_snr:
            signal = self.alpha_bar.sqrt()
            signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
            self.alpha_bar = signal**2
            self.beta = torch.cat([self.beta[:1], 1 - self.alpha_bar[1:] / self.alpha_bar[:-1]])
        # One entry in front for t = -1. A copy for each device, so that indexing it never waits.
        self._table = {"cpu": torch.cat([torch.ones(1).double(), self.alpha_bar])}

    def alpha_bar_at(self, t: int | Tensor, like: Tensor) -> Tensor:
        """alpha_bar_t in float64, ready to broadcast over ``like``: a scalar for an int t, else
        (B, 1, 1, 1) on its device."""
        if isinstance(t, int):
            return self._table["cpu"][t + 1]
        device = str(like.device)
        if device not in self._table:
            self._table[device] = self._table["cpu"].to(like.device)
        return self._table[device][t + 1].reshape(-1, *[1] * (like.ndim - 1))

    def signal_and_noise(self, t: int | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t)) in the dtype of ``like``, ready to multiply it."""
        alpha_bar = self.alpha_bar_at(t, like)
        return alpha_bar.sqrt().to(like.dtype), (1 - alpha_bar).sqrt().to(like.dtype)

    def q_sample(self, x0: Tensor, t: int | Tensor, eps: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps (Ho et al. 2020, equation 4)."""
        signal, noise = self.signal_and_noise(t, x0)
        return signal * x0 + noise * eps

    def draw_noisy(
        self, x0: Tensor, t: Tensor | None = None, eps: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, t (B,) and eps for a training step on x0 (B, C, H, W): t stratified and eps standard
        normal where not given."""
        if t is None:
            t = stratified_timesteps(len(x0), self.num_timesteps, x0.device)
        if eps is None:
            eps = torch.randn_like(x0)
        return self.q_sample(x0, t, eps), t, eps

    def posterior_variance(self, t: int, s: int) -> Tensor:
        """Variance of q(x_s | x_t, x0) for any s < t, a float64 scalar: (1 - alpha_bar_s) /
        (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s); for s = t - 1 it is Ho et al. 2020's
        beta_tilde_t, equation 7."""
        bar_t, bar_s = self._table["cpu"][t + 1], self._table["cpu"][s + 1]
        return (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)

    def q_posterior(self, x0: Tensor, x_t: Tensor, t: int, s: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_s | x_t, x0) for any s < t, by Bayes' rule on two Gaussians
        (Ho et al. 2020, equations 6 and 7, for the stride from t to s)."""
        bar_t, bar_s = self.alpha_bar_at(t, x_t), self.alpha_bar_at(s, x_t)
        alpha = bar_t / bar_s
        weight_x0 = bar_s.sqrt() * (1 - alpha) / (1 - bar_t)
        weight_xt = alpha.sqrt() * (1 - bar_s) / (1 - bar_t)
        mean = weight_x0.to(x_t.dtype) * x0 + weight_xt.to(x_t.dtype) * x_t
        return mean, self.posterior_variance(t, s).to(x_t.dtype)

    def target(self, prediction: str, x0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        """What a network of this prediction type should output; v = sqrt(alpha_bar_t) eps -
        sqrt(1 - alpha_bar_t) x0 (Salimans & Ho 2022, arXiv:2202.00512)."""
        if prediction == "eps":
            return eps
        if prediction == "x0":
            return x0
        _require("prediction", prediction, "v")
        signal, noise = self.signal_and_noise(t, x0)
        return signal * eps - noise * x0

    def to_x0_eps(
        self, prediction: str, output: Tensor, x_t: Tensor, t: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        """(x0_hat, eps_hat) from a network's output: the inverse of ``target`` given x_t.

        Both satisfy x_t = sqrt(alpha_bar_t) x0_hat + sqrt(1 - alpha_bar_t) eps_hat. t >= 0.
        """
        signal, noise = self.signal_and_noise(t, x_t)
        if prediction == "eps":
            return (x_t - noise * output) / signal, output
        if prediction == "x0":
            return output, (x_t - signal * output) / noise
        _require("prediction", prediction, "v")
        return signal * x_t - noise * output, noise * x_t + signal * output

    def eps_from_x0(self, x0: Tensor, x_t: Tensor, t: int | Tensor) -> Tensor:
        """eps = (x_t - sqrt(alpha_bar_t) x0) / sqrt(1 - alpha_bar_t), for a clipped or guided x0."""
        return self.to_x0_eps("x0", x0, x_t, t)[1]

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t), float64 (B,)."""
        alpha_bar = self.alpha_bar_at(t, t)
        return alpha_bar / (1 - alpha_bar)

    def half_log_snr(self, t: int | Tensor) -> Tensor:
        """lambda_t = log(sqrt(alpha_bar_t) / sqrt(1 - alpha_bar_t)), float64 in the shape of t (on the
        CPU); infinite for t = -1, and very low (about -23) at a terminal SNR of zero."""
        bar = self._table["cpu"][t + 1].clamp(min=1e-20)
        return 0.5 * (bar.log() - torch.log1p(-bar))

    def loss_weight(self, weighting: str, prediction: str, t: Tensor, gamma: float = 5.0) -> Tensor:
        """Weight of each sample's mean squared error, float32 (B,).

        ``none``: 1. ``min_snr``: min(snr, gamma) on the x0 error, expressed in the units of the
        prediction: divided by snr for eps and by snr + 1 for v (Hang et al. 2023, arXiv:2303.09556).
        """
        if weighting == "none":
            return torch.ones(t.shape, device=t.device)
        _require("loss weighting", weighting, "min_snr")
        snr = self.snr(t)
        per_x0 = snr.clamp(max=gamma)
        divisor = {"x0": 1, "eps": snr, "v": snr + 1}[prediction]
        return (per_x0 / divisor).float()
