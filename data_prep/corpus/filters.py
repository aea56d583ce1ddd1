"""Which documents are no running text: each check returns the reason to drop one, or None."""

import re
from dataclasses import dataclass

from data_prep.document import Document

_HANGUL = re.compile(r"[가-힣ㄱ-ㆎᄀ-ᇿꥠ-ꥼힰ-ퟻ]+")
_LETTERS = re.compile(r"[^\W\d_]+")
_DIGITS = re.compile(r"[0-9０-９]+")
_SYMBOLS = re.compile(r"[^\w\s.,!?'\"()·~\-:;%/“”‘’「」『』《》〈〉…–—$\\{}^_=+]+")
_LEFTOVER = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|</?ref\b|(?:섬네일|thumb)\||style=\"", re.IGNORECASE)
_MATH = re.compile(r"\$[^$\n]*\$")
_SENTENCE_END = re.compile(r"[.!?。…][\"'”’)\]」』》〉]*$")


@dataclass(frozen=True)
class Limits:
    """What a document must meet. Shares are of its characters, spaces not counted."""

    min_chars: int = 200
    min_hangul_share: float = 0.3  # of its letters, Korean documents only
    max_digit_share: float = 0.3
    max_symbol_share: float = 0.15
    max_list_share: float = 0.8  # characters in short lines that end no sentence
    list_line_chars: int = 40
    max_leftovers: int = 5  # pieces of markup in a document of up to 5,000 characters, then one per 1,000


def rejection(document: Document, limits: Limits) -> str | None:
    """Returns the first reason to drop the document, or None to keep it."""
    return next(filter(None, (check(document, limits) for check in CHECKS)), None)


def too_short(document: Document, limits: Limits) -> str | None:
    """`empty` or `too_short`: fewer than `min_chars` characters."""
    if not document.text.strip():
        return "empty"
    return "too_short" if len(document.text) < limits.min_chars else None


def low_hangul(document: Document, limits: Limits) -> str | None:
    """`low_hangul`: a Korean document with too small a share of Hangul among its letters."""
    if document.lang != "ko":
        return None
    letters = _count(_LETTERS, document.text)
    return "low_hangul" if _count(_HANGUL, document.text) < limits.min_hangul_share * max(letters, 1) else None


def many_digits(document: Document, limits: Limits) -> str | None:
    """`many_digits`: mostly numbers, such as a table of results written as text."""
    return "many_digits" if _share(_DIGITS, document.text) > limits.max_digit_share else None


def many_symbols(document: Document, limits: Limits) -> str | None:
    """`many_symbols`: mostly characters that are neither letters, digits nor common punctuation."""
    return "many_symbols" if _share(_SYMBOLS, document.text) > limits.max_symbol_share else None


def mostly_list(document: Document, limits: Limits) -> str | None:
    """`mostly_list`: nearly all text stands in short lines that end no sentence."""
    lines = [line for line in document.text.split("\n") if line]
    in_lists = sum(len(line) for line in lines if len(line) < limits.list_line_chars and not _SENTENCE_END.search(line))
    return "mostly_list" if in_lists > limits.max_list_share * sum(map(len, lines)) else None


def leftover_markup(document: Document, limits: Limits) -> str | None:
    """`leftover_markup`: the cleaner left more markup than a text about markup has."""
    allowed = max(limits.max_leftovers, len(document.text) / 1000)
    prose = _MATH.sub("", document.text)  # TeX has double braces of its own
    return "leftover_markup" if len(_LEFTOVER.findall(prose)) > allowed else None


CHECKS = (too_short, low_hangul, many_digits, many_symbols, mostly_list, leftover_markup)


def _count(pattern: re.Pattern[str], text: str) -> int:
    return sum(map(len, pattern.findall(text)))


def _share(pattern: re.Pattern[str], text: str) -> float:
    return _count(pattern, text) / max(len(text) - text.count(" ") - text.count("\n"), 1)
