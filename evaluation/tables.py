"""Reports: the columns of every table, and the writing of a report as JSON, Markdown and plots."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.integrate import trapezoid

from figures.plots import save_curves


class Column(NamedTuple):
    """A figure's heading, its format, and by what it is multiplied."""

    heading: str
    form: str
    scale: float = 1.0


COLUMNS: dict[str, Column] = {  # of every table, in this order: those that a row has are written
    "strength": Column("strength", ".2f"),
    "flip_rate": Column("flip rate", ".3f"),
    "flip_rate_truth": Column("of the truth", ".3f"),
    "attributes_changed": Column("others changed", ".2f"),
    "others_moved": Column("others moved", ".2f"),
    "others_turned": Column("of these turned", ".2f"),
    "along_moved": Column("go with it", ".2f"),
    "others_on_the_way": Column("others on the way", ".2f"),
    "identity": Column("identity", ".3f"),
    "same_person": Column("same person", ".3f"),
    "psnr_back": Column("dB there and back", ".1f"),
    "seed_spread": Column("levels between seeds", ".2f"),
    "needless": Column("needless", ".2f"),
    "cosine": Column("cosine", ".3f"),
    "perceptual": Column("perceptual", ".3f"),
    "psnr_outside": Column("PSNR outside", ".1f"),
    "frechet": Column("Frechet", ".2f"),
    "frechet_real": Column("of real", ".2f"),
    "median_psnr_truth": Column("median dB to truth", ".2f"),
    "psnr_truth": Column("mean dB to truth", ".2f"),
    "psnr_no_edit": Column("of no edit", ".2f"),
    "median_gain": Column("median gain", "+.2f"),
    "gain": Column("mean gain", "+.2f"),
    "perceptual_truth": Column("perceptual to truth", ".4f"),
    "inside": Column("change inside", ".3f"),
    "attributes_exact": Column("attributes exact", ".3f"),
    "kernel": Column("kernel x 1000", ".1f", 1000),
    "precision": Column("precision", ".3f"),
    "recall": Column("recall", ".3f"),
    "density": Column("density", ".3f"),
    "coverage": Column("coverage", ".3f"),
    "request_met": Column("request met", ".3f"),
    "by_chance": Column("by chance", ".3f"),
    "unasked": Column("unasked, off by", ".3f"),
}
Row = Mapping[str, Any]  # figure -> value; an error (95 %) under figure_error

LEGEND = """*Request met*: for whole rows, the balanced accuracy; for three named attributes, their
balanced accuracy, and beside it that of other images' requests; for classes, the share of images that
show the class that was requested. *Unasked*: how far the share of images with an attribute that was left
open lies from its share in training rows that agree with the request, the mean over attributes."""


