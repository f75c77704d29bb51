"""Pictures: arrays in, picture files out. Images are uint8 (N, H, W, 3) numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, GAP = (30, 30, 30), (255, 255, 255), 6


def save_image(image: np.ndarray, path: str | Path) -> Path:
    """Write one image (H, W, 3) as it is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def _scaled(image: np.ndarray, scale: int) -> Image.Image:
    size = (image.shape[1] * scale, image.shape[0] * scale)
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of ``text``, broken at spaces to at most ``width`` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def labelled_grid(
    images: np.ndarray,
    labels: Sequence[str],
    columns: int,
    title: str = "",
    scale: int | None = None,
) -> Image.Image:
    """A grid with a caption under every image and a title above.

    Args:
        images: uint8 (N, H, W, 3), row by row.
        labels: N captions, wrapped to the image's width; an empty one takes no room in a row without
            any.
        columns: images in a row.
        title: one line above the grid.
        scale: whole factor by which images are enlarged; chosen for about 128 pixels by default.

    Raises:
        ValueError: unless there is one label for every image.
    """
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images but {len(labels)} labels")
    scale = scale or max(1, round(128 / images.shape[2]))
    height, width = images.shape[1] * scale, images.shape[2] * scale
    font, title_font = ImageFont.load_default(12), ImageFont.load_default(16)
    captions = [_wrapped(label, font, width) for label in labels]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    line = 15
    lines = [
        max(len(c) if c != [""] else 0 for c in captions[r * columns : (r + 1) * columns])
        for r in range(rows)
    ]
    titles = _wrapped(title, title_font, columns * (width + GAP)) if title else []
    top = GAP + 20 * len(titles)
    page_height = top + sum(height + GAP + line * n for n in lines) + GAP
    page = Image.new("RGB", (GAP + columns * (width + GAP), page_height), PAPER)
    draw = ImageDraw.Draw(page)
    for i, text in enumerate(titles):
        draw.text((GAP, 3 + 20 * i), text, INK, title_font)
    y = top
    for row in range(rows):
        for column, index in enumerate(range(row * columns, min((row + 1) * columns, len(images)))):
            x = GAP + column * (width + GAP)
            page.paste(_scaled(images[index], scale), (x, y))
            for i, text in enumerate(captions[index]):
                draw.text((x + width / 2, y + height + 1 + line * i), text, INK, font, anchor="ma")
        y += height + GAP + line * lines[row]
    return page


def save_grid(path: str | Path, images: np.ndarray, labels: Sequence[str], columns: int, **look) -> Path:
    """Write ``labelled_grid`` to a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    labelled_grid(images, labels, columns, **look).save(path)
    return path


def save_gif(path: str | Path, images: np.ndarray, milliseconds: int = 120) -> Path:
    """An endless animation of images (N, H, W, 3), forward and back."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scale = max(1, round(128 / images.shape[2]))
    frames = [_scaled(image, scale) for image in images]
    frames += frames[-2:0:-1]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    return path


def save_curves(
    path: str | Path,
    curves: dict[str, Sequence[tuple[float, ...]]],
    x_label: str,
    y_labels: Sequence[str],
) -> Path:
    """One plot beside the other for each of ``y_labels``; a curve is named and made of points
    (x, y of the first plot, y of the second, ...)."""
    from matplotlib.figure import Figure

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(5 * len(y_labels), 3.6), layout="constrained")
    for column, (axes, y_label) in enumerate(
        zip(figure.subplots(1, len(y_labels), squeeze=False)[0], y_labels, strict=True), start=1
    ):
        for name, points in curves.items():
            points = sorted(points)
            axes.plot([p[0] for p in points], [p[column] for p in points], "o-", label=name)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    return path
