"""What train.py can train: the model, a guide, a first stage for latents, an upscaler. Each stage is one
object that defines what differs. The loop is the same for all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from attributes import CELEBA_ATTRIBUTES, AttributePrior
from autoencoder_model import PixelFirstStage
from checkpoint import load, load_weights, save_atomically, save_model
from classifiers.guide import GuidanceClassifier, guide_widths
from classifiers.likeness import check_likeness, perceptual_stages
from config import FEWEST_SAMPLES, Config, FirstStageConfig, LossConfig, SamplingConfig
from diffusion_model import ConditionalDiffusion
from evaluation.metrics import balanced_accuracy
from image_data.cached import ImageDataset
from image_data.encoded import LatentDataset
from latent_vae import SpatialVAE, Upscaler
from training.batches import is_encoded, ready_batch, seed_everything
from training.encoding import first_stage_weights
from training.first_stage_loss import AutoencoderTraining, FirstStageTraining, UpscalerTraining
from training.init_from import take_over

if TYPE_CHECKING:
    from train import TrainConfig
    from training.run import TrainingRun

TYPICAL_IMAGES = 2000  # from which a guide learns what is typical (docs/log.md)
DETAIL_WIDTH = 32  # channels of an upscaler's flow
PATCH_IMAGES = 512  # whose patches a first stage starts from: 131,072 patches of 128-pixel faces

# title -> pictures uint8 (N, H, W, 3), or the frames of a film (frames, N, H, W, 3)
Pictures = dict[str, Tensor]
SHOWN_SAMPLING = SamplingConfig("ddim", 25, spacing="trailing", cfg_scale=None)  # of a run's pictures


class Stage(Protocol):
    """What a stage defines: the methods that raise NotImplementedError. The others are defaults.

    The module that a stage builds has a ``config``. Its ``forward`` takes images, attributes and the
    loss's configuration, and returns a dict of terms with their ``total``, the loss of each sample, and
    the timestep of each sample (both None if there are no timesteps).
    """

    prefix: str  # of the files in --save_dir
    best: str  # the file for inference
    keeps_best: bool  # whether that file is written only when the validation loss is the best so far
    has_unused_parameters: bool  # whether a step may leave some unused; several processes must know

    def check(self, config: TrainConfig) -> None:
        """Raise ValueError for flags that cannot build the module. Takes no memory."""
        return

    def build(self, config: TrainConfig, train_set: ImageDataset) -> nn.Module:
        """The module to train."""
        raise NotImplementedError

    def loss_config(self, config: TrainConfig) -> Config:
        """The loss's configuration."""
        raise NotImplementedError

    def start_from(self, path: str, model: Any) -> str:
        """Take over another model's weights, as far as they fit. Returns one line about it."""
        return ""

    def prepare(self, model: nn.Module, config: TrainConfig) -> None:
        """Set up a module that is on its device: compiling, gradient checkpointing."""
        return

    def hidden(self, model: Any) -> Iterable[nn.Module]:
        """The modules between a network's first and last layer, whose matrices Muon takes."""
        raise NotImplementedError

    def validation(self, loss_config: Any, number: int, model: Any) -> tuple[Any, Tensor | None]:
        """The loss's configuration in validation, and a timestep for each of ``number`` images."""
        return loss_config, None

    def further(self, run: TrainingRun) -> dict[str, float]:
        """Further results of validation, besides the losses."""
        return {}

    def summary(self, losses: dict[str, float], final: bool) -> str:
        """The further results of validation as text."""
        return ""

    def pictures(self, run: TrainingRun, images: Tensor, attributes: Tensor) -> Pictures:
        """Pictures to show, from validation images and their attributes."""
        return {}

    def finished(self, run: TrainingRun) -> nn.Module:
        """The averaged model, as the file for inference holds it."""
        return run.ema.model

    def save(self, model: nn.Module, path: Any, **facts: Any) -> None:
        """Write the file for inference."""
        raise NotImplementedError

    def next_command(self, config: TrainConfig, path: Path) -> str:
        """The command that uses the file for inference."""
        raise NotImplementedError


