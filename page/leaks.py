"""The leak meter: what an independent reader sees move in an edit, as a table with bars."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape

import numpy as np

from figures.grids import readable

LEAST_CHANGE = 0.15  # a leak of this much is shown; by eye: smaller ones are the reader's own noise

STYLE = """
table.leaks {width: 100%; border-collapse: collapse; margin: 0; border: none}
.leaks :is(caption, th) {text-align: left; font-weight: 600}
.leaks :is(tr, th, td) {border: none; background: none; padding: 0.25rem 0.5rem 0.25rem 0}
.leaks td.bar {width: 42%}
.leaks .track {position: relative; height: 1.1rem; background: var(--border-color-primary)}
.leaks .track > * {position: absolute; top: 0; bottom: 0}
.leaks b {width: 3px; background: var(--body-text-color)}
.leaks .request i {background: #0072b2}
.leaks :is(.with, .pin) i {background: #737373}
.leaks .leak i {background: repeating-linear-gradient(45deg, #d55e00 0 6px, #e88a3c 6px 9px)}
"""


def leak_meter(
    names: Sequence[str],
    before: np.ndarray,
    after: np.ndarray,
    request: Mapping[str, float],
    related: Mapping[str, int] = {},
    pins: Collection[str] = (),
) -> str:
    """HTML of what moved: what is pinned, what was asked for, leaks, and what goes with the request, the
    largest first. Each row has a bar from before to after, with a mark at after, and the same in words.

    Args:
        names: of the attributes (A,).
        before, after: how sure the reader is of each, 0 ... 1 (A,).
        request: name -> what was asked for, above 0.5 present, below absent.
        related: name -> which way it goes with the request: 1 comes, -1 ends.
        pins: what is to stay.
    """
    change = after - before
    order = [i for i in np.argsort(-np.abs(change)) if names[i] not in request]
    pinned = [i for i in order if names[i] in pins]
    requested = [i for i, name in enumerate(names) if name in request]
    believed = [i for i in requested if (after[i] > 0.5) == (request[names[i]] > 0.5)]
    goes = [i for i in order if i not in pinned and change[i] * related.get(names[i], 0) > 0]
    others = [i for i in order if i not in goes]
    crossed = {i for i in order if (before[i] > 0.5) != (after[i] > 0.5)}
    large = [i for i in order if abs(change[i]) >= LEAST_CHANGE and i not in pinned]
    words = dict.fromkeys(large, ("leak", "leak")) | dict.fromkeys(goes, ("with", "goes with it"))
    for i in pinned:
        words[i] = ("pin", "not held" if i in crossed or abs(change[i]) >= LEAST_CHANGE else "held")
    for i in requested:
        words[i] = ("request", "believed" if i in believed else "not believed")
    rows = []
    for i in [*pinned, *requested, *sorted(large, key=lambda i: i in goes)]:
        kind, word = words[i]
        low, high = sorted((before[i], after[i]))
        rows.append(
            f'<tr class="{kind}"><th scope="row">{escape(readable(names[i]).capitalize())}</th>'
            f'<td class="bar"><div class="track" aria-hidden="true">'
            f'<i style="left:{low:.1%};width:{high - low:.1%}"></i>'
            f'<b style="left:calc({after[i]:.1%} - 1px)"></b></div></td>'
            f"<td>{before[i]:.0%} → {after[i]:.0%}</td><td>{word}</td></tr>"
        )
    first = "The reader does not know what was asked for."
    if requested:
        first = f"An independent reader believes {len(believed)} of {len(requested)} asked for."
    caption = f"{first} {len(crossed.intersection(others))} of {len(others)} others changed sides."
    if crossed.intersection(goes):
        caption += f" {len(crossed.intersection(goes))} more go with what was asked for."
    return f'<table class="leaks"><caption>{caption}</caption>{"".join(rows)}</table>'
