"""Editing photographs: ``Editor(model)`` inverts, edits and interpolates them.

``ConditionalDiffusion`` offers these methods, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import Tensor
from tqdm import tqdm

from config import EditConfig
from guidance import Guide, weighed_with_input
from noise_schedule import Denoiser, NoiseSchedule
from samplers import Generator, Steps, ddim, ddpm, ddpm_inversion, last, timestep_grid

if TYPE_CHECKING:
    from diffusion_model import Attributes, ConditionalDiffusion

DEFAULT_EDITING = EditConfig()
WayBack = Callable[[Denoiser, Tensor], Steps]  # (another denoiser, the noise) -> a sampler's steps
EditAt = Callable[[float], Tensor]  # strength in [0, 1] -> uint8 (B, S, S, 3)

STRENGTH_TOLERANCE = 0.02  # precision of the strength in ``smallest_edit``
EDIT_ERROR_STD = 0.1  # of x0_hat near the clean image; half or twice this value gives similar edits


def with_bar(steps: Steps, label: str, grid: list[int], progress: bool) -> Steps:
    """The same steps behind a progress bar."""
    return tqdm(steps, label, len(grid) - 1, unit="step", leave=False, disable=not progress)


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


# -------------------------------------------------------------------- ways of inverting


def invert_ddim(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x0: Tensor,
    grid: list[int],
    generator: Generator = None,
    progress: bool = False,
) -> tuple[Tensor, WayBack]:
    """DDIM on the reversed grid. It is deterministic."""
    start = last(with_bar(ddim(denoise, schedule, x0, grid[::-1]), "inverting", grid, progress))
    return start, lambda denoise, x_t: ddim(denoise, schedule, x_t, grid)


def invert_ddpm(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x0: Tensor,
    grid: list[int],
    generator: Generator = None,
    progress: bool = False,
) -> tuple[Tensor, WayBack]:
    """``ddpm_inversion``, which keeps the residual of every step. Its edits change more."""
    start, residuals = ddpm_inversion(denoise, schedule, x0, grid, generator)
    return start, lambda denoise, x_t: ddpm(denoise, schedule, x_t, grid, residuals=residuals)


@dataclass(frozen=True)
class EditMethod:
    """A way of inverting.

    invert: (denoiser under the source's attributes, schedule, x0, falling grid, generator) -> the
        noise, and the way back from it under another denoiser.
    exact: whether the way back under the same denoiser gives x0 exactly.
    """

    invert: Callable[..., tuple[Tensor, WayBack]]
    exact: bool


EDIT_METHODS: dict[str, EditMethod] = {
    "ddim": EditMethod(invert_ddim, exact=False),
    "ddpm": EditMethod(invert_ddpm, exact=True),
}


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
        progress: bool = False,
    ) -> Tensor:
        """The noise x_T (B, C, h, w) that leads to these images, by unguided DDIM inversion of a
        denoiser ``weighed_with_input``."""
        x0 = self.model.encode_images(images)
        grid = timestep_grid(self.schedule, num_inference_steps)
        denoise = self.own(self.model.attribute_rows(attributes, len(x0)), latent)
        return invert_ddim(denoise, self.schedule, x0, grid, None, progress)[0]

    @torch.no_grad()
    def prepare_edit(
        self,
        source_image: Tensor,
        target_attributes: Attributes,
        editing: EditConfig = DEFAULT_EDITING,
        source_attributes: Attributes = None,
        guide: Guide | None = None,
        generator: Generator = None,
        progress: bool = False,
    ) -> EditAt:
        """Invert the photographs once. Return ``edit`` as a function of the strength alone. A single
        source may have many targets.

        Inversion goes up to a share ``depth`` of the timesteps. The composition stays, because only more
        noise would hide it.
        """
        model = self.model
        if source_attributes is None:
            source_attributes = model.predict_attributes(source_image, guide)
        x0 = model.encode_images(source_image)
        source = model.attribute_rows(source_attributes, len(x0))
        steps = round(editing.num_inference_steps / editing.depth)
        grid = timestep_grid(self.schedule, min(steps, self.schedule.num_timesteps))
        grid = grid[-1 - editing.num_inference_steps :]  # those up to the depth
        method, own = EDIT_METHODS[editing.method], self.own(source, None)
        start, way_back = method.invert(own, self.schedule, x0, grid, generator, progress)

        def back(denoise: Denoiser, batch_size: int) -> Tensor:
            steps = way_back(denoise, start.expand(batch_size, -1, -1, -1))
            return last(with_bar(steps, "editing", grid, progress))

        lossy = editing.keep_detail and not method.exact
        lost = x0 - back(own, len(x0)) if lossy else 0.0
        named = model.attribute_rows(target_attributes, len(x0) if len(x0) > 1 else None)
        batch_size = len(named)
        source = source.expand(batch_size, -1)
        target = torch.where(named == 0, source, named)
        oppose = editing.oppose and not model.config.one_hot  # a class has no opposite
        opposite = torch.where(named == 0, source, -named.sign()) if oppose else source

        @torch.no_grad()
        def edit_at(strength: float) -> Tensor:
            if not 0 <= strength <= 1:
                raise ValueError(f"strength must lie in [0, 1], got {strength}")
            if strength == 0 and editing.keep_detail:  # no edit: the photograph itself
                return self.first_stage.decode(x0).expand(batch_size, -1, -1, -1)
            base = torch.lerp(source, opposite, strength)
            denoise = model.guided_denoiser(target, None, strength * editing.cfg_scale, base=base)
            by = strength * editing.guide_scale
            denoise = model.steered(denoise, target, guide, by, editing.guide_on)
            edited = back(self.near_clean(denoise), batch_size) + lost
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
        progress: bool = False,
        **options,
    ) -> Tensor:
        """Edit photographs by named attributes. The source is inverted under its own attributes. Then it
        is denoised with guidance from the source's prediction towards the target's, with scale
        strength * cfg_scale. So the edit is continuous in strength, from the source at 0 to the full
        edit at 1.

        Args:
            source_image: uint8 (B, S, S, 3).
            target_attributes: what to change, as rows or requests (see ``attribute_rows``). Attributes
                that are 0 or not named stay as in the source.
            strength: in [0, 1].
            editing: method, steps and guidance. ``options`` replace single fields of it.
            source_attributes: of the source; from ``predict_attributes`` if not given.
            guide: predicts them, too, and steers with editing.guide_scale.
            generator: for the noise of method ddpm.

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
        progress: bool = False,
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
        x_T, _ = invert_ddim(own, self.schedule, x0, grid, None, progress)

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
