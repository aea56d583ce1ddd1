"""Pieces of HTML that all sections use."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from recipes.evaluation.report.words import both

HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]")


def section(title: str, body: str) -> str:
    """Returns a section with its heading, which `contents` links to."""
    return f'<section id="{_anchor(title)}">\n<h2>{both(title)}</h2>\n{body}\n</section>\n'


def contents(titles: Iterable[str]) -> str:
    """Returns the links to sections."""
    links = "".join(f'<li><a href="#{_anchor(title)}">{both(title)}</a></li>' for title in titles)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n' if links else ""


def _anchor(title: str) -> str:
    return re.sub("[^a-z]+", "-", title.lower())


def table(
    caption: str, head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], notes: Mapping[str, str] | None = None
) -> str:
    """Returns a table that scrolls by itself.

    Args:
        caption: read out by screen readers.
        head: names of the columns, in the reader's language if they are words of the page.
        rows: (name, cells as `<td>` elements); a name that somebody gave is not translated.
        notes: name of a column -> small print below it.
    """
    small = {name: f"<small>{escape(note)}</small>" for name, note in (notes or {}).items()}
    columns = "".join(f'<th scope="col">{both(name)}{small.get(name, "")}</th>' for name in head)
    body = "\n".join(
        f'<tr><th scope="row">{_breakable(escape(name))}</th>{"".join(cells)}</tr>' for name, cells in rows
    )
    return scrolling(caption, f"<table>\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>")


def _breakable(text: str) -> str:
    """Returns HTML text in which long names may break where they have a joint."""
    return re.sub(r"(?<=[\w)])([/._])(?=\w)", r"\1<wbr>", text)


def scrolling(caption: str, body: str) -> str:
    """Returns what is wider than a phone in a box that scrolls, also by keyboard."""
    label = escape(caption, quote=True)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{body}</div>'


def cell(text: str) -> str:
    """Returns a cell with plain text."""
    return f"<td>{escape(text)}</td>"


def cards(figures: Iterable[str]) -> str:
    """Returns boxes side by side, as many as fit, nothing without any."""
    together = "".join(figures)
    return f'<div class="cards">{together}</div>' if together else ""


def card(title: str, body: str) -> str:
    """Returns a box with a heading, both HTML: a chart, or counts."""
    return f"<figure><h3>{title}</h3>{body}</figure>"


def legend(lines: Iterable[tuple[int | None, str]]) -> str:
    """Returns a list of (number of the colour that it stands for, or None; HTML)."""
    items = "".join(
        f"<li>{text}</li>" if colour is None else f'<li><i class="c{colour}"></i>{text}</li>' for colour, text in lines
    )
    return f'<ul class="legend">{items}</ul>' if items else ""


def preformatted(value: Any) -> str:
    """Returns a JSON value as it stands in a file."""
    return f"<pre>{escape(json.dumps(value, ensure_ascii=False, indent=2))}</pre>"


def language(text: str) -> str:
    """Returns `ko` for text with Hangul, else `en`: what a screen reader should speak it as."""
    return "ko" if HANGUL.search(text) else "en"
