"""Encyclopedia articles in wikitext, rendered from the tables of facts by seeded choice."""

from collections.abc import Callable
from random import Random
from typing import Any

from data_prep.sample.facts import LANGS, Entity, Facts
from data_prep.sample.korean import particle
from data_prep.sample.mediawiki import Page
from data_prep.sample.phrases import (
    attribute_fields,
    definitions,
    fields_of,
    group_fields,
    member_phrase,
    named_statements,
    statements,
)
from data_prep.sample.words import Word, capitalise, fill

COMPARISONS = 160
REDIRECT_EVERY = 8
_REFS = {
    "ko": [
        "<ref>{{{{서적 인용|제목={title} 안내|출판사=[[국립 도서관]]|연도={year}}}}}</ref>",
        '<ref name="표">자료 표 {year}쪽.</ref>',
    ],
    "en": [
        "<ref>{{{{cite book|title=A Guide to {title}|publisher=Open Press|year={year}}}}}</ref>",
        "<ref>Table {year}.</ref>",
    ],
}
_CATEGORY = {"ko": "분류", "en": "Category"}


def generated_pages(facts: Facts, seed: int, lang: str) -> list[Page]:
    """Returns all generated pages of one language: articles, lists, comparisons, categories and redirects."""
    pages = [entity_article(facts, entity, lang, Random(f"{seed}/{lang}/{entity.key}")) for entity in facts.entities]
    for (kind, value), members in facts.groups.items():
        pages.append(list_article(facts, members, lang, Random(f"{seed}/{lang}/{kind}/{value}")))
        pages.append(_category_page(members[0], lang))
    for first, second in compared(facts, seed):
        pages.append(comparison_article(facts, first, second, lang, Random(f"{seed}/{lang}/{first.key}/{second.key}")))
    for entity in facts.entities[::REDIRECT_EVERY]:
        if not entity.ambiguous:
            pages.append(_redirect(entity, lang))
    return list({page.title: page for page in reversed(pages)}.values())[::-1]


def compared(facts: Facts, seed: int) -> list[tuple[Entity, Entity]]:
    """Returns the pairs of entities that have a comparison article, the same in both languages."""
    rng = Random(f"{seed}/compared")
    pool = {name: [e for e in facts.of_kind(name) if not e.ambiguous] for name in facts.kinds}
    pairs: dict[tuple[str, ...], tuple[Entity, Entity]] = {}
    while len(pairs) < COMPARISONS:
        first, second = rng.sample(pool[rng.choice(list(pool))], 2)
        pairs.setdefault(tuple(sorted((first.key, second.key))), (first, second))
    return list(pairs.values())


