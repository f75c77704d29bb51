"""The tab on which new faces are generated."""

from __future__ import annotations

import time

import gradio as gr

import studio
from config import CFG_SCALE, GenerateSettings, SamplingConfig
from figures.grids import save_image
from page import parts
from page.parts import BAR, COMPUTES, QUICK, one_line_errors, status_line
from page.visitors import Visitors
from page.worker import Worker

MOST_FACES = 16  # at once, by eye: two screens of pictures, and half a minute of two processors


class GenerateTab:
    """New faces, of which one can be sent to the other tabs."""

    def __init__(self, worker: Worker, visitors: Visitors):
        self.worker, self.visitors = worker, visitors
        config = worker.model.config
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                self.request = parts.RequestFields(
                    worker.names, config.one_hot, "New picture", ("Smiling", "Wavy_Hair")
                )
                self.number = gr.Slider(1, MOST_FACES, 8, step=1, label="How many", buttons=[])
                self.guidance = gr.Slider(
                    1,
                    5,
                    CFG_SCALE,
                    step=0.1,
                    label="Guidance: more follows the request better, and varies less",
                    buttons=[],
                    visible=config.guidable,
                )
                with gr.Row():
                    self.seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                    self.dice = gr.Button("Dice", min_width=80)
                with gr.Row():
                    self.draw = gr.Button("Generate", variant="primary", elem_id="draw")
                    self.stop = gr.Button("Stop", variant="stop")
                self.status = gr.HTML(status_line(""), elem_id="generate_status")
            with gr.Column(scale=5, min_width=300):
                self.faces = parts.gallery("Click a face, then say what it is for", 4, "faces")
                with gr.Row():
                    self.to_edit = gr.Button("Edit it")
                    self.to_start = gr.Button("Interpolate from it")
                    self.to_end = gr.Button("Interpolate to it")
                self.command = parts.command_line()

    def connect(self) -> None:
        values = [self.number, self.guidance, self.seed, *self.request.fields]
        outputs = [self.faces, self.status, self.command]
        self.draw.click(self.generate, values, outputs, **COMPUTES, show_progress_on=[self.status])
        self.dice.click(parts.random_seed, None, self.seed, **QUICK)
        self.faces.select(self.choose, None, [self.status], **QUICK)

    @one_line_errors()
    def generate(
        self, request: gr.Request, progress=BAR, number=8, guidance=CFG_SCALE, seed=0, *values
    ) -> dict:
        visitor = self.visitors.of(request.session_hash)
        is_guided = self.worker.model.config.guidable
        settings = GenerateSettings(
            attributes=self.request.request(values),
            num_samples=min(int(number), MOST_FACES),
            seed=int(seed or 0),
            sampling=SamplingConfig(cfg_scale=float(guidance) if is_guided else None),
        )
        started, bar = time.perf_counter(), parts.progress_bar(visitor, progress)
        try:
            images = self.worker.compute(studio.generate, settings, bar).images
        except parts.Stopped:
            return {self.status: status_line("Stopped.")}
        visitor.faces = [
            save_image(image, visitor.new_file(f"{i:03d}.png")) for i, image in enumerate(images)
        ]
        visitor.chosen = None
        pictures = [str(parts.save_enlarged(image, visitor.new_file("face.png"))) for image in images]
        seconds = time.perf_counter() - started
        return {
            self.faces: gr.update(value=pictures, selected_index=None),
            self.status: status_line(f"{len(images)} in {seconds:.1f} seconds. Click one to use it."),
            self.command: self.worker.command("generate", settings),
        }

    def choose(self, request: gr.Request, event: gr.SelectData) -> dict:
        self.visitors.of(request.session_hash).chosen = event.index
        return {self.status: status_line(f"Picture {event.index + 1} is chosen.")}
