"""Characters of a page's source: those no reader sees go first, so that no entity or markup can hide behind one."""

import html
import re

from data_prep.filters.normalise import visible

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


def readable(text: str) -> str:
    """Returns the text with a line feed at the end of each line and plain spaces, without invisible characters.

    Among those that go are all noncharacters, which the cleaner uses as its own marks.
    """
    return visible(text)[0].replace("\t", " ")


def decode(text: str) -> str:
    """Returns the text with each entity `&name;` or `&#1;` as its character; unknown ones stay."""
    return _ENTITY.sub(_character, text) if "&" in text else text


def _character(match: re.Match[str]) -> str:
    return readable(html.unescape(match[0]))
