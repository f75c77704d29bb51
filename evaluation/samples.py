"""The judging of samples, behind evaluate.py. They are drawn under attribute rows of a held-out split,
and compared with the images of a reference split."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from tqdm import tqdm

import devices
from attributes import AttributePrior
from checkpoint import file_hash, save_atomically
from classifiers.judge import Judge, train_judge
from classifiers.likeness import perceptual_distance
from config import FEWEST_SAMPLES, REQUESTS, ModelConfig, SamplingConfig
from diffusion_model import ConditionalDiffusion
from evaluation.features import make_features
from evaluation.metrics import (
    balanced_accuracy,
    distances,
    mean_error,
    nearest,
    pooled_accuracy,
    pooled_accuracy_by_chance,
    with_error,
)
from evaluation.reading import Result, in_batches, read, say
from evaluation.tables import plot_sweeps, samples_table
from figures.grids import save_grid
from guidance import Guide
from image_data.labelled import LabelledImages
from progress import progress_bar
from samplers import SAMPLERS, resolve
from studio import draw_batches

if TYPE_CHECKING:
    from evaluate import EvaluateConfig

NAMED = 3  # attributes in a short request
DEFAULT_SAMPLES = 1000
DEFAULT_SCALES = (1.0, 1.5, 2.0, 3.0)  # of classifier-free guidance
SHOWN = 64  # samples in a picture
GUESTS = 8  # rows, and samples of each, behind the diversity figure; pairs in the neighbour picture
RECONSTRUCTED = 500  # held-out images, at most, that the autoencoders are measured on


def sampling_settings(config: EvaluateConfig, model: ConditionalDiffusion) -> list[SamplingConfig]:
    """Every combination of the samplers, step counts and guidance scales asked for.

    Raises:
        ValueError: for a sampler that takes no eta, more steps than the model has timesteps, or a
            guidance scale that the model was not trained for.
    """
    scales = config.cfg_scale or (DEFAULT_SCALES if model.config.guidable else (1.0,))
    numbers = config.num_inference_steps or (None,)
    settings = []
    for combination in product(config.sampler, numbers, scales, config.guide_scale):
        name, number, cfg_scale, guide_scale = combination
        SAMPLERS[name].options(eta=config.sampling.eta)
        setting = replace(
            config.sampling,
            sampler=name,
            num_inference_steps=number,
            cfg_scale=cfg_scale,
            guide_scale=guide_scale,
        )
        settings.append(resolve(setting, model.schedule, model.config.guidable))
    return settings


def make_judge(
    config: EvaluateConfig, data: LabelledImages, model_config: ModelConfig, device: str
) -> None:
    """Train the judge on the training split, test it, and write it with its accuracies to --judge."""
    test, train = (data.open_for(model_config, split, config.cache_dir) for split in ("test", "train"))
    judge = train_judge(train, config.judge_epochs, config.seed, device)
    accuracy = balanced_accuracy(read(judge, test.images)[1], test.attributes)
    content = {
        "judge": judge.state_dict(),
        "attribute_names": list(train.attribute_names),
        "balanced_accuracy": accuracy.tolist(),
        "crop": model_config.crop,
    }
    save_atomically(content, config.judge)


class SampleEvaluation:
    """A model, its judge, and the images it is measured against.

    Args:
        data: what --data_root holds.
        guide: steers the samples.
        facts: what ``load_judge`` says of the judge.

    Raises:
        ValueError: where the held-out split has fewer than FEWEST_SAMPLES images.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        data: LabelledImages,
        model: ConditionalDiffusion,
        guide: Guide | None,
        judge: Judge,
        facts: dict,
    ):
        self.config, self.model, self.guide = config, model, guide
        self.judge, self.facts = judge, facts
        self.output_dir, self.writes = Path(config.output_dir), PartialState().is_main_process
        self.autocast = devices.autocast(config.mixed_precision, model.device.type)
        self.names = model.config.attribute_names
        splits = (config.attribute_split, "train", config.reference_split)
        self.held_out, self.train, self.reference_set = (
            data.open_for(model.config, split, config.cache_dir) for split in splits
        )
        found = len(self.held_out)
        if found < FEWEST_SAMPLES:
            raise ValueError(
                f"{found} images in the {config.attribute_split} split: at least {FEWEST_SAMPLES} are "
                "needed: choose another --attribute_split"
            )
        self.number = config.num_samples or min(DEFAULT_SAMPLES, found)
        self.held_out_number = min(self.number, found)
        self.rows = self.held_out.attributes[torch.arange(self.number) % found]
        self.requests = self.make_requests()
        self.prior = AttributePrior.of(self.train.attributes)
        share = (self.train.attributes > 0).double().mean(0)
        self.log_odds = share.clamp(1e-6, 1 - 1e-6).logit().float()  # (A,)

    @cached_property
    def spaces(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """The feature spaces that apply: name -> features (B, D) of a batch of images."""
        return make_features(self.config, self.judge)

    @cached_property
    def reference(self) -> dict[str, Tensor]:
        """Features of the reference images, in every feature space."""
        images, label = self.reference_set.images, f"{self.config.reference_split} split"
        return {
            space: torch.cat(in_batches(features, images, 50, f"{space}, {label}"))
            for space, features in self.spaces.items()
        }

    @cached_property
    def train_features(self) -> Tensor:
        """The judge's features of the training images."""
        if self.config.reference_split == "train":
            return self.reference["judge"]
        return read(self.judge, self.train.images, "training images")[0]

    @cached_property
    def protocol(self) -> dict:
        """What the figures depend on."""
        config, of_model, reference = self.config, self.model.config, self.reference_set
        return {
            "checkpoint": file_hash(config.checkpoint),
            "judge": self.facts,
            "first_stage_judge": of_model.first_stage_judge,
            "guide": file_hash(config.guide) if config.guide else None,
            "image_size": of_model.image_size,
            "crop": of_model.crop,
            "num_samples": self.number,
            "attribute_split": config.attribute_split,
            "reference": f"{config.reference_split}, {len(reference)} images",
            "data": hashlib.sha256(reference.images.data).hexdigest()[:12],
            "eta": config.sampling.eta,
            "seed": config.seed,
            "open": config.open,
            "precision": devices.choose_precision(config.mixed_precision, self.model.device.type),
        }

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

    def run(self, settings: list[SamplingConfig]) -> str:
        """Measure every setting under every kind of request. report.json and report.md grow as it goes.
        Returns the latter."""
        if self.number > len(self.held_out):
            split, found = self.config.attribute_split, len(self.held_out)
            say(f"{self.number} samples: the {found} rows of the {split} split are asked for in turn")
        real = self.real()  # before the long part, since it refuses too few images
        report: dict[str, Any] = {"protocol": self.protocol, "real": real, **self.autoencoders()}
        report["settings"] = []
        wanted = [*product(settings, self.requests)]
        total = (len(self.rows) + GUESTS**2) * len(wanted)
        with progress_bar(total=total, desc="sampling", unit="image", disable=not self.writes) as bar:
            for sampling, request in wanted:
                report["settings"].append(self.measure(sampling, request, bar))
                if self.writes:
                    self.output_dir.mkdir(parents=True, exist_ok=True)
                    (self.output_dir / "report.json").write_text(
                        json.dumps(report, indent=1), encoding="utf-8"
                    )
                    (self.output_dir / "report.md").write_text(samples_table(report), encoding="utf-8")
        if self.writes:
            plot_sweeps(report, self.output_dir)
        return samples_table(report)

    def draw(
        self,
        then: Callable[[Tensor], Result],
        rows: Tensor,
        sampling: SamplingConfig,
        bar: tqdm | None,
        seed: int,
        numbers: list[int] | None = None,
    ) -> list[Result]:
        """``then`` of every batch of images drawn under attribute rows (N, A)."""
        return draw_batches(
            then,
            self.model,
            rows,
            sampling,
            self.autocast,
            seed,
            self.config.batch_size,
            bar,
            numbers,
            guide=self.guide,
            complete=not self.config.open,
        )

    def measure(self, sampling: SamplingConfig, request: str, bar: tqdm) -> dict:
        """Every figure of one setting under one kind of request. Writes its pictures."""
        config, rows = self.config, self.requests[request]
        shown = iter(range(0, len(rows), config.batch_size))

        def features_of(images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            found = {space: features(images) for space, features in self.spaces.items()}
            keep = next(shown) < SHOWN  # only the images of the picture stay in memory
            return found, images.cpu() if keep else images[:0].cpu()

        drawn = self.draw(features_of, rows, sampling, bar, config.seed)
        features = {space: torch.cat([found[space] for found, _ in drawn]) for space in self.spaces}
        logits = self.judge.read_logits(features["judge"])
        spread = self.diversity(rows, sampling, bar)
        closest, which = nearest(features["judge"], self.train_features)
        images = torch.cat([kept for _, kept in drawn])[:SHOWN]
        self.pictures(sampling, request, images, closest, which)
        return {
            "sampling": asdict(sampling),
            "request": request,
            **self.distances(features),
            "attributes": self.control(request, logits),
            "diversity_of_one_row_over_reference": float(spread.mean()),
            "diversity_error": mean_error(spread),
            "median_distance_to_train": float(closest.median()),
        }

    def diversity(self, rows: Tensor, sampling: SamplingConfig, bar: tqdm) -> Tensor:
        """For each of the first rows, how far apart samples of that one row lie, over how far apart
        reference images lie (GUESTS,)."""
        alike = rows[:GUESTS].repeat_interleave(GUESTS, 0)
        drawn = self.draw(self.judge.read_features, alike, sampling, bar, self.config.seed + 2)
        groups = torch.cat(drawn).view(GUESTS, GUESTS, -1)
        reference = self.reference["judge"]
        some = reference[:: max(1, len(reference) // 500)]
        return torch.stack([torch.pdist(group).mean() for group in groups]) / torch.pdist(some).mean()

    def control(self, request: str, logits: Tensor) -> dict:
        """How well the judge sees a kind of request met, and how often it sees what nobody asked for."""
        rows = self.requests[request]
        found: dict[str, Any] = {}
        if request == "whole":
            found |= self.accuracy(logits, rows)
            if self.model.config.one_hot:
                found |= self.class_accuracy(logits)
        if request == "three":
            few, error = with_error(lambda i: pooled_accuracy(logits[i], rows[i]), len(rows))
            found |= {"named_accuracy": few, "named_accuracy_error": error}
            found["named_accuracy_by_chance"] = pooled_accuracy_by_chance(logits, rows)
        if request != "whole":
            found["unasked"] = self.unasked(logits, rows)
        return found

    def accuracy(self, logits: Tensor, rows: Tensor) -> dict:
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
        """How often the judge sees the class that was asked for, where attributes are classes."""
        right = (logits.argmax(1) == self.rows[: len(logits)].argmax(1)).float()
        return {"class_accuracy": float(right.mean()), "class_accuracy_error": mean_error(right)}

    def distances(self, features: dict[str, Tensor]) -> dict[str, dict]:
        """Every distance to the reference, in every feature space."""
        return {space: distances(features[space], self.reference[space]) for space in self.spaces}

    def pictures(
        self, sampling: SamplingConfig, request: str, images: Tensor, closest: Tensor, which: Tensor
    ) -> None:
        """Write a grid of samples, and a grid of the samples nearest to training images above those."""
        suspects = closest.argsort()[:GUESTS]
        rows = self.requests[request][suspects]
        again = self.draw(Tensor.cpu, rows, sampling, None, self.config.seed, suspects.tolist())
        if not self.writes:
            return
        name = f"{request}_{sampling.sampler}_{sampling.num_inference_steps}_cfg{sampling.cfg_scale:g}"
        name += f"_guide{sampling.guide_scale:g}" if sampling.guide_scale else ""
        heard = sampling.cfg_scale or sampling.guide_scale  # else the network sees no request
        how = (
            f"{sampling.sampler}, {sampling.num_inference_steps} steps, guidance {sampling.cfg_scale:g}"
        )
        how += f", guide {sampling.guide_scale:g}" if sampling.guide_scale else ""
        title = f"{f'Request {request}' if heard else 'Unconditional'}: {how}"
        path = self.output_dir / f"samples_{name}.png"
        save_grid(path, images.numpy(), [""] * len(images), 16, title=title)
        pairs = torch.cat([*again, torch.tensor(self.train.images[which[suspects].numpy()])])
        labels = [f"{d:.2f}" for d in closest[suspects].tolist()] + ["training image"] * GUESTS
        title = "The samples closest to a training image, and that image"
        path = self.output_dir / f"nearest_{name}.png"
        save_grid(path, pairs.numpy(), labels, GUESTS, title=title)

    def real(self) -> dict:
        """The same figures for held-out photographs, which is what a perfect model would score."""
        images, rows = self.held_out.images[: self.held_out_number], self.rows[: self.held_out_number]
        features = {
            space: torch.cat(in_batches(found, images, 50)) for space, found in self.spaces.items()
        }
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
        found = {"autoencoder": self.fidelity(image) | semantic}
        return found | {"first_stage": self.fidelity(same)} if latent else found
