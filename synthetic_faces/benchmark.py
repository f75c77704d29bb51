"""A benchmark of edits with a truth: drawn faces, what to change in each, and how it should look then.

    python -m synthetic_faces.benchmark make --out data/edit_benchmark
    python -m synthetic_faces.benchmark score --edits my_edits

docs/benchmark.md says what is in the folder, what the figures mean, and how to enter a method.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

import flags
from config import SEED, Config, count, flag
from image_data.picture import open_picture
from synthetic_faces.attributes import (
    COLUMNS,
    attributes_are_possible,
    present,
    sample_attributes,
    sample_identity,
)
from synthetic_faces.dataset import VERSION as DRAWING
from synthetic_faces.dataset import holds, new_folder
from synthetic_faces.renderer import render

EDIT_BENCHMARK = "data/edit_benchmark"  # where it is made and looked for
VERSION = 1  # of the sources, the requests and the figures: scores of two versions do not compare
FLOOR = 0.1  # rare attributes are about this frequent, as in the training set of drawn64
STREAMS = 2, 3  # of random numbers. Training sets draw from 0 and 1, so no seed of theirs gives a source
LEAST_CHANGE = 2.0  # mean squared error of source and truth, 45 dB: less cannot be seen, by eye
MEASURED_AT = 64  # pixels per side at which that is measured
WHOLE = 178  # crop of a judge that saw drawn faces as they are
FACTS, REQUESTS = "benchmark.json", "requests.jsonl"


@dataclass(frozen=True)
class MakeBenchmarkConfig(Config):
    """Flags of ``python -m synthetic_faces.benchmark make``."""

    out: str = flag(EDIT_BENCHMARK, "folder to create")
    sources: int = count(5, "faces for each attribute and direction")
    image_size: int = count(64, "side of the square images", low=32, high=4096)
    seed: int = count(0, "another seed, other faces", **SEED)


@dataclass(frozen=True)
class ScoreEditsConfig(Config):
    """Flags of ``python -m synthetic_faces.benchmark score``."""

    edits: str = flag("", "folder of edited pictures, 000.png, 001.png, ...", required=True)
    benchmark: str = flag(EDIT_BENCHMARK, "folder of the benchmark")
    judge: str | None = flag(None, "of evaluate.py judge; none given: the probe in pretrained/")


@dataclass(frozen=True)
class EditBenchmark:
    """facts: version, seed, hash, ...; requests: dictionaries with id, source, attribute, value and
    attributes; sources and truths: uint8 (N, S, S, 3)."""

    facts: dict[str, Any]
    requests: list[dict[str, Any]]
    sources: np.ndarray
    truths: np.ndarray


# -------------------------------------------------------------------- making it


def draw_faces(
    config: MakeBenchmarkConfig, column: int, value: int, indices: Iterator[int]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of faces with these indices, those that can be turned: attributes (40,), source and truth uint8
    (S, S, 3). The truth has ``value`` for the attribute of this column, and the source has not. Faces
    where that is impossible or hardly to be seen are left out."""
    for index in indices:
        who, what = (np.random.default_rng((config.seed, stream, index)) for stream in STREAMS)
        identity, attributes = sample_identity(who), sample_attributes(what, floor=FLOOR)
        turned = attributes.copy()
        turned[column] = 1 if value else -1
        if turned[column] == attributes[column] or not attributes_are_possible(turned):
            continue
        # At one size, so that sets of every size have the same faces.
        a, b = (render(identity, each, MEASURED_AT).astype(float) for each in (attributes, turned))
        if np.square(a - b).mean() >= LEAST_CHANGE:
            source, truth = (render(identity, each, config.image_size) for each in (attributes, turned))
            yield attributes, source, truth


