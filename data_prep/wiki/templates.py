"""What becomes of a template: the tables `templates_ko.yaml` and `templates_en.yaml`, and a user's own."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data_prep.document import CorpusError
from data_prep.wiki.formats import Format, countries, parse

FOLDER = Path(__file__).parent
FORM = "templates_ko.yaml"  # its head documents the form
SECTIONS = ("text", "aside", "drop", "patterns", "disambiguation")

_SPACES = re.compile(r"[\s_]+")
_PREFIX = re.compile(r"^(?:틀|template|템플릿):", re.IGNORECASE)
MAX_CACHED_CHARS = 50


@dataclass(frozen=True)
class Table:
    """Formats by template name, a `None` format drops the template; and the countries' names by their codes."""

    formats: Mapping[str, Format | None]
    countries: Mapping[str, str]
    patterns: re.Pattern[str]
    pattern_formats: tuple[Format | None, ...]
    disambiguation: re.Pattern[str]

    def find(self, name: str) -> tuple[bool, Format | None]:
        """Returns whether the normalised `name` is known, and its format."""
        if name in self.formats:
            return True, self.formats[name]
        match = self.patterns.search(name)
        return (True, self.pattern_formats[int(str(match.lastgroup)[1:])]) if match else (False, None)


def normal_name(name: str) -> str:
    """Returns a template's name as the table holds it: one case, single spaces, no namespace."""
    return _short_name(name) if len(name) <= MAX_CACHED_CHARS else _normalise(name)


def _normalise(name: str) -> str:
    return _PREFIX.sub("", _SPACES.sub(" ", name).strip()).strip().casefold()


_short_name = lru_cache(maxsize=20_000)(_normalise)  # few names make up most calls


@lru_cache(maxsize=16)
def load_table(lang: str = "ko", extra: Path | None = None) -> Table:
    """Returns the shipped tables, that of `lang` first, with the user's file `extra` laid over them.

    Raises:
        CorpusError: `extra` is missing, no YAML, or has another form than `templates_ko.yaml`.
    """
    formats: dict[str, Format | None] = {}
    patterns: dict[str, Format | None] = {}
    disambiguation: list[str] = []
    shipped = [FOLDER / "templates_en.yaml", FOLDER / "templates_ko.yaml"]
    for path in [*(shipped if lang == "ko" else reversed(shipped)), *([extra] if extra else [])]:
        data = _read(path)
        for section in ("text", "aside"):
            for text, names in data.get(section, {}).items():
                template_format = _parse(path, str(text), lang, section == "aside")
                formats |= dict.fromkeys(map(normal_name, map(str, names)), template_format)
        formats |= dict.fromkeys(map(normal_name, map(str, data.get("drop", []))), None)
        # The last file's patterns come first, as the first match counts.
        own = {k: _parse(path, str(v), lang, False) if v else None for k, v in data.get("patterns", {}).items()}
        patterns = own | {k: v for k, v in patterns.items() if k not in own}
        disambiguation += map(normal_name, map(str, data.get("disambiguation", [])))
    joined = "|".join(f"(?P<p{i}>{re.sub(r'[(](?![?])', '(?:', p)})" for i, p in enumerate(patterns))
    # A space in a name may be written `_`, and any case is allowed.
    names = "|".join(re.escape(name).replace(r"\ ", "[ _]") for name in disambiguation)
    page = re.compile(r"\{\{\s*(?:틀:|template:)?(?:" + names + r")\s*[|}]", re.IGNORECASE)
    flags = {code: name for code, name in countries(lang).items() if code not in formats}
    return Table(formats, flags, re.compile(joined or r"(?!)"), tuple(patterns.values()), page)


def _parse(path: Path, text: str, lang: str, is_aside: bool) -> Format:
    try:
        return parse(text, lang, is_aside)
    except ValueError as error:
        raise CorpusError(f"{path}: {error}; see {FORM} for the form") from None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CorpusError(f"{path} does not exist; give a YAML file of the form of {FORM}")
    try:
        data = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as error:
        raise CorpusError(f"{path} is not YAML: {' '.join(str(error).split())}; see {FORM} for the form") from None
    if not isinstance(data, dict) or set(data) - set(SECTIONS):
        odd = sorted(map(str, set(data) - set(SECTIONS))) if isinstance(data, dict) else type(data).__name__
        raise CorpusError(f"{path} holds {odd}; the keys are {', '.join(SECTIONS)}; see {FORM} for the form")
    for key in ("text", "aside", "patterns"):
        if not isinstance(data.get(key, {}), dict):
            raise CorpusError(f"{path}: {key} is no mapping; write `FORMAT: [names]` lines as in {FORM}")
    lists = {f"{s}: {k!r}": v for s in ("text", "aside") for k, v in data.get(s, {}).items()}
    for key, names in (lists | {k: data.get(k, []) for k in ("drop", "disambiguation")}).items():
        if not isinstance(names, list):
            raise CorpusError(f"{path}: {key} holds {names!r}; a list of template names is expected; write [{names}]")
    for pattern in data.get("patterns", {}):
        try:
            re.compile(str(pattern))
        except re.error as error:
            raise CorpusError(f"{path}: pattern {pattern!r} is no regular expression: {error}; mend it") from None
    return {str(key): value for key, value in data.items()}
