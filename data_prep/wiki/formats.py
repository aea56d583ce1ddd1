"""The small language of the template tables: `{1}년[ {2}월]` with fields, alternatives, changes and groups."""

import calendar
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

COUNTRIES = Path(__file__).with_name("countries.yaml")
SUPERSCRIPTS = str.maketrans("0123456789+-−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻")

_FIELD = re.compile(r"\{([^{}:]+)(?::(\w+))?\}")
_GROUP = re.compile(r"\[([^\[\]]*\{[^\[\]]*)\]")
_NAME = re.compile(r"[^<>\n/]{1,40}")
_NUMBER = re.compile(r"[+\-−]?[\d.,]+(?:[/⁄]\d+)?")
_POWER_UNIT = re.compile(r"e(\d+)(\w+)")

# How `convert` writes a range, and the units whose code is not what a reader expects.
_RANGES = {
    "to": "–",
    "-": "–",
    "–": "–",
    "~": "~",
    "to(-)": "–",
    "and": ", ",
    "and(-)": "–",
    "or": " or ",
    "by": " × ",
    "x": " × ",
}
_RANGES |= {"×": " × ", "*": " × ", "xx": " × ", "+/-": " ± ", "±": " ± ", "+": " + ", "에서": "~", "과": ", "}
_UNITS = {"C": "°C", "F": "°F", "R": "°R", "degC": "°C", "degF": "°F", "sqmi": "sq mi", "sqft": "sq ft", "kph": "km/h"}
_UNITS |= {"kmh": "km/h", "cuft": "cu ft", "foot": "feet", "mile": "miles", "pd/sqkm": "/km²"}
_UNITS |= {
    f"{unit}{power}": f"{unit}{sign}" for unit in ("mm", "cm", "m", "km") for power, sign in (("2", "²"), ("3", "³"))
}
_UNITS |= {"sqkm": "km²", "sqm": "m²", "cc": "cc", "kg/m3": "kg/m³", "PD/sqkm": "/km²", "m/s2": "m/s²"}

Arguments = dict[str, str]
Change = Callable[[str, Arguments], str]


@dataclass(frozen=True)
class Format:
    """A parsed format: literal text and fields, with optional groups of them.

    Attributes:
        is_aside: the template's text is dropped inside parentheses, where it explains a name.
    """

    parts: tuple["str | Field | tuple[str | Field, ...]", ...]
    is_aside: bool = False

    def render(self, arguments: Arguments) -> str:
        """Returns the template's text; empty when no field of it has a value."""
        out, filled = [], not any(not isinstance(part, str) for part in self.parts)
        for part in self.parts:
            group = part if isinstance(part, tuple) else (part,)
            values = [p if isinstance(p, str) else p.value(arguments) for p in group]
            complete = all(v for v, p in zip(values, group, strict=True) if not isinstance(p, str))
            filled = filled or (complete and not isinstance(part, str))
            if complete or not isinstance(part, tuple):
                out += values
        return "".join(out) if filled else ""


@dataclass(frozen=True)
class Field:
    """One place of a format: the first of `names` with a value, changed by `change`."""

    names: tuple[str, ...]
    change: "Change | None"

    def value(self, arguments: Arguments) -> str:
        """Returns the argument's text, or an empty string."""
        found = next((arguments[name] for name in self.names if arguments.get(name)), "")
        return self.change(found, arguments) if self.change and found else found


@cache
def parse(text: str, lang: str, is_aside: bool = False) -> Format:
    """Returns the format that `text` writes, for pages in `lang` (`ko`, or any other for English).

    Raises:
        ValueError: it names a change there is not.
    """
    parts: list[str | Field | tuple[str | Field, ...]] = []
    position = 0
    for group in _GROUP.finditer(text):
        parts += _fields(text[position : group.start()], lang)
        parts.append(tuple(_fields(group[1], lang)))
        position = group.end()
    return Format((*parts, *_fields(text[position:], lang)), is_aside)


def _fields(text: str, lang: str) -> list[str | Field]:
    parts: list[str | Field] = []
    position = 0
    for field in _FIELD.finditer(text):
        change = field[2]
        if change and change not in CHANGES:
            raise ValueError(f"{change!r} in {text!r} is no change; the changes are {', '.join(sorted(CHANGES))}")
        change = CHANGES[change][lang == "ko"] if change else None
        parts += [text[position : field.start()], Field(tuple(field[1].split("|")), change)]
        position = field.end()
    return [part for part in [*parts, text[position:]] if part]


