"""Edits of real images: what strength 0 and 1 mean."""

from __future__ import annotations

import pytest
import torch
from toys import measured, toy_batch

from config import EditConfig
from editing import Editor, flow_edit, localised, resolve, slerp
from noise_schedule import NoiseSchedule
from samplers import ddim, last, timestep_grid


@pytest.fixture(scope="module")
def faces_and_rows():
    torch.manual_seed(7)
    return toy_batch(8)


def edited(trained, sources, target, strengths, source=None, **options):
    editing = EditConfig(num_inference_steps=30, **options)
    generator = torch.Generator().manual_seed(0)
    edit_at = Editor(trained).prepare_edit(sources, target, editing, source, generator=generator)
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


def test_what_a_first_stage_loses_of_photographs_comes_back(make_model):
    """A first stage with random weights keeps nothing of a photograph. Its edits still do."""
    stage = {"channels": [8], "latent_channels": 3, "num_attributes": 3}
    model = make_model(first_stage="vae", first_stage_config=stage, image_size=32)
    sources = torch.randint(256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    rows = torch.ones(2, 3)
    edit_at = Editor(model).prepare_edit(
        sources, -rows, EditConfig(num_inference_steps=2, localise=1.0), rows
    )
    assert torch.equal(edit_at(0.0), sources)
    change = edit_at(1.0).int() - sources.int()
    assert change.any() and (change == 0).float().mean() > 0.3, (
        "the least changed part stays to the byte"
    )
    frames = Editor(model).interpolate(sources, 3, 2, rows)
    assert torch.equal(frames[[0, -1]], sources)


def test_flow_edit_follows_its_equation_on_gaussian_data():
    """For pictures from N(mu, tau^2) the best denoiser is known. The flow from N(0, tau^2) to it moves
    every picture by mu."""
    schedule, tau, mu = NoiseSchedule("cosine", 1000), 0.5, 0.3

    def denoiser(mean):
        def denoise(x_t, t):
            signal2, noise2 = schedule.squares_at(t, x_t)
            gain = tau**2 * signal2.sqrt() / (tau**2 * signal2 + noise2)
            x0_hat = mean + gain.float() * (x_t - signal2.sqrt().float() * mean)
            return x0_hat, schedule.eps_from_x0(x0_hat, x_t, t)

        return denoise

    torch.manual_seed(0)
    x0, grid = tau * torch.randn(4, 3, 8, 8), timestep_grid(schedule, 500)
    noise = [torch.randn_like(x0) for _ in grid[:-1]]
    source, target = denoiser(0.0), denoiser(mu)
    seen = [source(schedule.q_sample(x0, t, e), t)[0] for t, e in zip(grid, noise, strict=False)]
    done = last(flow_edit(target, schedule, x0, seen, noise, grid))
    torch.testing.assert_close(done - x0, torch.full_like(x0, mu), atol=5e-3, rtol=0)


def test_a_single_source_may_have_many_targets(trained, faces_and_rows):
    sources, rows = faces_and_rows
    target = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    none, full = edited(trained, sources[:1], target, [0.0, 1.0], rows[:1])
    assert none.shape == full.shape == (2, 16, 16, 3)
    assert torch.equal(none, sources[:1].expand(2, -1, -1, -1))


def test_an_edit_changes_where_it_changes_most():
    """Elsewhere, where it changes by less than half of the threshold, the source stays."""
    x0 = torch.zeros(1, 3, 32, 32)
    edit = torch.full_like(x0, 0.1)
    edit[..., 8:16, 8:16] = 1.0
    kept = localised(x0, edit, 0.3)
    assert torch.equal(kept[..., 8:16, 8:16], edit[..., 8:16, 8:16])
    assert not kept[..., 24:, 24:].any()
    assert localised(x0, edit, 0) is edit and not localised(x0, x0, 0.3).any()
    torch.testing.assert_close(localised(x0, edit, 0.05), edit)  # all above a low threshold


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
    monkeypatch.setattr(trained, "denoiser", lambda *_: lambda x, t: visited.append(t) or (x, x))
    for t_start in (0.5, 1.0):
        visited.clear()
        sources, rows = faces_and_rows
        edited(trained, sources, rows, [1.0], rows, t_start=t_start)
        share = max(visited) / trained.schedule.num_timesteps
        assert t_start - 0.1 < share <= t_start and len({*visited}) == 30


def test_what_is_named_and_a_guide_decide_what_is_left_open():
    """The attribute that needs most counts; what is set always does."""

    def resolved(*named: str, guide: bool = False, **options: float) -> EditConfig:
        return resolve(EditConfig(**options), named, guide)

    assert resolved("Smiling").t_start < resolved("Pointy_Nose").t_start == resolved().t_start
    both = resolved("Smiling", "Blond_Hair").t_start
    assert both == resolved("Blond_Hair").t_start > resolved().t_start
    given = resolved("Blond_Hair", t_start=0.3, margin=1.0)
    assert (given.t_start, given.margin) == (0.3, 1.0)
    assert resolved(guide=True).cfg_scale > resolved().cfg_scale
    assert resolved(guide=True, guide_scale=0).cfg_scale == resolved().cfg_scale
    assert resolved(guide=True, cfg_scale=1).cfg_scale == 1


def test_a_configuration_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="t_start"):
        EditConfig(t_start=0)
    with pytest.raises(ValueError, match="edit_guide_scale"):
        EditConfig(guide_scale=-1)


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


def test_slerp_keeps_the_norm_of_noise():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 16, 16)
    way = slerp(a, b, torch.linspace(0, 1, 5))
    torch.testing.assert_close(way[0], a)
    torch.testing.assert_close(way[-1], b)
    norms = way.flatten(1).norm(dim=1)
    assert norms.min() > 0.95 * min(a.norm(), b.norm())
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.5]))[0], a)
