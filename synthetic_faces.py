"""Procedural portraits with CelebA's 40 attributes, and a CelebA-layout folder full of them.

A face is `render(identity, attributes, image_size)`. The identity is who it is; each attribute
changes what it names and nothing else, so the true counterfactual of any picture can be drawn.
What each attribute looks like is written beside it in face_attributes.py.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from celeba_dataset import CELEBA_ATTRIBUTES
from cli import Parser, count, number, positive_int, run
from face_attributes import (
    Identity,
    attributes_are_possible,
    present,
    sample_attributes,
    sample_identity,
)
from face_canvas import pose_of, to_pixels
from face_renderer import layout, render

VERSION = 1  # of the drawing: another number, other pictures
RECIPE = "synthetic_faces.json"  # in a dataset's folder: what was asked for
IMAGES_PER_IDENTITY = 3


def landmarks(identity: Identity, attributes: np.ndarray, image_size: int) -> np.ndarray:
    """Pixel (x, y) of left eye, right eye, nose tip, left and right mouth corner, float (5, 2)."""
    g = layout(identity, present(attributes))
    (_, left), (_, right) = g.eyes
    (mouth_x, mouth_y), half = g.mouth, g.mouth_half
    corner = mouth_y + g.mouth_bend * 0.6
    points = ((left, g.eye_y), (right, g.eye_y), g.nose, (mouth_x - half, corner),
              (mouth_x + half, corner))  # fmt: skip
    return np.array([to_pixels(pose_of(identity), x, y, image_size) for x, y in points])


def draw_parameters(
    index: int, seed: int, balanced: bool = False, floor: float = 0.0
) -> tuple[Identity, np.ndarray]:
    """(identity, attributes (40,)) of picture `index` of a dataset, from (seed, index) alone."""
    person = index // IMAGES_PER_IDENTITY
    identity = sample_identity(np.random.default_rng((seed, 0, person)))
    return identity, sample_attributes(np.random.default_rng((seed, 1, index)), balanced, floor)


def _write_picture(folder: Path, image_size: int, seed: int, balanced: bool, floor: float, index: int):
    """Draw and save picture `index`; returns its attributes and its integer landmarks."""
    from PIL import Image

    identity, attributes = draw_parameters(index, seed, balanced, floor)
    picture = Image.fromarray(render(identity, attributes, image_size))
    picture.save(folder / f"{index + 1:06d}.jpg", quality=95, subsampling=0)
    points = np.rint(landmarks(identity, attributes, image_size)).astype(int)
    return attributes.astype(int), points.ravel()


def _worker_signals() -> None:
    """Ctrl-C is the parent's to handle; SIGTERM ends a worker, whatever handler the parent had when it
    forked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def parallel_draw(draw, num_images: int, num_workers: int | None, description: str):
    """Yield draw(0) ... draw(num_images - 1) in order, from `num_workers` processes (None: all
    processors) under a progress bar. `draw` must pickle; nothing here uses BLAS threads."""
    from tqdm import tqdm

    workers = num_workers or os.cpu_count() or 1
    bar = partial(tqdm, total=num_images, desc=description, unit="img", smoothing=0.05)
    if workers == 1:
        yield from bar(map(draw, range(num_images)))
        return
    # This pool ends its workers by a message: a signal could reach them before they are set up.
    with ProcessPoolExecutor(workers, initializer=_worker_signals) as pool:
        yield from bar(pool.map(draw, range(num_images), chunksize=16))


