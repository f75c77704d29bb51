"""Reports as Markdown tables and plots."""

from __future__ import annotations

import math
from pathlib import Path

from evaluation.features import FEATURE_SPACES
from figures.plots import save_curves

EDIT_COLUMNS = {  # a figure of a task -> its heading and format
    "flip_rate": ("flip rate", "{:.2f}"),
    "flip_rate_truth": ("of the truth", "{:.2f}"),
    "attributes_changed": ("others changed", "{:.2f}"),
    "cosine": ("cosine", "{:.3f}"),
    "perceptual": ("perceptual", "{:.3f}"),
    "psnr_outside": ("PSNR outside", "{:.1f}"),
    "frechet": ("Frechet", "{:.1f}"),
    "frechet_real": ("of real", "{:.1f}"),
    "psnr_truth": ("PSNR to truth", "{:.1f}"),
    "psnr_no_edit": ("of no edit", "{:.1f}"),
    "median_gain": ("median gain", "{:+.1f}"),
    "attributes_exact": ("attributes exact", "{:.3f}"),
}

COUNTERFACTUAL_COLUMNS = {  # after the distances; a figure -> its heading and format
    "fva": ("FVA", "{:.3f}"),
    "fs": ("FS", "{:.3f}"),
    "mnac": ("MNAC", "{:.2f}"),
    "cd": ("CD", "{:.2f}"),
    "cout": ("COUT", "{:.3f}"),
}


