"""The judging of edits, behind evaluate.py --edit: does an edit do what was asked for, and nothing else?

The judge, which steers nothing, reads the pictures. Synthetic faces also have a ground truth: the same
identity, drawn with the attribute turned around.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor

from attributes import attr_dict, deny_other_classes
from classifiers.judge import Judge
from classifiers.likeness import perceptual_distance
from config import EditConfig, in_file_name
from editing import Editor, resolve
from evaluation.metrics import frechet_distance, mean_of, psnr
from evaluation.reading import in_parallel, read
from evaluation.samples import SampleEvaluation
from evaluation.tables import edits_table, plot_strengths
from figures.grids import heat_map, readable, save_grid
from progress import progress_bar
from samplers import sample_generators
from synthetic_faces.dataset import counterfactuals

MASK_SHARE = 0.25  # of the pixels: those that an edit changes most on average, and may change
FEWEST_IN_A_SET = 8  # images that a Frechet distance is taken of


@dataclass(frozen=True)
class Task:
    """One attribute (a column), and whether it is added (+1) or removed (-1)."""

    name: str
    column: int
    direction: int

    def __str__(self) -> str:
        return f"{'add' if self.direction > 0 else 'remove'} {self.name}"


def best_median_worst(score: Tensor) -> dict[str, int]:
    """The images, by their place in a score (N,), that a picture shows of many."""
    order = score.argsort(descending=True).tolist()
    return {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}


class EditJudge:
    """What the judge says of edits. ``features`` (N, D) are those of held-out faces."""

    def __init__(self, judge: Judge, features: Tensor, one_hot: bool = False):
        self.judge, self.device, self.one_hot = judge, judge.head.weight.device, one_hot
        self.mean = F.relu(features).mean(0)

    def cosine(self, a: Tensor, b: Tensor, task: Task) -> Tensor:
        """Cosine (N,) of features (N, D): how much is kept beside the attribute of this task.

        The features are taken as the judge's head sees them, less their mean over held-out faces. The
        direction in which the head reads the attribute is left out.
        """
        w = F.normalize(self.judge.head.weight[task.column].detach().float().cpu(), dim=0)
        a, b = (F.relu(x) - self.mean for x in (a, b))
        a, b = (x - (x @ w)[:, None] * w for x in (a, b))
        return F.cosine_similarity(a, b)

    @torch.no_grad()
    def perceptual(self, a: Tensor, b: Tensor) -> Tensor:
        """``perceptual_distance`` (N,) of images uint8 (N, H, W, 3)."""
        inputs = [self.judge.input(x.to(self.device)) for x in (a, b)]
        return perceptual_distance(self.judge.stages(), *inputs).cpu()

    def flips(self, logits: Tensor, task: Task) -> Tensor:
        """Whether logits (N, A) say what was asked for, float (N,)."""
        return (logits[:, task.column].sign() == task.direction).float()

    def measure(self, source: Tensor, edited: Tensor, task: Task, mask: Tensor) -> dict[str, Tensor]:
        """For each image (N,): whether it is as asked for, how many other attributes have changed, and
        what is kept. ``mask`` (H, W) is true where this edit should change nothing."""
        (before, was), (after, now) = (read(self.judge, x) for x in (source, edited))
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
        self, source: Tensor, edited: Tensor, truth: Tensor, task: Task
    ) -> dict[str, Tensor]:
        """For each image (N,): how near the true counterfactual come the edit and no edit at all."""
        (_, wanted), (_, now) = (read(self.judge, x) for x in (truth, edited))
        return {
            "flip_rate_truth": self.flips(wanted, task),
            "psnr_truth": psnr(edited, truth),
            "psnr_no_edit": psnr(source, truth),
            "perceptual_truth": self.perceptual(edited, truth),
            "perceptual_no_edit": self.perceptual(source, truth),
            "attributes_exact": ((now > 0) == (wanted > 0)).float().mean(1),
        }


class EditEvaluation:
    """Every way of editing, on the same faces of the reference split.

    ``work`` holds the model, the judge, the guide and the data.

    Raises:
        ValueError: for an attribute to edit that the data does not have.
    """

    def __init__(self, work: SampleEvaluation):
        self.work, self.config, self.model, self.guide = work, work.config, work.model, work.guide
        self.held_out, names = work.reference_set, list(work.names)
        unknown = [name for name in self.config.edit_attributes if name not in names]
        if unknown:
            root = self.config.data_root
            raise ValueError(f"no attribute {unknown[0]} in {root}: name some of {names}")
        wanted = self.config.edit_attributes or names
        ways = (1,) if self.model.config.one_hot else (1, -1)  # one of the classes is always there
        self.tasks = [Task(name, names.index(name), way) for name in wanted for way in ways]
        steps = self.config.editing.num_inference_steps
        (self.num_steps,) = self.config.num_inference_steps or (steps,)

    @cached_property
    def judge(self) -> EditJudge:
        """What reads the edits."""
        return EditJudge(self.work.judge, self.work.reference["judge"], self.model.config.one_hot)

    def variants(self) -> Iterator[tuple[str, EditConfig]]:
        """Every way of editing that is compared, with a name."""
        for asked in self.config.edit_cfg_scale or (None,):
            editing = replace(self.config.editing, num_inference_steps=self.num_steps, cfg_scale=asked)
            cfg_scale = resolve(editing, (), self.guide is not None).cfg_scale
            editing = replace(editing, cfg_scale=cfg_scale)
            name = f"cfg {editing.cfg_scale:g}"
            if self.guide and editing.guide_scale:
                name += f", guide {editing.guide_scale:g}"
            yield name, editing

    # ---------------------------------------------------------------- faces

    @cached_property
    def truth(self) -> Callable[[str, int], np.ndarray | None] | None:
        """A function of a picture's file name and an attribute's column that draws the true
        counterfactual uint8 (S, S, 3), or gives None where it is impossible. None for photographs."""
        config = self.model.config
        return counterfactuals(self.config.data_root, config.image_size, config.crop)

    @cache  # noqa: B019, it lives as long as the program
    def sources(self, task: Task) -> tuple[Tensor, Tensor | None]:
        """Images uint8 (N, S, S, 3) that lack what is added, or have what is removed. For drawn faces,
        also their true counterfactuals."""
        rows = (self.held_out.attributes[:, task.column] == -task.direction).nonzero()[:, 0].tolist()
        truths = None
        if self.truth:
            column = attr_dict[task.name]  # the model may have some of the attributes only
            pairs = ((row, self.truth(self.held_out.filenames[row], column)) for row in rows)
            pairs = list(islice((p for p in pairs if p[1] is not None), self.config.edit_sources))
            rows, truths = [row for row, _ in pairs], [truth for _, truth in pairs]
            truths = torch.from_numpy(np.stack(truths)) if truths else None
        rows = np.array(rows[: self.config.edit_sources], dtype=int)
        return torch.from_numpy(self.held_out.images[rows]), truths

    def edit(
        self, images: Tensor, task: Task, editing: EditConfig, strengths: Sequence[float]
    ) -> list[Tensor]:
        """The images after the edit, at each of the strengths. Every process gets all."""
        target = torch.zeros(1, len(self.held_out.attribute_names))
        target[0, task.column] = task.direction
        if self.model.config.one_hot:
            target = deny_other_classes(target)
        share = -(-len(images) // PartialState().num_processes)  # so that each process gets some
        size = min(self.config.batch_size, share)

        def strip(first: int) -> list[Tensor]:
            batch = images[first : first + size]
            generators = sample_generators(self.config.seed, range(first, first + len(batch)))
            how = {"guide": self.guide, "generator": generators}
            with self.work.autocast:
                edit_at = Editor(self.model).prepare_edit(batch, target, editing, **how)
                done = [edit_at(strength).cpu() for strength in strengths]
            bar.update(len(batch) * PartialState().num_processes)
            return done

        hidden = not self.work.writes
        with progress_bar(
            total=len(images), desc=str(task), leave=False, unit="image", disable=hidden
        ) as bar:
            parts = in_parallel(strip, range(0, len(images), size))
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    # ---------------------------------------------------------------- figures

    @cache  # noqa: B019
    def mask(self, task: Task) -> Tensor:
        """Where (H, W) an edit should change nothing; the same for every way of editing.

        These are the pixels that differ least, on average, between faces and their counterfactuals, or,
        without those, between faces that have the attribute and faces that lack it.
        """
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
        """Frechet distance of the edits' features to those of training images that are as asked for, and
        that of as many held-out images. Few images raise both alike."""
        train, held_out = self.work.train_features, self.work.reference["judge"]
        asked = train[self.work.train.attributes[:, task.column] == task.direction]
        real = held_out[self.held_out.attributes[:, task.column] == task.direction]
        number = min(len(edited), len(real))
        if number < FEWEST_IN_A_SET or len(asked) < FEWEST_IN_A_SET:
            return {}
        features = read(self.work.judge, edited[:number])[0]
        return {
            "frechet": frechet_distance(features, asked),
            "frechet_real": frechet_distance(real[:number], asked),
        }

    def judge_task(self, name: str, editing: EditConfig, task: Task) -> dict | None:
        """Every figure of one way of editing, for one attribute and direction. Writes a picture. None
        where there is no face to edit."""
        source, truth = self.sources(task)
        if not len(source):
            return None
        strip = self.edit(source, task, editing, self.config.strengths)
        edited = strip[-1]
        found = self.judge.measure(source, edited, task, self.mask(task))
        if truth is not None:
            found |= self.judge.against_truth(source, edited, truth, task)
        if self.work.writes:
            self.picture(name, task, source, edited, truth, found)
        before = [self.judge.flips(read(self.work.judge, part)[1], task) for part in strip[:-1]]
        flips = [float(each.mean()) for each in (*before, found["flip_rate"])]
        means = {}
        for key, values in found.items():
            means |= mean_of(key, values)
        if truth is not None:
            gain = found["psnr_truth"] - found["psnr_no_edit"]
            means["median_gain"] = float(gain.median())
        means |= self.frechet(edited, task)
        curve = dict(zip(map(str, self.config.strengths), flips, strict=True))
        how = resolve(editing, [task.name], self.guide is not None)
        facts = {"task": str(task), "faces": len(source), "t_start": how.t_start, "margin": how.margin}
        return {**facts, **means, "flip_rate_over_strength": curve}

    def bounds(self, task: Task) -> dict | None:
        """The figures of no edit at all."""
        source = self.sources(task)[0]
        if not len(source):
            return None
        found = self.judge.measure(source, source, task, self.mask(task))
        means = {key: float(values.mean()) for key, values in found.items()} | self.frechet(source, task)
        return {"task": str(task), "faces": len(source), **means}

    def picture(
        self,
        name: str,
        task: Task,
        source: Tensor,
        edited: Tensor,
        truth: Tensor | None,
        found: dict[str, Tensor],
    ) -> None:
        """Write the best, the median and the worst edit: source, edit, where they differ, the truth."""
        images, labels = [], []
        chosen = best_median_worst(found["flip_rate"] + found["cosine"])
        for rank, i in chosen.items():
            a, b = source[i].numpy(), edited[i].numpy()
            images += [a, b, heat_map(a, b)] + ([] if truth is None else [truth[i].numpy()])
            labels += [rank, "edited", "difference"] + ([] if truth is None else ["truth"])
        safe = f"{name}_{task}".replace(", ", "_").replace(" ", "_")
        path = self.work.output_dir / "edits" / f"{in_file_name(safe)}.png"
        title = f"{'Add' if task.direction > 0 else 'Remove'} {readable(task.name)}: {name}"
        save_grid(path, np.stack(images), labels, len(images) // 3, title=title)

    def interpolation(self, pairs: int = 8, frames: int = 9) -> dict[str, float]:
        """How evenly the way from one photograph to another goes, and whether it begins and ends at the
        photographs. Evenness is the largest perceptual distance between two frames over the mean one."""
        number = min(pairs, len(self.held_out) // 2)
        images = torch.from_numpy(self.held_out.images[: 2 * number].copy())

        def evenness(pair: Tensor) -> tuple[float, float]:
            with self.work.autocast:
                rows = self.model.predict_attributes(pair, self.guide)
                way = Editor(self.model).interpolate(pair, frames, self.num_steps, rows).cpu()
            distance = self.judge.perceptual(way[:-1], way[1:])
            return float(distance.max() / distance.mean()), float(psnr(way[[0, -1]], pair).min())

        unevenness, ends = zip(*in_parallel(evenness, images.split(2)), strict=True)
        return {"largest_step_over_mean": sum(unevenness) / number, "worst_end_psnr": min(ends)}

    def protocol(self) -> dict:
        """What the figures depend on."""
        shared = ("checkpoint", "judge", "guide", "image_size", "crop", "data", "seed", "precision")
        return {
            **{name: self.work.protocol[name] for name in shared},
            "sources": self.work.protocol["reference"],
            "edit_sources": self.config.edit_sources,
            "strengths": list(self.config.strengths),
            "editing": asdict(self.config.editing),
            "num_inference_steps": self.num_steps,
            "sources_read_by": "the guide" if self.guide else "the VAE",
            "true_counterfactuals": self.truth is not None,
        }

    def run(self) -> str:
        """Judge every way of editing. edits.json and edits.md grow as it goes. Returns the latter."""
        ways, output_dir = list(self.variants()), self.work.output_dir
        report: dict[str, Any] = {"protocol": self.protocol(), "interpolation": self.interpolation()}
        entries: list[dict[str, Any]] = [
            {"name": "no edit", "tasks": [*filter(None, map(self.bounds, self.tasks))]}
        ]
        total, hidden = len(ways) * len(self.tasks), not self.work.writes
        with progress_bar(total=total, desc="editing", unit="task", disable=hidden) as bar:
            for name, editing in ways:
                tasks = []
                for task in self.tasks:
                    tasks += filter(None, [self.judge_task(name, editing, task)])
                    bar.update()
                entries.append({"name": name, "editing": asdict(editing), "tasks": tasks})
                report["edits"] = entries
                if self.work.writes:
                    output_dir.mkdir(parents=True, exist_ok=True)
                    (output_dir / "edits.json").write_text(
                        json.dumps(report, indent=1), encoding="utf-8"
                    )
                    (output_dir / "edits.md").write_text(edits_table(report), encoding="utf-8")
        if self.work.writes:
            plot_strengths(report, output_dir)
        return edits_table(report)
