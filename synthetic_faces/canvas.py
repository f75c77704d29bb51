"""Drawing with signed distance fields: soft, antialiased shapes, placed in portrait coordinates."""

from __future__ import annotations

import colorsys
import math
from itertools import pairwise

import numpy as np

from synthetic_faces.attributes import Identity


def mix(first, second, amount):
    """Linear blend of two colours or numbers; amount 0 is the first."""
    return np.asarray(first, np.float32) * (1 - amount) + np.asarray(second, np.float32) * amount


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB (3,) in [0, 1] of a colour whose hue goes round once in [0, 1]."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def pose_of(identity: Identity) -> tuple[float, float, float, float, float]:
    """From portrait to picture coordinates: cosine and sine of the tilt, shift x, shift y, zoom."""
    tilt = math.radians(5 * identity.tilt)
    shift = 0.03 * identity.shift_x, 0.03 + 0.02 * identity.shift_y
    return math.cos(tilt), math.sin(tilt), *shift, 1.12 + 0.04 * identity.zoom


def to_pixels(pose, x: float, y: float, size: int) -> tuple[float, float]:
    """Column and row, in pixels, of a point in portrait coordinates."""
    cos, sin, shift_x, shift_y, zoom = pose
    column = (cos * x - sin * y) * zoom + shift_x
    row = (sin * x + cos * y) * zoom + shift_y
    return (column + 1) * size / 2 - 0.5, (row + 1) * size / 2 - 0.5


def ellipse_distance(x, y, cx, cy, rx, ry):
    """Signed distance to an ellipse, to first order. It is exact for circles."""
    u, v = (x - cx) / rx, (y - cy) / ry
    radius = np.sqrt(u * u + v * v)
    slope = np.sqrt((u / rx) ** 2 + (v / ry) ** 2) + 1e-6
    return radius * (radius - 1) / slope


def blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of a square picture (H, H, 3), edges repeated. Sigma is in pixels."""
    reach = math.ceil(3 * sigma)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).astype(np.float32)
    taps /= taps.sum()
    size = len(picture)
    padded = np.pad(picture, ((reach, reach), (0, 0), (0, 0)), mode="edge")
    rows = sum(tap * padded[i : i + size] for i, tap in enumerate(taps))
    padded = np.pad(rows, ((0, 0), (reach, reach), (0, 0)), mode="edge")
    return sum(tap * padded[:, i : i + size] for i, tap in enumerate(taps))


class Canvas:
    """A float32 RGB picture in [0, 1] whose shapes are placed in portrait coordinates.

    Portrait coordinates run over about [-1, 1]: x to the right, y down, the eyes near y = 0. They are
    tilted, shifted and zoomed into the picture. ``pixel`` is the size of one pixel in them. Every shape
    is a signed distance field, turned into soft coverage inside its bounding box.
    """

    def __init__(self, identity: Identity, size: int) -> None:
        self.size = size
        self.pose = pose_of(identity)
        cos, sin, shift_x, shift_y, zoom = self.pose
        line = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
        across, down = (line - shift_x) / zoom, (line - shift_y) / zoom
        self.x = (cos * across)[None, :] + (sin * down)[:, None]
        self.y = (cos * down)[:, None] - (sin * across)[None, :]
        self.pixel = 2 / (size * zoom)
        self.image = np.zeros((size, size, 3), np.float32)

    def window(self, left: float, top: float, right: float, bottom: float):
        """Slices of the pixels that the box may touch, with a pixel of margin."""
        cos, sin = self.pose[0], abs(self.pose[1])
        column, row = to_pixels(self.pose, (left + right) / 2, (top + bottom) / 2, self.size)
        width, height = (right - left) / self.pixel / 2, (bottom - top) / self.pixel / 2
        reach, drop = cos * width + sin * height + 1, sin * width + cos * height + 1
        rows = slice(max(0, int(row - drop)), max(0, int(row + drop) + 2))
        return rows, slice(max(0, int(column - reach)), max(0, int(column + reach) + 2))

    def cover(self, distance: np.ndarray, soft: float = 0.0) -> np.ndarray:
        """Coverage in [0, 1] of a signed distance, negative inside. Its edge is ``soft`` wide."""
        amount = np.clip(0.5 - distance / max(soft, self.pixel), 0, 1)
        return amount * amount * (3 - 2 * amount) if soft > self.pixel else amount

    def paint(self, window, coverage: np.ndarray, colour, clip=None) -> None:
        """Blend a colour, (3,) or (h, w, 3), into the window by coverage (h, w), where the mask ``clip``
        (H, W) lets it."""
        if clip is not None:
            coverage = coverage * clip[window]
        patch = self.image[window]
        patch += coverage[..., None] * (colour - patch)

    def fill(self, window, distance, colour, alpha=1.0, soft=0.0, clip=None) -> None:
        """Paint where the distance (h, w) is negative."""
        self.paint(window, self.cover(distance, soft) * alpha, colour, clip)

    def ellipse(self, cx, cy, rx, ry, colour, alpha=1.0, soft=0.0, ring=0.0, clip=None) -> None:
        """A filled ellipse, or with ``ring`` its outline of that width."""
        pad = ring + soft
        window = self.window(cx - rx - pad, cy - ry - pad, cx + rx + pad, cy + ry + pad)
        distance = ellipse_distance(self.x[window], self.y[window], cx, cy, rx, ry)
        if ring:
            distance = np.abs(distance) - ring / 2
        self.fill(window, distance, colour, alpha, soft, clip)

    def glow(self, cx, cy, rx, ry, colour, alpha, clip=None) -> None:
        """A soft spot that fades to nothing at the ellipse's rim."""
        window = self.window(cx - rx, cy - ry, cx + rx, cy + ry)
        x, y = (self.x[window] - cx) / rx, (self.y[window] - cy) / ry
        self.paint(window, np.clip(1 - x * x - y * y, 0, 1) ** 2 * alpha, colour, clip)

    def lens(self, cx, cy, half, up, down, colour, alpha=1.0, bend=0.0, slant=0.0, soft=0.0,
             clip=None) -> None:  # fmt: skip
        """The shape between two parabolas that meet `half` left and right of (cx, cy).

        In t = (x - cx) / half they are bend t^2 + slant t, minus up (1 - t^2) and plus
        down (1 - t^2). A negative up or down makes a crescent.
        """
        reach = abs(up) + abs(down) + abs(bend) + abs(slant) + soft
        window = self.window(cx - half - soft, cy - reach, cx + half + soft, cy + reach)
        t = (self.x[window] - cx) / half
        arch = 1 - t * t
        y = self.y[window] - cy - bend * (t * t) - slant * t
        distance = np.maximum(-up * arch - y, y - down * arch)
        steep = 2 * (max(abs(up), abs(down)) + abs(bend)) / half
        distance = distance / np.sqrt(1 + (steep * t) ** 2)
        self.fill(window, distance, colour, alpha, soft, clip)

    def stroke(self, points, width, colour, alpha=1.0, soft=0.0, clip=None) -> None:
        """A round-ended line of that width through the points."""
        (xs, ys), pad = zip(*points, strict=True), width / 2 + soft
        window = self.window(min(xs) - pad, min(ys) - pad, max(xs) + pad, max(ys) + pad)
        x, y, nearest = self.x[window], self.y[window], np.inf
        for (ax, ay), (bx, by) in pairwise(points):
            dx, dy = bx - ax, by - ay
            along = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
            away = (x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2
            nearest = np.minimum(nearest, away)
        self.fill(window, np.sqrt(nearest) - width / 2, colour, alpha, soft, clip)

    def convex(self, points, colour, alpha=1.0, soft=0.0) -> None:
        """A filled convex polygon, its corners given clockwise on screen."""
        xs, ys = zip(*points, strict=True)
        window = self.window(min(xs) - soft, min(ys) - soft, max(xs) + soft, max(ys) + soft)
        x, y, distance = self.x[window], self.y[window], -9.0
        for (ax, ay), (bx, by) in zip(points, (*points[1:], points[0]), strict=True):
            length = math.hypot(bx - ax, by - ay)
            side = ((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / length
            distance = np.maximum(distance, side)
        self.fill(window, distance, colour, alpha, soft)
