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

import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

import cli
import processes
from autoencoder_loss import perceptual_distance
from checkpoint import file_hash, load_guide, load_model, save_atomically
from evaluation import (
    balanced_accuracy,
    distances,
    draw,
    inception_features,
    mean_error,
    nearest,
    pooled_accuracy,
    with_error,
)
from evaluation_classifier import in_batches, load_classifier, read, train_classifier
from labelled_images import open_for
from model_config import FEWEST_SAMPLES, ModelConfig, SamplingConfig, configure
from pictures import save_grid
from samplers import timestep_grid

NAMED = 3  # attributes in a short request
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
        self.inception = inception_features(weights, device) if weights else None
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
        self.number = min(args.num_samples, len(self.held_out))
        if self.number < FEWEST_SAMPLES:
            split = args.attribute_split
            raise ValueError(
                f"{self.number} images in the {split} split: at least {FEWEST_SAMPLES} are needed: "
                "choose another --attribute_split"
            )
        if self.number < args.num_samples:
            print(f"{self.number} samples: the {args.attribute_split} split has no more rows")
        # What is asked for: rows of the held-out split; and a quarter of them, all but NAMED left open,
        # which of classes says nothing new.
        self.rows = self.held_out.attributes[: self.number]
        generator = torch.Generator().manual_seed(args.seed)
        order = torch.rand(self.rows.shape, generator=generator).argsort(1)
        self.short = (self.rows * (order < NAMED))[: 0 if config.one_hot else self.number // 4]
        label = f"{args.reference_split} split"
        self.reference = {"classifier": read(self.classifier, self.reference_set.images, label)[0]}
        if self.inception:
            self.reference["inception"] = self.inception(
                self.reference_set.images, f"Inception, {label}"
            )
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
            "precision": cli.choose_precision(args.mixed_precision, self.model.device.type),
        }

    @property
    def images_per_setting(self) -> int:
        """How many ``measure`` draws."""
        return len(self.rows) + len(self.short) + GUESTS**2

    def draw(self, rows, sampling: SamplingConfig, bar, seed: int):
        """Images (N, H, W, 3) under attribute rows (N, A)."""
        args = (self.model, rows, sampling, self.autocast, seed, self.args.batch_size, bar)
        return draw(*args, classifier=self.guide)

    def measure(self, sampling: SamplingConfig, bar) -> dict:
        """Every figure of one setting; writes its pictures."""
        args, rows = self.args, self.rows
        images = self.draw(rows, sampling, bar, args.seed)
        features, logits = read(self.classifier, images)
        whole, whole_error = with_error(
            lambda i: float(balanced_accuracy(logits[i], rows[i]).nanmean()), len(rows)
        )
        each = zip(self.names, balanced_accuracy(logits, rows).tolist(), strict=True)
        control = {
            "balanced_accuracy": whole,
            "balanced_accuracy_error": whole_error,
            "each": {name: None if math.isnan(value) else value for name, value in each},
        }
        if self.model.config.one_hot:
            control |= self.class_accuracy(logits)
        else:
            control |= self.short_requests(sampling, bar)
        alike = self.draw(rows[:GUESTS].repeat_interleave(GUESTS, 0), sampling, bar, args.seed + 2)
        groups = read(self.classifier, alike)[0].view(GUESTS, GUESTS, -1)
        reference = self.reference["classifier"]
        some = reference[:: max(1, len(reference) // 500)]
        spread = torch.stack([torch.pdist(group).mean() for group in groups]) / torch.pdist(some).mean()
        closest, which = nearest(features, self.train_features)
        self.pictures(sampling, images, closest, which)
        return {
            "sampling": asdict(sampling),
            **self.distances(images, features),
            "attributes": control,
            "diversity_of_one_row_over_reference": float(spread.mean()),
            "diversity_error": mean_error(spread),
            "median_distance_to_train": float(closest.median()),
        }

    def short_requests(self, sampling: SamplingConfig, bar) -> dict[str, float]:
        """How well requests that name NAMED attributes are met, and others' requests, by chance: what is
        common is drawn, and asked for, more often."""
        short = self.short
        seen = read(self.classifier, self.draw(short, sampling, bar, self.args.seed + 1))[1]
        few, error = with_error(lambda i: pooled_accuracy(seen[i], short[i]), len(short))
        chance = [pooled_accuracy(seen, short.roll(shift, 0)) for shift in range(1, len(short))]
        by_chance = sum(chance) / len(chance)
        return {"three_named": few, "three_named_error": error, "three_named_by_chance": by_chance}

    def class_accuracy(self, logits) -> dict[str, float]:
        """How often the classifier sees the class that was asked for, where attributes are classes."""
        right = (logits.argmax(1) == self.rows.argmax(1)).float()
        return {"class_accuracy": float(right.mean()), "class_accuracy_error": mean_error(right)}

    def distances(self, images, classifier_features) -> dict[str, dict]:
        """Every distance to the reference, in every feature space."""
        found = {"classifier": distances(classifier_features, self.reference["classifier"])}
        if self.inception:
            found["inception"] = distances(self.inception(images), self.reference["inception"])
        return found

    def pictures(self, sampling: SamplingConfig, images, closest, which) -> None:
        """A grid of samples, and the samples nearest to training images beside those."""
        name = f"{sampling.sampler}_{sampling.num_inference_steps}_cfg{sampling.cfg_scale:g}"
        name += f"_classifier{sampling.classifier_scale:g}" if sampling.classifier_scale else ""
        title = name.replace("_", " ")
        shown = images[:64].numpy()
        save_grid(self.out / f"samples_{name}.png", shown, [""] * len(shown), 16, title=title)
        suspects = closest.argsort()[:GUESTS]
        pairs = torch.cat([images[suspects], torch.tensor(self.train.images[which[suspects].numpy()])])
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
        images = self.held_out.images[: self.number]
        features, logits = read(self.classifier, images)
        seen = {"balanced_accuracy": float(balanced_accuracy(logits, self.rows).nanmean())}
        if self.model.config.one_hot:
            seen |= self.class_accuracy(logits)
        return {
            **self.distances(images, features),
            "attributes": seen,
            "median_distance_to_train": float(nearest(features, self.train_features)[0].median()),
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
