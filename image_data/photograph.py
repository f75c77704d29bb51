"""A photograph as a model's square, aligned or cropped, and an edit pasted back into the photograph."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from image_data.picture import crop_box, read_facts, read_picture, to_square

CELEBA_SIZE = (178, 218)
# Left eye, right eye, nose, left and right mouth corner in an aligned CelebA picture: (x, y), the means
# of CelebA's landmark file, rounded to pixels.
CELEBA_LANDMARKS = np.array([(69, 111), (108, 111), (88, 136), (72, 152), (105, 152)]) + 0.5
SWAPPED = [1, 0, 2, 4, 3]  # the order of landmarks that are left and right as the person sees them
# How far a landmark may lie from its place there: 0.55 of the eyes' distance. A face that is turned away
# by 60 degrees misses by up to 0.53, and one with swapped eyes or mouth corners by more than 0.64.
MOST_MISS = 0.55 * (CELEBA_LANDMARKS[1, 0] - CELEBA_LANDMARKS[0, 0])
TILT = 60  # degrees by which a face with swapped landmarks may lean; x and y swapped would be 90
DETAIL_FLOOR = 4.0  # levels^2: a neighbourhood of less variance is flat; by eye
# Masks of an aligned face: how many pixels a point (x, y) of CelebA's frame lies inside. By eye.
MASKS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "lower_half": lambda x, y: y - 124,
    # a box with round corners, which holds brows and glasses
    "eyes": lambda x, y: 22 * (1 - (((x - 89) / 52) ** 4 + ((y - 110) / 22) ** 4) ** 0.25),
    # outside the face from the brows down, and the neck: an arch
    "hair": lambda x, y: np.hypot(x - 89, 0.75 * np.minimum(y - 138, 0)) - 38,
}
MASK_EDGE = 8  # pixels of CelebA's frame over which these begin; by eye
SOFT_EDGE = 0.1  # width of the border in which an edit fades in, as a share of the square's side; by eye


def landmarks_in_square(crop: int, image_size: int) -> np.ndarray:
    """Where CelebA's landmarks lie in a square of a model: (5, 2)."""
    left, top, right, _ = crop_box(*CELEBA_SIZE, crop)
    return (CELEBA_LANDMARKS - (left, top)) * image_size / (right - left)


