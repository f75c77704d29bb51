"""The tab on which one request turns into another, or one picture into another."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gradio as gr

import studio
from config import InterpolateSettings, PhotographSettings
from figures.grids import save_gif
from image_data.picture import open_picture
from page import parts
from page.parts import BAR, COMPUTES, QUICK, one_line_errors, status_line
from page.visitors import Visitor, Visitors
from page.worker import Worker

KINDS = ("requests", "pictures")


class InterpolateTab:
    """Frames between two requests or two pictures, and their film."""

    def __init__(self, worker: Worker, visitors: Visitors):
        self.worker, self.visitors = worker, visitors
        names, are_classes = worker.names, worker.model.config.one_hot
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                self.kind = gr.Radio(list(KINDS), value=KINDS[0], label="Between two", elem_id="between")
                with gr.Group() as self.by_request:
                    self.start = parts.RequestFields(names, are_classes, "From", ("Male",), ("Smiling",))
                    self.end = parts.RequestFields(names, are_classes, "To", ("Smiling",), ("Male",))
                with gr.Row(visible=False) as self.by_picture:
                    self.ends = {"from": parts.picture_input("From"), "to": parts.picture_input("To")}
                self.frames = gr.Slider(3, 20, 10, step=1, label="Frames", buttons=[])
                self.seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                with gr.Row():
                    self.mix = gr.Button("Interpolate", variant="primary", elem_id="mix")
                    self.stop = gr.Button("Stop", variant="stop")
                self.status = gr.HTML(status_line(""), elem_id="between_status")
            with gr.Column(scale=5, min_width=300):
                self.strip = parts.gallery("Frame by frame", 5, "strip")
                self.film = parts.picture_output(
                    "Film", "The frames as a film", elem_id="film", buttons=["download"]
                )
                self.command = parts.command_line()

    def connect(self) -> None:
        for end, image in self.ends.items():
            # ``preprocess`` would open the file before we look at it, and would fetch addresses.
            image.upload(self.take(end), [image], [image], preprocess=False, **QUICK)
            image.clear(self.drop(end), None, None, **QUICK)
        both = [self.by_request, self.by_picture]
        self.kind.change(groups_of, [self.kind], both, **QUICK)
        fields = [*self.start.fields, *self.end.fields]
        values = [self.kind, self.frames, self.seed, *fields]
        outputs = [self.strip, self.film, self.status, self.command]
        self.mix.click(self.interpolate, values, outputs, **COMPUTES, show_progress_on=[self.status])

    # ---------------------------------------------------------------- ends

    def take(self, end: str) -> Callable:
        """A handler that takes a picture as an end."""

        @one_line_errors()
        def take(request: gr.Request, upload: Any) -> str:
            visitor = self.visitors.of(request.session_hash)
            visitor.ends[end] = self.visitors.received(visitor, upload)
            return show_end(visitor, end)

        return take

    def take_face(self, end: str) -> Callable:
        """A handler that makes the chosen face of ``GenerateTab`` an end."""

        @one_line_errors()
        def take(request: gr.Request) -> dict:
            visitor = self.visitors.of(request.session_hash)
            visitor.ends[end] = visitor.chosen_face()
            by_request, by_picture = groups_of("pictures")
            return {
                self.ends[end]: show_end(visitor, end),
                self.kind: "pictures",
                self.by_request: by_request,
                self.by_picture: by_picture,
            }

        return take

    def drop(self, end: str) -> Callable:
        """A handler that forgets an end."""

        def drop(request: gr.Request) -> None:
            self.visitors.of(request.session_hash).ends.pop(end, None)

        return drop

    # ---------------------------------------------------------------- frames

    @one_line_errors()
    def interpolate(
        self, request: gr.Request, progress=BAR, kind=KINDS[0], frames=10, seed=0, *values
    ) -> dict:
        visitor = self.visitors.of(request.session_hash)
        started, bar = time.perf_counter(), parts.progress_bar(visitor, progress)
        make = self.mix_pictures if kind == "pictures" else self.mix_requests
        try:
            result, line = make(visitor, int(frames), int(seed or 0), values, bar)
        except parts.Stopped:
            return {self.status: status_line("Stopped.")}
        side = self.worker.model.config.image_size
        film = save_gif(
            visitor.new_file("film.gif"), result.images, scale=max(1, parts.FILM_SIDE // side)
        )
        pictures = [parts.save_enlarged(image, visitor.new_file("frame.png")) for image in result.images]
        seconds = time.perf_counter() - started
        return {
            self.strip: [str(path) for path in pictures],
            self.film: str(film),
            self.status: status_line(f"{len(pictures)} frames in {seconds:.1f} seconds."),
            self.command: line,
        }

    def mix_requests(self, visitor, frames: int, seed: int, values, bar) -> tuple[studio.Result, str]:
        """Frames between two requests, and their command."""
        half = len(values) // 2
        start, end = self.start.request(values[:half]), self.end.request(values[half:])
        if not start or not end:
            raise ValueError("both ends need at least one attribute")
        settings = InterpolateSettings(start=start, end=end, interpolation_steps=frames, seed=seed)
        result = self.worker.compute(studio.interpolate, settings, bar)
        return result, self.worker.command("interpolate", settings)

    def mix_pictures(self, visitor, frames: int, seed: int, values, bar) -> tuple[studio.Result, str]:
        """Frames between two pictures, and their command."""
        if len(visitor.ends) < 2:
            raise ValueError("two pictures are needed: drop them, or send generated faces here")
        first, last = (PhotographSettings(str(visitor.ends[end])) for end in ("from", "to"))
        squares = [studio.open_photograph(self.worker.model, each)[0].square for each in (first, last)]
        settings = InterpolateSettings(
            target_image=last.source_image, interpolation_steps=frames, seed=seed
        )
        result = self.worker.compute(studio.interpolate_photographs, squares, settings, bar)
        return result, self.worker.command("interpolate", first, settings)


def groups_of(kind: str) -> list:
    """Shows the inputs of one kind of ends, and hides the others."""
    return [gr.update(visible=kind == each) for each in KINDS]


def show_end(visitor: Visitor, end: str) -> str:
    """The picture of an end, for the page. An end that is no picture is forgotten, ValueError."""
    try:
        picture = open_picture(visitor.ends[end])
    except ValueError:
        del visitor.ends[end]
        raise
    path = visitor.new_file("end.jpg")
    parts.view(picture).save(path, quality=92)
    return str(path)
