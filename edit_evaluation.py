"""The judge of edits, behind evaluate.py --edit: does an edit do what it was asked, and nothing else?

It reads pictures by the evaluation classifier, which guides nothing. Synthetic faces have a ground
truth, too: the same identity drawn with the attribute turned around.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import islice, product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import processes
from autoencoder_loss import perceptual_distance
from celeba_dataset import deny_other_classes
from evaluation import frechet_distance
from evaluation_classifier import EvaluationClassifier, in_batches, read
from model_config import EditConfig, configure
from reports import edits_table, plot_strengths
from samplers import sample_generators

MASK_SHARE = 0.25  # of the pixels: where an edit changes most, on average, and may
FEWEST_IN_A_SET = 8  # images that a Frechet distance is taken of


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """10 log10(255^2 / mean squared error) of each pair of images uint8 (N, H, W, 3), where ``mask``
    (H, W) is true, in dB (N,); equal images give 100."""
    error = (a.float() - b.float()).square().mean(3)  # (N, H, W)
    error = error.mean((1, 2)) if mask is None else error[:, mask].mean(1)
    return (10 * torch.log10(255**2 / error)).clamp(max=100)


@dataclass(frozen=True)
class Task:
    """One attribute (a column), and whether it is added (+1) or removed (-1)."""

    name: str
    column: int
    direction: int

    def __str__(self) -> str:
        return f"{'add' if self.direction > 0 else 'remove'} {self.name}"


class Judge:
    """What an evaluation classifier says of edits; ``features`` (N, D), those of held-out faces."""

    def __init__(self, classifier: EvaluationClassifier, features: Tensor, one_hot: bool = False):
        self.classifier, self.device = classifier, classifier.head.weight.device
        self.one_hot = one_hot
        self.mean = F.relu(features).mean(0)

    def cosine(self, a: Tensor, b: Tensor, task: Task) -> Tensor:
        """Cosine of features (N, D), as the head sees them less their mean over held-out faces, without
        the direction in which it reads this attribute: how much of the rest is kept."""
        w = F.normalize(self.classifier.head.weight[task.column].detach().float().cpu(), dim=0)
        a, b = (F.relu(x) - self.mean for x in (a, b))
        a, b = (x - (x @ w)[:, None] * w for x in (a, b))
        return F.cosine_similarity(a, b)

    @torch.no_grad()
    def perceptual(self, a: Tensor, b: Tensor) -> Tensor:
        """``perceptual_distance`` (N,) of images uint8."""
        inputs = [self.classifier.input(x.to(self.device)) for x in (a, b)]
        return perceptual_distance(self.classifier.stages(), *inputs).cpu()

    def flips(self, logits: Tensor, task: Task) -> Tensor:
        """Whether logits (N, A) say what was asked for, float (N,)."""
        return (logits[:, task.column].sign() == task.direction).float()

    def measure(self, source: Tensor, edited: Tensor, task: Task, mask: Tensor) -> dict[str, Tensor]:
        """Per image (N,): whether it is as asked for, how many other attributes have changed, and what
        is kept; ``mask`` (H, W), true where this edit has no business."""
        (before, was), (after, now) = (read(self.classifier, x) for x in (source, edited))
        changed = (now > 0) != (was > 0)
        changed[:, task.column] = False
        if self.one_hot:  # the class that was there must go
            changed[was.argmax(1, keepdim=True) == torch.arange(was.shape[1])] = False
        return {
            "flip_rate": self.flips(now, task),
            "attributes_changed": changed.sum(1).float(),
            "cosine": self.cosine(before, after, task),
            "perceptual": self.perceptual(source, edited),
            "psnr_outside": psnr(source, edited, mask),
        }

    def against_truth(
        self, source: Tensor, edited: Tensor, truth: Tensor, rebuilt: Tensor, task: Task
    ) -> dict[str, Tensor]:
        """Per image (N,): nearness to the true counterfactual, of the edit, of no edit at all, and of
        the model's reconstruction of that counterfactual."""
        (_, wanted), (_, now) = (read(self.classifier, x) for x in (truth, edited))
        return {
            "flip_rate_truth": self.flips(wanted, task),
            "psnr_truth": psnr(edited, truth),
            "psnr_no_edit": psnr(source, truth),
            "psnr_rebuilt": psnr(rebuilt, truth),
            "perceptual_truth": self.perceptual(edited, truth),
            "perceptual_no_edit": self.perceptual(source, truth),
            "attributes_exact": ((now > 0) == (wanted > 0)).float().mean(1),
        }


