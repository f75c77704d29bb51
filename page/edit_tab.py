"""The tab on which a picture is edited."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np

import studio
from config import EditSettings, GenerateSettings, PhotographSettings
from figures.grids import heat_map, save_image
from image_data.photograph import Photograph
from image_data.picture import over_white
from page import parts
from page.fields import PRESETS, EditFields
from page.leaks import leak_meter
from page.parts import BAR, COMPUTES, QUICK, one_line_errors, status_line
from page.visitors import Edit, Source, Visitor, Visitors
from page.worker import Worker

# Steps of the first picture that an edit shows, at 64 pixels; fewer where there are more. By eye: with
# fewer it is another face, and more take longer than a second.
PREVIEW_STEPS = 6
NOT_MOVED = (0, 0, 1, 0)  # of the frame: right, down, size, turn


class EditTab:
    """A picture, what is asked of it, and what came of it."""

    def __init__(self, worker: Worker, visitors: Visitors):
        self.worker, self.visitors = worker, visitors
        side = worker.model.config.image_size
        self.preview_steps = max(2, min(PREVIEW_STEPS, PREVIEW_STEPS * 64 // side))
        line = "No independent reader: train one with evaluate.py judge, and give it as --judge."
        if worker.judged_names:
            line = "After an edit: what an independent reader saw change."
        self.no_meter = status_line(line)
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                self.build_source()
            with gr.Column(scale=3, min_width=280, elem_id="request"):
                self.fields = EditFields(worker.model.config)
                self.strength = gr.Slider(0.1, 1, 1, step=0.05, label="Strength of the edit", buttons=[])
            with gr.Column(scale=4, min_width=300, elem_id="result"):
                self.build_result()
        self.build_history()
        self.outputs = [
            *self.fields.fields, self.strength, self.seed, self.upload, self.line, self.frame,
            *self.placing, self.compared, self.heat, self.whole, self.status, self.meter, self.past,
            self.command, self.files,
        ]  # fmt: skip
        self.connect()

    # ---------------------------------------------------------------- building

    def build_source(self) -> None:
        """The picture to edit, and its frame."""
        label = "Your picture: drop it, paste it, or take it"
        self.upload = gr.Image(label=label, elem_id="upload", **parts.PICTURE_IN)
        self.own = gr.Button("Or take a generated one", elem_id="own")
        self.line = gr.HTML(status_line("No picture yet."), elem_id="line")
        label = "The frame: click a face, or where it should be"
        frame = parts.PICTURE_OUT | {"alt_text": "Your picture with a frame around what is edited"}
        self.frame = gr.Image(label=label, elem_id="frame", height=320, **frame)
        with gr.Accordion("Move the frame", open=False):
            self.placing = [
                gr.Slider(-10, 10, 0, step=0.05, label="Right, in frames", buttons=[]),
                gr.Slider(-10, 10, 0, step=0.05, label="Down, in frames", buttons=[]),
                gr.Slider(0.4, 2.5, 1, step=0.05, label="Size", buttons=[]),
                gr.Slider(-180, 180, 0, step=1, label="Turn, in degrees", buttons=[]),
            ]
            self.place = gr.Button("Look there")

    def build_result(self) -> None:
        """What an edit made, and what an independent reader says of it."""
        heat = parts.PICTURE_OUT | {"alt_text": "A heat map of the change"}
        whole = parts.PICTURE_OUT | {"alt_text": "Your whole picture with the edit in it"}
        with gr.Tabs():
            with gr.Tab("Before and after"):
                look = parts.PICTURE_OUT | {"buttons": ["fullscreen"]}
                self.compared = gr.ImageSlider(label="Before | after", elem_id="compared", **look)
            with gr.Tab("Where it changed"):
                label = "Brightest where it changed most"
                self.heat = gr.Image(label=label, elem_classes="square", **heat)
            with gr.Tab("Whole picture"):
                self.whole = gr.Image(label="The edit in your picture", **whole)
        controls = parts.Controls("Edit", "edit", self.visitors)
        self.go, self.seed, self.status = controls.go, controls.seed, controls.status
        self.meter = gr.HTML(self.no_meter, elem_id="meter", label="Leak meter")

    def build_history(self) -> None:
        """What a visitor made, and what they take away."""
        look = parts.GALLERY | {"columns": 8, "fit_columns": False, "height": 190}
        self.past = gr.Gallery(label="What you made", elem_id="past", **look)
        self.compares = gr.Checkbox(label="A click should compare it with what is shown")
        with gr.Accordion("Take it away", open=False, elem_id="take"):
            self.command = gr.Textbox(interactive=False, **parts.COMMAND)
            self.files = gr.Files(label="Files", interactive=False)
            self.write_whole = gr.Button("Write the whole picture, too")

    def connect(self) -> None:
        """What happens on which click."""
        looks = COMPUTES | {"show_progress_on": [self.frame]}
        # ``preprocess`` would open the file before we look at it, and would fetch addresses.
        arrival = self.upload.upload(self.receive, [self.upload], None, preprocess=False, **QUICK)
        arrival.success(self.take, None, self.outputs, **looks)
        self.own.click(self.take_own, None, self.outputs, **looks)
        self.place.click(self.move, self.placing, self.outputs, **looks)
        self.frame.select(self.point, None, self.outputs, **looks)
        inputs = [self.strength, self.seed, *self.fields.fields]
        edits = COMPUTES | {"trigger_mode": "always_last", "show_progress_on": [self.status]}
        gr.on([self.go.click, *self.fields.changes], self.edit, inputs, self.outputs, **edits)
        if self.fields.presets:
            presets = self.fields.presets
            choice = presets.click(self.set_preset, [presets], self.fields.fields, **QUICK)
            choice.success(self.edit, inputs, self.outputs, **edits)
        self.past.select(self.recall, [self.compares], self.outputs, **QUICK)
        self.write_whole.click(self.paste, None, [self.files], **COMPUTES)

    # ---------------------------------------------------------------- what is seen

    def show(self, visitor: Visitor) -> dict:
        """All that is seen of a visitor's picture and of their edit, but for what was asked for."""
        source, edit = visitor.picture(), visitor.current
        shows: dict[Any, Any] = {
            self.line: status_line(source.line),
            self.frame: source.frame,
            self.past: [(each.folder / "edit.png", each.title) for each in visitor.edits],
        }
        if edit is None:
            nothing = [self.compared, self.heat, self.whole, self.status, self.command, self.files]
            return shows | dict.fromkeys(nothing) | {self.meter: self.no_meter}
        return shows | {
            self.compared: (edit.folder / "before.png", edit.folder / "edit.png"),
            self.heat: edit.folder / "heat.png",
            self.whole: edit.folder / "whole.jpg",
            self.status: status_line(f"{edit.title}: {edit.seconds:.1f} seconds."),
            self.meter: edit.meter,
            self.command: self.worker.command("edit", edit.source.settings, edit.settings),
            self.files: edit.files(),
        }

    def restore(self, visitor: Visitor) -> dict:
        """``show``, and what was asked for."""
        edit, shows = visitor.current, self.show(visitor)
        values = self.fields.values(visitor.picture().read, edit.request if edit else {})
        shows |= dict(zip(self.fields.fields, values, strict=True))
        if edit:
            shows |= {
                self.strength: edit.settings.manipulation_strength,
                self.seed: str(edit.settings.seed),
            }
        return shows

    # ---------------------------------------------------------------- pictures

    @one_line_errors()
    def receive(self, request: gr.Request, upload: Any) -> None:
        """Keep a picture that was sent, before it waits in the queue to be looked at."""
        visitor = self.visitors.of(request)
        visitor.upload = self.visitors.received(visitor, upload)

    @one_line_errors()
    def take(self, request: gr.Request) -> dict:
        visitor = self.visitors.of(request)
        return self.look(visitor, PhotographSettings(str(visitor.upload))) | {self.upload: None}

    @one_line_errors()
    def take_own(self, request: gr.Request) -> dict:
        """A generated picture to edit: another one each time."""
        visitor, seed = self.visitors.of(request), parts.random_seed()
        clear = ("Blurry=0",) if "Blurry" in self.fields.names else ()
        settings = GenerateSettings(attributes=clear, num_samples=1, seed=seed)
        (image,) = self.worker.compute(studio.generate, settings).images
        path = save_image(image, visitor.new_folder() / f"generated_{seed}.png")
        return self.look(visitor, PhotographSettings(str(path)))

    @one_line_errors()
    def take_face(self, request: gr.Request) -> dict:
        """The chosen face of ``GenerateTab``."""
        visitor = self.visitors.of(request)
        return self.look(visitor, PhotographSettings(str(visitor.chosen_face())))

    @one_line_errors()
    def move(self, request: gr.Request, *placing: float) -> dict:
        """Move, scale and turn the frame from where it is."""
        visitor = self.visitors.of(request)
        photograph, _ = studio.open_photograph(self.worker.model, visitor.picture().settings)
        return self.look(visitor, moved(photograph, *placing))

    @one_line_errors()
    def point(self, request: gr.Request, event: gr.SelectData) -> dict:
        """A click on the picture: take the face that is there, or else move the frame there."""
        visitor = self.visitors.of(request)
        photograph, _ = studio.open_photograph(self.worker.model, visitor.picture().settings)
        times = photograph.picture.width / parts.view(photograph.picture).width
        place = np.array(event.index, float) * times
        face = self.worker.face_at(photograph, place)
        if face:
            return self.look(visitor, PhotographSettings(str(photograph.path), face=face))
        return self.look(visitor, moved(photograph, *photograph.towards(place), 1, 0))

    def look(self, visitor: Visitor, settings: PhotographSettings) -> dict:
        """Take a picture to edit, and show it."""
        photograph, search = studio.open_photograph(self.worker.model, settings)
        # The command says where the face is, so that it need not be found again.
        marks = tuple(round(value, 2) for value in photograph.landmarks or ())
        settings = replace(settings, landmarks=marks or None, face=1 if marks else 0)
        photograph, _ = studio.open_photograph(self.worker.model, settings)
        frame, square = visitor.new_folder() / "frame.jpg", photograph.square
        parts.framed(photograph).save(frame, quality=92)
        line = search.line if search else "Ready."
        read, judged = self.worker.read(square), self.worker.judge(square)
        visitor.source, visitor.current = Source(settings, square, line, frame, read, judged), None
        return self.restore(visitor) | dict(zip(self.placing, NOT_MOVED, strict=True))

    # ---------------------------------------------------------------- edits

    @one_line_errors()
    def set_preset(self, request: gr.Request, sample: list[str]) -> list:
        """Set the sliders to a preset, and all others to where they started."""
        source = self.visitors.of(request).picture()
        return self.fields.values(source.read, PRESETS[sample[0]])

    def edit(self, request: gr.Request, progress=BAR, *values) -> Iterator[dict]:
        """A preview, then the edit."""
        with one_line_errors():
            strength, seed, *fields = values
            visitor = self.visitors.of(request)
            source = visitor.picture()
            settings = EditSettings(
                attributes=self.fields.request(source.read, fields),
                manipulation_strength=float(strength),
                seed=parts.seed_of(seed),
            )
            if not settings.attributes:
                visitor.current = None
                yield self.show(visitor) | {self.status: status_line("Nothing is asked for.")}
                return
            started, bar = time.perf_counter(), parts.progress_bar(visitor, progress)
            folder = visitor.new_folder()
            few = replace(settings.editing, num_inference_steps=self.preview_steps)
            quick = replace(settings, editing=few)
            preview = self.worker.compute(studio.edit, source.square, quick).images[0]
            before = save_image(source.square, folder / "before.png")
            seconds = time.perf_counter() - started
            yield {
                self.compared: (before, save_image(preview, folder / "preview.png")),
                self.status: status_line(f"Preview after {seconds:.1f} s"),
            }
            edited = self.worker.compute(studio.edit, source.square, settings, bar).images[0]
            edit = Edit(source, settings, folder, edited, time.perf_counter() - started, self.no_meter)
            self.finish(edit)
            visitor.keep(edit)
            yield self.show(visitor)

    def finish(self, edit: Edit) -> None:
        """Write the pictures of an edit, and its manifest. Ask the independent reader."""
        source, folder, names = edit.source, edit.folder, self.worker.judged_names
        save_image(edit.edited, folder / "edit.png")
        save_image(heat_map(source.square, edit.edited), folder / "heat.png")
        photograph, _ = studio.open_photograph(self.worker.model, source.settings)
        whole = over_white(parts.view(photograph.paste(edit.edited)))
        whole.save(folder / "whole.jpg", quality=92)
        manifest = self.worker.manifest("edit", source.settings, edit.settings)
        (folder / "manifest.json").write_text(manifest, encoding="utf-8")
        if names:
            edit.meter = leak_meter(names, source.judged, self.worker.judge(edit.edited), edit.request)

    # ---------------------------------------------------------------- the history

    @one_line_errors()
    def recall(self, request: gr.Request, event: gr.SelectData, compares: bool) -> dict:
        """Bring an edit back with its settings, or show it beside the current one."""
        visitor = self.visitors.of(request)
        edit, current = visitor.edits[event.index], visitor.current
        if compares and current:
            return {
                self.compared: (edit.folder / "edit.png", current.folder / "edit.png"),
                self.status: status_line(f"Left: {edit.title}. Right: {current.title}."),
            }
        visitor.source, visitor.current = edit.source, edit
        return self.restore(visitor)

    @one_line_errors()
    def paste(self, request: gr.Request) -> list[str]:
        """Write the whole picture with the current edit. Returns the files to take away."""
        edit = self.visitors.of(request).current
        if edit is None:
            raise ValueError("no edit is shown: make one, or click one that you made")
        photograph, _ = studio.open_photograph(self.worker.model, edit.source.settings)
        photograph.save_whole(edit.edited, edit.folder / "whole.png")
        return edit.files()


def moved(photograph: Photograph, *placing: float) -> PhotographSettings:
    """A photograph with its frame moved right and down, scaled and turned."""
    marks = tuple(photograph.landmarks_moved(*placing))
    return PhotographSettings(str(photograph.path), marks)
