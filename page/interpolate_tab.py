"""The tab on which one request turns into another, or one picture into another."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

import studio
from config import InterpolateSettings, PhotographSettings
from figures.grids import save_gif, save_image
from page import parts
from page.fields import NewFaceFields
from page.parts import BAR, COMPUTES, RECEIVES, one_line_errors, status_line
from page.visitors import Visitors
from page.worker import Worker

ENDS = ("from", "to")
MOST_FRAMES = 20  # by eye: some seconds of film


class InterpolateTab:
    """Frames between two pictures, or without any between two requests, and their film."""

    def __init__(self, worker: Worker, visitors: Visitors):
        self.worker, self.visitors = worker, visitors
        config = worker.model.config
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                self.start = NewFaceFields(config, "From", ("Male",), ("Smiling",))
                self.end = NewFaceFields(config, "To", ("Smiling",), ("Male",))
                with gr.Row():
                    self.ends = [
                        gr.Image(label=f"Or {end} this picture", elem_id=end, **parts.PICTURE_IN)
                        for end in ENDS
                    ]
                frames = gr.Slider(3, MOST_FRAMES, 10, step=1, label="Frames", buttons=[])
                self.controls = parts.Controls("Interpolate", "interpolate", visitors)
            with gr.Column(scale=5, min_width=300):
                self.strip = gr.Gallery(label="Frame by frame", columns=5, **parts.GALLERY)
                film = parts.PICTURE_OUT | {"alt_text": "The frames as a film", "buttons": ["download"]}
                self.film = gr.Image(label="Film", elem_id="film", elem_classes="square", **film)
                self.command = gr.Textbox(interactive=False, **parts.COMMAND)
        for image in self.ends:
            gr.on([image.upload, image.clear], self.take, [image], [image], **RECEIVES)
        status = self.controls.status
        values = [frames, self.controls.seed, *self.start.fields, *self.end.fields]
        outputs = [self.strip, self.film, status, self.command]
        self.controls.go.click(self.interpolate, values, outputs, **COMPUTES, show_progress_on=[status])

    @one_line_errors()
    def take(self, request: gr.Request, event: gr.EventData, upload: Any) -> Path | None:
        """Take a picture as the end that it was sent to. None: that was cleared."""
        visitor = self.visitors.of(request)
        path = self.visitors.received(visitor, upload) if upload else None
        visitor.ends[event.target.elem_id] = path
        return path

    @one_line_errors()
    def take_face(self, request: gr.Request, event: gr.EventData) -> dict:
        """Make the chosen face of ``GenerateTab`` an end."""
        visitor, end = self.visitors.of(request), event.target.elem_id.removeprefix("face_")
        visitor.ends[end] = visitor.chosen_face()
        return {self.ends[ENDS.index(end)]: visitor.ends[end]}

    @one_line_errors()
    def interpolate(self, request: gr.Request, progress=BAR, *values) -> dict:
        frames, seed, *fields = values
        visitor = self.visitors.of(request)
        started, bar = time.perf_counter(), parts.progress_bar(visitor, progress)
        settings = InterpolateSettings(interpolation_steps=int(frames), seed=parts.seed_of(seed))
        ends = [visitor.ends.get(end) for end in ENDS]
        if any(ends):
            if not all(ends):
                raise ValueError("two pictures are needed: drop them, or send generated faces here")
            first, last = (PhotographSettings(str(path)) for path in ends)
            squares = [self.worker.photograph(each).square for each in (first, last)]
            settings = replace(settings, target_image=last.source_image)
            result = self.worker.compute(studio.interpolate_photographs, squares, settings, bar)
            command = self.worker.command("interpolate", first, settings)
        else:
            half = len(fields) // 2
            start, end = self.start.request(fields[:half]), self.end.request(fields[half:])
            if not start or not end:
                raise ValueError("both ends need at least one attribute: choose one for each")
            settings = replace(settings, start=start, end=end)
            result = self.worker.compute(studio.interpolate, settings, bar)
            command = self.worker.command("interpolate", settings)
        seconds, folder = time.perf_counter() - started, visitor.new_folder()
        images = result.images
        strip = [save_image(image, folder / f"{i:03d}.png") for i, image in enumerate(images)]
        return {
            self.strip: strip,
            self.film: save_gif(folder / "film.gif", images),
            self.controls.status: status_line(f"{len(images)} frames in {seconds:.1f} seconds."),
            self.command: command,
        }
