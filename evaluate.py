"""Measure a checkpoint: one command, one table, one JSON.

Samples are drawn under attribute rows of a held-out split and compared with a reference split: Frechet
and kernel distance, precision, recall, density, coverage; control of the attributes asked for;
diversity; the nearest training image of each sample; and the VAE. Features come from a classifier
trained here with --train_classifier, and from Inception where its weights are at hand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from dataclasses import asdict
from functools import cached_property
from itertools import product
from pathlib import Path

import cli
from model_config import EDIT_METHODS, SAMPLERS, EditConfig, ModelConfig, SamplingConfig, configure

NAMED = 3  # attributes in a short request
FEWEST = 32  # samples that any of this can be said of
GUESTS = 8  # rows, and samples of each, behind the diversity figure; pairs in the neighbour picture


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", default="./checkpoints/best_model.pth")
    add("--data_root", required=True, help="folder in CelebA's layout")
    add("--classifier", default="./checkpoints/evaluation_classifier.pth")
    add("--train_classifier", action="store_true", help="train the classifier and write it there")
    add("--classifier_epochs", type=cli.positive_int, default=12)
    add("--inception_weights", help="torch-fidelity's file, or 'download': its features, too")
    add("--num_samples", type=cli.number(int, FEWEST), default=1000)
    scales = f"None: 1, 1.5, 2 and 3; {EditConfig.cfg_scale:g} for edits"
    add("--cfg_scale", type=cli.non_negative, nargs="+", help=scales)
    add("--sampler", choices=SAMPLERS, nargs="+", default=[SamplingConfig.sampler])
    steps = f"None: {SamplingConfig.num_inference_steps}; {EditConfig.num_inference_steps} for edits"
    add("--num_inference_steps", type=cli.positive_int, nargs="+", help=steps)
    cli.add_sampling_flags(parser)
    add("--guide", help="of train.py --stage classifier: guides, and reads the sources of edits")
    add("--classifier_scale", type=cli.non_negative, nargs="+", default=[0.0], help="of the guide")
    splits = ("train", "val", "test")
    add("--attribute_split", default="val", choices=splits, help="whose attribute rows are asked for")
    add("--reference_split", default="test", choices=splits, help="whose images are compared with")
    add("--batch_size", type=cli.positive_int, default=50)
    add("--output_dir", default="./outputs/evaluation")
    add("--cache_dir", default="data/cache")
    add("--seed", type=cli.count, default=0)
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--mixed_precision", default="auto", choices=("auto", "no", "bf16", "fp16"))
    edit = parser.add_argument_group("edits of held-out faces").add_argument
    edit("--edit", choices=EDIT_METHODS, nargs="+", default=[], help="judge these instead of new faces")
    edit("--edit_attributes", nargs="+", default=[], metavar="NAME", help="all where not given")
    edit("--edit_sources", type=cli.number(int, 2), default=32, help="for each attribute and direction")
    edit("--strengths", type=cli.fraction, nargs="+", default=[0.5, 1.0], help="the last is judged")
    cli.add_edit_flags(parser)
    args = parser.parse_args(argv)
    args.cfg_scale = args.cfg_scale or ([EditConfig.cfg_scale] if args.edit else [1.0, 1.5, 2.0, 3.0])
    steps = EditConfig.num_inference_steps if args.edit else SamplingConfig.num_inference_steps
    args.num_inference_steps = args.num_inference_steps or [steps]
    if args.edit and len(args.num_inference_steps) > 1:
        parser.error(f"--edit takes one number of steps, got {args.num_inference_steps}")
    if any(args.classifier_scale) and not args.guide:
        parser.error("--classifier_scale needs --guide, the classifier that guides")
    if args.attribute_split == args.reference_split:
        split = args.reference_split
        parser.error(f"--attribute_split and --reference_split are both {split}, and must differ")
    return args


def settings(args: argparse.Namespace) -> list[SamplingConfig]:
    """Every combination of the samplers, step counts and guidance scales asked for."""
    names = ("sampler", "num_inference_steps", "cfg_scale", "classifier_scale")
    combinations = product(*(getattr(args, name) for name in names))
    return [
        configure(SamplingConfig, args, **dict(zip(names, each, strict=True))) for each in combinations
    ]


def dataset(args: argparse.Namespace, config: ModelConfig, split: str):
    """A split as the model of this configuration sees it."""
    from celeba_dataset import CelebADataset

    return CelebADataset(
        args.data_root, split, config.image_size, crop=config.crop, cache_dir=args.cache_dir
    )


def make_classifier(args: argparse.Namespace, config: ModelConfig) -> None:
    """Train the evaluation classifier, test it, and write both to --classifier."""
    from checkpoint import save_atomically
    from evaluation import balanced_accuracy, read, train_classifier

    device, test = cli.choose_device(args.device), dataset(args, config, "test")
    model = train_classifier(dataset(args, config, "train"), args.classifier_epochs, args.seed, device)
    accuracy = balanced_accuracy(read(model, test.images)[1], test.attributes)
    state = {
        "classifier": model.state_dict(),
        "attribute_names": list(config.attribute_names),
        "balanced_accuracy": accuracy.tolist(),
        "crop": config.crop,
    }
    save_atomically(state, args.classifier)


class Evaluation:
    """A model, its judge, and the images it is measured against."""

    def __init__(self, args: argparse.Namespace, todo: list[SamplingConfig]):
        import torch

        from checkpoint import load_guide, load_model
        from evaluation import inception_features, load_classifier, read
        from samplers import timestep_grid

        device = cli.choose_device(args.device)
        self.args, self.out = args, Path(args.output_dir)
        self.model = load_model(args.checkpoint, device)
        self.guide = load_guide(args.guide, device) if args.guide else None
        if self.guide:
            self.model.check_classifier(self.guide)
        self.autocast = cli.autocast(args.mixed_precision, device)
        config = self.model.config
        self.names = config.attribute_names
        for sampling in todo:  # refused before anything long
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
            dataset(args, config, split) for split in splits
        )
        self.number = min(args.num_samples, len(self.held_out))
        if self.number < FEWEST:
            split = args.attribute_split
            raise ValueError(f"{self.number} images in the {split} split: at least {FEWEST} are needed")
        if self.number < args.num_samples:
            print(f"{self.number} samples: the {args.attribute_split} split has no more rows")
        # What is asked for: rows of the held-out split; and a quarter of them, all but NAMED left open.
        self.rows = self.held_out.attributes[: self.number]
        generator = torch.Generator().manual_seed(args.seed)
        order = torch.rand(self.rows.shape, generator=generator).argsort(1)
        self.short = (self.rows * (order < NAMED))[: self.number // 4]
        label = f"{args.reference_split} split"
        self.reference = {"classifier": read(self.classifier, self.reference_set.images, label)[0]}
        if self.inception:
            self.reference["inception"] = self.inception(
                self.reference_set.images, f"Inception, {label}"
            )
        self.protocol = self.describe(facts)

    def describe(self, judge: dict) -> dict:
        """What the figures depend on; ``judge``, the facts of the evaluation classifier."""
        from checkpoint import file_hash

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
            "data": hashlib.sha256(faces.images).hexdigest()[:12],
            "rescale": args.rescale,
            "eta": args.eta,
            "guidance_interval": tuple(args.guidance_interval),
            "dynamic_threshold": args.dynamic_threshold,
            "classifier_on": args.classifier_on,
            "seed": args.seed,
            "precision": cli.choose_precision(args.mixed_precision, self.model.device.type),
        }

    def draw(self, rows, sampling: SamplingConfig, bar, seed: int):
        """Images (N, H, W, 3) under attribute rows (N, A)."""
        from evaluation import draw

        args = (self.model, rows, sampling, self.autocast, seed, self.args.batch_size, bar)
        return draw(*args, classifier=self.guide)

    def measure(self, sampling: SamplingConfig, bar) -> dict:
        """Every figure of one setting; writes its pictures."""
        import torch

        from evaluation import balanced_accuracy, mean_error, nearest, pooled_accuracy, read, with_error

        args, rows, short = self.args, self.rows, self.short
        images = self.draw(rows, sampling, bar, args.seed)
        features, logits = read(self.classifier, images)

        whole, whole_error = with_error(
            lambda i: float(balanced_accuracy(logits[i], rows[i]).nanmean()), len(rows)
        )
        seen = read(self.classifier, self.draw(short, sampling, bar, args.seed + 1))[1]
        few, few_error = with_error(lambda i: pooled_accuracy(seen[i], short[i]), len(short))
        # What is common is drawn, and asked for, more often: others' requests are met this well.
        chance = [pooled_accuracy(seen, short.roll(shift, 0)) for shift in range(1, len(short))]
        each = zip(self.names, balanced_accuracy(logits, rows).tolist(), strict=True)
        control = {
            "balanced_accuracy": whole,
            "balanced_accuracy_error": whole_error,
            "three_named": few,
            "three_named_error": few_error,
            "three_named_by_chance": sum(chance) / len(chance),
            "each": {name: None if math.isnan(value) else value for name, value in each},
        }
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

    def distances(self, images, classifier_features) -> dict[str, dict]:
        """Every distance to the reference, in every feature space."""
        from evaluation import distances

        found = {"classifier": distances(classifier_features, self.reference["classifier"])}
        if self.inception:
            found["inception"] = distances(self.inception(images), self.reference["inception"])
        return found

    def pictures(self, sampling: SamplingConfig, images, closest, which) -> None:
        """A grid of samples, and the samples nearest to training images beside those."""
        import torch

        from pictures import save_grid

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
        from evaluation import read

        if self.args.reference_split == "train":
            return self.reference["classifier"]
        return read(self.classifier, self.train.images, "training images")[0]

    def real(self) -> dict:
        """The same figures for held-out photographs: what a perfect model would score."""
        from evaluation import balanced_accuracy, nearest, read

        images = self.held_out.images[: self.number]
        features, logits = read(self.classifier, images)
        seen = balanced_accuracy(logits, self.held_out.attributes[: len(images)])
        return {
            **self.distances(images, features),
            "attributes": {"balanced_accuracy": float(seen.nanmean())},
            "median_distance_to_train": float(nearest(features, self.train_features)[0].median()),
        }

    def fidelity(self, reconstructions) -> dict[str, float]:
        """How near reconstructions come to the held-out images they are of, the first N."""
        import torch
        from torchmetrics.functional.image import (
            peak_signal_noise_ratio,
            structural_similarity_index_measure,
        )

        from autoencoder_loss import perceptual_distance

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
        import torch

        from evaluation import balanced_accuracy, in_batches

        model, parts = self.model, []
        latent, stage = model.config.first_stage != "pixels", model.first_stage
        for batch in in_batches(self.held_out.images[:number], label="reconstructions"):
            with self.autocast, torch.no_grad():
                mu = model.encode_latent(batch)
                image = stage.decode(model.autoencoder.decode(mu))
                kept = stage.decode(stage.encode(batch.to(model.device))) if latent else image
                parts.append((mu, image, model.autoencoder.attribute_logits(mu), kept))
        mu, image, attributes, kept = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        accuracy = balanced_accuracy(attributes, self.held_out.attributes[:number])
        semantic = {
            "active_dimensions": int((mu.float().var(0) > 0.01).sum()),
            "latent_dim": mu.shape[1],
            "attribute_balanced_accuracy": float(accuracy.nanmean()),
        }
        found = {"autoencoder": self.fidelity(image) | semantic}
        return found | {"first_stage": self.fidelity(kept)} if latent else found


def judge_edits(work: Evaluation) -> None:
    """Judge edits of faces of the reference split, and write that report."""
    from edit_evaluation import EditEvaluation

    print(EditEvaluation(work).run())
    print(f"written: {work.out}/edits.json, edits.md and pictures")


def evaluate(args: argparse.Namespace) -> None:
    """Measure every setting and write the report."""
    from tqdm import tqdm

    from celeba_dataset import CELEBA_ATTRIBUTES

    todo = settings(args)
    if args.train_classifier and not Path(args.checkpoint).is_file():
        make_classifier(args, ModelConfig(CELEBA_ATTRIBUTES))
        print(f"written: {args.classifier}; no checkpoint at {args.checkpoint} to measure")
        return
    from reports import evaluation_table, plot

    work = Evaluation(args, todo)
    work.out.mkdir(parents=True, exist_ok=True)
    if args.edit:
        judge_edits(work)
        return
    real = work.real()  # before the long part: too few images are refused here
    report = {"protocol": work.protocol, "real": real, **work.autoencoders(), "settings": []}
    each = work.number + work.number // 4 + GUESTS**2
    with tqdm(total=each * len(todo), desc="sampling", unit="image") as bar:
        for sampling in todo:
            report["settings"].append(work.measure(sampling, bar))
            (work.out / "report.json").write_text(json.dumps(report, indent=1))
            (work.out / "report.md").write_text(evaluation_table(report))
    plot(report, work.out)
    print(evaluation_table(report))
    print(f"written: {work.out}/report.json, report.md and pictures")


if __name__ == "__main__":
    cli.run(lambda: evaluate(parse_args()))