def spread_timesteps(number: int, num_timesteps: int) -> Tensor:
    """Timesteps (number,), spread evenly over 0 ... T - 1, in a fixed random order."""
    order = torch.randperm(number, generator=torch.Generator().manual_seed(0))
    return torch.linspace(0, num_timesteps - 1, number).long()[order]


class NoisyStage(Stage):
    """The common part of the stages that learn from noisy images."""

    keeps_best, has_unused_parameters = True, False
    kind: Any  # the module's class
    key: str  # of its weights in a file

    def check(self, config: TrainConfig) -> None:
        if not is_encoded(config.data_folder):  # latents take the image size of their folder
            with torch.device("meta"):
                self.kind(replace(config.model, attribute_names=CELEBA_ATTRIBUTES))

    def loss_config(self, config: TrainConfig) -> LossConfig:
        return config.loss

    def validation(
        self, loss_config: LossConfig, number: int, model: Any
    ) -> tuple[LossConfig, Tensor | None]:
        # The best model is the one that draws best, whatever its guide reads.
        loss_config = replace(loss_config, cfg_dropout=0.0, attr_dropout=0.0, guide_weight=0.0)
        return loss_config, spread_timesteps(number, model.schedule.num_timesteps)

    def make(
        self, config: TrainConfig, train_set: ImageDataset, prior_rows: int = 0, has_guide: bool = False
    ) -> Any:
        """The module for this data; in latents, with the weights of their first stage."""
        model_config = replace(
            config.model,
            attribute_names=tuple(train_set.attribute_names),
            one_hot=train_set.one_hot,
            guidable=config.loss.cfg_dropout > 0,
            prior_rows=prior_rows,
            guide_channels=guide_widths(config.model) if has_guide else (),
        )
        if not isinstance(train_set, LatentDataset):
            return self.kind(model_config)
        first_stage = train_set.first_stage
        model_config = replace(
            model_config,
            image_size=train_set.image_size,
            crop=train_set.crop,
            first_stage=first_stage["kind"],
            first_stage_config=first_stage["config"],
            first_stage_judge=first_stage["judge"],
        )
        model = self.kind(model_config)
        load_weights(model.first_stage, first_stage_weights(train_set.folder), train_set.folder)
        return model

    def guide(self, model: Any) -> GuidanceClassifier | None:
        """The guide that is trained."""
        return model.guide

    def hidden(self, model: Any) -> Iterable[nn.Module]:
        """Those of the guide, where one is trained."""
        guide = self.guide(model)
        parts = () if guide is None else (guide.network.down, guide.network.downsample)
        return chain.from_iterable(part.modules() for part in parts)

    def further(self, run: TrainingRun) -> dict[str, float]:
        """Balanced accuracy of the guide on validation images in each quartile of t, cleanest first, as
        the mean over attributes. An attribute counts as present if it is more likely than in the
        training set. The cleanest quartile also gives the accuracy of each attribute."""
        guide, results = self.guide(run.ema.model), dict[str, float]()
        if guide is None:
            return results
        total, steps = run.num_validation_images, guide.schedule.num_timesteps
        for q in range(4):
            logits, rows = [], []
            for start in range(0, total, 64):
                images, attributes = run.validation_images(range(start, min(start + 64, total)))
                seed_everything(0, q, start)
                x0 = guide.first_stage.encode(images)
                t = torch.randint(q * steps // 4, (q + 1) * steps // 4, (len(x0),), device=x0.device)
                with run.accelerator.autocast():
                    x_t = guide.schedule.q_sample(x0, t, torch.randn_like(x0))
                    logits.append(guide.log_odds(x_t, t))
                rows.append(attributes)
            accuracy = balanced_accuracy(torch.cat(logits), torch.cat(rows))
            results[f"balanced_accuracy_quartile_{q + 1}"] = float(accuracy.nanmean())
            if q == 0:
                for name, value in zip(run.val_set.attribute_names, accuracy.tolist(), strict=True):
                    results[f"cleanest_quartile/{name}"] = value
        return results

    def summary(self, losses: dict[str, float], final: bool) -> str:
        quartiles = [f"{v:.3f}" for name, v in losses.items() if name.startswith("balanced_accuracy")]
        if not quartiles:
            return ""
        text = f", the guide's balanced accuracy by quartile of t, cleanest first: {' '.join(quartiles)}"
        if final:
            each = [(name.partition("/")[2], v) for name, v in losses.items() if "/" in name]
            text += f"\nin the cleanest: {', '.join(f'{name} {value:.3f}' for name, value in each)}"
        return text

    def finished(self, run: TrainingRun) -> nn.Module:
        """A copy whose guide knows what is typical."""
        model: Any = copy.deepcopy(run.ema.model)
        guide, total = self.guide(model), len(run.train_set)
        if guide is not None and total >= FEWEST_SAMPLES:
            chosen = torch.linspace(0, total - 1, min(TYPICAL_IMAGES, total)).long()
            items = (run.train_set.__getitems__(part.tolist()) for part in chosen.split(64))
            features = [guide.features(ready_batch(item, run.accelerator)[0]) for item in items]
            guide.set_typical(torch.cat(features))
            model.config = replace(model.config, knows_typical=True)
        return model

    def start_from(self, path: str, model: Any) -> str:
        return take_over(model, load(self.kind, self.key, path, "cpu"), path)

    def save(self, model: nn.Module, path: Any, **facts: Any) -> None:
        save_model(model, path, self.key, **facts)


class DiffusionStage(NoisyStage):
    """The model: ``ConditionalDiffusion``."""

    prefix, best, kind, key = "", "best_model.pth", ConditionalDiffusion, "model"

    def build(self, config: TrainConfig, train_set: ImageDataset) -> ConditionalDiffusion:
        prior = AttributePrior.of(train_set.attributes)
        model = self.make(config, train_set, len(prior.counts), config.train_guide)
        model.attribute_prior = prior
        if model.guide is not None:
            model.guide.set_prior(train_set.attributes)
        return model

    def prepare(self, model: Any, config: TrainConfig) -> None:
        model.unet.gradient_checkpointing = config.gradient_checkpointing
        if config.compile:
            model.unet.compile()

    def hidden(self, model: ConditionalDiffusion) -> Iterable[nn.Module]:
        unet = model.unet
        parts = (unet.down, unet.downsample, unet.middle, unet.up, unet.upsample)
        return chain(*(part.modules() for part in parts), super().hidden(model))

    def pictures(self, run: TrainingRun, images: Tensor, attributes: Tensor) -> Pictures:
        """EMA samples from fixed noise under the images' attributes, or with and without the only
        attribute; the way from noise to them; and the VAE's reconstructions below their originals."""
        model: Any = run.ema.model
        requests = {"": attributes}
        if model.config.one_of_two:
            (name,) = model.config.attribute_names
            ones = torch.ones_like(attributes)
            requests = {f"/not_{name}": -ones, f"/{name}": ones}
        pictures: Pictures = {}
        for title, rows in requests.items():
            generator = torch.Generator().manual_seed(0)
            x_T = model.initial_noise(len(rows), generator=generator)
            frames, _, _ = model.sample_frames(x_T, rows, SHOWN_SAMPLING, generator)
            pictures |= {f"samples{title}": frames[-1], f"denoising{title}": frames}
        reconstructions = model.reconstruct(images)
        if images.is_floating_point():  # moments
            images = model.first_stage.decode(model.first_stage.encode(images))
        return {**pictures, "reconstructions": torch.cat([images, reconstructions])}

    def next_command(self, config: TrainConfig, path: Path) -> str:
        return f"python manipulate.py --checkpoint {quote(str(path))}"


class GuideStage(NoisyStage):
    """A guide: ``GuidanceClassifier``."""

    prefix, best, kind, key = "guide_", "guide_best.pth", GuidanceClassifier, "guide"

    def build(self, config: TrainConfig, train_set: ImageDataset) -> GuidanceClassifier:
        model = self.make(config, train_set)
        model.set_prior(train_set.attributes)
        return model

    def guide(self, model: GuidanceClassifier) -> GuidanceClassifier:
        return model

    def next_command(self, config: TrainConfig, path: Path) -> str:
        model = path.with_name(DiffusionStage.best)
        steered = quote(str(model)) if model.is_file() else "MODEL"  # of the same data
        return f"python manipulate.py --checkpoint {steered} --guidance both --guide {quote(str(path))}"


class AutoencoderStage(Stage):
    """A first stage of our own, for latents: ``FirstStageTraining``."""

    prefix, best, kind = "", "first_stage.pth", "vae"
    keeps_best = False  # the loss changes when the discriminator starts
    has_unused_parameters = True  # the discriminator's, before it starts

    def check_side(self, config: TrainConfig) -> None:
        """Raise ValueError for an image size that the first stage cannot halve."""
        side, factor = config.model.image_size, 2 ** len(config.first_stage.vae_channels)
        if side % factor:
            raise ValueError(f"--image_size {side} is not divisible by the first stage's {factor}")

    def check(self, config: TrainConfig) -> None:
        self.check_side(config)
        if config.first_stage_loss.perceptual_weight:
            check_likeness(config.judge)

    def build(self, config: TrainConfig, train_set: ImageDataset) -> AutoencoderTraining:
        names = tuple(train_set.attribute_names)
        stages, judge = None, ""
        if config.first_stage_loss.perceptual_weight:
            stages, judge = perceptual_stages(config.judge, names, config.first_stage.crop)
        first_stage = replace(config.first_stage, attribute_names=names, judge=judge)
        vae = SpatialVAE(**self.network(first_stage))
        images = train_set.__getitems__([*range(min(PATCH_IMAGES, len(train_set)))])["image"]
        vae.start_from_patches(PixelFirstStage().encode(images))
        return FirstStageTraining(first_stage, vae, stages)

    def network(self, config: FirstStageConfig) -> dict[str, Any]:
        """The arguments of the network."""
        return config.network()

    def loss_config(self, config: TrainConfig) -> Config:
        return config.first_stage_loss

    def hidden(self, model: Any) -> Iterable[nn.Module]:
        return model.autoencoder.modules()

    def pictures(self, run: TrainingRun, images: Tensor, attributes: Tensor) -> Pictures:
        """Reconstructions below their originals."""
        model: Any = run.ema.model
        return {"reconstructions": torch.cat([images, model.reconstruct(images)])}

    def save(self, model: Any, path: Any, **facts: Any) -> None:
        """Write what rebuilds the first stage, and facts about its training."""
        config = model.config
        state = {"kind": self.kind, "config": self.network(config), "trained_on": config.to_dict()}
        save_atomically(state | {"autoencoder": model.autoencoder.state_dict()} | facts, path)

    def next_command(self, config: TrainConfig, path: Path) -> str:
        data = f"--image_size {config.model.image_size} --data_root {quote(config.data_folder)}"
        return f"python encode_latents.py --first_stage {quote(str(path))} {data}"


class UpscalerStage(AutoencoderStage):
    """A first stage that doubles images: ``UpscalerTraining``."""

    kind, has_unused_parameters = "upscaler", False

    def check(self, config: TrainConfig) -> None:
        if len(config.first_stage.vae_channels) != 1:
            widths = " ".join(map(str, config.first_stage.vae_channels))
            raise ValueError(f"an upscaler has one width, got --channels {widths}: try --channels 48")
        self.check_side(config)

    def build(self, config: TrainConfig, train_set: ImageDataset) -> UpscalerTraining:
        first_stage = replace(config.first_stage, attribute_names=tuple(train_set.attribute_names))
        return UpscalerTraining(first_stage, Upscaler(**self.network(first_stage)))

    def network(self, config: FirstStageConfig) -> dict[str, Any]:
        return {"width": config.vae_channels[0], "detail_width": DETAIL_WIDTH}

    def hidden(self, model: Any) -> Iterable[nn.Module]:
        upscaler = model.autoencoder
        parts = (upscaler.blocks, upscaler.detail.conv1, upscaler.detail.conv2)
        return chain.from_iterable(part.modules() for part in parts)

    def next_command(self, config: TrainConfig, path: Path) -> str:
        return f"python export.py --checkpoint MODEL --first_stage {quote(str(path))} --out LARGER.pth"


STAGES: dict[str, Stage] = {
    "diffusion": DiffusionStage(),
    "first_stage": AutoencoderStage(),
    "guide": GuideStage(),
    "upscaler": UpscalerStage(),
}
