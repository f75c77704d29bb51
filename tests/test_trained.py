"""What a model that has learnt draws, and how it edits: pictures with two attributes that one can
measure."""

from __future__ import annotations

import pytest
import torch
from helpers import seeded

from config import EditConfig, LossConfig, ModelConfig
from diffusion_model import ConditionalDiffusion
from editing import Editor
from samplers import ddim, last, timestep_grid

NAMES = ("Red", "Left")


def toy_batch(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A square, red or green, on the left or the right, of any size: two attributes one can measure."""
    rows = torch.randint(0, 2, (batch, 2)) * 2.0 - 1
    pictures = torch.full((batch, 16, 16, 3), 60, dtype=torch.uint8)
    for picture, (red, left), side in zip(pictures, rows, torch.randint(4, 7, (batch,)), strict=True):
        corner = 1 if left > 0 else 15 - int(side)
        picture[5 : 5 + side, corner : corner + side, 0 if red > 0 else 1] = 230
    return pictures, rows


def measured(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 2): how red against green, and how far left against right, in about [-1, 1]."""
    colour = pictures.float()[..., 0] - pictures.float()[..., 1]  # (B, H, W), +-170 in the square
    colour = colour * (colour.abs() > 60)
    ink = colour.abs()
    side = ink[..., :8].sum((1, 2)) - ink[..., 8:].sum((1, 2))
    total = ink.sum((1, 2)).clamp(min=1)
    return torch.stack([colour.sum((1, 2)) / total, side / total], dim=1)


@pytest.fixture(scope="module")
def trained():
    """A model that has learnt them."""
    torch.manual_seed(0)
    small = {"image_size": 16, "channels": (32, 64), "blocks_per_level": 1, "num_heads": 2}
    small["self_attention_levels"] = (1,)  # at 16 x 16 it would take longer than all the rest
    config = ModelConfig(NAMES, **small, latent_dim=8, prediction="v")
    model = ConditionalDiffusion(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loss = LossConfig(attr_weight=1.0, loss_weighting="none", attr_dropout=0.2, latent_dropout=0.8)
    for step in range(240):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 20) * (1 - step / 240)
        terms, _, _ = model(*toy_batch(32), loss)
        optimizer.zero_grad()
        terms["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


# ------------------------------------------------------------------ what it draws


def test_swapping_one_attribute_changes_the_picture_as_asked(trained):
    for column in (0, 1):
        row = torch.tensor([[1.0, 1.0]])
        swapped = row.clone()
        swapped[0, column] = -1
        before, after = (
            measured(trained.ddim_sample(8, None, rows, 2.0, 20, generator=seeded()))
            for rows in (row, swapped)
        )
        assert before[:, column].mean() > 0.6
        assert after[:, column].mean() < -0.6
        other = 1 - column
        assert after[:, other].mean() > 0.6, "what was not swapped stays"


def test_a_row_that_names_one_attribute_leaves_the_other_free(trained):
    rows = torch.tensor([[1.0, 0.0]])
    seen = measured(trained.ddim_sample(48, None, rows, 1.0, 20, generator=seeded()))
    assert seen[:, 0].mean() > 0.6
    assert 0.15 < (seen[:, 1] > 0).float().mean() < 0.85


def test_fractions_lie_between(trained):
    start, end = torch.tensor([[1.0, 1.0]]), torch.tensor([[-1.0, 1.0]])
    strip = trained.interpolate_between_attributes(start, end, 9, generator=seeded())
    redness = measured(strip)[:, 0]
    assert redness[0] > 0.6 and redness[-1] < -0.6
    assert (redness.diff() < 0.15).all(), "going from red to green it must not turn back"


def test_attribute_head_and_reconstruction_have_learnt(trained):
    torch.manual_seed(8)
    pictures, rows = toy_batch(64)
    predicted = trained.predict_attributes(pictures)
    assert predicted.abs().max() <= 1
    assert ((predicted > 0) == (rows > 0)).float().mean() > 0.95
    assert (measured(trained.reconstruct(pictures)) * rows).mean() > 0.4


# ------------------------------------------------------------------ how it edits


@pytest.fixture(scope="module")
def faces_and_rows():
    torch.manual_seed(7)
    return toy_batch(8)


def edited(trained, sources, target, strengths, source=None, **options):
    editing = EditConfig(num_inference_steps=30, **options)
    edit_at = Editor(trained).prepare_edit(sources, target, editing, source, generator=seeded())
    return [edit_at(strength) for strength in strengths]


def test_an_edit_changes_what_is_named_and_keeps_the_rest(trained, faces_and_rows):
    sources, rows = faces_and_rows
    target = rows.clone()
    target[:, 1] = 0  # not named: keeps what the source has
    target[:, 0] *= -1
    none, part, full = edited(trained, sources, target, [0.0, 0.5, 1.0], rows)
    assert torch.equal(none, sources), "strength 0 gives back the photograph"
    colour = [measured(pictures)[:, 0] * rows[:, 0] for pictures in (none, part, full)]
    assert colour[0].mean() > 0.9 and colour[2].mean() < -0.5
    assert colour[0].mean() >= colour[1].mean() >= colour[2].mean() - 0.05
    assert not torch.equal(part, none) and not torch.equal(part, full)
    assert (measured(full)[:, 1] * rows[:, 1]).mean() > 0.6, "the side was not named and stays"


def test_the_noise_of_a_picture_leads_back_to_it(trained, faces_and_rows):
    sources, rows = faces_and_rows
    x_T = Editor(trained).invert(sources, rows, num_inference_steps=30)
    own = Editor(trained).near_clean(trained.denoiser(rows, None))
    with torch.no_grad():
        x0 = last(ddim(own, trained.schedule, x_T, timestep_grid(trained.schedule, 30)))
    error = (trained.first_stage.decode(x0).float() - sources.float()).pow(2).mean().sqrt()
    assert error < 15 < (trained.first_stage.decode(x_T).float() - sources.float()).pow(2).mean().sqrt()


def test_a_faint_edit_is_the_photograph(trained, faces_and_rows):
    """Next to strength 0, where the chain is run, the source comes back to within rounding."""
    sources, rows = faces_and_rows
    (near,) = edited(trained, sources, -rows, [1e-4], rows, localise=0)
    assert (near.float() - sources.float()).abs().max() <= 1


def test_a_single_source_may_have_many_targets(trained, faces_and_rows):
    sources, rows = faces_and_rows
    target = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    none, full = edited(trained, sources[:1], target, [0.0, 1.0], rows[:1])
    assert none.shape == full.shape == (2, 16, 16, 3)
    assert torch.equal(none, sources[:1].expand(2, -1, -1, -1))


def test_what_is_named_is_changed_whatever_was_read(trained, faces_and_rows):
    """With the target taken for what the source has, there is nothing between them to follow."""
    sources, rows = faces_and_rows
    target = -rows
    target[:, 1] = 0
    misread = torch.where(target == 0, rows, target)
    (named,) = edited(trained, sources, target, [1.0], misread)
    (trusting,) = edited(trained, sources, target, [1.0], misread, oppose=False)
    colour = [(measured(pictures)[:, 0] * rows[:, 0]).mean() for pictures in (named, trusting)]
    assert colour[0] < colour[1] - 0.5


def test_edits_take_as_many_steps_as_asked_from_t_start_on(trained, faces_and_rows, monkeypatch):
    visited = []

    def denoise(x, t):  # t is of one step, or of several at once
        visited.extend(torch.as_tensor(t).flatten().tolist())
        return x, x

    monkeypatch.setattr(trained, "denoiser", lambda *_: denoise)
    for t_start in (0.5, 1.0):
        visited.clear()
        sources, rows = faces_and_rows
        edited(trained, sources, rows, [1.0], rows, t_start=t_start)
        share = max(visited) / trained.schedule.num_timesteps
        assert t_start - 0.1 < share <= t_start and len({*visited}) == 30


def test_the_way_between_two_photographs_meets_both(trained, faces_and_rows):
    sources, rows = faces_and_rows
    red = int((rows[:, 0] > 0).nonzero()[0, 0])
    green = int((rows[:, 0] < 0).nonzero()[0, 0])
    both = sources[[red, green]]
    frames = Editor(trained).interpolate(both, 9, 30, rows[[red, green]])
    assert torch.equal(frames[0], both[0]) and torch.equal(frames[-1], both[1])
    colour = measured(frames)[:, 0]
    assert colour[0] > 0.9 and colour[-1] < -0.9
    assert frames.float().diff(dim=0).abs().mean((1, 2, 3)).max() < 60, "no jump"
    with pytest.raises(ValueError, match="2 images"):
        Editor(trained).interpolate(sources[:1])
