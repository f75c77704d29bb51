"""What a visitor asks for: attributes of new faces, sliders of an edit, one of several classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np

from config import ModelConfig
from figures.grids import readable
from page.parts import QUICK

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
}  # fmt: skip
OPEN_GROUPS = 2
PRESETS: dict[str, dict[str, float]] = {
    "Reset": {},
    "Smile": {"Smiling": 1.0},
    "No smile": {"Smiling": 0.0},
    "Glasses": {"Eyeglasses": 1.0},
    "Older": {"Young": 0.0},
    "Blond": {"Blond_Hair": 1.0},
}
# What `celeba128` does in under half of the edits, and so `celeba64`, which is the same without an
# upscaler: docs/results.md, "All attributes".
SELDOM = {
    **dict.fromkeys(("Bald", "Blurry", "Gray_Hair", "Heavy_Makeup", "Rosy_Cheeks"), "comes"),
    **dict.fromkeys(("Arched_Eyebrows", "Bags_Under_Eyes", "Big_Lips", "Mustache"), "goes"),
    **dict.fromkeys(("Oval_Face", "Pointy_Nose", "Straight_Hair", "Wearing_Earrings"), "goes"),
    **dict.fromkeys(("5_o_Clock_Shadow", "Big_Nose", "Chubby", "Double_Chin"), "comes or goes"),
    **dict.fromkeys(
        ("Wavy_Hair", "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie"), "comes or goes"
    ),
}
MEASURED = ("celeba64", "celeba128")
# Of a slider. Readings stay this far from its ends, so that the ends always ask for a change.
STEP = 0.05
SLIDER: dict[str, Any] = {
    "minimum": 0, "maximum": 1, "value": 0.5, "step": STEP, "min_width": 150, "buttons": [],
    "elem_classes": "group-slider",
}  # fmt: skip


class NewFaceFields:
    """What a new face is asked for: attributes that are present and others that are absent, or one of
    several classes.

    Attributes:
        fields: the components. Their values are what ``request`` takes.
    """

    def __init__(
        self, config: ModelConfig, label: str, present: Sequence[str] = (), absent: Sequence[str] = ()
    ):
        names, self.are_classes = config.attribute_names, config.one_hot
        choices = [(readable(name).capitalize(), name) for name in names]
        if self.are_classes:
            self.fields = [gr.Dropdown(choices, value=names[0], label=f"{label}: class")]
            return
        self.fields = []
        for kind, usual in (("present", present), ("absent", absent)):
            value = [name for name in usual if name in names]
            field = gr.Dropdown(choices, value=value, multiselect=True, label=f"{label}: {kind}")
            self.fields.append(field)

    def request(self, values: Sequence[Any]) -> tuple[str, ...]:
        """A request as ``parse_request`` takes it. It refuses a name that is present and absent."""
        if self.are_classes:
            return (f"{values[0]}=1",)
        present, absent = values
        return (*(f"{name}=1" for name in present), *(f"{name}=0" for name in absent))


class EditFields:
    """What an edit asks for: a slider for each attribute, or one of several classes. A slider that is
    left where it starts, at what the model reads in the picture, asks for nothing.

    Attributes:
        fields: the components.
        changes: the events after which an edit is to be made.
        presets: buttons of usual requests; None for classes.
        locks: a checkbox beside each slider, for what is to stay.
    """

    def __init__(self, config: ModelConfig, checkpoint: str):
        self.locks: list[gr.Checkbox] = []
        self.sliders: dict[str, gr.Slider] = {}
        self.names, self.are_classes, self.presets = config.attribute_names, config.one_hot, None
        names = self.names
        if self.are_classes:
            choice = gr.Radio(list(names), label="Turn it into", elem_id="class")
            self.fields, self.changes = [choice], [choice.input]
            return
        gr.Markdown(
            "**0** absent, **0.5** leave open, **1** present. Each slider starts at what the model "
            "reads in your picture. Move what should change, lock what must stay."
        )
        usual = [[title] for title, request in PRESETS.items() if set(request) <= set(names)]
        self.presets = gr.Dataset(label="Presets", components=["textbox"], samples=usual)
        search = gr.Textbox(label="Search", placeholder="hair, eye, wearing ...", elem_id="search")
        self.groups: dict[gr.Accordion, list[str]] = {}
        grouped = {name for group in GROUPS.values() for name in group}
        for title, group in {**GROUPS, "Other": [name for name in names if name not in grouped]}.items():
            members = [name for name in group if name in names]
            if not members:
                continue
            with gr.Accordion(title, open=len(self.groups) < OPEN_GROUPS) as accordion, gr.Row():
                self.groups[accordion] = members
                for name in members:
                    label, key = readable(name).capitalize(), f"attribute-{name}"
                    seldom = checkpoint in MEASURED and name in SELDOM
                    info = f"It seldom {SELDOM[name]} by this model" if seldom else None
                    with gr.Row(elem_classes="attribute"):
                        self.sliders[name] = gr.Slider(label=label, elem_id=key, info=info, **SLIDER)
                        lock = gr.Checkbox(label=f"Lock {readable(name)}", container=False, min_width=20)
                    self.locks.append(lock)
        self.fields = list(self.sliders.values())
        self.changes = [slider.release for slider in self.fields] + [lock.input for lock in self.locks]
        search.change(self.find, [search], list(self.groups), trigger_mode="always_last", **QUICK)

    def values(self, read: np.ndarray, request: dict[str, float]) -> list:
        """The fields' values for a request on a picture in which the model reads (A,), 0 ... 1."""
        if self.are_classes:
            return [next(iter(request), None)]
        starts = self.levels(read)
        return [request.get(name, starts[name]) for name in self.sliders]

    def levels(self, read: np.ndarray) -> dict[str, float]:
        """Readings (A,), 0 ... 1, as sliders show them."""
        levels = (read.astype(float) / STEP).round().clip(1, 1 / STEP - 1) * STEP
        return dict(zip(self.names, levels.round(2).tolist(), strict=True))

    def request(
        self, read: np.ndarray, values: Sequence[Any], along: Mapping[str, float] = {}
    ) -> tuple[str, ...]:
        """What the fields' values ask for, as ``parse_request`` takes it. 0.5 asks for nothing, nor
        does a slider that went ``along`` with others to where it stands."""
        if self.are_classes:
            return (f"{values[0]}=1",) if values[0] else ()
        request = []
        for name, start, value in zip(self.sliders, self.values(read, {}), values, strict=True):
            rests = (start, along.get(name, start), 0.5)
            if all(abs(value - rest) > STEP / 2 for rest in rests):
                request.append(f"{name}={value:.2g}")
        return tuple(request)

    def pins(self, locked: Sequence[Any]) -> tuple[str, ...]:
        """The names of attributes whose locks are closed."""
        return tuple(name for name, is_closed in zip(self.sliders, locked, strict=True) if is_closed)

    def find(self, text: str) -> list:
        """Show and open the groups that a text names, or one of whose attributes it names."""
        updates = []
        for number, (group, names) in enumerate(self.groups.items()):
            words = " ".join([group.label, *map(readable, names)])
            is_there = text.strip().lower() in words.lower()
            updates.append(gr.update(visible=is_there, open=bool(text) or number < OPEN_GROUPS))
        return updates
