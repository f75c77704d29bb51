"""--init_from: a model starts from the weights of another, as far as they fit."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from config import ModelConfig

# What a model's configuration takes from the data: these fields may differ without a word.
FROM_DATA = ("attribute_names", "one_hot", "prior_rows", "guidable", "first_stage_judge")


def take_over(model: nn.Module, other: nn.Module, path: str | Path) -> str:
    """Copy another model's weights into ``model``, as far as they fit. Attributes go by their names: one
    that the other model does not have starts afresh. The VAE's decoder is compared from its end, the
    side of the image, so that a shorter and a longer one share their last layers. What belongs to the
    data stays: the first stage, and how frequent attributes are (the prior).

    Returns:
        what was taken and what was not, in words.

    Raises:
        ValueError: if nothing fits.
    """
    own = {
        name: weight
        for name, weight in model.state_dict().items()
        if "prior" not in name and not name.startswith("first_stage.")
    }
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
        text.append(f"new: {_some(whole_parts(new, own.keys() - {*new}))}")
    if len(shared) < len(names):
        text.append(f"new attributes: {_some([name for name in names if name not in shared])}")
    return "; ".join([*text, *differences(other.config, model.config)])


def differences(before: ModelConfig, now: ModelConfig) -> list[str]:
    """The fields in which two models differ, in words, except what their data decides."""
    old, text = before.to_dict(), []
    for name, value in now.to_dict().items():
        if name not in FROM_DATA and old[name] != value:
            there, here = (reprlib.repr(each).replace("'", "") for each in (old[name], value))
            text.append(f"{name} {there} there, {here} here")
    return text


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


def whole_parts(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """The outermost modules that hold weights of these names, and none of the others."""
    shared = {name[:end] for name in others for end, letter in enumerate(name) if letter == "."}
    parts = []
    for name in names:
        steps = name.split(".")
        paths = [".".join(steps[: end + 1]) for end in range(len(steps))]
        parts.append(next(path for path in paths if path not in shared))
    return [*dict.fromkeys(parts)]


def _some(names: list[str], most: int = 8) -> str:
    """The first of these names, and how many there are more."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def attribute_axes(model: nn.Module) -> dict[str, int]:
    """For each weight that has an entry for every attribute, the axis along which they lie. Models of
    one and of two attributes differ there."""
    with torch.device("meta"):
        one, two = (
            type(model)(replace(model.config, attribute_names=names)).state_dict()
            for names in (("a",), ("a", "b"))
        )
    return {
        name: axis
        for name in one
        for axis, (a, b) in enumerate(zip(one[name].shape, two[name].shape, strict=True))
        if a != b
    }