def arguments_of(parts: list[str]) -> Arguments:
    """Returns a template call's arguments; unnamed ones under `1`, `2` ..., `last`, `joined` and `all`."""
    arguments: Arguments = {}
    unnamed: list[str] = []
    for part in parts:
        name, equals, value = part.partition("=")
        if equals and _NAME.fullmatch(name := name.strip()):
            arguments[name] = value.strip()
        else:
            unnamed.append(part.strip())
            arguments.setdefault(str(len(unnamed)), unnamed[-1])
    arguments["last"] = unnamed[-1] if unnamed else ""
    arguments["joined"] = "".join(unnamed)
    arguments["all"] = ", ".join(text for text in unnamed if text)
    return arguments


@cache
def countries(lang: str) -> Mapping[str, str]:
    """Returns the countries' names by code in lower case: Korean for `ko`, otherwise English."""
    names: dict[str, str] = {}
    for code, (korean, english, *others) in OmegaConf.to_container(OmegaConf.load(COUNTRIES)).items():  # type: ignore
        name = korean if lang == "ko" else english
        names |= dict.fromkeys([str(other).casefold() for other in (code, korean, *others)], name)
    return names


def _convert(_: str, arguments: Arguments) -> str:
    """`{{convert|5|to|10|km|mi}}` -> `5–10 km`: the first unit only, as the source states it."""
    words = [arguments.get(str(i), "") for i in range(1, 9)]
    number, rest = words[0], words[1:]
    while len(rest) > 1 and rest[0] in _RANGES:
        number, rest = f"{number}{_RANGES[rest[0]]}{rest[1]}", rest[2:]
    if not rest:
        return number
    out = f"{number} {_unit(rest[0])}".replace(" ×10", "×10").strip()
    while len(rest) > 2 and _NUMBER.fullmatch(rest[1]) and rest[2] and not _NUMBER.fullmatch(rest[2]):
        out, rest = f"{out} {rest[1]} {_unit(rest[2])}", rest[2:]  # 5 ft 6 in
    return out


def _unit(code: str) -> str:
    power = _POWER_UNIT.fullmatch(code)
    return f"×10{power[1].translate(SUPERSCRIPTS)} {_unit(power[2])}" if power else _UNITS.get(code, code)


def _korean_date(_: str, arguments: Arguments) -> str:
    year, month, day = _date_parts(arguments)
    if not year.isdecimal():
        return year  # written out: {{출생일|1924년 10월 1일}}
    return " ".join(f"{part}{unit}" for part, unit in ((year, "년"), (month, "월"), (day, "일")) if part)


def _english_date(_: str, arguments: Arguments) -> str:
    year, month, day = _date_parts(arguments)
    if not year.isdecimal():
        return year
    month = _month(month, arguments)
    if month and day and arguments.get("df", "") in ("y", "yes"):
        return f"{day} {month} {year}"
    return f"{month} {day}, {year}" if month and day else f"{month} {year}".strip()


def _date_parts(arguments: Arguments) -> tuple[str, str, str]:
    year = arguments.get("1") or arguments.get("year") or arguments.get("연도") or ""
    month = arguments.get("2") or arguments.get("month") or ""
    day = arguments.get("3") or arguments.get("day") or ""
    return year, _number(month), _number(day) if day.isdecimal() else ""


def _number(text: str) -> str:
    """`01` -> `1`."""
    return (text.lstrip("0") or "0") if text.isdecimal() else text


def _month(text: str, _: Arguments) -> str:
    return calendar.month_name[int(text)] if text.isdecimal() and len(text) <= 2 and 1 <= int(text) <= 12 else text


def _superscript(text: str, _: Arguments) -> str:
    return text.translate(SUPERSCRIPTS)


def _upper(text: str, _: Arguments) -> str:
    return text.upper()


def _music(text: str, _: Arguments) -> str:
    return {"flat": "♭", "b": "♭", "sharp": "♯", "#": "♯", "natural": "♮", "n": "♮"}.get(text, text)


def _english_country(text: str, _: Arguments) -> str:
    return countries("en").get(text.casefold(), text)


def _korean_country(text: str, _: Arguments) -> str:
    return countries("ko").get(text.casefold(), text)


# What may stand behind a field's colon: for English pages, and for Korean ones.
CHANGES: dict[str, tuple[Change, Change]] = {
    "convert": (_convert, _convert),
    "country": (_english_country, _korean_country),
    "date": (_english_date, _korean_date),
    "month": (_month, _month),
    "music": (_music, _music),
    "superscript": (_superscript, _superscript),
    "upper": (_upper, _upper),
}
