"""ConditionalDiffusion: UNet, VAE and noise schedule in one module; its joint loss and its sampling.

Images go in and come out as uint8 (B, H, W, 3); attributes are rows (B, A) in [-1, 1]. Photographs are
edited by ``editing.Editor(model)``.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from attributes import AttributePrior, deny_other_classes, request_rows
from autoencoder_model import AttributeVAE, build_first_stage
from checkpoint import find_weights, load
from classifiers.guide import GuidanceClassifier
from config import LossConfig, ModelConfig, SamplingConfig
from guidance import GUIDANCE, Conditions
from noise_schedule import Denoiser, NoiseSchedule
from samplers import (
    SAMPLERS,
    Generator,
    Progress,
    Steps,
    last,
    rand,
    randn_like,
    resolve,
    timestep_grid,
    with_bar,
)
from unet_model import ConditionalUNet

DEFAULT_SAMPLING = SamplingConfig()
# A new face is drawn again where the guide's ``distance`` is above this. So are half of the photographs,
# and nearly all broken faces. Measured: docs/log.md, "More faces are drawn again".
FAR = 0.85
Size: TypeAlias = tuple[int, int] | int | None
Attributes: TypeAlias = Tensor | Mapping[str, float] | Sequence[Mapping[str, float]] | None


@dataclass(frozen=True)
class Predicted:
    """What an extra term of the joint loss sees of a batch.

    Attributes:
        x0, x_t: the images and the noisy images (B, C, H, W).
        x0_hat: the network's prediction of x0, with its gradient.
        t: timesteps (B,).
        attributes: rows (B, A) before dropping.
    """

    x0: Tensor
    x_t: Tensor
    x0_hat: Tensor
    t: Tensor
    attributes: Tensor


LossTerm: TypeAlias = Callable[[Predicted], Tensor]  # -> a scalar, the mean over the batch


def drop_attributes(attributes: Tensor, cfg_dropout: float, attr_dropout: float) -> Tensor:
    """Attribute rows (B, A) after dropping: whole rows are set to 0 with probability ``cfg_dropout``.
    A share ``attr_dropout`` of the rows keeps a random number of attributes: each draws its own rate,
    uniform in [0, 1), at which its attributes are dropped. So rows that name three of forty occur.
    """
    device, number = attributes.device, len(attributes)
    keep = torch.rand(number, 1, device=device) >= cfg_dropout
    if attr_dropout > 0:
        whole = torch.rand(number, 1, device=device) >= attr_dropout
        rate = torch.rand(number, 1, device=device)
        keep = keep & (whole | (torch.rand(attributes.shape, device=device) >= rate))
    return attributes * keep


def vae_levels(side: int) -> tuple[int, ...]:
    """Widths of the VAE's levels, finest first: one to four. Each level halves x0's side. There are as
    many as leave a side of at least 4."""
    levels = 0
    while levels < 4 and side % 2 ** (levels + 1) == 0 and side >> (levels + 1) >= 4:
        levels += 1
    return (32, 64, 128, 256)[: max(levels, 1)]


class ConditionalDiffusion(nn.Module):
    """The whole model. ``forward`` is the joint training loss. Most other methods sample.

    Sampling methods take ``generator`` (a torch.Generator, on any device) for repeatable noise,
    ``latent`` (B, latent_dim) or None for no semantic latent, ``complete`` (see ``complete_rows``) and
    ``progress`` for a progress bar (see ``samplers.Progress``).

    Attributes:
        guide: steers edits and, where a scale asks for it, samples; None in a model without one. It is
            trained on the same noisy images, and shares no weights with the rest.
        facts: what its file says of its training.
        file_hash: of the file that it was loaded from, "" for none.
        extra_losses: further terms of the joint loss: name -> (weight, term). Whoever trains the model
            sets them. They are in no checkpoint, and their own weights are not trained.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.facts: dict[str, Any] = {}
        self.file_hash = ""
        self.extra_losses: dict[str, tuple[float, LossTerm]] = {}
        self.schedule = NoiseSchedule(config.schedule, config.num_timesteps, config.zero_terminal_snr)
        self.first_stage = build_first_stage(config.first_stage, config.first_stage_config)
        stride = self.first_stage.factor * config.patch_size * 2 ** (len(config.channels) - 1)
        if config.image_size % stride:
            raise ValueError(
                f"image_size {config.image_size} is not divisible by {stride} (patch_size "
                f"{config.patch_size} times 2 per downsampling of {len(config.channels)} levels, times "
                f"{self.first_stage.factor} of first stage {config.first_stage})"
            )
        num_attributes, channels = len(config.attribute_names), self.first_stage.channels
        self.attribute_prior = AttributePrior(num_attributes, config.prior_rows)
        side = config.image_size // self.first_stage.factor
        config.check_norm(side)
        self.autoencoder = AttributeVAE(
            side, vae_levels(side), config.latent_dim, num_attributes, image_channels=channels
        )
        self.unet = ConditionalUNet(
            image_channels=channels,
            channels=config.channels,
            num_attributes=num_attributes,
            latent_dim=config.latent_dim,
            blocks_per_level=config.blocks_per_level,
            self_attention_levels=config.self_attention_levels or (),
            cross_attention_levels=config.cross_attention_levels or (),
            num_heads=config.num_heads,
            attr_emb_dim=config.attr_emb_dim,
            time_emb_dim=config.time_emb_dim,
            patch_size=config.patch_size,
            attribute_maps=config.attribute_maps,
            bottleneck_attention=config.bottleneck_attention,
            shared_film=config.shared_film,
            dropout=config.dropout,
            norm=config.norm,
            activation=config.activation,
        )
        self.guide: GuidanceClassifier | None = None
        if config.guide_channels:  # the last part, so that the others start as without it
            self.guide = GuidanceClassifier(config.own_guide(), self.first_stage)

    @property
    def device(self) -> torch.device:
        return self.unet.conv_out.weight.device

    # ---------------------------------------------------------------- files and the hub

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str | torch.device = "cpu", **download: Any
    ) -> ConditionalDiffusion:
        """The model of this name, in evaluation mode: see ``find_weights``, which raises, too."""
        return load(cls, "model", find_weights(name, **download), device)

    def save_pretrained(self, folder: str | Path) -> None:
        """``hub.save``."""
        import hub

        hub.save(self, folder)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """``hub.push``."""
        import hub

        return hub.push(self, name, **options)

    # ---------------------------------------------------------------- training

    def forward(
        self,
        images: Tensor,
        attributes: Tensor,
        loss_config: LossConfig,
        t: Tensor | None = None,
        eps: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Joint loss = diffusion + ae_weight (reconstruction + kl_weight kl + attr_weight attributes)
        + guide_weight guide + the weighted ``extra_losses``.

        Args:
            images: uint8 (B, H, W, 3), or the moments of a latent first stage.
            attributes: (B, A) in [-1, 1].
            loss_config: weights and dropping rates.
            t, eps: timesteps (B,) and noise (B, C, H, W); drawn by ``draw_noisy`` if not given.

        Returns:
            the scalar terms under their names, their weighted sum under ``total``; the diffusion loss
            of each sample (B,); and t (B,).
        """
        x0 = self.first_stage.encode(images, sample=True)
        terms, latent = self.autoencoder.losses(x0, attributes, loss_config.free_bits)
        x_t, t, eps = self.schedule.draw_noisy(x0, t, eps)
        attr_dropout = 0.0 if self.config.one_hot else loss_config.attr_dropout  # a class is named whole
        output = self.unet(
            x_t,
            t,
            drop_attributes(attributes, loss_config.cfg_dropout, attr_dropout),
            latent,
            (torch.rand(len(x0), device=x0.device) >= loss_config.latent_dropout).float(),
        )
        target = self.schedule.target(self.config.prediction, x0, eps, t)
        error = (output.float() - target).pow(2).mean((1, 2, 3))  # (B,)
        per_sample = error * self.schedule.loss_weight(
            loss_config.loss_weighting, self.config.prediction, t, loss_config.snr_gamma
        )
        terms["diffusion"] = per_sample.mean()
        terms["total"] = terms["diffusion"] + loss_config.ae_weight * (
            terms["reconstruction"]
            + loss_config.kl_weight * terms["kl"]
            + loss_config.attr_weight * terms["attributes"]
        )
        if self.guide is not None:
            terms["guide"] = self.guide.losses(x_t, t, attributes).mean()
            terms["total"] = terms["total"] + loss_config.guide_weight * terms["guide"]
        if self.extra_losses:
            x0_hat, _ = self.schedule.to_x0_eps(self.config.prediction, output.float(), x_t, t)
            predicted = Predicted(x0, x_t, x0_hat, t, attributes)
            for name, (weight, term) in self.extra_losses.items():
                terms[name] = term(predicted)
                terms["total"] = terms["total"] + weight * terms[name]
        return terms, per_sample.detach(), t

    # ---------------------------------------------------------------- conditions and denoisers

    def check_precision(self) -> None:
        """Raise ValueError for weights in half precision: noise and attributes are float32."""
        dtype = self.unet.conv_out.weight.dtype
        if dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"the weights are {dtype}: undo that with .float(), and compute in half precision "
                f'within torch.autocast("{self.device.type}", {dtype})'
            )

    def denoiser(
        self, attributes: Tensor, latent: Tensor | None = None, perturbed: Tensor | None = None
    ) -> Denoiser:
        """The network under fixed conditions, as a denoiser for samplers. It also takes timesteps
        (B,). ``perturbed`` is as of ``ConditionalUNet``."""

        def denoise(x_t: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
            labels = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
            output = self.unet(x_t, labels, attributes, latent, perturbed=perturbed).to(x_t.dtype)
            return self.schedule.to_x0_eps(self.config.prediction, output, x_t, t)

        return denoise

    def guided_denoiser(
        self,
        attributes: Tensor,
        sampling: SamplingConfig,
        latent: Tensor | None = None,
        guide: GuidanceClassifier | None = None,
    ) -> Denoiser:
        """The network, guided towards attribute rows (B, A) as ``sampling.guidance`` says (see
        ``guidance.GUIDANCE``). All branches get the latent, which says who is in the picture. So
        guidance amplifies only the attributes.

        Args:
            guide: None takes the model's own.

        Raises:
            ValueError: for a guide_scale without a guide, or a guide that does not fit.
        """
        guide = self.guide if guide is None else guide

        def denoiser(rows: Tensor, perturbed: Tensor | None = None) -> Denoiser:
            copies = len(rows) // len(attributes)
            latents = None if latent is None else latent.repeat(copies, 1)
            return self.denoiser(rows, latents, perturbed)

        guide_rows = None if guide is None else attributes[:, self.check_guide(guide)]
        conditions = Conditions(denoiser, attributes, self.schedule, guide, guide_rows)
        return GUIDANCE[sampling.guidance].wrap(conditions, sampling)

    def attribute_rows(self, attributes: Attributes, batch_size: int | None = None) -> Tensor:
        """Attribute rows float32 (B, A) in [-1, 1], on the model's device.

        Args:
            attributes: rows (B, A) or (1, A); a request such as {"Smiling": 1, "Male": 0}, or a list of
                B requests (see ``create_attribute_vector``); or None for an empty request. A class that
                a request names sets the others to -1 (see ``deny_other_classes``).
            batch_size: B, to which a single row is repeated; by default the number of rows.

        Raises:
            ValueError: for unknown names, or another number of rows or attributes.
        """
        self.check_precision()
        names = self.config.attribute_names
        if attributes is None:
            attributes = {}
        if not isinstance(attributes, Tensor):
            requests = [attributes] if isinstance(attributes, Mapping) else attributes
            attributes = request_rows(names, requests)
            attributes = deny_other_classes(attributes) if self.config.one_hot else attributes
        batch_size = len(attributes) if batch_size is None else batch_size
        if attributes.shape not in ((1, len(names)), (batch_size, len(names))):
            raise ValueError(
                f"attributes must be ({batch_size}, {len(names)}) or (1, {len(names)}), got "
                f"{tuple(attributes.shape)}"
            )
        return attributes.to(self.device, torch.float32).expand(batch_size, -1)

    def complete_rows(
        self, attributes: Attributes, batch_size: int | None = None, generator: Generator = None
    ) -> Tensor:
        """Complete attribute rows (B, A) for what ``attribute_rows`` takes. Unspecified attributes (0)
        are copied from a random training row that agrees with the specified ones."""
        rows = self.attribute_rows(attributes, batch_size).clone()
        short = (rows == 0).any(1)
        if self.config.prior_rows and short.any():
            if isinstance(generator, Sequence):  # image i draws only from its own
                generator = [each for each, is_short in zip(generator, short, strict=True) if is_short]
            uniform = rand(int(short.sum()), generator).to(self.device)
            rows[short] = self.attribute_prior.complete(rows[short], uniform)
        return rows

    def rows_to_draw(
        self,
        attributes: Attributes,
        batch_size: int,
        generator: Generator,
        latent: Tensor | None,
        complete: bool,
    ) -> Tensor:
        """The rows (B, A) of a sample. A latent already sets the rest of the face."""
        if complete and latent is None:
            return self.complete_rows(attributes, batch_size, generator)
        return self.attribute_rows(attributes, batch_size)

    def complete_ends(
        self, start: Attributes, end: Attributes, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Complete rows (1, A) for both ends of an interpolation. ``complete_rows`` completes ``start``.
        What ``end`` does not name stays as in ``start``, except for what contradicts it in the training
        rows (``AttributePrior.continued``)."""
        start, end = self.complete_rows(start, 1, generator), self.attribute_rows(end, 1)
        if self.config.prior_rows:
            end = self.attribute_prior.continued(end, start)
        return start, torch.where(end == 0, start, end)

    def initial_noise(
        self, batch_size: int, image_size: Size = None, generator: Generator = None
    ) -> Tensor:
        """x_T (batch_size, C, h, w) of images of this size (H, W), by default the training size."""
        size = self.config.image_size if image_size is None else image_size
        sides = (size, size) if isinstance(size, int) else size
        if not isinstance(sides, list | tuple) or [*map(type, sides)] != [int, int]:
            raise ValueError(
                f"image_size is (height, width) or one side, got {reprlib.repr(image_size)}: a request "
                "is attributes={...}"
            )
        height, width = sides
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        factor = self.first_stage.factor
        if height % factor or width % factor:
            stage = f"first stage {self.config.first_stage}"
            raise ValueError(
                f"image size {height}x{width} is not divisible by {factor}, as {stage} needs"
            )
        shape = (batch_size, self.first_stage.channels, height // factor, width // factor)
        return randn_like(torch.empty(shape, device=self.device), generator)

    # ---------------------------------------------------------------- sampling

    @torch.no_grad()
    def sample_steps(
        self,
        x_T: Tensor,
        attributes: Attributes = None,
        sampling: SamplingConfig = DEFAULT_SAMPLING,
        generator: Generator = None,
        latent: Tensor | None = None,
        progress: Progress = False,
        guide: GuidanceClassifier | None = None,
        complete: bool = True,
    ) -> Steps:
        """The reverse chain from noise x_T (B, C, H, W), step by step: yields what samplers yield."""
        sampling = resolve(sampling, self.schedule, self.config.guidable)
        assert sampling.num_inference_steps and sampling.spacing  # resolved
        rows = self.rows_to_draw(attributes, len(x_T), generator, latent, complete)
        denoise = self.guided_denoiser(rows, sampling, latent, guide)
        sampler = SAMPLERS[sampling.sampler]
        grid = timestep_grid(self.schedule, sampling.num_inference_steps, sampling.spacing)
        clip, options = self.first_stage.clip_x0, sampler.options(eta=sampling.eta)
        steps = sampler.steps(denoise, self.schedule, x_T, grid, clip, generator, **options)
        yield from with_bar(steps, "sampling", grid, progress)

    @torch.no_grad()
    def sample_frames(
        self,
        x_T: Tensor,
        attributes: Attributes,
        sampling: SamplingConfig = DEFAULT_SAMPLING,
        generator: Generator = None,
        most: int = 9,
        **options: Any,
    ) -> tuple[Tensor, Tensor, list[int]]:
        """The reverse chain from noise x_T (B, C, h, w) as pictures: its start and ``most`` of its
        steps, spread evenly. ``options`` are those of ``sample_steps``.

        Returns:
            x_t and x0_hat, uint8 (steps, B, H, W, 3), and the timesteps t; -1 is the image. The x0_hat
            of a step is the prediction that leads away from its x_t.
        """
        number = resolve(sampling, self.schedule, self.config.guidable).num_inference_steps or 1
        chosen = {*torch.linspace(0, number - 1, min(number, most)).round().int().tolist()}
        decode = self.first_stage.decode
        noisy, clean, times = [decode(x_T)], [], [self.schedule.num_timesteps - 1]
        steps = self.sample_steps(x_T, attributes, sampling, generator, **options)
        for step, t, x_t, x0_hat in steps:
            if step in chosen:
                noisy.append(decode(x_t))
                clean.append(decode(x0_hat))
                times.append(t)
        return torch.stack(noisy), torch.stack([clean[0], *clean]), times

    def check_guide(self, guide: GuidanceClassifier) -> list[int]:
        """The columns of the attributes that a guide predicts.

        Raises:
            ValueError: for a guide of other x_t or other attributes; names the difference.
        """
        if guide is self.guide:
            return [*range(len(self.config.attribute_names))]
        shared = ("image_size", "crop", "schedule", "num_timesteps", "zero_terminal_snr", "first_stage")
        for name in shared:
            ours, theirs = getattr(self.config, name), getattr(guide.config, name)
            if ours != theirs:
                raise ValueError(
                    f"the guide was trained at {name} {theirs}, the model at {ours}: train one "
                    "with the model's flags and --stage guide"
                )
        ours, theirs = (each.first_stage.state_dict() for each in (self, guide))
        if any(not torch.equal(ours[key], theirs[key]) for key in ours):
            raise ValueError("the guide was trained in the latents of another first stage: train one")
        names = self.config.attribute_names
        unknown = [name for name in guide.config.attribute_names if name not in names]
        if unknown:
            raise ValueError(f"the guide reads {unknown[0]}, which the model does not have")
        return [names.index(name) for name in guide.config.attribute_names]

    def sample(
        self,
        batch_size: int,
        image_size: Size = None,
        attributes: Attributes = None,
        sampling: SamplingConfig = DEFAULT_SAMPLING,
        generator: Generator = None,
        latent: Tensor | None = None,
        progress: Progress = False,
        guide: GuidanceClassifier | None = None,
        complete: bool = True,
    ) -> Tensor:
        """Images: uint8 (batch_size, H, W, 3).

        Args:
            image_size: (H, W), or one side; the training size by default.
            attributes: what to draw: see ``attribute_rows``.
            complete: fill unspecified attributes by ``complete_rows``. False leaves them at 0. Short
                requests then often give shapeless images, and None gives an unconditional sample.
            sampling: sampler, steps and guidance. Where the guide knows what is typical, an image that
                lies far from the training images is drawn again, from other noise: ``sampling.tries``
                times in all. The nearest is kept.
            generator: one for the batch, or a list with one for each image
                (``samplers.sample_generators``). With a list, image i is the same in any batch.
            guide: steers towards the attributes with sampling.guide_scale; None takes the model's own.

        Raises:
            ValueError: for rows or sizes that do not fit the model, eta or steps out of range.
        """
        guide = self.guide if guide is None else guide
        x_T = self.initial_noise(batch_size, image_size, generator)
        rows = self.rows_to_draw(attributes, batch_size, generator, latent, complete)

        def draw(x_T: Tensor, which: Tensor, generators: Generator) -> Tensor:
            """The images of these numbers (B,)."""
            latents = None if latent is None else latent[which]
            steps = self.sample_steps(
                x_T, rows[which], sampling, generators, latents, progress, guide, complete=False
            )
            return self.first_stage.decode(last(steps))

        images = draw(x_T, torch.arange(batch_size, device=self.device), generator)
        reader = guide if isinstance(guide, GuidanceClassifier) else self.guide  # not a weaker model
        if reader is None or not reader.config.knows_typical or sampling.tries == 1:
            return images
        distance = reader.distance(images)
        for _ in range(sampling.tries - 1):
            far = (distance > FAR).nonzero()[:, 0]
            if not len(far):
                break
            generators = generator
            if isinstance(generator, Sequence):
                generators = [generator[i] for i in far.tolist()]
            again = draw(self.initial_noise(len(far), image_size, generators), far, generators)
            distance_again = reader.distance(again)
            nearer = distance_again < distance[far]
            images[far[nearer]] = again[nearer]
            distance[far[nearer]] = distance_again[nearer]
        return images

    def ddim_sample(
        self,
        batch_size: int,
        image_size: Size = None,
        attributes: Attributes = None,
        cfg_scale: float | None = 1.0,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        **options: Any,
    ) -> Tensor:
        """``sample`` by DDIM, with num_inference_steps network evaluations in 1 ... T. eta = 0 is
        deterministic given the noise, eta = 1 is as noisy as DDPM. cfg_scale 0 is unconditional, 1
        conditional, and more amplifies the attributes; None is the usual scale. Further options are
        those of ``sample``."""
        sampling = SamplingConfig(
            "ddim", num_inference_steps, spacing="trailing", eta=eta, cfg_scale=cfg_scale
        )
        return self.sample(batch_size, image_size, attributes, sampling, **options)

    def ddpm_sample(
        self,
        batch_size: int,
        image_size: Size = None,
        attributes: Attributes = None,
        cfg_scale: float | None = 1.0,
        num_inference_steps: int | None = None,
        **options: Any,
    ) -> Tensor:
        """``sample`` by ancestral (DDPM) sampling, by default through all T timesteps."""
        sampling = SamplingConfig("ddpm", num_inference_steps, spacing="trailing", cfg_scale=cfg_scale)
        return self.sample(batch_size, image_size, attributes, sampling, **options)

    def interpolate_between_attributes(
        self,
        start: Attributes,
        end: Attributes,
        num_steps: int,
        sampling: SamplingConfig = DEFAULT_SAMPLING,
        generator: torch.Generator | None = None,
        latent: Tensor | None = None,
        progress: Progress = False,
        guide: GuidanceClassifier | None = None,
        complete: bool = True,
    ) -> Tensor:
        """A strip from ``start`` to ``end``, one request or row each: uint8 (num_steps, H, W, 3). It is
        linear in the attributes, from start in frame 0 to end in the last. All frames have the same
        noise and the same unnamed attributes (``complete_ends``).

        Raises:
            ValueError: for fewer than two steps, or rows of another size.
        """
        if num_steps < 2:
            raise ValueError(f"an interpolation needs at least 2 steps, got {num_steps}")
        weight = torch.linspace(0, 1, num_steps, device=self.device)[:, None]
        if generator is None:
            generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        start, end = self.attribute_rows(start, 1), self.attribute_rows(end, 1)
        if complete and latent is None:
            start, end = self.complete_ends(start, end, generator.clone_state())
        rows = torch.lerp(start, end, weight)  # (N, A)
        latent = None if latent is None else latent.expand(num_steps, -1)
        generators = [generator.clone_state() for _ in range(num_steps)]
        sampling = replace(sampling, tries=1)  # all frames from the same noise
        return self.sample(
            num_steps, None, rows, sampling, generators, latent, progress, guide, complete=False
        )

    # ---------------------------------------------------------------- photographs

    def encode_images(self, images: Tensor) -> Tensor:
        """x0 of images uint8 (B, S, S, 3)."""
        self.check_precision()
        return self.first_stage.encode(images.to(self.device))

    @torch.no_grad()
    def encode_latent(self, images: Tensor) -> Tensor:
        """The semantic latent of images uint8 (B, S, S, 3): the VAE's mean (B, latent_dim)."""
        return self.autoencoder.encode(self.encode_images(images))[0]

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """The VAE's reconstruction of images uint8 (B, S, S, 3), in the same form."""
        return self.first_stage.decode(self.autoencoder.decode(self.encode_latent(images)))

    def attribute_reader(self) -> Callable[[Tensor], Tensor]:
        """A function of x0 (B, C, h, w): how far each attribute (B, A) is above its threshold of
        balanced accuracy there. These are the logits of the VAE's head, less the log odds of each
        attribute in the training rows."""
        threshold = torch.zeros(1, len(self.config.attribute_names), device=self.device)
        if self.config.prior_rows:
            threshold = self.attribute_prior.frequencies(threshold).clamp(1e-4, 1 - 1e-4).logit()

        @torch.no_grad()
        def read(x0: Tensor) -> Tensor:
            return self.autoencoder.attribute_logits(self.autoencoder.encode(x0)[0]) - threshold

        return read

    @torch.no_grad()
    def predict_attributes(self, images: Tensor, guide: GuidanceClassifier | None = None) -> Tensor:
        """Predicted attributes (B, A) in [-1, 1] of images uint8 (B, S, S, 3): the expectation 2 p - 1
        of an attribute with probability p. The VAE's head predicts them, or a guide those it knows."""
        logits = self.autoencoder.attribute_logits(self.encode_latent(images))
        attributes = torch.tanh(logits / 2)
        if guide is not None:
            attributes[:, self.check_guide(guide)] = guide.predict_attributes(images)
        return attributes


def load_model(path: str | Path, device: str | torch.device = "cpu") -> ConditionalDiffusion:
    """The model in a checkpoint, in evaluation mode. ``path`` may be a name in pretrained/, or a folder
    of ``save_pretrained``. If the file holds raw and EMA weights (``last.pth``), the model has the EMA
    weights.

    Raises:
        FileNotFoundError, ValueError: as ``load_checkpoint`` and ``build``.
    """
    return load(ConditionalDiffusion, "model", path, device)
