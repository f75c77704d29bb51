"""Plots in one style: curves, bars, matrices and scatter plots, each written to a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure

from figures.fonts import make_legible
from figures.grids import new_file

# Told apart with any kind of colour blindness (Okabe and Ito 2008); lines also in grey, by their dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
STYLE = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.prop_cycle": cycler(color=COLOURS, linestyle=["-", "--", "-.", ":"] * 2),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@contextmanager
def plot_panels(
    path: str | Path, width: float, height: float, columns: int = 1, title: str = ""
) -> Iterator[list]:
    """The axes of ``columns`` plots side by side. The figure is ``width`` and ``height`` inches large,
    and is written when the context ends. What the last plot shows is named below all."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        figure.suptitle(title, fontsize=12, wrap=True)
        plots = list(figure.subplots(1, columns, squeeze=False)[0])
        yield plots
        handles, names = plots[-1].get_legend_handles_labels()
        if names:
            room = int(11 * width / (max(map(len, names)) + 6))  # some eleven letters an inch
            room = max(1, min(room, len(names)))
            figure.legend(handles, names, loc="outside lower center", ncols=room)
        make_legible(figure)
        figure.savefig(new_file(path), dpi=150)


def save_curves(
    path: str | Path,
    curves: Mapping[str, Sequence[tuple[float, ...]]],
    x_label: str,
    y_labels: Sequence[str],
    title: str = "",
) -> Path:
    """Curves over a common x axis, in a plot for each of ``y_labels``, side by side.

    Args:
        curves: name -> points (x, y of the first plot, y of the second, ...).
    """
    with plot_panels(path, 5 * len(y_labels), 3.6, len(y_labels), title) as plots:
        for column, (axes, y_label) in enumerate(zip(plots, y_labels, strict=True), start=1):
            for name, points in curves.items():
                points = sorted(points)
                marker = "o" if len(points) < 30 else None
                axes.plot([p[0] for p in points], [p[column] for p in points], marker=marker, label=name)
            axes.set(xlabel=x_label, ylabel=y_label)
    return Path(path)


def save_bars(
    path: str | Path, shares: dict[str, np.ndarray], names: Sequence[str], x_label: str, title: str
) -> Path:
    """Horizontal bars for each of N names: one for every series.

    Args:
        shares: name of a series -> its values (N,) in [0, 1].
    """
    height = 0.8 / len(shares)
    columns = 2 if len(names) > 20 else 1
    parts = np.array_split(np.arange(len(names)), columns)[::-1]  # the last names come first
    tallest = max(map(len, parts))
    with plot_panels(path, 6.5 * columns, 0.28 * tallest + 1.4, columns, title) as plots:
        for axes, part in zip(plots, parts, strict=True):
            for i, (label, values) in enumerate(shares.items()):
                y = np.arange(len(part)) + (0.5 * (len(shares) - 1) - i) * height
                axes.barh(y, values[part], height, label=label)
            axes.set(xlabel=x_label, xlim=(0, 1), ylim=(-0.6, tallest - 0.4))
            axes.set_yticks(range(len(part)), [names[i] for i in part])
            axes.grid(visible=False, axis="y")
    return Path(path)


def save_matrix(path: str | Path, matrix: np.ndarray, names: Sequence[str], title: str) -> Path:
    """A matrix (N, N) of values from -1, blue, to 1, red."""
    side, size = max(4.0, 0.22 * len(names)), 8 if len(names) > 10 else 11
    with plot_panels(path, side + 1, side, title=title) as (axes,):
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.grid(visible=False)
        axes.figure.colorbar(image, label="correlation", shrink=0.7)
    return Path(path)


def save_scatter(
    path: str | Path,
    points: Mapping[tuple[str, ...], np.ndarray],
    has: np.ndarray,
    name: str,
    title: str,
) -> Path:
    """Points in one colour where they have an attribute, and in another where they do not.

    Args:
        points: (title, x label, y label) of a plot -> its points (N, 2).
        has: bool (N,).
        name: of the attribute.
    """
    with plot_panels(path, 4.6 * len(points), 4.4, len(points), title) as plots:
        for axes, ((plot, x_label, y_label), xy) in zip(plots, points.items(), strict=True):
            for value, label, marker in ((False, f"not {name}", "o"), (True, name, "^")):
                axes.scatter(*xy[has == value].T, s=14, alpha=0.7, label=label, marker=marker)
            axes.set(title=plot, xlabel=x_label or f"{plot} 1", ylabel=y_label or f"{plot} 2")
    return Path(path)
