"""What completes a request: rows of the training set that agree with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import attributes
from attributes import AttributePrior, going_along
from checkpoint import save_model
from config import SamplingConfig
from diffusion_model import load_model
from samplers import sample_generators

ROWS = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1]])


def uniform(number: int) -> torch.Tensor:
    return torch.rand(number, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_attributes", [1, 8, 40, 41])
def test_rows_are_packed_without_loss(num_attributes):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-1, 2, (200, num_attributes), generator=generator).float()
    prior = AttributePrior.of(rows)
    distinct, counts = torch.unique(rows, dim=0, return_counts=True)
    pairs = zip(prior.rows().tolist(), prior.counts.tolist(), strict=True)
    found = {tuple(row): count for row, count in pairs}
    pairs = zip(distinct.tolist(), counts.tolist(), strict=True)
    assert found == {tuple(row): count for row, count in pairs}
    assert prior.bits.shape == (len(distinct), 2 * -(-num_attributes // 8))
    assert prior.bits.dtype == torch.uint8


def test_requests_are_completed_from_rows_that_agree():
    requests = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-1, -1, 0], [0.5, 0, 1]]).repeat(50, 1)
    whole = AttributePrior.of(ROWS).complete(requests, uniform(200))
    assert torch.equal(whole[requests != 0], requests[requests != 0])
    drawn = {tuple(row) for row in whole[::4].tolist()}
    assert drawn == {(1, 1, 1), (1, -1, -1)}  # each of those that agree, and no other
    assert {tuple(row) for row in whole[2::4].tolist()} <= {(-1, -1, -1)}
    assert {tuple(row) for row in whole[3::4].tolist()} == {(0.5, 1, 1)}


def test_what_nobody_asked_for_is_as_frequent_as_in_the_data(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    rows = (torch.rand(5000, 4, generator=generator) < torch.tensor([0.5, 0.05, 0.3, 0.7])) * 2.0 - 1
    rows[rows[:, 0] > 0, 1] = -1  # the second goes with the absence of the first only
    prior = AttributePrior.of(rows)
    requests = torch.tensor([[0.0, 0, 0, 0], [-1, 0, 0, 0], [1, 0, 0, 0]]).repeat(3000, 1)
    monkeypatch.setattr(attributes, "MOST_PAIRS", 700)  # in many parts
    whole = prior.complete(requests, uniform(9000))
    for i, expected in enumerate(prior.frequencies(requests[:3])):
        agrees = ((rows == requests[i]) | (requests[i] == 0)).all(1)
        assert torch.allclose(expected, (rows[agrees] > 0).float().mean(0), atol=1e-6)
        drawn = (whole[i::3] > 0).float().mean(0)
        assert (drawn - expected).abs().max() < 4 * (0.25 / 3000) ** 0.5
    assert (whole[2::3, 1] < 0).all()


def with_prior(make_model, rows=ROWS):
    prior = AttributePrior.of(rows)
    model = make_model(prior_rows=len(prior.counts))
    model.attribute_prior.load_state_dict(prior.state_dict())
    return model


def test_a_model_completes_what_it_draws(make_model, tmp_path):
    model, sampling = with_prior(make_model), SamplingConfig(num_inference_steps=2)
    save_model(model, tmp_path / "model.pth")
    model = load_model(tmp_path / "model.pth")  # the rows travel in the checkpoint
    request = model.attribute_rows({"Smiling": 1})

    def drawn(attributes, **how):
        return model.sample(4, None, attributes, sampling, sample_generators(0, range(4)), **how)

    generators = sample_generators(0, range(4))
    x_T = model.initial_noise(4, generator=generators)
    rows = model.complete_rows(request, 4, generators)
    assert (rows != 0).all() and (rows[:, 0] == 1).all()
    *_, (_, _, x_0, _) = model.sample_steps(x_T, rows, sampling)
    assert torch.equal(drawn(request), model.first_stage.decode(x_0))
    is_open = model.attribute_rows({"Smiling": 1}, 4)
    assert not torch.equal(drawn(request), drawn(is_open, complete=False))
    whole = ROWS[[0, 1, 2, 0]]
    assert torch.equal(drawn(whole), drawn(whole, complete=False))
    assert not torch.equal(drawn(None), drawn(None, complete=False))


def test_a_completed_image_does_not_depend_on_its_batch(make_model):
    model = with_prior(make_model)
    mixed = torch.stack([ROWS[0], torch.zeros(3), torch.zeros(3)])
    together = model.complete_rows(mixed, 3, sample_generators(0, range(3)))
    alone = model.complete_rows(mixed[2:], 1, sample_generators(0, [2]))
    assert torch.equal(together[2:], alone) and torch.equal(together[0], ROWS[0])


def test_a_model_without_rows_leaves_requests_open(make_model):
    model = make_model()
    assert not any("attribute_prior" in name for name in model.state_dict())  # as in older files
    request = model.attribute_rows({"Smiling": 1})
    assert torch.equal(model.complete_rows(request, 2), request.expand(2, -1))
    start, end = model.complete_ends(request, model.attribute_rows({"Male": 1}))
    assert start.tolist() == [[1, 0, 0]] and end.tolist() == [[1, 1, 0]]


def test_an_end_keeps_what_some_of_the_agreeing_rows_share():
    """Of ten rows with the first attribute, one has the second and three the third."""
    second, third = torch.full((10,), -1.0), torch.full((10,), -1.0)
    second[:1], third[:3] = 1, 1
    prior = AttributePrior.of(torch.stack([torch.ones(10), second, third], dim=1))
    start = torch.tensor([[-1.0, 1, 1]])
    assert prior.continued(torch.tensor([[0.5, 0, 0]]), start).tolist() == [[0.5, -1, 1]]


def test_an_interpolation_turns_what_contradicts_its_end(make_model):
    model = with_prior(make_model)
    start, end = ({"Smiling": 1}, {"Smiling": 0, "Male": 0.75})
    seen = set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        ends = model.complete_ends(start, end, generator)
        seen.add(tuple(ends[0][0].tolist()))
        assert ends[1].tolist() == [[-1, 0.5, -1]], "as in the only row without a smile"
    assert seen == {(1, 1, 1), (1, -1, -1)}
    strip = model.interpolate_between_attributes(start, end, 3)
    assert strip.shape == (3, 16, 16, 3)


def test_correlations_are_numpy_s():
    rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).sign()
    rows[:, 1] = rows[:, 0] * torch.where(torch.arange(200) % 10 == 0, -1.0, 1.0)
    rows[:, 3] = 1
    correlation = AttributePrior.of(rows).correlation()
    expected = torch.from_numpy(np.corrcoef(rows[:, :3].numpy().T)).float()
    torch.testing.assert_close(correlation[:3, :3], expected)
    assert not correlation[3].any(), "what is always there goes with nothing"
    assert not AttributePrior(4, 0).correlation().any()


def test_what_goes_along_is_implied_or_correlated_and_never_named():
    names = ("Blond_Hair", "Black_Hair", "Male", "Goatee")
    correlation = torch.eye(4)
    correlation[2, 3] = correlation[3, 2] = 0.6
    named = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1.0, 0], [0, 0, 1.0, -1.0]])
    along = going_along(named, -torch.ones(3, 4), names, correlation)
    assert along.tolist() == [[0, -1, 0, 0], [0, 0, 0, -1], [0, 0, 0, 0]]
