"""Mends the punctuation around dropped templates and pictures."""

import re

HOLE = "\ufdd2"  # stands where an inline template was dropped

# What editors leave, and (with a hole) what a dropped template leaves. `print()` stays.
_EMPTY = re.compile(r"\((?<![A-Za-z0-9_\])}>$]\()[ ,;~·、/]*+(?:[–-] )?\)")
_EMPTY_WORD = re.compile(r" \([ ,;~·、/]*+(?:[–-] )?\)")
_AFTER_OPEN = re.compile(r"\( *(?:[,;、:·] *)+(?=[^)\s])")
_ODD_CLOSE = re.compile(r"\)(?<=[ ,、;]\))")  # where `_BEFORE_CLOSE` may match, found much faster
_BEFORE_CLOSE = re.compile(r"[,、;][ ,、;]{0,20}\)")
_COMMAS = re.compile(r",(?: {1,9},)+")
_INNER_SPACES = re.compile(r"(?<=\S) {2,}")

_EMPTY_HOLE = re.compile(rf" ?[(（][ ,;:~·、/{HOLE}]*{HOLE}[ ,;:~·、/{HOLE}]*[)）]")
_OPEN_HOLE = re.compile(rf"([(（])[ ,;、:·]*{HOLE}[ ,;、:·{HOLE}]*")
_CLOSE_HOLE = re.compile(rf"[ ,、;]{{0,20}}{HOLE}[ ,、;{HOLE}]{{0,20}}([)）])")
_COMMA_HOLE = re.compile(rf"([,;、])(?: *{HOLE} *[,;、])+")
# A particle belongs to the word before the hole: `서울 {{소리|...}}은` -> `서울은`.
_PARTICLE_HOLE = re.compile(rf" {HOLE}+(?=(?:은|는|을|를|의|와|과|에서|에게|으로|이다|이며|이라는)(?:[ ,.]|$))")
_ANY_HOLE = re.compile(rf"^[{HOLE} ]*{HOLE} *| ?{HOLE}(?=[ .,!?)]|$)|{HOLE}")


def repair(text: str) -> str:
    """Mends what dropped templates leave: `(, 1924년` -> `(1924년`, `()` and `( ~ )` go."""
    if HOLE in text:
        text = "\n".join([_close_holes(line) if HOLE in line else line for line in text.split("\n")])
    if "(" in text:
        text = _AFTER_OPEN.sub("(", text)
        if _ODD_CLOSE.search(text):
            text = _BEFORE_CLOSE.sub(")", text)
        text = _EMPTY.sub("", _EMPTY_WORD.sub("", text))
    if ", " in text:
        text = _COMMAS.sub(",", text)
    return _INNER_SPACES.sub(" ", text) if "  " in text else text


def _close_holes(line: str) -> str:
    if "(" in line or "（" in line:
        line = _EMPTY_HOLE.sub("", line)
        line = _CLOSE_HOLE.sub(r"\1", _OPEN_HOLE.sub(r"\1", line))
    return _ANY_HOLE.sub("", _PARTICLE_HOLE.sub("", _COMMA_HOLE.sub(r"\1", line)))
