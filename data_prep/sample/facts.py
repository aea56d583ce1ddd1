"""The tables of facts and the sentence templates, read into kinds, attributes and entities."""

import csv
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from data_prep.document import CorpusError

HERE = Path(__file__).resolve().parent
TEMPLATES = ("geography.yaml", "nature.yaml", "culture.yaml")
LANGS = ("ko", "en")
ABSENT = "-"


@dataclass(frozen=True)
class Attribute:
    """One column of a table and the templates that state it and ask for it; `plain` ones take no shared frame."""

    name: str
    label: dict[str, str]
    wh: dict[str, str]
    unit: dict[str, str]
    say: dict[str, list[str]]
    ask: dict[str, list[str]]
    reverse: dict[str, str]
    plain: bool


@dataclass(frozen=True)
class Kind:
    """One table: what its rows are called, how they are defined, grouped and compared."""

    name: str
    noun: dict[str, str]
    nouns: str
    article: str
    infobox: dict[str, str]
    group: str
    member: dict[str, str]
    define: dict[str, list[str]]
    more: dict[str, Any]
    attributes: dict[str, Attribute]


@dataclass(frozen=True)
class Entity:
    """One row; `ambiguous` when another table has the same name in either language."""

    kind: Kind
    row: dict[str, str] = field(hash=False, compare=False)
    key: str
    ambiguous: bool = False

    def name(self, lang: str) -> str:
        """Returns the name as it stands inside a sentence."""
        name = self.row[f"name_{lang}"]
        return f"{self.kind.article} {name}" if lang == "en" and self.kind.article else name

    def title(self, lang: str) -> str:
        """Returns the title of the entity's article, with the kind in brackets when the name is not unique."""
        name = self.row[f"name_{lang}"].removeprefix("the ")
        noun = self.kind.noun[lang]
        return f"{name[:1].upper()}{name[1:]}" + (f" ({noun})" if self.ambiguous else "")

    def value(self, attribute: str, lang: str) -> str | None:
        """Returns the attribute with its unit, None where the table leaves it out."""
        raw = self.row.get(f"{attribute}_{lang}", self.row.get(attribute, ABSENT))
        return None if raw == ABSENT else raw + self.kind.attributes[attribute].unit[lang]

    @property
    def known(self) -> list[str]:
        """The names of the attributes that the table states."""
        return [name for name in self.kind.attributes if self.value(name, "en") is not None]


@dataclass(frozen=True)
class Facts:
    """All kinds and entities, and the shared sentence frames."""

    kinds: dict[str, Kind]
    entities: list[Entity]
    frames: dict[str, dict[str, Any]]

    @cached_property
    def groups(self) -> dict[tuple[str, str], list[Entity]]:
        """(kind, English value of its grouping attribute) -> members, of groups with at least four."""
        found: dict[tuple[str, str], list[Entity]] = {}
        for entity in self.entities:
            if value := entity.value(entity.kind.group, "en"):
                found.setdefault((entity.kind.name, value), []).append(entity)
        return {key: members for key, members in found.items() if len(members) >= 4}

    def peers(self, entity: Entity) -> list[Entity]:
        """Returns the other members of the entity's group, none for a small group."""
        value = entity.value(entity.kind.group, "en")
        return [e for e in self.groups.get((entity.kind.name, str(value)), []) if e.key != entity.key]

    def of_kind(self, kind: str) -> list[Entity]:
        """Returns the entities of one table, in its order."""
        return [entity for entity in self.entities if entity.kind.name == kind]


def read_table(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a TSV file with a header.

    Raises:
        CorpusError: a row has too few, too many or empty cells; `-` stands for what is left out.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    for number, row in enumerate(rows, start=2):
        cells = list(row.values())
        if None in row or not all(isinstance(cell, str) and cell.strip() for cell in cells):
            raise CorpusError(
                f"{path} line {number} holds {cells}; every column needs a value; write - to leave one out"
            )
    return rows


def load_facts(folder: Path = HERE, rows: int | None = None) -> Facts:
    """Reads `templates/*.yaml` and `facts/*.tsv` of the sample's folder; at most `rows` a table, evenly spaced."""
    specs: dict[str, Any] = {}
    for name in TEMPLATES:
        specs |= yaml.safe_load((folder / "templates" / name).read_text(encoding="utf-8"))
    frames = yaml.safe_load((folder / "templates" / "frames.yaml").read_text(encoding="utf-8"))
    kinds = {name: _kind(name, spec) for name, spec in specs.items()}
    entities = [
        Entity(kind, row, f"{kind.name}:{row['name_en']}")
        for kind in kinds.values()
        for row in _spaced(read_table(folder / "facts" / f"{kind.name}.tsv"), rows)
    ]
    names = Counter(_folded(e, lang) for e in entities for lang in LANGS)
    unsure = {e.key for e in entities if any(names[_folded(e, lang)] > 1 for lang in LANGS)}
    return Facts(kinds, [replace(e, ambiguous=e.key in unsure) for e in entities], frames)


def _spaced(table: list[dict[str, str]], rows: int | None) -> list[dict[str, str]]:
    """Returns `rows` of the table over its whole length, as neighbours are alike; all when there are fewer."""
    if rows is None or rows >= len(table):
        return table
    return [table[number * len(table) // rows] for number in range(rows)]


def _folded(entity: Entity, lang: str) -> str:
    return entity.row[f"name_{lang}"].removeprefix("the ").lower()


def _kind(name: str, spec: dict[str, Any]) -> Kind:
    return Kind(
        name=name,
        noun={"ko": spec["noun_ko"], "en": spec["noun_en"][0]},
        nouns=spec["noun_en"][1],
        article=spec.get("article", ""),
        infobox=dict(zip(LANGS, spec["infobox"], strict=True)),
        group=spec["group"],
        member={lang: spec[f"member_{lang}"] for lang in LANGS},
        define={lang: spec[f"define_{lang}"] for lang in LANGS},
        more=spec.get("more", {}),
        attributes={key: _attribute(key, value) for key, value in spec["attributes"].items()},
    )


def _attribute(name: str, spec: dict[str, Any]) -> Attribute:
    return Attribute(
        name=name,
        label=dict(zip(LANGS, spec["label"], strict=True)),
        wh=dict(zip(LANGS, spec["wh"], strict=True)),
        unit=dict(zip(LANGS, spec.get("unit", ["", ""]), strict=True)),
        say={lang: spec[f"say_{lang}"] for lang in LANGS},
        ask={lang: spec.get(f"ask_{lang}", []) for lang in LANGS},
        reverse=dict(zip(LANGS, spec.get("reverse", []), strict=False)),
        plain=spec.get("plain", False),
    )
