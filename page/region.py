"""The part of a picture that an edit may change: painted, loaded, from the change, or usual."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

import studio
from config import MASKS
from figures.grids import save_image
from image_data.photograph import from_levels
from image_data.picture import read_picture
from page.parts import COMPUTES, QUICK, RECEIVES, one_line_errors, status_line
from page.visitors import Visitor, Visitors
from page.worker import Worker

CANVAS = 384  # side of what is painted on, in pixels; by eye: a column of the page
MOST_PAINTED = (4 * CANVAS) ** 2  # pixels of a layer: screens have up to 4 to a pixel of a page
PAINT = COLOUR, OPACITY = "#56b4e9", 0.6
CHANGED, EVERYWHERE = "Where it changed", "Everywhere"
# When a stroke ends, this clicks the button that sends the painting. The editor's own event would copy
# the canvas with every change, and may send an old copy.
AFTER_A_STROKE = """() => {
  let inside = false;
  addEventListener('pointerdown', event => inside = Boolean(event.target.closest?.('#painting')), true);
  addEventListener('pointerup', () => {
    if (inside) setTimeout(() => document.querySelector('#painted').click(), 200);
  }, true);
}"""


class Region:
    """The tools for a region, which ``image`` shows beside the change. An edit takes the visitor's."""

    def __init__(self, worker: Worker, visitors: Visitors, image: gr.Image):
        self.worker, self.visitors, self.image = worker, visitors, image
        self.lock = threading.RLock()  # one writes masks at a time, and reads a picture of one
        usual = [name.replace("_", " ").capitalize() for name in MASKS]
        self.usual = dict(zip(usual, MASKS, strict=True)) if studio.knows_faces(worker.model) else {}
        with gr.Accordion("Change only a part of it", open=False, elem_id="region"):
            self.editor = gr.ImageEditor(
                label="Paint what may change", elem_id="painting", layers=False, transforms=(),
                brush=gr.Brush(40, colors=[PAINT], default_color=PAINT, color_mode="fixed"), sources=(),
                eraser=gr.Eraser(40), canvas_size=(CANVAS, CANVAS), format="png", buttons=[],
            )  # fmt: skip
            with gr.Row():
                names = (*self.usual, CHANGED, EVERYWHERE)
                self.choices = [gr.Button(name, min_width=90) for name in names]
            with gr.Row():
                self.load = gr.UploadButton("Load a mask", elem_id="load_mask", file_types=["image"])
                self.save = gr.DownloadButton("Save it", elem_id="save_mask")
            self.line = gr.HTML(status_line("All of the frame may change."), elem_id="region_line")
            # Which region the browser shows, so that a painting that was made over another one is known.
            self.shown = gr.Textbox(visible="hidden")
            self.painted = gr.Button(visible="hidden", elem_id="painted")
        self.outputs = [self.editor, self.shown, self.image, self.save, self.line]
        paints = RECEIVES | {"trigger_mode": "always_last"}
        self.painted.click(self.paint, [self.editor, self.shown], self.outputs, **paints)
        self.editor.clear(self.empty, None, self.outputs, **QUICK)
        for button in self.choices:
            button.click(self.choose, [button], self.outputs, **COMPUTES)
        self.load.upload(self.take, [self.load], self.outputs, **RECEIVES)

    # ---------------------------------------------------------------- handlers

    @one_line_errors()
    def paint(self, request: gr.Request, painting: Any, shown: Any) -> dict:
        """The region as it was painted and erased. What was painted over another one comes too late."""
        visitor, nothing = self.visitors.of(request), {self.line: gr.update()}
        layers = painting.get("layers") if isinstance(painting, dict) else None
        if not isinstance(layers, list) or not layers or visitor.source is None:
            return nothing
        with self.lock:
            if shown != name_of_region(visitor):
                return nothing
            levels = self.levels_of(self.visitors.sent(layers[-1]))
            # A painting that is still what the page has shown leaves the mask, which is more exact.
            if visitor.mask and np.abs(levels - self.levels_of(layer_of(visitor.mask))).max() < 2:
                return nothing
            shows = self.set(visitor, from_levels(levels))
        del shows[self.editor]  # the browser has it, and may have painted on
        return shows

    def levels_of(self, layer: Path) -> np.ndarray:
        """What a layer of the painting (RGBA) says of the frame (S, S), from 0 to 255."""
        side, alpha = self.worker.model.config.image_size, read_picture(layer, MOST_PAINTED).alpha
        if alpha is None:
            raise ValueError("that painting is no layer of the page: paint once more")
        return (np.asarray(alpha.resize((side, side), Image.Resampling.BOX)) / OPACITY).clip(0, 255)

    @one_line_errors()
    def empty(self, request: gr.Request) -> dict:
        """The canvas was cleared: all may change."""
        visitor = self.visitors.of(request)
        return self.set(visitor, None) if visitor.source else {self.line: gr.update()}

    @one_line_errors()
    def choose(self, request: gr.Request, name: str) -> dict:
        visitor, mask = self.visitors.of(request), None
        source = visitor.picture()
        if name in self.usual:
            photograph = self.worker.photograph(source.settings)
            mask = studio.open_mask(self.worker.model, photograph, self.usual[name], source.search)
        elif name == CHANGED:
            mask = studio.mask_of_change(source.original, visitor.shown_edit().edited)
        return self.set(visitor, mask)

    @one_line_errors()
    def take(self, request: gr.Request, upload: Any) -> dict:
        """A region from a file."""
        visitor = self.visitors.of(request)
        photograph = self.worker.photograph(visitor.picture().settings)
        path = self.visitors.received(visitor, upload)
        with self.lock:
            return self.set(visitor, studio.open_mask(self.worker.model, photograph, str(path)))

    # ---------------------------------------------------------------- what is seen

    def set(self, visitor: Visitor, mask: np.ndarray | None) -> dict:
        """Keep a mask (S, S) in [0, 1] for the edits that follow. An empty one is none."""
        path = None
        with self.lock:
            if mask is not None and mask.any():
                levels = (255 * mask).round().astype(np.uint8)
                path = visitor.folder / f"mask_{studio.hash_of(levels)[:12]}.png"
                if not path.exists():
                    save_image(levels, path)
            visitor.keep_mask(path)
            return self.show(visitor)

    def show(self, visitor: Visitor) -> dict:
        """What is seen of a visitor's region."""
        background = str(visitor.picture().frame.with_name("close.png"))
        value: dict[str, Any] = {"background": background, "layers": [], "composite": background}
        text = "All of the frame may change."
        with self.lock:
            mask, name = visitor.mask, name_of_region(visitor)
            if mask:
                levels = np.asarray(Image.open(mask))
                paint = Image.new("RGBA", (CANVAS, CANVAS), COLOUR)
                alpha = Image.fromarray((levels * OPACITY).astype(np.uint8))
                paint.putalpha(alpha.resize(paint.size, Image.Resampling.BILINEAR))
                paint.save(layer_of(mask))
                value["layers"] = [str(layer_of(mask))]
                text = f"{levels.mean() / 255:.0%} of the frame may change. Press Edit."
        shows: dict[Any, Any] = dict.fromkeys((self.image, self.save), mask)
        return shows | {self.editor: value, self.shown: name, self.line: status_line(text)}


def name_of_region(visitor: Visitor) -> str:
    """The visitor's frame and mask in a word."""
    mask = visitor.mask
    return f"{visitor.picture().frame.parent.name} {mask.name if mask else ''}"


def layer_of(mask: Path) -> Path:
    """The file of a mask as it lies on the canvas."""
    return mask.with_suffix(".layer.png")
