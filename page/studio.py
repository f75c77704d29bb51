"""What the page does, without the page: the model, its guide and a reader, asked by configurations.

Every method takes the ``ManipulateConfig`` with which manipulate.py makes the same picture. So the page
can say the command, and both give the same pixels.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

import devices
import flags
from attributes import CELEBA_ATTRIBUTES, parse_request
from checkpoint import file_hash, find_weights
from classifiers.guide import load_guide
from classifiers.judge import load_judge
from classifiers.probe import load_probe
from config import PRETRAINED
from diffusion_model import load_model
from editing import Editor
from image_data.face_finder import align_to_face, find_faces
from image_data.photograph import Photograph
from samplers import Progress, resolve, sample_generators

if TYPE_CHECKING:
    from app import AppConfig
    from manipulate import ManipulateConfig

REACH = 60  # from a face's centre, in pixels of CelebA's pictures, within which a click means that face
# What reads attributes from images uint8 (B, S, S, 3): logits (B, A), 0 the threshold.
Reader = Callable[[Tensor], Tensor]


def in_one_thread(method: Callable) -> Callable:
    """A method of the studio that computes, moved into the studio's own thread. OpenMP keeps a pool of
    threads for each thread that computes. Two pools on the same cores take twice as long."""

    @functools.wraps(method)
    def call(self, *args):
        return self.thread.submit(method, self, *args).result()

    return call


class Studio:
    """A model that is asked by configurations of manipulate.py.

    Args:
        config: of the page.

    Attributes:
        script: the flags that the page's commands share.
        model: of the checkpoint.
        guide: reads photographs and steers edits; may be None.
        names: the model's attributes.
        of_faces: whether some of them are CelebA's. Only then are faces searched for.
        read_by: the attributes that an independent reader knows; empty where there is none.

    Raises:
        FileNotFoundError, ValueError: for files that are not there or do not fit each other.
    """

    def __init__(self, config: AppConfig):
        self.thread = ThreadPoolExecutor(1)
        self.script = config.script
        self._load(config)

    @in_one_thread
    def _load(self, config: AppConfig) -> None:
        self.device = devices.choose_device(config.device)
        self.model = load_model(config.checkpoint, self.device)
        file = self.script.guide_file
        self.guide = load_guide(file, self.device) if file else None
        if self.guide is not None:
            self.model.check_guide(self.guide)
        self.names = self.model.config.attribute_names
        self.of_faces = not set(CELEBA_ATTRIBUTES).isdisjoint(self.names)
        self.reader, self.read_by = self._find_reader(config)

    def _find_reader(self, config: AppConfig) -> tuple[Reader | None, tuple[str, ...]]:
        """A classifier that shares nothing with model and guide, and the attributes that it reads."""
        probe = f"{config.checkpoint}_probe"
        if config.judge:
            judge, _ = load_judge(config.judge, self.names, self.model.config.crop, self.device)
            return judge, self.names
        if (PRETRAINED / f"{probe}.safetensors").is_file():
            return load_probe(probe).to(self.device), CELEBA_ATTRIBUTES
        return None, ()

    # ---------------------------------------------------------------- photographs

    def open(self, config: ManipulateConfig) -> tuple[Photograph, str]:
        """The photograph of a configuration, found and framed as manipulate.py does, and a line on it.

        Raises:
            ValueError: for what is no picture, or landmarks or a face that are not there.
        """
        assert config.source_image is not None
        size, crop = self.model.config.image_size, self.model.config.crop
        photograph = Photograph(config.source_image, size, crop, config.landmarks)
        if config.landmarks or not (config.face and self.of_faces):
            return photograph, ""
        return photograph, align_to_face(photograph, config.face)

    def face_at(self, photograph: Photograph, point: np.ndarray) -> int:
        """Which face, 1 the largest, lies at a point (x, y) of a picture. 0 where there is none."""
        try:
            faces = find_faces(photograph.picture) if self.of_faces else []
        except ImportError:
            faces = []
        for number, face in enumerate(faces, 1):
            if np.linalg.norm(face.points.mean(0) - point) < REACH * face.scale:
                return number
        return 0

    @in_one_thread
    def read(self, square: np.ndarray) -> np.ndarray:
        """How sure the model is of each attribute (A,) in a square uint8 (S, S, 3): 0 ... 1."""
        with self._computing():
            seen = self.model.predict_attributes(torch.from_numpy(square)[None], self.guide)
        return (seen[0].float().cpu().numpy() + 1) / 2

    @in_one_thread
    @torch.no_grad()
    def judge(self, images: np.ndarray) -> np.ndarray:
        """How sure the independent reader is of each attribute in images uint8 (B, S, S, 3): (B, A) in
        0 ... 1. It reads each picture and its mirror image, which halves its own noise."""
        assert self.reader is not None
        seen = torch.from_numpy(images).to(self.device)
        logits = self.reader(seen) + self.reader(seen.flip(2))
        return (logits.float() / 2).sigmoid().cpu().numpy()

    # ---------------------------------------------------------------- what manipulate.py makes

    @in_one_thread
    def edit(
        self, config: ManipulateConfig, square: np.ndarray, progress: Progress = False
    ) -> np.ndarray:
        """A square uint8 (S, S, 3), edited towards all attributes of ``config`` at once."""
        image = torch.from_numpy(square)[None]
        with self._computing():
            edit_at = Editor(self.model).prepare_edit(
                image,
                parse_request(config.attributes),
                config.editing,
                self.model.predict_attributes(image, self.guide),
                self.guide,
                torch.Generator().manual_seed(config.seed),
                progress,
            )
            return edit_at(config.manipulation_strength)[0].cpu().numpy()

    @in_one_thread
    def generate(self, config: ManipulateConfig, progress: Progress = False) -> np.ndarray:
        """New faces uint8 (N, S, S, 3)."""
        number = config.num_samples or 8
        requests = [parse_request(config.attributes)] * number
        others = sample_generators(config.seed + 1, range(number))
        rows = self.model.complete_rows(requests, generator=others)
        noise = sample_generators(config.seed, range(number))
        with self._computing():
            images = self.model.sample(
                number, None, rows, self._sampling(config), noise, progress=progress, complete=False
            )
        return images.cpu().numpy()

    @in_one_thread
    def interpolate(self, config: ManipulateConfig, progress: Progress = False) -> np.ndarray:
        """Frames uint8 (N, S, S, 3): between two photographs, or between two requests."""
        frames = config.interpolation_steps
        generator = torch.Generator().manual_seed(config.seed)
        with self._computing():
            if config.target_image:
                both = replace(config, source_image=config.target_image)
                squares = [self.open(each)[0].square for each in (config, both)]
                images = torch.from_numpy(np.stack(squares))
                seen = self.model.predict_attributes(images, self.guide)
                steps = config.editing.num_inference_steps
                found = Editor(self.model).interpolate(images, frames, steps, seen, progress=progress)
            else:
                start, end = parse_request(config.start), parse_request(config.end)
                rows = self.model.complete_ends(start, end, generator.clone_state())
                found = self.model.interpolate_between_attributes(
                    *rows,
                    frames,
                    sampling=self._sampling(config),
                    generator=generator,
                    progress=progress,
                    complete=False,
                )
        return found.cpu().numpy()

    # ---------------------------------------------------------------- how to make it again

    def manifest(self, config: ManipulateConfig) -> str:
        """What is needed to make a picture again, as JSON."""
        facts = {
            "command": command(config),
            "arguments": asdict(config),
            "checkpoint": file_hash(config.checkpoint),
            "guide": file_hash(config.guide_file) if self.guide and config.guide_file else None,
            "precision": devices.choose_precision(config.mixed_precision, self.device),
            "model": find_weights(config.checkpoint).name,
        }
        return json.dumps(facts, indent=2, default=str) + "\n"

    def _sampling(self, config: ManipulateConfig):
        return resolve(config.sampling, self.model.schedule, self.model.config.guidable)

    def _computing(self):
        return devices.autocast(self.script.mixed_precision, self.device)


def command(config: ManipulateConfig) -> str:
    """The command of manipulate.py that makes the same picture. A file is named without its folder."""
    if config.source_image:
        config = replace(config, source_image=Path(config.source_image).name)
    if config.target_image:
        config = replace(config, target_image=Path(config.target_image).name)
    return flags.command("manipulate.py", config)