def entity_article(facts: Facts, entity: Entity, lang: str, rng: Random) -> Page:
    """Returns the entity's article: infobox, definition, every attribute, related entities, category."""
    style = _linker(entity.title(lang), rng)
    known = rng.sample(entity.known, len(entity.known))
    twice = {name: _statements(facts, entity, name, lang, rng, style) for name in known}
    stated = [first for first, _ in twice.values()]
    again = [twice[name][1] for name in rng.sample(known, len(known) // 2)]
    related = _related(facts, entity, lang, rng)
    see = (
        [other.title(lang) for other in rng.sample(peers, min(3, len(peers)))] if (peers := facts.peers(entity)) else []
    )
    cut = rng.randint(1, len(stated) - 1)
    body = [
        _infobox(entity, lang),
        " ".join([_lead(entity, lang, rng, style) + _reference(entity, lang, rng), *stated[:cut]]),
        *_section(facts, "facts", [*stated[cut:], *again], lang, rng),
        *_section(facts, "related", related, lang, rng),
        *_footer(facts, see, _group_title(entity, lang), lang),
    ]
    return Page(entity.title(lang), "\n".join(body))


def list_article(facts: Facts, members: list[Entity], lang: str, rng: Random) -> Page:
    """Returns an article about one group: one or two statements for each of up to 30 members."""
    title = _group_title(members[0], lang)
    shown = rng.sample(members, min(30, len(members)))
    kind = members[0].kind
    fields = group_fields(kind, str(members[0].value(kind.group, lang)), members, lang, lambda e: _linked(e, lang))
    lines = [fill(rng.choice(facts.frames["list_lead"][lang]), lang, fields)]
    for start in range(0, len(shown), 5):
        lines += ["", " ".join(_listed(facts, entity, lang, rng) for entity in shown[start : start + 5])]
    lines += _footer(facts, [m.title(lang) for m in shown[:3]], title, lang)
    return Page(title, "\n".join(lines))


def comparison_article(facts: Facts, first: Entity, second: Entity, lang: str, rng: Random) -> Page:
    """Returns an article that sets two entities of one kind side by side, attribute by attribute."""
    names = [first.name(lang), second.name(lang)]
    title = f"{names[0]}{particle(names[0], '과')} {names[1]}" if lang == "ko" else capitalise(" and ".join(names))
    fields = fields_of(first, lang) | {"a": _linked(first, lang), "b": _linked(second, lang)}
    lines = [fill(rng.choice(facts.frames["compare_lead"][lang]), lang, fields), ""]
    sentences = [_contrast(facts, first, second, name, lang, rng) for name in first.known if second.value(name, lang)]
    sentences += [order] if (order := order_sentence(first, second, lang)) else []
    lines.append(" ".join(s for s in rng.sample(sentences, len(sentences)) if s))
    for entity in (first, second):
        name = rng.choice(entity.known)
        lines += ["", f"== {capitalise(entity.name(lang))} ==", _listed(facts, entity, lang, rng)]
        lines[-1] += " " + _statements(facts, entity, name, lang, rng, None)[0]
    return Page(title, "\n".join([*lines, *_footer(facts, [], capitalise(first.kind.noun[lang]), lang)]))


def order_sentence(first: Entity, second: Entity, lang: str, chat: bool = False) -> str:
    """Returns the sentence that ranks two entities by their kind's number, empty where it has none or they tie."""
    more = first.kind.more
    values = [entity.row.get(more.get("attribute", ""), "-") for entity in (first, second)]
    if not more or "-" in values or values[0] == values[1]:
        return ""
    ahead = (int(values[0]) - int(values[1])) * more["sign"] > 0
    winner, loser = (first, second) if ahead else (second, first)
    template = f"{{a:이}} {{b}}보다 {more['ko']}." if lang == "ko" else f"{{a}} {more['en']} {{b}}."
    return fill(template, lang, {"a": Word(winner.name(lang), lang), "b": Word(loser.name(lang), lang)}, chat)


def _contrast(facts: Facts, first: Entity, second: Entity, name: str, lang: str, rng: Random) -> str:
    about = first.kind.attributes[name]
    if about.plain:
        return ""
    one, two = str(first.value(name, lang)), str(second.value(name, lang))
    fields = attribute_fields(first, name, lang) | {
        "a": Word(first.name(lang), lang),
        "b": Word(second.name(lang), lang),
    }
    fields |= {"member": member_phrase(first.kind, one, lang), "other": Word(two, lang)}
    frames = facts.frames["different" if one != two else "same"][lang]
    if one == two and name != first.kind.group:
        frames = frames[1:]
    return fill(rng.choice(frames), lang, fields)


def _listed(facts: Facts, entity: Entity, lang: str, rng: Random) -> str:
    name = rng.choice([n for n in entity.known if n != entity.kind.group])
    fields = attribute_fields(entity, name, lang) | {"name": _linked(entity, lang)}
    return fill(rng.choice(named_statements(facts, entity.kind.attributes[name], lang)), lang, fields)


def _statements(
    facts: Facts, entity: Entity, name: str, lang: str, rng: Random, style: Callable[[str], str] | None
) -> list[str]:
    """Returns two different statements of one attribute; its own templates come up more often than shared frames."""
    about = entity.kind.attributes[name]
    shared = statements(facts, about, lang)[len(about.say[lang]) :]
    chosen = rng.sample([*about.say[lang], *rng.sample(shared, min(3, len(shared)))], 2)
    return [fill(frame, lang, attribute_fields(entity, name, lang, style)) for frame in chosen]


def _lead(entity: Entity, lang: str, rng: Random, style: Callable[[str], str]) -> str:
    other = LANGS[1 - LANGS.index(lang)]
    gloss = entity.row[f"name_{other}"].removeprefix("the ")
    shown = f"({{{{llang|en|{gloss}}}}})" if lang == "ko" else f" ({{{{lang-ko|{gloss}}}}})"
    template = rng.choice(definitions(entity, lang))
    bold = Word(entity.name(lang), lang, lambda text: f"'''{text}'''{'' if '》' in template else shown}")
    return fill(template, lang, fields_of(entity, lang, style) | {"name": bold})


def _related(facts: Facts, entity: Entity, lang: str, rng: Random) -> list[str]:
    peers = facts.peers(entity)
    sentences = []
    if len(peers) >= 3:
        value = str(entity.value(entity.kind.group, lang))
        fields = fields_of(entity, lang)
        fields |= group_fields(entity.kind, value, rng.sample(peers, 3), lang, lambda e: _linked(e, lang))
        sentences.append(fill(rng.choice(facts.frames["related"][lang]), lang, fields))
    others = [e for e in facts.of_kind(entity.kind.name) if e.key != entity.key]
    sentences += [order_sentence(entity, other, lang) for other in rng.sample(others, 2)]
    return [s for s in sentences if s]


def _section(facts: Facts, name: str, sentences: list[str], lang: str, rng: Random) -> list[str]:
    if not sentences:
        return []
    heading = rng.choice(facts.frames["heads"][lang][name])
    return (["", f"== {heading} =="] if rng.random() < 0.5 else [""]) + [" ".join(sentences)]


def _footer(facts: Facts, see: list[str], category: str, lang: str) -> list[str]:
    heads = facts.frames["heads"][lang]
    lines = ["", f"== {heads['see']} ==", *(f"* [[{title}]]" for title in see)] if see else []
    lines += ["", f"== {heads['notes']} ==", "{{각주}}" if lang == "ko" else "{{reflist}}"]
    return [*lines, "", f"[[{_CATEGORY[lang]}:{category}]]"]


def _infobox(entity: Entity, lang: str) -> str:
    labels = entity.kind.attributes
    rows = [f"| {'이름' if lang == 'ko' else 'name'} = {entity.row[f'name_{lang}']}"]
    rows += [f"| {labels[name].label[lang]} = {entity.value(name, lang)}" for name in entity.known]
    return "\n".join([f"{{{{{entity.kind.infobox[lang]}", *rows, "}}"])


def _reference(entity: Entity, lang: str, rng: Random) -> str:
    template = rng.choice([*_REFS[lang], ""])
    return template.format(title=entity.row[f"name_{lang}"], year=rng.randint(1990, 2019))


def _group_title(entity: Entity, lang: str) -> str:
    value: Any = entity.value(entity.kind.group, lang)
    if value is None:
        return capitalise(entity.kind.noun[lang])
    member = member_phrase(entity.kind, value, lang)
    return f"{member} {entity.kind.noun[lang]}" if lang == "ko" else capitalise(f"{entity.kind.nouns} {member}")


def _category_page(entity: Entity, lang: str) -> Page:
    prefix = _CATEGORY[lang]
    return Page(f"{prefix}:{_group_title(entity, lang)}", f"[[{prefix}:{capitalise(entity.kind.noun[lang])}]]")


def _redirect(entity: Entity, lang: str) -> Page:
    word = "#넘겨주기" if lang == "ko" else "#REDIRECT"
    other = capitalise(entity.row[f"name_{'en' if lang == 'ko' else 'ko'}"].removeprefix("the "))
    return Page(other, f"{word} [[{entity.title(lang)}]]")


def _linked(entity: Entity, lang: str) -> Word:
    def style(text: str) -> str:
        return f"[[{text}]]" if text == entity.title(lang) else f"[[{entity.title(lang)}|{text}]]"

    return Word(entity.name(lang), lang, style)


def _linker(title: str, rng: Random) -> Callable[[str], str]:
    """Returns a style that links a value's first mention, numbers and the page's own title excepted."""
    seen = {title}

    def style(text: str) -> str:
        if text in seen or text[:1].isdigit() or rng.random() < 0.3:
            return text
        seen.add(text)
        return f"[[{text}]]"

    return style
