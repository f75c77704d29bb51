"""Editing photographs: ``Editor(model)`` inverts, edits and interpolates them.

``ConditionalDiffusion`` offers these methods, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import Tensor

from attributes import settle
from config import EDIT_CFG_SCALE, STEERED_SCALE, EditConfig
from guidance import Guide, classifier_free, towards, weighed_with_input
from noise_schedule import Denoiser, NoiseSchedule
from progress import progress_bar
from samplers import Generator, Steps, ddim, last, randn_like, timestep_grid

if TYPE_CHECKING:
    from diffusion_model import Attributes, ConditionalDiffusion

DEFAULT_EDITING = EditConfig()
EditAt = Callable[[float], Tensor]  # strength in [0, 1] -> uint8 (B, S, S, 3)
# Whether to show a progress bar, or what shows one: (steps, label, their number) -> the same steps.
Progress = bool | Callable[[Steps, str, int], Steps]

# What an edit of an attribute needs, where nothing else is asked for: the share of the timesteps from
# which it starts, and the log odds at which the guide is content. Only much noise hides hair and hats.
# An expression needs little, and then more of the photograph stays. Measured: docs/results.md, "Edits
# of photographs".
DEPTH, MARGIN = 0.85, 6.0
LOCAL, HAIR = (0.65, 5.0), (0.9, 6.0)
NEEDS = {
    **dict.fromkeys(("Smiling", "Mouth_Slightly_Open", "Eyeglasses", "Narrow_Eyes", "Pale_Skin"), LOCAL),
    **dict.fromkeys(("Blond_Hair", "Black_Hair", "Brown_Hair", "Gray_Hair", "Bald"), HAIR),
    **dict.fromkeys(("Bangs", "Wearing_Hat"), HAIR),
    "Young": (0.95, 8.0),
}
STRENGTH_TOLERANCE = 0.02  # precision of the strength in ``smallest_edit``
EDIT_ERROR_STD = 0.1  # of x0_hat near the clean image; half or twice this value gives similar edits


def with_bar(steps: Steps, label: str, grid: list[int], progress: Progress) -> Steps:
    """The same steps behind a progress bar, in the terminal or of the caller's own."""
    if not isinstance(progress, bool):
        return progress(steps, label, len(grid) - 1)
    return progress_bar(steps, label, len(grid) - 1, unit="step", leave=False, disable=not progress)


def suited(editing: EditConfig, named: Iterable[str]) -> EditConfig:
    """``editing`` with a depth and a margin. Where none is asked for, it is the largest that one of the
    ``named`` attributes needs."""
    needs = [NEEDS.get(name, (DEPTH, MARGIN)) for name in named] or [(DEPTH, MARGIN)]
    depth, margin = map(max, zip(*needs, strict=True))
    return replace(
        editing,
        depth=depth if editing.depth is None else editing.depth,
        margin=margin if editing.margin is None else editing.margin,
    )


def with_scale(editing: EditConfig, has_guide: bool) -> EditConfig:
    """``editing`` with a scale. Where none is asked for, it depends on whether a guide steers."""
    if editing.cfg_scale is not None:
        return editing
    steered = has_guide and editing.guide_scale > 0
    return replace(editing, cfg_scale=STEERED_SCALE if steered else EDIT_CFG_SCALE)


def slerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985) from a (C, H, W) at weight 0 to b at weight 1, for weights
    (N,): (N, C, H, W). It keeps the norm of noise. Linear interpolation would reduce it."""
    cosine = F.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1)
    angle = torch.acos(cosine).clamp(min=1e-4)
    w = weight.view(-1, 1, 1, 1)
    return (torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / torch.sin(angle)


def localised(x0: Tensor, edited: Tensor, threshold: float) -> Tensor:
    """``edited`` (B, C, H, W) where it differs much from x0, and x0 elsewhere, where changes are drift.
    The difference is the smoothed mean over channels, as a share of its maximum. From ``threshold`` up
    it selects ``edited``, below half of that x0, and a blend in between. The mask is that of Couairon et
    al. 2022, arXiv:2210.11427, but computed from the result."""
    if threshold == 0:
        return edited
    smooth = partial(F.avg_pool2d, stride=1, count_include_pad=False)
    change = smooth((edited - x0).abs().mean(1, keepdim=True), 5, padding=2)
    share = change / change.amax((2, 3), keepdim=True).clamp(min=1e-6)
    mask = (2 * share / threshold - 1).clamp(0, 1)
    mask = smooth(F.max_pool2d(mask, 3, stride=1, padding=1), 3, padding=1)
    return torch.lerp(x0, edited, mask)


def smallest_edit(edit_at: EditAt, margin: Callable[[Tensor], float]) -> tuple[float, Tensor]:
    """The smallest strength at which an edit's margin is 0 or more, to STRENGTH_TOLERANCE, and that
    edit. Brent's method finds this root between strengths 0 and 1 with about seven edits. If the margin
    is negative at strength 1, the edit at strength 1 is returned."""
    tried: dict[float, tuple[float, Tensor]] = {}

    def margin_at(strength: float) -> float:
        if strength not in tried:
            edited = edit_at(strength)
            tried[strength] = margin(edited), edited
        return tried[strength][0]

    if margin_at(0.0) < 0 <= margin_at(1.0):
        brentq(margin_at, 0.0, 1.0, xtol=STRENGTH_TOLERANCE)
    strength = min((each for each, (found, _) in tried.items() if found >= 0), default=1.0)
    return strength, tried[strength][1]


# -------------------------------------------------------------------- with inversion, and without


def invert_ddim(
    denoise: Denoiser, schedule: NoiseSchedule, x0: Tensor, grid: list[int], progress: Progress = False
) -> Tensor:
    """The noise x_T (B, C, h, w) that leads to x0: DDIM on the reversed grid. It is deterministic."""
    return last(with_bar(ddim(denoise, schedule, x0, grid[::-1]), "inverting", grid, progress))


def flow_edit(
    target: Denoiser,
    schedule: NoiseSchedule,
    x0: Tensor,
    seen: Sequence[Tensor],
    noise: Sequence[Tensor],
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
        seen: for each step x0_hat of the picture, by the denoiser under what it shows.
        noise: for each step the noise eps, in the shape of x0.
        grid: falling timesteps, -1 last.
    """
    change = torch.zeros_like(x0)
    for step, (t, s) in enumerate(pairwise(grid)):
        x0_hat, _ = target(schedule.q_sample(x0 + change, t, noise[step]), t)
        ratio = math.exp(float(schedule.half_log_snr(t) - schedule.half_log_snr(s)))
        change = ratio * change + (1 - ratio) * (x0_hat - seen[step])
        yield step, s, x0 + change, x0_hat


