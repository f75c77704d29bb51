"""Muon: what it does to a matrix, what it leaves to AdamW, and how it resumes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from training.optimizers import SMALLEST_SIDE, Muon, orthogonalise


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("shape", [(40, 40), (32, 90), (90, 32)])
def test_orthogonalise_keeps_the_directions_and_evens_the_singular_values(shape, bf16):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *shape, generator=generator)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    exact = u @ v
    result = orthogonalise(matrices, bf16)
    assert result.shape == matrices.shape
    cosine = nn.functional.cosine_similarity(result.flatten(1), exact.flatten(1))
    assert (cosine > 0.9).all()
    values = torch.linalg.svdvals(result.float())
    assert values.max() < 1.4
    assert values.median() > 0.6


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, SMALLEST_SIDE, 3, padding=1),
        nn.Conv2d(SMALLEST_SIDE, 2 * SMALLEST_SIDE, 3, padding=1),
        nn.Conv2d(2 * SMALLEST_SIDE, 64, 1),
    )


def muon(model: nn.Module) -> Muon:
    return Muon(model.parameters(), model[1:2], lr=0.01, weight_decay=0.0, bf16=True)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(1))
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_matrices_move_as_far_as_others_would_by_adamw():
    model = layers()
    before = copy.deepcopy(model)
    step(model, muon(model))
    moved = (model[1].weight - before[1].weight).detach().flatten(1)
    assert moved.norm() / moved.numel() ** 0.5 == pytest.approx(0.2 * 0.01, rel=0.3)
    values = torch.linalg.svdvals(moved)
    assert values[0] < 2.5 * values.median(), "all directions move alike"
    plain = copy.deepcopy(before)
    step(plain, torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.0))
    for index in (0, 2):
        torch.testing.assert_close(model[index].weight, plain[index].weight)
    torch.testing.assert_close(model[1].bias, plain[1].bias)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it since 2.9")
def test_matrices_move_as_by_the_muon_of_torch():
    """Over several gradients, so its momentum counts. Each rounds to bfloat16 in its own places."""
    ours, theirs = (nn.Linear(48, 64, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    options = {"lr": 0.01, "weight_decay": 0.1}
    by_us = Muon(ours.parameters(), [ours], bf16=True, **options)
    by_torch = torch.optim.Muon(theirs.parameters(), adjust_lr_fn="match_rms_adamw", **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        ours.weight.grad = torch.randn(64, 48, generator=generator)
        theirs.weight.grad = ours.weight.grad.clone()
        by_us.step()
        by_torch.step()
    moved = (theirs.weight - start).norm().item()
    assert (ours.weight - theirs.weight).norm().item() < 0.05 * moved


def test_it_resumes_to_the_same_bits():
    one, two = layers(), layers()
    optimizer = muon(one)
    for _ in range(3):
        step(one, optimizer)
    first = muon(two)
    step(two, first)
    second = muon(two)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(2):
        step(two, second)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
