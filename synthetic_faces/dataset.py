"""A folder of synthetic faces in CelebA's layout, and the true counterfactual of each face.

A face is `render(identity, attributes, image_size)`. The identity says whose face it is. Each attribute
changes what it names and nothing else, so the same face with one attribute turned around can be drawn.
Nothing here needs torch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import cpu_count
from PIL import Image
from tqdm import tqdm

from image_data.files import DRAWN_FACES, refusing_damaged
from image_data.picture import to_square
from synthetic_faces.attributes import (
    NAMES,
    Identity,
    attributes_are_possible,
    sample_attributes,
    sample_identity,
)
from synthetic_faces.renderer import render

VERSION = 1  # of the drawing: change it when `render` changes its pixels
IMAGES_PER_IDENTITY = 3
MOST_WORKERS = 61  # Windows waits for no more processes at once
SPLIT_OF_PERSON = (0, 1, 2, 0, 0, 0, 0, 0, 0, 0)  # of ten in a row: train 0, val 1, test 2


def draw_parameters(
    index: int, seed: int, balanced: bool = False, floor: float = 0.0
) -> tuple[Identity, np.ndarray]:
    """Identity and attributes (40,) of picture ``index``. They depend on nothing but the arguments."""
    person = index // IMAGES_PER_IDENTITY
    identity = sample_identity(np.random.default_rng((seed, 0, person)))
    return identity, sample_attributes(np.random.default_rng((seed, 1, index)), balanced, floor)


def _write_picture(
    folder: Path, image_size: int, seed: int, balanced: bool, floor: float, index: int
) -> np.ndarray:
    """Draw and save picture ``index``. Returns its attributes (40,) as integers."""
    identity, attributes = draw_parameters(index, seed, balanced, floor)
    picture = Image.fromarray(render(identity, attributes, image_size))
    picture.save(folder / f"{index + 1:06d}.jpg", quality=95, subsampling=0)
    return attributes.astype(int)


def _worker_signals() -> None:
    """Workers ignore Ctrl-C, which the parent handles. SIGTERM ends them, though the parent may have had
    another handler when it forked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def parallel_draw(draw, num_images: int, num_workers: int | None, description: str):
    """Yield draw(0) ... draw(num_images - 1) in order, under a progress bar. ``num_workers`` processes
    draw; None is one for each processor. ``draw`` must pickle."""
    workers = min(num_workers or cpu_count(), MOST_WORKERS)
    bar = partial(tqdm, total=num_images, desc=description, unit="img", smoothing=0.05)
    if workers == 1:
        yield from bar(map(draw, range(num_images)))
        return
    # This pool ends its workers by a message. A signal could reach them before they are set up.
    try:
        with ProcessPoolExecutor(workers, initializer=_worker_signals) as pool:
            yield from bar(pool.map(draw, range(num_images), chunksize=16))
    except BrokenProcessPool:
        raise OSError(
            "a process that drew faces was killed, most often for want of memory: draw with fewer, "
            "python -m synthetic_faces --num_workers 1"
        ) from None


def write_dataset(
    out: str | Path,
    num_images: int,
    image_size: int,
    seed: int,
    balanced: bool = False,
    floor: float = 0.0,
    num_workers: int | None = None,
) -> Path:
    """Draw ``num_images`` portraits into the folder ``out``, in CelebA's own layout.

    Picture i depends only on (seed, i). Each IMAGES_PER_IDENTITY pictures in a row share an identity.
    Identities are split 80/10/10 into train, val and test. The folder appears when it is complete. One
    that already holds this very dataset is left alone. ValueError for one that holds something else.

    Args:
        balanced, floor: as of ``sample_attributes``.
        num_workers: processes; None is one for each processor.
    """
    out = Path(out)
    recipe: dict[str, float] = {"drawing": VERSION, "num_images": num_images, "image_size": image_size}
    recipe |= {"seed": seed, "balanced": balanced, "floor": floor}
    if holds(out, DRAWN_FACES, recipe):
        print(f"{out} already holds these {num_images} faces", file=sys.stderr)
        return out
    with new_folder(out) as folder:
        (folder / "img_align_celeba").mkdir()
        draw = partial(_write_picture, folder / "img_align_celeba", image_size, seed, balanced, floor)
        rows = list(parallel_draw(draw, num_images, num_workers, "drawing faces"))
        _write_lists(folder, rows)
        (folder / DRAWN_FACES).write_text(json.dumps(recipe) + "\n", encoding="utf-8")
    holds(out, DRAWN_FACES, recipe)  # another process may have been faster
    return out


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill. It becomes ``out`` when it is whole, unless ``out`` holds something by then."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        folder = Path(temporary) / "whole"
        folder.mkdir()
        yield folder
        if is_empty(out):
            if out.is_dir():
                out.rmdir()  # Windows replaces no folder
            os.replace(folder, out)


def is_empty(out: Path) -> bool:
    """Whether ``out`` is missing or a folder without files."""
    return not out.exists() or (out.is_dir() and not any(out.iterdir()))


def holds(out: Path, file: str, recipe: dict[str, Any]) -> bool:
    """Whether ``out`` is what was made by a recipe, which is part of its JSON ``file``. False if it is
    missing or empty. ValueError if it holds something else."""
    if is_empty(out):
        return False
    with suppress(OSError, ValueError, TypeError):
        if recipe.items() <= dict(json.loads((out / file).read_text(encoding="utf-8"))).items():
            return True
    raise ValueError(f"{out} already holds something else; give another folder, or remove it first")


def counterfactuals(
    root: str | Path, image_size: int, crop: int
) -> Callable[[str, int], np.ndarray | None] | None:
    """What draws the counterfactuals of a folder's faces as a dataset would read them; None for a folder
    that `write_dataset` did not make. ValueError for another version of the drawing.

    Returns:
        A function (file name, column of an attribute) -> the same face with that attribute turned
        around, uint8 (image_size, image_size, 3), or None where such a face is impossible.
    """
    file = Path(root) / DRAWN_FACES
    if not file.is_file():
        return None
    with refusing_damaged(Path(root), "set of drawn faces"):
        recipe = json.loads(file.read_text(encoding="utf-8"))
        options = recipe["seed"], recipe["balanced"], recipe["floor"]
        version, side = recipe["drawing"], recipe["image_size"]
    if version != VERSION:
        raise ValueError(f"{root} was drawn by version {version}, and this is {VERSION}: draw it anew")

    def turned(name: str, column: int) -> np.ndarray | None:
        identity, attributes = draw_parameters(int(Path(name).stem) - 1, *options)
        attributes[column] *= -1
        if not attributes_are_possible(attributes):
            return None
        picture = render(identity, attributes, side)
        return to_square(Image.fromarray(picture), image_size, crop)

    return turned


def _write_lists(folder: Path, rows: list[np.ndarray]) -> None:
    """Write CelebA's lists of attributes and of splits. ``rows`` has the attributes of each picture."""
    attributes, splits = [str(len(rows)), " ".join(NAMES)], []
    for index, row in enumerate(rows):
        name, person = f"{index + 1:06d}.jpg", index // IMAGES_PER_IDENTITY
        attributes.append(f"{name} {' '.join(f'{value:2d}' for value in row)}")
        splits.append(f"{name} {SPLIT_OF_PERSON[person % 10]}")
    for file, lines in (("list_attr_celeba.txt", attributes), ("list_eval_partition.txt", splits)):
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
