"""A word of a sentence template: it brings its particle, article, plural and link with it."""

from collections.abc import Callable
from typing import Any

from data_prep.sample.korean import particle, polite


class Word:
    """One value of a template field.

    Korean `{word:은}` adds the right particle, `{word:-은}` is the particle alone. English `{word:a}` adds the
    indefinite article, `{word:s}` is the plural, `{word:'s}` the possessive.
    """

    def __init__(self, text: str, lang: str, style: Callable[[str], str] | None = None) -> None:
        self.text, self.lang = text, lang
        self._style = style or str

    def __str__(self) -> str:
        if self.lang == "en" and self.text.startswith("the "):
            return "the " + self._style(self.text[4:])
        return self._style(self.text)

    def __format__(self, spec: str) -> str:
        if self.lang == "ko":
            return particle(self.text, spec[1:]) if spec.startswith("-") else str(self) + particle(self.text, spec)
        if spec == "a":
            return f"{indefinite_article(self.text)} {self}"
        if spec == "s":
            return plural(self.text)
        return str(self) + (("'" if self.text.endswith("s") else "'s") if spec == "'s" else "")


def indefinite_article(text: str) -> str:
    """Returns `a` or `an`, by the first letter."""
    return "an" if text[:1].lower() in "aeiou" else "a"


def plural(text: str) -> str:
    """Returns the regular plural of an English noun."""
    if text.endswith(("s", "sh", "ch", "x")):
        return text + "es"
    if text.endswith("y") and text[-2:-1] not in "aeiou":
        return text[:-1] + "ies"
    return text[:-3] + "men" if text.endswith("man") else text + "s"


def fill(template: str, lang: str, fields: dict[str, Any], chat: bool = False) -> str:
    """Returns the filled template as a sentence: capitalised in English, polite in a Korean chat."""
    text = template.format_map(fields)
    if lang == "ko":
        return polite(text) if chat else text
    return capitalise(text)


def capitalise(text: str) -> str:
    """Returns the text with its first letter as a capital, past quotes and link marks."""
    if text.startswith("[[") and "|" not in text.split("]]")[0]:
        return "[[" + capitalise(text[2:])
    for index, char in enumerate(text):
        if char == "|":
            break
        if char.isalnum():
            start = text.index("|") + 1 if text.startswith("[[") and "|" in text.split("]]")[0] else index
            return text[:start] + text[start].upper() + text[start + 1 :]
    return text
