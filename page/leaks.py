"""The leak meter: what an independent reader sees move in an edit, as a table with bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
.leaks .leak i {background: repeating-linear-gradient(45deg, #d55e00 0 6px, #e88a3c 6px 9px)}
"""


def leak_meter(
    names: Sequence[str], before: np.ndarray, after: np.ndarray, request: Mapping[str, float]
) -> str:
    """HTML of what moved: first what was asked for, then leaks, the largest first. Each row has a bar
    from before to after, with a mark at after, and the same in words.

    Args:
        names: of the attributes (A,).
        before, after: how sure the reader is of each, 0 ... 1 (A,).
        request: name -> what was asked for, above 0.5 present, below absent.
    """
    requested = [i for i, name in enumerate(names) if name in request]
    others = [i for i in np.argsort(-np.abs(after - before)) if names[i] not in request]
    leaks = [i for i in others if abs(after[i] - before[i]) >= LEAST_CHANGE]
    crossed = sum((before[i] > 0.5) != (after[i] > 0.5) for i in others)
    believed, rows = 0, []
    for i in [*requested, *leaks]:
        kind = word = "leak"
        if i in requested:
            is_believed = (after[i] > 0.5) == (request[names[i]] > 0.5)
            kind, word = "request", "believed" if is_believed else "not believed"
            believed += is_believed
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
        first = f"An independent reader believes {believed} of {len(requested)} asked for."
    caption = f"{first} {crossed} of {len(others)} others changed sides."
    return f'<table class="leaks"><caption>{caption}</caption>{"".join(rows)}</table>'
