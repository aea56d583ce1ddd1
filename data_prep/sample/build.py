"""The command `python -m data_prep sample`: writes the sample's dumps, dialogues and held-out questions."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from data_prep.document import CorpusError, read_jsonl, write_jsonl
from data_prep.lineage import write_manifest
from data_prep.sample.arithmetic import arithmetic_dialogues
from data_prep.sample.articles import compared, comparison_article, generated_pages
from data_prep.sample.dialogues import as_pairs, generated_dialogues
from data_prep.sample.facts import HERE, LANGS, Facts, load_facts
from data_prep.sample.mediawiki import Page, is_article, read_pages, write_dump
from data_prep.sample.questions import choose_held, held_facts, prompt_rows, question_rows, untold

HELD_ARTICLES = 40
MIN_ROWS = 20
HELD_HAND_SHARE = 0.4  # of the hand-written text, at most
HELD_HAND_BYTES = 45_000


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand `sample`."""
    parser = subparsers.add_parser("sample", help="write the sample dumps and dialogues", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of every choice; the output depends on nothing else")
    parser.add_argument("--rows", type=int, metavar="N", help="use at most N rows of every table; all by default")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Builds the sample and prints its counts."""
    if args.rows is not None and args.rows < MIN_ROWS:
        raise CorpusError(
            f"--rows {args.rows} is too few to hold questions out; {MIN_ROWS} or more are needed; raise it"
        )
    counts = build(args.out, args.seed, args.rows)
    print(f"{args.out}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    return 0


def build(out: Path, seed: int, rows: int | None = None) -> dict[str, int]:
    """Writes the whole sample under `out` and returns its counts; `rows` limits every table.

    Raises:
        CorpusError: a shipped file is damaged, or two hand-written pages have one title.
    """
    facts = load_facts(rows=rows)
    hand = {lang: hand_pages(lang) for lang in LANGS}
    counts: dict[str, int] = {}
    for lang in LANGS:
        train, held = split_pages(facts, hand[lang], seed, lang)
        write_dump(out, f"{lang}wiki-sample", lang, train)
        write_dump(out, f"{lang}wiki-heldout", lang, held)
        counts |= {f"{lang}_pages": len(train), f"{lang}_heldout_pages": len(held)}
        counts[f"{lang}_articles"] = sum(is_article(page, lang) for page in train)
    counts |= write_dialogues(facts, {page.title for lang in LANGS for page in hand[lang]}, out, seed)
    inputs = {name: HERE / name for name in ("articles", "facts", "templates", "pairs.jsonl")}
    write_manifest(out, inputs, seed=seed, rows=rows, counts=counts)
    return counts


def hand_pages(lang: str) -> list[Page]:
    """Returns the hand-written pages of one language, files in name order.

    Raises:
        CorpusError: a title occurs twice.
    """
    pages = [page for path in sorted((HERE / "articles").glob(f"{lang}_*.wiki")) for page in read_pages(path)]
    titles = [page.title for page in pages]
    if twice := sorted({title for title in titles if titles.count(title) > 1}):
        raise CorpusError(
            f"{len(twice)} titles of {lang}_*.wiki occur twice: {twice[:5]}; each once; merge these pages"
        )
    return pages


def split_pages(facts: Facts, hand: list[Page], seed: int, lang: str) -> tuple[list[Page], list[Page]]:
    """Returns (training, held-out) pages in shuffled order.

    Held out are hand-written articles, then comparisons: their facts stand in other articles too. A hand-written
    page takes the place of a generated one with the same title, and is not held out then.
    """
    rng = Random(f"{seed}/split/{lang}")
    entities = {entity.title(lang) for entity in facts.entities}
    held = _held_hand([page for page in hand if page.title not in entities], lang, rng)
    taken = {page.title for page in hand}
    generated = [page for page in generated_pages(facts, seed, lang) if page.title not in taken]
    pairs = compared(facts, seed)
    titles = [comparison_article(facts, a, b, lang, Random(0)).title for a, b in pairs]
    chosen = set(titles[: max(0, HELD_ARTICLES - len(held))])
    held += [page for page in generated if page.title in chosen]
    out = {page.title for page in held}
    train = [page for page in [*hand, *generated] if page.title not in out]
    return rng.sample(train, len(train)), rng.sample(held, len(held))


def _held_hand(hand: list[Page], lang: str, rng: Random) -> list[Page]:
    articles = [page for page in hand if is_article(page, lang)]
    limit = min(HELD_HAND_BYTES, HELD_HAND_SHARE * sum(len(page.text.encode()) for page in articles))
    held: list[Page] = []
    size = 0
    for page in rng.sample(articles, len(articles)):
        length = len(page.text.encode())
        if len(held) < HELD_ARTICLES and size + length <= limit:
            held.append(page)
            size += length
    return held


def write_dialogues(facts: Facts, taken: set[str], out: Path, seed: int) -> dict[str, int]:
    """Writes `pairs.jsonl`, `questions.jsonl` and `prompts.jsonl` and returns their counts."""
    hand = list(read_jsonl(HERE / "pairs.jsonl"))
    chosen = choose_held(facts, seed, hand, taken)
    held, opened = held_facts(facts, chosen, seed)
    pairs = [
        *hand,
        *untold(as_pairs(generated_dialogues(facts, seed, held, _asked(hand)), "fact"), chosen),
        *as_pairs(arithmetic_dialogues(seed), "sum"),
    ]
    pairs = Random(f"{seed}/pairs").sample(pairs, len(pairs))
    questions = question_rows(facts, chosen, seed)
    prompts = prompt_rows(facts, opened, seed, _asked(pairs))
    return {
        "pairs": write_jsonl(out / "pairs.jsonl", pairs),
        "questions": write_jsonl(out / "questions.jsonl", questions),
        "prompts": write_jsonl(out / "prompts.jsonl", prompts),
    }


def _asked(pairs: Iterable[dict[str, Any]]) -> set[str]:
    return {turn for pair in pairs for lang in LANGS for turn in pair[lang][::2]}
