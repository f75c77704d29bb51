"""The page: three tabs, and how a visitor comes and goes. Gradio draws it."""

from __future__ import annotations

from html import escape

import gradio as gr

import studio
from page.api import Api
from page.edit_tab import EditTab
from page.generate_tab import GenerateTab
from page.interpolate_tab import ENDS, InterpolateTab
from page.parts import COMPUTES, QUICK
from page.region import AFTER_A_STROKE
from page.visitors import Visitors
from page.worker import Worker

# Each page makes a secret. A reloaded tab also sends the one before, so its visitor is known again. It
# is in sessionStorage only while the page is away, so a copied tab does not get it.
SECRETS = """() => {
  const before = sessionStorage.page ?? '';
  const secret = [...crypto.getRandomValues(new Uint32Array(4))].map(each => each.toString(36)).join('');
  delete sessionStorage.page;
  addEventListener('pagehide', () => sessionStorage.page = secret);
  addEventListener('pageshow', () => delete sessionStorage.page);
  return [secret, before];
}"""


class Page:
    """The page of a worker. ``beside`` is one of another model, whose edits can be shown beside.

    Attributes:
        blocks: what gradio serves.
    """

    def __init__(self, worker: Worker, visitors: Visitors, beside: Worker | None = None):
        self.visitors, model = visitors, worker.model
        subject = "faces by named attributes" if studio.knows_faces(model) else "pictures by their class"
        self.blocks = gr.Blocks(title=f"Edit {subject}", analytics_enabled=False, fill_width=True)
        with self.blocks:
            Api(worker, visitors, self.blocks)  # first, so that it has the names
            gr.Markdown(
                f"# Edit {subject}\n"
                "Change named attributes of a picture, and see what else changed with them. It is not "
                "for judging or deceiving people: labels are annotators' views, pictures of people need "
                "their consent, and results are marked in their metadata as edited.\n\n"
                f"The model is *{escape(worker.name)}*, at "
                f"{model.config.image_size} pixels. Pictures are computed here, kept for you alone, and "
                "deleted when you leave."
            )
            with gr.Tabs() as tabs:
                with gr.Tab("Edit", id="edit"):
                    self.edit = EditTab(worker, visitors, beside)
                with gr.Tab("Generate", id="generate"):
                    self.generate = GenerateTab(worker, visitors)
                with gr.Tab("Interpolate", id="interpolate"):
                    self.interpolate = InterpolateTab(worker, visitors)
            generate, mix = self.generate, self.interpolate
            secrets = [gr.Textbox(visible=False), gr.Textbox(visible=False)]
            outputs = [*self.edit.outputs, *mix.ends]
            self.blocks.load(self.arrive, secrets, outputs, js=SECRETS, **QUICK)
            self.blocks.load(js=AFTER_A_STROKE)
            self.blocks.unload(visitors.leave)
            # A generated face goes to another tab, which opens.
            edits = generate.to_edit.click(self.edit.take_face, None, self.edit.outputs, **COMPUTES)
            edits.success(lambda: gr.Tabs(selected="edit"), None, tabs, **QUICK)
            clicks = [button.click for button in generate.to_ends]
            ends = gr.on(clicks, mix.take_face, None, mix.ends, **QUICK)
            ends.success(lambda: gr.Tabs(selected="interpolate"), None, tabs, **QUICK)

    def arrive(self, request: gr.Request, secret: str, before: str) -> dict:
        """Show a visitor who comes back what they had."""
        visitor = self.visitors.arrive(request, str(secret)[:100], str(before)[:100])
        shows = dict(zip(self.interpolate.ends, map(visitor.ends.get, ENDS), strict=True))
        return shows | self.edit.restore(visitor) if visitor.source else shows
