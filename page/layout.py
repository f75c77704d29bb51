"""The page itself: tabs, what stands on them, and what happens on a click. Gradio draws it."""

from __future__ import annotations

import functools
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw

import flags
from attributes import parse_request
from config import CFG_SCALE
from editing import Progress
from figures.grids import caption, heat_map, readable, save_gif, save_image
from image_data.photograph import Photograph
from image_data.picture import open_picture
from page.leaks import STYLE, leak_meter
from page.studio import Studio, command
from page.visitors import Result, Source, Stopped, Visitor, Visitors

if TYPE_CHECKING:
    from manipulate import ManipulateConfig

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
BAR = gr.Progress()  # as a default, it makes gradio hand a handler its progress bar
PREVIEW_STEPS = 6  # of the first picture that an edit shows, at 64 pixels; fewer where there are more
# Of a slider. Readings stay this far from its ends, so that the ends always ask for a change.
STEP = 0.05
SHOWN_SIDE = 384  # pixels of a square on the page, about
FILM_SIDE = 256  # of a film, about
WHOLE_SIDE = 1024  # longest side of a whole photograph on the page
MOST_FACES = 16
# No font is fetched. White text on these colours has a contrast of 4.5 or more.
FONTS = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
THEME = gr.themes.Default(primary_hue="blue", **FONTS).set(
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_cancel_background_fill="#b91c1c",
    button_cancel_background_fill_hover="#991b1b",
    slider_color="*primary_600",
)
# The secret of a page. It survives a reload, which gradio does after a lost connection.
SECRET = """() => sessionStorage.page ??=
  [...crypto.getRandomValues(new Uint32Array(4))].map(each => each.toString(36)).join('')"""
CSS = (
    STYLE
    + """
#status p, #generate_status p, #between_status p {margin: 0; min-height: 1.6em}
@media (max-width: 900px) {#request {order: 3}}  /* narrow: the result stands before the sliders */
.group-slider input[type=range]:focus-visible, button:focus-visible, a:focus-visible
  {outline: 3px solid #0072b2; outline-offset: 2px}
"""
)


def said(text: str) -> str:
    """A line that a screen reader reads out when it changes."""
    return f'<p role="status" aria-live="polite">{escape(text)}</p>'


def taken_picture(label: str, elem_id: str | None = None) -> gr.Image:
    """Where a visitor drops, pastes or takes a picture."""
    return gr.Image(
        label=label,
        sources=["upload", "clipboard", "webcam"],
        type="filepath",
        image_mode=None,
        height=220,
        elem_id=elem_id,
        buttons=[],
    )


def shown_picture(label: str, alt_text: str, buttons: Sequence[str] = (), **look: Any) -> gr.Image:
    """A picture that the page shows."""
    return gr.Image(
        label=label,
        interactive=False,
        type="filepath",
        buttons=list(buttons),
        alt_text=alt_text,
        **look,
    )


def gallery(label: str, columns: int, elem_id: str, **look: Any) -> gr.Gallery:
    """Pictures of which one can be clicked."""
    return gr.Gallery(
        label=label,
        columns=columns,
        allow_preview=False,
        object_fit="contain",
        elem_id=elem_id,
        buttons=[],
        interactive=False,
        **look,
    )


def command_line(lines: int = 1) -> gr.Textbox:
    return gr.Textbox(
        label="The same from the command line", lines=lines, interactive=False, buttons=["copy"]
    )


def for_people(handler: Callable) -> Callable:
    """A handler whose errors become one line on the page. What is no visitor's fault is printed in the
    terminal, too."""

    def told(error: Exception) -> gr.Error:
        line = flags.in_one_line(error, "app.py")
        if line is None:
            return gr.Error("Something went wrong here. Your results are kept.", print_exception=True)
        return gr.Error(" ".join(line.split()), print_exception=False)

    if handler.__code__.co_flags & 0x20:  # a generator

        @functools.wraps(handler)
        def steps(*args):
            try:
                yield from handler(*args)
            except gr.Error:
                raise
            except Exception as error:
                raise told(error) from error

        return steps

    @functools.wraps(handler)
    def call(*args):
        try:
            return handler(*args)
        except gr.Error:
            raise
        except Exception as error:
            raise told(error) from error

    return call


