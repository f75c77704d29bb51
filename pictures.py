"""Pictures: arrays in, picture files out. Images are uint8 (N, H, W, 3) numpy arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
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


def heat_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two images uint8 (H, W, 3) differ, as one: dark where they agree, bright where the mean
    absolute difference of the channels is the largest of the picture's."""
    from matplotlib import colormaps

    change = np.abs(a.astype(float) - b.astype(float)).mean(2)
    colours = colormaps["inferno"](change / max(change.max(), 1))
    return (255 * colours[..., :3]).round().astype(np.uint8)


def save_grid(path: str | Path, images: np.ndarray, labels: Sequence[str], columns: int, **look) -> Path:
    """Write ``labelled_grid`` to a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    labelled_grid(images, labels, columns, **look).save(path)
    return path


def save_gif(
    path: str | Path,
    images: np.ndarray,
    milliseconds: int = 120,
    scale: int | None = None,
    back: bool = True,
) -> Path:
    """An endless animation of images (N, H, W, 3), forward and, with ``back``, backward again; enlarged
    by the whole factor ``scale``, to about 128 pixels by default."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scale = scale or max(1, round(128 / images.shape[2]))
    frames = [_scaled(image, scale) for image in images]
    if back:
        frames += frames[-2:0:-1]
    durations = [milliseconds] * len(frames)
    if not back:
        durations[-1] *= 10  # the end stands still for a while
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return path


# -------------------------------------------------------------------- plots

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
    """Axes side by side in one style, inches wide and high; the figure is written on leaving."""
    import matplotlib
    from matplotlib.figure import Figure

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        figure.suptitle(title, fontsize=10)
        yield list(figure.subplots(1, columns, squeeze=False)[0])
        figure.savefig(path, dpi=130)


def save_curves(
    path: str | Path,
    curves: Mapping[str, Sequence[tuple[float, ...]]],
    x_label: str,
    y_labels: Sequence[str],
    title: str = "",
) -> Path:
    """One plot beside the other for each of ``y_labels``; a curve is named and made of points
    (x, y of the first plot, y of the second, ...)."""
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
    """A horizontal bar for each name, in as many colours as there are series (N,)."""
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
    """A matrix (N, N) of values in [-1, 1], blue to red."""
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
    """Points (N, 2) in a plot for each (title, x label, y label), in one colour where ``has`` (N,) and
    another elsewhere."""
    with _figure(path, 4.6 * len(points), 4.4, len(points), title) as plots:
        for axes, ((plot, x_label, y_label), xy) in zip(plots, points.items(), strict=True):
            for value, label in ((False, f"not {name}"), (True, name)):
                axes.scatter(*xy[has == value].T, s=6, alpha=0.6, label=label)
            axes.set(title=plot, xlabel=x_label or f"{plot} 1", ylabel=y_label or f"{plot} 2")
        axes.legend(markerscale=2)
    return Path(path)


Box = tuple[int, str, str]  # level of the network, text, kind
COLOURS = {"convolution": "#d9d9d9", "residual": "#c6dbef", "attention": "#fdd0a2"}


def unet_boxes(unet, side: int) -> tuple[list[Box], list[tuple[int, int]]]:
    """What a UNet is made of, in the order of its forward pass, for an x_t of this side; and which pairs
    of boxes skip connections join."""
    boxes: list[Box] = []
    counted: set[int] = set()  # parameters: what blocks share stands in the first

    def add(level: int, name: str, module, kind: str = "convolution") -> None:
        own = {id(p): p.numel() for p in module.parameters() if id(p) not in counted}
        counted.update(own)
        millions = sum(own.values()) / 1e6
        channels = [p for p in module.parameters() if p.ndim == 4][-1].shape[0]
        here = side // (unet.patch_size * 2**level)
        boxes.append((level, f"{name}\n{channels} × {here} × {here}\n{millions:.2f} M", kind))

    def add_blocks(level: int, blocks) -> None:
        for block in blocks:
            attention = [
                name.replace("_", "-")
                for name in ("self_attention", "cross_attention")
                if getattr(block, name) is not None
            ]
            kind = "attention" if attention else "residual"
            add(level, "\n".join(["residual", *attention]), block, kind)

    add(0, f"unshuffle {unet.patch_size}\nstem" if unet.patch_size > 1 else "stem", unet.stem)
    skips, bonds, bottom = [], [], len(unet.down) - 1
    for level, blocks in enumerate(unet.down):
        add_blocks(level, blocks)
        skips += range(len(boxes) - len(blocks), len(boxes))
        if level < bottom:
            add(level + 1, "stride 2", unet.downsample[level])
    add_blocks(bottom, unet.middle)
    for i, blocks in enumerate(unet.up):
        bonds += [(skips.pop(), len(boxes) + k) for k in range(len(blocks))]
        add_blocks(bottom - i, blocks)
        if i < bottom:
            add(bottom - i - 1, "upsample", unet.upsample[i])
    add(0, "output", unet.conv_out)
    return boxes, bonds


def save_unet_drawing(path: str | Path, unet, side: int, source: str) -> list[Path]:
    """A UNet as a diagram, drawn from the module itself: a box for each stem, block and resampling, at
    the height of its resolution, skip connections between; as a .png of 600 dpi and an .svg."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    boxes, bonds = unet_boxes(unet, side)
    bottom = max(level for level, _, _ in boxes)
    step, width, height, drop = 1.25, 1.0, 1.5, 2.0
    corners = [(i * step, -level * drop) for i, (level, _, _) in enumerate(boxes)]
    millions = sum(p.numel() for p in unet.parameters()) / 1e6
    what = f"{millions:.1f} M parameters; timestep and attributes enter every residual block"
    arrow = {"arrowstyle": "->", "color": "#555555"}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.9 * len(boxes), 1.4 * (bottom + 1) + 1.2))
        axes = figure.subplots()
        for (x, y), (_, text, kind) in zip(corners, boxes, strict=True):
            box = FancyBboxPatch((x, y), width, height, "round,pad=0.02", ec="#555555")
            box.set_facecolor(COLOURS[kind])
            axes.add_patch(box)
            axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=6.5)
        for (x, y), (next_x, next_y) in pairwise(corners):
            ends = (next_x, next_y + height / 2), (x + width, y + height / 2)
            axes.annotate("", *ends, arrowprops=arrow)
        for a, b in bonds:
            tip, tail = ((corners[i][0] + width / 2, corners[i][1] + height) for i in (b, a))
            curve = {"color": "#9e9ac8", "connectionstyle": "arc3,rad=-0.12"}
            axes.annotate("", tip, tail, arrowprops=arrow | curve)
        axes.set_xlim(-0.3, len(boxes) * step)
        axes.set_ylim(-bottom * drop - 0.3, height * 1.8)
        axes.axis("off")
        axes.set_title(f"UNet of {source}: {what}", fontsize=10)
        paths = [Path(f"{path}.png"), Path(f"{path}.svg")]
        for each in paths:
            each.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(each, dpi=600)
    return paths