class Editor:
    """Edits photographs uint8 (B, S, S, 3) with a model."""

    def __init__(self, model: ConditionalDiffusion):
        self.model, self.schedule, self.first_stage = model, model.schedule, model.first_stage

    def near_clean(self, denoise: Denoiser) -> Denoiser:
        """The denoiser in the form that editing needs: ``weighed_with_input``."""
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
        num_inference_steps: int = 50,
        progress: Progress = False,
    ) -> Tensor:
        """The noise x_T (B, C, h, w) that leads to these images, by unguided DDIM inversion of a
        denoiser ``weighed_with_input``."""
        x0 = self.model.encode_images(images)
        grid = timestep_grid(self.schedule, num_inference_steps)
        denoise = self.own(self.model.attribute_rows(attributes, len(x0)), latent)
        return invert_ddim(denoise, self.schedule, x0, grid, progress)

    @torch.no_grad()
    def prepare_edit(
        self,
        source_image: Tensor,
        target_attributes: Attributes,
        editing: EditConfig = DEFAULT_EDITING,
        source_attributes: Attributes = None,
        guide: Guide | None = None,
        generator: Generator = None,
        progress: Progress = False,
    ) -> EditAt:
        """Compute once what edits of these photographs share. Return ``edit`` as a function of the
        strength alone. A single source may have many targets.

        Edits start at a share ``depth`` of the timesteps. The composition stays, because only more
        noise would hide it.
        """
        model, schedule = self.model, self.schedule
        if source_attributes is None:
            source_attributes = model.predict_attributes(source_image, guide)
        x0 = model.encode_images(source_image)
        read = model.attribute_rows(source_attributes, len(x0))
        named = model.attribute_rows(target_attributes, len(x0) if len(x0) > 1 else None)
        number = len(named)
        names = model.config.attribute_names
        in_any_row = (named != 0).any(0).tolist()
        asked_for = [name for name, asked in zip(names, in_any_row, strict=True) if asked]
        editing = suited(with_scale(editing, guide is not None), asked_for)
        depth, cfg_scale = editing.depth, editing.cfg_scale
        assert depth is not None and cfg_scale is not None

        steps = round(editing.num_inference_steps / depth)
        grid = timestep_grid(schedule, min(steps, schedule.num_timesteps))
        grid = grid[-1 - editing.num_inference_steps :]  # those up to the depth
        noise = [randn_like(x0, generator).expand(number, -1, -1, -1) for _ in grid[:-1]]
        x0, read = x0.expand(number, -1, -1, -1), read.expand(number, -1)

        oppose = editing.oppose and not model.config.one_hot  # a class has no opposite
        base = torch.where(named == 0, read, -named.sign()) if oppose else read
        asked = settle(named, read, names)
        target = torch.where(asked == 0, read, asked)
        own = model.denoiser(base)
        noisy = {t: schedule.q_sample(x0, t, eps) for t, eps in zip(grid[:-1], noise, strict=True)}
        seen = [own(x_t, t)[0] for t, x_t in noisy.items()]
        steered = guide if editing.guide_scale else None
        if steered is not None:
            columns = model.check_guide(steered)
            wanted = named.sign()[:, columns]
            once = len(source_image)  # a single photograph is read once for all its targets
            odds = {t: steered.log_odds(x_t[:once], t) for t, x_t in noisy.items()}
            steering = schedule, steered, columns, wanted, odds, editing

        @torch.no_grad()
        def edit_at(strength: float) -> Tensor:
            if not 0 <= strength <= 1:
                raise ValueError(f"strength must lie in [0, 1], got {strength}")
            if strength == 0:  # no edit: the photograph itself
                return self.first_stage.decode(x0)
            if steered is None:
                both = model.denoiser(torch.cat([base, target]))
                denoise = classifier_free(both, schedule, strength * cfg_scale)
            else:
                denoise = towards(model.denoiser, base, target, *steering, strength)
            steps = flow_edit(denoise, schedule, x0, seen, noise, grid)
            edited = last(with_bar(steps, "editing", grid, progress))
            return self.first_stage.decode(localised(x0, edited, editing.localise))

        return edit_at

    def edit(
        self,
        source_image: Tensor,
        target_attributes: Attributes,
        strength: float = 1.0,
        editing: EditConfig = DEFAULT_EDITING,
        source_attributes: Attributes = None,
        guide: Guide | None = None,
        generator: Generator = None,
        progress: Progress = False,
        **options,
    ) -> Tensor:
        """Edit photographs by named attributes: ``flow_edit`` from the source's prediction towards the
        target's, with guidance of scale strength * cfg_scale. So the edit is continuous in strength,
        from the source at 0 to the full edit at 1. With a guide, strength says how far the edit goes in
        the guide's log odds, and guidance ends there (``guidance.towards``).

        Args:
            source_image: uint8 (B, S, S, 3).
            target_attributes: what to change, as rows or requests (see ``attribute_rows``). Attributes
                that are 0 or not named stay as in the source.
            strength: in [0, 1].
            editing: steps and guidance. ``options`` replace single fields of it.
            source_attributes: of the source; from ``predict_attributes`` if not given.
            guide: predicts them, too, and steers.
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
        num_inference_steps: int = 50,
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
        seen = model.predict_attributes(images) if attributes is None else attributes
        rows = model.attribute_rows(seen, 2)
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
        return self.first_stage.decode(frames)
