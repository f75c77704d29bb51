"""Editing photographs: ``Editor(model)`` inverts, edits and interpolates them.

``ConditionalDiffusion`` has these methods under its own name, too.
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
WayBack = Callable[[Denoiser, Tensor], Steps]  # another denoiser, the noise -> a sampler's steps
EditAt = Callable[[float], Tensor]  # strength in [0, 1] -> uint8 (B, S, S, 3)

STRENGTH_TOLERANCE = 0.02  # of the smallest edit
EDIT_ERROR_STD = 0.1  # of x0_hat near the clean image; half of it and twice it edit much alike


def with_bar(steps: Steps, label: str, grid: list[int], progress: bool) -> Steps:
    """The same steps behind a progress bar."""
    return tqdm(steps, label, len(grid) - 1, unit="step", leave=False, disable=not progress)


def slerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Along the great circle (Shoemake 1985) from a (C, H, W) at weight 0 to b at weight 1, for weights
    (N,): (N, C, H, W). Noise keeps its norm there, which it loses on a straight line."""
    cosine = F.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1)
    angle = torch.acos(cosine).clamp(min=1e-4)
    w = weight.view(-1, 1, 1, 1)
    return (torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / torch.sin(angle)


def localised(x0: Tensor, edited: Tensor, threshold: float) -> Tensor:
    """``edited`` (B, C, H, W) where it differs from x0 by ``threshold`` of the largest difference or
    more (the mean over channels, smoothed), x0 where by less than half of that, in proportion between:
    what an edit does elsewhere is drift. The mask is that of Couairon et al. 2022, arXiv:2210.11427,
    taken from the result."""
    if threshold == 0:
        return edited
    smooth = partial(F.avg_pool2d, stride=1, count_include_pad=False)
    change = smooth((edited - x0).abs().mean(1, keepdim=True), 5, padding=2)
    share = change / change.amax((2, 3), keepdim=True).clamp(min=1e-6)
    mask = (2 * share / threshold - 1).clamp(0, 1)
    mask = smooth(F.max_pool2d(mask, 3, stride=1, padding=1), 3, padding=1)
    return torch.lerp(x0, edited, mask)


def smallest_edit(edit_at: EditAt, margin: Callable[[Tensor], float]) -> tuple[float, Tensor]:
    """The least strength at which the margin of an edit is 0 or more, to STRENGTH_TOLERANCE, and that
    edit. It is the root between strengths 0 and 1, by Brent's method, which needs some seven edits. If
    the margin is less than 0 at strength 1, that is what comes back."""
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
    """The DDIM step on the reversed grid: deterministic."""
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
    """``ddpm_inversion``, which keeps what every step added. It changes more."""
    start, residuals = ddpm_inversion(denoise, schedule, x0, grid, generator)
    return start, lambda denoise, x_t: ddpm(denoise, schedule, x_t, grid, residuals=residuals)


@dataclass(frozen=True)
class EditMethod:
    """A way of inverting.

    invert: (denoiser of what the source is, schedule, x0, falling grid, generator) -> the noise, and the
        way back from it under another denoiser.
    exact: the way back under the same denoiser gives x0.
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
        """A denoiser as editing needs it: ``weighed_with_input``."""
        return weighed_with_input(denoise, self.schedule, EDIT_ERROR_STD)

    def own(self, attributes: Tensor, latent: Tensor | None) -> Denoiser:
        """The unguided denoiser of what a photograph is."""
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
        """The noise x_T (B, 3, H, W) that leads to these images, by unguided DDIM inversion of a
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
        """Inverts the photographs once. Returns ``edit`` as a function of the strength alone. A single
        source may have many targets.

        The source is inverted up to a share ``depth`` of the timesteps. What further noise would hide,
        its composition, stays.
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
        oppose = editing.oppose and not model.config.one_hot  # the opposite of a class is no class
        opposite = torch.where(named == 0, source, -named.sign()) if oppose else source

        @torch.no_grad()
        def edit_at(strength: float) -> Tensor:
            if not 0 <= strength <= 1:
                raise ValueError(f"strength must lie in [0, 1], got {strength}")
            if strength == 0 and editing.keep_detail:  # nothing is edited, and nothing is lost
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
        """Edit photographs by named attributes: inversion under the source's own attributes, then
        denoising guided from the source's prediction towards the target's with scale
        strength * cfg_scale. So the edit is continuous in strength, from the source at 0 to the full
        edit at 1.

        Args:
            source_image: uint8 (B, S, S, 3).
            target_attributes: what to change: rows or requests (``attribute_rows``); 0, and what a
                request does not name, keeps what the source has.
            strength: in [0, 1].
            editing: method, steps, guidance; ``options`` are single fields of it, instead.
            source_attributes: what the source shows; read by ``predict_attributes`` where not given.
            guide: reads them there, and steers by editing.guide_scale.
            generator: of the noise of method ddpm.

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
        """From one photograph to another, images uint8 (2, S, S, 3): spherical in x_T (DDIM inversion),
        linear in the semantic latent and the attributes (read where not given) and in what the
        inversion loses, so that both ends are the photographs: uint8 (num_steps, S, S, 3).

        Raises:
            ValueError: for fewer than two steps, or other than two images.
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
        frames[0], frames[-1] = x0  # the same but for rounding
        return self.first_stage.decode(frames)
