"""The judging of edits, behind evaluate.py edits: does an edit do what was requested, and nothing else?

The judge, which steers nothing, reads the pictures. Synthetic faces also have a truth: the same
identity, drawn with the attribute turned around.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor

from attributes import attr_dict, columns_of, going_along
from classifiers.judge import Judge
from classifiers.likeness import perceptual_distance
from classifiers.probe import load_reader
from config import EditConfig, in_file_name
from editing import EditAt, Editor
from editing import resolve as resolve_editing
from evaluation.base import Evaluation, Reading, in_batches, main_bar, read
from evaluation.changes import ChangeMeter
from evaluation.edit_figures import edit_figures, others_changed, summary
from evaluation.metrics import frechet_distance, psnr
from evaluation.recogniser import SAME_PERSON, Recogniser
from evaluation.tables import edits_table, plot_strengths
from figures.grids import heat_map, readable, save_grid
from image_data.labelled import LabelledImages
from samplers import sample_generators
from studio import check_is_read, knows_faces, smallest_flip

if TYPE_CHECKING:
    from evaluate import EditsConfig

MASK_SHARE = 0.25  # of the pixels: those that an edit changes most on average, and may change; by eye
PAIRS, FRAMES = 8, 9  # of photographs that are interpolated, and frames of each strip; by eye
NULL_IMAGES = 200  # held-out images that the judges' noise is measured on; by eye
COMPARED = ("flip_rate", "attributes_changed", "others_moved", "others_turned", "cosine", "identity")
FEWEST_IN_A_SET = 8  # images that a Frechet distance is taken of; with fewer its bias hides the rest

# (file name, column) -> the true counterfactual uint8 (S, S, 3), or None where it is impossible
Turned = Callable[[str, int], np.ndarray | None]


@dataclass(frozen=True)
class Task:
    """One attribute (a column), and whether it is added (+1) or removed (-1)."""

    name: str
    column: int
    direction: int

    def opposite(self) -> Task:
        return Task(self.name, self.column, -self.direction)

    def __str__(self) -> str:
        return f"{'add' if self.direction > 0 else 'remove'} {self.name}"


def cosine(judge: Judge, mean: Tensor, a: Tensor, b: Tensor, column: int) -> Tensor:
    """Cosine (N,) of features (N, D): how much is kept beside the attribute of this column.

    The features are taken as the judge's head sees them, less their ``mean`` (D,) over held-out faces.
    The direction in which the head reads the attribute is left out.
    """
    w = F.normalize(judge.head.weight[column].detach().float().cpu(), dim=0)
    a, b = (F.relu(x) - mean for x in (a, b))
    a, b = (x - (x @ w)[:, None] * w for x in (a, b))
    return F.cosine_similarity(a, b)


def measure(
    judge: Judge,
    mean: Tensor,
    source: Tensor,
    edited: Tensor,
    task: Task,
    mask: Tensor,
    truth: Tensor | None = None,
    one_hot: bool = False,
    readings: tuple[Reading, Reading] | None = None,
) -> dict[str, Tensor]:
    """``edit_figures`` (N,), the ``cosine``, and the PSNR where ``mask`` (H, W) is true: there this edit
    should change nothing. ``readings`` are those of source and edited, if the judge has read them."""
    device = judge.head.weight.device
    a, b = source.to(device), edited.to(device)
    right = None if truth is None else truth.to(device)
    before, after = readings or (read(judge, source), read(judge, edited))
    logits = before[1], after[1]
    figures = edit_figures(judge, a, b, task.column, task.direction, right, one_hot, logits)
    figures["cosine"] = cosine(judge, mean, before[0], after[0], task.column)
    return figures | {"psnr_outside": psnr(source, edited, mask)}


def paired_differences(
    first: Sequence[dict[str, Tensor]], other: Sequence[dict[str, Tensor]]
) -> dict[str, float]:
    """For each figure of COMPARED: the mean difference from the first way of editing, on the same
    photographs, with its error (95 %). Arguments: for each task its figures (N,)."""
    names = [name for name in COMPARED if name in first[0]]
    pairs = list(zip(first, other, strict=True))
    return summary({name: torch.cat([b[name] - a[name] for a, b in pairs]) for name in names})


class EditEvaluation(Evaluation):
    """Every way of editing, on the same faces of the reference split.

    Args:
        counterfactuals: (data_root, image_size, crop) -> what draws the truth of a face, or None for
            photographs. ``synthetic_faces.dataset.counterfactuals``.

    Raises:
        ValueError: for an attribute that the data does not have, or that the guide of --smallest cannot
            read.
    """

    config: EditsConfig

    def __init__(
        self,
        config: EditsConfig,
        data: LabelledImages,
        device: str,
        counterfactuals: Callable[[str, int, int], Turned | None],
    ):
        super().__init__(config, data, device)
        of_model, names = self.model.config, self.names
        columns_of(names, config.edit_attributes)  # refuses unknown names
        names_to_edit = config.edit_attributes or names
        if config.smallest and self.guide:
            if self.guide.config.one_hot:
                raise ValueError(
                    f"{config.guide} reads classes, which do not flip: leave --smallest out"
                )
            check_is_read(names_to_edit, self.guide)
        self.truth = counterfactuals(config.data_root, of_model.image_size, of_model.crop)
        directions = (1,) if of_model.one_hot else (1, -1)  # one of the classes is always there
        tasks = [Task(name, names.index(name), sign) for name in names_to_edit for sign in directions]
        self.tasks = [task for task in tasks if len(self.sources(task)[0])]
        if not self.tasks:
            told = " or ".join(names_to_edit)
            split = config.reference_split
            raise ValueError(f"no {split} picture is labelled with {told}: name other --edit_attributes")
        self.mean = F.relu(self.reference["judge"]).mean(0)
        self.protocol |= {
            "edit_sources": config.edit_sources,
            "strengths": list(config.strengths),
            "editing": asdict(config.editing),
            "sources_read_by": "the guide" if self.guide else "the VAE",
            "true_counterfactuals": self.truth is not None,
        }
        self.meter: ChangeMeter | None = None
        if config.second_judge:
            second = load_reader(config.second_judge, names, of_model.crop, device)
            images = torch.from_numpy(self.reference_set.images[-NULL_IMAGES:].copy())
            self.meter = ChangeMeter([self.judge, second], images, self.reference_set.flips)
            self.protocol["second_judge"] = second.file_hash
        self.recogniser: Recogniser | None = None
        if config.identity:
            if not knows_faces(self.model):
                raise ValueError(f"--identity: {config.checkpoint} is no model of faces, leave it out")
            self.recogniser = Recogniser(of_model.crop)

    def run(self) -> str:
        """Judge every way of editing. edits.json and edits.md grow as it goes. Returns the latter."""
        report: dict[str, Any] = {"protocol": self.protocol, "interpolation": self.interpolation()}
        no_edit = [self.facts(task, self.sources(task)[0])[0] for task in self.tasks]
        report["edits"] = [{"name": "no edit", "tasks": no_edit}]
        variants, first = list(self.variants()), None
        with main_bar(len(variants) * len(self.tasks), "editing", "task") as bar:
            for name, editing, smallest in variants:
                tasks, measured = [], []
                for task in self.tasks:
                    facts, figures = self.judge_task(name, editing, task, smallest)
                    tasks.append(facts)
                    measured.append(figures)
                    bar.update()
                strength = None if smallest else self.config.strengths[-1]
                entry = {"name": name, "editing": asdict(editing), "strength": strength, "tasks": tasks}
                if first is None:
                    first = measured
                else:
                    entry["less_the_first"] = paired_differences(first, measured)
                report["edits"].append(entry)
                text = self.write("edits", report, edits_table)
        if self.writes:
            plot_strengths(report, self.output_dir)
        return text

    def variants(self) -> Iterator[tuple[str, EditConfig, bool]]:
        """Every way of editing that is compared: a name, how, and whether at the smallest strength."""
        for scale in self.config.edit_cfg_scale or (None,):
            editing = replace(self.config.editing, cfg_scale=scale)
            full = resolve_editing(editing, (), self.guide is not None)
            editing = replace(editing, cfg_scale=full.cfg_scale)
            name = f"cfg {editing.cfg_scale:g}"
            if self.guide and editing.guide_scale:
                name += f", guide {editing.guide_scale:g}"
            yield name, editing, False
            if self.config.smallest:
                yield f"{name}, smallest", editing, True

    # ---------------------------------------------------------------- faces and their edits

    @cache  # noqa: B019, it lives as long as the program
    def sources(self, task: Task) -> tuple[Tensor, Tensor | None]:
        """Images uint8 (N, S, S, 3) that lack what is added, or have what is removed. For drawn faces,
        also their true counterfactuals."""
        faces, number, truths = self.reference_set, self.config.edit_sources, None
        rows = (faces.attributes[:, task.column] == -task.direction).nonzero()[:, 0].tolist()
        if self.truth:
            column = attr_dict[task.name]  # the model may have some of the attributes only
            drawn = ((row, self.truth(faces.filenames[row], column)) for row in rows)
            pairs = list(islice((pair for pair in drawn if pair[1] is not None), number))
            rows = [row for row, _ in pairs]
            truths = torch.from_numpy(np.stack([truth for _, truth in pairs])) if pairs else None
        return torch.from_numpy(faces.images[np.array(rows[:number], dtype=int)]), truths

    def each_batch(
        self, images: Tensor, task: Task, editing: EditConfig, size: int, then, seed: int = 0
    ) -> list:
        """``then`` of every batch of images, where it gets the edit as a function of its strength.
        ``seed`` is counted from --seed."""
        request = {task.name: float(task.direction > 0)}

        def one_batch(batch: Tensor, numbers: range) -> Any:
            generators = sample_generators(self.config.seed + seed, numbers)
            with self.autocast:
                edit_at = Editor(self.model).prepare_edit(
                    batch, request, editing, guide=self.guide, generator=generators
                )
                return then(edit_at)

        return in_batches(one_batch, images, size, str(task))

    def edit(
        self,
        images: Tensor,
        task: Task,
        editing: EditConfig,
        strengths: Sequence[float],
        seed: int = 0,
    ) -> list[Tensor]:
        """The images after the edit, at each of the strengths. Every process gets all."""
        share = -(-len(images) // PartialState().num_processes)  # so that each process gets some

        def at_each_strength(edit_at: EditAt) -> list[Tensor]:
            return [edit_at(strength).cpu() for strength in strengths]

        size = min(self.config.batch_size, share)
        parts = self.each_batch(images, task, editing, size, at_each_strength, seed)
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def smallest(self, images: Tensor, task: Task, editing: EditConfig) -> tuple[Tensor, Tensor]:
        """The images after the smallest edit with which the guide sees what was requested, and the
        strengths (N,): see ``smallest_flip``."""
        guide, request = self.guide, {task.name: float(task.direction > 0)}
        assert guide is not None  # --smallest needs one

        def find_smallest(edit_at: EditAt) -> tuple[float, Tensor]:
            strength, edited = smallest_flip(edit_at, guide, request)
            return strength, edited.cpu()

        strengths, edits = zip(*self.each_batch(images, task, editing, 1, find_smallest), strict=True)
        return torch.cat(edits), torch.tensor(strengths)

    # ---------------------------------------------------------------- figures

    def judge_task(
        self, name: str, editing: EditConfig, task: Task, smallest: bool
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What one way of editing does for one attribute and direction, at the last of --strengths, with
        the figures at each; or at the smallest strength that flips. See ``facts``."""
        source, _ = self.sources(task)
        full = resolve_editing(editing, [task.name], self.guide is not None)
        more: dict[str, Any] = {"t_start": full.t_start, "margin": full.margin}
        if smallest:
            edited, strengths = self.smallest(source, task, editing)
            more |= summary({"strength": strengths})
        else:
            *others, edited = self.edit(source, task, editing, self.config.strengths)
            at_strength = zip(self.config.strengths[:-1], others, strict=True)
            more["at_strength"] = {
                f"{strength:g}": summary(self.figures(task, images, read(self.judge, images)))
                for strength, images in at_strength
            }
            if self.config.repeat:
                more |= summary(self.repeated(task, editing, edited))
        facts, figures = self.facts(task, edited, name)
        return facts | more, figures

    def facts(
        self, task: Task, edited: Tensor, name: str = ""
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a report says of edited sources, and the ``figures`` behind it. Writes a picture of them
        under the name of how they were edited; none without a name."""
        reading = read(self.judge, edited)
        figures = self.figures(task, edited, reading)
        if self.writes and name:
            self.picture(name, task, edited, figures["flip_rate"] + figures["cosine"])
        facts = {"task": str(task), "faces": len(edited)}
        return {**facts, **summary(figures), **self.frechet(task, reading[0])}, figures

    def figures(self, task: Task, edited: Tensor, reading: Reading) -> dict[str, Tensor]:
        """Every figure (N,) of edited sources, in which the judge reads ``reading``."""
        source, truth = self.sources(task)
        readings = self.reading(task), reading
        of_what = (task, self.mask(task), truth, self.model.config.one_hot, readings)
        figures = measure(self.judge, self.mean, source, edited, *of_what)
        if self.meter:
            along, logits = self.goes_along(task), (readings[0][1], reading[1])
            figures |= self.meter.figures(source, edited, task.column, along, logits)
        if self.recogniser:
            distance = (self.recogniser.describe(edited) - self.identities(task)).norm(dim=1)
            figures |= {"identity": distance, "same_person": (distance < SAME_PERSON).float()}
        return figures

    def repeated(self, task: Task, editing: EditConfig, edited: Tensor) -> dict[str, Tensor]:
        """Figures (N,) of edits that should change little:

        - psnr_back: PSNR of the source to the edit that is edited back;
        - seed_spread: standard deviation of an edit over seeds, in levels of 255, from two seeds;
        - needless: what a request changes where it is met already: how many attributes move, or, by one
          judge, how many it reads otherwise.
        """

        def edit(images: Tensor, task: Task, seed: int = 0) -> Tensor:
            return self.edit(images, task, editing, self.config.strengths[-1:], seed)[0]

        source, _ = self.sources(task)
        again = edit(source, task, seed=1)
        spread = (again.double() - edited.double()).square().mean((1, 2, 3)).div(2).sqrt()
        if self.model.config.one_hot:  # which class would be edited back?
            return {"seed_spread": spread}
        met, _ = self.sources(task.opposite())
        repeated = {"psnr_back": psnr(edit(edited, task.opposite()), source), "seed_spread": spread}
        if not len(met):
            return repeated
        needless = edit(met, task)
        before, after = self.reading(task.opposite())[1], read(self.judge, needless)[1]
        if self.meter:
            along = torch.zeros_like(before)
            figures = self.meter.figures(met, needless, task.column, along, (before, after))
            return repeated | {"needless": figures["others_moved"]}
        changed = others_changed(before, after, task.column)
        return repeated | {"needless": changed.sum(1).float()}

    @cache  # noqa: B019
    def reading(self, task: Task) -> Reading:
        """What the judge reads in the sources."""
        return read(self.judge, self.sources(task)[0])

    @cache  # noqa: B019
    def goes_along(self, task: Task) -> Tensor:
        """What goes with a task on each of its sources, as the judge reads them: (N, A)."""
        _, logits = self.reading(task)
        named = torch.zeros_like(logits)
        if self.model.config.one_hot:
            return named
        named[:, task.column] = task.direction
        correlation = self.model.attribute_prior.correlation().cpu()
        return going_along(named, logits.sign(), self.names, correlation)

    @cache  # noqa: B019
    def identities(self, task: Task) -> Tensor:
        """The recogniser's descriptions (N, 128) of the sources."""
        assert self.recogniser is not None
        return self.recogniser.describe(self.sources(task)[0])

    @cache  # noqa: B019
    def mask(self, task: Task) -> Tensor:
        """Where (H, W) an edit should change nothing; the same for every way of editing.

        These are the pixels that differ least, on average, between faces and their counterfactuals, or,
        without those, between faces that have the attribute and faces that lack it.
        """
        source, truth = self.sources(task)
        images = self.reference_set.images
        if truth is not None:
            differ = (source.float() - truth.float()).abs().mean((0, 3))
        else:
            column = self.reference_set.attributes[:, task.column].numpy()
            if not ((column == 1).any() and (column == -1).any()):  # nothing to compare
                return torch.ones(images.shape[1:3], dtype=torch.bool)
            means = [images[column == sign].mean(0) for sign in (1, -1)]
            differ = torch.from_numpy(np.abs(means[0] - means[1]).mean(2))
        return differ <= differ.flatten().quantile(1 - MASK_SHARE)

    def frechet(self, task: Task, features: Tensor) -> dict[str, float]:
        """Frechet distance of the edits' features (N, D) to those of training images that are as
        requested, and that of as many held-out images. Few images raise both alike."""
        train, held_out = self.train_features, self.reference["judge"]
        right = train[self.train.attributes[:, task.column] == task.direction]
        real = held_out[self.reference_set.attributes[:, task.column] == task.direction]
        number = min(len(features), len(real))
        if number < FEWEST_IN_A_SET or len(right) < FEWEST_IN_A_SET:
            return {}
        return {
            "frechet": frechet_distance(features[:number], right),
            "frechet_real": frechet_distance(real[:number], right),
        }

    def picture(self, name: str, task: Task, edited: Tensor, score: Tensor) -> None:
        """Write the best, the median and the worst edit by a score (N,): source, edit, where they
        differ, and the truth where it is known."""
        source, truth = self.sources(task)
        order = score.argsort(descending=True).tolist()
        ranks = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
        images, labels = [], []
        for rank, i in ranks.items():
            a, b = source[i].numpy(), edited[i].numpy()
            images += [a, b, heat_map(a, b)]
            labels += [rank, "edited", "difference"]
            if truth is not None:
                images.append(truth[i].numpy())
                labels.append("truth")
        safe = f"{name}_{task}".replace(", ", "_").replace(" ", "_")
        path = self.output_dir / "edits" / f"{in_file_name(safe)}.png"
        title = f"{'Add' if task.direction > 0 else 'Remove'} {readable(task.name)}: {name}"
        save_grid(path, np.stack(images), labels, len(images) // 3, title=title)

    def interpolation(self) -> dict[str, float]:
        """How even strips from one photograph to another are: the largest perceptual distance between
        two frames over the mean one. And whether they begin and end at the photographs."""
        number = min(PAIRS, len(self.reference_set) // 2)
        judge = self.judge

        @torch.no_grad()
        def evenness(pair: Tensor, _: range) -> tuple[float, float]:
            with self.autocast:
                rows = self.model.predict_attributes(pair, self.guide)
                strip = Editor(self.model).interpolate(pair, FRAMES, attributes=rows)
            inputs = judge.input(strip.to(self.model.device))
            distance = perceptual_distance(judge.stages(), inputs[:-1], inputs[1:]).cpu()
            ends = psnr(strip[[0, -1]].cpu(), pair)
            return float(distance.max() / distance.mean()), float(ends.min())

        images = self.reference_set.images[: 2 * number]
        unevenness, ends = zip(*in_batches(evenness, images, 2), strict=True)
        return {"largest_step_over_mean": sum(unevenness) / number, "worst_end_psnr": min(ends)}
