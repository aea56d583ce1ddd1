"""One spelling for every character: NFC, plain spaces and line ends, nothing invisible.

NFC, never NFKC: that turns `ㅋㅋㅠ` into `ᄏ큐`, `㈜` into `(주)` and `½` into `1⁄2`. Hanja, old jamo, curly quotes and
tabs stay.
"""

import functools
import re
import sys
import unicodedata
from collections import Counter
from itertools import groupby

# Vertical tab, form feed and the separators end a line for `str.splitlines` as well; a page break must not glue words.
_LINE_END = "\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]"
# Controls, soft hyphen, zero-width and bidi marks, surrogates and noncharacters, annotations, object replacement.
_INVISIBLE = (
    "\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufdd0-\ufdef\ufeff\ufff0-\ufffc\ufffe\uffff"
)
# Among them the braille blank and the Hangul fillers that stand alone; U+115F and U+1160 are part of old Hangul.
_SPACES = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u2800\u3000\u3164\uffa0"

_LINE_ENDS = re.compile(_LINE_END)
_INVISIBLES = re.compile(f"[{_INVISIBLE}]")
_ODD_SPACES = re.compile(f"[{_SPACES}]")
_ODD = re.compile(f"[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029{_INVISIBLE}{_SPACES}]")
# Apart from the others, as a class with these is three times as slow.
_TAGS = re.compile("[\U000e0000-\U000e0fff]")
_LINE_SPACES = re.compile(r"(?<![ \t])[ \t]+\n")
_BLANK_LINES = re.compile(r"\n{3,}")
MAX_MARKS = 30  # on one character; Source: Unicode Standard Annex 15, Stream-Safe Text Format


def normalise(text: str) -> tuple[str, Counter[str]]:
    """Returns the text, and how many characters of each kind were changed.

    At most one blank line in a row, no spaces at the end of a line, none around the text. Idempotent.

    Returns:
        The text, and counts by `invisible_characters` (taken out), `odd_spaces` (made plain) and
        `recomposed` (1 for a text that was not in NFC).
    """
    text, changes = visible(text)
    recomposed = nfc(text)
    changes["recomposed"] = int(recomposed is not text)
    text = recomposed
    if " \n" in text or "\t\n" in text:
        text = _LINE_SPACES.sub("\n", text)
    if "\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text.strip(), +changes


def visible(text: str) -> tuple[str, Counter[str]]:
    """Returns the text with line feeds and plain spaces, without invisible characters, and counts of the two."""
    changes: Counter[str] = Counter()
    if _ODD.search(text):
        text = _LINE_ENDS.sub("\n", text)
        text, changes["invisible_characters"] = _INVISIBLES.subn("", text)
        text, changes["odd_spaces"] = _ODD_SPACES.subn(" ", text)
    if _is_beyond_bmp(text):
        text, found = _TAGS.subn("", text)
        changes["invisible_characters"] += found
    return text, changes


def _is_beyond_bmp(text: str) -> bool:
    """Whether a character is beyond the Basic Multilingual Plane; a tenth of the time of a search by `re`."""
    return not text.isascii() and len(text.encode("utf-16-le", "surrogatepass")) > 2 * len(text)


def nfc(text: str) -> str:
    """Returns the text in NFC, in linear time; itself if it is so already.

    Of over `MAX_MARKS` marks on one character in a text that is not, the first ones stay.
    """
    if unicodedata.is_normalized("NFC", text):
        return text
    # Normalising takes time quadratic in the marks on one character: an hour for a megabyte of noise.
    return unicodedata.normalize("NFC", _many_marks().sub(r"\1", text))


@functools.cache
def _many_marks() -> re.Pattern[str]:
    """Returns an expression for runs of over `MAX_MARKS` combining characters; made once, in 0.1 s."""
    marks = [code for code in range(sys.maxunicode + 1) if unicodedata.combining(chr(code))]
    runs = [list(run) for _, run in groupby(enumerate(marks), key=lambda pair: pair[1] - pair[0])]
    classes = "".join(f"{chr(run[0][1])}-{chr(run[-1][1])}" for run in runs)
    return re.compile(f"([{classes}]{{{MAX_MARKS}}})[{classes}]+")
