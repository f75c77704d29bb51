"""What ``ConditionalDiffusion`` does with real images: encode, invert, edit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from guidance import weighed_with_input
from samplers import Steps, ddim, last, timestep_grid

EDIT_ERROR_STD = 0.1  # of x0_hat near the clean image; half of it and twice it edit much alike


def with_bar(steps: Steps, label: str, grid: list[int], progress: bool) -> Steps:
    """The same steps behind a progress bar."""
    return tqdm(steps, label, len(grid) - 1, unit="step", leave=False, disable=not progress)


class Editing:
    """Methods of ``ConditionalDiffusion`` on photographs uint8 (B, S, S, 3)."""

    def _photographs(self, images: Tensor) -> Tensor:
        return self.first_stage.encode(images.to(self.device))

    @torch.no_grad()
    def encode_latent(self, images: Tensor) -> Tensor:
        """The semantic latent of images uint8 (B, S, S, 3): the VAE's mean (B, latent_dim)."""
        return self.autoencoder.encode(self._photographs(images))[0]

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """The VAE's reconstruction of images uint8 (B, S, S, 3), in the same form."""
        return self.first_stage.decode(self.autoencoder.decode(self.encode_latent(images)))

    @torch.no_grad()
    def predict_attributes(self, images: Tensor) -> Tensor:
        """What the VAE's attribute head sees in images uint8 (B, S, S, 3): (B, A) in [-1, 1], the
        expectation 2 p - 1 of an attribute present with probability p."""
        return torch.tanh(self.autoencoder.attribute_logits(self.encode_latent(images)) / 2)

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
        x0 = self._photographs(images)
        grid = timestep_grid(self.schedule, num_inference_steps)[::-1]
        denoise = self.denoiser(self._rows(attributes, len(x0)), latent)
        denoise = weighed_with_input(denoise, self.schedule, EDIT_ERROR_STD)
        return last(with_bar(ddim(denoise, self.schedule, x0, grid), "inverting", grid, progress))

    @torch.no_grad()
    def edit_strip(
        self,
        source_image: Tensor,
        target_attributes: Tensor,
        strengths: Sequence[float],
        num_inference_steps: int = 50,
        cfg_scale: float = 2.0,
        source_attributes: Tensor | None = None,
        use_latent: bool = True,
        progress: bool = False,
    ) -> Iterator[Tensor]:
        """``manipulate_attributes`` at each of several strengths in turn, after one inversion. A single
        source may have many targets."""
        for strength in strengths:
            if not 0 <= strength <= 1:
                raise ValueError(f"strength must lie in [0, 1], got {strength}")
        if source_attributes is None:
            source_attributes = self.predict_attributes(source_image)
        source = self._rows(source_attributes, len(source_image))
        latent = self.encode_latent(source_image) if use_latent else None
        x_T = self.invert(source_image, source, latent, num_inference_steps, progress)
        batch_size = len(target_attributes) if len(x_T) == 1 else len(x_T)
        x_T, source = x_T.expand(batch_size, -1, -1, -1), source.expand(batch_size, -1)
        latent = None if latent is None else latent.expand(batch_size, -1)
        target = self._rows(target_attributes, batch_size)
        target = torch.where(target == 0, source, target)
        grid = timestep_grid(self.schedule, num_inference_steps)
        for strength in strengths:
            # Without strength there is no target, and one source comes out the same every time.
            some = slice(1 if strength == 0 and len(source_image) == 1 else None)
            who = None if latent is None else latent[some]
            denoise = self.guided_denoiser(target[some], who, strength * cfg_scale, base=source[some])
            denoise = weighed_with_input(denoise, self.schedule, EDIT_ERROR_STD)
            steps = with_bar(ddim(denoise, self.schedule, x_T[some], grid), "editing", grid, progress)
            yield self.first_stage.decode(last(steps)).expand(batch_size, -1, -1, -1)

    def manipulate_attributes(
        self,
        source_image: Tensor,
        target_attributes: Tensor,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        cfg_scale: float = 2.0,
        source_attributes: Tensor | None = None,
        use_latent: bool = True,
        progress: bool = False,
    ) -> Tensor:
        """Edit photographs by named attributes: DDIM inversion under the source's own attributes, then
        denoising guided from the source's prediction towards the target's with scale
        strength * cfg_scale. So the edit is continuous in strength, from the source's reconstruction
        at 0 to the full edit at 1.

        Args:
            source_image: uint8 (B, S, S, 3).
            target_attributes: (B, A) or (1, A) in [-1, 1]; 0 keeps what the source has.
            strength: in [0, 1].
            cfg_scale: how far the full edit goes; 1 is plain denoising under the target's attributes.
            source_attributes: (B, A) or (1, A); read by ``predict_attributes`` where not given.
            use_latent: condition on the source's semantic latent, which keeps who is in the picture.

        Returns:
            uint8 (B, S, S, 3).

        Raises:
            ValueError: for a strength outside [0, 1], or shapes that do not fit the model.
        """
        (edited,) = self.edit_strip(
            source_image,
            target_attributes,
            [strength],
            num_inference_steps,
            cfg_scale,
            source_attributes,
            use_latent,
            progress,
        )
        return edited
