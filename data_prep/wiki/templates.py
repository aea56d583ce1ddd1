"""What becomes of a template: the table of `templates_ko.yaml`, and its small format language."""

import calendar
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data_prep.document import CorpusError

TABLE = Path(__file__).with_name("templates_ko.yaml")
SECTIONS = ("text", "korean", "drop", "patterns", "disambiguation")
SUPERSCRIPTS = str.maketrans("0123456789+-−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻")

_FIELD = re.compile(r"\{([^{}:]+)(?::(\w+))?\}")
_GROUP = re.compile(r"\[([^\[\]]*\{[^\[\]]*)\]")
_NAME = re.compile(r"[^<>\n/]{1,40}")
_SPACES = re.compile(r"[\s_]+")
_PREFIX = re.compile(r"^(?:틀|template|템플릿):", re.IGNORECASE)

Arguments = dict[str, str]


@dataclass(frozen=True)
class Table:
    """Formats by template name; a `None` format drops the template."""

    formats: Mapping[str, "Format | None"]
    patterns: re.Pattern[str]
    pattern_formats: tuple["Format | None", ...]
    disambiguation: re.Pattern[str]

    def find(self, name: str) -> tuple[bool, "Format | None"]:
        """Returns whether the normalised `name` is known, and its format."""
        if name in self.formats:
            return True, self.formats[name]
        match = self.patterns.search(name)
        return (True, self.pattern_formats[int(str(match.lastgroup)[1:])]) if match else (False, None)


@dataclass(frozen=True)
class Format:
    """A parsed format: literal text and fields, with optional groups of them."""

    parts: tuple["str | Field | tuple[str | Field, ...]", ...]

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
    change: str | None

    def value(self, arguments: Arguments) -> str:
        """Returns the argument's text, or an empty string."""
        if self.change == "convert":
            return _convert(arguments)
        found = next((arguments[name] for name in self.names if arguments.get(name)), "")
        return CHANGES[self.change](found) if self.change and found else found


def normal_name(name: str) -> str:
    """Returns a template's name as the table holds it: one case, single spaces, no namespace."""
    return _PREFIX.sub("", _SPACES.sub(" ", name).strip()).strip().casefold()


def arguments_of(parts: list[str]) -> Arguments:
    """Returns a template call's arguments; unnamed ones under `1`, `2` ..., `last` and `all`."""
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


@lru_cache(maxsize=16)
def load_table(lang: str = "ko", extra: Path | None = None) -> Table:
    """Returns the shipped table, with the user's file `extra` laid over it.

    Raises:
        CorpusError: `extra` is missing, no YAML, or has another form than `templates_ko.yaml`.
    """
    formats: dict[str, Format | None] = {}
    patterns: dict[str, Format | None] = {}
    disambiguation: list[str] = []
    for path in [TABLE, extra] if extra else [TABLE]:
        data = _read(path)
        for section in ("text", "korean") if lang == "ko" else ("text",):
            for text, names in data.get(section, {}).items():
                formats |= dict.fromkeys(map(normal_name, map(str, names)), _parse(str(text)))
        formats |= dict.fromkeys(map(normal_name, map(str, data.get("drop", []))), None)
        # The user's patterns come first, as the first match counts.
        patterns = {k: _parse(str(v)) if v else None for k, v in data.get("patterns", {}).items()} | patterns
        disambiguation += map(normal_name, map(str, data.get("disambiguation", [])))
    joined = "|".join(f"(?P<p{i}>{re.sub(r'[(](?![?])', '(?:', p)})" for i, p in enumerate(patterns))
    # A space in a name may be written `_`, and any case is allowed.
    names = "|".join(re.escape(name).replace(r"\ ", "[ _]") for name in disambiguation)
    page = re.compile(r"\{\{\s*(?:틀:|template:)?(?:" + names + r")\s*[|}]", re.IGNORECASE)
    return Table(formats, re.compile(joined or r"(?!)"), tuple(patterns.values()), page)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CorpusError(f"{path} does not exist; give a YAML file of the form of {TABLE.name}")
    try:
        data = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as error:
        raise CorpusError(
            f"{path} is not YAML: {' '.join(str(error).split())}; see {TABLE.name} for the form"
        ) from None
    if not isinstance(data, dict) or set(data) - set(SECTIONS):
        odd = sorted(map(str, set(data) - set(SECTIONS))) if isinstance(data, dict) else type(data).__name__
        raise CorpusError(f"{path} holds {odd}; the keys are {', '.join(SECTIONS)}; see {TABLE.name} for the form")
    for key in ("text", "korean", "patterns"):
        if not isinstance(data.get(key, {}), dict):
            raise CorpusError(f"{path}: {key} is no mapping; write `FORMAT: [names]` lines as in {TABLE.name}")
    for pattern in data.get("patterns", {}):
        try:
            re.compile(str(pattern))
        except re.error as error:
            raise CorpusError(f"{path}: pattern {pattern!r} is no regular expression: {error}; mend it") from None
    return {str(key): value for key, value in data.items()}


@lru_cache(maxsize=1024)
def _parse(text: str) -> Format:
    parts: list[str | Field | tuple[str | Field, ...]] = []
    position = 0
    for group in _GROUP.finditer(text):
        parts += _fields(text[position : group.start()])
        parts.append(tuple(_fields(group[1])))
        position = group.end()
    return Format((*parts, *_fields(text[position:])))


def _fields(text: str) -> list[str | Field]:
    parts: list[str | Field] = []
    position = 0
    for field in _FIELD.finditer(text):
        parts += [text[position : field.start()], Field(tuple(field[1].split("|")), field[2])]
        position = field.end()
    return [part for part in [*parts, text[position:]] if part]


def _convert(arguments: Arguments) -> str:
    """`{{convert|5|to|10|km|mi}}` -> `5–10 km`: the first unit only, as the source states it."""
    number, second = arguments.get("1", ""), arguments.get("2", "")
    if second in {"to", "-", "–", "and", "~", "by", "x", "×"}:
        sign = {"by": " × ", "x": " × ", "×": " × ", "and": ", "}.get(second, "–")
        number, second = f"{number}{sign}{arguments.get('3', '')}", arguments.get("4", "")
    return f"{number} {second}".strip()


def _month(text: str) -> str:
    return calendar.month_name[int(text)] if text.isdecimal() and 1 <= int(text) <= 12 else text


CHANGES: dict[str, Callable[[str], str]] = {
    "month": _month,
    "superscript": lambda text: text.translate(SUPERSCRIPTS),
}
