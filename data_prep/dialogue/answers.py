"""What a model answered: the dialogue read out of its text, or the reason to drop it."""

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from rensa import RMinHash, RMinHashLSH

from data_prep.dialogue.pairs import Pair, hangul_share, pair_fault
from data_prep.filters.pii import replace_pii

SPEAKERS = ("user", "assistant")
# The JSON that is asked for; OpenAI's strict form: every key required, none besides.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "turns": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "speaker": {"type": "string", "enum": list(SPEAKERS)},
                    "en": {"type": "string"},
                    "ko": {"type": "string"},
                },
                "required": ["speaker", "en", "ko"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["turns"],
    "additionalProperties": False,
}
ASK_AGAIN = ("no_json", "wrong_shape", "truncated")  # slips of the form, which a second try may not make

_CANNOT = r"i(?: can't| cannot| can not| won't| will not|(?:'m| am) (?:unable|not able) to)"
REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|\bi(?:'m| am) (?:just |only |sorry,? )?an? (?:ai|(?:large )?language model)\b"
    r"|\b(?:sorry|apologi[sz]e|unfortunately),? (?:but )?" + _CANNOT + r" (?:help|assist|fulfil|comply|create|"
    r"generate|provide|engage|discuss|continue|write|produce)"
    r"|\b" + _CANNOT + r" (?:fulfill?|comply with|assist with|help (?:you )?with|generate|create) "
    r"(?:this|that|your|such|the request)"
    r"|\bagainst my (?:guidelines|programming)\b|\bviolates? (?:the |our |my )?(?:content |usage )?(?:polic|guideline)"
    r"|죄송(?:하지만|합니다만|합니다[,.]?(?: 하지만)?|해요[,.]?(?: 하지만)?|스럽지만)[^.?!\n]{0,40}"
    r"(?:도와|도움을|답변|대답|제공|생성|만들어|작성|응|이행|수행|처리)\s?(?:을|해|하여)?\s?(?:드릴|줄|할)\s?수(?:는|가)?\s?없"
    r"|(?:저는|나는|전)\s?(?:단지\s?)?(?:인공지능|AI|에이아이)[^.?!\n]{0,12}(?:로서|이라|이기|이므로|입니다|이에요|예요)"
    r"|(?:인공지능|AI)\s?(?:언어\s?)?모델(?:로서|이라|이기|이므로)"
    r"|요청(?:하신\s?(?:내용|것))?(?:을|에는?|은)?\s?(?:수행|처리|응|이행|생성)(?:할|해\s?드릴)\s?수(?:는|가)?\s?없",
    re.IGNORECASE,
)
SPEAKER_LABEL = re.compile(
    r"\s*\**(?:user|assistant|human|ai|bot|speaker [ab12]|[AB]|사용자|어시스턴트|도우미|질문자|답변자)\**\s?:", re.I
)
PLACEHOLDER = re.compile(
    r"\[(?:your |the |insert |user'?s? )?(?:name|date|city|place|number|이름|날짜|도시|장소|번호)\]", re.I
)
LONG_TURN_CHARS = 40  # from here on one turn alone tells its language and its length
DIALOGUE_LENGTH_RATIO = (0.3, 1.1)  # Korean characters to English ones; 295 human-made dialogues: 0.50 to 0.66
TURN_LENGTH_RATIO = (0.15, 1.6)  # of their turns of 40 characters and more: 0.24 to 0.98
GLOSS = re.compile(r"\([^()\n]{0,20}\)")  # as hanja and names in their own script stand
MAX_FOREIGN_SHARE = 0.1  # letters neither Hangul nor Latin; above it, a model slipped into a third language
NUM_PERMUTATIONS, NUM_BANDS, SHINGLE_WORDS, MINHASH_SEED = 128, 32, 3, 42


def read_dialogue(text: str, finish: str, num_turns: int, max_turn_chars: int) -> tuple[list[str], list[str]] | str:
    """Returns the English and the Korean turns of an answer in NFC, or the reason to drop it.

    Args:
        text: the answer; the JSON object may stand in a fence or among other text.
        finish: `stop`, `length`, `blocked` or `refusal`, as the endpoint told.
        num_turns: turns that were asked for, over both speakers.
        max_turn_chars: longest turn, in characters.
    """
    if finish == "blocked" or finish == "refusal":
        return finish
    value = find_object(text, "turns")
    if finish == "length":
        return "truncated"
    if value is None:
        return "refusal" if REFUSAL.search(_straight(text)) else "no_json"
    rows = value["turns"]
    names = {"speaker", "en", "ko"}
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and all(isinstance(row.get(name), str) for name in names) for row in rows
    ):
        return "wrong_shape"
    if [row["speaker"] for row in rows] != [SPEAKERS[number % 2] for number in range(len(rows))]:
        return "not_alternating"
    if len(rows) != num_turns:
        return "turn_count"
    en, ko = ([unicodedata.normalize("NFC", row[lang]).strip() for row in rows] for lang in ("en", "ko"))
    return dialogue_fault(en, ko, max_turn_chars) or (en, ko)


