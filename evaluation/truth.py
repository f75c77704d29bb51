"""What an edit is worth where its truth is known: the same face, drawn with the attribute turned around.

Nothing here asks how an edit was made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from attributes import attr_dict
from classifiers.likeness import perceptual_distance
from evaluation.metrics import psnr

BATCH = 100  # images that the judge reads at once

# heading -> a figure of each edit, how those of several edits become one, and the format
COLUMNS: dict[str, tuple[str, Callable[[np.ndarray], float], str]] = {
    "flip rate": ("flip", np.mean, "{:.3f}"),
    "dB to truth": ("psnr", np.median, "{:.2f}"),
    "mean dB": ("psnr", np.mean, "{:.2f}"),
    "gain": ("gain", np.median, "{:+.2f}"),
    "mean gain": ("gain", np.mean, "{:+.2f}"),
    "perceptual": ("perceptual", np.mean, "{:.4f}"),
    "others changed": ("others", np.mean, "{:.2f}"),
    "change inside": ("inside", np.mean, "{:.3f}"),
}


class Reader(Protocol):
    """What reads attributes: a ``Probe`` or a ``Judge``."""

    def input(self, images: Tensor) -> Tensor: ...

    def stages(self) -> list[nn.Module]: ...

    def __call__(self, images: Tensor) -> Tensor: ...


@torch.no_grad()
def edit_figures(
    source: Tensor, truth: Tensor, edited: Tensor, column: Tensor, value: Tensor, judge: Reader
) -> dict[str, np.ndarray]:
    """The figures of each edit, float (N,).

    - flip: whether the judge sees what was asked for;
    - psnr: of the edit to the truth, in dB; gain: by how much that is more than of no edit;
    - perceptual: ``perceptual_distance`` of the edit to the truth;
    - others: how many other attributes the judge sees changed;
    - inside: share of the squared change that lies where source and truth differ; NaN for no change.

    Args:
        source, truth, edited: images uint8 (N, S, S, 3).
        column: of the attribute that was to change, in the judge's order (N,).
        value: 1 where it was to be there, 0 where not (N,).
    """
    before, after = judge(source) > 0, judge(edited) > 0
    rows, others = torch.arange(len(source)), before != after
    others[rows, column] = False
    reached = psnr(edited, truth)
    change = (edited.double() - source.double()).square().sum(3)  # (N, S, S)
    inside = change * (truth != source).any(3)
    found = {
        "flip": after[rows, column] == value.bool(),
        "psnr": reached,
        "gain": reached - psnr(source, truth),
        "perceptual": perceptual_distance(judge.stages(), judge.input(edited), judge.input(truth)),
        "others": others.sum(1),
        "inside": inside.sum((1, 2)) / change.sum((1, 2)),
    }
    return {name: values.double().numpy() for name, values in found.items()}


def rounded(value: float) -> float | None:
    """To six digits behind the point, in which machines agree; None for NaN, which JSON lacks."""
    return None if np.isnan(value) else round(value, 6)


def summary(figures: dict[str, np.ndarray], of: np.ndarray | slice = slice(None)) -> dict:
    """The columns of the table, over the edits ``of`` these rows. None for what no edit has."""
    row = {}
    for heading, (name, statistic, _) in COLUMNS.items():
        values = figures[name][of]
        values = values[~np.isnan(values)]
        row[heading] = rounded(float(statistic(values))) if len(values) else None
    return row


def score_edits(
    requests: Sequence[dict[str, Any]],
    sources: np.ndarray,
    truths: np.ndarray,
    edits: np.ndarray,
    judge: Reader,
) -> dict[str, Any]:
    """Under ``table`` the summary for each attribute, each direction and all edits; then that of no edit
    and of the truth itself. Under ``edits`` the figures of each edit.

    Args:
        requests: each with id, attribute and value.
        sources, truths, edits: images uint8 (N, S, S, 3).
    """
    column = np.array([attr_dict[request["attribute"]] for request in requests])
    value = np.array([request["value"] for request in requests])

    def figures(pictures: np.ndarray) -> dict[str, np.ndarray]:
        given = [torch.from_numpy(x).split(BATCH) for x in (sources, truths, pictures, column, value)]
        parts = [edit_figures(*batch, judge) for batch in zip(*given, strict=True)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    found = figures(edits)
    table = {name: summary(found, column == number) for name, number in attr_dict.items()}
    table |= {"added": summary(found, value == 1), "removed": summary(found, value == 0)}
    table |= {"all": summary(found)}
    table |= {"no edit": summary(figures(sources)), "the truth": summary(figures(truths))}
    each = [{name: request[name] for name in ("id", "attribute", "value")} for request in requests]
    for row, entry in enumerate(each):
        entry |= {name: rounded(float(values[row])) for name, values in found.items()}
    return {"table": table, "edits": each}


def truth_table(rows: dict[str, dict]) -> str:
    """Summaries under their names, as Markdown."""
    lines = [f"| edits | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in rows.items():
        cells = ["" if row[h] is None else COLUMNS[h][2].format(row[h]) for h in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
