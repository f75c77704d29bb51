"""Parts of the page: its look, what several tabs have, pictures as the page shows them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw

import flags
from image_data.photograph import Photograph
from page.folder import FOLDERS
from page.leaks import STYLE
from page.visitors import Visitor, Visitors
from samplers import Progress, Steps

VIEW_SIDE = 1024  # longest side of a whole photograph on the page, in pixels; by eye: a laptop's screen
# How events are run. All that computes waits in one line for the one model.
COMPUTES: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "model",
    "api_visibility": "private",
}
QUICK: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
# What takes files: ``preprocess`` would open one before we look at it, and would fetch addresses.
RECEIVES = QUICK | {"preprocess": False}
BAR = gr.Progress()  # as a default, it makes gradio hand a handler its progress bar
# Of components: a picture that a visitor drops, pastes or takes, one that is shown, and several of which
# one can be clicked.
PICTURE_IN: dict[str, Any] = {"sources": ["upload", "clipboard", "webcam"], "height": 220, "buttons": []}
PICTURE_OUT: dict[str, Any] = {"type": "filepath", "interactive": False, "buttons": []}
GALLERY: dict[str, Any] = {"allow_preview": False, "interactive": False, "buttons": []}
COMMAND: dict[str, Any] = {"label": "The same from the command line", "buttons": ["copy"]}
# No font is fetched. White text on these colours has a contrast of 4.5 or more.
FONTS = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
THEME = gr.themes.Default(primary_hue="blue", **FONTS).set(
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_cancel_background_fill="#b91c1c",
    button_cancel_background_fill_hover="#991b1b",
    slider_color="*primary_600",
)
CSS = (
    STYLE
    + """
.status p {margin: 0; min-height: 1.6em}
.gradio-container {overflow: visible !important}  /* else nothing is sticky */
.square img {width: 24rem; height: auto; object-fit: contain !important}
#pictures {flex-wrap: nowrap}
#pictures > * {min-width: 0 !important}
#frame img {width: 100%; height: auto; object-fit: contain !important}
.attribute {flex-wrap: nowrap; gap: 0; min-width: min(100%, 190px) !important}
.attribute > .block:last-child {flex: 0 0 3.6rem; min-width: 0 !important; padding: 0.6rem}
.attribute > .block {border-width: 0 !important}
.attribute label:has([type=checkbox]) {flex-direction: column; gap: 2px}
.attribute label:has([type=checkbox]) span {font-size: 0; margin: 0}
.attribute label:has([type=checkbox]) span::after {content: "Lock"; font-size: 0.75rem}
/* Photograph and result stay in sight beside the sliders; narrow, above them, and the buttons below. */
@media (min-width: 901px) {
  #stage {position: sticky; top: 0; align-self: flex-start; max-height: 100vh; overflow-y: auto}
}
@media (max-width: 900px) {
  #edit_area {flex-direction: column; flex-wrap: nowrap}
  #stage {display: contents}
  #pictures, #edit_bar {position: sticky; z-index: 1000; background: var(--body-background-fill)}
  #pictures {top: 0}
  #edit_bar {bottom: 0; order: 5; padding: 0.5rem 0}
  #edit_bar .row {flex-wrap: nowrap; gap: 0.3rem}
  #edit_bar button {min-width: 0 !important; padding-inline: 0.2rem}
  #pictures [data-testid=block-label] {display: none}
  #result [role=tab] {padding: 0.2rem; font-size: 0.75rem}
  #pictures .image-container, #pictures .slider-wrap, #pictures img {max-height: 36vh}
}
.group-slider input[type=range]:focus-visible, button:focus-visible, a:focus-visible
  {outline: 3px solid #0072b2; outline-offset: 2px}
"""
)


def status_line(text: str) -> str:
    """A line that a screen reader reads out when it changes."""
    return f'<p role="status" aria-live="polite">{escape(text)}</p>'


class Controls:
    """A button that starts work, one that stops it, ``more`` of the tab's own, a line that says how it
    goes, and a seed."""

    def __init__(self, label: str, name: str, visitors: Visitors, more: Sequence[str] = ()):
        with gr.Column(elem_id=f"{name}_bar"):
            with gr.Row():
                self.go = gr.Button(label, variant="primary", min_width=60, elem_id=name)
                stop = gr.Button("Stop", variant="stop", min_width=60)
                self.more = [gr.Button(each, min_width=60) for each in more]
            self.status = gr.HTML(status_line(""), elem_id=f"{name}_status", elem_classes="status")
        with gr.Row():
            # A text: numbers of a browser are exact up to 2^53 only.
            self.seed = gr.Textbox("0", label="Seed", max_length=19)
            dice = gr.Button("Dice", min_width=70)
        dice.click(random_seed, None, self.seed, **QUICK)
        stop.click(visitors.stop, None, None, **QUICK)


def random_seed() -> int:
    return random.randrange(2**24)


def seed_of(text: str | None) -> int:
    """The seed that a visitor typed; nothing is 0."""
    digits = str(text or 0).strip()
    if not digits.isdecimal():
        raise ValueError(f"the seed must be a whole number, at least 0, and is {digits!r}: correct it")
    return int(digits)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors of a handler become one line on the page. What is no visitor's fault is printed in the
    terminal, too. Of a file in the page's own folder a visitor knows only the name."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        line = flags.in_one_line(error, "app.py")
        message = (
            line
            or "Something went wrong here. Your results are kept. Try once more, or load the page anew."
        )
        message = re.sub(rf"[^\s'\"]*{FOLDERS}[^\s'\"]*[/\\]", "", message)
        raise gr.Error(" ".join(message.split()), print_exception=line is None) from error


def progress_bar(visitor: Visitor, progress: gr.Progress) -> Progress:
    """The page's progress bar, for the model. It ends the work when the visitor has asked for that."""
    visitor.stop.clear()

    def bar(steps: Steps, label: str, number: int) -> Steps:
        for done, step in enumerate(steps, 1):
            if visitor.stop.is_set():
                raise gr.Error("What you made before is kept.", title="Stopped", print_exception=False)
            progress((done, number), label, unit="steps")
            yield step

    return bar


def view(picture: Image.Image) -> Image.Image:
    """A photograph as the page shows it: not larger than VIEW_SIDE."""
    smaller = picture.copy()
    smaller.thumbnail((VIEW_SIDE, VIEW_SIDE), Image.Resampling.BICUBIC)
    return smaller


def framed(photograph: Photograph) -> Image.Image:
    """``view`` of a photograph, with its frame drawn."""
    picture = view(photograph.picture)
    times = picture.width / photograph.picture.width
    left_top, right_top, left_bottom, right_bottom = (photograph.corners() * times).tolist()
    ring = [tuple(each) for each in (left_top, right_top, right_bottom, left_bottom, left_top)]
    draw, width = ImageDraw.Draw(picture), max(3, round(max(picture.size) / 150))
    draw.line(ring, "black", width + 2, joint="curve")
    draw.line(ring, "#56b4e9", width, joint="curve")
    return picture
