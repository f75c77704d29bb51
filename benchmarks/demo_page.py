"""The page of the demo: pictures with the commands that made them, as one HTML file without a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
h1 { font-size: 1.8rem; } h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem; }
img { max-width: max(100%, 40rem); height: auto; display: block; }
figure { margin: 1.5rem 0; overflow-x: auto; } figcaption { color: #444; margin-top: .3rem; }
code { display: block; white-space: pre-wrap; overflow-wrap: anywhere; background: #f3f3f3;
       padding: .5rem .8rem; font-size: .85rem; }
.numbers { columns: 16rem; column-gap: 3rem; }
.numbers div { display: flex; justify-content: space-between; gap: 1rem; }
"""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    commands: as a user would type them; pictures: (file, what it shows) in order.
    """

    title: str
    text: str
    commands: Sequence[str]
    pictures: Sequence[tuple[Path, str]]


def write_page(
    path: Path, title: str, text: str, sections: Sequence[Section], numbers: dict[str, dict[str, float]]
) -> None:
    """Write the page. Pictures that do not exist are left out.

    Args:
        path: the HTML file. Pictures are linked relative to its folder.
        text: the introduction.
        numbers: tables at the end: title -> name -> value.
    """
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(text)}</p>"]
    for section in sections:
        parts += [f"<h2>{escape(section.title)}</h2>", f"<p>{escape(section.text)}</p>"]
        for file, caption in section.pictures:
            if file.is_file():
                link = escape(file.relative_to(path.parent).as_posix())
                image = f'<a href="{link}"><img src="{link}" alt="{escape(caption)}"></a>'
                parts.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")
        parts += [f"<code>{escape(command)}</code>" for command in section.commands]
    for name, values in numbers.items():
        rows = [f"<div><span>{escape(k)}</span><span>{v:.3f}</span></div>" for k, v in values.items()]
        parts += [f"<h2>{escape(name)}</h2>", f'<div class="numbers">{"".join(rows)}</div>']
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    html = f'<!doctype html><html lang="en"><head>{head}{viewport}</head><body>'
    path.write_text(html + "\n".join(parts) + "</body></html>\n", encoding="utf-8")