def place(points: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
    """The ``similarity`` that takes points (N, 2) to a target (N, 2), and the furthest miss in it."""
    matrix = similarity(points, target)
    return matrix, np.linalg.norm(moved_by(matrix, points) - target, axis=1).max()


def moved_by(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (..., 2) moved by an affine matrix (2, 3)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, uniform scale and shift [s R | t] (2, 3) that takes source points nearest to target
    points, in least squares (Umeyama 1991). Points are (N, 2); those of the source are not all the same.
    """
    a, b = (points - points.mean(0) for points in (source, target))
    spread = (a**2).sum()
    turn = np.array([(a * b).sum(), a[:, 0] @ b[:, 1] - a[:, 1] @ b[:, 0]]) / spread
    linear = np.array([[turn[0], -turn[1]], [turn[1], turn[0]]])
    return np.column_stack([linear, target.mean(0) - linear @ source.mean(0)])


def inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse (2, 3) of an affine matrix [A | t]."""
    back = np.linalg.inv(matrix[:, :2])
    return np.column_stack([back, -back @ matrix[:, 2]])


def warped(pixels: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture uint8 (H, W, 3) as another one of (width, height) pixels. The matrix (2, 3) leads from
    the other's coordinates to the picture's. It is sampled at its own resolution, then averaged.
    Outside the picture its edge pixels are repeated."""
    corners = corners_of(size) @ matrix.T
    left, top = np.floor(corners.min(0)).astype(int) - 1
    right, bottom = np.ceil(corners.max(0)).astype(int) + 1
    rows = np.arange(top, bottom).clip(0, pixels.shape[0] - 1)
    columns = np.arange(left, right).clip(0, pixels.shape[1] - 1)
    times = max(1, math.ceil(np.linalg.norm(matrix[:, 0])))
    matrix = np.column_stack([matrix[:, :2] / times, matrix[:, 2] - (left, top)])
    fine = Image.fromarray(pixels[np.ix_(rows, columns)]).transform(
        (size[0] * times, size[1] * times),
        Image.Transform.AFFINE,
        matrix.ravel(),
        Image.Resampling.BILINEAR,
    )
    return np.array(fine.resize(size, Image.Resampling.BILINEAR))


def corners_of(size: tuple[int, int]) -> np.ndarray:
    """(x, y, 1) of the corners of a picture of (width, height) pixels: (4, 3)."""
    width, height = size
    return np.array([(0, 0, 1), (width, 0, 1), (0, height, 1), (width, height, 1)])


def surviving_detail(square: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """How much of a photograph's fine detail an edit of its square keeps: (S, S) in [0, 1].

    The finest structures of the square uint8 (S, S, 3) stand for finer detail. Around each pixel, the
    edit's are regressed on the square's. Of slope k, 2 k - 1 is kept, cut to [0, 1]. Hair that turns
    blond keeps its strands. Glasses take their frame with them.
    """
    from scipy.ndimage import gaussian_filter  # here, so that --help stays instant

    was, now = (picture.astype(np.float32).mean(2) for picture in (square, edited))
    was, now = (plane - gaussian_filter(plane, 2) for plane in (was, now))
    common, variance = gaussian_filter(was * now, 1.5), gaussian_filter(was * was, 1.5)
    return (2 * (common + DETAIL_FLOOR) / (variance + DETAIL_FLOOR) - 1).clip(0, 1)


def from_levels(levels: np.ndarray) -> np.ndarray:
    """A mask float32 (S, S) in [0, 1] from levels 0 ... 255, rounded: what a file of it gives again."""
    return levels.round().astype(np.uint8).astype(np.float32) / 255


class Photograph:
    """A picture file and the square of it that a model sees.

    Args:
        path: the picture. It is read upright by its EXIF orientation, in sRGB over white.
        image_size, crop: of the model.
        landmarks: (x, y) of left eye, right eye, nose, left and right mouth corner, in pixels of the
            upright picture. Left and right may be those of the picture or the person's own. The face is
            turned and scaled to where CelebA's faces are. Without landmarks the square is the crop that
            a dataset makes.

    Attributes:
        path: the picture's file.
        file: the file's pixels in their own colours; facts: its EXIF data and resolution.
        picture: the whole picture in sRGB, a PIL Image.
        swapped: whether left and right of the landmarks were the person's own.
        square: uint8 (image_size, image_size, 3).
        matrix: (2, 3), from the square's coordinates to the picture's.
        landmarks: those that the face is aligned by, in the argument's form; None without alignment.

    Raises:
        FileNotFoundError, ValueError: for a file that is no whole picture, or landmarks that do not fit.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        image_size: int,
        crop: int,
        landmarks: Sequence[float] | None = None,
    ):
        self.path, self.file, self.facts = path, read_picture(path), read_facts(path)
        self.picture = self.file.in_srgb()
        self.image_size, self.crop, self.swapped = image_size, crop, False
        self.landmarks: list[float] | None = None
        width, height = self.picture.size
        left, top, right, _ = crop_box(width, height, crop)
        scale = (right - left) / image_size
        self.matrix = np.array([[scale, 0, left], [0, scale, top]])
        if landmarks is None:
            self.square = self.cut(self.picture)
        else:
            self.align(self._checked(landmarks))

    def align(self, points: np.ndarray) -> None:
        """Turn and scale the picture so that a face lies where CelebA's faces lie. Its points (5, 2) are
        in pixels from the picture's corner, left and right as seen when the face is upright."""
        self.matrix = self._aligning(points)
        self.landmarks = (points - 0.5).ravel().tolist()
        self.square = self.cut(self.picture)

    def cut(self, picture: Image.Image) -> np.ndarray:
        """The square (S, S, 3) of an RGB picture that is as large as this one."""
        if self.landmarks is None:
            return to_square(picture, self.image_size, self.crop)
        return warped(np.asarray(picture), self.matrix, (self.image_size, self.image_size))

    def read_mask(self, path: str | os.PathLike) -> np.ndarray:
        """A mask's file as float32 (S, S): 0 where it is black or transparent, 1 where it is white.

        Args:
            path: a picture of the square, or of the whole photograph. One that is as large as the
                model's square is always the former.

        Raises:
            FileNotFoundError, ValueError: for what is no picture, or has another shape.
        """
        file, side = read_picture(path), (self.image_size, self.image_size)
        grey = (file.bare or file.pixels).convert("L")
        if file.alpha:
            grey = ImageChops.multiply(grey, file.alpha)
        if grey.size == self.picture.size != side:
            levels = self.cut(grey.convert("RGB"))[..., 0]
        elif grey.width == grey.height:
            levels = np.asarray(grey.resize(side, Image.Resampling.BILINEAR))
        else:
            sizes = ["{} x {}".format(*each.size) for each in (grey, self.picture)]
            raise ValueError(
                f"mask {path} has {sizes[0]} pixels, and the photograph {sizes[1]}: give one as large "
                "as that, or a square"
            )
        return from_levels(levels)

    def usual_mask(self, name: str) -> np.ndarray:
        """One of MASKS as float32 (S, S), where the square's face lies as CelebA's do."""
        left, top, right, _ = crop_box(*CELEBA_SIZE, self.crop)
        position = (np.arange(self.image_size) + 0.5) * (right - left) / self.image_size
        inside = MASKS[name](position + left, position[:, None] + top) / MASK_EDGE
        return from_levels(255 * np.broadcast_to(inside, 2 * position.shape).clip(0, 1))

    def off_by(self, points: np.ndarray) -> float:
        """The furthest that ``align`` would move a corner of the square, as a share of its side."""
        corners = corners_of((self.image_size, self.image_size))
        moved = np.linalg.norm(corners @ (self._aligning(points) - self.matrix).T, axis=1).max()
        return float(moved / (self.image_size * np.linalg.norm(self.matrix[:, 0])))

    def _aligning(self, points: np.ndarray) -> np.ndarray:
        """The matrix (2, 3) from a square, in which the points lie as CelebA's do, to the picture."""
        return inverse(similarity(points, landmarks_in_square(self.crop, self.image_size)))

    def _checked(self, landmarks: Sequence[float]) -> np.ndarray:
        """The argument ``landmarks`` as points from the picture's corner, left and right as seen."""
        points, (width, height) = np.array(landmarks, float), self.picture.size
        text = f"landmarks {points.round(1).tolist()}"
        fit = points.size == CELEBA_LANDMARKS.size
        if fit:
            points = points.reshape(-1, 2)
            inside = (points >= 0) & (points <= (width, height))
            fit = inside.all() and np.ptp(points, 0).max() >= 1
        if not fit:
            raise ValueError(f"{text} are not five different points in the {width}x{height} picture")
        points = points + 0.5  # from the centre of a pixel to the picture's corner
        _, miss = place(points, CELEBA_LANDMARKS)
        other, other_miss = place(points[SWAPPED], CELEBA_LANDMARKS)
        upright = abs(math.degrees(math.atan2(other[1, 0], other[0, 0]))) <= TILT
        if other_miss < miss and upright:
            points, miss, self.swapped = points[SWAPPED], other_miss, True
        if miss > MOST_MISS:
            raise ValueError(
                f"{text} do not form a face: give x and y of left eye, right eye, nose, left "
                "and right mouth corner, left and right as seen in the picture"
            )
        return points

    def landmarks_moved(self, right: float, down: float, scale: float, turn: float) -> list[float]:
        """The landmarks of a square that is moved by hand, in the form of the argument ``landmarks``:
        right and down in its sides, along its edges; its side scaled; turned clockwise, in degrees."""
        half, angle = self.image_size / 2, math.radians(turn)
        turned = scale * np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
        centre = half + self.image_size * np.array([right, down])
        upright = landmarks_in_square(self.crop, self.image_size)
        points = moved_by(self.matrix, (upright - half) @ turned.T + centre)
        return (points - 0.5).round(2).ravel().tolist()

    def towards(self, point: np.ndarray) -> list[float]:
        """How far to move the square, right and down as for ``landmarks_moved``, so that its centre lies
        at a point (x, y) of the picture."""
        return (moved_by(inverse(self.matrix), point) / self.image_size - 0.5).tolist()

    def corners(self) -> np.ndarray:
        """The square's corners in the picture's coordinates: (4, 2)."""
        return corners_of((self.image_size, self.image_size)) @ self.matrix.T

    def paste(self, edited: np.ndarray) -> Image.Image:
        """The whole picture with an edit uint8 (image_size, image_size, 3) in it, in the file's own
        colours, with its profile and its transparency. A grey picture stays grey.

        The change, edit minus square, is added, so detail finer than the model's stays. Where the edit
        removes something, its detail goes, too (``surviving_detail``). The change fades out towards the
        square's border.
        """
        position = (np.arange(self.image_size) + 0.5) / self.image_size
        ramp = np.minimum(np.minimum(position, 1 - position) / SOFT_EDGE, 1)
        ramp = 0.5 - 0.5 * np.cos(np.pi * ramp)
        ramp = (ramp[:, None] * ramp)[..., None]
        change = (edited.astype(np.float32) - self.square) * ramp
        lost = (1 - surviving_detail(self.square, edited))[..., None] * ramp

        corners = self.corners()
        left, top = np.maximum(np.floor(corners.min(0)), 0).astype(int)
        right, bottom = np.minimum(np.ceil(corners.max(0)), self.picture.size).astype(int)
        box_to_square = inverse(self.matrix)
        box_to_square[:, 2] += box_to_square[:, :2] @ (left, top)  # from coordinates in the box
        box = (int(right - left), int(bottom - top))
        planes = np.concatenate([change, lost, self.square], 2, dtype=np.float32)
        spread = [
            Image.fromarray(np.ascontiguousarray(plane)).transform(
                box, Image.Transform.AFFINE, box_to_square.ravel(), Image.Resampling.BICUBIC
            )
            for plane in planes.transpose(2, 0, 1)
        ]
        change, lost, coarse = np.split(np.stack(spread, 2), [3, 4], 2)
        before = np.asarray(self.picture)[top:bottom, left:right]
        after = (before + change - lost * (before - coarse)).round().clip(0, 255).astype(np.uint8)
        pixels = np.array(self.file.bare or self.file.pixels)
        part = pixels[top:bottom, left:right].astype(int)
        part += self.file.from_srgb(after).astype(int) - self.file.from_srgb(before)
        if (pixels == pixels[..., :1]).all():
            part[...] = part[..., :1]  # through its profile, grey may come back one level off
        pixels[top:bottom, left:right] = part.clip(0, 255)
        whole = Image.fromarray(pixels)
        if self.file.is_grey and not self.file.profile:
            whole = whole.convert("L")
        if self.file.alpha:
            whole.putalpha(self.file.alpha)
        if self.file.profile:
            whole.info["icc_profile"] = self.file.profile  # Pillow writes it into the file
        return whole

    def save_whole(self, edited: np.ndarray, path: str | os.PathLike) -> Path:
        """Write ``paste`` to a file, with the EXIF data and the resolution of the photograph. Returns
        the file."""
        self.paste(edited).save(path, **self.facts)
        return Path(path)
