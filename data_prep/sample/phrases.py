"""Sentences and questions about one entity or one group, in either language."""

import string
from collections.abc import Callable
from typing import Any

from data_prep.sample.facts import Attribute, Entity, Facts, Kind
from data_prep.sample.words import Word, fill

Style = Callable[[str], str] | None


def fields_of(entity: Entity, lang: str, style: Style = None) -> dict[str, Any]:
    """Returns the template fields that hold for every sentence about the entity."""
    kind = entity.kind
    fields: dict[str, Any] = {name: Word(entity.value(name, lang) or "", lang, style) for name in entity.known}
    fields |= {"name": Word(entity.name(lang), lang), "noun": Word(kind.noun[lang], lang)}
    return fields | {"nouns": kind.nouns, "its": "the" if kind.name == "people" else "its"}


def attribute_fields(entity: Entity, attribute: str, lang: str, style: Style = None) -> dict[str, Any]:
    """Returns the fields of a sentence about one attribute: also `label`, `value` and the question word `wh`."""
    about = entity.kind.attributes[attribute]
    fields = fields_of(entity, lang, style)
    return fields | {
        "label": Word(about.label[lang], lang),
        "value": Word(entity.value(attribute, lang) or "", lang, style),
        "wh": about.wh[lang],
    }


def statements(facts: Facts, about: Attribute, lang: str) -> list[str]:
    """Returns every template that states the attribute, its own first."""
    return about.say[lang] + ([] if about.plain else facts.frames["say"][lang])


def named_statements(facts: Facts, about: Attribute, lang: str) -> list[str]:
    """Returns the templates that name the entity, so that they stand alone as an answer."""
    return [t for t in statements(facts, about, lang) if "{name" in t]


def questions(facts: Facts, about: Attribute, lang: str) -> list[str]:
    """Returns every template that asks for the attribute."""
    return about.ask[lang] + ([] if about.plain else facts.frames["ask"][lang])


def used_attributes(template: str, kind: Kind) -> frozenset[str]:
    """Returns the attributes whose values a template shows."""
    names = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    return frozenset(names & kind.attributes.keys())


def definitions(entity: Entity, lang: str) -> list[str]:
    """Returns the definition templates for which the table has every value."""
    return [t for t in entity.kind.define[lang] if used_attributes(t, entity.kind) <= set(entity.known)]


def answer(facts: Facts, entity: Entity, attribute: str, lang: str, variant: int = 0) -> str:
    """Returns one full-sentence answer in chat style; variant 0 is the plainest."""
    templates = named_statements(facts, entity.kind.attributes[attribute], lang)
    return fill(templates[variant % len(templates)], lang, attribute_fields(entity, attribute, lang), chat=True)


def member_phrase(kind: Kind, value: str, lang: str, style: Style = None) -> str:
    """Returns the phrase that tells a group's members apart, such as `in Asia`."""
    return kind.member[lang].format(value=Word(value, lang, style))


def group_fields(kind: Kind, value: str, members: list[Entity], lang: str, name_of: Callable) -> dict[str, Any]:
    """Returns the fields of a sentence about a group; members are `a`, `b`, `c`, and `name_of` renders each."""
    fields: dict[str, Any] = {key: name_of(entity) for key, entity in zip("abc", members, strict=False)}
    fields |= {"member": member_phrase(kind, value, lang), "noun": Word(kind.noun[lang], lang), "nouns": kind.nouns}
    return fields | {"count": len(members)}
