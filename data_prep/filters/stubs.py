"""Stub families: articles written after one pattern, equal but for the title, numbers and what stands in brackets.

Beyond a few, they teach a model to repeat the pattern. In Korean Wikipedia 415 families of 20 and more hold 73,913 of
596,298 articles.
"""

import hashlib
import re

from data_prep.document import Document

_TITLE, _HOLE = "\0", "\1"
_NUMBERS = re.compile(r"[0-9][0-9.,]*")
_BRACKETS = re.compile(r"\([^()\n]*\)")  # begins with a literal, to which `re` skips
# Which form of a particle follows a title depends on the title's last sound.
_PARTICLES = re.compile(f"{_TITLE}(은|는|이다|다|이|가|을|를|과|와|으로|로)(?![가-힣])")
_FORMS = {"는": "은", "이다": "다", "가": "이", "를": "을", "와": "과", "로": "으로"}


def skeleton(document: Document) -> int:
    """Returns the hash of a document's text with title, brackets and numbers masked; equal within a family.

    Returns:
        64 bits, unsigned.
    """
    text = _without_brackets(document.text)
    title = _without_brackets(document.title).strip()
    if len(title) > 1:  # one letter stands in too many words
        text = text.replace(title, _TITLE)
        text = _PARTICLES.sub(lambda match: _TITLE + _FORMS.get(match[1], match[1]), text)
    text = _NUMBERS.sub("0", text)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _without_brackets(text: str) -> str:
    """Returns the text without what stands in parentheses and the space before it."""
    if "(" not in text:
        return text
    return _BRACKETS.sub(_HOLE, text).replace(f" {_HOLE}", "").replace(_HOLE, "")
