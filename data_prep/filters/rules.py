"""One document's way through the rules: normalised, special tokens defused, personal data replaced, then checked."""

import html
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import MISSING, DictConfig, OmegaConf

from configs.loader import ConfigError, load
from data_prep.document import Document
from data_prep.filters.measures import Counts, count, list_share, repeated_line_share, repeated_share
from data_prep.filters.normalise import normalise
from data_prep.filters.pii import replace_pii
from data_prep.filters.special_tokens import defuse

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "data"
LANGUAGES = ("ko", "en")

_MARKUP = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|(?:섬네일|thumb)\||style=\"")
_MARKUP_SIGNS = ("{", "}", "[[", "]]", "|", '="')
_TAG = re.compile(
    r"</?(?:ref|div|span|table|tr|td|th|img|font|script|iframe|center|br|ul|li|a (?=[^<>]*=))\b[^<>]{0,200}>"
    r"|&(?:nbsp|amp|lt|gt|quot|#[0-9]{1,6});",
    re.IGNORECASE,
)
_MATH = re.compile(r"\$[^$\n]*\$")
_WORD = re.compile(r"[a-z]+")
# Source: the stop words of the Gopher rules (Rae et al. 2021, A1.1) and the commonest others; no two are in French,
# German or Spanish text.
_FUNCTION_WORDS = frozenset(
    {"the", "of", "and", "that", "with", "was", "for", "from", "which", "are", "this", "have", "his", "they", "would"}
)
_FUNCTION_WORD_CHARS = 5_000  # looked at


@dataclass(frozen=True)
class Rules:
    """What a document must meet. Shares are between 0 and 1; the YAML files say how each figure was chosen."""

    lang: str = MISSING
    """Language the rules are for, `ko` or `en`; decides which script `min_script_share` means."""
    replace_pii: bool = MISSING
    """Put placeholders for e-mail addresses, resident registration and telephone numbers."""
    unescape_html: bool = MISSING
    """Make `&lt;` a `<`, for text that came out of HTML with its entities. The wiki cleaner has done it."""
    min_chars: int = MISSING
    """Characters."""
    min_script_share: float = MISSING
    """Hangul (`ko`) or Latin (`en`) letters among all letters."""
    min_function_words: int = MISSING
    """Different English function words in the first 5,000 characters; 0 for Korean."""
    min_word_chars: float = MISSING
    """Mean length of what stands between white space."""
    max_word_chars: float = MISSING
    """Mean length of what stands between white space."""
    max_digit_share: float = MISSING
    """Digits among all characters but white space."""
    max_symbol_share: float = MISSING
    """Among all characters but white space: neither letters, digits nor punctuation of prose and code."""
    max_damaged_share: float = MISSING
    """U+FFFD, the mark of a broken encoding, among all characters but white space."""
    max_list_share: float = MISSING
    """Characters in lines under `list_line_chars` that end no sentence."""
    list_line_chars: int = MISSING
    """Characters of a line."""
    max_leftovers: int = MISSING
    """Pieces of wiki or HTML markup; in a text over 1,000 times as many characters, one per 1,000."""
    max_repeated_line_share: float = MISSING
    """Characters in lines that stood before in the document."""
    max_repeated_share: float = MISSING
    """Positions at which 24 characters begin that stood before in the document."""
    max_per_skeleton: int = MISSING
    """Documents of one stub family that stay, the first in source order; 0: all of them."""


@dataclass(frozen=True)
class Verdict:
    """What became of a document: `reason` says why it is dropped, None keeps it; `detail` gives value and limit."""

    document: Document
    reason: str | None
    changes: Counter[str] = field(default_factory=Counter)
    detail: str = ""


def load_rules(path: Path | None, lang: str, overrides: Sequence[str] = ()) -> Rules:
    """Returns the rules of a YAML file.

    Args:
        path: the file; None is `configs/data/filters_{lang}.yaml`.
        lang: language of the documents; the file's `lang` must be the same.
        overrides: `key=value` strings laid over the file.

    Raises:
        ConfigError: a key is unknown or unset, or a value impossible; all problems at once.
    """
    path = path or FOLDER / f"filters_{lang}.yaml"
    cfg = load(Rules, path, overrides, _problems)
    if cfg.lang != lang:
        raise ConfigError(path, [f"lang: the rules are for {cfg.lang!r}, the documents are {lang!r}; give other rules"])
    rules = OmegaConf.to_object(cfg)
    assert isinstance(rules, Rules)
    return rules


