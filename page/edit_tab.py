"""The tab on which a picture is edited."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

import studio
from config import EditSettings, GenerateSettings, PhotographSettings
from figures.grids import caption, heat_map, readable, save_image
from image_data.face_finder import FaceSearch
from page import parts
from page.leaks import leak_meter
from page.parts import BAR, COMPUTES, QUICK, one_line_errors, status_line
from page.visitors import Edit, Source, Visitor, Visitors
from page.worker import Worker

GROUPS = {
    "Expression": ("Smiling", "Mouth_Slightly_Open"),
    "Hair": (
        "Blond_Hair", "Black_Hair", "Brown_Hair", "Gray_Hair", "Bald", "Bangs", "Receding_Hairline",
        "Straight_Hair", "Wavy_Hair",
    ),
    "Facial hair": ("5_o_Clock_Shadow", "Goatee", "Mustache", "No_Beard", "Sideburns"),
    "Accessories": (
        "Eyeglasses", "Wearing_Hat", "Wearing_Earrings", "Wearing_Necklace", "Wearing_Necktie",
    ),
    "Make-up": ("Heavy_Makeup", "Wearing_Lipstick", "Rosy_Cheeks"),
    "Person": ("Young", "Male", "Attractive"),
    "Face": (
        "Arched_Eyebrows", "Bags_Under_Eyes", "Big_Lips", "Big_Nose", "Bushy_Eyebrows", "Chubby",
        "Double_Chin", "High_Cheekbones", "Narrow_Eyes", "Oval_Face", "Pale_Skin", "Pointy_Nose",
    ),
    "Quality": ("Blurry",),
}  # fmt: skip
PRESETS: dict[str, dict[str, float]] = {
    "Smile": {"Smiling": 1.0},
    "No smile": {"Smiling": 0.0},
    "Glasses": {"Eyeglasses": 1.0},
    "Older": {"Young": 0.0},
    "Blond": {"Blond_Hair": 1.0},
}
# Steps of the first picture that an edit shows, at 64 pixels; fewer where there are more. By eye: with
# fewer it is another face, and more take longer than a second.
PREVIEW_STEPS = 6
# Of a slider. Readings stay this far from its ends, so that the ends always ask for a change.
STEP = 0.05
BRING_BACK, COMPARE = "bring it back", "compare it with what is shown"
NOT_MOVED = (0, 0, 1, 0)  # of the frame: right, down, size, turn


class EditTab:
    """A picture, what is asked of it, and what came of it."""

    def __init__(self, worker: Worker, visitors: Visitors):
        self.worker, self.visitors = worker, visitors
        self.are_classes, self.names = worker.model.config.one_hot, worker.names
        side = worker.model.config.image_size
        self.preview_steps = max(2, min(PREVIEW_STEPS, PREVIEW_STEPS * 64 // side))
        self.sliders: dict[str, gr.Slider] = {}
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                self.build_source()
            with gr.Column(scale=3, min_width=280, elem_id="request"):
                self.build_request()
            with gr.Column(scale=4, min_width=300, elem_id="result"):
                self.build_result()
        self.build_history()
        self.request_fields = [self.turn_into] if self.are_classes else list(self.sliders.values())
        self.outputs = [
            *self.request_fields, self.upload, self.line, self.frame, self.face, *self.placing,
            self.strength, self.seed, self.compared, self.heat, self.whole, self.meter, self.status,
            self.past, self.command, self.save_square, self.save_manifest, self.write_whole,
            self.save_whole,
        ]  # fmt: skip

    # ---------------------------------------------------------------- building

    def build_source(self) -> None:
        """The picture to edit, and its frame."""
        self.upload = parts.picture_input("Your picture: drop it, paste it, or take it", "upload")
        self.own = gr.Button("Or take a generated one", elem_id="own")
        self.line = gr.HTML(status_line("No picture yet."), elem_id="line")
        self.frame = parts.picture_output(
            "The frame: click a face, or where it should be",
            "Your picture with a frame around the part that is edited",
            elem_id="frame",
            height=320,
        )
        with gr.Accordion("Move the frame", open=False):
            self.face = gr.Number(1, label="Which face, 1 the largest", precision=0, minimum=1)
            self.placing = [
                gr.Slider(-10, 10, 0, step=0.05, label="Right, in frames", buttons=[]),
                gr.Slider(-10, 10, 0, step=0.05, label="Down, in frames", buttons=[]),
                gr.Slider(0.4, 2.5, 1, step=0.05, label="Size", buttons=[]),
                gr.Slider(-180, 180, 0, step=1, label="Turn, in degrees", buttons=[]),
            ]
            self.place = gr.Button("Look there")

    def build_request(self) -> None:
        """What an edit asks for: sliders in groups, or one class."""
        if self.are_classes:
            self.turn_into = gr.Radio(list(self.names), label="Turn it into", elem_id="class")
            self.build_actions()
            return
        gr.Markdown(
            "**0** absent, **0.5** leave open, **1** present. Each slider starts at what the model "
            "reads in your picture. Move what should change."
        )
        self.presets: dict[gr.Button, dict[str, float]] = {}
        with gr.Row():
            for label, request in PRESETS.items():
                if set(request) <= set(self.names):
                    self.presets[gr.Button(label, size="sm", min_width=70)] = request
        self.build_actions()
        self.search = gr.Textbox(label="Search", placeholder="hair, eye, wearing ...", elem_id="search")
        grouped = {name for names in GROUPS.values() for name in names}
        groups = GROUPS | {"Other": tuple(name for name in self.names if name not in grouped)}
        self.groups: dict[gr.Accordion, list[str]] = {}
        for title, names in groups.items():
            present = [name for name in names if name in self.names]
            if not present:
                continue
            with gr.Accordion(title, open=len(self.groups) < 2) as group, gr.Row():
                self.groups[group] = present
                self.sliders |= {name: attribute_slider(name) for name in present}

    def build_actions(self) -> None:
        with gr.Row():
            self.go = gr.Button("Edit", variant="primary", min_width=70, elem_id="go")
            self.reset = gr.Button("Reset", min_width=70, elem_id="reset")
            self.stop = gr.Button("Stop", variant="stop", min_width=70, elem_id="stop")
        with gr.Accordion("Strength and seed", open=False):
            self.strength = gr.Slider(0.1, 1, 1, step=0.05, label="Strength of the edit", buttons=[])
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0)

    def build_result(self) -> None:
        """What an edit made, and what an independent reader says of it."""
        with gr.Tabs():
            with gr.Tab("Before and after"):
                self.compared = gr.ImageSlider(
                    label="Before | after",
                    type="filepath",
                    interactive=False,
                    elem_id="compared",
                    buttons=["fullscreen"],
                )
            with gr.Tab("Where it changed"):
                self.heat = parts.picture_output(
                    "Brightest where it changed most", "A heat map of the change"
                )
            with gr.Tab("Whole picture"):
                self.whole = parts.picture_output(
                    "The edit in your picture", "Your whole picture with the edit in it"
                )
        self.status = gr.HTML(status_line(""), elem_id="status")
        self.meter = gr.HTML(self.no_meter(), elem_id="meter", label="Leak meter")

    def build_history(self) -> None:
        """What a visitor made, and what they take away."""
        self.past = parts.gallery("What you made", 8, "past", height=190, fit_columns=False)
        self.on_click = gr.Radio(
            [BRING_BACK, COMPARE], value=BRING_BACK, label="A click on one of them should"
        )
        with gr.Accordion("Take it away", open=False, elem_id="take"):
            self.command = parts.command_line(lines=2)
            with gr.Row():
                self.save_square = gr.DownloadButton("Picture", interactive=False)
                self.save_manifest = gr.DownloadButton("Manifest", interactive=False)
                self.write_whole = gr.Button("Write the whole picture", interactive=False)
                self.save_whole = gr.DownloadButton("Whole picture", visible=False)

    def connect(self) -> None:
        """What happens on which click."""
        looks = COMPUTES | {"show_progress_on": [self.frame]}
        # ``preprocess`` would open the file before we look at it, and would fetch addresses.
        self.upload.upload(self.take, [self.upload], self.outputs, preprocess=False, **looks)
        self.own.click(self.take_own, None, self.outputs, **looks)
        place = [self.face, *self.placing]
        self.place.click(self.move, place, self.outputs, **looks)
        pointed = self.frame.select(self.point, self.placing[2:], place, **COMPUTES)
        pointed.then(self.move, place, self.outputs, **looks)

        values = [self.strength, self.seed, *self.request_fields]
        last = COMPUTES | {"trigger_mode": "always_last", "show_progress_on": [self.status]}
        self.go.click(self.edit, values, self.outputs, **last)
        if self.are_classes:
            self.turn_into.input(self.edit, values, self.outputs, **last)
        else:
            for slider in self.sliders.values():
                slider.release(self.edit, values, self.outputs, **last)
            for button, request in self.presets.items():
                moved = button.click(self.preset(request), None, self.request_fields, **QUICK)
                moved.then(self.edit, values, self.outputs, **last)
            fields = [*self.request_fields, *self.groups]
            self.search.change(self.find, [self.search], fields, trigger_mode="always_last", **QUICK)
        self.reset.click(self.start_values, None, self.request_fields, **QUICK)
        self.past.select(self.recall, [self.on_click], self.outputs, **QUICK)
        self.write_whole.click(self.paste, None, [self.save_whole, self.status], **COMPUTES)

    # ---------------------------------------------------------------- pictures

    def arrive(self, request: gr.Request, secret: str) -> dict:
        """Show a visitor who comes back what they had."""
        visitor = self.visitors.arrive(request.session_hash, str(secret)[:100])
        if visitor.source is None:
            return {self.status: status_line("")}
        shows = self.shows_source(visitor.source)
        if visitor.current:
            return shows | self.shows_recalled(visitor, visitor.current)
        return shows | {self.past: history(visitor)}

    @one_line_errors()
    def take(self, request: gr.Request, upload: Any) -> dict:
        visitor = self.visitors.of(request.session_hash)
        return self.look(visitor, self.visitors.received(visitor, upload)) | {self.upload: None}

    @one_line_errors()
    def take_own(self, request: gr.Request) -> dict:
        """A generated picture to edit: another one each time."""
        visitor = self.visitors.of(request.session_hash)
        seed = parts.random_seed()
        clear = ("Blurry=0",) if "Blurry" in self.names else ()
        settings = GenerateSettings(attributes=clear, num_samples=1, seed=seed)
        (image,) = self.worker.compute(studio.generate, settings).images
        return self.look(visitor, save_image(image, visitor.new_file(f"generated_{seed}.png")))

    @one_line_errors()
    def take_face(self, request: gr.Request) -> dict:
        """The chosen face of ``GenerateTab``."""
        visitor = self.visitors.of(request.session_hash)
        return self.look(visitor, visitor.chosen_face())

    def look(self, visitor: Visitor, path: Path, face: int = 1, landmarks: Any = None) -> dict:
        """Take a file as the picture to edit, and show it."""
        model = self.worker.model
        settings = PhotographSettings(str(path), landmarks, face)
        photograph, search = studio.open_photograph(model, settings)
        # The command says where the face is, so that it need not be found again.
        points = photograph.landmarks
        marks = tuple(round(value, 2) for value in points) if points else None
        settings = PhotographSettings(str(path), marks, face=1 if marks else 0)
        photograph, _ = studio.open_photograph(model, settings)
        square = photograph.square
        judged = self.worker.judge(square[None])[0] if self.worker.independent else None
        frame = parts.save_framed(photograph, visitor.new_file("frame.jpg"))
        read = self.worker.read(square)
        visitor.source = Source(settings, square, line_of(search), frame, read, judged)
        visitor.current = None
        shows = self.shows_source(visitor.source)
        if face == 1 and landmarks is None:  # a new picture
            shows |= {self.face: 1, **dict(zip(self.placing, NOT_MOVED, strict=True))}
        return shows

    def shows_source(self, source: Source) -> dict:
        """Everything that shows a picture that is not edited yet."""
        ready = f"Ready. {'Choose a class' if self.are_classes else 'Move a slider'}."
        shows: dict[Any, Any] = {
            self.line: status_line(source.line or ready),
            self.frame: str(source.frame),
            self.compared: None,
            self.heat: None,
            self.whole: None,
            self.meter: self.no_meter(),
            self.status: status_line(""),
        }
        values = self.values_of(source)
        return shows | dict(zip(self.request_fields, values, strict=True))

    def values_of(self, source: Source) -> list:
        """Where the sliders start: at what the model reads in a picture."""
        if self.are_classes:
            return [None]
        starts = dict(zip(self.names, map(slider_start, source.read), strict=True))
        return [starts[name] for name in self.sliders]

    @one_line_errors()
    def move(
        self, request: gr.Request, face: float, right: float, down: float, scale: float, turn: float
    ) -> dict:
        """Look at another face, or at a frame moved by hand. The frame starts where the face is."""
        visitor, source = self.here(request)
        path, face = Path(str(source.settings.source_image)), max(1, int(face))
        if (right, down, scale, turn) == NOT_MOVED:
            return self.look(visitor, path, face)
        settings = PhotographSettings(str(path), face=face)
        photograph, _ = studio.open_photograph(self.worker.model, settings)
        marks = tuple(photograph.landmarks_moved(right, down, scale, turn))
        return self.look(visitor, path, landmarks=marks) | {
            self.line: status_line("The frame is yours.")
        }

    @one_line_errors()
    def point(self, request: gr.Request, event: gr.SelectData, scale: float, turn: float) -> list[float]:
        """What a click on the picture asks for: the face that is there, or else a frame around it. Which
        face, and the sliders of the frame."""
        _, source = self.here(request)
        settings = replace(source.settings, landmarks=None, face=1)
        photograph, _ = studio.open_photograph(self.worker.model, settings)
        times = photograph.picture.width / parts.view(photograph.picture).width
        click = np.array(event.index, float) * times
        face = self.worker.face_at(photograph, click)
        if face:
            return [face, *NOT_MOVED]
        return [1, *photograph.towards(click), scale, turn]

    # ---------------------------------------------------------------- requests

    def here(self, request: gr.Request) -> tuple[Visitor, Source]:
        """The visitor and the picture that they edit."""
        visitor = self.visitors.of(request.session_hash)
        if visitor.source is None:
            raise ValueError("no picture yet: drop one, or take a generated one")
        return visitor, visitor.source

    def moved(self, source: Source, values: tuple) -> dict[str, float]:
        """What the sliders ask for: those that are not where they started. 0.5 asks for nothing."""
        if self.are_classes:
            (chosen,) = values
            return {chosen: 1.0} if chosen else {}
        starts = self.values_of(source)
        request = {}
        for name, start, value in zip(self.sliders, starts, values, strict=True):
            value = round(float(value), 2)
            if abs(value - start) > STEP / 2 and value != 0.5:
                request[name] = value
        return request

    def start_values(self, request: gr.Request) -> list:
        source = self.visitors.of(request.session_hash).source
        if source is None:
            return [None if self.are_classes else 0.5] * len(self.request_fields)
        return self.values_of(source)

    def preset(self, wishes: dict[str, float]) -> Callable:
        """A handler that sets the sliders to a preset, and all others to where they started."""

        def choose(request: gr.Request) -> list:
            starts = self.start_values(request)
            return [wishes.get(name, start) for name, start in zip(self.sliders, starts, strict=True)]

        return choose

    def find(self, text: str) -> list:
        """Show the sliders whose name or group has a text, and open their groups."""
        text = text.strip().lower().replace(" ", "_")
        visible: set[str] = set()
        for group, names in self.groups.items():
            whole_group = text in group.label.lower().replace(" ", "_")
            visible |= {name for name in names if whole_group or text in name.lower()}
        sliders = [gr.update(visible=name in visible) for name in self.sliders]
        groups = [
            gr.update(visible=not visible.isdisjoint(names), open=bool(text) or i < 2)
            for i, names in enumerate(self.groups.values())
        ]
        return [*sliders, *groups]

    # ---------------------------------------------------------------- edits

    def edit(self, request: gr.Request, progress=BAR, strength=1.0, seed=0, *values) -> Iterator[dict]:
        """A preview, then the edit."""
        with one_line_errors():
            visitor, source = self.here(request)
            wishes = self.moved(source, values)
            if not wishes:
                hint = "choose a class" if self.are_classes else "move a slider"
                yield {self.status: status_line(f"Nothing is asked for: {hint}.")}
                return
            settings = EditSettings(
                attributes=tuple(f"{name}={value:g}" for name, value in wishes.items()),
                manipulation_strength=float(strength),
                seed=int(seed or 0),
            )
            started, bar = time.perf_counter(), parts.progress_bar(visitor, progress)
            few = replace(settings.editing, num_inference_steps=self.preview_steps)
            try:
                preview = self.run(source, replace(settings, editing=few))
                files = {
                    "before": parts.save_enlarged(source.square, visitor.new_file("before.png")),
                    "preview": parts.save_enlarged(preview, visitor.new_file("preview.png")),
                }
                seconds = time.perf_counter() - started
                yield {
                    self.compared: (str(files["before"]), str(files["preview"])),
                    self.status: status_line(
                        f"Preview after {seconds:.1f} seconds, the edit follows ..."
                    ),
                }
                edited = self.run(source, settings, bar)
            except parts.Stopped:
                yield {self.status: status_line("Stopped. What you made before is kept.")}
                return
            seconds = time.perf_counter() - started
            title = caption(wishes).capitalize()
            meter = self.meter_of(source, edited, wishes)
            edit = Edit(source, settings, edited, title, seconds, wishes, meter, files)
            self.write_files(visitor, edit)
            visitor.keep(edit)
            yield self.shows_edit(visitor, edit)

    def run(self, source: Source, settings: EditSettings, bar: Any = False) -> np.ndarray:
        """The edit of a square, uint8 (S, S, 3)."""
        return self.worker.compute(studio.edit, source.square, settings, bar).images[0]

    def write_files(self, visitor: Visitor, edit: Edit) -> None:
        """Write the pictures of an edit, and its manifest."""
        source = edit.source
        photograph, _ = studio.open_photograph(self.worker.model, source.settings)
        files = {name: visitor.new_file(name) for name in ("edit.png", "manifest.json", "whole.jpg")}
        save_image(edit.edited, files["edit.png"])
        parts.view(photograph.paste(edit.edited)).convert("RGB").save(files["whole.jpg"], quality=92)
        manifest = self.worker.manifest("edit", source.settings, edit.settings)
        files["manifest.json"].write_text(manifest, encoding="utf-8")
        files["after"] = parts.save_enlarged(edit.edited, visitor.new_file("after.png"))
        change = heat_map(source.square, edit.edited)
        files["heat"] = parts.save_enlarged(change, visitor.new_file("heat.png"))
        edit.files |= files

    def no_meter(self) -> str:
        if self.worker.independent:
            return status_line("After an edit: what an independent reader saw change.")
        return status_line(
            "No independent reader: train one with evaluate.py judge, and give it as --judge."
        )

    def meter_of(self, source: Source, edited: np.ndarray, wishes: dict[str, float]) -> str:
        """What the independent reader says of an edit, as HTML."""
        if self.worker.independent is None or source.judged is None:
            return self.no_meter()
        after = self.worker.judge(edited[None])[0]
        return leak_meter(self.worker.judged_names, source.judged, after, wishes)

    def shows_edit(self, visitor: Visitor, edit: Edit) -> dict:
        """Everything that shows an edit."""
        files = {name: str(file) for name, file in edit.files.items()}
        return {
            self.compared: (files["before"], files["after"]),
            self.heat: files["heat"],
            self.whole: files["whole.jpg"],
            self.meter: edit.meter,
            self.status: status_line(f"{edit.title}: {edit.seconds:.1f} seconds."),
            self.past: history(visitor),
            self.command: self.worker.command("edit", edit.source.settings, edit.settings),
            self.save_square: gr.update(value=files["edit.png"], interactive=True),
            self.save_manifest: gr.update(value=files["manifest.json"], interactive=True),
            self.write_whole: gr.update(interactive=True),
            self.save_whole: gr.update(visible=False),
        }

    # ---------------------------------------------------------------- the history

    @one_line_errors()
    def recall(self, request: gr.Request, event: gr.SelectData, on_click: str) -> dict:
        """Bring an edit back with its settings, or show it beside the current one."""
        visitor, _ = self.here(request)
        if not 0 <= event.index < len(visitor.edits):
            raise ValueError("that result is gone: make it again")
        edit, current = visitor.edits[event.index], visitor.current
        if on_click == COMPARE and current is not None:
            return {
                self.compared: (str(edit.files["after"]), str(current.files["after"])),
                self.status: status_line(f"Left: {edit.title}. Right: {current.title}."),
            }
        visitor.current, visitor.source = edit, edit.source
        return self.shows_source(edit.source) | self.shows_recalled(visitor, edit)

    def shows_recalled(self, visitor: Visitor, edit: Edit) -> dict:
        """Everything that shows an edit, and the settings that made it."""
        shows: dict[Any, Any] = self.shows_edit(visitor, edit)
        if self.are_classes:
            shows[self.turn_into] = next(iter(edit.request), None)
        else:
            shows |= {self.sliders[name]: value for name, value in edit.request.items()}
        shows[self.strength] = edit.settings.manipulation_strength
        shows[self.seed] = edit.settings.seed
        return shows

    @one_line_errors()
    def paste(self, request: gr.Request) -> dict:
        """Write the whole picture with the current edit."""
        visitor, _ = self.here(request)
        edit = visitor.current
        if edit is None:
            raise ValueError("no edit is shown: make one, or click one that you made")
        photograph, _ = studio.open_photograph(self.worker.model, edit.source.settings)
        path = visitor.new_file("whole.png")
        photograph.paste(edit.edited).save(path)
        edit.files["whole.png"] = path
        return {
            self.save_whole: gr.update(value=str(path), visible=True),
            self.status: status_line("The whole picture is ready to be saved."),
        }


def attribute_slider(name: str) -> gr.Slider:
    return gr.Slider(
        0,
        1,
        0.5,
        step=STEP,
        label=readable(name).capitalize(),
        min_width=150,
        elem_id=f"attribute-{name}",
        elem_classes="group-slider",
        buttons=[],
    )


def slider_start(read: float) -> float:
    """Where a slider starts for what the model reads."""
    return round(min(max(round(float(read) / STEP) * STEP, STEP), 1 - STEP), 2)


def line_of(search: FaceSearch | None) -> str:
    """What the page says of the faces in a picture."""
    if search is None:
        return ""
    if search.faces == 0:
        return f"{search.line}; move the frame"
    if search.faces is not None and search.faces > 1:
        return f"{search.line} (Move the frame has the others)"
    return search.line


def history(visitor: Visitor) -> list[tuple[str, str]]:
    """The edits of a visitor, for a parts.gallery."""
    return [(str(edit.files["after"]), edit.title) for edit in visitor.edits]
