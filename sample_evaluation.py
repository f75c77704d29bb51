"""The judge of samples, behind evaluate.py: they are drawn under attribute rows of a held-out split, and
compared with the images of a reference split."""

from __future__ import annotations

import argparse
import hashlib
import math
from dataclasses import asdict
from functools import cached_property
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

import cli
import processes
from attribute_prior import AttributePrior
from autoencoder_loss import perceptual_distance
from checkpoint import file_hash, load_guide, load_model, save_atomically
from evaluation import (
    balanced_accuracy,
    distances,
    draw_batches,
    inception_features,
    mean_error,
    nearest,
    pooled_accuracy,
    pooled_accuracy_by_chance,
    with_error,
)
from evaluation_classifier import in_batches, load_classifier, read, train_classifier
from labelled_images import open_for
from model_config import FEWEST_SAMPLES, REQUESTS, ModelConfig, SamplingConfig, configure
from pictures import save_grid
from samplers import timestep_grid

NAMED = 3  # attributes in a short request
DEFAULT_SAMPLES = 1000
SHOWN = 64  # samples in a picture
GUESTS = 8  # rows, and samples of each, behind the diversity figure; pairs in the neighbour picture


def settings(args: argparse.Namespace, config: ModelConfig) -> list[SamplingConfig]:
    """Every combination of the samplers, step counts and guidance scales asked for."""
    asked = args.cfg_scale or ([1.0, 1.5, 2.0, 3.0] if config.guidable else [1.0])
    scales = [config.sampling_scale(scale, 1.0) for scale in asked]
    combinations = product(args.sampler, args.num_inference_steps, scales, args.classifier_scale)
    names = ("sampler", "num_inference_steps", "cfg_scale", "classifier_scale")
    return [
        configure(SamplingConfig, args, **dict(zip(names, each, strict=True))) for each in combinations
    ]


def make_classifier(args: argparse.Namespace, config: ModelConfig) -> None:
    """Train the evaluation classifier, test it, and write both to --classifier."""
    device = cli.choose_device(args.device)
    test, faces = (open_for(config, args.data_root, s, args.cache_dir) for s in ("test", "train"))
    model = train_classifier(faces, args.classifier_epochs, args.seed, device)
    accuracy = balanced_accuracy(read(model, test.images)[1], test.attributes)
    state = {
        "classifier": model.state_dict(),
        "attribute_names": list(faces.attribute_names),
        "balanced_accuracy": accuracy.tolist(),
        "crop": config.crop,
    }
    save_atomically(state, args.classifier)