def _problems(cfg: DictConfig) -> list[str]:
    found = []
    if cfg.lang not in LANGUAGES:
        found.append(f"lang: {cfg.lang!r} is not known; one of {', '.join(LANGUAGES)}")
    values = {str(key): value for key, value in cfg.items()}
    for key, value in values.items():
        if key.endswith("_share") and not 0 <= value <= 1:
            found.append(f"{key}: {value} is no share; give a number from 0 to 1")
        elif not isinstance(value, str) and value < 0:
            found.append(f"{key}: {value} is negative; 0 or more is expected")
    if not found and cfg.min_word_chars > cfg.max_word_chars:
        found.append(f"min_word_chars: {cfg.min_word_chars} is above max_word_chars {cfg.max_word_chars}; swap them")
    return found


def prepare(document: Document, rules: Rules) -> Verdict:
    """Returns the document as it is kept or rejected, and why.

    Args:
        document: any text; it is not changed.
        rules: of the document's language.

    Returns:
        The verdict; its `changes` count `invisible_characters`, `odd_spaces`, `recomposed`, `special_tokens`,
        `pii_email`, `pii_rrn` and `pii_phone`.
    """
    text = document.text
    text, changes = normalise(html.unescape(text) if rules.unescape_html and "&" in text else text)
    text, num_tokens = defuse(text)
    if num_tokens:
        changes["special_tokens"] = num_tokens
    if rules.replace_pii:
        text, found = replace_pii(text)
        changes.update({f"pii_{kind}": number for kind, number in found.items()})
    reason, detail = check(text, document.lang, rules)
    return Verdict(document if text == document.text else replace(document, text=text), reason, changes, detail)


def check(text: str, lang: str, rules: Rules) -> tuple[str | None, str]:
    """Returns the first reason to drop a text with value and limit, or (None, "")."""
    if lang and lang != rules.lang:
        return "other_language", f"language {lang}, rules for {rules.lang}"
    if not text:
        return "empty", "0 characters"
    if len(text) < rules.min_chars:
        return "too_short", f"{len(text)} characters < {rules.min_chars}"
    reason, detail = _check_characters(count(text), rules)
    return (reason, detail) if reason else _check_structure(text, rules)


def _check_characters(counts: Counts, rules: Rules) -> tuple[str | None, str]:
    script = counts.hangul if rules.lang == "ko" else counts.latin
    low = "low_hangul" if rules.lang == "ko" else "low_latin"
    visible = max(counts.visible, 1)
    word_chars = counts.visible / max(counts.words, 1)
    if script < rules.min_script_share * max(counts.letters, 1):
        return low, f"{script / max(counts.letters, 1):.3f} of the letters < {rules.min_script_share}"
    for reason, number, limit in (
        ("damaged_characters", counts.damaged, rules.max_damaged_share),
        ("many_digits", counts.digits, rules.max_digit_share),
        ("many_symbols", counts.symbols, rules.max_symbol_share),
    ):
        if number > limit * visible:
            return reason, f"{number / visible:.3f} of the characters > {limit}"
    if word_chars < rules.min_word_chars:
        return "short_words", f"{word_chars:.2f} characters a word < {rules.min_word_chars}"
    if word_chars > rules.max_word_chars:
        return "long_words", f"{word_chars:.2f} characters a word > {rules.max_word_chars}"
    return None, ""


def _check_structure(text: str, rules: Rules) -> tuple[str | None, str]:
    if rules.min_function_words:
        number = len(_FUNCTION_WORDS.intersection(_WORD.findall(text[:_FUNCTION_WORD_CHARS].lower())))
        if number < rules.min_function_words:
            return "few_function_words", f"{number} < {rules.min_function_words}"
    if len(pieces := _leftovers(text)) > (limit := max(rules.max_leftovers, len(text) // 1000)):
        return "leftover_markup", f"{len(pieces)} pieces > {limit}, mostly {Counter(pieces).most_common(1)[0][0][:40]}"
    if (share := list_share(text, rules.list_line_chars)) > rules.max_list_share:
        return "mostly_list", f"{share:.3f} of the characters > {rules.max_list_share}"
    if (share := repeated_line_share(text)) > rules.max_repeated_line_share:
        return "repeated_lines", f"{share:.3f} of the characters > {rules.max_repeated_line_share}"
    if (share := repeated_share(text)) > rules.max_repeated_share:
        return "repeated_text", f"{share:.3f} of the positions > {rules.max_repeated_share}"
    return None, ""


def _leftovers(text: str) -> list[str]:
    """Returns the pieces of markup outside mathematics, which has double braces of its own."""
    pieces: list[str] = []
    if any(sign in text for sign in _MARKUP_SIGNS):
        pieces = _MARKUP.findall(_MATH.sub("", text) if "$" in text else text)
    return pieces + (_TAG.findall(text) if "<" in text or "&" in text else [])
