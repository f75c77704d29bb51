"""Parts of the page: its look, components that several tabs have, pictures as the page shows them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw

import flags
from figures.grids import readable
from image_data.photograph import Photograph
from page.leaks import STYLE
from page.visitors import Visitor
from samplers import Progress, Steps

BAR = gr.Progress()  # as a default, it makes gradio hand a handler its progress bar
# Sides of pictures on the page, in pixels, by eye: columns of a laptop's screen.
SQUARE_SIDE = 384  # of a square, about
FILM_SIDE = 256  # of a film, about
WHOLE_SIDE = 1024  # longest side of a whole photograph
# How events are run. All that computes waits in one line for the one model.
COMPUTES: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "model",
    "api_visibility": "private",
}
QUICK: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
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
#status p, #generate_status p, #between_status p {margin: 0; min-height: 1.6em}
@media (max-width: 900px) {#request {order: 3}}  /* narrow: the result stands before the sliders */
.group-slider input[type=range]:focus-visible, button:focus-visible, a:focus-visible
  {outline: 3px solid #0072b2; outline-offset: 2px}
"""
)


# -------------------------------------------------------------------- components


def status_line(text: str) -> str:
    """A line that a screen reader reads out when it changes."""
    return f'<p role="status" aria-live="polite">{escape(text)}</p>'


def picture_input(label: str, elem_id: str | None = None) -> gr.Image:
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


def picture_output(label: str, alt_text: str, buttons: Sequence[str] = (), **look: Any) -> gr.Image:
    """A picture that the page shows."""
    return gr.Image(
        label=label, interactive=False, type="filepath", buttons=list(buttons), alt_text=alt_text, **look
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


class RequestFields:
    """What a new face is asked for: attributes that are present and others that are absent, or one of
    several classes.

    Attributes:
        fields: the components. Their values are what ``request`` takes.
    """

    def __init__(
        self,
        names: Sequence[str],
        are_classes: bool,
        label: str,
        present: tuple[str, ...] = (),
        absent: tuple[str, ...] = (),
    ):
        self.are_classes = are_classes
        choices = [(readable(name).capitalize(), name) for name in names]
        if are_classes:
            self.fields = [gr.Dropdown(choices, value=names[0], label=f"{label}: class")]
            return
        self.fields = [
            gr.Dropdown(
                choices,
                value=[name for name in initial if name in names],
                multiselect=True,
                label=f"{label}: {kind}",
            )
            for kind, initial in (("present", present), ("absent", absent))
        ]

    def request(self, values: Sequence[Any]) -> tuple[str, ...]:
        """A request as ``parse_request`` takes it.

        Raises:
            ValueError: for a name that is asked to be present and absent.
        """
        if self.are_classes:
            return (f"{values[0]}=1",)
        present, absent = values
        both = set(present) & set(absent)
        if both:
            raise ValueError(f"{', '.join(sorted(both))}: present and absent, choose one")
        return (*(f"{name}=1" for name in present), *(f"{name}=0" for name in absent))


# -------------------------------------------------------------------- handlers


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors of a handler become one line on the page. What is no visitor's fault is printed in the
    terminal, too."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        line = flags.in_one_line(error, "app.py")
        if line is None:
            message = "Something went wrong here. Your results are kept."
            raise gr.Error(message, print_exception=True) from error
        raise gr.Error(" ".join(line.split()), print_exception=False) from error


class Stopped(Exception):
    """The visitor asked for the work to stop."""


def progress_bar(visitor: Visitor, progress: gr.Progress) -> Progress:
    """The page's progress bar, for the model. It raises ``Stopped`` when the visitor asked for that."""
    visitor.stop.clear()

    def bar(steps: Steps, label: str, number: int) -> Steps:
        progress((0, number), label, unit="steps")
        for done, step in enumerate(steps, 1):
            if visitor.stop.is_set():
                raise Stopped
            progress((done, number), label, unit="steps")
            yield step

    return bar


def random_seed() -> int:
    return int.from_bytes(os.urandom(3), "big")


# -------------------------------------------------------------------- pictures


def save_enlarged(image: np.ndarray, path: Path) -> Path:
    """Write a square as the page shows it: enlarged by a whole number of times."""
    times = max(1, SQUARE_SIDE // image.shape[0])
    size = image.shape[1] * times, image.shape[0] * times
    Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def save_framed(photograph: Photograph, path: Path) -> Path:
    """Write a photograph with its frame drawn, as large as ``view`` makes it."""
    picture = view(photograph.picture)
    times = picture.width / photograph.picture.width
    left_top, right_top, left_bottom, right_bottom = photograph.corners() * times
    corners = (left_top, right_top, right_bottom, left_bottom, left_top)
    ring = [(float(x), float(y)) for x, y in corners]
    draw, width = ImageDraw.Draw(picture), max(3, round(max(picture.size) / 150))
    draw.line(ring, "black", width + 2, joint="curve")
    draw.line(ring, "#56b4e9", width, joint="curve")
    picture.save(path, quality=92)
    return path


def view(picture: Image.Image) -> Image.Image:
    """A picture as the page shows it: its longest side from SQUARE_SIDE to WHOLE_SIDE."""
    longest = max(picture.size)
    times = min(max(longest, SQUARE_SIDE), WHOLE_SIDE) / longest
    size = [max(1, round(side * times)) for side in picture.size]
    return picture.resize(size, Image.Resampling.BICUBIC)