class EditEvaluation:
    """Every method of editing, on the same held-out faces: ``work`` is an ``Evaluation``,
    with its model, judge, guide and data; faces are taken from the reference split."""

    def __init__(self, work):
        self.work, self.args, self.model, self.guide = work, work.args, work.model, work.guide
        self.held_out, names = work.reference_set, list(work.names)
        unknown = [name for name in self.args.edit_attributes if name not in names]
        if unknown:
            raise ValueError(f"no attribute {unknown[0]} in {self.args.data_root}: name some of {names}")
        wanted = self.args.edit_attributes or names
        ways = (1,) if self.model.config.one_hot else (1, -1)  # of classes, one is always there
        self.tasks = [Task(name, names.index(name), way) for name in wanted for way in ways]
        self.judge = Judge(work.classifier, work.reference["classifier"], self.model.config.one_hot)

    def variants(self) -> Iterator[tuple[str, EditConfig]]:
        """Every way of editing that is compared, with a name."""
        args = self.args
        ways = product(args.edit, args.cfg_scale, args.classifier_scale)
        for method, cfg_scale, by_classifier in ways:
            name = f"{method}, cfg {cfg_scale:g}"
            name += f", classifier {by_classifier:g}" if by_classifier else ""
            own = {"method": method, "cfg_scale": cfg_scale, "classifier_scale": by_classifier}
            own["num_inference_steps"] = args.num_inference_steps[0]
            yield name, configure(EditConfig, args, **own)

    # ---------------------------------------------------------------- faces

    @cached_property
    def truth(self):
        """A function of (row in the held-out split, task) that draws the true counterfactual uint8
        (S, S, 3), or None where it is impossible; None for photographs."""
        from synthetic_faces import counterfactuals

        config = self.model.config
        return counterfactuals(self.args.data_root, config.image_size, config.crop)

    @cache  # noqa: B019, it lives as long as the program
    def sources(self, task: Task) -> tuple[Tensor, Tensor | None]:
        """Images uint8 (N, S, S, 3) that lack what is added, or have what is removed; and their true
        counterfactuals, where they are drawn faces."""
        rows = (self.held_out.attributes[:, task.column] == -task.direction).nonzero()[:, 0].tolist()
        truths = None
        if self.truth:
            pairs = ((row, self.truth(self.held_out.filenames[row], task.column)) for row in rows)
            pairs = list(islice((p for p in pairs if p[1] is not None), self.args.edit_sources))
            rows, truths = [row for row, _ in pairs], [truth for _, truth in pairs]
            truths = torch.from_numpy(np.stack(truths)) if truths else None
        rows = np.array(rows[: self.args.edit_sources], dtype=int)
        return torch.from_numpy(self.held_out.images[rows]), truths

    def edit(self, images: Tensor, task: Task, editing: EditConfig) -> list[Tensor]:
        """The images after the edit at each of the strengths."""
        target = torch.zeros(1, len(self.held_out.attribute_names))
        target[0, task.column] = task.direction
        if self.model.config.one_hot:
            target = deny_other_classes(target)
        size = min(self.args.batch_size, -(-len(images) // processes.number()))  # some for each

        def strip(first: int) -> list[Tensor]:
            batch = images[first : first + size]
            generators = sample_generators(self.args.seed, range(first, first + len(batch)))
            how = {"classifier": self.guide, "generator": generators}
            with self.work.autocast:
                edits = self.model.edit_strip(batch, target, self.args.strengths, editing, **how)
                return [edited.cpu() for edited in edits]

        parts = processes.in_parallel(strip, range(0, len(images), size))
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    # ---------------------------------------------------------------- figures

    @cache  # noqa: B019
    def mask(self, task: Task) -> Tensor:
        """Where (H, W) an edit has no business: the pixels that differ least between faces that have the
        attribute and their counterfactuals, or, without those, between faces that have it and faces
        that lack it, on average. The same for every method."""
        source, truth = self.sources(task)
        if truth is not None:
            differ = (source.float() - truth.float()).abs().mean((0, 3))
        else:
            column = self.held_out.attributes[:, task.column].numpy()
            if not ((column == 1).any() and (column == -1).any()):  # nothing to compare
                return torch.ones(self.held_out.images.shape[1:3], dtype=torch.bool)
            means = [self.held_out.images[column == sign].mean(0) for sign in (1, -1)]
            differ = torch.from_numpy(np.abs(means[0] - means[1]).mean(2))
        return differ <= differ.flatten().quantile(1 - MASK_SHARE)

    def frechet(self, edited: Tensor, task: Task) -> dict[str, float]:
        """Frechet distance of the edits' features to training images that are as asked for, and that of
        as many held-out ones: few images raise both alike."""
        train, held_out = self.work.train_features, self.work.reference["classifier"]
        asked = train[self.work.train.attributes[:, task.column] == task.direction]
        real = held_out[self.held_out.attributes[:, task.column] == task.direction]
        number = min(len(edited), len(real))
        if number < FEWEST_IN_A_SET or len(asked) < FEWEST_IN_A_SET:
            return {}
        features = read(self.judge.classifier, edited[:number])[0]
        return {
            "frechet": frechet_distance(features, asked),
            "frechet_real": frechet_distance(real[:number], asked),
        }

    def judge_task(self, name: str, editing: EditConfig, task: Task) -> dict | None:
        """Every figure of one way of editing, for one attribute and direction; writes a picture. None
        where there is no face to edit."""
        source, truth = self.sources(task)
        if not len(source):
            return None
        strip = self.edit(source, task, editing)
        edited = strip[-1]
        found = self.judge.measure(source, edited, task, self.mask(task))
        if truth is not None:
            found |= self.judge.against_truth(source, edited, truth, self.rebuilt(task), task)
        self.picture(name, task, source, edited, truth, found)
        before = [self.judge.flips(read(self.judge.classifier, part)[1], task) for part in strip[:-1]]
        flips = [float(each.mean()) for each in (*before, found["flip_rate"])]
        means = {key: float(values.mean()) for key, values in found.items()}
        if truth is not None:
            gain = found["psnr_truth"] - found["psnr_no_edit"]
            means["median_gain"] = float(gain.median())
        means |= self.frechet(edited, task)
        curve = dict(zip(map(str, self.args.strengths), flips, strict=True))
        return {"task": str(task), "faces": len(source), **means, "flip_rate_over_strength": curve}

    @cache  # noqa: B019
    def rebuilt(self, task: Task) -> Tensor:
        """The model's reconstruction of true counterfactuals, from their own noise and latent."""
        steps = self.args.num_inference_steps[0]
        plain = EditConfig("ddim", steps, localise=0, keep_detail=False)
        nothing = torch.zeros(1, len(self.held_out.attribute_names))

        def back(batch: Tensor) -> Tensor:
            with self.work.autocast:
                strip = self.model.edit_strip(batch, nothing, [0.0], plain, classifier=self.guide)
                return next(strip).cpu()

        return torch.cat(in_batches(back, self.sources(task)[1], self.args.batch_size))

    def bounds(self, task: Task) -> dict | None:
        """The figures of no edit at all."""
        source = self.sources(task)[0]
        if not len(source):
            return None
        found = self.judge.measure(source, source, task, self.mask(task))
        means = {key: float(values.mean()) for key, values in found.items()} | self.frechet(source, task)
        return {"task": str(task), "faces": len(source), **means}

    def picture(self, name: str, task: Task, source, edited, truth, found: dict[str, Tensor]) -> None:
        """The best, the median and the worst edit: source, edit, where they differ, and the truth."""
        from pictures import heat_map, save_grid

        order = (found["flip_rate"] + found["cosine"]).argsort(descending=True).tolist()
        chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
        images, labels = [], []
        for rank, i in chosen.items():
            a, b = source[i].numpy(), edited[i].numpy()
            images += [a, b, heat_map(a, b)] + ([] if truth is None else [truth[i].numpy()])
            labels += [rank, "edited", "difference"] + ([] if truth is None else ["truth"])
        safe = f"{name}_{task}".replace(", ", "_").replace(" ", "_")
        path = self.work.out / "edits" / f"{safe}.png"
        save_grid(path, np.stack(images), labels, len(images) // 3, title=f"{task}: {name}")

    def interpolation(self, pairs: int = 8, frames: int = 9) -> dict[str, float]:
        """How evenly the way between two photographs goes, in perceptual distance from frame to frame:
        the largest step over the mean one; and whether it begins and ends at the photographs."""
        number = min(pairs, len(self.held_out) // 2)
        images = torch.from_numpy(self.held_out.images[: 2 * number].copy())
        steps = self.args.num_inference_steps[0]

        def evenness(pair: Tensor) -> tuple[float, float]:
            with self.work.autocast:
                rows = self.model.predict_attributes(pair, self.guide)
                way = self.model.interpolate_between_images(pair, frames, steps, rows).cpu()
            distance = self.judge.perceptual(way[:-1], way[1:])
            return float(distance.max() / distance.mean()), float(psnr(way[[0, -1]], pair).min())

        unevenness, ends = zip(*processes.in_parallel(evenness, images.split(2)), strict=True)
        return {"largest_step_over_mean": sum(unevenness) / number, "worst_end_psnr": min(ends)}

    def protocol(self) -> dict:
        """What the figures depend on."""
        names = ("checkpoint", "evaluation_classifier", "guide", "image_size", "crop", "data", "seed")
        names = (*names, "precision")
        own = ("edit_sources", "strengths", "depth", "localise", "classifier_on")
        return {
            **{name: self.work.protocol[name] for name in names},
            "sources": self.work.protocol["reference"],
            **{name: getattr(self.args, name) for name in own},
            "num_inference_steps": self.args.num_inference_steps[0],
            "sources_read_by": "the guide" if self.guide else "the VAE",
            "true_counterfactuals": self.truth is not None,
        }

    def run(self) -> str:
        """Judge every way of editing; edits.json and edits.md grow as it goes. Returns the latter."""
        ways = list(self.variants())
        report: dict[str, Any] = {"protocol": self.protocol(), "interpolation": self.interpolation()}
        entries: list[dict[str, Any]] = [
            {"name": "no edit", "tasks": [*filter(None, map(self.bounds, self.tasks))]}
        ]
        with tqdm(total=len(ways) * len(self.tasks), desc="editing", unit="task") as bar:
            for name, editing in ways:
                tasks = []
                for task in self.tasks:
                    tasks += filter(None, [self.judge_task(name, editing, task)])
                    bar.update()
                entries.append({"name": name, "editing": asdict(editing), "tasks": tasks})
                report["edits"] = entries
                (self.work.out / "edits.json").write_text(json.dumps(report, indent=1))
                (self.work.out / "edits.md").write_text(edits_table(report))
        plot_strengths(report, self.work.out)
        return edits_table(report)
