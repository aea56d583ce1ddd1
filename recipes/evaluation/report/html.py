"""Pieces of HTML that all sections use."""

import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from recipes.evaluation.report.words import both

HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]")


def section(title: str, body: str) -> str:
    """Returns a section with its heading, nothing without a body."""
    return f"<section>\n<h2>{both(title)}</h2>\n{body}\n</section>\n" if body else ""


def table(caption: str, head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Returns a table that scrolls by itself; `rows` are (name, cells as `<td>` elements)."""
    columns = "".join(f'<th scope="col">{both(name)}</th>' for name in head)
    body = "\n".join(f'<tr><th scope="row">{both(name)}</th>{"".join(cells)}</tr>' for name, cells in rows)
    return scrolling(caption, f"<table>\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>")


def scrolling(caption: str, body: str) -> str:
    """Returns what is wider than a phone in a box that scrolls, also by keyboard."""
    label = escape(caption, quote=True)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{body}</div>'


def cell(text: str) -> str:
    """Returns a cell with plain text."""
    return f"<td>{escape(text)}</td>"


def preformatted(value: Any) -> str:
    """Returns a JSON value as it stands in a file."""
    return f"<pre>{escape(json.dumps(value, ensure_ascii=False, indent=2))}</pre>"


def language(text: str) -> str:
    """Returns `ko` for text with Hangul, else `en`: what a screen reader should speak it as."""
    return "ko" if HANGUL.search(text) else "en"
