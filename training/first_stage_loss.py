"""The losses of a first stage and of an upscaler.

A first stage has reconstruction, perceptual and adversarial losses in one total. One optimiser and one
backward pass train the autoencoder and the discriminator. The autoencoder's loss takes the
discriminator's weights as constants. The discriminator's loss takes the reconstructions as constants.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoder_model import PixelFirstStage, attribute_loss, draw_posterior, kl_to_prior
from classifiers.likeness import perceptual_distance
from config import FirstStageConfig, FirstStageLossConfig
from latent_vae import SpatialVAE, Upscaler
from layers import Norm


class PatchDiscriminator(nn.Module):
    """Logits for overlapping patches, above 0 where they look real: (B, 3, H, W) -> (B, 1, H/8, W/8)
    (Isola et al. 2016, arXiv:1611.07004)."""

    def __init__(self, width: int = 32):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.SiLU()]
        for c in (width, 2 * width):
            layers += [nn.Conv2d(c, 2 * c, 4, stride=2, padding=1), Norm(2 * c)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).float()


class AutoencoderTraining(nn.Module):
    """An autoencoder in training. ``forward`` is its loss and returns it in the form of
    ``ConditionalDiffusion.forward``.

    Args:
        config: what the autoencoder is trained on.
        autoencoder: a ``SpatialVAE`` or an ``Upscaler``.
    """

    progress = 0.0  # the completed share of the run, set before each step

    def __init__(self, config: FirstStageConfig, autoencoder: SpatialVAE | Upscaler):
        super().__init__()
        self.config = config
        self.pixels = PixelFirstStage()
        self.autoencoder = autoencoder

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images decoded from the latent's mean: uint8 (B, H, W, 3) -> the same form."""
        mean, _ = self.autoencoder.encode(self.pixels.encode(images))
        return self.pixels.decode(self.autoencoder.decode(mean))


class UpscalerTraining(AutoencoderTraining):
    """The upscaler's two losses, at weights that give them one scale."""

    autoencoder: Upscaler

    def forward(self, images: Tensor, *unused: object) -> tuple[dict[str, Tensor], None, None]:
        """Joint loss = l1 / DETAIL + detail. Both parts see the small image with noise:

        - l1: mean absolute error per pixel value of the regression, which learns the median of x.
        - detail: mean squared error of the velocity, noise less detail, at t from the logit-normal
          distribution (Esser et al. 2024, arXiv:2403.03206, section 3.1).
        """
        upscaler, x = self.autoencoder, self.pixels.encode(images)
        x_hat, features = upscaler.regress(draw_posterior(*upscaler.encode(x)))
        x = F.pixel_unshuffle(x, 2)
        r = (x - x_hat.detach()) / upscaler.DETAIL
        t, noise = torch.sigmoid(torch.randn(len(x), device=x.device)), torch.randn_like(r)
        assert upscaler.detail is not None
        velocity = upscaler.detail(torch.lerp(r, noise, t[:, None, None, None]), t, features)
        terms = {"l1": (x_hat - x).abs().mean(), "detail": F.mse_loss(velocity, noise - r)}
        return {**terms, "total": terms["l1"] / upscaler.DETAIL + terms["detail"]}, None, None


class FirstStageTraining(AutoencoderTraining):
    """The first stage with its discriminator.

    The KL's weight grows until progress ``kl_warmup``, and the adversarial loss starts at
    ``adversarial_start``.

    Args:
        config: what the autoencoder is trained on.
        autoencoder: the first stage.
        stages: of the perceptual network; None for no perceptual loss.
    """

    autoencoder: SpatialVAE

    def __init__(
        self, config: FirstStageConfig, autoencoder: SpatialVAE, stages: nn.ModuleList | None = None
    ):
        super().__init__(config, autoencoder)
        self.discriminator = PatchDiscriminator()
        self.stages = stages

    def _adversarial(self, x_hat: Tensor) -> Tensor:
        """How fake the reconstructions look to the discriminator, whose weights are constants here."""
        constant = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        return -torch.func.functional_call(self.discriminator, constant, (x_hat,)).mean()

    def _balance(self, likeness: Tensor, adversarial: Tensor) -> Tensor:
        """The weight that makes the two gradients at the decoder's last layer equally long (Esser et al.
        2020, arXiv:2012.09841, equation 7)."""
        if not adversarial.requires_grad:  # in validation
            return adversarial.new_ones(())
        last = self.autoencoder.last.weight
        of_likeness, of_adversarial = (
            torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
            for loss in (likeness, adversarial)
        )
        return (of_likeness / (of_adversarial + 1e-6)).clamp(max=1e3).detach()

    def forward(
        self, images: Tensor, attributes: Tensor, loss_config: FirstStageLossConfig, *unused: object
    ) -> tuple[dict[str, Tensor], None, None]:
        """Joint loss = l1 + perceptual_weight perceptual + latent_kl_weight kl + latent_attr_weight
        attributes + adversarial_weight balance adversarial, plus the discriminator's loss.

        - l1: mean absolute error per pixel value, x_hat from a reparameterised z.
        - kl: KL(q(z | x) || N(0, I)) per value of z.
        - attributes: ``attribute_loss`` of the head.
        - adversarial, discriminator: hinge losses (Lim & Ye 2017, arXiv:1705.02894).

        Returns the terms, with the joint loss under ``total``, and None twice: there are no timesteps.
        """
        x = self.pixels.encode(images)
        mean, logvar = self.autoencoder.encode(x)
        z = draw_posterior(mean, logvar)
        x_hat = self.autoencoder.decode(z)
        terms = {"l1": (x_hat - x).abs().mean()}
        likeness = terms["l1"]
        if self.stages is not None:
            terms["perceptual"] = perceptual_distance(self.stages, x_hat, x).mean()
            likeness = likeness + loss_config.perceptual_weight * terms["perceptual"]
        terms["likeness"] = likeness
        terms["kl"] = kl_to_prior(mean, logvar).mean()
        terms["attributes"] = attribute_loss(self.autoencoder.attribute_logits(z), attributes)
        warmth = min(1.0, self.progress / loss_config.kl_warmup) if loss_config.kl_warmup else 1.0
        total = likeness + warmth * loss_config.latent_kl_weight * terms["kl"]
        total = total + loss_config.latent_attr_weight * terms["attributes"]
        if self.progress >= loss_config.adversarial_start and loss_config.adversarial_weight:
            terms["adversarial"] = self._adversarial(x_hat)
            terms["balance"] = self._balance(likeness, terms["adversarial"])
            real, fake = self.discriminator(torch.cat([x, x_hat.detach()])).chunk(2)
            terms["discriminator"] = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
            weight = loss_config.adversarial_weight * terms["balance"]
            total = total + weight * terms["adversarial"] + terms["discriminator"]
        terms["total"] = total
        return terms, None, None
