"""Optimisers: AdamW, and Muon for a network's matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
SMALLEST_SIDE = 32  # of a matrix that Muon takes, by eye
# Coefficients of a X + b X X^T X + c (X X^T)^2 X. Applied five times, it brings singular values between
# 0.01 and 1 to about 1 (Jordan et al. 2024, kellerjordan.github.io/posts/muon).
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalise(matrices: Tensor, bf16: bool) -> Tensor:
    """An approximation of U V^T for each matrix U S V^T of a batch (N, R, C), by five Newton-Schulz
    steps, in bfloat16 or in the precision of the matrices."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(torch.bfloat16 if bf16 else x.dtype)
    for _ in range(5):
        square = x @ x.mT
        x = A * x + (B * square + C * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.AdamW):
    """Muon for the weights of convolutions and linear layers, taken as matrices (outputs, all else),
    and AdamW for the rest of a model.

    A step of a matrix (R, C) is lr * 0.2 sqrt(max(R, C)) times the orthogonalised momentum of its
    gradient. Its root mean square is about that of a step of AdamW. So both share one learning rate and
    one weight decay (Liu et al. 2025, arXiv:2502.16982, equation 4). For convolutions see
    arXiv:2510.19376.

    Args:
        parameters: all that is trained.
        hidden: the modules between a network's first and last layer. Muon takes their weights that have
            at least SMALLEST_SIDE rows and columns.
        lr, weight_decay: as of AdamW.
        bf16: whether it orthogonalises in bfloat16.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        hidden: Iterable[nn.Module],
        lr: float,
        weight_decay: float,
        bf16: bool,
    ):
        self.bf16 = bf16
        layers = [m for m in hidden if isinstance(m, nn.Conv2d | nn.Linear)]
        taken = {id(m.weight) for m in layers if min(m.weight.flatten(1).shape) >= SMALLEST_SIDE}
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for each in parameters:
            (matrices if id(each) in taken else rest).append(each)
        groups = [{"params": matrices, "matrices": True}, {"params": rest, "matrices": False}]
        super().__init__(groups, lr=lr, weight_decay=weight_decay, fused=True)
        self._step_supports_amp_scaling = False  # so fp16's scaler skips the whole step

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if group["matrices"]:
                self.step_matrices(group)
        return super().step(closure)

    def step_matrices(self, group: dict) -> None:
        """Move a group's matrices. Their gradients are used up, so AdamW passes them over."""
        by_shape: dict[tuple, list[tuple[nn.Parameter, Tensor]]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
                state["step"] = torch.zeros(())  # AdamW looks for one when it is loaded
            momentum = state["momentum"].lerp_(p.grad, 1 - MOMENTUM)
            update = p.grad.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov's
            by_shape.setdefault((*update.shape, p.device), []).append((p, update))
            p.grad = None
        for (rows, columns, _), pairs in by_shape.items():
            scale = 0.2 * max(rows, columns) ** 0.5 * group["lr"]
            moves = orthogonalise(torch.stack([update for _, update in pairs]), self.bf16)
            for (p, _), move in zip(pairs, moves, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(move.view(p.shape), alpha=scale)


def adamw(parameters: Iterable[nn.Parameter], hidden, lr, weight_decay, bf16) -> torch.optim.Optimizer:
    """AdamW for everything (Loshchilov & Hutter 2017, arXiv:1711.05101)."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


# name -> optimiser of (parameters, hidden, lr, weight_decay, bf16), as of ``Muon``
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"muon": Muon, "adamw": adamw}
