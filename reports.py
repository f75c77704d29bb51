"""Reports as Markdown tables and plots."""

from __future__ import annotations

from pathlib import Path

EDIT_COLUMNS = {  # of a task's figures: heading and format
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
    "psnr_rebuilt": ("of the truth rebuilt", "{:.1f}"),
    "median_gain": ("median gain", "{:+.1f}"),
    "attributes_exact": ("attributes exact", "{:.3f}"),
}


def evaluation_table(report: dict) -> str:
    """The report as Markdown."""
    lines = ["# Evaluation", "", *(f"- {k}: {v}" for k, v in report["protocol"].items()), ""]
    for space in [s for s in ("classifier", "inception") if s in report["real"]]:
        columns = ["sampler", "spacing", "steps", "cfg", "classifier", "Frechet", "kernel x 1000"]
        columns += ["precision", "recall"]
        classes = "class_accuracy" in report["real"]["attributes"]
        columns += ["density", "coverage", "attributes"]
        columns += ["class asked for" if classes else "three named (by chance)"]
        lines += [f"Features: {space}. Errors are half of a 95 % interval.", ""]
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for entry in [*report["settings"], report["real"]]:
            sampling, d, a = entry.get("sampling"), entry[space], entry["attributes"]
            name = [report["protocol"]["attribute_split"] + " images", "", "", "", ""]
            if sampling:
                keys = ("sampler", "spacing", "num_inference_steps", "cfg_scale", "classifier_scale")
                name = [sampling[key] for key in keys]
            cells = [
                *map(str, name),
                f"{d['frechet']:.2f} ± {d['frechet_error']:.2f}",
                f"{1000 * d['kernel']:.1f} ± {1000 * d['kernel_error']:.1f}",
                *(f"{d[k]:.3f}" for k in ("precision", "recall", "density", "coverage")),
                f"{a['balanced_accuracy']:.3f}",
            ]
            if classes:
                cells.append(f"{a['class_accuracy']:.4f} ± {a['class_accuracy_error']:.4f}")
            elif sampling:
                cells.append(f"{a['three_named']:.3f} ({a['three_named_by_chance']:.3f})")
            else:
                cells.append("")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    for key, name in (("autoencoder", "Semantic latent"), ("first_stage", "First stage")):
        if key in report:
            figures = ", ".join(f"{k} {v:.4g}" for k, v in report[key].items())
            lines += [f"{name}: {figures}", ""]
    return "\n".join(lines)


def plot(report: dict, path: Path) -> None:
    """Frechet distance and attribute accuracy over what was varied: guidance scale, or steps."""
    from pictures import save_curves

    entries = report["settings"]
    swept = {
        "cfg_scale": "cfg_scale",
        "classifier_scale": "classifier_scale",
        "num_inference_steps": "network evaluations",
    }
    for key, label in swept.items():
        if len({entry["sampling"][key] for entry in entries}) < 2:
            continue
        curves: dict[str, list] = {}
        for entry in entries:
            s = entry["sampling"]
            point = (s[key], entry["classifier"]["frechet"], entry["attributes"]["balanced_accuracy"])
            others = [f"{other} {s[other]:g}" for other in swept if other != key]
            curves.setdefault(", ".join([s["sampler"], *others]), []).append(point)
        save_curves(path / f"sweep_{key}.png", curves, label, ["Frechet distance", "attribute accuracy"])


def edits_table(report: dict) -> str:
    """The report as Markdown: a table of means over attributes, and one for each way of editing."""
    entries = report["edits"]
    shown = [key for key in EDIT_COLUMNS if any(key in task for e in entries for task in e["tasks"])]
    head = [EDIT_COLUMNS[key][0] for key in shown]

    def line(first: str, tasks: list[dict]) -> str:
        cells = []
        for key in shown:
            values = [task[key] for task in tasks if key in task]
            cells.append(EDIT_COLUMNS[key][1].format(sum(values) / len(values)) if values else "")
        return f"| {first} | {' | '.join(cells)} |"

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


def plot_strengths(report: dict, path: Path) -> None:
    """Flip rate over strength, the mean over attributes, of every way of editing."""
    from pictures import save_curves

    curves = {}
    for entry in report["edits"][1:]:
        rates = [task["flip_rate_over_strength"] for task in entry["tasks"]]
        if not rates:
            continue
        mean = {key: sum(rate[key] for rate in rates) / len(rates) for key in rates[0]}
        curves[entry["name"]] = [(float(strength), flips) for strength, flips in mean.items()]
    save_curves(path / "flip_rate_over_strength.png", curves, "strength", ["flip rate"])