def samples_table(report: dict) -> str:
    """The report of ``SampleEvaluation`` as Markdown."""
    lines = ["# Evaluation", "", *(f"- {k}: {v}" for k, v in report["protocol"].items()), ""]
    for space in [space for space in FEATURE_SPACES if space in report["real"]]:
        columns = ["sampler", "spacing", "steps", "cfg", "guide", "request", "Frechet"]
        columns += ["kernel x 1000", "precision", "recall", "density", "coverage", "request met"]
        columns += ["unasked, off by"]
        lines += [f"Features: {space}. Errors are half of a 95 % interval.", ""]
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for entry in [*report["settings"], report["real"]]:
            sampling, d, a = entry.get("sampling"), entry[space], entry["attributes"]
            name = [report["protocol"]["attribute_split"] + " images", "", "", "", "", ""]
            if sampling:
                keys = ("sampler", "spacing", "num_inference_steps", "cfg_scale", "guide_scale")
                name = [*(sampling[key] for key in keys), entry["request"]]
            cells = [
                *map(str, name),
                f"{d['frechet']:.2f} ± {d['frechet_error']:.2f}",
                f"{1000 * d['kernel']:.1f} ± {1000 * d['kernel_error']:.1f}",
                *(f"{d[k]:.3f}" for k in ("precision", "recall", "density", "coverage")),
                request_met(a),
                unasked(a),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += [LEGEND, ""]
    for key, name in (("autoencoder", "Semantic latent"), ("first_stage", "First stage")):
        if key in report:
            figures = ", ".join(f"{k} {v:.4g}" for k, v in report[key].items())
            lines += [f"{name}: {figures}", ""]
    return "\n".join(lines)


LEGEND = """*Request met*: for whole rows, the balanced accuracy; for three named attributes, their
balanced accuracy, with that of other images' requests in brackets; for classes, the share of images that
show the class asked for. *Unasked*: how far the share of images with an attribute that was left open
lies from its share in training rows that agree with the request, the mean over attributes."""


def request_met(attributes: dict) -> str:
    """The cell that says how well a request is met."""
    if "class_accuracy" in attributes:
        return f"{attributes['class_accuracy']:.4f} ± {attributes['class_accuracy_error']:.4f}"
    if "named_accuracy" in attributes:
        chance = attributes["named_accuracy_by_chance"]
        return f"{attributes['named_accuracy']:.3f} ({chance:.3f})"
    return f"{attributes['balanced_accuracy']:.3f}" if "balanced_accuracy" in attributes else ""


def unasked(attributes: dict) -> str:
    """The cell that says how far off the frequency of what nobody asked for is."""
    rates = attributes.get("unasked") or attributes.get("frequency") or {}
    off = [abs(seen - expected) for seen, expected in rates.values()]
    return f"{sum(off) / len(off):.3f}" if off else ""


def plot_sweeps(report: dict, path: Path) -> None:
    """Plot the Frechet distance, and how well requests are met, over what was varied: a guidance scale
    or the number of steps."""
    entries = report["settings"]
    swept = {
        "cfg_scale": "guidance scale",
        "guide_scale": "guide scale",
        "num_inference_steps": "network evaluations",
    }
    varied = [key for key in swept if len({entry["sampling"][key] for entry in entries}) > 1]
    for key in varied:
        curves: dict[str, list] = {}
        for entry in entries:
            s = entry["sampling"]
            others = [f"{swept[other]} {s[other]:g}" for other in varied if other != key]
            name = ", ".join([s["sampler"], *others, f"request {entry['request']}"])
            found = entry["attributes"]
            met = found.get("balanced_accuracy", found.get("named_accuracy", float("nan")))
            curves.setdefault(name, []).append((s[key], entry["judge"]["frechet"], met))
        save_curves(path / f"sweep_{key}.png", curves, swept[key], ["Fréchet distance", "request met"])


def edits_table(report: dict) -> str:
    """The report of ``EditEvaluation`` as Markdown: a table of means over attributes, and a table for
    each way of editing."""
    entries = report["edits"]
    shown = [key for key in EDIT_COLUMNS if any(key in task for e in entries for task in e["tasks"])]
    head = [EDIT_COLUMNS[key][0] for key in shown]

    def cell(key: str, tasks: list[dict]) -> str:
        values = [task[key] for task in tasks if key in task]
        errors = [task[f"{key}_error"] for task in tasks if f"{key}_error" in task]
        form = EDIT_COLUMNS[key][1].format
        text = form(sum(values) / len(values)) if values else ""
        if not errors or len(errors) < len(values):
            return text
        return f"{text} ± {form(math.hypot(*errors) / len(errors))}"

    def line(first: str, tasks: list[dict]) -> str:
        return f"| {first} | {' | '.join(cell(key, tasks) for key in shown)} |"

    def start(title: str, first: str) -> list[str]:
        return [f"## {title}", "", f"| {first} | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]

    protocol = [f"- {key}: {value}" for key, value in report["protocol"].items()]
    between = ", ".join(f"{k} {v:.3g}" for k, v in report["interpolation"].items())
    lines = ["# Edits", "", *protocol, "", f"Interpolation of photographs: {between}.", ""]
    lines += [*start("Means over attributes", "edit"), *(line(e["name"], e["tasks"]) for e in entries)]
    for entry in entries[1:]:
        lines += ["", *start(entry["name"], "task")]
        lines += [line(f"{task['task']} ({task['faces']})", [task]) for task in entry["tasks"]]
    return "\n".join(lines) + "\n"


def counterfactuals_table(report: dict) -> str:
    """The report of ``CounterfactualEvaluation`` as Markdown: a table for each attribute."""
    rows = [row for entry in report["counterfactuals"] for row in entry["rows"]]
    spaces = [space for space in FEATURE_SPACES if any(f"frechet_{space}" in row for row in rows)]
    columns = {"photographs": ("photographs", "{}"), "flip_rate": ("flip rate", "{:.3f}")}
    for space in spaces:
        name = "FID" if space == "inception" else f"Frechet, {space}"
        columns[f"frechet_{space}"] = name, "{:.2f}"
        columns[f"split_frechet_{space}"] = f"s{name}" if name == "FID" else "of halves", "{:.2f}"
    columns |= COUNTERFACTUAL_COLUMNS
    shown = {key: column for key, column in columns.items() if any(key in row for row in rows)}

    def cell(row: dict, key: str) -> str:
        text = shown[key][1].format(row[key]) if key in row else ""
        error = row.get(f"{key}_error")
        return text if error is None else f"{text} ± {shown[key][1].format(error)}"

    lines = ["# Counterfactuals", "", *(f"- {k}: {v}" for k, v in report["protocol"].items())]
    for entry in report["counterfactuals"]:
        lines += ["", f"## {entry['attribute']}", "", "| edit | read by | "]
        lines[-1] += " | ".join(heading for heading, _ in shown.values()) + " |"
        lines += ["|---" * (len(shown) + 2) + "|"]
        for row in entry["rows"]:
            cells = [row["edit"], row["by"], *(cell(row, key) for key in shown)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot_strengths(report: dict, path: Path) -> None:
    """Plot the flip rate over strength, the mean over attributes, for every way of editing."""
    curves = {}
    for entry in report["edits"][1:]:
        rates = [task["flip_rate_over_strength"] for task in entry["tasks"]]
        if not rates:
            continue
        mean = {key: sum(rate[key] for rate in rates) / len(rates) for key in rates[0]}
        curves[entry["name"]] = [(float(strength), flips) for strength, flips in mean.items()]
    save_curves(path / "flip_rate_over_strength.png", curves, "strength", ["flip rate"])
