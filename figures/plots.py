"""Plots in one style: curves, bars, matrices and scatter plots, each written to a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from figures.fonts import make_legible

STYLE = {
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@contextmanager
def _figure(
    path: str | Path, width: float, height: float, columns: int = 1, title: str = ""
) -> Iterator[list]:
    """The axes of ``columns`` plots side by side. The figure is ``width`` and ``height`` inches large,
    and is written when the context ends."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        figure.suptitle(title, fontsize=10)
        yield list(figure.subplots(1, columns, squeeze=False)[0])
        make_legible(figure)
        figure.savefig(path, dpi=130)


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
    with _figure(path, 5 * len(y_labels), 3.6, len(y_labels), title) as plots:
        for column, (axes, y_label) in enumerate(zip(plots, y_labels, strict=True), start=1):
            for name, points in curves.items():
                points = sorted(points)
                marker = "o" if len(points) < 30 else None
                axes.plot([p[0] for p in points], [p[column] for p in points], marker=marker, label=name)
            axes.set(xlabel=x_label, ylabel=y_label)
        axes.legend(fontsize=8)
    return Path(path)


def save_bars(
    path: str | Path, shares: dict[str, np.ndarray], names: Sequence[str], x_label: str, title: str
) -> Path:
    """Horizontal bars for each of N names: one for every series.

    Args:
        shares: name of a series -> its values (N,) in [0, 1].
    """
    height = 0.8 / len(shares)
    with _figure(path, 7, 0.28 * len(names) + 1, title=title) as (axes,):
        for i, (label, values) in enumerate(shares.items()):
            axes.barh(
                np.arange(len(names)) + (i - 0.5 * (len(shares) - 1)) * height,
                values,
                height,
                label=label,
            )
        axes.set(xlabel=x_label, ylabel="attribute", ylim=(-0.6, len(names) - 0.4))
        axes.set_yticks(range(len(names)), names)
        axes.axvline(0.5, color="grey", linewidth=0.8)
        axes.legend(loc="lower right")
    return Path(path)


def save_matrix(path: str | Path, matrix: np.ndarray, names: Sequence[str], title: str) -> Path:
    """A matrix (N, N) of values from -1, blue, to 1, red."""
    with _figure(path, 9, 8.4, title=title) as (axes,):
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set(xlabel="attribute", ylabel="attribute")
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
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
    with _figure(path, 4.6 * len(points), 4.4, len(points), title) as plots:
        for axes, ((plot, x_label, y_label), xy) in zip(plots, points.items(), strict=True):
            for value, label in ((False, f"not {name}"), (True, name)):
                axes.scatter(*xy[has == value].T, s=6, alpha=0.6, label=label)
            axes.set(title=plot, xlabel=x_label or f"{plot} 1", ylabel=y_label or f"{plot} 2")
        axes.legend(markerscale=2)
    return Path(path)
