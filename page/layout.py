"""The page: three tabs, and how a visitor comes and goes. Gradio draws it."""

from __future__ import annotations

from html import escape
from pathlib import Path

import gradio as gr

import studio
from page.edit_tab import EditTab
from page.generate_tab import GenerateTab
from page.interpolate_tab import InterpolateTab
from page.parts import COMPUTES, QUICK
from page.visitors import Visitors
from page.worker import Worker

# The secret of a page. It survives a reload, which gradio does after a lost connection.
SECRET = """() => sessionStorage.page ??=
  [...crypto.getRandomValues(new Uint32Array(4))].map(each => each.toString(36)).join('')"""


class Page:
    """The page of a worker.

    Attributes:
        blocks: what gradio serves.
    """

    def __init__(self, worker: Worker, visitors: Visitors):
        self.worker, self.visitors = worker, visitors
        self.blocks = gr.Blocks(
            title="Edit faces by their attributes", analytics_enabled=False, fill_width=True
        )
        with self.blocks:
            gr.Markdown(self.heading())
            with gr.Tabs() as self.tabs:
                with gr.Tab("Edit", id="edit"):
                    self.edit = EditTab(worker, visitors)
                with gr.Tab("Generate", id="generate"):
                    self.generate = GenerateTab(worker, visitors)
                with gr.Tab("Interpolate", id="interpolate"):
                    self.interpolate = InterpolateTab(worker, visitors)
            self.connect()

    def heading(self) -> str:
        model = self.worker.model
        what = "faces by named attributes" if studio.knows_faces(model) else "pictures by their class"
        return (
            f"# Edit {what}\n"
            f"The model is *{escape(Path(self.worker.files.checkpoint).name)}*, at "
            f"{model.config.image_size} pixels. Pictures are computed here, kept for you alone, and "
            "deleted when you leave."
        )

    def connect(self) -> None:
        """What happens on which click."""
        secret = gr.Textbox(visible=False)
        self.blocks.load(self.edit.arrive, [secret], self.edit.outputs, js=SECRET, **QUICK)
        self.blocks.unload(self.leave)
        for tab in (self.edit, self.generate, self.interpolate):
            tab.connect()
            tab.stop.click(self.stop, None, None, **QUICK)
        # A generated face goes to another tab, which opens.
        generate, interpolate = self.generate, self.interpolate
        taken = generate.to_edit.click(self.edit.take_face, None, self.edit.outputs, **COMPUTES)
        taken.success(lambda: gr.Tabs(selected="edit"), None, self.tabs, **QUICK)
        for end, button in (("from", generate.to_start), ("to", generate.to_end)):
            inputs = [interpolate.kind, interpolate.by_request, interpolate.by_picture]
            taken = button.click(
                interpolate.take_face(end), None, [interpolate.ends[end], *inputs], **QUICK
            )
            taken.success(lambda: gr.Tabs(selected="interpolate"), None, self.tabs, **QUICK)

    def stop(self, request: gr.Request) -> None:
        self.visitors.of(request.session_hash).stop.set()

    def leave(self, request: gr.Request) -> None:
        self.visitors.leave(request.session_hash)
