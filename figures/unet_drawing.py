"""A drawing of a UNet, made from the module itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import nn

from figures.fonts import make_legible
from figures.plots import STYLE
from unet_model import ConditionalUNet

Box = tuple[int, str, str]  # level of the network, text, kind
COLOURS = {"convolution": "#d9d9d9", "residual": "#c6dbef", "attention": "#fdd0a2"}


def unet_boxes(unet: ConditionalUNet, side: int) -> tuple[list[Box], list[tuple[int, int]]]:
    """The parts of a UNet, in the order of its forward pass, and its skip connections.

    Args:
        side: of x_t.

    Returns:
        a box for each part, and the pairs of boxes (from, to) that skip connections join.
    """
    boxes: list[Box] = []
    counted: set[int] = set()  # parameters that several blocks share count in the first

    def add(level: int, name: str, module: nn.Module, kind: str = "convolution") -> None:
        own = {id(p): p.numel() for p in module.parameters() if id(p) not in counted}
        counted.update(own)
        millions = sum(own.values()) / 1e6
        channels = [p for p in module.parameters() if p.ndim == 4][-1].shape[0]
        here = side // (unet.patch_size * 2**level)
        boxes.append((level, f"{name}\n{channels} × {here} × {here}\n{millions:.2f} M", kind))

    def add_blocks(level: int, blocks: Sequence[nn.Module]) -> None:
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


def save_unet_drawing(path: str | Path, unet: ConditionalUNet, side: int, source: str) -> list[Path]:
    """Draw a UNet as a diagram. The stem, each block and each resampling is a box, at the height of its
    resolution. Arrows show the order, and curves the skip connections.

    Args:
        path: without suffix. Writes a .png of 600 dpi and an .svg.
        side: of x_t.
        source: what the title says the UNet came from.
    """
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
        make_legible(figure)
        paths = [Path(f"{path}.png"), Path(f"{path}.svg")]
        for each in paths:
            each.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(each, dpi=600)
    return paths
