"""What an edit is worth: whether it did what was requested, what else it changed, and how near it comes
to the truth, where that is known. Nothing here asks how an edit was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attributes import attr_dict
from classifiers.judge import Judge
from classifiers.likeness import perceptual_distance
from classifiers.probe import Probe
from evaluation.changes import BATCH, Pair
from evaluation.metrics import mean_of, psnr

MEDIANS = ("psnr_truth", "gain")  # figures in dB: a single good edit can move their means


@torch.no_grad()
def others_changed(before: Tensor, after: Tensor, column: Tensor | int) -> Tensor:
    """Which attributes, except that of ``column``, a judge reads otherwise in the edits than in the
    sources, by its logits (N, A) of both: bool (N, A)."""
    changed = (before > 0) != (after > 0)
    changed[torch.arange(len(before)), column] = False
    return changed


@torch.no_grad()
def edit_figures(
    judge: Judge | Probe,
    source: Tensor,
    edited: Tensor,
    column: Tensor | int,
    direction: Tensor | int,
    truth: Tensor | None = None,
    one_hot: bool = False,
    logits: Pair | None = None,
) -> dict[str, Tensor]:
    """The figures of each edit, (N,), on the CPU.

    - flip_rate: whether the judge sees what was requested;
    - attributes_changed: how many other attributes it sees changed;
    - perceptual: ``perceptual_distance`` of the edit to the source.

    With the truth also

    - flip_rate_truth: whether the judge sees what was requested in the truth;
    - psnr_truth, psnr_no_edit: PSNR of edit and source to the truth, in dB; gain: their difference;
    - perceptual_truth: perceptual distance of the edit to the truth;
    - attributes_exact: share of the attributes that the judge reads as in the truth;
    - inside: share of the squared change that lies where source and truth differ; NaN for no change.

    Args:
        source, edited, truth: images uint8 (N, S, S, 3), on the judge's device.
        column: of the attribute that was to change: one, or (N,).
        direction: 1 where it was to come, -1 where it was to go: one, or (N,).
        one_hot: attributes are classes. Then the class that was there must go, and does not count.
        logits: of the judge, on the CPU, if it has read source and edited already.
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return perceptual_distance(judge.stages(), judge.input(a), judge.input(b))

    rows = torch.arange(len(source))
    before, after = logits or (judge(source).cpu(), judge(edited).cpu())
    changed = others_changed(before, after, column)
    if one_hot:
        changed[rows, before.argmax(1)] = False
    figures = {
        "flip_rate": (after[rows, column].sign() == direction).float(),
        "attributes_changed": changed.sum(1).float(),
        "perceptual": distance(source, edited),
    }
    if truth is not None:
        right = judge(truth).cpu()
        reached, start = psnr(edited, truth), psnr(source, truth)
        change = (edited.double() - source.double()).square().sum(3)  # (N, S, S)
        inside = change * (truth != source).any(3)
        figures |= {
            "flip_rate_truth": (right[rows, column].sign() == direction).float(),
            "psnr_truth": reached,
            "psnr_no_edit": start,
            "gain": reached - start,
            "perceptual_truth": distance(edited, truth),
            "attributes_exact": ((after > 0) == (right > 0)).float().mean(1),
            "inside": inside.sum((1, 2)) / change.sum((1, 2)),
        }
    return {name: values.cpu() for name, values in figures.items()}


def summary(figures: dict[str, Tensor], rows: Any = slice(None)) -> dict[str, float]:
    """The mean of each figure (N,) with its error (95 %), and the median of MEDIANS, over these rows.
    NaN does not count. A figure without values is left out."""
    means: dict[str, float] = {}
    for name, values in figures.items():
        values = values[rows]
        values = values[~values.isnan()]
        means |= mean_of(name, values)
        if name in MEDIANS and len(values):
            means[f"median_{name}"] = float(values.quantile(0.5))
    return means


def rounded(values: dict[str, float]) -> dict[str, float | None]:
    """To six digits behind the point, in which machines agree; None for NaN, which JSON lacks."""
    return {name: None if np.isnan(value) else round(value, 6) for name, value in values.items()}


def score_edits(
    requests: Sequence[dict[str, Any]],
    sources: np.ndarray,
    truths: np.ndarray,
    edits: np.ndarray,
    judge: Judge | Probe,
) -> dict[str, Any]:
    """Under ``table`` the summary for each attribute, each direction and all edits; then that of no edit
    and of the truth itself. Under ``edits`` the figures of each edit.

    Args:
        requests: each with id, attribute and value.
        sources, truths, edits: images uint8 (N, S, S, 3).
    """
    column = torch.tensor([attr_dict[request["attribute"]] for request in requests])
    direction = torch.tensor([1 if request["value"] else -1 for request in requests])

    def measure(pictures: np.ndarray) -> dict[str, Tensor]:
        images = (torch.from_numpy(each) for each in (sources, pictures, truths))
        batches = zip(*(each.split(BATCH) for each in (*images, column, direction)), strict=True)
        parts = [edit_figures(judge, a, b, where, way, truth) for a, b, truth, where, way in batches]
        return {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]}

    figures = measure(edits)
    table = {name: summary(figures, column == number) for name, number in attr_dict.items()}
    table |= {"added": summary(figures, direction > 0), "removed": summary(figures, direction < 0)}
    table |= {"all": summary(figures)}
    table |= {"no edit": summary(measure(sources)), "the truth": summary(measure(truths))}
    entries = []
    for row, request in enumerate(requests):
        named = {name: request[name] for name in ("id", "attribute", "value")}
        entries.append(named | rounded({name: float(each[row]) for name, each in figures.items()}))
    return {"table": {name: rounded(row) for name, row in table.items()}, "edits": entries}