def without_nan(value: Any) -> Any:
    """A report with None in the place of what is not a number, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cell(row: Row, key: str) -> str:
    """A figure of a row, with its error where there is one; nothing where the row lacks it."""
    if row.get(key) is None:
        return ""
    _, form, scale = COLUMNS[key]
    error = row.get(f"{key}_error")
    text = f"{scale * row[key]:{form}}"
    return text if error is None else f"{text} ± {scale * error:{form.lstrip('+')}}"


def table(heads: Sequence[str], rows: Sequence[tuple[Sequence[str], Row]]) -> list[str]:
    """Lines of a Markdown table.

    Args:
        heads: of the first columns, which are text.
        rows: the texts of these columns, and the figures behind them.
    """
    keys = [key for key in COLUMNS if any(row.get(key) is not None for _, row in rows)]
    headings = [*heads, *(COLUMNS[key].heading for key in keys)]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for texts, row in rows:
        lines.append(f"| {' | '.join([*texts, *(cell(row, key) for key in keys)])} |")
    return lines


def write_report(
    folder: Path | None, name: str, report: dict[str, Any], as_text: Callable[[dict[str, Any]], str]
) -> str:
    """Write a report as name.json and its text as name.md; nothing without a folder. Returns the
    text."""
    report = without_nan(report)
    text = as_text(report)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        values = json.dumps(report, indent=1, allow_nan=False)
        (folder / f"{name}.json").write_text(values, encoding="utf-8")
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return text


def protocol_lines(title: str, report: dict[str, Any]) -> list[str]:
    return [f"# {title}", "", *(f"- {key}: {value}" for key, value in report["protocol"].items()), ""]


# -------------------------------------------------------------------- samples


def control_row(attributes: dict[str, Any]) -> dict[str, float | None]:
    """The figures that say how well requests are met, and how far off the rest is."""
    accuracies = ("class_accuracy", "named_accuracy", "balanced_accuracy")
    met = next((key for key in accuracies if key in attributes), "")
    rates = attributes.get("unasked") or attributes.get("frequency") or {}
    off = [abs(seen - expected) for seen, expected in rates.values()]
    return {
        "request_met": attributes.get(met),
        "request_met_error": attributes.get(f"{met}_error"),
        "by_chance": attributes.get("named_accuracy_by_chance"),
        "unasked": sum(off) / len(off) if off else None,
    }


def samples_table(report: dict[str, Any]) -> str:
    """The report of ``SampleEvaluation`` as Markdown: a table for each feature space."""
    lines = protocol_lines("Evaluation", report)
    keys = ("sampler", "spacing", "num_inference_steps", "cfg_scale", "guide_scale")
    heads = ["sampler", "spacing", "steps", "cfg", "guide", "request"]
    real, label = report["real"], f"{report['protocol']['attribute_split']} images"
    entries = [*report["settings"], {"sampling": {"sampler": label}, "request": "", **real}]
    for space in [key for key, value in real.items() if isinstance(value, dict) and "frechet" in value]:
        rows = []
        for entry in entries:
            texts = [str(entry["sampling"].get(key, "")) for key in keys]
            row = entry[space] | control_row(entry["attributes"])
            rows.append(([*texts, entry["request"]], row))
        lines += [f"Features: {space}. Errors are half of a 95 % interval.", "", *table(heads, rows), ""]
    lines += [LEGEND, ""]
    for key, name in (("autoencoder", "Semantic latent"), ("first_stage", "First stage")):
        if key in report:
            figures = ", ".join(f"{k} {v:.4g}" for k, v in report[key].items() if v is not None)
            lines += [f"{name}: {figures}", ""]
    return "\n".join(lines)


def plot_sweeps(report: dict[str, Any], folder: Path) -> None:
    """Plot the Frechet distance, and how well requests are met, over what was varied: a guidance scale
    or the number of steps."""
    entries = report["settings"]
    labels = {
        "cfg_scale": "guidance scale",
        "guide_scale": "guide scale",
        "num_inference_steps": "network evaluations",
    }
    varied = [key for key in labels if len({entry["sampling"][key] for entry in entries}) > 1]
    for key in varied:
        curves: dict[str, list] = {}
        for entry in entries:
            sampling = entry["sampling"]
            others = [f"{labels[other]} {sampling[other]:g}" for other in varied if other != key]
            name = ", ".join([sampling["sampler"], *others, f"request {entry['request']}"])
            met = control_row(entry["attributes"])["request_met"]
            met = math.nan if met is None else met
            curves.setdefault(name, []).append((sampling[key], entry["judge"]["frechet"], met))
        path = folder / f"sweep_{key}.png"
        save_curves(path, curves, labels[key], ["Fréchet distance", "request met"])


# -------------------------------------------------------------------- edits


def mean_of_tasks(tasks: Sequence[Row]) -> dict[str, Any]:
    """The mean of each figure over tasks, with its error where all of them have one."""
    row = {}
    for key in COLUMNS:
        values = [task[key] for task in tasks if task.get(key) is not None]
        errors = [task[f"{key}_error"] for task in tasks if task.get(f"{key}_error") is not None]
        if values:
            row[key] = sum(values) / len(values)
            if len(errors) == len(values):
                row[f"{key}_error"] = math.hypot(*errors) / len(errors)
    return row


def strength_curve(entry: dict[str, Any], no_edit: dict[str, float]) -> list[tuple[float, Row]]:
    """The means over tasks at each strength of a way of editing, from no edit to the last strength."""
    tasks = entry["tasks"]
    points: list[tuple[float, Row]] = [(0.0, no_edit), (entry["strength"], mean_of_tasks(tasks))]
    for strength in tasks[0]["at_strength"]:
        row = mean_of_tasks([task["at_strength"][strength] for task in tasks])
        points.append((float(strength), row))
    return sorted(points, key=lambda point: point[0])


def others_key(row: Row) -> str:
    """Under which figure a row says how many others changed: net of noise, where that was measured."""
    return "others_moved" if "others_moved" in row else "attributes_changed"


def on_the_way(points: Sequence[tuple[float, Row]]) -> float | None:
    """How many others an edit changes on its way: the mean over the flips that it reaches, which is the
    area under the curve of others over flips, divided by its width. None for an edit without flips."""
    key = others_key(points[0][1])
    flips = [row["flip_rate"] for _, row in points]
    width = flips[-1] - flips[0]
    return float(trapezoid([row[key] for _, row in points], flips)) / width if width > 0 else None


def edits_table(report: dict[str, Any]) -> str:
    """The report of ``EditEvaluation`` as Markdown: a table of means over attributes, a table of paired
    differences, and a table for each way of editing."""
    no_edit, *entries = report["edits"]
    between = ", ".join(f"{k} {v:.3g}" for k, v in report["interpolation"].items())
    lines = [*protocol_lines("Edits", report), f"Interpolation of photographs: {between}.", ""]
    nothing = mean_of_tasks(no_edit["tasks"])
    means = [([no_edit["name"]], nothing)]
    for entry in entries:
        row = mean_of_tasks(entry["tasks"])
        if entry["strength"] is not None:
            row["others_on_the_way"] = on_the_way(strength_curve(entry, nothing))
        means.append(([entry["name"]], row))
    lines += ["## Means over attributes", "", *table(["edit"], means)]
    differences = [([entry["name"]], entry["less_the_first"]) for entry in entries[1:]]
    if differences:
        title = f"## Less {entries[0]['name']}, paired by photograph"
        lines += ["", title, "", *table(["edit"], differences)]
    for entry in entries:
        rows = [([f"{task['task']} ({task['faces']})"], task) for task in entry["tasks"]]
        lines += ["", f"## {entry['name']}", "", *table(["task"], rows)]
    return "\n".join(lines) + "\n"


def plot_strengths(report: dict[str, Any], folder: Path) -> None:
    """Plot the flip rate over strength, and over flips what else changes, for every way of editing. The
    points are means over attributes."""
    no_edit, *entries = report["edits"]
    nothing = mean_of_tasks(no_edit["tasks"])
    others = others_key(nothing)
    flips: dict[str, list] = {}
    costs: dict[str, list] = {}
    for entry in entries:
        if entry["strength"] is None:  # each photograph has its own
            continue
        points = strength_curve(entry, nothing)
        flips[entry["name"]] = [(strength, row["flip_rate"]) for strength, row in points]
        costs[entry["name"]] = [(row["flip_rate"], row[others], row["cosine"]) for _, row in points]
    save_curves(folder / "flip_rate_over_strength.png", flips, "strength", ["flip rate"])
    heading = COLUMNS[others].heading
    save_curves(folder / "others_over_flips.png", costs, "flip rate", [heading, "cosine"])
