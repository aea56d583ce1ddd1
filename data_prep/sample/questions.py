"""What is held out of the dialogues: questions that only the articles answer, and open prompts."""

from random import Random
from typing import Any

from data_prep.document import CorpusError
from data_prep.sample.arithmetic import held_sums
from data_prep.sample.dialogues import Fact, about_question, question
from data_prep.sample.facts import HERE, LANGS, Entity, Facts, read_table
from data_prep.sample.phrases import attribute_fields, named_statements
from data_prep.sample.words import fill

QUESTIONS, OPEN_ENTITIES, SUMS = 60, 26, 20
_ASKED = {  # of every kind what few share and what many share, so that a weak model's score is not all or nothing
    "countries": ("capital", "continent", "language"),
    "states": ("capital", "region"),
    "korean_cities": ("province",),
    "mountains": ("continent", "height"),
    "rivers": ("continent", "mouth"),
    "elements": ("symbol", "state", "category"),
    "foods": ("ingredient", "country"),
    "people": ("birth", "field"),
    "inventions": ("inventor",),
    "books": ("author", "genre"),
    "animals": ("class", "diet"),
    "instruments": ("family", "origin"),
}


def choose_held(facts: Facts, seed: int, hand_pairs: list[dict[str, Any]], taken: set[str]) -> list[tuple[Entity, str]]:
    """Returns the (entity, attribute) of the held-out questions, kinds in turn.

    Args:
        facts: all tables.
        seed: of the choice.
        hand_pairs: hand-written dialogues; what they already tell is not chosen.
        taken: titles of hand-written pages, which replace the generated ones.

    Raises:
        CorpusError: the tables have too few facts to choose from.
    """
    rng = Random(f"{seed}/held")
    told = _texts(hand_pairs)
    pools: list[list[tuple[Entity, str]]] = []
    for kind, names in _ASKED.items():
        entities = [e for e in facts.of_kind(kind) if not e.ambiguous and not {e.title(x) for x in LANGS} & taken]
        pool = [(e, name) for e in entities if (name := rng.choice(names)) in e.known and not _is_told(e, name, told)]
        pools.append(rng.sample(pool, len(pool)))
    chosen = [pool[turn] for turn in range(max(map(len, pools))) for pool in pools if turn < len(pool)][:QUESTIONS]
    if len(chosen) < QUESTIONS:
        raise CorpusError(
            f"{len(chosen)} facts can be held out; {QUESTIONS} are needed; add rows to data_prep/sample/facts"
        )
    return chosen


def held_facts(facts: Facts, chosen: list[tuple[Entity, str]], seed: int) -> tuple[frozenset[Fact], list[Entity]]:
    """Returns every fact that no dialogue may use, and the entities of which no dialogue asks an open question."""
    busy = {entity.key for entity, _ in chosen}
    rest = [e for e in facts.entities if not e.ambiguous and e.key not in busy]
    opened = Random(f"{seed}/open").sample(rest, OPEN_ENTITIES)
    return frozenset({(e.key, name) for e, name in chosen} | {(e.key, "about") for e in opened}), opened


def untold(pairs: list[dict[str, Any]], chosen: list[tuple[Entity, str]]) -> list[dict[str, Any]]:
    """Returns the pairs that do not have a held-out entity and its value together, in whatever form."""
    kept = []
    for pair in pairs:
        texts = _texts([pair])
        if not any(_is_told(entity, name, texts) for entity, name in chosen):
            kept.append(pair)
    return kept


def question_rows(facts: Facts, chosen: list[tuple[Entity, str]], seed: int) -> list[dict[str, Any]]:
    """Returns the held-out questions of both languages with their accepted answers, sums last."""
    rng = Random(f"{seed}/questions")
    rows = []
    for number, (entity, name) in enumerate(chosen, start=1):
        for lang in LANGS:
            message = {"role": "user", "content": question(facts, entity, name, lang, rng.randrange(100))}
            answers = _answers(facts, entity, name, lang)
            rows.append({"id": f"fact-{number:03}-{lang}", "lang": lang, "messages": [message], "answers": answers})
    return rows + held_sums(seed, SUMS)


def prompt_rows(facts: Facts, opened: list[Entity], seed: int, asked: set[str]) -> list[dict[str, Any]]:
    """Returns open prompts of both languages; `asked` holds the training questions, which are left out."""
    rng = Random(f"{seed}/prompts")
    prompts = [(row["ko"], row["en"]) for row in read_table(HERE / "facts" / "prompts.tsv")]
    for entity in opened:
        variant = rng.randrange(100)
        prompts.append((about_question(facts, entity, "ko", variant), about_question(facts, entity, "en", variant)))
    rows = []
    for number, texts in enumerate(prompts, start=1):
        for lang, text in zip(LANGS, texts, strict=True):
            message = {"role": "user", "content": text}
            if text not in asked:
                rows.append({"id": f"open-{number:03}-{lang}", "lang": lang, "messages": [message], "answers": []})
    return rows


def _answers(facts: Facts, entity: Entity, name: str, lang: str) -> list[str]:
    fields = attribute_fields(entity, name, lang)
    about = entity.kind.attributes[name]
    full = [fill(t, lang, fields, chat=True) for t in named_statements(facts, about, lang)]
    value = str(entity.value(name, lang))
    short = [value, f"{value}입니다."] if lang == "ko" else [value, f"{value}.", f"It is {value}."]
    return list(dict.fromkeys([*full, *short, value.removeprefix("the ")]))


def _texts(pairs: list[dict[str, Any]]) -> list[str]:
    return ["\n".join(pair[lang]).lower() for pair in pairs for lang in LANGS]


def _is_told(entity: Entity, name: str, told: list[str]) -> bool:
    """Whether one of the texts has both the entity's name and the value."""
    for lang in LANGS:
        words = [entity.row[f"name_{lang}"], str(entity.value(name, lang))]
        shown, value = (word.removeprefix("the ").lower() for word in words)
        if any(shown in text and value in text for text in told):
            return True
    return False
