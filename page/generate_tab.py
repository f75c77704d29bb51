"""The tab on which new faces are generated."""

from __future__ import annotations

import time

import gradio as gr

import studio
from config import CFG_SCALE, GenerateSettings, SamplingConfig
from figures.grids import save_image
from page import parts
from page.fields import NewFaceFields
from page.interpolate_tab import ENDS
from page.parts import BAR, COMPUTES, QUICK, one_line_errors, status_line
from page.visitors import Visitors
from page.worker import Worker

MOST_FACES = 16  # at once, by eye: two screens of pictures, and half a minute of two processors


class GenerateTab:
    """New faces, of which one can be sent to the other tabs."""

    def __init__(self, worker: Worker, visitors: Visitors):
        self.worker, self.visitors = worker, visitors
        self.is_guided = worker.model.config.guidable
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                usual = ("Smiling", "Wavy_Hair")
                self.request = NewFaceFields(worker.model.config, "New picture", usual)
                number = gr.Slider(1, MOST_FACES, 8, step=1, label="How many", buttons=[])
                label = "Guidance: more follows the request better, and varies less"
                scale = gr.Slider(
                    1, 5, CFG_SCALE, step=0.1, label=label, buttons=[], visible=self.is_guided
                )
                self.controls = parts.Controls("Generate", "generate", visitors)
            with gr.Column(scale=5, min_width=300):
                label = "Click a face, then say what it is for"
                self.faces = gr.Gallery(label=label, columns=4, elem_id="faces", **parts.GALLERY)
                with gr.Row():
                    self.to_edit = gr.Button("Edit it")
                    self.to_ends = [
                        gr.Button(f"Interpolate {end} it", elem_id=f"face_{end}") for end in ENDS
                    ]
                self.command = gr.Textbox(interactive=False, **parts.COMMAND)
        status = self.controls.status
        values = [number, scale, self.controls.seed, *self.request.fields]
        outputs = [self.faces, status, self.command]
        self.controls.go.click(self.generate, values, outputs, **COMPUTES, show_progress_on=[status])
        self.faces.select(self.choose, None, [status], **QUICK)

    @one_line_errors()
    def generate(self, request: gr.Request, progress=BAR, *values) -> dict:
        number, scale, seed, *fields = values
        visitor = self.visitors.of(request)
        seed = parts.seed_of(seed)
        settings = GenerateSettings(
            attributes=self.request.request(fields) or self.worker.any_request(seed),
            num_samples=int(number),
            seed=seed,
            sampling=SamplingConfig(cfg_scale=float(scale) if self.is_guided else None),
        )
        started, bar = time.perf_counter(), parts.progress_bar(visitor, progress)
        images = self.worker.compute(studio.generate, settings, bar).images
        seconds = time.perf_counter() - started
        folder = visitor.new_folder()
        visitor.faces = [save_image(image, folder / f"{i:03d}.png") for i, image in enumerate(images)]
        visitor.chosen = None
        line = f"{len(images)} in {seconds:.1f} seconds. Click one to use it."
        return {
            self.faces: gr.update(value=visitor.faces, selected_index=None),
            self.controls.status: status_line(line),
            self.command: self.worker.command("generate", settings),
        }

    @one_line_errors()
    def choose(self, request: gr.Request, event: gr.SelectData) -> str:
        visitor = self.visitors.of(request)
        visitor.chosen = visitor.faces[event.index]
        return status_line(f"Picture {event.index + 1} is chosen.")
