"""The fused normalisation against torch's group_norm, addcmul and silu, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from layers import ACTIVATIONS, NORMS, Norm, NormFunction, ResidualBlock, norm_written_out


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(x: Tensor, gain: Tensor, offset: Tensor, groups: int, silu: bool) -> Tensor:
    z = torch.addcmul(offset[..., None, None], F.group_norm(x, groups), gain[..., None, None])
    return F.silu(z) if silu else z


def with_gradients(function, x: Tensor, gain: Tensor, offset: Tensor, weight: Tensor) -> list[Tensor]:
    """The function's value, and the gradients of its weighted sum."""
    leaves = [t.clone().requires_grad_() for t in (x, gain, offset)]
    y = function(*leaves)
    (y * weight).sum().backward()
    return [y.detach(), *(t.grad for t in leaves)]


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_torch_in_value_and_gradient(silu, rows, groups, layout):
    x = (2 * normal(3, 8, 6, 5, seed=0) + 1).to(memory_format=layout)
    gain, offset, weight = normal(rows, 8, seed=1), normal(rows, 8, seed=2), normal(3, 8, 6, 5, seed=3)
    inputs = (x, gain, offset, weight)
    torchs = with_gradients(lambda *t: reference(*t, groups, silu), *inputs)
    for norm in (NormFunction.apply, norm_written_out):
        ours = with_gradients(lambda *t: norm(*t, groups, 1e-5, silu), *inputs)  # noqa: B023
        for a, b in zip(ours, torchs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bfloat16_errs_no_more_than_torch(layout):
    x, gain, offset = 3 * normal(4, 32, 16, 16, seed=0) + 2, normal(4, 32, seed=1), normal(4, 32, seed=2)
    weight = normal(4, 32, 16, 16, seed=3)
    rounded = [t.bfloat16() for t in (x, gain, offset, weight)]
    rounded[0] = rounded[0].to(memory_format=layout)
    exact = with_gradients(lambda *t: reference(*t, 8, True), *(t.double() for t in rounded))
    torchs = with_gradients(lambda *t: reference(*t, 8, True), *rounded)
    for norm in (NormFunction.apply, norm_written_out):
        ours = with_gradients(lambda *t: norm(*t, 8, 1e-5, True), *rounded)  # noqa: B023
        for a, b, c in zip(ours, torchs, exact, strict=True):
            assert (a - c).norm() <= 1.2 * (b - c).norm() + 1e-3 * c.norm()


def test_module_is_a_group_norm_with_film_and_silu():
    norm, plain = Norm(6), torch.nn.GroupNorm(2, 6)  # 2 is the largest divisor shared with 32
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    plain.load_state_dict(norm.state_dict())
    x, scale, shift = (
        t.float() for t in (normal(2, 6, 4, 4, seed=0), normal(2, 6, seed=1), normal(2, 6, seed=2))
    )
    expected = F.silu(plain(x) * (1 + scale[..., None, None]) + shift[..., None, None])
    torch.testing.assert_close(norm(x, scale, shift), expected)
    torch.testing.assert_close(Norm(6, activation=None)(x), torch.nn.GroupNorm(2, 6)(x))


@pytest.mark.parametrize("name", [*ACTIVATIONS])
def test_instance_normalisation_is_torch_s(name):
    norm = Norm(64, name, NORMS["instance"](64))
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (2 * normal(2, 64, 4, 4, seed=0) + 1).float()
    expected = ACTIVATIONS[name](F.instance_norm(x, weight=norm.weight, bias=norm.bias))
    torch.testing.assert_close(norm(x), expected)
    assert (norm(x) - Norm(64, name, NORMS["group"](64))(x)).abs().max() > 0.1


def test_a_residual_block_is_normalised_and_activated_as_asked():
    x, embedding = normal(2, 64, 4, 4, seed=0).float(), normal(2, 8, seed=1).float()
    torch.manual_seed(0)
    block = ResidualBlock(64, 64, 8, 0.0, norm="instance", activation="relu")
    torch.nn.init.normal_(block.conv2.weight, std=0.1)
    scale, shift = (each[..., None, None] for each in block.film(embedding).chunk(2, dim=1))
    h = block.conv1(F.relu(F.instance_norm(x)))  # gains are 1 and offsets 0 at first
    h = block.conv2(F.relu(F.instance_norm(h) * (1 + scale) + shift))
    torch.testing.assert_close(block(x, embedding), x + h)
    block(x, embedding).square().sum().backward()
    assert all(p.grad is not None for p in block.parameters())


def test_second_derivatives_are_refused_not_wrong():
    x = normal(1, 4, 2, 2, seed=0).requires_grad_()
    y = NormFunction.apply(x, torch.ones(1, 4).double(), torch.zeros(1, 4).double(), 2, 1e-5, True)
    (grad,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_dropout_is_for_training_only():
    torch.manual_seed(0)
    block = ResidualBlock(8, 8, 4, dropout=0.5).double()
    torch.nn.init.normal_(block.conv2.weight)
    x, embedding = normal(2, 8, 4, 4, seed=0), normal(2, 4, seed=1)
    assert not torch.equal(block(x, embedding), block(x, embedding))
    block.eval()
    whole = block(x, embedding)
    block.dropout.p = 0.0
    assert torch.equal(block(x, embedding), whole)