class Page:
    """The page of a studio.

    Args:
        studio: what computes.
        visitors: who is there, and their files.
        uploads: the folder into which gradio puts what visitors send.
    """

    def __init__(self, studio: Studio, visitors: Visitors, uploads: Path):
        self.studio, self.visitors, self.uploads = studio, visitors, uploads
        self.classes = studio.model.config.one_hot
        self.names = studio.names
        self.side = studio.model.config.image_size
        self.preview_steps = max(2, min(PREVIEW_STEPS, PREVIEW_STEPS * 64 // self.side))
        self.sliders: dict[str, gr.Slider] = {}
        self.blocks = gr.Blocks(
            title="Edit faces by their attributes", analytics_enabled=False, fill_width=True
        )
        with self.blocks:
            gr.Markdown(self.heading())
            with gr.Tabs() as self.tabs:
                with gr.Tab("Edit", id="edit"):
                    self.build_edit()
                with gr.Tab("Generate", id="generate"):
                    self.build_generate()
                with gr.Tab("Interpolate", id="interpolate"):
                    self.build_interpolate()
            self.connect()

    def heading(self) -> str:
        what = "faces by named attributes" if self.studio.of_faces else "pictures by their class"
        return (
            f"# Edit {what}\n"
            f"The model is *{escape(Path(self.studio.script.checkpoint).name)}*, at {self.side} pixels. "
            "Pictures are computed here, kept for you alone, and deleted when you leave."
        )

    # ---------------------------------------------------------------- building

    def build_edit(self) -> None:
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                self.build_source()
            with gr.Column(scale=3, min_width=280, elem_id="request"):
                self.build_request()
            with gr.Column(scale=4, min_width=300, elem_id="result"):
                self.build_result()
        self.build_history()

    def build_source(self) -> None:
        """The picture to edit, and its frame."""
        self.upload = taken_picture("Your picture: drop it, paste it, or take it", "upload")
        self.own = gr.Button("Or take a generated one", elem_id="own")
        self.line = gr.HTML(said("No picture yet."), elem_id="line")
        self.frame = shown_picture(
            "The frame: click where it should be",
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
                self.heat = shown_picture("Brightest where it changed most", "A heat map of the change")
            with gr.Tab("Whole picture"):
                self.whole = shown_picture(
                    "The edit in your picture", "Your whole picture with the edit in it"
                )
        self.status = gr.HTML(said(""), elem_id="status")
        self.meter = gr.HTML(self.no_meter(), elem_id="meter", label="Leak meter")

    def build_history(self) -> None:
        """What a visitor made, and what they take away."""
        self.past = gallery("What you made", 8, "past", height=190, fit_columns=False)
        self.on_click = gr.Radio(
            ["bring it back", "compare it with what is shown"],
            value="bring it back",
            label="A click on one of them should",
        )
        with gr.Accordion("Take it away", open=False, elem_id="take"):
            self.command = command_line(lines=2)
            with gr.Row():
                self.save_square = gr.DownloadButton("Picture", interactive=False)
                self.save_manifest = gr.DownloadButton("Manifest", interactive=False)
                self.write_whole = gr.Button("Write the whole picture", interactive=False)
                self.save_whole = gr.DownloadButton("Whole picture", visible=False)

    def build_request(self) -> None:
        """What an edit asks for: sliders in groups, or one class."""
        if self.classes:
            self.turn_into = gr.Radio(list(self.names), label="Turn it into", elem_id="class")
            self.build_actions()
        else:
            gr.Markdown(
                "**0** not there, **0.5** leave open, **1** there. Each slider starts at what the model "
                "reads in your picture. Move what should change."
            )
            presets = {label: asked for label, asked in PRESETS.items() if set(asked) <= set(self.names)}
            with gr.Row():
                self.presets = {
                    gr.Button(label, size="sm", min_width=70): asked for label, asked in presets.items()
                }
            self.build_actions()
            self.search = gr.Textbox(
                label="Search", placeholder="hair, eye, wearing ...", elem_id="search"
            )
            known = {name for names in GROUPS.values() for name in names}
            groups = GROUPS | {"Other": tuple(name for name in self.names if name not in known)}
            self.groups: dict[gr.Accordion, list[str]] = {}
            for title, members in groups.items():
                here = [name for name in members if name in self.names]
                if not here:
                    continue
                with gr.Accordion(title, open=len(self.groups) < 2) as group, gr.Row():
                    self.groups[group] = here
                    for name in here:
                        self.sliders[name] = gr.Slider(
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

    def build_actions(self) -> None:
        with gr.Row():
            self.go = gr.Button("Edit", variant="primary", min_width=70, elem_id="go")
            self.reset = gr.Button("Reset", min_width=70, elem_id="reset")
            self.stop = gr.Button("Stop", variant="stop", min_width=70, elem_id="stop")
        with gr.Accordion("Strength and seed", open=False):
            self.strength = gr.Slider(0.1, 1, 1, step=0.05, label="Strength of the edit", buttons=[])
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0)

    def ask(self, what: str, there: tuple[str, ...], absent: tuple[str, ...] = ()) -> list[gr.Dropdown]:
        """What a new face is asked for: attributes that are there and such that are not, or a class."""
        names = [(readable(name).capitalize(), name) for name in self.names]
        if self.classes:
            return [gr.Dropdown(names, value=self.names[0], label=f"{what}: class")]
        return [
            gr.Dropdown(
                names,
                value=[name for name in chosen if name in self.names],
                multiselect=True,
                label=f"{what}: {label}",
            )
            for label, chosen in (("there", there), ("not there", absent))
        ]

    def build_generate(self) -> None:
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                self.wanted = self.ask("New picture", ("Smiling", "Wavy_Hair"))
                self.number = gr.Slider(1, MOST_FACES, 8, step=1, label="How many", buttons=[])
                self.guidance = gr.Slider(
                    1,
                    5,
                    CFG_SCALE,
                    step=0.1,
                    label="Guidance: more follows the request better, and varies less",
                    buttons=[],
                    visible=self.studio.model.config.guidable,
                )
                with gr.Row():
                    self.generate_seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                    self.dice = gr.Button("Dice", min_width=80)
                with gr.Row():
                    self.draw = gr.Button("Generate", variant="primary", elem_id="draw")
                    self.generate_stop = gr.Button("Stop", variant="stop")
                self.generate_status = gr.HTML(said(""), elem_id="generate_status")
            with gr.Column(scale=5, min_width=300):
                self.faces = gallery("Click a face, then say what it is for", 4, "faces")
                with gr.Row():
                    self.to_edit = gr.Button("Edit it")
                    self.to_start = gr.Button("Interpolate from it")
                    self.to_end = gr.Button("Interpolate to it")
                self.generate_command = command_line()

    def build_interpolate(self) -> None:
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                self.between = gr.Radio(
                    ["requests", "pictures"], value="requests", label="Between two", elem_id="between"
                )
                with gr.Group() as self.by_request:
                    self.start = self.ask("From", ("Male",), ("Smiling",))
                    self.end = self.ask("To", ("Smiling",), ("Male",))
                with gr.Row(visible=False) as self.by_picture:
                    self.ends = {
                        end: taken_picture(label) for end, label in (("from", "From"), ("to", "To"))
                    }
                self.frames = gr.Slider(3, 20, 10, step=1, label="Frames", buttons=[])
                self.between_seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                with gr.Row():
                    self.mix = gr.Button("Interpolate", variant="primary", elem_id="mix")
                    self.between_stop = gr.Button("Stop", variant="stop")
                self.between_status = gr.HTML(said(""), elem_id="between_status")
            with gr.Column(scale=5, min_width=300):
                self.strip = gallery("Frame by frame", 5, "strip")
                self.film = shown_picture(
                    "Film", "The frames as a film", elem_id="film", buttons=["download"]
                )
                self.between_command = command_line()

    # ---------------------------------------------------------------- connecting

    def connect(self) -> None:
        """What happens on which click. All that computes waits in one line for the one model."""
        one = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
        quick = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        request = [self.turn_into] if self.classes else list(self.sliders.values())
        picture = [self.upload, self.line, self.frame, self.face, *self.placing, *request]
        picture += [self.compared, self.heat, self.whole, self.meter, self.status]
        result = [self.compared, self.heat, self.whole, self.meter, self.status, self.past]
        result += [self.command, self.save_square, self.save_manifest, self.write_whole, self.save_whole]
        asked = [self.strength, self.seed, *request]
        last = one | {"trigger_mode": "always_last", "show_progress_on": [self.status]}

        secret = gr.Textbox(visible=False)
        came_back = [*picture, *result[5:], *asked[:2]]
        self.blocks.load(self.arrive, [secret], came_back, js=SECRET, **quick)
        self.blocks.unload(self.leave)
        # ``preprocess`` would open the file before we look at it, and would fetch addresses.
        self.upload.upload(self.take, [self.upload], picture, preprocess=False, **one)
        self.own.click(self.take_own, None, picture, **one)
        place = [self.face, *self.placing]
        self.place.click(self.move, place, picture, **one)
        pointed = self.frame.select(self.point, self.placing[2:], place, **one)
        pointed.then(self.move, place, picture, **one)
        self.go.click(self.edit, asked, result, **last)
        if self.classes:
            self.turn_into.input(self.edit, asked, result, **last)
        else:
            for slider in self.sliders.values():
                slider.release(self.edit, asked, result, **last)
            for button, wanted in self.presets.items():
                set_to = button.click(self.preset(wanted), None, request, **quick)
                set_to.then(self.edit, asked, result, **last)
            groups = list(self.groups)
            found = {"trigger_mode": "always_last"} | quick
            self.search.change(self.find, [self.search], [*request, *groups], **found)
        self.reset.click(self.start_again, None, request, **quick)
        self.stop.click(self.halt, None, None, **quick)
        self.past.select(self.recall, [self.on_click], came_back, **quick)
        self.write_whole.click(self.paste, None, [self.save_whole, self.status], **one)

        drawn = [self.faces, self.generate_status, self.generate_command]
        asked = [self.number, self.guidance, self.generate_seed, *self.wanted]
        drawing = one | {"show_progress_on": [self.generate_status]}
        self.draw.click(self.generate, asked, drawn, **drawing)
        self.dice.click(dice, None, self.generate_seed, **quick)
        self.generate_stop.click(self.halt, None, None, **quick)
        self.faces.select(self.choose, None, [self.generate_status], **quick)
        self.to_edit.click(self.edit_face, None, [*picture, self.tabs], **one)
        for end, button in (("from", self.to_start), ("to", self.to_end)):
            button.click(
                self.end_with_face(end),
                None,
                [self.ends[end], self.between, self.by_request, self.by_picture, self.tabs],
                **quick,
            )

        for end, image in self.ends.items():
            image.upload(self.take_end(end), [image], [image], preprocess=False, **quick)
            image.clear(self.drop_end(end), None, None, **quick)
        self.between.change(
            lambda kind: [gr.update(visible=kind == each) for each in ("requests", "pictures")],
            [self.between],
            [self.by_request, self.by_picture],
            **quick,
        )
        asked = [self.between, self.frames, self.between_seed, *self.start, *self.end]
        mixed = [self.strip, self.film, self.between_status, self.between_command]
        mixing = one | {"show_progress_on": [self.between_status]}
        self.mix.click(self.interpolate, asked, mixed, **mixing)
        self.between_stop.click(self.halt, None, None, **quick)

    # ---------------------------------------------------------------- pictures

    def leave(self, request: gr.Request) -> None:
        self.visitors.leave(request.session_hash)

    def arrive(self, request: gr.Request, secret: str) -> dict:
        """Show a visitor who comes back what they had."""
        visitor = self.visitors.arrive(request.session_hash, str(secret)[:100])
        if visitor.source is None:
            return {self.status: said("")}
        found = self.source_shown(visitor.source)
        if visitor.shown:
            return found | self.recalled(visitor, visitor.shown)
        return found | {self.past: history(visitor)}

    def halt(self, request: gr.Request) -> None:
        self.visitors.of(request.session_hash).stop.set()

    def received(self, visitor: Visitor, sent: Any) -> Path:
        """The file that a visitor has sent, copied into their folder: the browser still shows the one
        that arrived, which is swept up later.

        Raises:
            ValueError: for what was not sent here: paths and addresses are not followed.
        """
        path = Path(str((sent or {}).get("path") or "")) if isinstance(sent, dict) else Path()
        whole = path.resolve()
        own = self.uploads.resolve()
        depth = len(whole.relative_to(own).parts) if whole.is_relative_to(own) else 0
        if depth != 2 or not whole.is_file():  # uploads/HASH/NAME
            raise ValueError("that picture did not arrive: send it again")
        return Path(shutil.copy(whole, visitor.new_file(whole.name)))

    @for_people
    def take(self, request: gr.Request, sent: Any) -> dict:
        visitor = self.visitors.of(request.session_hash)
        return self.look(visitor, self.received(visitor, sent)) | {self.upload: None}

    @for_people
    def take_own(self, request: gr.Request) -> dict:
        """A generated picture to edit: another one each time."""
        visitor = self.visitors.of(request.session_hash)
        seed = dice()
        clear = tuple(f"{name}=0" for name in ("Blurry",) if name in self.names)
        config = replace(self.studio.script, mode="generate", num_samples=1, seed=seed, attributes=clear)
        path = save_image(self.studio.generate(config)[0], visitor.new_file(f"generated_{seed}.png"))
        return self.look(visitor, path)

    @for_people
    def edit_face(self, request: gr.Request) -> dict:
        visitor = self.visitors.of(request.session_hash)
        return self.look(visitor, self.chosen(visitor)) | {self.tabs: gr.Tabs(selected="edit")}

    def look(self, visitor: Visitor, path: Path, **how) -> dict:
        """Take a file as the picture to edit, and show it."""
        config = replace(self.studio.script, mode="edit", source_image=str(path), **how)
        photograph, line = self.studio.open(config)
        # The command says where the face is, so that it need not be found again.
        points = photograph.landmarks
        marks = tuple(round(value, 2) for value in points) if points else None
        config = replace(config, face=1 if marks else 0, landmarks=marks)
        photograph, _ = self.studio.open(config)
        square = photograph.square
        judged = self.studio.judge(square[None])[0] if self.studio.reader else None
        line = line.replace("--landmarks would align it", "move the frame")
        line = re.sub(r"\(--face.*?\)", "(Move the frame has the others)", line)
        frame = framed(photograph, visitor.new_file("frame.jpg"))
        visitor.source = Source(config, square, line, frame, self.studio.read(square), judged)
        visitor.shown = None
        found = self.source_shown(visitor.source)
        if not how:  # a new picture
            found |= dict(zip([self.face, *self.placing], (1, 0, 0, 1, 0), strict=True))
        return found

    def source_shown(self, source: Source) -> dict:
        """Everything that shows a picture that is not edited yet."""
        shown: dict[Any, Any] = {
            self.line: said(
                source.line or f"Ready. {'Choose a class' if self.classes else 'Move a slider'}."
            ),
            self.frame: str(source.frame),
            self.compared: None,
            self.heat: None,
            self.whole: None,
            self.meter: self.no_meter(),
            self.status: said(""),
        }
        return shown | self.readings(source)

    def readings(self, source: Source) -> dict:
        """The sliders at what the model reads in a picture."""
        if self.classes:
            return {self.turn_into: None}
        return {
            self.sliders[name]: start_of(seen)
            for name, seen in zip(self.names, source.seen, strict=True)
        }

    @for_people
    def move(
        self, request: gr.Request, face: float, right: float, down: float, scale: float, turn: float
    ) -> dict:
        """Look at another face, or at a frame moved by hand. The frame starts where the face is."""
        visitor, source = self.here(request)
        path = Path(str(source.config.source_image))
        plain = replace(self.studio.script, mode="edit", source_image=str(path), face=max(1, int(face)))
        if (right, down, scale, turn) == (0, 0, 1, 0):
            return self.look(visitor, path, face=plain.face)
        photograph, _ = self.studio.open(plain)
        marks = tuple(photograph.landmarks_moved(right, down, scale, turn))
        return self.look(visitor, path, landmarks=marks) | {self.line: said("The frame is yours.")}

    @for_people
    def point(self, request: gr.Request, event: gr.SelectData, scale: float, turn: float) -> list[float]:
        """What a click on the picture asks for: the face that is there, or else a frame around it. Which
        face, and the sliders of the frame."""
        _, source = self.here(request)
        photograph, _ = self.studio.open(replace(source.config, landmarks=None, face=1))
        times = photograph.picture.width / view(photograph.picture).width
        click = np.array(event.index, float) * times
        number = self.studio.face_at(photograph, click)
        if number:
            return [number, 0, 0, 1, 0]
        return [1, *photograph.towards(click), scale, turn]

    # ---------------------------------------------------------------- edits

    def here(self, request: gr.Request) -> tuple[Visitor, Source]:
        """The visitor and the picture that they edit."""
        visitor = self.visitors.of(request.session_hash)
        if visitor.source is None:
            raise ValueError("no picture yet: drop one, or take a generated one")
        return visitor, visitor.source

    def moved(self, source: Source, values: tuple) -> dict[str, float]:
        """What the sliders ask for: those that are not where they started. 0.5 asks for nothing."""
        if self.classes:
            (chosen,) = values
            return {chosen: 1.0} if chosen else {}
        starts = dict(zip(self.names, map(start_of, source.seen), strict=True))
        asked = {name: round(float(value), 2) for name, value in zip(self.sliders, values, strict=True)}
        return {
            name: value
            for name, value in asked.items()
            if abs(value - starts[name]) > STEP / 2 and value != 0.5
        }

    def preset(self, wanted: dict[str, float]) -> Callable:
        """A handler that sets the sliders to a preset, and all others to where they started."""

        def choose(request: gr.Request) -> list:
            starts = self.start_again(request)
            return [wanted.get(name, start) for name, start in zip(self.sliders, starts, strict=True)]

        return choose

    def start_again(self, request: gr.Request) -> list:
        visitor = self.visitors.of(request.session_hash)
        if self.classes:
            return [None]
        if visitor.source is None:
            return [0.5] * len(self.sliders)
        starts = self.readings(visitor.source)
        return [starts[slider] for slider in self.sliders.values()]

    def find(self, text: str) -> list:
        """Show the sliders whose name or group has a text, and open their groups."""
        wanted = text.strip().lower().replace(" ", "_")
        fits = {}
        for group, names in self.groups.items():
            whole = wanted in group.label.lower().replace(" ", "_")
            fits |= {name: whole or wanted in name.lower() for name in names}
        sliders = [gr.update(visible=fits[name]) for name in self.sliders]
        groups = [
            gr.update(visible=any(fits[name] for name in names), open=bool(wanted) or i < 2)
            for i, names in enumerate(self.groups.values())
        ]
        return [*sliders, *groups]

    @for_people
    def edit(self, request: gr.Request, progress=BAR, strength=1.0, seed=0, *values) -> Iterator[dict]:
        """A preview, then the edit."""
        visitor, source = self.here(request)
        asked = self.moved(source, values)
        if not asked:
            how = "choose a class" if self.classes else "move a slider"
            yield {self.status: said(f"Nothing is asked for: {how}.")}
            return
        config = replace(
            source.config,
            attributes=tuple(f"{name}={value:g}" for name, value in asked.items()),
            manipulation_strength=float(strength),
            seed=int(seed or 0),
        )
        visitor.stop.clear()
        started = time.perf_counter()
        files = {"before": enlarged(source.square, visitor.new_file("before.png"))}
        try:
            quick = replace(
                config, editing=replace(config.editing, num_inference_steps=self.preview_steps)
            )
            files["preview"] = enlarged(
                self.studio.edit(quick, source.square), visitor.new_file("preview.png")
            )
            seconds = time.perf_counter() - started
            yield {
                self.compared: (str(files["before"]), str(files["preview"])),
                self.status: said(f"Preview after {seconds:.1f} seconds, the edit follows ..."),
            }
            bar = counted(visitor, progress)
            edited = self.studio.edit(config, source.square, bar)
        except Stopped:
            yield {self.status: said("Stopped. What you made before is kept.")}
            return
        seconds = time.perf_counter() - started
        result = self.keep(visitor, source, config, edited, asked, seconds, files)
        yield self.showing(visitor, result)

    def keep(
        self, visitor: Visitor, source: Source, config: ManipulateConfig, edited: np.ndarray,
        asked: dict[str, float], seconds: float, shown: dict[str, Path],
    ) -> Result:  # fmt: skip
        """Write what belongs to an edit, and add it to the history."""
        photograph, _ = self.studio.open(config)
        whole = view(photograph.paste(edited))
        files = {name: visitor.new_file(name) for name in ("edit.png", "manifest.json", "whole.jpg")}
        save_image(edited, files["edit.png"])
        whole.convert("RGB").save(files["whole.jpg"], quality=92)
        files["manifest.json"].write_text(self.studio.manifest(config), encoding="utf-8")
        files |= shown
        files["after"] = enlarged(edited, visitor.new_file("after.png"))
        change = heat_map(source.square, edited)
        files["heat"] = enlarged(change, visitor.new_file("heat.png"))
        meter = self.no_meter()
        if self.studio.reader and source.judged is not None:
            after = self.studio.judge(edited[None])[0]
            meter = leak_meter(self.studio.read_by, source.judged, after, asked)
        title = caption(asked).capitalize()
        result = Result(config, source, edited, title, seconds, asked, meter, files)
        visitor.keep(result)
        return result

    def no_meter(self) -> str:
        if self.studio.reader:
            return said("After an edit: what an independent reader saw change.")
        return said("No independent reader: train one with evaluate.py judge, and give --judge.")

    def showing(self, visitor: Visitor, result: Result) -> dict:
        """Everything that shows a result."""
        files = {name: str(file) for name, file in result.files.items()}
        return {
            self.compared: (files["before"], files["after"]),
            self.heat: files["heat"],
            self.whole: files["whole.jpg"],
            self.meter: result.meter,
            self.status: said(f"{result.title}: {result.seconds:.1f} seconds."),
            self.past: history(visitor),
            self.command: command(result.config),
            self.save_square: gr.update(value=files["edit.png"], interactive=True),
            self.save_manifest: gr.update(value=files["manifest.json"], interactive=True),
            self.write_whole: gr.update(interactive=True),
            self.save_whole: gr.update(visible=False),
        }

    @for_people
    def recall(self, request: gr.Request, event: gr.SelectData, then: str) -> dict:
        """Bring a result back with its settings, or show it beside the one that is shown."""
        visitor, _ = self.here(request)
        if not 0 <= event.index < len(visitor.results):
            raise ValueError("that result is gone: make it again")
        result, shown = visitor.results[event.index], visitor.shown
        if then != "bring it back" and shown is not None:
            return {
                self.compared: (str(result.files["after"]), str(shown.files["after"])),
                self.status: said(f"Left: {result.title}. Right: {shown.title}."),
            }
        visitor.shown, visitor.source = result, result.source
        return self.source_shown(result.source) | self.recalled(visitor, result)

    def recalled(self, visitor: Visitor, result: Result) -> dict:
        """Everything that shows a result, and the settings that made it."""
        if self.classes:
            moved = {self.turn_into: next(iter(result.moved), None)}
        else:
            moved = {self.sliders[name]: value for name, value in result.moved.items()}
        how = {self.strength: result.config.manipulation_strength, self.seed: result.config.seed}
        return self.showing(visitor, result) | moved | how

    @for_people
    def paste(self, request: gr.Request) -> dict:
        """Write the whole picture with the edit that is shown."""
        visitor, _ = self.here(request)
        if visitor.shown is None:
            raise ValueError("no edit is shown: make one, or click one that you made")
        result = visitor.shown
        photograph, _ = self.studio.open(result.config)
        path = visitor.new_file("whole.png")
        photograph.paste(result.edited).save(path)
        result.files["whole.png"] = path
        return {
            self.save_whole: gr.update(value=str(path), visible=True),
            self.status: said("The whole picture is ready to be saved."),
        }

    # ---------------------------------------------------------------- new faces

    def request_of(self, chosen: tuple) -> tuple[str, ...]:
        """A request as manipulate.py takes it.

        Raises:
            ValueError: for a name that is asked to be there and not.
        """
        if self.classes:
            return (f"{chosen[0]}=1",)
        there, not_there = chosen
        both = set(there) & set(not_there)
        if both:
            raise ValueError(f"{', '.join(sorted(both))}: there and not there, choose one")
        request = (*(f"{name}=1" for name in there), *(f"{name}=0" for name in not_there))
        parse_request(request)
        return request

    @for_people
    def generate(
        self, request: gr.Request, progress=BAR, number=8, guidance=CFG_SCALE, seed=0, *chosen
    ) -> dict:
        visitor = self.visitors.of(request.session_hash)
        sampling = self.studio.script.sampling
        if self.studio.model.config.guidable:
            sampling = replace(sampling, cfg_scale=float(guidance))
        config = replace(
            self.studio.script,
            mode="generate",
            attributes=self.request_of(chosen),
            num_samples=min(int(number), MOST_FACES),
            seed=int(seed or 0),
            sampling=sampling,
        )
        visitor.stop.clear()
        started = time.perf_counter()
        bar = counted(visitor, progress)
        try:
            images = self.studio.generate(config, bar)
        except Stopped:
            return {self.generate_status: said("Stopped.")}
        visitor.faces = [
            save_image(image, visitor.new_file(f"{i:03d}.png")) for i, image in enumerate(images)
        ]
        visitor.chosen = None
        shown = [str(enlarged(image, visitor.new_file("face.png"))) for image in images]
        seconds = time.perf_counter() - started
        return {
            self.faces: gr.update(value=shown, selected_index=None),
            self.generate_status: said(f"{len(images)} in {seconds:.1f} seconds. Click one to use it."),
            self.generate_command: command(config),
        }

    def choose(self, request: gr.Request, event: gr.SelectData) -> dict:
        self.visitors.of(request.session_hash).chosen = event.index
        return {self.generate_status: said(f"Picture {event.index + 1} is chosen.")}

    def chosen(self, visitor: Visitor) -> Path:
        """The generated face that was clicked."""
        if visitor.chosen is None or not visitor.chosen < len(visitor.faces):
            raise ValueError("no face is chosen: generate some, and click one")
        return visitor.faces[visitor.chosen]

    # ---------------------------------------------------------------- between two

    def end_with_face(self, end: str) -> Callable:
        """A handler that makes the chosen face an end of an interpolation."""

        @for_people
        def send(request: gr.Request) -> list:
            visitor = self.visitors.of(request.session_hash)
            visitor.ends[end] = self.chosen(visitor)
            kinds = [gr.update(visible=False), gr.update(visible=True)]
            picture = self.shown_end(visitor, end)
            return [picture, "pictures", *kinds, gr.Tabs(selected="interpolate")]

        return send

    def take_end(self, end: str) -> Callable:
        """A handler that takes a picture as an end of an interpolation."""

        @for_people
        def take(request: gr.Request, sent: Any) -> str:
            visitor = self.visitors.of(request.session_hash)
            visitor.ends[end] = self.received(visitor, sent)
            return self.shown_end(visitor, end)

        return take

    def shown_end(self, visitor: Visitor, end: str) -> str:
        """The picture of an end, for the page. An end that is no picture is forgotten, ValueError."""
        try:
            picture = open_picture(visitor.ends[end])
        except ValueError:
            del visitor.ends[end]
            raise
        shown = visitor.new_file("end.jpg")
        view(picture).save(shown, quality=92)
        return str(shown)

    def drop_end(self, end: str) -> Callable:
        """A handler that forgets an end."""

        def drop(request: gr.Request) -> None:
            self.visitors.of(request.session_hash).ends.pop(end, None)

        return drop

    @for_people
    def interpolate(
        self, request: gr.Request, progress=BAR, kind="requests", frames=10, seed=0, *chosen
    ) -> dict:
        visitor = self.visitors.of(request.session_hash)
        config = replace(
            self.studio.script,
            mode="interpolate",
            interpolation_steps=int(frames),
            seed=int(seed or 0),
        )
        if kind == "pictures":
            if len(visitor.ends) < 2:
                raise ValueError("two pictures are needed: drop them, or send generated faces here")
            ends = {name: str(visitor.ends[end]) for name, end in (("source", "from"), ("target", "to"))}
            config = replace(config, source_image=ends["source"], target_image=ends["target"])
        else:
            half = len(chosen) // 2
            start, end = self.request_of(chosen[:half]), self.request_of(chosen[half:])
            if not start or not end:
                raise ValueError("both ends need at least one attribute")
            config = replace(config, start=start, end=end)
        visitor.stop.clear()
        started = time.perf_counter()
        bar = counted(visitor, progress)
        try:
            images = self.studio.interpolate(config, bar)
        except Stopped:
            return {self.between_status: said("Stopped.")}
        film = save_gif(visitor.new_file("film.gif"), images, scale=max(1, FILM_SIDE // self.side))
        shown = [str(enlarged(image, visitor.new_file("frame.png"))) for image in images]
        seconds = time.perf_counter() - started
        return {
            self.strip: shown,
            self.film: str(film),
            self.between_status: said(f"{len(images)} frames in {seconds:.1f} seconds."),
            self.between_command: command(config),
        }


def dice() -> int:
    """A seed by chance."""
    return int.from_bytes(os.urandom(3), "big")


def counted(visitor: Visitor, progress: gr.Progress) -> Progress:
    """The page's progress bar, for the model. The visitor can stop the work."""
    return visitor.counting(lambda done, total, label: progress((done, total), label, unit="steps"))


def history(visitor: Visitor) -> list[tuple[str, str]]:
    """The results of a visitor, for a gallery."""
    return [(str(each.files["after"]), each.title) for each in visitor.results]


def start_of(seen: float) -> float:
    """Where a slider starts for what the model reads."""
    return round(min(max(round(float(seen) / STEP) * STEP, STEP), 1 - STEP), 2)


def enlarged(image: np.ndarray, path: Path) -> Path:
    """A square as the page shows it: enlarged by a whole number of times."""
    times = max(1, SHOWN_SIDE // image.shape[0])
    size = image.shape[1] * times, image.shape[0] * times
    Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def framed(photograph: Photograph, path: Path) -> Path:
    """A photograph with its frame drawn, as large as ``view`` makes it."""
    picture = view(photograph.picture)
    times = picture.width / photograph.picture.width
    left_top, right_top, left_bottom, right_bottom = photograph.corners() * times
    ring = [
        tuple(map(float, each)) for each in (left_top, right_top, right_bottom, left_bottom, left_top)
    ]
    draw, width = ImageDraw.Draw(picture), max(3, round(max(picture.size) / 150))
    draw.line(ring, "black", width + 2, joint="curve")
    draw.line(ring, "#56b4e9", width, joint="curve")
    picture.save(path, quality=92)
    return path


def view(picture: Image.Image) -> Image.Image:
    """A picture as the page shows it: its longest side from SHOWN_SIDE to WHOLE_SIDE."""
    longest = max(picture.size)
    times = min(max(longest, SHOWN_SIDE), WHOLE_SIDE) / longest
    size = [max(1, round(side * times)) for side in picture.size]
    return picture.resize(size, Image.Resampling.BICUBIC)
