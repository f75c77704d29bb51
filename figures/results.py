"""What the studio made, as files: labelled grids with titles, strips, films, single pictures.

Each function writes into a folder and returns what a manifest says of it: the files, and the result's
facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from config import EditConfig, SamplingConfig
from figures.grids import caption, heat_map, save_gif, save_grid, save_image
from image_data.photograph import Photograph
from studio import Result

Made = dict[str, Any]


def guidance_title(scales: SamplingConfig | EditConfig, has_guide: bool) -> str:
    """What guides the faces, for a title."""
    by_guide = f", guide at {scales.guide_scale:g}" if scales.guide_scale and has_guide else ""
    return f"guidance {scales.cfg_scale:g}{by_guide}"


def save_each(images: np.ndarray, folder: Path) -> list[Path]:
    """Write every image (N, H, W, 3) to a file of its own."""
    return [save_image(image, folder / f"{i:03d}.png") for i, image in enumerate(images)]


def save_whole(source: Photograph, edited: np.ndarray, path: Path) -> Path:
    """Write the whole photograph with an edit in it."""
    source.paste(edited).save(path)
    return path


def save_new_faces(out: Path, result: Result, title: str) -> Made:
    """``samples.png``, a labelled grid, and every image on its own."""
    requests = result.facts["attributes"]
    labels = [caption(request) for request in requests] if any(requests) else [""] * len(requests)
    single = save_each(result.images, out / "samples")
    grid = save_grid(out / "samples.png", result.images, labels, result.columns, title=title)
    return {"grid": grid, "images": single, **result.facts}


def save_strip(path: Path, result: Result, title: str) -> Made:
    """Frames as a labelled strip and as a GIF; ``path`` has no suffix."""
    images = result.images
    labels = [f"{i / (len(images) - 1):.2f}" for i in range(len(images))]
    strip = save_grid(path.with_suffix(".png"), images, labels, len(images), title=title)
    return {"strip": strip, "gif": save_gif(path.with_suffix(".gif"), images), **result.facts}


def save_interpolation(out: Path, result: Result) -> Made:
    title = f"From {caption(result.facts['from'])} to {caption(result.facts['to'])}"
    return save_strip(out / "interpolation", result, title)


def save_edits(
    out: Path, source: Photograph, result: Result, strengths: Sequence[float], full: float, guidance: str
) -> Made:
    """``edit.png``, the photograph and its edits at strength ``full``; each edit on its own; and
    ``edit_strength.png``, a row for each edit, over ``strengths``."""
    labels = [caption(request) for request in result.facts["attributes"]]
    edited = result.images[:, strengths.index(full)]
    row = save_grid(
        out / "edit.png",
        np.concatenate([source.square[None], edited]),
        ["source", *labels],
        result.columns,
        title=f"Edited at strength {full:g}: {guidance}",
    )
    save_grid(
        out / "edit_strength.png",
        result.images.reshape(-1, *source.square.shape),
        [f"{label} at {strength:g}" for label in labels for strength in strengths],
        len(strengths),
        title=f"Edited: {guidance}",
    )
    return {"row": row, "images": save_each(edited, out / "edits"), **result.facts}


def save_pairs(out: Path, result: Result, strengths: Sequence[float]) -> Path:
    """``edit_pairs.png``, a square of two edits at once."""
    down, right = (caption(request) for request in result.facts["attributes"])
    labels = [f"{a:g}, {b:g}" for a in strengths for b in strengths]
    title = f"Down: {down}; to the right: {right}"
    return save_grid(out / "edit_pairs.png", result.images, labels, result.columns, title=title)


def save_counterfactual(out: Path, source: Photograph, result: Result) -> Made:
    """``counterfactual.png``: the photograph, its edit, and where they differ."""
    facts, edited = result.facts, result.images[0]
    if not facts["flipped"]:
        outcome = "does not flip at full strength"
    elif facts["strength"]:
        outcome = f"flips at strength {facts['strength']:.2f}"
    else:
        outcome = "is so already"
    images = np.stack([source.square, edited, heat_map(source.square, edited)])
    labels = ["source", caption(facts["attributes"]), "difference"]
    title = f"Counterfactual: {outcome}"
    row = save_grid(out / "counterfactual.png", images, labels, len(images), title=title)
    return {"row": row, **facts}
