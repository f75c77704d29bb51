"""Images as picture files: single images, labelled grids, GIFs and heat maps.

Images are numpy arrays, uint8 (N, H, W, 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from figures.fonts import legible, pillow_font

INK, PAPER = (30, 30, 30), (255, 255, 255)
WIDTH = 192  # about how many pixels wide an image of a grid is
MOST_PIXELS = 40_000_000  # of a grid's images; Pillow warns of pictures of 89 million
FRAME_TIME = 120  # milliseconds


def new_file(path: str | Path) -> Path:
    """A path, in a folder that is there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def save_image(image: np.ndarray, path: str | Path) -> Path:
    """Write one image (H, W, 3) as it is."""
    path = new_file(path)
    Image.fromarray(image).save(path)
    return path


def _scaled(image: np.ndarray, scale: int) -> Image.Image:
    size = (image.shape[1] * scale, image.shape[0] * scale)
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def _wrapped(text: str, size: int, width: int) -> tuple[list[str], ImageFont.FreeTypeFont]:
    """The lines of ``text``, none where it is empty, and their font. A line is at most ``width`` pixels
    wide. It is broken at a space, or where a single word is wider, in that word."""
    text, file = legible(text)
    font, lines = pillow_font(size, file), [""] if text.split() else []
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines, font


def readable(name: str) -> str:
    """An attribute's name as people write it: 'mouth slightly open' for Mouth_Slightly_Open."""
    words = [word.lower() if word.istitle() else word for word in name.split("_")]
    return " ".join(words).replace(" o clock ", " o'clock ")


def caption(request: Mapping[str, float]) -> str:
    """'smiling, not male, young 0.5': a request, as written under a picture."""
    parts = []
    for name, value in request.items():
        words = readable(name)
        if value == 0:
            words = words[3:] if words.startswith("no ") else f"not {words}"
        parts.append(words if value in (0, 1) else f"{words} {value:g}")
    return ", ".join(parts) or "anything"


def labelled_grid(
    images: np.ndarray,
    labels: Sequence[str],
    columns: int,
    title: str = "",
    scale: int | None = None,
) -> Image.Image:
    """A grid with a caption under every image and a title above. Of more images than MOST_PIXELS hold,
    it shows rows and columns at even distances, and says so.

    Args:
        images: uint8 (N, H, W, 3), row by row.
        labels: N captions, wrapped to the image's width. A row of empty captions takes no room for
            them.
        columns: images in a row.
        title: text above the grid, wrapped to its width.
        scale: whole factor by which images are enlarged. By default they become about WIDTH pixels wide,
            and text grows with them.

    Raises:
        ValueError: unless there is one label for every image.
    """
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images but {len(labels)} labels")
    scale = scale or max(1, round(WIDTH / images.shape[2]))
    columns = min(columns, len(images))
    cells, columns = cells_of(len(images), columns, MOST_PIXELS // (images[0, ..., 0].size * scale**2))
    if len(cells) < len(images):
        title = f"{title} ({len(cells):,} of {len(images):,} images)".strip()
        images, labels = images[cells], [labels[cell] for cell in cells]
    height, width = images.shape[1] * scale, images.shape[2] * scale
    size = max(12, width // 10)  # of captions; all measures below are in pixels
    gap, line = size // 2, round(1.25 * size)
    captions = [_wrapped(label, size, width) for label in labels]
    starts = range(0, len(images), columns)
    page_width = gap + columns * (width + gap)
    title_size = max(line, page_width // 60)
    title_line = round(1.4 * title_size)
    titles, title_font = _wrapped(title, title_size, page_width - 2 * gap)
    tops = [gap + title_line * len(titles)]  # of each row, and the end
    for start in starts:
        longest = max(len(lines) for lines, _ in captions[start : start + columns])
        tops.append(tops[-1] + height + gap + line * longest)
    page = Image.new("RGB", (page_width, tops[-1] + gap), PAPER)
    draw = ImageDraw.Draw(page)
    for i, text in enumerate(titles):
        draw.text((gap, gap // 2 + title_line * i), text, INK, title_font)
    for index, (image, (lines, font)) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, columns)
        x, y = gap + column * (width + gap), tops[row]
        page.paste(_scaled(image, scale), (x, y))
        for i, text in enumerate(lines):
            draw.text((x + width / 2, y + height + 1 + line * i), text, INK, font, anchor="ma")
    return page


def cells_of(number: int, columns: int, most: int) -> tuple[list[int], int]:
    """Which of so many images a grid of at most ``most`` shows, and its columns. Whole rows and columns
    are left out, at even distances, of the longer side first. The first and the last stay."""
    rows = -(-number // columns)
    if number <= most:
        return list(range(number)), columns
    side = max(1, math.isqrt(most))
    kept_rows = min(rows, max(side, most // columns))
    kept_columns = min(columns, max(1, most // kept_rows))
    across = np.linspace(0, columns - 1, kept_columns).round().astype(int)
    down = np.linspace(0, rows - 1, kept_rows).round().astype(int)
    cells = (down[:, None] * columns + across).ravel()
    return [cell for cell in cells.tolist() if cell < number], kept_columns


def save_grid(path: str | Path, images: np.ndarray, labels: Sequence[str], columns: int, **look) -> Path:
    """Write ``labelled_grid`` to a file. ``look`` is its title and scale."""
    path = new_file(path)
    labelled_grid(images, labels, columns, **look).save(path)
    return path


def save_film(path: str | Path, frames: np.ndarray, labels: Sequence[str], columns: int) -> Path:
    """Write frames (F, N, H, W, 3), each a ``labelled_grid`` of N images, as an animation that plays
    forward."""
    scale = max(1, round(128 / frames.shape[3]))  # a film of larger frames is slow to load
    grids = [np.asarray(labelled_grid(images, labels, columns, scale=scale)) for images in frames]
    return save_gif(path, np.stack(grids), scale=1, back=False)


def save_gif(path: str | Path, images: np.ndarray, scale: int | None = None, back: bool = True) -> Path:
    """Write images (N, H, W, 3) as an animation without end. Each is shown for FRAME_TIME.

    Args:
        scale: whole factor by which images are enlarged. By default they become about 128 pixels wide.
        back: play backward after playing forward. Without it, the last image is shown ten times as long.
    """
    path = new_file(path)
    scale = scale or max(1, round(128 / images.shape[2]))
    frames = [_scaled(image, scale) for image in images]
    if back:
        frames += frames[-2:0:-1]
    durations = [FRAME_TIME] * len(frames)
    if not back:
        durations[-1] *= 10
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return path


def heat_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two images uint8 (H, W, 3) differ, as an image: the mean absolute difference of the
    channels. It is dark where they agree, and brightest where they differ most."""
    from matplotlib import colormaps  # slow to import, and nothing else here needs it

    change = np.abs(a.astype(float) - b.astype(float)).mean(2)
    colours = colormaps["inferno"](change / max(change.max(), 1))
    return (255 * colours[..., :3]).round().astype(np.uint8)
