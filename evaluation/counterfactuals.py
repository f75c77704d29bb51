"""The protocol of counterfactual explanations, behind evaluate.py --counterfactual.

What must change in a photograph so that a classifier reads an attribute otherwise? DiME (Jeanneret et
al. 2022, arXiv:2203.15636), ACE (2023, arXiv:2303.09962) and those after them answer with edits, and
report the same figures. Here they are as ACE's published code computes them. The guide is explained. The
judge, which never steers, reads everything once more: it shows the edits that only the guide believes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from checkpoint import file_hash
from classifiers.guide import GuidanceClassifier
from config import EditConfig, in_file_name
from evaluation.edits import FEWEST_IN_A_SET, EditEvaluation, Task, best_median_worst
from evaluation.metrics import frechet_distance, mean_of
from evaluation.reading import in_batches, in_parallel
from evaluation.samples import SampleEvaluation
from evaluation.tables import counterfactuals_table
from figures.grids import caption, heat_map, readable, save_grid

if TYPE_CHECKING:
    from evaluate import EvaluateConfig

NO_EDIT = "no edit"
READERS = ("guide", "judge")  # who is explained, and who has no part in it
COUT_STEPS = 50  # in which an edit is copied into its photograph
SAME_PERSON = 0.5  # cosine of two faces above which FVA takes them for one person
PUBLISHED = (
    "at 128 pixels, of all validation photographs, by other classifiers, oracles and face networks; "
    "only flip rate and MNAC compare, and roughly"
)

# -------------------------------------------------------------------- figures


def cout(
    source: Tensor, edited: Tensor, log_odds: Callable[[Tensor], Tensor], steps: int = COUT_STEPS
) -> Tensor:
    """Counterfactual transition, COUT (N,), of images uint8 (N, H, W, 3) (Khorram & Li 2022,
    arXiv:2203.15064).

    Pixels are copied from the edit into the source, those that differ most first. COUT is the area under
    the probability of what is asked for, less the area under that of its opposite, over the share of
    copied pixels. It lies in [-1, 1]: near 1 if few pixels decide, near -1 if the edit never flips.

    Args:
        log_odds: of what is asked for, in images like the source: (N,).
    """
    change = (edited.float() - source.float()).abs().sum(3).flatten(1)  # (N, H W)
    order = change.argsort(dim=1, descending=True, stable=True)
    place = order.argsort(dim=1)  # 0 for the pixel that differs most
    advantage = []
    for step in range(steps + 1):
        copied = place < round(step / steps * place.shape[1])
        mixed = torch.where(copied.view(*source.shape[:3], 1), edited, source)
        advantage.append(torch.tanh(log_odds(mixed) / 2))  # p - (1 - p)
    return torch.trapezoid(torch.stack(advantage), dx=1 / steps, dim=0)


def correlations(values: Tensor, column: int) -> Tensor:
    """Pearson's correlation (A,) of each column of (N, A) with one of them. It is 0 for a column that
    never varies."""
    values = values.double() - values.double().mean(0)
    length = values.norm(dim=0)
    return (values[:, column] @ values / (length * length[column])).nan_to_num(0.0)


def correlation_difference(changes: Tensor, labels: Tensor, column: int) -> float:
    """Correlation difference, CD (DiME): the sum over attributes of how far the correlation
    of changes is from that of labels. It is 0 where edits change what goes together in the data, and
    the sum of all correlations in the data where they change one attribute and nothing else.

    Args:
        changes: (N, A) in {-1, 0, 1}, what an oracle sees appear or go.
        labels: (M, A), attributes of the training set.
        column: of the attribute that was asked for.
    """
    return float((correlations(changes, column) - correlations(labels, column)).abs().sum())


def split_frechet(originals: Tensor, edited: Tensor, kept: Tensor) -> float | None:
    """sFID (ACE): the Frechet distance between one half of the originals and the edits of the
    other half, the mean of both ways. So no edit is compared with its own original, which would make the
    distance too small. None where a half has too few.

    Args:
        originals, edited: features (N, D), row by row of the same photographs.
        kept: (N,), the edits that count, those that flip.
    """
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))
    halves = order.chunk(2)
    if len(halves) < 2 or min(int(kept[half].sum()) for half in halves) < FEWEST_IN_A_SET:
        return None
    ways = (halves, halves[::-1])
    return sum(frechet_distance(originals[a], edited[b][kept[b]]) for a, b in ways) / 2


# -------------------------------------------------------------------- the protocol


def check_explained(config: EvaluateConfig, guide: GuidanceClassifier) -> None:
    """Raise ValueError for an attribute of --counterfactual that the guide cannot be asked about."""
    known = list(guide.config.attribute_names)
    for name in config.counterfactual:
        if guide.config.one_hot:
            some = ", ".join(known[:3])
            raise ValueError(
                f"{config.guide} reads pictures of one class each ({some}): --counterfactual needs a "
                "model and a guide of attributes that are there or not"
            )
        if name not in known:
            raise ValueError(f"{config.guide} does not read {name}: name one of {known}")


@dataclass(frozen=True)
class Edited:
    """All photographs after one way of editing, for one attribute.

    Args:
        way: its name.
        attribute: its name.
        direction: (N,), 1 where the attribute was to be added, -1 where it was to be removed.
        images: uint8 (N, H, W, 3).
        features: (N, D) of these in every feature space.
    """

    way: str
    attribute: str
    direction: Tensor
    images: Tensor
    features: dict[str, Tensor]


class CounterfactualEvaluation:
    """Edits of the photographs of a held-out split, each against what the guide reads there.

    ``work`` holds the model, the judge and the data.

    Raises:
        ValueError: for an attribute that all training pictures have, or that all lack.
    """

    def __init__(self, work: SampleEvaluation, guide: GuidanceClassifier):
        self.work, self.config, self.guide = work, work.config, guide
        self.edits = EditEvaluation(work)
        for name in self.config.counterfactual:
            labels = work.train.attributes[:, work.names.index(name)]
            if not (labels > 0).any() or not (labels < 0).any():
                seen = "has" if (labels > 0).any() else "lacks"
                raise ValueError(
                    f"every training picture of {self.config.data_root} {seen} {name}: a counterfactual "
                    "needs labels of both kinds"
                )
        self.originals = torch.from_numpy(work.held_out.images[: work.held_out_number].copy())
        self.features = self.read(self.originals)

    def read(self, images: Tensor) -> dict[str, Tensor]:
        """The features (N, D) of images in every feature space."""
        found = self.work.spaces.items()
        return {space: torch.cat(in_batches(of, images, 50)) for space, of in found}

    def log_odds(self, by: str, attribute: str) -> Callable[[Tensor], Tensor]:
        """A function of images (B, H, W, 3) that gives the log odds (B,) by which the guide or the judge
        sees an attribute. 0 is the threshold of balanced accuracy for both."""
        guide, judge = self.guide, self.work.judge
        if by == "judge":
            column = self.work.names.index(attribute)
            return lambda images: judge.read_logits(judge.read_features(images))[:, column]
        column = guide.config.attribute_names.index(attribute)
        return lambda images: (guide.read_logits(images) - guide.prior)[:, column].cpu()

    # ---------------------------------------------------------------- edits

    def no_edit(self, attribute: str) -> Edited:
        """The originals as they are, and the opposite of what the guide reads in them."""
        read = torch.cat(in_batches(self.log_odds("guide", attribute), self.originals))
        direction = torch.where(read > 0, -1, 1)
        return Edited(NO_EDIT, attribute, direction, self.originals, self.features)

    def edit(self, before: Edited, way: str, editing: EditConfig) -> Edited:
        """The originals, each edited in its direction."""
        images, strengths = self.originals.clone(), self.config.strengths[-1:]
        for direction in (1, -1):
            rows = (before.direction == direction).nonzero()[:, 0]
            task = Task(before.attribute, self.work.names.index(before.attribute), direction)
            if len(rows):
                images[rows] = self.edits.edit(images[rows], task, editing, strengths)[-1]
        return Edited(way, before.attribute, before.direction, images, self.read(images))

    # ---------------------------------------------------------------- figures

    def row(self, edited: Edited, by: str, transitions: Tensor) -> dict[str, Any]:
        """Every figure of one way of editing, as the guide or the judge reads it.

        The judge's row is of the photographs that it reads as the guide does. Flip rate and COUT, the
        mean of ``transitions`` (N,), are over those. The rest is over the edits that flip, as in the
        papers. No edit flips nothing: there the rest is over all of them.
        """
        log_odds = self.log_odds(by, edited.attribute)
        pair = (self.originals, edited.images)
        before, after = (torch.cat(in_batches(log_odds, x)) * edited.direction for x in pair)
        asked = before <= 0
        flips = asked & (after > 0)
        kept = asked if edited.way == NO_EDIT else flips
        found: dict[str, Any] = {"edit": edited.way, "by": by, "photographs": int(asked.sum())}
        found |= mean_of("flip_rate", flips[asked])
        for space, features in edited.features.items():
            originals = self.features[space]
            if kept.sum() >= FEWEST_IN_A_SET:
                distance = frechet_distance(originals[asked], features[kept])
                found[f"frechet_{space}"] = max(0.0, distance)  # of no edit it is 0 up to rounding
            halves = split_frechet(originals[asked], features[asked], kept[asked])
            if halves is not None:
                found[f"split_frechet_{space}"] = halves
        if "face" in edited.features:
            alike = F.cosine_similarity(self.features["face"], edited.features["face"])[kept]
            found |= mean_of("fva", alike > SAME_PERSON) | mean_of("fs", alike)
        logits = (self.work.judge.read_logits(x["judge"]) for x in (self.features, edited.features))
        was, now = ((x > 0)[kept].float() for x in logits)
        found |= mean_of("mnac", (now - was).abs().sum(1))
        if kept.any():
            column = self.work.names.index(edited.attribute)
            labels = self.work.train.attributes
            found["cd"] = correlation_difference(now - was, labels, column)
        return found | mean_of("cout", transitions[asked])

    def cout(self, edited: Edited, by: str) -> Tensor:
        """``cout`` (N,) of every photograph, as the guide or the judge reads it."""
        log_odds, size = self.log_odds(by, edited.attribute), self.config.batch_size
        steps = 1 if edited.way == NO_EDIT else COUT_STEPS  # the same at every step

        def part(first: int) -> Tensor:
            batch = slice(first, first + size)
            direction, pair = edited.direction[batch], (self.originals[batch], edited.images[batch])
            return cout(*pair, lambda images: log_odds(images) * direction, steps)

        return torch.cat(in_parallel(part, range(0, len(edited.images), size)))

    def rows(self, edited: Edited) -> list[dict[str, Any]]:
        """The rows of one way of editing: as the guide reads it, then the judge. Writes a picture."""
        transitions = {by: self.cout(edited, by) for by in READERS}
        if self.work.writes and edited.way != NO_EDIT:
            self.picture(edited, transitions["judge"])
        return [self.row(edited, by, transitions[by]) for by in READERS]

    def picture(self, edited: Edited, score: Tensor) -> None:
        """Write the best, the median and the worst edit by a score (N,): source, edit, where they
        differ."""
        name, images, labels = edited.attribute, [], []
        for rank, i in best_median_worst(score).items():
            a, b = self.originals[i].numpy(), edited.images[i].numpy()
            images += [a, b, heat_map(a, b)]
            labels += [rank, caption({name: float(edited.direction[i] > 0)}), "difference"]
        safe = f"{name}_{edited.way}".replace(", ", "_").replace(" ", "_")
        path = self.work.output_dir / "counterfactuals" / f"{in_file_name(safe)}.png"
        save_grid(path, np.stack(images), labels, 3, title=f"{readable(name)}: {edited.way}")

    # ---------------------------------------------------------------- the report

    def protocol(self) -> dict[str, Any]:
        """What the figures depend on, and what they compare with."""
        shared = ("checkpoint", "image_size", "crop", "seed", "precision")
        split, number = self.config.attribute_split, len(self.originals)
        face = self.config.face_network
        return {
            **{name: self.work.protocol[name] for name in shared},
            "photographs": f"the first {number} of {len(self.work.held_out)} of the {split} split",
            "data": hashlib.sha256(self.originals.numpy().data).hexdigest()[:12],
            "asked for": "the opposite of what the guide reads, at its threshold of balanced accuracy",
            "explained": f"guide {self.work.protocol['guide']}",
            "read again, with MNAC and CD": f"judge {self.work.facts['hash']}",
            "face network": file_hash(face) if face else "none given, so no FVA and FS",
            "edits": {way: asdict(editing) for way, editing in self.edits.variants()},
            "strength": self.config.strengths[-1],
            "published figures": PUBLISHED,
        }

    def run(self) -> str:
        """Explain every attribute. counterfactuals.json and counterfactuals.md grow as it goes. Returns
        the latter."""
        ways, output_dir = [*self.edits.variants()], self.work.output_dir
        report: dict[str, Any] = {"protocol": self.protocol(), "counterfactuals": []}
        for name in self.config.counterfactual:
            before = self.no_edit(name)
            rows = self.rows(before)
            for way, editing in ways:
                rows += self.rows(self.edit(before, way, editing))
            report["counterfactuals"].append({"attribute": name, "rows": rows})
            if self.work.writes:
                output_dir.mkdir(parents=True, exist_ok=True)
                (output_dir / "counterfactuals.json").write_text(
                    json.dumps(report, indent=1), encoding="utf-8"
                )
                text = counterfactuals_table(report)
                (output_dir / "counterfactuals.md").write_text(text, encoding="utf-8")
        return counterfactuals_table(report)
