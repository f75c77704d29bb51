"""The tab on which a picture is edited."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

import flags
import studio
from attributes import parse_request
from config import EditSettings, GenerateSettings, PhotographSettings
from figures.grids import caption, heat_map, save_image
from image_data.photograph import Photograph
from image_data.picture import Note, over_white, read_note, write_note
from page import parts
from page.fields import PRESETS, EditFields
from page.leaks import leak_meter
from page.parts import BAR, COMPUTES, QUICK, RECEIVES, one_line_errors, status_line
from page.region import CANVAS, Region
from page.visitors import Edit, Source, Step, Visitor, Visitors
from page.worker import Worker
from samplers import Progress

MOST_STEPS = 6  # before the one that the sliders make; by eye
NOT_MOVED = (0, 0, 1, 0)  # of the frame: right, down, size, turn


class EditTab:
    """A picture, what is asked of it, and what came of it."""

    def __init__(self, worker: Worker, visitors: Visitors, beside: Worker | None = None):
        self.worker, self.visitors, self.beside = worker, visitors, beside
        line = "No independent reader: train one with evaluate.py judge, and give it as --judge."
        if worker.judged_names:
            line = "After an edit: what an independent reader saw change."
        self.no_meter = status_line(line)
        with gr.Row(elem_id="arrival"):
            label = "Your picture: drop it, paste it, or take it"
            self.upload = gr.Image(label=label, elem_id="upload", **parts.PICTURE_IN | {"height": 130})
            with gr.Column(min_width=200):
                self.own = gr.Button("Or take a generated one", elem_id="own")
                self.line = gr.HTML(status_line("No picture yet."), elem_id="line")
        with gr.Row(elem_id="edit_area"):
            with gr.Column(scale=7, min_width=300, elem_id="stage"):
                self.build_pictures()
                self.build_steps()
            with gr.Column(scale=4, min_width=300, elem_id="request"):
                self.strength = gr.Slider(0.1, 1, 1, step=0.05, label="Strength of the edit", buttons=[])
                self.region = Region(worker, visitors, self.mask)
                self.fields = EditFields(worker.model.config, worker.files.checkpoint)
        self.build_history()
        self.outputs = [
            *self.fields.fields, *self.fields.locks, self.strength, self.seed, self.upload, self.line,
            self.frame, *self.placing, self.whole, self.compared, self.heat, *self.region.outputs,
            self.status, self.meter, *self.rows, *self.switches, *self.strengths, self.past,
            self.command, self.files,
        ]  # fmt: skip
        self.connect()

    # ---------------------------------------------------------------- building

    def build_pictures(self) -> None:
        """The photograph with its frame, and at its side what an edit made of it."""
        frame = parts.PICTURE_OUT | {"alt_text": "Your picture with a frame around what is edited"}
        heat = parts.PICTURE_OUT | {"alt_text": "A heat map of the change", "elem_classes": "square"}
        region = parts.PICTURE_OUT | {"alt_text": "White where edits may act", "elem_classes": "square"}
        # The divider stands at the side, so that all of the edit is seen.
        compared = parts.PICTURE_OUT | {"buttons": ["fullscreen"], "slider_position": 0}
        with gr.Row(elem_id="pictures"):
            with gr.Column(scale=1, min_width=100):
                label = "Click a face, or where it should be"
                self.frame = gr.Image(label=label, elem_id="frame", **frame)
            with gr.Column(scale=2, min_width=100, elem_id="result"), gr.Tabs():
                with gr.Tab("Whole picture"):
                    self.whole = gr.ImageSlider(label="Before | after", elem_id="whole", **compared)
                with gr.Tab("Square"):
                    self.compared = gr.ImageSlider(
                        label="Before | after", elem_id="compared", **compared
                    )
                with gr.Tab("Changes"), gr.Row():
                    self.heat = gr.Image(label="Brightest where it changed most", **heat)
                    self.mask = gr.Image(
                        label="It may change where this is white", elem_id="mask", **region
                    )

    def build_steps(self) -> None:
        """What starts an edit, the steps before it, and what an independent reader says of them."""
        controls = parts.Controls("Edit", "edit", self.visitors, ("Undo", "Redo", "Go on"))
        self.start, self.seed, self.status = controls.go, controls.seed, controls.status
        self.undo, self.redo, self.go_on = controls.more
        self.rows, self.switches, self.strengths = [], [], []
        with gr.Column(elem_id="steps"):
            for _ in range(MOST_STEPS):
                with gr.Row(visible=False) as row:
                    self.switches.append(
                        gr.Checkbox(True, label="Step", min_width=120, interactive=True)
                    )
                    strength = gr.Slider(0.1, 1, 1, step=0.05, label="Its strength", buttons=[])
                    self.strengths.append(strength)
                self.rows.append(row)
        self.meter = gr.HTML(self.no_meter, elem_id="meter", label="Leak meter")
        with gr.Accordion("Move the frame", open=False, elem_id="move"):
            self.placing = [
                gr.Slider(-10, 10, 0, step=0.05, label="Right, in frames", buttons=[]),
                gr.Slider(-10, 10, 0, step=0.05, label="Down, in frames", buttons=[]),
                gr.Slider(0.4, 2.5, 1, step=0.05, label="Size", buttons=[]),
                gr.Slider(-180, 180, 0, step=1, label="Turn, in degrees", buttons=[]),
            ]
            self.place = gr.Button("Look there")

    def build_history(self) -> None:
        """What a visitor made, and what they take away."""
        look = parts.GALLERY | {"columns": 8, "fit_columns": False, "height": 190}
        self.past = gr.Gallery(label="What you made", elem_id="past", **look)
        self.compares = gr.Checkbox(label="A click should compare it with what is shown")
        if self.beside:
            self.by_other = gr.Button(f"The same by {self.beside.name}", elem_id="by_other")
        with gr.Accordion("Take it away", open=False, elem_id="take"):
            self.command = gr.Textbox(interactive=False, **parts.COMMAND)
            self.files = gr.Files(label="Files", interactive=False)
            self.write_whole = gr.Button("Write the whole picture, too")
            self.load = gr.UploadButton("Load moves.yaml", elem_id="load_moves")

    def connect(self) -> None:
        """What happens on which click."""
        looks = COMPUTES | {"show_progress_on": [self.frame]}
        arrival = self.upload.upload(self.receive, [self.upload], None, **RECEIVES)
        arrival.success(self.take, None, self.outputs, **looks)
        self.own.click(self.take_own, None, self.outputs, **looks)
        self.place.click(self.move, self.placing, self.outputs, **looks)
        self.frame.select(self.point, None, self.outputs, **looks)
        inputs = [self.strength, self.seed, *self.fields.fields, *self.fields.locks]
        edits = COMPUTES | {"trigger_mode": "always_last", "show_progress_on": [self.status]}
        changes = [self.strength.release, *self.fields.changes]
        gr.on([self.start.click, *changes], self.edit, inputs, self.outputs, **edits)
        if self.fields.presets:
            presets = self.fields.presets
            choice = presets.click(self.set_preset, [presets], self.fields.fields, **QUICK)
            choice.success(self.edit, inputs, self.outputs, **edits)
        changes = [*(each.input for each in self.switches), *(each.release for each in self.strengths)]
        gr.on(changes, self.change_steps, [*self.switches, *self.strengths], self.outputs, **edits)
        self.go_on.click(self.continue_from, None, self.outputs, **QUICK)
        for button in (self.undo, self.redo):
            button.click(self.go, [button], self.outputs, **QUICK)
        self.past.select(self.recall, [self.compares], self.outputs, **QUICK)
        if self.beside:
            self.by_other.click(self.edit_by_other, None, self.outputs, **edits)
        loaded = self.load.upload(self.load_moves, [self.load], inputs, **RECEIVES)
        loaded.success(self.edit, inputs, self.outputs, **edits)
        self.write_whole.click(self.paste, None, [self.files], **COMPUTES)

    # ---------------------------------------------------------------- what is seen

    def show(self, visitor: Visitor) -> dict:
        """All that is seen of a visitor's picture and of their edit, but for what was asked for."""
        source, edit = visitor.picture(), visitor.current
        shows: dict[Any, Any] = {
            self.line: status_line(source.search.line if source.search else "Ready."),
            self.frame: source.frame,
            self.past: [(each.folder / "edit.png", each.title) for each in visitor.edits],
        }
        for number, row in enumerate(self.rows):
            shows[row] = gr.update(visible=number < len(source.steps))
        for number, step in enumerate(source.steps):
            label = f"{'then ' if number else ''}{caption(parse_request(step.settings.attributes))}"
            shows[self.switches[number]] = gr.update(label=label, value=step.is_on)
            shows[self.strengths[number]] = step.settings.manipulation_strength
        if edit is None:
            nothing = [self.whole, self.compared, self.heat, self.status, self.command, self.files]
            return shows | dict.fromkeys(nothing) | {self.meter: self.no_meter}
        return shows | {
            self.whole: (source.frame.with_name("whole.jpg"), edit.folder / "whole.jpg"),
            self.compared: (source.frame.with_name("square.png"), edit.folder / "edit.png"),
            self.heat: edit.folder / "heat.png",
            self.status: status_line(f"{edit.title}: {edit.seconds:.1f} seconds."),
            self.meter: edit.meter or self.no_meter,
            self.command: self.command_of(edit),
            self.files: edit.files(),
        }

    def restore(self, visitor: Visitor) -> dict:
        """``show``, and what was asked for."""
        source, edit = visitor.picture(), visitor.current
        if edit and edit.settings:
            visitor.mask = Path(edit.settings.mask) if edit.settings.mask else None
            moves = self.moves(source, edit.settings, edit.along)
        else:
            moves = dict(zip(self.fields.fields, self.fields.values(source.read, {}), strict=True))
        return self.show(visitor) | moves | self.region.show(visitor)

    def moves(self, source: Source, settings: EditSettings, along: dict[str, float]) -> dict:
        """What was asked for, as sliders and locks show it."""
        values = self.fields.values(source.read, parse_request(settings.attributes) | along)
        locks = (name in settings.pins for name in self.fields.sliders)
        shows = dict(zip(self.fields.fields, values, strict=True))
        shows |= dict(zip(self.fields.locks, locks, strict=True))
        return shows | {
            self.strength: settings.manipulation_strength,
            self.seed: str(settings.seed),
        }

    @one_line_errors()
    def load_moves(self, request: gr.Request, upload: Any) -> dict:
        """Set sliders and locks as a file says, which --config takes, too."""
        visitor = self.visitors.of(request)
        settings = flags.read_yaml(EditSettings, self.visitors.received(visitor, upload))
        self.worker.model.attribute_rows(parse_request(settings.attributes))
        return self.moves(visitor.picture(), settings, {})

    # ---------------------------------------------------------------- pictures

    @one_line_errors()
    def receive(self, request: gr.Request, upload: Any) -> None:
        """Keep a picture that was sent, before it waits in the queue to be looked at."""
        visitor = self.visitors.of(request)
        visitor.upload = self.visitors.received(visitor, upload)

    @one_line_errors()
    def take(self, request: gr.Request, progress=BAR) -> dict:
        """The picture that was sent. One of ours, which says what made it, is made again of its
        photograph: the one that is here, or the next."""
        visitor = self.visitors.of(request)
        if visitor.upload is None:
            raise ValueError("no picture arrived: drop one")
        path = str(visitor.upload)
        photograph, note = path, visitor.note
        with suppress(ValueError):
            note = read_note(path)
            photograph = str(visitor.source.settings.source_image) if visitor.source else ""
        bar = parts.progress_bar(visitor, progress)
        if shows := note and self.made_again(visitor, note, photograph, bar):
            return shows | {self.upload: None}
        shows = self.look(visitor, PhotographSettings(path)) | {self.upload: None}
        if note and photograph != path:
            visitor.note, (name, _) = note, note.files.get("source_image", ("", ""))
            line = f"It says what made it: send its photograph, {name}, to make it again."
            shows |= {self.line: status_line(line)}
        return shows

    def made_again(self, visitor: Visitor, note: Note, photograph: str, bar: Progress) -> dict | None:
        """The edit that a note tells of. None where it was of another photograph."""
        values = {name: note.settings[name] for name in ("landmarks", "face") if name in note.settings}
        try:
            settings = flags.from_values(PhotographSettings, values | {"source_image": photograph})
            square = self.worker.photograph(settings).square
        except (OSError, ValueError):
            return None
        if studio.hash_of(square) != note.files.get("source_image", ("", ""))[1]:
            return None
        visitor.note, shows = None, self.look(visitor, settings)
        try:
            *before, last = self.worker.steps_in(note, visitor.folder)
            if len(before) > MOST_STEPS:
                raise ValueError(f"it has {len(before)} steps before the last: more than {MOST_STEPS}")
        except ValueError as error:
            return shows | {self.line: status_line(f"Not made again: {error}")}
        source = replace(visitor.picture(), steps=tuple(map(Step, before)))
        return self.make_anew(visitor, source, last, bar)

    @one_line_errors()
    def take_own(self, request: gr.Request) -> dict:
        """A generated picture to edit: another one each time."""
        visitor, seed = self.visitors.of(request), parts.random_seed()
        settings = GenerateSettings(attributes=self.worker.any_request(seed), num_samples=1, seed=seed)
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
        photograph = self.worker.photograph(visitor.picture().settings)
        return self.look(visitor, moved(photograph, *placing))

    @one_line_errors()
    def point(self, request: gr.Request, event: gr.SelectData) -> dict:
        """A click on the picture: take the face that is there, or else move the frame there."""
        visitor = self.visitors.of(request)
        photograph = self.worker.photograph(visitor.picture().settings)
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
        photograph = self.worker.photograph(settings)
        frame, square = visitor.new_folder() / "frame.jpg", photograph.square
        parts.framed(photograph).save(frame, quality=92)
        parts.view(photograph.picture).save(frame.with_name("whole.jpg"), quality=92)
        save_image(square, frame.with_name("square.png"))
        close = Photograph(str(settings.source_image), CANVAS, photograph.crop, settings.landmarks)
        save_image(close.square, frame.with_name("close.png"))
        read, judged = self.worker.read(square), self.worker.judge(square)
        visitor.mask = None
        visitor.show(Source(settings, search, square, frame, judged, read))
        return self.restore(visitor) | dict(zip(self.placing, NOT_MOVED, strict=True))

    # ---------------------------------------------------------------- edits

    @one_line_errors()
    def set_preset(self, request: gr.Request, sample: list[str]) -> list:
        """Set the sliders to a preset, and all others to where they started."""
        source = self.visitors.of(request).picture()
        return self.fields.values(source.read, PRESETS[sample[0]])

    def edit(self, request: gr.Request, progress=BAR, *values) -> Iterator[dict]:
        """The edit as it becomes visible, then the whole of it. Sliders that went along with the one
        before go back, and those that go with this one move."""
        with one_line_errors():
            strength, seed, *fields = values
            visitor = self.visitors.of(request)
            source, along = visitor.picture(), visitor.current.along if visitor.current else {}
            mask = visitor.mask
            sliders, locks = fields[: len(self.fields.fields)], fields[len(self.fields.fields) :]
            settings = EditSettings(
                attributes=self.fields.request(source.read, sliders, along),
                pins=self.fields.pins(locks),
                manipulation_strength=float(strength),
                seed=parts.seed_of(seed),
                mask=str(mask) if mask else None,
            )
            bar = parts.progress_bar(visitor, progress)
            if not settings.attributes and not source.steps:
                if visitor.current:
                    visitor.show(source)
                yield self.show(visitor) | {self.status: status_line("Nothing is asked for.")}
                return
            photograph = self.worker.photograph(source.settings)
            edit = Edit(source, settings if settings.attributes else None, visitor.new_folder())
            current = visitor.current
            if current and current.source is source and current.chain == edit.chain:
                edit = current  # a second click on the same preset
            else:
                if edit.settings:
                    yield from self.make_live(visitor, edit, photograph, bar)
                self.make(visitor, edit, photograph, bar)
            targets, starts = parse_request(settings.attributes), self.fields.levels(source.read)
            moves = {name: starts[name] for name in along} | edit.along
            yield self.show(visitor) | {
                self.fields.sliders[name]: value for name, value in moves.items() if name not in targets
            }

    def make_live(
        self, visitor: Visitor, edit: Edit, photograph: Photograph, bar: Progress
    ) -> Iterator[dict]:
        """Make the last step of an edit, unless that is known. Show it as it becomes visible."""
        source, key = edit.source, (self.worker, edit.source.settings, edit.chain)
        if key in visitor.squares:
            return
        before = self.square_after(visitor, source, source.chain, bar)
        for square, is_finished in self.worker.edit_live(before, edit.chain[-1], bar):
            if is_finished:
                visitor.keep_square(key, square)
                return
            folder, seconds = visitor.new_folder(), time.perf_counter() - edit.started
            path = save_image(square, folder / "square.png")
            yield {
                self.whole: (
                    source.frame.with_name("whole.jpg"),
                    self.save_view(photograph, square, folder),
                ),
                self.compared: (source.frame.with_name("square.png"), path),
                self.status: status_line(f"Preview after {seconds:.1f} s"),
            }

    def make(self, visitor: Visitor, edit: Edit, photograph: Photograph, bar: Progress) -> None:
        """Make an edit whole, and keep it."""
        edit.edited = self.square_after(visitor, edit.source, edit.chain, bar)
        self.finish(edit, photograph)
        edit.seconds = time.perf_counter() - edit.started
        visitor.keep(edit)

    def make_anew(
        self, visitor: Visitor, source: Source, settings: EditSettings | None, bar: Progress
    ) -> dict:
        """Make an edit after the source's steps, and show it with what was asked for."""
        square = self.square_after(visitor, source, source.chain, bar)
        source = replace(source, read=self.worker.read(square))
        edit = Edit(source, settings, visitor.new_folder())
        self.make(visitor, edit, self.worker.photograph(source.settings), bar)
        return self.restore(visitor)

    def square_after(
        self,
        visitor: Visitor,
        source: Source,
        chain: tuple[EditSettings, ...],
        bar: Progress,
        other: Worker | None = None,
    ) -> np.ndarray:
        """The square of a photograph after several edits, by this model or by another one. What is known
        is not computed again."""
        worker = other or self.worker
        square = worker.photograph(source.settings).square if other else source.original
        for number, settings in enumerate(chain, 1):
            key = (worker, source.settings, chain[:number])
            result = visitor.squares.get(key)
            if result is None:
                result = worker.edit(square, settings, bar)
                visitor.keep_square(key, result)
            square = result
        return square

    def save_view(self, photograph: Photograph, edited: np.ndarray, folder: Path) -> Path:
        """Write the whole photograph with an edit in it, as the page shows it."""
        whole = over_white(parts.view(photograph.paste(edited)))
        whole.save(folder / "whole.jpg", quality=92, comment="edited, not a photograph")
        return folder / "whole.jpg"

    def finish(self, edit: Edit, photograph: Photograph) -> None:
        """Write the pictures of an edit, and its manifest. Ask the independent reader."""
        source, folder, names = edit.source, edit.folder, self.worker.judged_names
        save_image(edit.edited, folder / "edit.png")
        if edit.chain:
            note = self.worker.note(photograph, source.settings, edit.chain)
            write_note(folder / "edit.png", note)
            flags.write_yaml(folder / "moves.yaml", flags.portable(edit.chain[-1]))
            manifest = json.dumps(asdict(note), indent=2) + "\n"
            (folder / "manifest.json").write_text(manifest, encoding="utf-8")
        save_image(heat_map(source.original, edit.edited), folder / "heat.png")
        self.save_view(photograph, edit.edited, folder)
        edit.read = self.worker.read(edit.edited)
        if edit.settings:
            levels = self.fields.levels(edit.read)
            related = self.worker.related(parse_request(edit.settings.attributes), source.read)
            edit.along = {name: levels[name] for name in related if name not in edit.settings.pins}
        if names:
            related = self.worker.related(edit.request, source.read)
            pins = {name for settings in edit.chain for name in settings.pins}
            judged = self.worker.judge(edit.edited)
            edit.meter = leak_meter(names, source.judged, judged, edit.request, related, pins)

    def command_of(self, edit: Edit) -> str:
        """The command that makes an edit again."""
        if len(edit.chain) != 1:
            return "Several steps are made again here: drop edit.png and the photograph."
        return self.worker.command("edit", edit.source.settings, *edit.chain)

    # ---------------------------------------------------------------- steps

    @one_line_errors()
    def continue_from(self, request: gr.Request) -> dict:
        """Make the edit that is shown the picture that is edited next."""
        visitor = self.visitors.of(request)
        edit = visitor.shown_edit()
        if edit.settings is None:
            raise ValueError("this is edited already: move a slider for the next step")
        if len(edit.steps) > MOST_STEPS:
            raise ValueError(f"more than {MOST_STEPS} steps: take the whole picture, and send it anew")
        source = replace(edit.source, steps=edit.steps, read=edit.read)
        visitor.show(source, replace(edit, source=source, settings=None, along={}))
        return self.restore(visitor)

    @one_line_errors()
    def change_steps(self, request: gr.Request, progress=BAR, *values) -> dict:
        """Switch steps on or off, or change their strengths. What follows is made anew."""
        visitor = self.visitors.of(request)
        source, current, bar = visitor.picture(), visitor.current, parts.progress_bar(visitor, progress)
        steps = tuple(
            Step(replace(step.settings, manipulation_strength=float(strength)), bool(is_on))
            for step, is_on, strength in zip(
                source.steps, values[:MOST_STEPS], values[MOST_STEPS:], strict=False
            )
        )
        settings = current.settings if current else None
        return self.make_anew(visitor, replace(source, steps=steps), settings, bar)

    @one_line_errors()
    def go(self, request: gr.Request, name: str) -> dict:
        """Undo, or redo."""
        visitor = self.visitors.of(request)
        visitor.go(-1 if name == "Undo" else 1)
        return self.restore(visitor)

    # ---------------------------------------------------------------- the history

    @one_line_errors()
    def recall(self, request: gr.Request, event: gr.SelectData, compares: bool) -> dict:
        """Bring an edit back with its settings, or show it beside the current one."""
        visitor = self.visitors.of(request)
        edit, current = visitor.edits[event.index], visitor.current
        if compares and current:
            return {
                self.whole: (edit.folder / "whole.jpg", current.folder / "whole.jpg"),
                self.compared: (edit.folder / "edit.png", current.folder / "edit.png"),
                self.status: status_line(
                    f"Left: {edit.unlike(current)}. Right: {current.unlike(edit)}."
                ),
            }
        visitor.show(edit.source, edit)
        return self.restore(visitor)

    @one_line_errors()
    def edit_by_other(self, request: gr.Request, progress=BAR) -> dict:
        """The edit that is shown beside the same edit by the other model."""
        visitor, other = self.visitors.of(request), self.beside
        assert other is not None  # there is no button without it
        edit, bar = visitor.shown_edit(), parts.progress_bar(visitor, progress)
        photograph = other.photograph(edit.source.settings)
        square = self.square_after(visitor, edit.source, edit.chain, bar, other)
        path = save_image(square, visitor.new_folder() / f"{other.name}.png")
        if edit.chain:
            write_note(path, other.note(photograph, edit.source.settings, edit.chain))
        return {
            self.whole: (edit.folder / "whole.jpg", self.save_view(photograph, square, path.parent)),
            self.compared: (edit.folder / "edit.png", path),
            self.status: status_line(f"Left: {self.worker.name}. Right: {other.name}."),
            self.files: [*edit.files(), str(path)],
        }

    @one_line_errors()
    def paste(self, request: gr.Request) -> list[str]:
        """Write the whole picture with the current edit. Returns the files to take away."""
        edit = self.visitors.of(request).shown_edit()
        photograph = self.worker.photograph(edit.source.settings)
        photograph.save_whole(edit.edited, edit.folder / "whole.png")
        if edit.chain:
            note = self.worker.note(photograph, edit.source.settings, edit.chain)
            write_note(edit.folder / "whole.png", note)
        return edit.files()


def moved(photograph: Photograph, *placing: float) -> PhotographSettings:
    """A photograph with its frame moved right and down, scaled and turned."""
    marks = tuple(photograph.landmarks_moved(*placing))
    return PhotographSettings(str(photograph.path), marks)
