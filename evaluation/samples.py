"""The judging of samples, behind evaluate.py samples. They are drawn under attribute rows of a held-out
split, and compared with the images of a reference split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from tqdm import tqdm

import samplers
from attributes import AttributePrior
from classifiers.likeness import perceptual_distance
from config import FEWEST_SAMPLES, SamplingConfig
from evaluation.base import Evaluation, in_batches, main_bar, say
from evaluation.features import FEATURE_SPACES
from evaluation.metrics import (
    NEIGHBOURS,
    balanced_accuracy,
    distances,
    mean_of,
    nearest,
    pooled_accuracy,
    pooled_accuracy_by_chance,
    with_error,
)
from evaluation.tables import plot_sweeps, samples_table
from figures.grids import save_grid
from image_data.labelled import LabelledImages
from samplers import SAMPLERS, sample_generators

if TYPE_CHECKING:
    from evaluate import SamplesConfig

# How much is looked at: by eye, so that a setting takes minutes and a picture fits a screen.
NAMED = 3  # attributes in a short request
DEFAULT_SAMPLES = 1000
DEFAULT_SCALES = (1.0, 1.5, 2.0, 3.0)  # of classifier-free guidance
IN_PICTURE = 64  # samples in a picture
ALIKE = 8  # rows, and samples of each, behind the diversity
CLOSEST = 8  # pairs in the picture of nearest training images
RECONSTRUCTED = 500  # held-out images, at most, that the autoencoders are measured on


class SampleEvaluation(Evaluation):
    """Every setting of drawing, under every kind of request.

    Attributes:
        held_out: the split whose attribute rows are requested.
        rows: the attribute rows (N, A) of N samples, in turn where the split has fewer.
        requests: the rows of each kind of request.

    Raises:
        ValueError: where the held-out split has fewer than FEWEST_SAMPLES images, or as
            ``sampling_settings``.
    """

    config: SamplesConfig
    fewest = NEIGHBOURS + 1

    def __init__(self, config: SamplesConfig, data: LabelledImages, device: str):
        super().__init__(config, data, device)
        self.settings = self.sampling_settings()
        split = config.attribute_split
        self.held_out = data.open_for(self.model.config, split, config.cache_dir)
        available = len(self.held_out)
        if available < FEWEST_SAMPLES:
            raise ValueError(
                f"{available} images in the {split} split: at least {FEWEST_SAMPLES} are needed: "
                "choose another --attribute_split"
            )
        self.number = config.num_samples or min(DEFAULT_SAMPLES, available)
        if self.number > available:
            say(f"{self.number} samples: the {available} rows of the {split} split serve in turn")
        self.rows = self.held_out.attributes[torch.arange(self.number) % available]
        self.requests = self.make_requests()
        self.prior = AttributePrior.of(self.train.attributes)
        share = (self.train.attributes > 0).double().mean(0)
        self.log_odds = share.clamp(1e-6, 1 - 1e-6).logit().float()  # (A,)
        spaces = {name: make(config, self.judge) for name, make in FEATURE_SPACES.items()}
        self.spaces = {name: features for name, features in spaces.items() if features}
        self.protocol |= {
            "first_stage_judge": self.model.config.first_stage_judge,
            "num_samples": self.number,
            "attribute_split": split,
            "eta": config.sampling.eta,
            "open": config.open,
        }

    def sampling_settings(self) -> list[SamplingConfig]:
        """Every combination of the samplers, step counts and guidance scales to compare.

        Raises:
            ValueError: for a sampler that takes no eta, more steps than the model has timesteps, or a
                guidance scale that the model was not trained for.
        """
        config, model = self.config, self.model
        scales = config.cfg_scale or (DEFAULT_SCALES if model.config.guidable else (1.0,))
        numbers = config.num_inference_steps or (None,)
        settings = []
        for sampler, number, scale, guide_scale in product(
            config.sampler, numbers, scales, config.guide_scale
        ):
            SAMPLERS[sampler].options(eta=config.sampling.eta)
            setting = replace(config.sampling, sampler=sampler, num_inference_steps=number)
            setting = replace(setting, cfg_scale=scale, guide_scale=guide_scale)
            settings.append(samplers.resolve(setting, model.schedule, model.config.guidable))
        return settings

    def make_requests(self) -> dict[str, Tensor]:
        """The attribute rows (N, A) of each kind of request: whole held-out rows, NAMED attributes of
        each, and nothing at all. Classes have no short requests, since one class says everything."""
        generator = torch.Generator().manual_seed(self.config.seed)
        order = torch.rand(self.rows.shape, generator=generator).argsort(1)
        requests = {"whole": self.rows}
        if not self.model.config.one_hot:
            requests["three"] = self.rows * (order < NAMED)
        requests["none"] = torch.zeros_like(self.rows)
        return {kind: rows for kind, rows in requests.items() if kind in self.config.requests}

    def run(self) -> str:
        """Measure every setting under every kind of request. report.json and report.md grow as it goes.
        Returns the latter."""
        real = self.real()  # before the long part, since it refuses too few images
        report: dict[str, Any] = {"protocol": self.protocol, "real": real, **self.autoencoders()}
        report["settings"] = []
        pairs = [*product(self.settings, self.requests)]
        with main_bar((self.number + ALIKE**2) * len(pairs), "sampling") as bar:
            for sampling, request in pairs:
                report["settings"].append(self.measure(sampling, request, bar))
                text = self.write("report", report, samples_table)
        if self.writes:
            plot_sweeps(report, self.output_dir)
        return text

    # ---------------------------------------------------------------- drawing

    def draw(self, rows: Tensor, sampling: SamplingConfig, seed: int, numbers: Sequence[int]) -> Tensor:
        """Images uint8 (B, S, S, 3) under attribute rows (B, A): image i from the seed (seed,
        numbers[i])."""
        options: dict[str, Any] = {"guide": self.guide, "complete": not self.config.open}
        options |= {"sampling": sampling, "generator": sample_generators(seed, numbers)}
        with self.autocast:
            return self.model.sample(len(rows), attributes=rows, **options)

    def measure(self, sampling: SamplingConfig, request: str, bar: tqdm) -> dict[str, Any]:
        """Every figure of one setting under one kind of request. Writes its pictures."""
        rows, size = self.requests[request], self.config.batch_size

        def draw_and_read(batch: Tensor, numbers: range) -> tuple[dict[str, Tensor], Tensor]:
            images = self.draw(batch, sampling, self.config.seed, numbers)
            kept = images[: max(0, IN_PICTURE - numbers.start)].cpu()  # the rest leaves the memory
            return self.features_of(images), kept

        drawn = in_batches(draw_and_read, rows, size, bar=bar)
        features = {space: torch.cat([each[space] for each, _ in drawn]) for space in self.spaces}
        logits = self.judge.read_logits(features["judge"])
        spread = mean_of("diversity", self.diversity(rows, sampling, bar))
        closest, which = nearest(features["judge"], self.train_features)
        if self.writes:
            images = torch.cat([kept for _, kept in drawn])
            self.pictures(sampling, request, images, closest, which)
        return {
            "sampling": asdict(sampling),
            "request": request,
            **self.distances(features),
            "attributes": self.control(request, logits),
            "diversity_of_one_row_over_reference": spread["diversity"],
            "diversity_error": spread["diversity_error"],
            "median_distance_to_train": float(closest.median()),
        }

    def pictures(
        self, sampling: SamplingConfig, request: str, images: Tensor, closest: Tensor, which: Tensor
    ) -> None:
        """Write a grid of samples, and a grid of the samples nearest to training images with those
        images below."""
        s = sampling
        name = f"{request}_{s.sampler}_{s.num_inference_steps}_cfg{s.cfg_scale:g}"
        title = f"{s.sampler}, {s.num_inference_steps} steps, guidance {s.cfg_scale:g}"
        if s.guide_scale:
            name += f"_guide{s.guide_scale:g}"
            title += f", guide {s.guide_scale:g}"
        conditional = s.cfg_scale or s.guide_scale  # else the network sees no request
        title = f"{f'Request {request}' if conditional else 'Unconditional'}: {title}"
        path = self.output_dir / f"samples_{name}.png"
        save_grid(path, images.numpy(), [""] * len(images), 16, title=title)
        suspects = closest.argsort()[:CLOSEST]
        rows = self.requests[request][suspects]
        again = self.draw(rows, sampling, self.config.seed, suspects.tolist()).cpu()
        pairs = torch.cat([again, torch.tensor(self.train.images[which[suspects].numpy()])])
        labels = [f"{d:.2f}" for d in closest[suspects].tolist()] + ["training image"] * len(suspects)
        title = "The samples closest to a training image, and that image"
        path = self.output_dir / f"nearest_{name}.png"
        save_grid(path, pairs.numpy(), labels, len(suspects), title=title)

    # ---------------------------------------------------------------- figures

    def diversity(self, rows: Tensor, sampling: SamplingConfig, bar: tqdm) -> Tensor:
        """For each of the first rows, how far apart samples of that one row lie, over how far apart
        reference images lie (ALIKE,)."""
        seed = self.config.seed + 2  # other noise than that of the samples

        def draw_and_read(batch: Tensor, numbers: range) -> Tensor:
            return self.judge.read_features(self.draw(batch, sampling, seed, numbers))

        alike = rows[:ALIKE].repeat_interleave(ALIKE, 0)
        drawn = in_batches(draw_and_read, alike, self.config.batch_size, bar=bar)
        groups = torch.cat(drawn).view(ALIKE, ALIKE, -1)
        reference = self.reference["judge"]
        some = reference[:: max(1, len(reference) // 500)]
        return torch.stack([torch.pdist(group).mean() for group in groups]) / torch.pdist(some).mean()

    def control(self, request: str, logits: Tensor) -> dict[str, Any]:
        """How well the judge sees a kind of request met, and, under ``unasked``, two shares for each
        attribute: how often it is seen where a request leaves it open, and how often it is present in
        training rows that agree with these requests."""
        rows = self.requests[request]
        if request == "whole":
            each = balanced_accuracy(logits, rows).tolist()
            return {
                **with_error(
                    "balanced_accuracy",
                    lambda i: float(balanced_accuracy(logits[i], rows[i]).nanmean()),
                    len(rows),
                ),
                "each": dict(zip(self.names, each, strict=True)),
                **self.class_accuracy(logits, rows),
            }
        figures: dict[str, Any] = {}
        if request == "three":
            figures = with_error(
                "named_accuracy", lambda i: pooled_accuracy(logits[i], rows[i]), len(rows)
            )
            figures["named_accuracy_by_chance"] = pooled_accuracy_by_chance(logits, rows)
        is_open = rows == 0
        number = is_open.sum(0).clamp(min=1)
        visible = (self.is_visible(logits) & is_open).sum(0) / number
        expected = (self.prior.frequencies(rows) * is_open).sum(0) / number
        shares = zip(visible.tolist(), expected.tolist(), strict=True)
        return figures | {"unasked": dict(zip(self.names, shares, strict=True))}

    def class_accuracy(self, logits: Tensor, rows: Tensor) -> dict[str, float]:
        """How often the judge sees the class that was requested. Nothing where attributes are none."""
        if not self.model.config.one_hot:
            return {}
        return mean_of("class_accuracy", (logits.argmax(1) == rows.argmax(1)).float())

    def is_visible(self, logits: Tensor) -> Tensor:
        """Whether each attribute is more likely there than not, by the judge's logits (N, A). The judge
        was trained as if each were there half of the time. This corrects for how often they are."""
        return logits + self.log_odds > 0

    def distances(self, features: dict[str, Tensor]) -> dict[str, dict]:
        """Every distance to the reference, in every feature space."""
        return {space: distances(features[space], self.reference[space]) for space in self.spaces}

    def real(self) -> dict[str, Any]:
        """The same figures for held-out photographs, which is what a perfect model would score."""
        number = min(self.number, len(self.held_out))
        images, rows = self.held_out.images[:number], self.rows[:number]
        features = self.read(images, f"{self.config.attribute_split} split")
        logits = self.judge.read_logits(features["judge"])
        accuracy = float(balanced_accuracy(logits, rows).nanmean())
        figures: dict[str, Any] = {"balanced_accuracy": accuracy, **self.class_accuracy(logits, rows)}
        rates = self.is_visible(logits).float().mean(0).tolist(), (rows > 0).float().mean(0).tolist()
        figures["frequency"] = dict(zip(self.names, zip(*rates, strict=True), strict=True))
        closest, _ = nearest(features["judge"], self.train_features)
        return {
            **self.distances(features),
            "attributes": figures,
            "median_distance_to_train": float(closest.median()),
        }

    # ---------------------------------------------------------------- the autoencoders

    def fidelity(self, reconstructions: Tensor) -> dict[str, float]:
        """How near reconstructions of the first N held-out images come to those images."""
        originals = torch.tensor(self.held_out.images[: len(reconstructions)])
        pictures = [x.permute(0, 3, 1, 2).float() / 255 for x in (reconstructions, originals)]
        judge, device, perceptual = self.judge, self.model.device, []
        with torch.no_grad():
            for pair in zip(reconstructions.split(250), originals.split(250), strict=True):
                inputs = [judge.input(part.to(device)) for part in pair]
                perceptual.append(perceptual_distance(judge.stages(), *inputs))
        return {
            "psnr": float(peak_signal_noise_ratio(*pictures, data_range=1.0)),
            "ssim": float(structural_similarity_index_measure(*pictures, data_range=1.0)),
            "perceptual_distance": float(torch.cat(perceptual).mean()),
        }

    def autoencoders(self) -> dict[str, dict]:
        """How well the semantic latent keeps held-out images, and so for the first stage of a model that
        has one."""
        model, stage = self.model, self.model.first_stage

        @torch.no_grad()
        def kept(batch: Tensor, _: range) -> list[Tensor]:
            with self.autocast:
                parts = [model.encode_latent(batch), model.predict_attributes(batch)]
                parts.append(model.reconstruct(batch))
                if model.config.first_stage != "pixels":
                    parts.append(stage.decode(stage.encode(batch.to(model.device))))
            return [part.cpu() for part in parts]

        parts = in_batches(kept, self.held_out.images[:RECONSTRUCTED], label="reconstructions")
        mu, attributes, *images = map(torch.cat, zip(*parts, strict=True))
        accuracy = balanced_accuracy(attributes, self.held_out.attributes[:RECONSTRUCTED])
        semantic = {
            "active_dimensions": int((mu.float().var(0) > 0.01).sum()),
            "latent_dim": mu.shape[1],
            "attribute_balanced_accuracy": float(accuracy.nanmean()),
        }
        figures = {"autoencoder": self.fidelity(images[0]) | semantic}
        if len(images) > 1:
            figures["first_stage"] = self.fidelity(images[1])
        return figures
