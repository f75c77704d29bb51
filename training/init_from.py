"""--init_from: a model starts from the weights of another, as far as they fit."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

OF_DATA = re.compile(r"prior|^first_stage\.")  # weights that belong to the data


def take_over(model: nn.Module, other: nn.Module, path: str | Path) -> str:
    """Copy another model's weights into ``model``, as far as they fit. Attributes go by their names: one
    that the other model does not have starts afresh. The VAE's decoder is compared from its end, the
    side of the image, so that a shorter and a longer one share their last layers. What belongs to the
    data stays: the first stage, and how frequent attributes are (the prior). Returns what was taken and
    what was not, in words. Raises ValueError if nothing fits."""
    own = {name: weight for name, weight in model.state_dict().items() if not OF_DATA.search(name)}
    others = from_the_end(other.state_dict(), "autoencoder.decoder.", model.state_dict())
    names, other_names = list(model.config.attribute_names), list(other.config.attribute_names)
    shared = [name for name in names if name in other_names]
    columns = torch.tensor([names.index(name) for name in shared]).long()
    other_columns = torch.tensor([other_names.index(name) for name in shared]).long()
    axes = attribute_axes(model)
    new = []
    for name, weight in own.items():
        value, axis = others.get(name), axes.get(name)
        if value is not None and axis is not None and value.ndim == weight.ndim:
            value = value.index_select(axis, other_columns)
            if value.shape == weight.index_select(axis, columns).shape:
                value = weight.clone().index_copy(axis, columns, value)
        if value is None or value.shape != weight.shape:
            new.append(name)
        else:
            weight.copy_(value)
    if len(new) == len(own):
        raise ValueError(f"{path} has no weight that fits this model: leave --init_from out")
    total = sum(weight.numel() for weight in own.values())
    taken = total - sum(own[name].numel() for name in new)
    text = [f"{path}: {taken / 1e6:.2f} of {total / 1e6:.2f} M weights"]
    if new:
        modules = dict.fromkeys(name.rpartition(".")[0] for name in new)
        text.append(f"new: {textwrap.shorten(', '.join(modules), 300)}")
    if len(shared) < len(names):
        added = [name for name in names if name not in shared]
        text.append(f"new attributes: {textwrap.shorten(', '.join(added), 300)}")
    return "; ".join(text)


def from_the_end(weights: dict[str, Tensor], prefix: str, own: Iterable[str]) -> dict[str, Tensor]:
    """Weights whose numbered layers, below ``prefix``, are renumbered so that the last of them has the
    number of the last one in ``own``."""

    def number(name: str) -> int:
        return int(name[len(prefix) :].partition(".")[0]) if name.startswith(prefix) else -1

    shift = max(map(number, own), default=-1) - max(map(number, weights), default=-1)

    def renamed(name: str) -> str:
        layer = number(name)
        return name.replace(f"{prefix}{layer}.", f"{prefix}{layer + shift}.") if layer >= 0 else name

    return {renamed(name): weight for name, weight in weights.items()}


def attribute_axes(model: nn.Module) -> dict[str, int]:
    """For each weight that has an entry for every attribute, the axis along which they lie. Models of
    one and of two attributes differ there."""
    with torch.device("meta"):
        one = type(model)(replace(model.config, attribute_names=("a",))).state_dict()
        two = type(model)(replace(model.config, attribute_names=("a", "b"))).state_dict()
    axes = {}
    for name in one:
        for axis, length in enumerate(one[name].shape):
            if length != two[name].shape[axis]:
                axes[name] = axis
    return axes
