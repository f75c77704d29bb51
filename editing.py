"""Editing photographs: ``Editor(model)`` inverts, edits and interpolates them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import Tensor

from attributes import columns_of, with_implied
from autoencoder_model import PixelFirstStage
from classifiers.guide import GuidanceClassifier
from config import EDIT_CFG_SCALE, STEERED_SCALE, EditConfig
from diffusion_model import Attributes, ConditionalDiffusion
from guidance import LEAST_SIGNAL, classifier_free
from noise_schedule import Denoiser, NoiseSchedule
from samplers import Generator, Progress, Steps, ddim, last, randn_like, timestep_grid, with_bar

DEFAULT_EDITING = EditConfig()
PIXELS = PixelFirstStage()
Watch = Callable[[Tensor], None]  # is shown an edit that is not finished, uint8 (B, S, S, 3)
EditAt = Callable[..., Tensor]  # (strength in [0, 1], watch: Watch | None = None) -> uint8 (B, S, S, 3)

# What an edit of an attribute needs, if the settings leave it open: t_start, the share of the timesteps
# from which it starts, and the log odds at which the guide is content. Only much noise hides hair and
# hats, and the colour of long hair needs nearly all of it. An expression needs little, and then more of
# the photograph stays. Measured: docs/log.md, "Where an edit starts and ends, for each attribute".
USUAL = (0.85, 6.0)
LOCAL, HAIR, COLOUR = (0.65, 5.0), (0.9, 6.0), (0.97, 6.0)
NEEDS = {
    **dict.fromkeys(("Smiling", "Mouth_Slightly_Open", "Eyeglasses", "Narrow_Eyes", "Pale_Skin"), LOCAL),
    **dict.fromkeys(("Blond_Hair", "Black_Hair", "Brown_Hair", "Gray_Hair"), COLOUR),
    **dict.fromkeys(("Bald", "Bangs", "Wearing_Hat"), HAIR),
    "Young": (0.95, 8.0),
}
SEEN_MARGIN = 3.0  # log odds at which the VAE's head is content, without a guide; by eye
STRENGTH_TOLERANCE = 0.02  # precision of the strength in ``smallest_edit``; by eye
EDIT_ERROR_STD = 0.1  # of x0_hat near the clean image; by eye: half or twice this value looks alike
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (Rec. 601)
GREY_LEVELS = 4  # by which the colours of a grey photograph may differ, from its compression; by eye
PINNED = 50.0  # hold of a pinned attribute; measured: docs/log.md, "Attributes that are pinned"
INVERSION_STEPS = 25  # there, and as many back
PARTS = 3  # of an edit, which is watched after each but the last; by eye
AT_ONCE = 16  # noisy pictures for which the network is asked at once; by eye: memory
IN_NOISE = 0.25  # share of cfg_scale where all is noise; measured: docs/log.md, "Guidance that grows"
FADE = 2.0  # log odds before its aim at which the guidance of an edit begins to fade; by eye


def resolve(editing: EditConfig, named: Iterable[str], has_guide: bool) -> EditConfig:
    """The same settings with nothing left open. t_start and the margin are the largest that one of the
    ``named`` attributes needs. At a guide_scale of 0 nothing ends an edit, so cfg_scale is lower."""
    needs = [NEEDS.get(name, USUAL) for name in named] or [USUAL]
    t_start = max(start for start, _ in needs)
    margin = max(log_odds for _, log_odds in needs) if has_guide else SEEN_MARGIN
    cfg_scale = STEERED_SCALE if editing.guide_scale > 0 else EDIT_CFG_SCALE
    return replace(
        editing,
        t_start=t_start if editing.t_start is None else editing.t_start,
        margin=margin if editing.margin is None else editing.margin,
        cfg_scale=cfg_scale if editing.cfg_scale is None else editing.cfg_scale,
    )


def slerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985) from a (C, H, W) at weight 0 to b at weight 1, for weights
    (N,): (N, C, H, W). It keeps the norm of noise. Linear interpolation would reduce it."""
    cosine = F.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1)
    angle = torch.acos(cosine).clamp(min=1e-4)
    w = weight.view(-1, 1, 1, 1)
    return (torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / torch.sin(angle)


def reach_of(side: int) -> int:
    """Pixels that a mask reaches at its edge, for pictures of this side: 1 at 64, 2 at 128."""
    return max(1, round(side / 64))


def mean_around(images: Tensor, reach: int) -> Tensor:
    """The mean of each pixel and its neighbours up to ``reach`` away, within images (B, C, H, W)."""
    return F.avg_pool2d(images, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)


def softened(mask: Tensor) -> Tensor:
    """A mask (..., H, W) in [0, 1] that rises from its edge inwards, over 5 pixels at side 128: the mean
    of its erosions. Where it is 0 it stays 0, and no line in it is too thin."""
    erosions = [mask.reshape(-1, 1, *mask.shape[-2:])]
    for _ in range(2 * reach_of(mask.shape[-1])):
        erosions.append(-F.max_pool2d(-erosions[-1], 3, stride=1, padding=1))
    return torch.stack(erosions).mean(0).view_as(mask)


def where_changed(picture: Tensor, edited: Tensor, threshold: float) -> Tensor:
    """A mask (B, 1, H, W) in [0, 1] of where ``edited`` (B, 3, H, W) differs much from ``picture``. The
    difference is the smoothed mean over channels, as a share of its maximum. From ``threshold`` up the
    mask is 1, below half of that 0. It is that of Couairon et al. 2022, arXiv:2210.11427, but computed
    from the result."""
    reach = reach_of(picture.shape[3])  # the windows are 5 and 3 wide at side 64
    change = mean_around((edited - picture).abs().mean(1, keepdim=True), 2 * reach)
    share = change / change.amax((2, 3), keepdim=True).clamp(min=1e-6)
    mask = (2 * share / threshold - 1).clamp(0, 1)
    mask = F.max_pool2d(mask, 2 * reach + 1, stride=1, padding=reach)
    return mean_around(mask, reach)


def structure_kept(picture: Tensor, edited: Tensor) -> Tensor:
    """How far edits (B, 3, H, W) have kept the shapes of as many pictures, or of one: 1 wholly, 0 not at
    all, for each pixel (B, 1, H, W). It is SSIM without its luminance (Wang et al. 2004, equations 9 and
    10 as one), of the mean over channels, in windows of 9 pixels at side 128. Where both are flat it is
    1."""
    reach = 2 * reach_of(picture.shape[3])
    grey, grey_edited = picture.mean(1, keepdim=True), edited.mean(1, keepdim=True)
    a = grey - mean_around(grey, reach)
    b = grey_edited - mean_around(grey_edited, reach)
    flat = (0.03 * 2) ** 2  # the paper's K2, squared, of a range of 2
    variances = mean_around(a * a, reach) + mean_around(b * b, reach)
    return ((2 * mean_around(a * b, reach) + flat) / (variances + flat)).clamp(0, 1)


def localised(
    picture: Tensor,
    edited: Tensor,
    threshold: float,
    region: Tensor | None = None,
    lost: Tensor | None = None,
) -> Tensor:
    """``edited`` (B, 3, H, W) ``where_changed``, and ``picture`` elsewhere, where changes are drift; at
    a threshold of 0 ``edited`` everywhere. A ``region`` (H, W) in [0, 1] confines both.

    ``lost`` (B, 3, H, W) is the fine detail that a first stage loses of the picture. All of it is added
    to the picture. To the edit it is added where the edit has kept the picture's shapes, so that the
    rims of removed glasses do not come back."""
    mask = where_changed(picture, edited, threshold) if threshold > 0 else None
    if region is not None:
        mask = region if mask is None else mask * region
    if lost is not None:
        edited = edited + lost * structure_kept(picture, edited)
        picture = picture + lost
    return edited if mask is None else torch.lerp(picture, edited, mask)


def smallest_edit(edit_at: EditAt, margin: Callable[[Tensor], float]) -> tuple[float, Tensor]:
    """The smallest strength at which an edit's margin is 0 or more, to STRENGTH_TOLERANCE, and that
    edit. Brent's method finds this root between strengths 0 and 1 with about seven edits. If the margin
    is negative at strength 1, the edit at strength 1 is returned."""
    edits: dict[float, Tensor] = {}
    margins: dict[float, float] = {}

    def margin_at(strength: float) -> float:
        if strength not in edits:
            edits[strength] = edit_at(strength)
            margins[strength] = margin(edits[strength])
        return margins[strength]

    if margin_at(0.0) < 0 <= margin_at(1.0):
        brentq(margin_at, 0.0, 1.0, xtol=STRENGTH_TOLERANCE)
    enough = [strength for strength, value in margins.items() if value >= 0]
    smallest = min(enough, default=1.0)
    return smallest, edits[smallest]


def for_all_steps(
    noisy: Mapping[int, Tensor], function: Callable[[Tensor, Tensor], Tensor]
) -> Sequence[Tensor]:
    """``function(x_t, t)`` for each timestep t and its x_t (B, C, h, w). It is called with several
    timesteps at once, as (B,)."""
    number = len(next(iter(noisy.values())))
    x_t = torch.cat([*noisy.values()])
    t = torch.tensor([*noisy], device=x_t.device).repeat_interleave(number)
    size = max(1, AT_ONCE // number) * number
    results = [function(*part) for part in zip(x_t.split(size), t.split(size), strict=True)]
    return torch.cat(results).split(number)


# -------------------------------------------------------------------- guidance of edits


@dataclass(frozen=True)
class NoisySource:
    """What edits of photographs share, whatever is asked for.

    Attributes:
        x0: (B, C, h, w).
        decoded: x0 as pixels (B, 3, S, S) in [-1, 1].
        original: the photographs, in the same form.
        grid: falling timesteps, -1 last.
        noise: for each step the noise eps (B, C, h, w).
        noisy: x_t (B, C, h, w) for each timestep.
        odds: ``guide.log_odds`` of x_t for each timestep; empty where no guide steers.
        x0_hats: x0_hat for each timestep that was asked for so far, under the rows (B, A) from which
            edits lead away; by the values of these rows. ``source_x0_hats`` adds to it.
    """

    x0: Tensor
    decoded: Tensor
    original: Tensor
    grid: list[int]
    noise: list[Tensor]
    noisy: dict[int, Tensor]
    odds: dict[int, Tensor]
    x0_hats: dict[tuple[float, ...], dict[int, Tensor]] = field(default_factory=dict)

    def repeated(self, number: int) -> NoisySource:
        """The same for ``number`` edits, where a single photograph has many."""
        noise = [eps.expand(number, -1, -1, -1) for eps in self.noise]
        noisy = {t: x_t.expand(number, -1, -1, -1).contiguous() for t, x_t in self.noisy.items()}
        return replace(self, x0=self.x0.expand(number, -1, -1, -1), noise=noise, noisy=noisy)


@dataclass(frozen=True)
class EditRows:
    """What edits are to change, as attribute rows (N, A).

    Attributes:
        named: what is asked for; 0 for what is not named.
        base: from which edits lead away.
        target: to which they lead: what is asked for or implied, else what the photographs show.
        pinned: columns of the attributes that the guide holds firmly.
    """

    named: Tensor
    base: Tensor
    target: Tensor
    pinned: list[int]


@dataclass(frozen=True)
class Steering:
    """How a guide steers an edit.

    Attributes:
        guide: reads x_t.
        columns: of the attributes that it reads.
        goal: (B, len(columns)), +1 or -1 for a named attribute, and 0 for the others.
        source_odds: ``guide.log_odds`` (B, len(columns)) of the sources, or of a single one, with the
            same noise, for each timestep.
        firmness: (len(columns),), how firmly each attribute is held.
        editing: resolved.
    """

    guide: GuidanceClassifier
    columns: Sequence[int]
    goal: Tensor
    source_odds: Mapping[int, Tensor]
    firmness: Tensor
    editing: EditConfig


def missing_share(
    goal: Tensor, source_odds: Tensor, odds: Tensor, margin: float | None, strength: float
) -> Tensor:
    """m_i of ``towards`` (B, A): how much is missing of each attribute that the goal (B, A) names. Log
    odds (B, A) are of the source and of the edit so far."""
    start = source_odds * goal
    aim = torch.lerp(start, torch.full_like(start, margin), strength)
    return (goal != 0) * ((aim - odds * goal) / FADE).clamp(0, 1)


def scale_at(
    t: int, schedule: NoiseSchedule, editing: EditConfig, norm: Tensor | float = 1.0
) -> Tensor | float:
    """The guidance scale w_t of an edit. It grows from IN_NOISE cfg_scale, where all is noise, to
    cfg_scale, where none is. The growth is divided by ``norm``. In much noise a high scale burns colours
    and moves outlines (Kynkaanniemi et al. 2024, arXiv:2404.07724, of new pictures).
    """
    cfg_scale = editing.cfg_scale
    assert cfg_scale is not None  # resolved
    return cfg_scale * (IN_NOISE + (1 - IN_NOISE) * (1 - t / schedule.num_timesteps) / norm)


def until_seen(
    pair: Denoiser,
    read: Callable[[Tensor], Tensor],
    goal: Tensor,
    source_odds: Tensor,
    schedule: NoiseSchedule,
    editing: EditConfig,
    strength: float,
) -> Denoiser:
    """Guidance of an edit without a guide: classifier-free at strength m w_t (``scale_at``), which ends
    where what is asked for is seen in x0_hat. m is the largest m_i of ``missing_share``.

    Args:
        pair: under base rows and target rows, as of ``classifier_free``.
        read: x0_hat (B, C, h, w) -> log odds of each attribute (B, A).
        goal: (B, A), +1 or -1 for a named attribute, and 0 for the others.
        source_odds: what ``read`` gives for the sources.
    """

    def guided(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        x0_base, x0_target = pair(x_t.repeat(2, 1, 1, 1), t)[0].chunk(2)
        missing = missing_share(goal, source_odds, read(x0_base), editing.margin, strength)
        scale = strength * scale_at(t, schedule, editing) * missing.amax(1)
        x0_hat = x0_base + scale.view(-1, 1, 1, 1) * (x0_target - x0_base)
        return x0_hat, schedule.eps_from_x0(x0_hat, x_t, t)

    return guided


def towards(
    denoiser: Callable[[Tensor], Denoiser],
    base: Tensor,
    target: Tensor,
    schedule: NoiseSchedule,
    steering: Steering,
    strength: float,
) -> Denoiser:
    """Guidance of an edit that ends where the guide sees what is asked for, and holds the rest.

    x0_hat = x0_base + m w_t (x0_target - x0_base) + noise_t^2 / signal_t grad(guide_scale sum over the
    goal of m_i log p_i(x_t) - sum over held of firmness (p(x_t) - p(source x_t))^2), where p is the
    guide's probability of an attribute, and w_t is ``scale_at``. m_i in [0, 1] says how much of a named
    attribute is missing. It is 1 where its log odds are FADE or more below their aim, and falls to 0 at
    the aim. At strength 1 the aim is editing.margin, at 0 what the source has. The gradients are those
    of Dhariwal & Nichol 2021, arXiv:2105.05233.

    m is the largest m_i. Of several named attributes, each moves in the target row by its m_i / m, so
    an attribute that is complete is not overdone. The growth of w_t is divided by the norm of the
    m_i / m. So steps are hardly longer than for one attribute.

    Args:
        denoiser: attribute rows (2B, A) -> the denoiser under them.
        base, target: rows (B, A): what the picture shows, and what is asked for. What is equal in sign
            in both is held.
    """
    guide, columns, goal = steering.guide, steering.columns, steering.goal
    source_odds, editing = steering.source_odds, steering.editing
    named = goal != 0
    any_named = named.any(1, keepdim=True)
    held = (base.sign() == target.sign())[:, columns] * steering.firmness

    def gradient_and_missing(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """The guide's gradient at x_t, and m_i (B, len(columns))."""
        with torch.enable_grad():
            x = x_t.detach().requires_grad_(True)
            odds = guide.log_odds(x, t)
            missing = missing_share(goal, source_odds[t], odds.detach(), editing.margin, strength)
            progress = (missing * F.logsigmoid(goal * odds)).sum(1)
            moved = (held * (odds.sigmoid() - source_odds[t].sigmoid()).square()).sum(1)
            objective = editing.guide_scale * progress - moved
            (gradient,) = torch.autograd.grad(objective.sum(), x)
        return gradient, missing

    def guided(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        gradient, missing = gradient_and_missing(x_t, t)
        most = torch.where(any_named, missing.amax(1, keepdim=True), 1.0)
        relative = missing / most.clamp(min=1e-6)
        share = torch.ones_like(target)
        share[:, columns] = torch.where(named, relative, 1.0).to(share.dtype)
        rows = torch.cat([base, torch.lerp(base, target, share)])
        x0_base, x0_target = denoiser(rows)(x_t.repeat(2, 1, 1, 1), t)[0].chunk(2)
        signal, noise = schedule.signal_and_noise(t, x_t)
        norm = relative.norm(dim=1, keepdim=True).clamp(min=1)
        scale = scale_at(t, schedule, editing, norm) * most
        x0_hat = x0_base + scale.view(-1, 1, 1, 1) * (x0_target - x0_base)
        if float(signal) >= LEAST_SIGNAL:
            x0_hat = x0_hat + noise * noise / signal * gradient
        return x0_hat, schedule.eps_from_x0(x0_hat, x_t, t)

    return guided


def weighed_with_input(denoiser: Denoiser, schedule: NoiseSchedule, error_std: float) -> Denoiser:
    """x0_hat as the precision-weighted mean of two estimates of x0: the posterior mean of two
    independent Gaussian measurements. One is the network's x0_hat, with an error of standard deviation
    ``error_std``. The other is x_t / signal_t, with an error of standard deviation noise_t / signal_t.

    Near the clean image, x_t counts more. Editing needs this: there the network's eps_hat is its error
    divided by almost no noise, which would spoil the inversion.
    """

    def weighed(x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        x0_hat, _ = denoiser(x_t, t)
        signal2, noise2 = schedule.squares_at(t, x_t)
        weight = error_std**2 * signal2.sqrt() / (error_std**2 * signal2 + noise2)
        share = weight * signal2.sqrt()  # of x_t / signal_t, which may be infinite
        x0_hat = weight.to(x_t.dtype) * x_t + (1 - share).to(x_t.dtype) * x0_hat
        return x0_hat, schedule.eps_from_x0(x0_hat, x_t, t)

    return weighed


# -------------------------------------------------------------------- with inversion, and without


def invert_ddim(
    denoise: Denoiser, schedule: NoiseSchedule, x0: Tensor, grid: list[int], progress: Progress = False
) -> Tensor:
    """The noise x_T (B, C, h, w) that leads to x0: DDIM on the reversed grid. It is deterministic."""
    return last(with_bar(ddim(denoise, schedule, x0, grid[::-1]), "inverting", grid, progress))


def edit_grid(schedule: NoiseSchedule, editing: EditConfig) -> list[int]:
    """The timesteps that an edit visits: num_inference_steps of them from t_start T down, then -1."""
    assert editing.t_start is not None  # resolved
    steps = round(editing.num_inference_steps / editing.t_start)
    whole = timestep_grid(schedule, min(steps, schedule.num_timesteps))
    return whole[-1 - editing.num_inference_steps :]


def flow_edit(
    target: Denoiser,
    schedule: NoiseSchedule,
    x0: Tensor,
    x0_hats: Iterable[Tensor],
    noise: Iterable[Tensor],
    grid: list[int],
) -> Steps:
    """From a picture x0 (B, C, h, w) to its edit, without inversion (FlowEdit, Kulikov et al. 2024,
    arXiv:2412.08629, algorithm 1).

    The edit is x0 + change. The picture and its edit get the same noise, fresh at every step. The change
    follows the difference between what is predicted of the two. With sigma = noise_t / signal_t and
    r = sigma_s / sigma_t:

        change_s = r change_t + (1 - r) (x0_hat of the edit - x0_hat of the picture)

    Detail that the network cannot draw is not lost, because only the difference counts.

    Args:
        target: the denoiser under what is asked for.
        x0_hats: for each step x0_hat of the picture, by the denoiser under what it shows.
        noise: for each step the noise eps, in the shape of x0.
        grid: falling timesteps, -1 last.
    """
    change = torch.zeros_like(x0)
    steps = zip(pairwise(grid), x0_hats, noise, strict=True)
    for step, ((t, s), source_x0_hat, eps) in enumerate(steps):
        x0_hat, _ = target(schedule.q_sample(x0 + change, t, eps), t)
        ratio = math.exp(float(schedule.half_log_snr(t) - schedule.half_log_snr(s)))
        change = ratio * change + (1 - ratio) * (x0_hat - source_x0_hat)
        yield step, s, x0 + change, x0_hat


def as_grey_as(source: Tensor, edited: Tensor) -> Tensor:
    """Edits (N, 3, S, S) of photographs (N or 1, 3, S, S). Where a photograph is grey, its edit is, too:
    of the change, only the brightness is kept."""
    spread = (source.amax(1) - source.amin(1)).amax((1, 2)) * 127.5
    luma = (edited - source).mul(edited.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    return torch.where((spread <= GREY_LEVELS).view(-1, 1, 1, 1), source + luma, edited)


class Editor:
    """Edits photographs uint8 (B, S, S, 3) with a model."""

    def __init__(self, model: ConditionalDiffusion):
        self.model, self.schedule, self.first_stage = model, model.schedule, model.first_stage

    def near_clean(self, denoise: Denoiser) -> Denoiser:
        """The denoiser in the form that inversion needs: ``weighed_with_input``."""
        return weighed_with_input(denoise, self.schedule, EDIT_ERROR_STD)

    def own(self, attributes: Tensor, latent: Tensor | None) -> Denoiser:
        """The unguided denoiser under a photograph's own attributes and latent."""
        return self.near_clean(self.model.denoiser(attributes, latent))

    @torch.no_grad()
    def invert(
        self,
        images: Tensor,
        attributes: Tensor,
        latent: Tensor | None = None,
        num_inference_steps: int = INVERSION_STEPS,
        progress: Progress = False,
    ) -> Tensor:
        """The noise x_T (B, C, h, w) that leads to these images, by unguided DDIM inversion of a
        denoiser ``weighed_with_input``."""
        x0 = self.model.encode_images(images)
        grid = timestep_grid(self.schedule, num_inference_steps)
        denoise = self.own(self.model.attribute_rows(attributes, len(x0)), latent)
        return invert_ddim(denoise, self.schedule, x0, grid, progress)

    @torch.no_grad()
    def prepare_source(
        self,
        source_image: Tensor,
        editing: EditConfig,
        guide: GuidanceClassifier | None = None,
        generator: Generator = None,
    ) -> NoisySource:
        """Compute once what edits of these photographs share: see ``prepare_edit``.

        Args:
            editing: resolved.
        """
        model, schedule = self.model, self.schedule
        guide = model.guide if guide is None else guide
        x0 = model.encode_images(source_image)
        grid = edit_grid(schedule, editing)
        noise = [randn_like(x0, generator) for _ in grid[:-1]]
        noisy = {t: schedule.q_sample(x0, t, eps) for t, eps in zip(grid[:-1], noise, strict=True)}
        odds = {}
        if guide is not None and editing.guide_scale:
            odds = dict(zip(noisy, for_all_steps(noisy, guide.log_odds), strict=True))
        original = PIXELS.encode(source_image.to(x0.device))
        return NoisySource(x0, self.first_stage.to_pixels(x0), original, grid, noise, noisy, odds)

    @torch.no_grad()
    def prepare_edit(
        self,
        source_image: Tensor,
        target_attributes: Attributes,
        editing: EditConfig = DEFAULT_EDITING,
        source_attributes: Attributes = None,
        guide: GuidanceClassifier | None = None,
        generator: Generator = None,
        progress: Progress = False,
        mask: Tensor | None = None,
        pins: Sequence[str] = (),
        source: NoisySource | None = None,
    ) -> EditAt:
        """Compute once what edits at all strengths share. Return ``edit`` as a function of the strength
        alone. A single source may have many targets. The function shows its ``watch`` the edit after a
        third and after two thirds of the steps.

        Edits start at the timestep t_start T. Less noise keeps more of the composition.

        Args:
            mask: (S, S) in [0, 1], 1 where edits may act; None is everywhere.
            pins: names of attributes that the guide holds firmly.
            source: of ``prepare_source``, with the same arguments and a generator in the same state.
        """
        model, schedule = self.model, self.schedule
        guide = model.guide if guide is None else guide
        if source_attributes is None:
            source_attributes = model.predict_attributes(source_image, guide)
        num_sources = len(source_image)
        read = model.attribute_rows(source_attributes, num_sources)
        named = model.attribute_rows(target_attributes, num_sources if num_sources > 1 else None)
        number = len(named)
        named_columns = (named != 0).any(0).nonzero()[:, 0].tolist()
        names = [model.config.attribute_names[i] for i in named_columns]
        editing = resolve(editing, names, guide is not None)
        if source is None:
            source = self.prepare_source(source_image, editing, guide, generator)
        shared = source.repeated(number)
        rows = self.edit_rows(named, read.expand(number, -1), pins, editing.oppose)
        guidance_at = self.guidance_of(rows, shared, editing, guide)
        region = None if mask is None else softened(mask.to(model.device))
        # ``localised`` adds it again, so what is not edited stays to the byte.
        lost = shared.original - shared.decoded
        watched = [part * len(shared.noise) // PARTS for part in range(1, PARTS)]

        def picture(edited: Tensor) -> Tensor:
            changed = self.first_stage.to_pixels(edited)
            whole = localised(shared.decoded, changed, editing.localise, region, lost)
            return PIXELS.decode(as_grey_as(shared.original, whole))

        @torch.no_grad()
        def edit_at(strength: float, watch: Watch | None = None) -> Tensor:
            if not 0 <= strength <= 1:
                raise ValueError(f"strength must lie in [0, 1], got {strength}")
            if strength == 0:  # no edit: the photograph itself
                return source_image.to(model.device).expand(number, -1, -1, -1)
            denoise = guidance_at(strength)
            x0_hats = self.source_x0_hats(shared, rows.base)
            steps = flow_edit(denoise, schedule, shared.x0, x0_hats, shared.noise, shared.grid)
            edited = shared.x0
            for step, _, edited, _ in with_bar(steps, "editing", shared.grid, progress):
                if watch and step + 1 in watched:
                    watch(picture(edited))
            return picture(edited)

        return edit_at

    def edit_rows(self, named: Tensor, read: Tensor, pins: Sequence[str], oppose: bool) -> EditRows:
        """The rows of edits of photographs that show ``read`` (N, A)."""
        config = self.model.config
        oppose = oppose and not config.one_hot  # a class has no opposite
        base = torch.where(named == 0, read, -named.sign()) if oppose else read
        request = with_implied(named, read, config.attribute_names)
        pinned = columns_of(config.attribute_names, pins)
        request[:, pinned] = 0  # also what the request implies of them
        return EditRows(named, base, torch.where(request == 0, read, request), pinned)

    def source_x0_hats(self, source: NoisySource, base: Tensor) -> Iterator[Tensor]:
        """For each step x0_hat of the photographs under rows (N, A). They are kept for later edits. The
        first is computed with the others of its part, and so on, so that an edit is soon watched."""
        x0_hats = source.x0_hats.setdefault(tuple(base.flatten().tolist()), {})

        def x0_hat(x_t: Tensor, t: Tensor) -> Tensor:
            return self.model.denoiser(base.repeat(len(x_t) // len(base), 1))(x_t, t)[0]

        timesteps = [*source.noisy]
        size = math.ceil(len(timesteps) / PARTS)
        for start in range(0, len(timesteps), size):
            part = timesteps[start : start + size]
            if part[0] not in x0_hats:
                noisy = {t: source.noisy[t] for t in part}
                x0_hats.update(zip(part, for_all_steps(noisy, x0_hat), strict=True))
            yield from (x0_hats[t] for t in part)

    def guidance_of(
        self,
        rows: EditRows,
        source: NoisySource,
        editing: EditConfig,
        guide: GuidanceClassifier | None,
    ) -> Callable[[float], Denoiser]:
        """The guidance of edits as a function of their strength. The guide ends an edit. Without a
        guide, the VAE's head does. At a guide_scale of 0, nothing does."""
        model, schedule, goal = self.model, self.schedule, rows.named.sign()
        pair = model.denoiser(torch.cat([rows.base, rows.target]))
        if not editing.guide_scale:
            cfg_scale = editing.cfg_scale
            assert cfg_scale is not None  # resolved
            return lambda strength: classifier_free(pair, strength * cfg_scale)
        if guide is None:
            read_head = model.attribute_reader()
            odds = read_head(source.x0)
            return lambda strength: until_seen(pair, read_head, goal, odds, schedule, editing, strength)
        columns = model.check_guide(guide)
        firmness = source.x0.new_full((rows.base.shape[1],), editing.hold)
        firmness[rows.pinned] = max(PINNED, editing.hold)
        steering = Steering(guide, columns, goal[:, columns], source.odds, firmness[columns], editing)
        base, target = rows.base, rows.target
        return lambda strength: towards(model.denoiser, base, target, schedule, steering, strength)

    def edit(
        self,
        source_image: Tensor,
        target_attributes: Attributes,
        strength: float = 1.0,
        editing: EditConfig = DEFAULT_EDITING,
        source_attributes: Attributes = None,
        guide: GuidanceClassifier | None = None,
        generator: Generator = None,
        progress: Progress = False,
        **options,
    ) -> Tensor:
        """Edit photographs by named attributes: ``flow_edit`` from the source's prediction towards the
        target's, with guidance of scale strength * cfg_scale. So the edit is continuous in strength,
        from the source at 0 to the full edit at 1. With a guide, strength says how far the edit goes in
        the guide's log odds, and guidance ends there (``towards``).

        Args:
            source_image: uint8 (B, S, S, 3).
            target_attributes: what to change, as rows or requests (see ``attribute_rows``). Attributes
                that are 0 or not named stay as in the source.
            strength: in [0, 1].
            editing: steps and guidance. ``options`` replace single fields of it.
            source_attributes: of the source; from ``predict_attributes`` if not given.
            guide: predicts them, too, and steers; None takes the model's own.
            generator: of the noise.

        Returns:
            uint8 (B, S, S, 3).

        Raises:
            ValueError: for a strength outside [0, 1], or shapes that do not fit the model.
        """
        editing = replace(editing, **options)
        edit_at = self.prepare_edit(
            source_image, target_attributes, editing, source_attributes, guide, generator, progress
        )
        return edit_at(strength)

    @torch.no_grad()
    def interpolate(
        self,
        images: Tensor,
        num_steps: int = 10,
        num_inference_steps: int = INVERSION_STEPS,
        attributes: Tensor | None = None,
        progress: Progress = False,
    ) -> Tensor:
        """From one photograph to another: images uint8 (2, S, S, 3) -> uint8 (num_steps, S, S, 3). It is
        spherical in x_T (DDIM inversion). It is linear in the semantic latent, in the attributes
        (predicted if not given) and in the error of the inversion. So both ends are the photographs.

        Raises:
            ValueError: for fewer than two steps, or not exactly two images.
        """
        if num_steps < 2 or len(images) != 2:
            raise ValueError(
                f"interpolation takes 2 images and 2 steps or more, got {len(images)} and {num_steps}"
            )
        model = self.model
        x0, latent = model.encode_images(images), model.encode_latent(images)
        rows = model.predict_attributes(images) if attributes is None else attributes
        rows = model.attribute_rows(rows, 2)
        grid = timestep_grid(self.schedule, num_inference_steps)
        own = self.own(rows, latent)
        x_T = invert_ddim(own, self.schedule, x0, grid, progress)

        def back(denoise: Denoiser, start: Tensor) -> Tensor:
            return last(with_bar(ddim(denoise, self.schedule, start, grid), "mixing", grid, progress))

        lost = x0 - back(own, x_T)
        weight = torch.linspace(0, 1, num_steps, device=x0.device)

        def between(ends: Tensor) -> Tensor:
            return torch.lerp(ends[:1], ends[1:], weight.view(-1, *[1] * (ends.ndim - 1)))

        denoise = self.own(between(rows), between(latent))
        frames = back(denoise, slerp(x_T[0], x_T[1], weight)) + between(lost)
        frames[0], frames[-1] = x0  # the same up to rounding
        pixels, originals = self.first_stage.to_pixels(frames), PIXELS.encode(images.to(x0.device))
        ends = pixels[[0, -1]]
        details = [  # what the first stage loses of each end, where a frame still has its shapes
            lost * structure_kept(end, pixels)
            for lost, end in zip((originals - ends).split(1), ends.split(1), strict=True)
        ]
        frames = pixels + torch.lerp(*details, weight.view(-1, 1, 1, 1))
        return PIXELS.decode(as_grey_as(between(originals), frames))
