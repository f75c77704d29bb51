"""What computes for the page: a model, its guide and an independent reader, in one thread."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from PIL import Image

import devices
import flags
import studio
from attributes import going_along, parse_request, request_rows
from classifiers.guide import GuidanceClassifier
from classifiers.probe import load_reader
from config import PRETRAINED, Config, EditConfig, EditSettings, ModelFiles, PhotographSettings
from diffusion_model import ConditionalDiffusion, load_model
from editing import NoisySource
from image_data.face_finder import find_faces
from image_data.photograph import Photograph, from_levels
from image_data.picture import Note
from samplers import Progress

# From a face's centre, in pixels of CelebA's pictures, within which a click means that face. By eye: a
# face is some 120 pixels high there.
CLICK_RADIUS = 60
MOST_SHARED = 16  # ways of editing one square whose shared part is kept; limits the memory
MOST_EDIT_STEPS = 100  # of an edit that is made again; by eye: a minute of two processors


def mask_in(settings: EditSettings, side: int) -> np.ndarray | None:
    """The mask (side, side) of an edit, from a file that the page has written."""
    if not settings.mask:
        return None
    mask = Image.open(settings.mask).resize((side, side), Image.Resampling.BILINEAR)
    return from_levels(np.asarray(mask))


class Worker:
    """Runs functions of ``studio`` on one model, one after another.

    OpenMP keeps a pool of threads for each thread that computes, and two pools on the same cores take
    twice as long. Therefore everything is computed in one thread.

    Args:
        files: the model and its guide, which reads photographs and steers edits.
        judge: a classifier of evaluate.py; by default the probe of a pretrained model.
        thread: that of another worker on the same cores; by default a new one.

    Attributes:
        name: of the model: its file, and " of --beside" where both files are called so.
        judged_names: the attributes that the independent reader knows; empty where there is none.
    """

    def __init__(
        self, files: ModelFiles, judge: str | None = None, thread: ThreadPoolExecutor | None = None
    ):
        self.files, self.name = files, Path(files.checkpoint).name
        self.latest: tuple[bytes, int] = b"", 0  # the square of the last edit, and its seed
        self.sources: dict[EditConfig, NoisySource] = {}
        self.thread = thread or ThreadPoolExecutor(1)
        self.thread.submit(self._load, judge).result()

    def _load(self, judge: str | None) -> None:
        device = devices.choose_device(self.files.device)
        self.model = load_model(self.files.checkpoint, device)
        self.guide = studio.load_guide_of(self.files, self.model)
        config, probe = self.model.config, f"{self.files.checkpoint}_probe"
        self.correlation = self.model.attribute_prior.correlation().cpu()
        if not judge and (PRETRAINED / f"{probe}.safetensors").is_file():
            judge = probe
        # It shares nothing with model and guide. Images uint8 (B, S, S, 3) -> logits (B, A).
        self.independent: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.judged_names: tuple[str, ...] = ()
        if judge:
            self.independent = load_reader(judge, config.attribute_names, config.crop, device)
            self.judged_names = config.attribute_names

    def another(self, checkpoint: str) -> Worker:
        """A worker of another model of the same attributes. Its guide is the usual one.

        Raises:
            ValueError: for a model of other attributes.
        """
        worker = Worker(replace(self.files, checkpoint=checkpoint, guide=None), thread=self.thread)
        if worker.name == self.name:
            worker.name += " of --beside"
        own, others = (set(each.model.config.attribute_names) for each in (self, worker))
        if own != others:
            different = ", ".join(sorted(own ^ others)[:3])
            raise ValueError(
                f"{worker.name} and {self.name} are of different attributes ({different}, ...): give "
                "--beside a model of the same"
            )
        return worker

    def start(self, function: Callable[..., Any], *args: Any) -> Future:
        """Begin ``function(model, guide, *args)``, one of ``studio``."""

        def work() -> Any:
            with devices.autocast(self.files.mixed_precision, self.model.device.type):
                return function(self.model, self.guide, *args)

        return self.thread.submit(work)

    def compute(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(model, guide, *args)``, one of ``studio``."""
        return self.start(function, *args).result()

    def any_request(self, seed: int = 0) -> tuple[str, ...]:
        """The request of a visitor who names nothing: a sharp face, or one name of a model of other
        things."""
        names = self.model.config.attribute_names
        return ("Blurry=0",) if "Blurry" in names else (f"{names[seed % len(names)]}=1",)

    def photograph(self, settings: PhotographSettings) -> Photograph:
        """A photograph as the model sees it."""
        return studio.open_photograph(self.model, settings)[0]

    def edit(self, square: np.ndarray, settings: EditSettings, bar: Progress = False) -> np.ndarray:
        """The finished edit of ``edit_live``."""
        *_, (edited, _) = self.edit_live(square, settings, bar)
        return edited

    def edit_live(
        self, square: np.ndarray, settings: EditSettings, bar: Progress = False
    ) -> Iterator[tuple[np.ndarray, bool]]:
        """One edit of a square uint8 (S, S, 3) as it becomes visible, and whether it is finished. What
        it shares is left to the next edit of the same square. Its mask is a file of the page's."""
        pictures: SimpleQueue[np.ndarray | None] = SimpleQueue()

        def show(images: torch.Tensor) -> None:
            pictures.put(images[0].cpu().numpy())

        def work(model: ConditionalDiffusion, guide: GuidanceClassifier | None) -> np.ndarray:
            key = square.tobytes(), settings.seed
            number = sum(len(source.x0_hats) for source in self.sources.values())
            if key != self.latest or number > MOST_SHARED:
                self.latest, self.sources = key, {}
            mask = mask_in(settings, len(square))
            shared = mask, self.sources, show
            return studio.edit(model, guide, square, settings, bar, *shared).images[0]

        future = self.start(work)
        future.add_done_callback(lambda _: pictures.put(None))
        while (picture := pictures.get()) is not None:
            yield picture, False
        yield future.result(), True

    def read(self, square: np.ndarray) -> np.ndarray:
        """How sure the model is of each attribute (A,) in a square uint8 (S, S, 3): 0 ... 1."""
        attributes = self.compute(studio.read_attributes, square)
        return (attributes[0].float().cpu().numpy() + 1) / 2

    def related(self, request: Mapping[str, float], read: np.ndarray) -> dict[str, int]:
        """What goes with a request on a picture in which the model reads (A,), 0 ... 1: name -> 1 comes,
        -1 ends. It is what the request excludes or implies, and what correlates with it in the training
        rows."""
        names = self.model.config.attribute_names
        if self.model.config.one_hot:
            return {}
        named = request_rows(names, [request])
        shown = torch.from_numpy(2 * read - 1)[None].to(named)
        along = going_along(named, shown, names, self.correlation)[0].tolist()
        return {
            name: int(way) for name, way in zip(names, along, strict=True) if way and name not in request
        }

    def judge(self, square: np.ndarray) -> np.ndarray:
        """How sure the independent reader is of each attribute that it knows in a square uint8
        (S, S, 3): 0 ... 1. It reads the picture and its mirror image, which halves its own noise."""
        independent = self.independent
        if independent is None:
            return np.zeros(0)

        @torch.no_grad()
        def work() -> np.ndarray:
            picture = torch.from_numpy(square)[None].to(self.model.device)
            logits = independent(picture) + independent(picture.flip(2))
            return (logits[0].float() / 2).sigmoid().cpu().numpy()

        return self.thread.submit(work).result()

    def face_at(self, photograph: Photograph, point: np.ndarray) -> int:
        """Which face, 1 the largest, lies at a point (x, y) of a picture. 0 where there is none."""
        if not studio.knows_faces(self.model):
            return 0
        with suppress(ImportError):  # the library that finds faces is optional
            for number, face in enumerate(find_faces(photograph.picture), 1):
                if np.linalg.norm(face.points.mean(0) - point) < CLICK_RADIUS * face.scale:
                    return number
        return 0

    def command(self, mode: str, *settings: Config) -> str:
        """The command of manipulate.py that makes the same pictures. A file is named without its
        folder."""
        parts = []
        for part in settings:
            for name in ("source_image", "target_image", "mask"):
                path = getattr(part, name, None)
                if path:
                    part = replace(part, **{name: Path(path).name})
            parts.append(part)
        return flags.command(f"manipulate.py --mode {mode}", self.files, *parts)

    def note(
        self, photograph: Photograph, source: PhotographSettings, steps: Sequence[EditSettings]
    ) -> Note:
        """What made an edit in several steps, for its file."""
        *before, last = steps
        precision = devices.choose_precision(self.files.mixed_precision, self.model.device.type)
        settings = flags.portable(replace(self.files, mixed_precision=precision), source, last)
        request = [f"{name}={value}" for name, value in parse_request(last.attributes).items()]
        settings |= {"mode": "edit", "attributes": request}
        if before:
            settings["steps"] = [
                flags.portable(each) | {"mask": each.mask and Path(each.mask).name} for each in before
            ]
        squares, mask = {"source_image": photograph}, (last.mask, mask_in(last, photograph.image_size))
        return Note(settings, studio.files_behind(self.files, self.model, self.guide, squares, mask))

    def steps_in(self, note: Note, masks: Path) -> list[EditSettings]:
        """The steps that a picture's note tells of, with masks from a folder. Anyone may have written
        it."""
        behind = studio.files_behind(self.files, self.model, self.guide)
        note.check_files(behind, ("checkpoint", "guide"))
        last = note.settings | {"mask": note.files["mask"][0] if "mask" in note.files else None}
        before = last.get("steps", [])
        if not isinstance(before, list) or not all(isinstance(each, dict) for each in before):
            raise ValueError("its steps are no list of settings: send the photograph, and edit it anew")
        steps, kept = [], flags.portable_names(EditSettings)
        for values in (*before, last):
            step = flags.from_values(EditSettings, {key: values[key] for key in values if key in kept})
            if step.editing.num_inference_steps > MOST_EDIT_STEPS or not step.attributes:
                raise ValueError("it tells of no edit that is made here: edit its photograph anew")
            self.model.attribute_rows(parse_request(step.attributes))
            if mask := values.get("mask"):  # files of masks have their hash as name
                path = masks / re.sub(r"[^\w.]", "", str(mask))[:40]
                if not re.fullmatch(r"mask_[0-9a-f]+\.png", path.name) or not path.is_file():
                    raise ValueError(
                        f"load the mask {path.name} that it was made with, then send it again"
                    )
                step = replace(step, mask=str(path))
            steps.append(step)
        return steps
