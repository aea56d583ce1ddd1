"""Characters: entities, invisible ones, odd spaces and line ends."""

import html
import re

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Noncharacters are the cleaner's own marks; a lone surrogate cannot be written as UTF-8.
_NONCHARACTERS = re.compile("[\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
)
_ODD_SPACES = re.compile("[\t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")


def readable(text: str) -> str:
    """Returns the page's source without noncharacters and surrogates, with a line feed at the end of each line."""
    return _line_feeds(_NONCHARACTERS.sub("", text))


def _line_feeds(text: str) -> str:
    for line_end in ("\r\n", "\r", "\u0085", "\u2028", "\u2029"):
        if line_end in text:
            text = text.replace(line_end, "\n")
    return text


def decode(text: str) -> str:
    """Returns the text with each entity `&name;` or `&#1;` as its character; unknown ones stay."""
    return _ENTITY.sub(_character, text) if "&" in text else text


def _character(match: re.Match[str]) -> str:
    return _NONCHARACTERS.sub("", html.unescape(match[0]))


def plain(text: str) -> str:
    """Returns the text without invisible characters, every space a plain one."""
    return _ODD_SPACES.sub(" ", _INVISIBLE.sub("", _line_feeds(text)))
