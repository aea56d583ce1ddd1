"""Stub families: articles written after one pattern, equal but for the title, numbers and what stands in brackets.

Beyond a few, they teach a model to repeat the pattern. In Korean Wikipedia 415 families of 20 and more hold 73,913 of
596,298 articles.
"""

import hashlib
import re

from data_prep.document import Document

_TITLE = "\0"
_NUMBERS = re.compile(r"[0-9][0-9.,]*")
_BRACKETS = re.compile(r" ?\([^()\n]*\)")
# Which form of a particle follows a title depends on the title's last sound.
_PARTICLES = re.compile(f"(?<={_TITLE})(?:은|는|이다|다|이|가|을|를|과|와|으로|로)(?![가-힣])")
_FORMS = {"는": "은", "이다": "다", "가": "이", "를": "을", "와": "과", "로": "으로"}


def skeleton(document: Document) -> int:
    """Returns the hash of a document's text with title, brackets and numbers masked; equal within a family.

    Returns:
        64 bits, unsigned.
    """
    text = _BRACKETS.sub("", document.text)
    title = _BRACKETS.sub("", document.title).strip()
    if len(title) > 1:  # one letter stands in too many words
        text = text.replace(title, _TITLE)
        text = _PARTICLES.sub(lambda match: _FORMS.get(match[0], match[0]), text)
    text = _NUMBERS.sub("0", text)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