def write_dataset(
    out: str | Path,
    num_images: int,
    image_size: int,
    seed: int,
    balanced: bool = False,
    floor: float = 0.0,
    num_workers: int | None = None,
) -> Path:
    """Draw `num_images` portraits into the folder `out`, in CelebA's own layout.

    Attributes follow CelebA's frequencies, rare ones raised to about ``floor``, or each is there
    about half the time if ``balanced``.
    Picture i depends only on (seed, i). Every IMAGES_PER_IDENTITY pictures share an identity, and
    identities are split 80/10/10 into partitions 0, 1, 2. The folder appears when it is complete;
    one that already holds this very dataset is left alone. Returns `out` as a Path.
    Raises: ValueError for a number out of range, or an `out` that holds something else.
    """
    out = Path(out)
    if not 1 <= num_images <= 999_999 or image_size < 16 or seed < 0:
        asked = f"num_images {num_images}, image_size {image_size}, seed {seed}"
        raise ValueError(f"cannot draw {asked}; give 1 to 999999 images of 16 pixels or more, seed >= 0")
    recipe: dict[str, float] = {"drawing": VERSION, "num_images": num_images, "image_size": image_size}
    recipe |= {"seed": seed, "balanced": balanced, "floor": floor}
    if _holds(out, recipe):
        print(f"{out} already holds these {num_images} faces", file=sys.stderr)
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        folder = Path(temporary) / "dataset"
        (folder / "img_align_celeba").mkdir(parents=True)
        draw = partial(_write_picture, folder / "img_align_celeba", image_size, seed, balanced, floor)
        rows = list(parallel_draw(draw, num_images, num_workers, "drawing faces"))
        _write_lists(folder, rows)
        (folder / RECIPE).write_text(json.dumps(recipe) + "\n")
        if not _holds(out, recipe):  # another process may have been faster
            os.replace(folder, out)
    return out


def counterfactuals(
    root: str | Path, image_size: int, crop: int
) -> Callable[[str, int], np.ndarray | None] | None:
    """For a folder of `write_dataset`: a function of a picture's file name and an attribute's column
    that draws the same face with the attribute turned around, as a dataset would read it, uint8
    (image_size, image_size, 3); None where that may not be. None for another folder."""
    from PIL import Image

    from image_cache import to_square

    file = Path(root) / RECIPE
    if not file.is_file():
        return None
    recipe = json.loads(file.read_text())
    if recipe["drawing"] != VERSION:
        raise ValueError(
            f"{root} was drawn by version {recipe['drawing']}, this is {VERSION}: draw it anew"
        )

    def turned(name: str, column: int) -> np.ndarray | None:
        index = int(Path(name).stem) - 1
        how = recipe["seed"], recipe["balanced"], recipe["floor"]
        identity, attributes = draw_parameters(index, *how)
        attributes[column] *= -1
        if not attributes_are_possible(attributes):
            return None
        picture = render(identity, attributes, recipe["image_size"])
        return to_square(Image.fromarray(picture), image_size, crop)

    return turned


def _holds(out: Path, recipe: dict[str, float]) -> bool:
    """Whether `out` is the dataset of this recipe; False if missing or empty, else ValueError."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if (out / RECIPE).is_file() and json.loads((out / RECIPE).read_text()) == recipe:
        return True
    raise ValueError(f"{out} already holds something else; give another folder, or remove it first")


def _write_lists(folder: Path, rows) -> None:
    """CelebA's four text files for the pictures' (attributes, landmarks) rows."""
    points = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
    attributes = [str(len(rows)), " ".join(CELEBA_ATTRIBUTES)]
    marks = [str(len(rows)), " ".join(f"{point}_{axis}" for point in points for axis in "xy")]
    partitions, identities = [], []
    for index, (row, places) in enumerate(rows):
        name, person = f"{index + 1:06d}.jpg", index // IMAGES_PER_IDENTITY
        attributes.append(f"{name} " + " ".join(f"{value:2d}" for value in row))
        marks.append(f"{name} " + " ".join(f"{value:4d}" for value in places))
        partitions.append(f"{name} {(0, 1, 2, 0, 0, 0, 0, 0, 0, 0)[person % 10]}")
        identities.append(f"{name} {person + 1}")
    for name, lines in (("list_attr_celeba", attributes), ("list_landmarks_align_celeba", marks),
                        ("list_eval_partition", partitions),
                        ("identity_CelebA", identities)):  # fmt: skip
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = Parser("Draw portraits into a folder laid out as CelebA.")
    parser.add_argument("--out", default="data/synthetic_faces", help="folder to create")
    parser.add_argument("--num_images", type=number(int, 1, 999_999), default=6000, help="portraits")
    parser.add_argument("--image_size", type=number(int, 16), default=64, help="pixels per side")
    parser.add_argument("--seed", type=count, default=0, help="another seed, other faces")
    parser.add_argument(
        "--balanced", action="store_true", help="every attribute about half the time, not as in CelebA"
    )
    raised = "raise the frequency of rare attributes to about this"
    parser.add_argument("--floor", type=number(float, 0, 0.5), default=0.0, help=raised)
    parser.add_argument("--num_workers", type=positive_int, help="processes (None: one per processor)")
    write_dataset(**vars(parser.parse_args()))


if __name__ == "__main__":
    run(main)