def find_object(text: str, key: str) -> dict[str, Any] | None:
    """Returns the last JSON object in a text that has `key` at its top; None without one.

    The last: models that think aloud write drafts first.
    """
    decoder, found, position = json.JSONDecoder(), None, text.find("{")
    for _ in range(1000):  # a text of nothing but braces must not take for ever
        if position < 0:
            break
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = position + 1
        else:
            found = value if isinstance(value, dict) and key in value else found
        position = text.find("{", end)
    return found


def dialogue_fault(en: list[str], ko: list[str], max_turn_chars: int) -> str | None:
    """Returns why a generated dialogue is dropped: the name of the first rule it breaks, or None.

    Stricter than `pair_fault`, which also judges what people wrote.
    """
    if fault := pair_fault(Pair("", en, ko)):
        return fault
    if any(REFUSAL.search(_straight(turn)) for turn in en[1::2] + ko[1::2]):
        return "refusal"
    for english, korean in zip(en, ko, strict=True):
        if fault := _turn_fault(english, korean, max_turn_chars):
            return fault
    if not _is_within(len("".join(ko)) / len("".join(en)), DIALOGUE_LENGTH_RATIO):
        return "length_ratio"
    if any(len(set(map(_plain, side[speaker::2]))) < len(side) // 2 for side in (en, ko) for speaker in (0, 1)):
        return "repetition"
    return None


def _turn_fault(english: str, korean: str, max_turn_chars: int) -> str | None:
    if max(len(english), len(korean)) > max_turn_chars:
        return "turn_too_long"
    if any(character.isalpha() for character in english) and _plain(english) == _plain(korean) and " " in english:
        return "untranslated"
    shares = {"en": hangul_share(english), "ko": hangul_share(korean)}
    if len(korean) >= LONG_TURN_CHARS and shares["ko"] == 0:
        return "not_ko"
    if shares["en"] is not None and shares["en"] > 0.5:
        return "not_en"
    if foreign_share(english) > MAX_FOREIGN_SHARE or foreign_share(korean) > MAX_FOREIGN_SHARE:
        return "foreign_script"
    if len(english) >= LONG_TURN_CHARS and not _is_within(len(korean) / len(english), TURN_LENGTH_RATIO):
        return "length_ratio"
    for turn in (english, korean):
        if SPEAKER_LABEL.match(turn):
            return "speaker_label"
        if PLACEHOLDER.search(turn):
            return "placeholder"
        if replace_pii(turn)[1]:
            return "pii"
    return None


def foreign_share(text: str) -> float:
    """Returns the share of the letters outside parentheses that are neither Hangul nor Latin; 0 without letters."""
    letters = [character for character in GLOSS.sub("", text) if character.isalpha()]
    native = sum(unicodedata.name(character, "").startswith(("HANGUL", "LATIN")) for character in letters)
    return 1 - native / len(letters) if letters else 0.0


class Duplicates:
    """The dialogues seen so far; of two that are alike the first counts.

    Args:
        threshold: least Jaccard similarity of the word 3-grams of both languages together,
            estimated from 128 hashes, that makes two dialogues near duplicates.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._exact: set[tuple[str, ...]] = set()
        self._index = RMinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS, num_bands=NUM_BANDS)
        self._sketches: list[RMinHash] = []

    def fault(self, en: Sequence[str], ko: Sequence[str]) -> str | None:
        """Returns `duplicate` or `near_duplicate`; otherwise remembers the dialogue and returns None."""
        turns = tuple(map(_plain, [*en, *ko]))
        if turns in self._exact:
            return "duplicate"
        sketch = RMinHash(NUM_PERMUTATIONS, MINHASH_SEED)
        sketch.update(_shingles(turns))
        # Bands only propose candidates; the sketch decides.
        if any(sketch.jaccard(self._sketches[other]) >= self._threshold for other in self._index.query(sketch)):
            return "near_duplicate"
        self._exact.add(turns)
        self._index.insert(len(self._sketches), sketch)
        self._sketches.append(sketch)
        return None


def _shingles(turns: Sequence[str]) -> list[str]:
    words = " ".join(turns).split()
    return [" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))]


def _plain(text: str) -> str:
    """Returns the text's words in lower case and NFC, without marks: what tells two turns apart."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFC", text).lower()))


def _straight(text: str) -> str:
    return text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def _is_within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]