def draw_requests(
    config: MakeBenchmarkConfig,
) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Requests, each with its source and its truth uint8 (S, S, 3). Every source is another face. For
    each attribute and direction, faces are drawn until there are enough."""
    indices, numbers = itertools.count(), itertools.count()
    for (name, column), value in product(COLUMNS.items(), (1, 0)):
        faces = draw_faces(config, column, value, indices)
        for attributes, source, truth in islice(faces, config.sources):
            number = f"{next(numbers):03d}"
            request = {
                "id": number,
                "source": f"sources/{number}.png",
                "attribute": name,
                "value": value,
                "attributes": {each: int(on) for each, on in present(attributes).items()},
            }
            yield request, source, truth


def content_hash(lines: Sequence[str], sources: np.ndarray, truths: np.ndarray) -> str:
    """The first 12 hexadecimal digits of a SHA-256 over the lines of requests and all pixels."""
    digest = hashlib.sha256("\n".join(lines).encode())
    for pictures in (sources, truths):
        digest.update(pictures.tobytes())
    return digest.hexdigest()[:12]


def make(config: MakeBenchmarkConfig) -> None:
    """Write the benchmark into a folder that appears when it is complete. One that already holds this
    very benchmark is left alone. Raises as ``holds``."""
    out = Path(config.out)
    recipe = {"version": VERSION, "drawing": DRAWING, "seed": config.seed}
    recipe |= {"sources": config.sources, "image_size": config.image_size}
    if holds(out, FACTS, recipe):
        print(f"{out} is already there: {in_words(read_benchmark(out).facts)}")
        return
    flags.check_writable(out, "--out")
    total = 2 * len(COLUMNS) * config.sources
    drawn = [*tqdm(draw_requests(config), "drawing", total, unit="request", leave=False)]
    lines = [json.dumps(request) for request, _, _ in drawn]
    sources, truths = (np.stack([each[part] for each in drawn]) for part in (1, 2))
    facts = {**recipe, "requests": total, "hash": content_hash(lines, sources, truths)}
    with new_folder(out) as folder:
        for part, pictures in (("sources", sources), ("truths", truths)):
            (folder / part).mkdir()
            for (request, _, _), pixels in zip(drawn, pictures, strict=True):
                Image.fromarray(pixels).save(folder / part / f"{request['id']}.png")
        (folder / REQUESTS).write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")
    print(f"{out}: {in_words(facts)}")


# -------------------------------------------------------------------- scoring edits


def read_benchmark(folder: str | Path) -> EditBenchmark:
    """The benchmark in a folder.

    Raises:
        FileNotFoundError, ValueError: where there is none, or one of another version, or one that has
            been changed.
    """
    folder = Path(folder)
    if not (folder / FACTS).is_file():
        command = f"python -m synthetic_faces.benchmark make --out {folder}"
        raise FileNotFoundError(f"no benchmark at {folder}: make one with {command}")
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts["version"] != VERSION:
            raise ValueError(f"it is of version {facts['version']}, and this is {VERSION}")
        lines = (folder / REQUESTS).read_text(encoding="utf-8").splitlines()
        requests = [json.loads(line) for line in lines]
        parts = (folder / "sources", folder / "truths")
        sources, truths = (read_pictures(part, requests, facts["image_size"]) for part in parts)
        pixel_hash = content_hash(lines, sources, truths)
        if pixel_hash != facts["hash"]:
            raise ValueError(f"it was changed: its hash is {pixel_hash}, not {facts['hash']}")
    except (LookupError, TypeError, ValueError, OSError) as error:
        raise ValueError(
            f"{folder} holds no benchmark that can be used: {error}: make another"
        ) from None
    return EditBenchmark(facts, requests, sources, truths)


def read_pictures(folder: Path, requests: Sequence[dict[str, Any]], image_size: int) -> np.ndarray:
    """The pictures of requests in a folder, uint8 (N, S, S, 3).

    Raises:
        FileNotFoundError, ValueError: where one is missing, is no picture, or has another size.
    """
    pictures = np.empty((len(requests), image_size, image_size, 3), np.uint8)
    for row, request in enumerate(requests):
        path = folder / f"{request['id']}.png"
        picture = open_picture(path)
        if picture.size != (image_size, image_size):
            raise ValueError(
                f"{path} has {picture.width} x {picture.height} pixels, the benchmark {image_size} x "
                f"{image_size}: give edits in the size of the sources"
            )
        pictures[row] = picture
    return pictures


def in_words(facts: dict[str, Any]) -> str:
    """One line on a benchmark."""
    text = f"edit benchmark version {facts['version']}, seed {facts['seed']}, hash {facts['hash']}"
    return f"{text}: {facts['requests']} requests at {facts['image_size']} pixels"


def score_folder(
    folder: str | Path, benchmark: EditBenchmark, judge: str | None = None
) -> dict[str, Any]:
    """Score the edits in a folder, and write the report into it as score.json.

    Args:
        judge: file of a judge; None: the probe in pretrained/.

    Raises:
        FileNotFoundError, ValueError: as ``read_pictures`` and ``load_reader``.
    """
    from checkpoint import replace_file
    from classifiers.probe import PROBE, load_reader
    from evaluation.edit_figures import score_edits

    folder, requests = Path(folder), benchmark.requests
    edits = read_pictures(folder, requests, benchmark.facts["image_size"])
    reader = load_reader(judge or PROBE, tuple(COLUMNS), WHOLE)
    scores = score_edits(requests, benchmark.sources, benchmark.truths, edits, reader)
    by = f"{judge or PROBE}, hash {reader.file_hash}"
    report = {"benchmark": benchmark.facts, "judge": by, **scores}
    text = json.dumps(report, indent=1) + "\n"
    replace_file(folder / "score.json", lambda file: file.write(text.encode()))
    return report


def score(config: ScoreEditsConfig) -> None:
    """Print the table of a folder of edits, and write score.json. Raises as ``read_benchmark`` and
    ``score_folder``."""
    flags.check_writable(config.edits, "--edits")
    benchmark = read_benchmark(config.benchmark)
    report = score_folder(config.edits, benchmark, config.judge)

    from evaluation.tables import table

    lines = table(["edits"], [([name], row) for name, row in report["table"].items()])
    print(f"{in_words(benchmark.facts)}; read by {report['judge']}\n", *lines, "", sep="\n")
    print(f"written: {config.edits}/score.json")


COMMANDS: dict[str, tuple[type[Config], Callable[[Any], None]]] = {
    "make": (MakeBenchmarkConfig, make),
    "score": (ScoreEditsConfig, score),
}


def main() -> None:
    parser = flags.Parser(description="A benchmark of edits with a truth.", allow_abbrev=False)
    parser.add_argument("command", choices=COMMANDS, help="draw the benchmark, or score edits")
    command = parser.parse_args(sys.argv[1:2]).command
    sys.argv[0] += f" {command}"
    kind, run = COMMANDS[command]
    run(flags.parse(kind, __doc__, sys.argv[2:]))


if __name__ == "__main__":
    sys.argv[0] = "synthetic_faces.benchmark"  # the name in messages, otherwise benchmark.py
    flags.run(main)
