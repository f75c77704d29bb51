"""The parts of an edit: its flow, where it changes a picture, what its settings become."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import editing
import studio
from config import EditConfig, EditSettings
from editing import (
    AT_ONCE,
    Editor,
    NoisySource,
    flow_edit,
    localised,
    missing_share,
    resolve,
    scale_at,
    slerp,
    softened,
    structure_kept,
    until_seen,
)
from noise_schedule import NoiseSchedule
from samplers import last, timestep_grid


def test_what_a_first_stage_loses_of_photographs_comes_back(make_model):
    """A first stage with random weights keeps nothing of a photograph. Its edits still do."""
    stage = {"channels": [8], "latent_channels": 3, "num_attributes": 3}
    model = make_model(first_stage="vae", first_stage_config=stage, image_size=32)
    sources = torch.randint(256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    rows = torch.ones(2, 3)
    edit_at = Editor(model).prepare_edit(
        sources,
        -rows,
        EditConfig(num_inference_steps=2, localise=1.0, guide_scale=0.0, cfg_scale=6.0),
        rows,
    )
    assert torch.equal(edit_at(0.0), sources)
    change = edit_at(1.0).int() - sources.int()
    assert change.any() and (change == 0).float().mean() > 0.3, (
        "the least changed part stays to the byte"
    )
    frames = Editor(model).interpolate(sources, 3, 2, rows)
    assert torch.equal(frames[[0, -1]], sources)


def test_from_a_photograph_to_itself_every_frame_is_that_photograph(make_model):
    """So what inversion loses in two steps comes back between the ends, too."""
    source = torch.randint(256, (1, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    sources = source.repeat(2, 1, 1, 1)
    frames = Editor(make_model(image_size=32)).interpolate(sources, 4, 2, torch.ones(2, 3))
    assert (frames.int() - source.int()).abs().max() <= 1


def test_lost_detail_goes_with_the_shapes_that_an_edit_removes():
    """An edit takes a dark line away, and darkens a pattern elsewhere. What a first stage loses of the
    line goes, that of the pattern stays, and what is not edited stays as it is."""
    picture = torch.zeros(1, 3, 128, 128)
    picture[..., 30:33, 20:60] = -0.8
    picture[..., 80:110, 20:60] += 0.2 * torch.sin(torch.arange(40.0))
    edited = picture.clone()
    edited[..., 30:33, 20:60] = 0
    edited[..., 80:110, 20:60] -= 0.4
    lost = 0.1 * torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    kept = structure_kept(picture, edited)
    assert kept[..., 31, 25:55].max() < 0.05 and kept[..., 90:100, 30:50].min() > 0.95
    result = localised(picture, edited, 0.2, lost=lost)
    assert torch.equal(result[..., 80:], (picture + lost)[..., 80:])
    assert (result - edited)[..., 31, 25:55].abs().max() < 0.05 * lost.abs().max()
    assert torch.equal(structure_kept(picture, picture), torch.ones(1, 1, 128, 128))


def test_an_edit_is_watched_on_its_way(make_model):
    """After a third and two thirds of its steps, as a picture like the finished one: outside a mask it
    is the photograph. Watching changes nothing."""
    model = make_model(image_size=32)
    sources = torch.randint(256, (1, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    mask = torch.zeros(32, 32)
    mask[:, :16] = 1
    edit_at = Editor(model).prepare_edit(
        sources, -torch.ones(1, 3), EditConfig(num_inference_steps=6), torch.ones(1, 3), mask=mask
    )
    pictures: list[torch.Tensor] = []
    edited = edit_at(1.0, pictures.append)
    assert torch.equal(edited, edit_at(1.0)) and len(pictures) == 2
    for picture in pictures:
        assert torch.equal(picture[:, :, 16:], sources[:, :, 16:])
        assert not torch.equal(picture, sources) and not torch.equal(picture, edited)


def test_the_photograph_is_predicted_at_several_timesteps_at_once(make_model):
    """As at each alone, in the order of the steps; also of more pictures than are read at once."""
    model = make_model(image_size=32)
    schedule, number = model.schedule, AT_ONCE // 2 + 1
    for batch in (1, 3, number):
        x0 = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        rows = torch.linspace(-1, 1, 3 * batch).view(batch, 3)
        noisy = {t: schedule.q_sample(x0, t, torch.ones_like(x0)) for t in (900, 500, 20)}
        source = NoisySource(x0, x0, x0, [*noisy, -1], [], noisy, {})
        x0_hats = Editor(model).source_x0_hats(source, rows)
        for (t, x_t), x0_hat in zip(noisy.items(), x0_hats, strict=True):
            torch.testing.assert_close(x0_hat, model.denoiser(rows)(x_t, t)[0], atol=1e-4, rtol=1e-4)


def test_an_edit_of_a_grey_photograph_is_grey(make_model):
    """In one batch with a photograph in colours, which keeps its own; from Python, too."""
    model = make_model(image_size=32)
    colours = torch.randint(256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    sources = colours.clone()
    sources[0] = sources[0, ..., :1]
    options = {"editing": EditConfig(num_inference_steps=2), "source_attributes": torch.ones(2, 3)}
    rows = -torch.ones(2, 3)
    edits = Editor(model).edit(sources, rows, generator=torch.Generator().manual_seed(0), **options)
    assert (edits[0] == edits[0, ..., :1]).all() and (edits[0] != sources[0]).any()
    assert not (edits[1] == edits[1, ..., :1]).all()
    one = Editor(model).edit(sources[:1], {"Smiling": 1}, 0.7, EditConfig(num_inference_steps=2))
    assert (one == one[..., :1]).all() and (one != sources[:1]).any()
    sources[1] = sources[1, ..., 1:2]
    frames = Editor(model).interpolate(sources, 4, 2, rows)
    assert (frames == frames[..., :1]).all() and torch.equal(frames[[0, -1]], sources)
    assert not torch.equal(*frames[1:3])


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


def test_what_is_named_and_a_guide_decide_what_is_left_open():
    """The attribute that needs most counts; what is set always does."""

    def resolved(*named: str, guide: bool = False, **options: float) -> EditConfig:
        return resolve(EditConfig(**options), named, guide)

    assert resolved("Smiling").t_start < resolved("Pointy_Nose").t_start == resolved().t_start
    both = resolved("Smiling", "Blond_Hair").t_start
    assert both == resolved("Blond_Hair").t_start > resolved().t_start
    given = resolved("Blond_Hair", t_start=0.3, margin=1.0)
    assert (given.t_start, given.margin) == (0.3, 1.0)
    assert resolved(guide=True).cfg_scale == resolved().cfg_scale
    assert resolved(guide=True, guide_scale=0).cfg_scale < resolved().cfg_scale
    assert resolved(guide=True).margin > resolved().margin
    assert resolved(guide=True, cfg_scale=1).cfg_scale == 1


def test_without_a_guide_an_edit_ends_where_the_head_sees_it():
    """The scale fades with what is missing, and is 0 where all is seen."""
    schedule = NoiseSchedule("cosine", 100)
    goal, source = torch.tensor([[1.0, 0.0]]), torch.tensor([[-4.0, 9.0]])
    base, target = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)

    def scale(odds: float, strength: float = 1.0) -> float:
        read = lambda x0: torch.tensor([[odds, -9.0]])  # noqa: E731
        pair = lambda x_t, t: (torch.cat([base, target]), None)  # noqa: E731
        config = resolve(EditConfig(margin=3.0), ("Smiling",), False)
        denoise = until_seen(pair, read, goal, source, schedule, config, strength)
        x0_hat, eps_hat = denoise(torch.randn(1, 3, 4, 4), 50)
        assert torch.isfinite(eps_hat).all()
        return float(x0_hat.mean())

    assert scale(-4.0) == scale(1.0) == 5.0 and scale(2.0) == 2.5 and scale(3.0) == scale(5.0) == 0.0
    assert scale(-4.0, 0.5) == 2.5 and scale(-0.5, 0.5) == 0.0  # half of the way


def test_the_scale_of_an_edit_grows_as_noise_falls():
    """From a quarter of it in pure noise. A scale of 0, of a guide that steers alone, stays 0. Several
    attributes share what it grows by."""
    schedule, editing = NoiseSchedule("cosine", 100), EditConfig(cfg_scale=8.0)
    assert [scale_at(t, schedule, editing) for t in (100, 50, 0)] == [2.0, 5.0, 8.0]
    assert scale_at(99, schedule, EditConfig(cfg_scale=0.0)) == 0
    assert [scale_at(t, schedule, editing, 2.0) for t in (100, 0)] == [2.0, 5.0]  # several attributes


def test_a_configuration_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="t_start"):
        EditConfig(t_start=0)
    with pytest.raises(ValueError, match="edit_guide_scale"):
        EditConfig(guide_scale=-1)


def test_slerp_keeps_the_norm_of_noise():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 16, 16)
    way = slerp(a, b, torch.linspace(0, 1, 5))
    torch.testing.assert_close(way[0], a)
    torch.testing.assert_close(way[-1], b)
    norms = way.flatten(1).norm(dim=1)
    assert norms.min() > 0.95 * min(a.norm(), b.norm())
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.5]))[0], a)


def test_a_mask_confines_an_edit(make_model):
    """Outside it stays to the byte, with a first stage that loses pixels, too; deep inside the edit is
    the same as without it; in between it fades. The change map of an edit is such a mask."""
    stage = {"channels": [8], "latent_channels": 3, "num_attributes": 3}
    model = make_model(first_stage="vae", first_stage_config=stage, image_size=32)
    square = torch.randint(256, (32, 32, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    mask = np.zeros((32, 32), np.float32)
    mask[8:24, 4:20] = 1
    for localise in (0.0, 0.2):
        settings = EditSettings(
            attributes=("Smiling=1",), editing=EditConfig(num_inference_steps=2, localise=localise)
        )
        edited, whole = (
            studio.edit(model, None, square, settings, mask=each).images[0] for each in (mask, None)
        )
        assert (edited != square).any() and np.array_equal(edited[mask == 0], square[mask == 0])
        assert np.array_equal(edited[10:22, 6:18], whole[10:22, 6:18])
        assert not np.array_equal(whole[mask == 0], square[mask == 0])
    painted = square.copy()
    painted[8:16, 8:16] = 255 - painted[8:16, 8:16]
    changed = studio.mask_of_change(square, painted)
    assert (changed[9:15, 9:15] == 1).all() and not changed[24:, 24:].any()
    thin = torch.zeros(128, 128)
    thin[60] = 0.5
    soft = softened(thin)
    assert 0 < soft[60, 60] < 0.5 and not soft[thin == 0].any()
    torch.testing.assert_close(softened(torch.full((8, 8), 0.5)), torch.full((8, 8), 0.5))


def test_a_pinned_attribute_is_held_more_firmly(make_model):
    """Towards the source, by the factor of the weights. What the request implies of it is not asked."""
    model = make_model(names=("Smiling", "Black_Hair", "Blond_Hair"), guide_channels=(8,))
    square = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    read = torch.tensor([[-1.0, 1.0, -1.0]])
    rows = model.attribute_rows({"Blond_Hair": 1})

    def steering(*pins: str, hold: float = 5.0) -> tuple[Tensor, Tensor]:
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(editing, "towards", lambda *args: seen.append(args) or args[0](args[2]))
            settings = EditSettings(pins=pins, editing=EditConfig(num_inference_steps=1, hold=hold))
            studio.prepare_edits(model, model.guide, square, read, rows, settings)(1.0)
        return seen[0][2], seen[0][4].firmness

    assert steering()[0].tolist() == [[-1, -1, 1]] and steering()[1].tolist() == [5, 5, 5]
    assert steering("Black_Hair")[0].tolist() == [[-1, 1, 1]]
    assert steering("Black_Hair", hold=0.0)[1].tolist() == [0, editing.PINNED, 0]
    with pytest.raises(ValueError, match="Smiling is both asked for"):
        EditSettings(attributes=("Smiling=1",), pins=("Smiling",))
    pinned = EditSettings(pins=("Male",))
    with pytest.raises(ValueError, match="the guide does not read Male"):
        studio.check_pins(pinned, model.guide)
    for changed, guide in (
        (pinned, None),
        (replace(pinned, editing=EditConfig(guide_scale=0)), model.guide),
    ):
        with pytest.raises(ValueError, match="--hold Male needs a guide that steers, and"):
            studio.check_pins(changed, guide)


def test_a_third_of_the_predictions_is_made_at_a_time_and_once(make_model, monkeypatch):
    model = make_model(image_size=32)
    timesteps = (900, 700, 500, 300, 100)
    noisy = {t: torch.full((1, 3, 32, 32), t / 1000) for t in timesteps}
    x0 = torch.zeros(1, 3, 32, 32)
    source = NoisySource(x0, x0, x0, [*noisy, -1], [], noisy, {})
    asked = []

    def denoise(x_t, t):
        asked.append(t.tolist())
        return x_t, x_t

    monkeypatch.setattr(model, "denoiser", lambda _: denoise)
    rows = torch.ones(1, 3)
    x0_hats = Editor(model).source_x0_hats(source, rows)
    assert float(next(x0_hats)[0, 0, 0, 0]) == pytest.approx(0.9) and asked == [[900, 700]]
    again = [float(x0_hat[0, 0, 0, 0]) for x0_hat in Editor(model).source_x0_hats(source, rows)]
    assert again == pytest.approx([t / 1000 for t in timesteps])
    assert asked == [[900, 700], [500, 300], [100]]


def test_predictions_are_kept_for_the_very_rows(make_model):
    """Half an attribute is another row than a whole one."""
    model = make_model(image_size=32)
    x0 = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    source = NoisySource(x0, x0, x0, [500, -1], [], {500: x0}, {})
    half, whole = (
        next(Editor(model).source_x0_hats(source, torch.tensor([[a, 0.0, 0.0]]))) for a in (0.5, 1.0)
    )
    assert not torch.equal(half, whole) and len(source.x0_hats) == 2


def test_what_is_missing_starts_at_what_the_source_shows():
    """Log odds of one attribute that is to go: +4 in the source. Half the way to -6 is -1."""
    goal, source = -torch.ones(1, 1), torch.full((1, 1), 4.0)
    missing = [
        float(missing_share(goal, source, torch.full((1, 1), odds), 6.0, 0.5))
        for odds in (4.0, 0.0, -1.0)
    ]
    assert missing == [1.0, 0.5, 0.0]
