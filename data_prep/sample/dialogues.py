"""Korean-English dialogues about the facts: each pair says the same in both languages."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from data_prep.sample.articles import order_sentence
from data_prep.sample.facts import LANGS, Entity, Facts
from data_prep.sample.korean import particle
from data_prep.sample.phrases import (
    answer,
    attribute_fields,
    definitions,
    fields_of,
    group_fields,
    named_statements,
    questions,
    used_attributes,
)
from data_prep.sample.words import Word, capitalise, fill

Turns = dict[str, list[str]]
Fact = tuple[str, str]  # (entity key, attribute); the attribute "about" stands for the open question
DIRECT_SHARE, EXTRA_SHARE = 0.7, 0.12


@dataclass(frozen=True)
class Dialogue:
    """The turns in both languages and the facts they need."""

    turns: Turns
    facts: frozenset[Fact]


def generated_dialogues(facts: Facts, seed: int, held: frozenset[Fact], asked_before: set[str]) -> list[Dialogue]:
    """Returns the dialogues that use no held-out fact and open with no question twice or of `asked_before`."""
    rng = Random(f"{seed}/dialogues")
    seen = set(asked_before)
    kept = []
    for dialogue in _candidates(facts, rng):
        asked = {dialogue.turns[lang][0] for lang in LANGS}
        if dialogue.facts & held or asked & seen:
            continue
        seen |= asked
        kept.append(dialogue)
    return kept


def question(facts: Facts, entity: Entity, attribute: str, lang: str, variant: int) -> str:
    """Returns a question for one attribute; `variant` chooses among the wordings."""
    templates = questions(facts, entity.kind.attributes[attribute], lang)
    return fill(templates[variant % len(templates)], lang, attribute_fields(entity, attribute, lang))


def about_question(facts: Facts, entity: Entity, lang: str, variant: int) -> str:
    """Returns an open question about the entity."""
    templates = facts.frames["about"][lang]
    return fill(templates[variant % len(templates)], lang, fields_of(entity, lang))


def _candidates(facts: Facts, rng: Random) -> Iterator[Dialogue]:
    for entity in facts.entities:
        if entity.ambiguous:
            continue
        yield _about(facts, entity, rng)
        for name in entity.known:
            if rng.random() < DIRECT_SHARE:
                yield _direct(facts, entity, name, rng)
            if entity.kind.attributes[name].plain:
                continue
            makers = (_check, _either, _follow_up, _other_entity)
            for make in (m for m in makers if rng.random() < EXTRA_SHARE):
                yield from make(facts, entity, name, rng)
        if rng.random() < 0.4:
            yield from _ranking(facts, entity, rng)
    yield from _reversed(facts)
    yield from _lists(facts, rng)


def _about(facts: Facts, entity: Entity, rng: Random) -> Dialogue:
    turns: Turns = {}
    used: set[Fact] = {(entity.key, "about")}
    variant = rng.randrange(100)
    chosen = rng.choice(definitions(entity, "en"))
    shown = used_attributes(chosen, entity.kind)
    for lang in LANGS:
        alike = [t for t in definitions(entity, lang) if used_attributes(t, entity.kind) == shown]
        template = rng.choice(alike or definitions(entity, lang))
        used |= {(entity.key, name) for name in used_attributes(template, entity.kind)}
        said = fill(template, lang, fields_of(entity, lang), chat=True)
        turns[lang] = [about_question(facts, entity, lang, variant), said]
    return Dialogue(turns, frozenset(used))


def _direct(facts: Facts, entity: Entity, name: str, rng: Random) -> Dialogue:
    variant = 0 if rng.random() < 0.8 else 1
    turns = {
        lang: [question(facts, entity, name, lang, rng.randrange(100)), answer(facts, entity, name, lang, variant)]
        for lang in LANGS
    }
    return Dialogue(turns, frozenset({(entity.key, name)}))


def _other_value(facts: Facts, entity: Entity, name: str, rng: Random) -> Entity | None:
    """Returns an entity whose value is another one and shares no word with this one's, so that only one is right."""
    own = {lang: _words(entity, name, lang) for lang in LANGS}
    others = [e for e in facts.of_kind(entity.kind.name) if name in e.known]
    others = [e for e in others if not any(own[lang] & _words(e, name, lang) for lang in LANGS)]
    return rng.choice(others) if others else None


def _words(entity: Entity, name: str, lang: str) -> set[str]:
    unit = entity.kind.attributes[name].unit[lang]
    words = str(entity.value(name, lang)).lower().removesuffix(unit).split()
    return {word.rstrip("과와") for word in words} - {"the", "a", "an", "and", "of", "in", "on", "by"}


def _check(facts: Facts, entity: Entity, name: str, rng: Random) -> Iterator[Dialogue]:
    other = _other_value(facts, entity, name, rng) if rng.random() < 0.5 else entity
    if other is None:
        return
    turns: Turns = {}
    for lang, (yes, no) in {"ko": ("네", "아니요"), "en": ("Yes", "No")}.items():
        fields = attribute_fields(entity, name, lang)
        fields |= {"value": attribute_fields(other, name, lang)["value"]}
        asked = fill(rng.choice(facts.frames["check"][lang]), lang, fields)
        said = answer(facts, entity, name, lang)
        if lang == "en":  # after "Yes, " the sentence keeps its small first letter
            said = named_statements(facts, entity.kind.attributes[name], lang)[0].format_map(
                attribute_fields(entity, name, lang)
            )
        turns[lang] = [asked, f"{yes if other is entity else no}, {said}"]
    yield Dialogue(turns, frozenset({(entity.key, name)}))


