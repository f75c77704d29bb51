"""The page by program: generate, edit and interpolate as named endpoints, for gradio_client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

import studio
from config import EditSettings, GenerateSettings, InterpolateSettings, PhotographSettings
from figures.grids import save_gif, save_image
from image_data.picture import write_note
from page.generate_tab import MOST_FACES
from page.interpolate_tab import MOST_FRAMES
from page.parts import COMPUTES, one_line_errors
from page.visitors import Visitor, Visitors
from page.worker import Worker


def request_items(attributes: Any) -> tuple[str, ...]:
    """A request as ``parse_request`` takes it, from {"Smiling": 1} or "Smiling=1 Male=0"."""
    if isinstance(attributes, dict):
        return tuple(f"{name}={value}" for name, value in attributes.items())
    return tuple(str(attributes or "").replace(",", " ").split())


def within(number: Any, least: int, most: int, name: str) -> int:
    if not isinstance(number, int | float) or not least <= number <= most:
        raise ValueError(f"{name} is {number!r:.40}: give {least} to {most}")
    return int(number)


class Api:
    """Endpoints of plain arguments. What they make is deleted a minute later."""

    def __init__(self, worker: Worker, visitors: Visitors, blocks: gr.Blocks):
        self.worker, self.visitors = worker, visitors
        for function in (self.generate, self.edit, self.interpolate):
            options = COMPUTES | {"api_visibility": "public", "api_name": function.__name__}
            endpoint = gr.api(function, **options)
            # Else gradio would fetch addresses that are sent as pictures.
            blocks.fns[endpoint["id"]].preprocess = False

    @contextmanager
    def guest(self) -> Iterator[Visitor]:
        """Who calls, for one call."""
        with one_line_errors():
            visitor = self.visitors.add("api")
            try:
                yield visitor
            finally:  # the files go with a sweep
                visitor.session, visitor.active = None, time.monotonic()

    def file(self, path: Path) -> dict:
        return gr.FileData(path=str(path)).model_dump()

    def generate(self, attributes: Any = "", number: int = 1, seed: int = 0) -> list:
        """New faces, as picture files. attributes: {"Smiling": 1, "Male": 0}, or "Smiling=1 Male=0"."""
        with self.guest() as visitor:
            number = within(number, 1, MOST_FACES, "number")
            request = request_items(attributes) or self.worker.any_request()
            settings = GenerateSettings(attributes=request, num_samples=number, seed=seed)
            images = self.worker.compute(studio.generate, settings).images
            folder = visitor.new_folder()
            return [self.file(save_image(each, folder / f"{i}.png")) for i, each in enumerate(images)]

    def edit(self, picture: dict, attributes: Any, strength: float = 1.0, seed: int = 0) -> list:
        """An edit of a picture, as two files: the model's square, and the whole picture."""
        with self.guest() as visitor:
            source = PhotographSettings(str(self.visitors.received(visitor, picture)))
            photograph = self.worker.photograph(source)
            settings = EditSettings(request_items(attributes), strength, seed=seed)
            if not settings.attributes:
                raise ValueError('no attributes: give some, such as {"Smiling": 1}')
            edited, folder = self.worker.edit(photograph.square, settings), visitor.new_folder()
            whole = photograph.save_whole(edited, folder / "whole.png")
            files = [save_image(edited, folder / "edit.png"), whole]
            for path in files:
                write_note(path, self.worker.note(photograph, source, [settings]))
            return [self.file(path) for path in files]

    def interpolate(self, start: Any, end: Any, frames: int = 10, seed: int = 0) -> dict:
        """A film from one request to another, as a GIF."""
        with self.guest() as visitor:
            number = within(frames, 3, MOST_FRAMES, "frames")
            first, last = request_items(start), request_items(end)
            settings = InterpolateSettings(start=first, end=last, interpolation_steps=number, seed=seed)
            images = self.worker.compute(studio.interpolate, settings).images
            return self.file(save_gif(visitor.new_folder() / "film.gif", images))
