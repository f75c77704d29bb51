"""The leak meter: what an independent reader sees move in an edit, as a table with bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from figures.grids import readable

LEAST_CHANGE = 0.15  # a leak of this much is shown; by eye: smaller ones are the reader's own noise
MOST_LEAKS = 8  # rows of what nobody asked for, by eye: more hide what was asked for

STYLE = """
table.leaks {width: 100%; border-collapse: collapse; margin: 0; border: none}
table.leaks caption {text-align: left; padding: 0.2rem 0 0.4rem; font-weight: 600}
table.leaks :is(tr, th, td) {border: none; background: none}
table.leaks th {text-align: left; font-weight: 500; padding: 0.25rem 0.6rem 0.25rem 0; width: 32%}
table.leaks td {padding: 0.25rem 0.5rem 0.25rem 0; white-space: nowrap}
table.leaks td.bar {width: 42%}
.leaks .track {position: relative; height: 1.1rem; border-radius: 3px;
  background: var(--border-color-primary)}
.leaks .track i {position: absolute; top: 0; bottom: 0; border-radius: 3px}
.leaks .track b {position: absolute; top: -2px; bottom: -2px; width: 3px;
  background: var(--body-text-color)}
.leaks .asked i {background: #0072b2}
.leaks .leak i {background: repeating-linear-gradient(45deg, #d55e00 0 6px, #e88a3c 6px 9px)}
"""


def leak_meter(
    names: Sequence[str], before: np.ndarray, after: np.ndarray, request: Mapping[str, float]
) -> str:
    """HTML of what moved: first what was asked for, then leaks, the largest first.

    Args:
        names: of the attributes (A,).
        before, after: how sure the reader is of each, 0 ... 1 (A,).
        request: name -> what was asked for, above 0.5 present, below absent.
    """
    change = after - before
    requested = [i for i, name in enumerate(names) if name in request]
    others = [int(i) for i in np.argsort(-np.abs(change)) if names[i] not in request]
    leaks = [i for i in others if abs(change[i]) >= LEAST_CHANGE]
    crossed = sum((before[i] > 0.5) != (after[i] > 0.5) for i in others)
    believed = [(after[i] > 0.5) == (request[names[i]] > 0.5) for i in requested]
    was, now, rows = before.tolist(), after.tolist(), []
    for i, is_believed in zip(requested, believed, strict=True):
        verdict = "believed" if is_believed else "not believed"
        rows.append(_row(names[i], was[i], now[i], "asked", verdict))
    for i in leaks[:MOST_LEAKS]:
        rows.append(_row(names[i], was[i], now[i], "leak", "leak"))
    first = "The reader does not know what was asked for."
    if requested:
        first = f"An independent reader believes {sum(believed)} of {len(requested)} asked for."
    rest = f"{crossed} of {len(others)} others changed sides."
    more = len(leaks) - MOST_LEAKS
    more_line = f"<p>{more} more moved by {LEAST_CHANGE:.0%} or more.</p>" if more > 0 else ""
    table = f'<table class="leaks"><caption>{first} {rest}</caption>{"".join(rows)}</table>'
    return table + more_line


def _row(name: str, before: float, after: float, kind: str, word: str) -> str:
    """A row: the name, a bar from before to after with a mark at after, and the same in words."""
    low, high = sorted((before, after))
    bar = f'<i style="left:{low:.1%};width:{high - low:.1%}"></i>'
    bar += f'<b style="left:calc({after:.1%} - 1px)"></b>'
    return (
        f'<tr class="{kind}"><th scope="row">{escape(readable(name).capitalize())}</th>'
        f'<td class="bar"><div class="track" aria-hidden="true">{bar}</div></td>'
        f"<td>{before:.0%} → {after:.0%}</td><td>{word}</td></tr>"
    )