def _either(facts: Facts, entity: Entity, name: str, rng: Random) -> Iterator[Dialogue]:
    other = _other_value(facts, entity, name, rng)
    if other is None:
        return
    swap, variant = rng.random() < 0.5, rng.randrange(100)
    turns: Turns = {}
    for lang in LANGS:
        fields = attribute_fields(entity, name, lang)
        values = [fields["value"], attribute_fields(other, name, lang)["value"]]
        fields |= dict(zip(("other", "value") if swap else ("value", "other"), values, strict=True))
        templates = facts.frames["either"][lang]
        asked = fill(templates[variant % len(templates)], lang, fields)
        turns[lang] = [asked, answer(facts, entity, name, lang)]
    yield Dialogue(turns, frozenset({(entity.key, name)}))


def _follow_up(facts: Facts, entity: Entity, name: str, rng: Random) -> Iterator[Dialogue]:
    second = rng.choice([n for n in entity.known if n != name])
    if entity.kind.attributes[second].plain:
        return
    turns: Turns = {}
    for lang in LANGS:
        asked = fill(rng.choice(facts.frames["follow"][lang]), lang, attribute_fields(entity, second, lang))
        opening = [question(facts, entity, name, lang, rng.randrange(100)), answer(facts, entity, name, lang)]
        turns[lang] = [*opening, asked, answer(facts, entity, second, lang)]
    yield Dialogue(turns, frozenset({(entity.key, name), (entity.key, second)}))


def _other_entity(facts: Facts, entity: Entity, name: str, rng: Random) -> Iterator[Dialogue]:
    others = [e for e in facts.of_kind(entity.kind.name) if e != entity and not e.ambiguous and name in e.known]
    other = rng.choice(others)
    turns: Turns = {}
    for lang in LANGS:
        asked = fill(rng.choice(facts.frames["follow_other"][lang]), lang, fields_of(other, lang))
        opening = [question(facts, entity, name, lang, rng.randrange(100)), answer(facts, entity, name, lang)]
        turns[lang] = [*opening, asked, answer(facts, other, name, lang)]
    yield Dialogue(turns, frozenset({(entity.key, name), (other.key, name)}))


def _ranking(facts: Facts, entity: Entity, rng: Random) -> Iterator[Dialogue]:
    other = rng.choice([e for e in facts.of_kind(entity.kind.name) if e != entity])
    if other.ambiguous or not order_sentence(entity, other, "en"):
        return
    more = entity.kind.more
    a, b = entity.name("ko"), other.name("ko")
    turns = {
        "ko": [f"{a}{particle(a, '과')} {b} 가운데 {more['ask_ko']}?", order_sentence(entity, other, "ko", chat=True)],
        "en": [f"{more['ask_en']}, {entity.name('en')} or {other.name('en')}?", order_sentence(entity, other, "en")],
    }
    yield Dialogue(turns, frozenset({(entity.key, more["attribute"]), (other.key, more["attribute"])}))


def _reversed(facts: Facts) -> Iterator[Dialogue]:
    for entity in (e for e in facts.entities if not e.ambiguous):
        for name in (n for n in entity.known if entity.kind.attributes[n].reverse):
            about = entity.kind.attributes[name]
            values = [e.value(name, lang) for e in facts.of_kind(entity.kind.name) for lang in LANGS]
            if any(values.count(entity.value(name, lang)) > (2 if _same(entity, name) else 1) for lang in LANGS):
                continue
            turns = {
                lang: [
                    fill(about.reverse[lang], lang, {"value": Word(str(entity.value(name, lang)), lang)}),
                    answer(facts, entity, name, lang),
                ]
                for lang in LANGS
            }
            yield Dialogue(turns, frozenset({(entity.key, name)}))


def _same(entity: Entity, name: str) -> bool:
    return entity.value(name, "ko") == entity.value(name, "en")


def _lists(facts: Facts, rng: Random) -> Iterator[Dialogue]:
    for (_, _), members in facts.groups.items():
        clear = [e for e in members if not e.ambiguous]
        shown, kind = rng.sample(clear, 3), members[0].kind
        used = frozenset((e.key, kind.group) for e in shown)
        for variant in range(3):
            turns: Turns = {}
            for lang in LANGS:
                fields: dict[str, Any] = _group(shown, lang)
                asked = fill(facts.frames["list_ask"][lang][variant], lang, fields)
                turns[lang] = [asked, fill(facts.frames["list_answer"][lang], lang, fields, chat=True)]
            yield Dialogue(turns, used)


def _group(members: list[Entity], lang: str) -> dict[str, Any]:
    kind = members[0].kind
    value = str(members[0].value(kind.group, lang))
    return group_fields(kind, value, members, lang, lambda e: Word(e.name(lang), lang))


def as_pairs(dialogues: Iterable[Dialogue], prefix: str) -> list[dict[str, Any]]:
    """Returns the rows `{"id", "en", "ko"}` of the dialogues, sentences capitalised."""
    return [
        {"id": f"{prefix}-{number:05}", "en": [capitalise(t) for t in d.turns["en"]], "ko": d.turns["ko"]}
        for number, d in enumerate(dialogues, start=1)
    ]