class Evaluation:
    """A model, its judge, and the images it is measured against."""

    def __init__(self, args: argparse.Namespace):
        device = cli.choose_device(args.device)
        self.args, self.out = args, Path(args.output_dir)
        if processes.rank():  # only the first writes
            self.scratch = TemporaryDirectory()
            self.out = Path(self.scratch.name)
        self.model = load_model(args.checkpoint, device)
        self.guide = load_guide(args.guide, device) if args.guide else None
        if self.guide:
            self.model.check_classifier(self.guide)
        self.autocast = cli.autocast(args.mixed_precision, device)
        config = self.model.config
        self.names = config.attribute_names
        self.settings = [] if args.edit else settings(args, config)
        for sampling in self.settings:  # refused before anything long
            timestep_grid(self.model.schedule, sampling.num_inference_steps, sampling.spacing)
        weights = args.inception_weights
        if args.train_classifier:
            make_classifier(args, config)
        self.classifier, facts = load_classifier(
            args.classifier, config.attribute_names, config.crop, device
        )
        accuracy = f"balanced accuracy {facts['test_balanced_accuracy']:.4f} on the test split"
        print(f"evaluation classifier {facts['hash']}: {accuracy}")
        if facts["hash"] in config.first_stage_judge:
            print(
                "this classifier also judged likeness when the first stage was trained, so distances in "
                "its features flatter that: measure with another (--train_classifier --seed 1)"
            )
        splits = (args.attribute_split, "train", args.reference_split)
        self.held_out, self.train, self.reference_set = (
            open_for(config, args.data_root, split, args.cache_dir) for split in splits
        )
        split, found = args.attribute_split, len(self.held_out)
        if found < FEWEST_SAMPLES:
            raise ValueError(
                f"{found} images in the {split} split: at least {FEWEST_SAMPLES} are needed: choose "
                "another --attribute_split"
            )
        self.number = args.num_samples or min(DEFAULT_SAMPLES, found)
        if self.number > found:
            print(f"{self.number} samples: the {found} rows of the {split} split are asked for in turn")
        self.held_out_number = min(self.number, found)
        self.rows = self.held_out.attributes[torch.arange(self.number) % found]
        self.requests = self.make_requests()
        self.prior = AttributePrior.of(self.train.attributes)
        share = (self.prior.rows() > 0).double().T @ self.prior.counts.double() / len(self.train)
        self.log_odds = share.clamp(1e-6, 1 - 1e-6).logit().float()  # (A,)
        label = f"{args.reference_split} split"
        self.spaces = {"classifier": self.classifier.read_features}  # of features: batch -> (B, D)
        if weights:
            self.spaces["inception"] = inception_features(weights, device)
        self.reference = {
            space: torch.cat(in_batches(features, self.reference_set.images, 50, f"{space}, {label}"))
            for space, features in self.spaces.items()
        }
        self.protocol = self.describe(facts)

    def describe(self, judge: dict) -> dict:
        """What the figures depend on; ``judge``, the facts of the evaluation classifier."""
        args, config, faces = self.args, self.model.config, self.reference_set
        return {
            "checkpoint": file_hash(args.checkpoint),
            "evaluation_classifier": judge,
            "first_stage_judge": config.first_stage_judge,
            "guide": file_hash(args.guide) if args.guide else None,
            "image_size": config.image_size,
            "crop": config.crop,
            "num_samples": self.number,
            "attribute_split": args.attribute_split,
            "reference": f"{args.reference_split}, {len(faces)} images",
            "data": hashlib.sha256(faces.images.data).hexdigest()[:12],
            "rescale": args.rescale,
            "eta": args.eta,
            "guidance_interval": tuple(args.guidance_interval),
            "dynamic_threshold": args.dynamic_threshold,
            "classifier_on": args.classifier_on,
            "seed": args.seed,
            "open": args.open,
            "precision": cli.choose_precision(args.mixed_precision, self.model.device.type),
        }

    def make_requests(self) -> dict[str, torch.Tensor]:
        """The attribute rows (N, A) of each kind of request: whole held-out rows, NAMED attributes of
        each, which of classes says nothing new, and nothing at all."""
        generator = torch.Generator().manual_seed(self.args.seed)
        order = torch.rand(self.rows.shape, generator=generator).argsort(1)
        every = {
            "whole": self.rows,
            "three": self.rows * (order < NAMED),
            "none": torch.zeros_like(self.rows),
        }
        kinds = [kind for kind in REQUESTS if kind in self.args.requests]
        if self.model.config.one_hot:
            kinds = [kind for kind in kinds if kind != "three"]
        return {kind: every[kind] for kind in kinds}

    @property
    def images_per_setting(self) -> int:
        """How many ``measure`` draws of each kind of request."""
        return len(self.rows) + GUESTS**2

    def draw(self, then, rows, sampling: SamplingConfig, bar, seed: int, numbers=None) -> list:
        """``then`` of every batch of images drawn under attribute rows (N, A)."""
        args = (self.model, rows, sampling, self.autocast, seed, self.args.batch_size, bar, numbers)
        return draw_batches(then, *args, classifier=self.guide, complete=not self.args.open)

    def measure(self, sampling: SamplingConfig, request: str, bar) -> dict:
        """Every figure of one setting and kind of request; writes its pictures."""
        args, rows = self.args, self.requests[request]
        shown = iter(range(0, len(rows), args.batch_size))

        def features_of(images):
            first = next(shown) < SHOWN  # the rest of the images is not kept
            found = {space: features(images) for space, features in self.spaces.items()}
            return found, images.cpu() if first else images[:0].cpu()

        drawn = self.draw(features_of, rows, sampling, bar, args.seed)
        features = {space: torch.cat([found[space] for found, _ in drawn]) for space in self.spaces}
        logits = self.classifier.read_logits(features["classifier"])
        alike = rows[:GUESTS].repeat_interleave(GUESTS, 0)
        alike = self.draw(self.classifier.read_features, alike, sampling, bar, args.seed + 2)
        groups = torch.cat(alike).view(GUESTS, GUESTS, -1)
        reference = self.reference["classifier"]
        some = reference[:: max(1, len(reference) // 500)]
        spread = torch.stack([torch.pdist(group).mean() for group in groups]) / torch.pdist(some).mean()
        closest, which = nearest(features["classifier"], self.train_features)
        images = torch.cat([some for _, some in drawn])[:SHOWN]
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

    def control(self, request: str, logits) -> dict:
        """How well a kind of request is met, as the classifier sees it; and what nobody asked for."""
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

    def accuracy(self, logits, rows) -> dict:
        """Balanced accuracy under whole rows, the mean over attributes and of each."""
        whole, error = with_error(
            lambda i: float(balanced_accuracy(logits[i], rows[i]).nanmean()), len(rows)
        )
        each = zip(self.names, balanced_accuracy(logits, rows).tolist(), strict=True)
        return {
            "balanced_accuracy": whole,
            "balanced_accuracy_error": error,
            "each": {name: None if math.isnan(value) else value for name, value in each},
        }

    def unasked(self, logits, rows) -> dict[str, tuple[float, float]]:
        """How often each attribute is seen where a request (N, A) leaves it open, and how often it is
        present in training rows that agree with these requests."""
        is_open = rows == 0
        seen = self.is_seen(logits) & is_open
        expected = self.prior.frequencies(rows) * is_open
        number = is_open.sum(0).clamp(min=1)
        rates = zip((seen.sum(0) / number).tolist(), (expected.sum(0) / number).tolist(), strict=True)
        return dict(zip(self.names, rates, strict=True))

    def is_seen(self, logits):
        """Whether attributes are more likely there than not, of the classifier's logits (N, A). It was
        trained as if each were there half of the time; how often they are is taken into account."""
        return logits + self.log_odds > 0

    def class_accuracy(self, logits) -> dict[str, float]:
        """How often the classifier sees the class that was asked for, where attributes are classes."""
        right = (logits.argmax(1) == self.rows[: len(logits)].argmax(1)).float()
        return {"class_accuracy": float(right.mean()), "class_accuracy_error": mean_error(right)}

    def distances(self, features: dict) -> dict[str, dict]:
        """Every distance to the reference, in every feature space."""
        return {space: distances(features[space], self.reference[space]) for space in self.spaces}

    def pictures(self, sampling: SamplingConfig, request: str, images, closest, which) -> None:
        """A grid of samples, and the samples nearest to training images beside those."""
        name = f"{request}_{sampling.sampler}_{sampling.num_inference_steps}_cfg{sampling.cfg_scale:g}"
        name += f"_classifier{sampling.classifier_scale:g}" if sampling.classifier_scale else ""
        title = f"requests: {name.replace('_', ' ')}"
        save_grid(self.out / f"samples_{name}.png", images.numpy(), [""] * len(images), 16, title=title)
        suspects = closest.argsort()[:GUESTS]
        rows = self.requests[request][suspects]
        again = self.draw(Tensor.cpu, rows, sampling, None, self.args.seed, suspects.tolist())
        pairs = torch.cat([*again, torch.tensor(self.train.images[which[suspects].numpy()])])
        labels = [f"{d:.2f}" for d in closest[suspects].tolist()] + ["train"] * GUESTS
        title = "the samples closest to a training image, and that image"
        save_grid(self.out / f"nearest_{name}.png", pairs.numpy(), labels, GUESTS, title=title)

    @cached_property
    def train_features(self):
        """Classifier features of the training images."""
        if self.args.reference_split == "train":
            return self.reference["classifier"]
        return read(self.classifier, self.train.images, "training images")[0]

    def real(self) -> dict:
        """The same figures for held-out photographs: what a perfect model would score."""
        images, rows = self.held_out.images[: self.held_out_number], self.rows[: self.held_out_number]
        features = {
            space: torch.cat(in_batches(found, images, 50)) for space, found in self.spaces.items()
        }
        logits = self.classifier.read_logits(features["classifier"])
        seen: dict[str, Any] = {"balanced_accuracy": float(balanced_accuracy(logits, rows).nanmean())}
        if self.model.config.one_hot:
            seen |= self.class_accuracy(logits)
        rates = self.is_seen(logits).float().mean(0).tolist(), (rows > 0).float().mean(0).tolist()
        seen["frequency"] = dict(zip(self.names, zip(*rates, strict=True), strict=True))
        return {
            **self.distances(features),
            "attributes": seen,
            "median_distance_to_train": float(
                nearest(features["classifier"], self.train_features)[0].median()
            ),
        }

    def fidelity(self, reconstructions) -> dict[str, float]:
        """How near reconstructions come to the held-out images they are of, the first N."""
        originals = torch.tensor(self.held_out.images[: len(reconstructions)])
        pictures = [x.permute(0, 3, 1, 2).float() / 255 for x in (reconstructions, originals)]
        pairs = zip(reconstructions.split(250), originals.split(250), strict=True)
        judge, device = self.classifier, self.model.device
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

    def autoencoders(self, number: int = 500) -> dict[str, dict]:
        """How well the semantic latent keeps held-out images, and the first stage where there is one."""
        model = self.model
        latent, stage = model.config.first_stage != "pixels", model.first_stage

        def kept(batch):
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
