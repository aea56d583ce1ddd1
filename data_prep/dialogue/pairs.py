"""The aligned pair, one dialogue in English and Korean: its file, its repairs and what makes it unusable."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.dialogue.examples import numbered_rows
from data_prep.document import CorpusError

LANGUAGES = ("en", "ko")
MIN_HANGUL_SHARE = {"ko": 0.3, "en": 0.0}  # of the letters; Korean answers may hold names or code
MAX_HANGUL_SHARE = {"ko": 1.0, "en": 0.1}
SPECIAL = re.compile(r"<\|[^<>|\s]*\|>|</?s>|<unk>|<pad>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>")
SILENCE = "__SILENCE__"
SPACED_MARK = re.compile(r"(?<=\S) +(?=[,.!?;:]+(?:\s|$))")
SPACED_CONTRACTION = re.compile(r"(?<=\w) +(n't|'(?:s|m|re|ve|ll|d))\b", re.IGNORECASE)
HANGUL = re.compile(r"[\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7a3\ud7b0-\ud7fb]")


@dataclass(frozen=True)
class Pair:
    """One dialogue in both languages; turns alternate between user and assistant."""

    id: str
    en: list[str]
    ko: list[str]


def read_pairs(path: Path) -> Iterator[Pair]:
    """Yields the pairs of a JSON-lines file in NFC, PersonaChat's spacing repaired, none checked yet.

    A line is `{"id", "en": [turns], "ko": [turns]}`, as `dialogue generate` writes it, or
    `{"id", "turns": [{"en", "ko"}, ...]}`; further keys are ignored.

    Raises:
        CorpusError: a line is of neither form or repeats an id; the message names file and line.
    """
    seen: dict[str, str] = {}
    for where, row in numbered_rows(path):
        id_, sides = row.get("id"), _sides(row)
        if not isinstance(id_, str) or not id_ or sides is None:
            raise CorpusError(
                f"{where}: {str(row)[:60]}; id, en: [turns] and ko: [turns] are expected, "
                "or id and turns: [{en, ko}]; mend the line"
            )
        if id_ in seen:
            raise CorpusError(f"{where}: id {id_!r} stands in {seen[id_]} too; ids must differ; rename one")
        seen[id_] = where
        en, ko = ([repair_spacing(unicodedata.normalize("NFC", turn)) for turn in side] for side in sides)
        yield Pair(id_, en, ko)


def _sides(row: dict[str, Any]) -> list[list[str]] | None:
    sides, turns = [row.get(lang) for lang in LANGUAGES], row.get("turns")
    if sides == [None, None] and isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
        sides = [[turn.get(lang) for turn in turns] for lang in LANGUAGES]
    found = [side for side in sides if isinstance(side, list) and all(isinstance(turn, str) for turn in side)]
    return found if len(found) == len(LANGUAGES) else None


def repair_spacing(text: str) -> str:
    """Returns text without PersonaChat's spaces: `hello , i 'm ok !` becomes `hello, i'm ok!`."""
    return SPACED_CONTRACTION.sub(r"\1", SPACED_MARK.sub("", text)).strip()


def hangul_share(text: str) -> float | None:
    """Returns the share of Hangul among the letters of a text; None when it has no letters."""
    letters = sum(character.isalpha() for character in text)
    return len(HANGUL.findall(text)) / letters if letters else None


def pair_fault(pair: Pair) -> str | None:
    """Returns why a pair cannot be used: the name of the first rule it breaks, or None."""
    turns = pair.en + pair.ko
    if len(pair.en) != len(pair.ko):
        return "turns_differ"
    if not pair.en or len(pair.en) % 2:
        return "turns_odd"
    if not all(turns):
        return "turn_empty"
    if any(SILENCE in turn for turn in turns):
        return "silence"
    if any(SPECIAL.search(turn) for turn in turns):
        return "special_token"
    for lang, side in zip(LANGUAGES, (pair.en, pair.ko), strict=True):
        # Questions and answers apart: an untranslated answer must not hide behind a long question.
        for speaker in (0, 1):
            share = hangul_share(" ".join(side[speaker::2]))
            if share is not None and not MIN_HANGUL_SHARE[lang] <= share <= MAX_HANGUL_SHARE[lang]:
                return f"not_{lang}"
    return None
