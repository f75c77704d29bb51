"""The judging of samples, behind evaluate.py samples. They are drawn under attribute rows of a held-out
split, and compared with the images of a reference split."""

from __future__ import annotations

import math
from collections.abc import Callable
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

from attributes import AttributePrior
from classifiers.likeness import perceptual_distance
from config import FEWEST_SAMPLES, REQUESTS, SamplingConfig
from evaluation.base import Evaluation
from evaluation.features import make_features
from evaluation.metrics import (
    balanced_accuracy,
    distances,
    mean_of,
    nearest,
    pooled_accuracy,
    pooled_accuracy_by_chance,
    with_error,
)
from evaluation.reading import Result, in_batches, say
from evaluation.tables import plot_sweeps, samples_table, write_report
from figures.grids import save_grid
from image_data.labelled import LabelledImages
from samplers import SAMPLERS, resolve
from studio import draw_batches

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
        self.spaces = make_features(config, self.judge)
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
        for name, number, scale, guide_scale in product(
            config.sampler, numbers, scales, config.guide_scale
        ):
            SAMPLERS[name].options(eta=config.sampling.eta)
            setting = replace(
                config.sampling,
                sampler=name,
                num_inference_steps=number,
                cfg_scale=scale,
                guide_scale=guide_scale,
            )
            settings.append(resolve(setting, model.schedule, model.config.guidable))
        return settings

    def make_requests(self) -> dict[str, Tensor]:
        """The attribute rows (N, A) of each kind of request: whole held-out rows, NAMED attributes of
        each, and nothing at all. Classes have no short requests, since one class says everything."""
        generator = torch.Generator().manual_seed(self.config.seed)
        order = torch.rand(self.rows.shape, generator=generator).argsort(1)
        every = {
            "whole": self.rows,
            "three": self.rows * (order < NAMED),
            "none": torch.zeros_like(self.rows),
        }
        kinds = [kind for kind in REQUESTS if kind in self.config.requests]
        if self.model.config.one_hot:
            kinds = [kind for kind in kinds if kind != "three"]
        return {kind: every[kind] for kind in kinds}

    def run(self) -> str:
        """Measure every setting under every kind of request. report.json and report.md grow as it goes.
        Returns the latter."""
        real = self.real()  # before the long part, since it refuses too few images
        report: dict[str, Any] = {"protocol": self.protocol, "real": real, **self.autoencoders()}
        report["settings"] = []
        pairs = [*product(self.settings, self.requests)]
        total = (len(self.rows) + ALIKE**2) * len(pairs)
        with tqdm(total=total, desc="sampling", unit="image", disable=not self.writes) as bar:
            for sampling, request in pairs:
                report["settings"].append(self.measure(sampling, request, bar))
                if self.writes:
                    write_report(self.output_dir, "report", report, samples_table(report))
        if self.writes:
            plot_sweeps(report, self.output_dir)
        return samples_table(report)

    # ---------------------------------------------------------------- drawing

    def draw(
        self, then: Callable[[Tensor], Result], rows: Tensor, sampling: SamplingConfig, **options: Any
    ) -> list[Result]:
        """``then`` of every batch of images drawn under attribute rows (N, A). ``options`` are those of
        ``draw_batches``."""
        options |= {"guide": self.guide, "complete": not self.config.open}
        options |= {"batch_size": self.config.batch_size}
        return draw_batches(then, self.model, rows, sampling, self.autocast, **options)

    def measure(self, sampling: SamplingConfig, request: str, bar: tqdm) -> dict[str, Any]:
        """Every figure of one setting under one kind of request. Writes its pictures."""
        rows, first = self.requests[request], iter(range(0, len(self.rows), self.config.batch_size))

        def features_of(images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            kept = images if next(first) < IN_PICTURE else images[:0]  # the rest leaves the memory
            return {space: read(images) for space, read in self.spaces.items()}, kept.cpu()

        drawn = self.draw(features_of, rows, sampling, bar=bar, seed=self.config.seed)
        features = {space: torch.cat([each[space] for each, _ in drawn]) for space in self.spaces}
        logits = self.judge.read_logits(features["judge"])
        spread = mean_of("diversity", self.diversity(rows, sampling, bar))
        closest, which = nearest(features["judge"], self.train_features)
        images = torch.cat([kept for _, kept in drawn])[:IN_PICTURE]
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
        """Write a grid of samples, and a grid of the samples nearest to training images above those."""
        suspects = closest.argsort()[:CLOSEST]
        rows = self.requests[request][suspects]
        seeds = {"seed": self.config.seed, "numbers": suspects.tolist()}
        again = self.draw(Tensor.cpu, rows, sampling, **seeds)
        if not self.writes:
            return
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
        pairs = torch.cat([*again, torch.tensor(self.train.images[which[suspects].numpy()])])
        labels = [f"{d:.2f}" for d in closest[suspects].tolist()] + ["training image"] * len(suspects)
        title = "The samples closest to a training image, and that image"
        path = self.output_dir / f"nearest_{name}.png"
        save_grid(path, pairs.numpy(), labels, len(suspects), title=title)

    # ---------------------------------------------------------------- figures

    def diversity(self, rows: Tensor, sampling: SamplingConfig, bar: tqdm) -> Tensor:
        """For each of the first rows, how far apart samples of that one row lie, over how far apart
        reference images lie (ALIKE,)."""
        alike = rows[:ALIKE].repeat_interleave(ALIKE, 0)
        seed = self.config.seed + 2  # other noise than that of the samples
        drawn = self.draw(self.judge.read_features, alike, sampling, bar=bar, seed=seed)
        groups = torch.cat(drawn).view(ALIKE, ALIKE, -1)
        reference = self.reference["judge"]
        some = reference[:: max(1, len(reference) // 500)]
        return torch.stack([torch.pdist(group).mean() for group in groups]) / torch.pdist(some).mean()

    def control(self, request: str, logits: Tensor) -> dict[str, Any]:
        """How well the judge sees a kind of request met, and how often it sees what nobody asked for."""
        rows = self.requests[request]
        figures: dict[str, Any] = {}
        if request == "whole":
            figures |= self.accuracy(logits, rows)
            if self.model.config.one_hot:
                figures |= self.class_accuracy(logits)
        if request == "three":
            met, error = with_error(lambda i: pooled_accuracy(logits[i], rows[i]), len(rows))
            figures |= {"named_accuracy": met, "named_accuracy_error": error}
            figures["named_accuracy_by_chance"] = pooled_accuracy_by_chance(logits, rows)
        if request != "whole":
            figures["unasked"] = self.unasked(logits, rows)
        return figures

    def accuracy(self, logits: Tensor, rows: Tensor) -> dict[str, Any]:
        """Balanced accuracy under whole rows: the mean over attributes, and that of each."""
        whole, error = with_error(
            lambda i: float(balanced_accuracy(logits[i], rows[i]).nanmean()), len(rows)
        )
        each = zip(self.names, balanced_accuracy(logits, rows).tolist(), strict=True)
        return {
            "balanced_accuracy": whole,
            "balanced_accuracy_error": error,
            "each": {name: None if math.isnan(value) else value for name, value in each},
        }

    def unasked(self, logits: Tensor, rows: Tensor) -> dict[str, tuple[float, float]]:
        """Two shares for each attribute: how often it is seen where a request (N, A) leaves it open, and
        how often it is present in training rows that agree with these requests."""
        is_open = rows == 0
        seen = self.is_seen(logits) & is_open
        expected = self.prior.frequencies(rows) * is_open
        number = is_open.sum(0).clamp(min=1)
        rates = zip((seen.sum(0) / number).tolist(), (expected.sum(0) / number).tolist(), strict=True)
        return dict(zip(self.names, rates, strict=True))

    def is_seen(self, logits: Tensor) -> Tensor:
        """Whether each attribute is more likely there than not, by the judge's logits (N, A). The judge
        was trained as if each were there half of the time. This corrects for how often they are."""
        return logits + self.log_odds > 0

    def class_accuracy(self, logits: Tensor) -> dict[str, float]:
        """How often the judge sees the class that was requested, where attributes are classes."""
        right = (logits.argmax(1) == self.rows[: len(logits)].argmax(1)).float()
        return mean_of("class_accuracy", right)

    def distances(self, features: dict[str, Tensor]) -> dict[str, dict]:
        """Every distance to the reference, in every feature space."""
        return {space: distances(features[space], self.reference[space]) for space in self.spaces}

    def real(self) -> dict[str, Any]:
        """The same figures for held-out photographs, which is what a perfect model would score."""
        number = min(self.number, len(self.held_out))
        images, rows = self.held_out.images[:number], self.rows[:number]
        features = self.read(images, f"{self.config.attribute_split} split")
        logits = self.judge.read_logits(features["judge"])
        seen: dict[str, Any] = {"balanced_accuracy": float(balanced_accuracy(logits, rows).nanmean())}
        if self.model.config.one_hot:
            seen |= self.class_accuracy(logits)
        rates = self.is_seen(logits).float().mean(0).tolist(), (rows > 0).float().mean(0).tolist()
        seen["frequency"] = dict(zip(self.names, zip(*rates, strict=True), strict=True))
        closest, _ = nearest(features["judge"], self.train_features)
        return {
            **self.distances(features),
            "attributes": seen,
            "median_distance_to_train": float(closest.median()),
        }

    # ---------------------------------------------------------------- the autoencoders

    def fidelity(self, reconstructions: Tensor) -> dict[str, float]:
        """How near reconstructions of the first N held-out images come to those images."""
        originals = torch.tensor(self.held_out.images[: len(reconstructions)])
        pictures = [x.permute(0, 3, 1, 2).float() / 255 for x in (reconstructions, originals)]
        pairs = zip(reconstructions.split(250), originals.split(250), strict=True)
        judge, device = self.judge, self.model.device
        with torch.no_grad():
            perceptual = [
                perceptual_distance(judge.stages(), *(judge.input(part.to(device)) for part in pair))
                for pair in pairs
            ]
        return {
            "psnr": float(peak_signal_noise_ratio(*pictures, data_range=1.0)),
            "ssim": float(structural_similarity_index_measure(*pictures, data_range=1.0)),
            "perceptual_distance": float(torch.cat(perceptual).mean()),
        }

    def autoencoders(self, number: int = RECONSTRUCTED) -> dict[str, dict]:
        """How well the semantic latent keeps held-out images, and so for the first stage of a model that
        has one."""
        model = self.model
        latent, stage = model.config.first_stage != "pixels", model.first_stage

        def kept(batch: Tensor) -> tuple[Tensor, ...]:
            with self.autocast, torch.no_grad():
                mu = model.encode_latent(batch)
                image = stage.decode(model.autoencoder.decode(mu))
                same = stage.decode(stage.encode(batch.to(model.device))) if latent else image
                parts = (mu, image, model.autoencoder.attribute_logits(mu), same)
                return tuple(part.cpu() for part in parts)

        parts = in_batches(kept, self.held_out.images[:number], label="reconstructions")
        mu, image, attributes, same = map(torch.cat, zip(*parts, strict=True))
        accuracy = balanced_accuracy(attributes, self.held_out.attributes[:number])
        semantic = {
            "active_dimensions": int((mu.float().var(0) > 0.01).sum()),
            "latent_dim": mu.shape[1],
            "attribute_balanced_accuracy": float(accuracy.nanmean()),
        }
        figures = {"autoencoder": self.fidelity(image) | semantic}
        return figures | {"first_stage": self.fidelity(same)} if latent else figures
