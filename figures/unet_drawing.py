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
from figures.grids import new_file
from figures.plots import STYLE
from unet_model import ConditionalUNet

Box = tuple[int, int, str, str]  # side of the U (-1 down, 0 bottom, 1 up), level, text, kind
COLOURS = {"convolution": "#d9d9d9", "residual": "#c6dbef", "attention": "#fdd0a2"}
ORDER, SKIP = "#333333", "#0072B2"  # of arrows
# arms -> an arrow's way
BENT = {(-1, 0): "angle,angleA=90,angleB=0", (0, 1): "angle,angleA=0,angleB=90"}


def unet_boxes(unet: ConditionalUNet, side: int) -> tuple[list[Box], list[tuple[int, int]]]:
    """The parts of a UNet, in the order of its forward pass, and its skip connections.

    Args:
        side: of x_t.

    Returns:
        a box for each part, and the pairs of boxes (from, to) that skip connections join.
    """
    boxes: list[Box] = []
    counted: set[int] = set()  # parameters that several blocks share count in the first

    def add(arm: int, level: int, name: str, module: nn.Module, kind: str = "convolution") -> None:
        own = {id(p): p.numel() for p in module.parameters() if id(p) not in counted}
        counted.update(own)
        number = sum(own.values())
        millions = f"{number / 1e6:.2f} M" if number >= 1e4 else f"{number:,}"
        channels = [p for p in module.parameters() if p.ndim == 4][-1].shape[0]
        here = side // (unet.patch_size * 2**level)
        text = f"{name}\n{channels} × {here} × {here}, {millions}"
        boxes.append((arm, level, text, kind))

    def add_blocks(arm: int, level: int, blocks: Sequence[nn.Module]) -> None:
        for block in blocks:
            kinds = [
                each for each in ("self", "cross") if getattr(block, f"{each}_attention") is not None
            ]
            attention = f" + {' and '.join(kinds)}-attention" if kinds else ""
            add(arm, level, f"residual{attention}", block, "attention" if kinds else "residual")

    add(-1, 0, f"unshuffle {unet.patch_size}, stem" if unet.patch_size > 1 else "stem", unet.stem)
    skips, bonds, bottom = [], [], len(unet.down) - 1
    for level, blocks in enumerate(unet.down):
        add_blocks(-1, level, blocks)
        skips += range(len(boxes) - len(blocks), len(boxes))
        if level < bottom:
            add(-1, level + 1, "stride 2", unet.downsample[level])
    add_blocks(0, bottom, unet.middle)
    for i, blocks in enumerate(unet.up):
        bonds += [(skips.pop(), len(boxes) + k) for k in range(len(blocks))]
        add_blocks(1, bottom - i, blocks)
        if i < bottom:
            add(1, bottom - i - 1, "upsample", unet.upsample[i])
    add(1, 0, "output", unet.conv_out)
    return boxes, bonds


def save_unet_drawing(path: str | Path, unet: ConditionalUNet, side: int, source: str) -> list[Path]:
    """Draw a UNet as a diagram: down on the left, up on the right, each level further in. The stem, each
    block and each resampling is a box. Black arrows show the order, blue ones the skip connections.

    Args:
        path: without suffix. Writes a .png of 600 dpi and an .svg.
        side: of x_t.
        source: what the title says the UNet came from.
    """
    boxes, bonds = unet_boxes(unet, side)
    indent, width, height, step = 0.5, 2.4, 0.44, 0.62  # inches
    bottom = max(level for _, level, _, _ in boxes)
    outer = 2 * (width + indent * bottom) + 1.4  # of the whole drawing
    ups = sum(arm > 0 for arm, _, _, _ in boxes)
    rows = len(boxes) - ups  # each box on the way down has a row; those on the way up take the same
    centres = []
    for i, (arm, level, _, _) in enumerate(boxes):
        row = i if arm <= 0 else len(boxes) - 1 - i
        centres.append((arm * (outer / 2 - width / 2 - indent * level), -step * row))
    millions = sum(p.numel() for p in unet.parameters()) / 1e6
    what = f"{millions:.1f} M parameters\ntimestep and attributes enter every residual block"
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(outer + 0.2, step * rows + 0.7))
        axes = figure.subplots()
        drawn = []
        for (x, y), (_, _, text, kind) in zip(centres, boxes, strict=True):
            corner = x - width / 2, y - height / 2
            box = FancyBboxPatch(corner, width, height, "round,pad=0.02", ec="#555555", fc=COLOURS[kind])
            drawn.append(axes.add_patch(box))
            axes.text(x, y, text, ha="center", va="center", fontsize=8)
        for pairs, colour in ((pairwise(range(len(boxes))), ORDER), (bonds, SKIP)):
            for a, b in pairs:  # an arrow ends where the boxes begin
                arrow = {"arrowstyle": "-|>", "color": colour, "patchA": drawn[a], "patchB": drawn[b]}
                bent = BENT.get((boxes[a][0], boxes[b][0]), "arc3")
                axes.annotate("", centres[b], centres[a], arrowprops=arrow | {"connectionstyle": bent})
        axes.set_xlim(-outer / 2 - 0.05, outer / 2 + 0.05)
        axes.set_ylim(-step * (rows - 0.4), step * 0.6)
        axes.axis("off")
        axes.set_title(f"UNet of {source}, {what}", fontsize=11)
        make_legible(figure)
        paths = [Path(f"{path}.png"), Path(f"{path}.svg")]
        for each in paths:
            figure.savefig(new_file(each), dpi=600)
    return paths
