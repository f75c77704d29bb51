"""What computes for the page: a model, its guide and an independent reader, in one thread."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import devices
import flags
import studio
from attributes import CELEBA_ATTRIBUTES
from classifiers.judge import load_judge
from classifiers.probe import load_probe
from config import PRETRAINED, Config, ModelFiles
from diffusion_model import load_model
from image_data.face_finder import find_faces
from image_data.photograph import Photograph

# From a face's centre, in pixels of CelebA's pictures, within which a click means that face. By eye: a
# face is some 120 pixels high there.
CLICK_RADIUS = 60
# Logits (B, A) of attributes in images uint8 (B, S, S, 3); 0 is the threshold.
Logits = Callable[[Tensor], Tensor]


class Worker:
    """Runs functions of ``studio`` on one model, one after another.

    OpenMP keeps a pool of threads for each thread that computes, and two pools on the same cores take
    twice as long. Therefore everything is computed in one thread.

    Args:
        files: the model and its guide.
        judge: a classifier of evaluate.py; by default the probe of a pretrained model.

    Attributes:
        model: of the checkpoint.
        guide: reads photographs and steers edits; may be None.
        names: the model's attributes.
        judged_names: the attributes that the independent reader knows; empty where there is none.

    Raises:
        FileNotFoundError, ValueError: for files that are not there or do not fit each other.
    """

    def __init__(self, files: ModelFiles, judge: str | None = None):
        self.files = files
        self.thread = ThreadPoolExecutor(1)
        self.thread.submit(self._load, judge).result()

    def _load(self, judge: str | None) -> None:
        device = devices.choose_device(self.files.device)
        self.model = load_model(self.files.checkpoint, device)
        self.guide = studio.load_guide_of(self.files, self.model)
        self.names = self.model.config.attribute_names
        self.independent, self.judged_names = self._find_reader(judge, device)

    def _find_reader(self, judge: str | None, device: str) -> tuple[Logits | None, tuple[str, ...]]:
        """A classifier that shares nothing with model and guide, and the attributes that it reads."""
        if judge:
            classifier, _ = load_judge(judge, self.names, self.model.config.crop, device)
            return classifier, self.names
        probe = f"{self.files.checkpoint}_probe"
        if (PRETRAINED / f"{probe}.safetensors").is_file():
            return load_probe(probe).to(device), CELEBA_ATTRIBUTES
        return None, ()

    def compute(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(model, guide, *args)``, one of ``studio``."""

        def work() -> Any:
            with devices.autocast(self.files.mixed_precision, self.model.device.type):
                return function(self.model, self.guide, *args)

        return self.thread.submit(work).result()

    def read(self, square: np.ndarray) -> np.ndarray:
        """How sure the model is of each attribute (A,) in a square uint8 (S, S, 3): 0 ... 1."""
        attributes = self.compute(studio.read_attributes, square)
        return (attributes[0].float().cpu().numpy() + 1) / 2

    def judge(self, images: np.ndarray) -> np.ndarray:
        """How sure the independent reader is of each attribute in images uint8 (B, S, S, 3): (B, A) in
        0 ... 1. It reads each picture and its mirror image, which halves its own noise."""
        independent = self.independent
        assert independent is not None

        @torch.no_grad()
        def work() -> np.ndarray:
            pictures = torch.from_numpy(images).to(self.model.device)
            logits = independent(pictures) + independent(pictures.flip(2))
            return (logits.float() / 2).sigmoid().cpu().numpy()

        return self.thread.submit(work).result()

    def face_at(self, photograph: Photograph, point: np.ndarray) -> int:
        """Which face, 1 the largest, lies at a point (x, y) of a picture. 0 where there is none."""
        try:
            faces = find_faces(photograph.picture) if studio.knows_faces(self.model) else []
        except ImportError:
            faces = []
        for number, face in enumerate(faces, 1):
            if np.linalg.norm(face.points.mean(0) - point) < CLICK_RADIUS * face.scale:
                return number
        return 0

    # ---------------------------------------------------------------- how to make it again

    def command(self, mode: str, *settings: Config) -> str:
        """The command of manipulate.py that makes the same pictures. A file is named without its
        folder."""
        named = [without_folder(part) for part in settings]
        return flags.command(f"manipulate.py --mode {mode}", self.files, *named)

    def manifest(self, mode: str, *settings: Config) -> str:
        """What is needed to make the same pictures, as JSON."""
        arguments: dict[str, Any] = {"mode": mode}
        for part in (self.files, *settings):
            arguments |= flags.flags_of(part)
        facts = {
            "command": self.command(mode, *settings),
            "arguments": arguments,
            **studio.model_facts(self.files, self.model, self.guide),
        }
        return json.dumps(facts, indent=2, default=str) + "\n"


def without_folder(settings: Config) -> Config:
    """The same settings with pictures that are named without their folder."""
    for name in ("source_image", "target_image"):
        path = getattr(settings, name, None)
        if path:
            settings = replace(settings, **{name: Path(path).name})
    return settings
