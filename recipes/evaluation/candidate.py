"""A model under evaluation: its answers, and its row of the table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from data_prep.dialogue.chat_template import ChatTemplate
from data_prep.document import read_documents
from data_prep.tokens.tokenizer import Tokenizer
from recipes.evaluation.generate import Generator
from recipes.evaluation.scoring import (
    bits_per_byte,
    exactly_matches,
    in_chat_form,
    is_korean,
    over_ranks,
    repeats,
)
from recipes.evaluation.tasks import SPOKEN, Task, choices_right


@dataclass(frozen=True)
class Candidate:
    """A model ready to be scored."""

    model: nn.Module
    tokenizer: Tokenizer
    template: ChatTemplate


@dataclass(frozen=True)
class Limits:
    """How much is computed: tokens a window of text, tokens an answer, and sequences at once.

    `stride`: tokens between the starts of two windows; None: they do not overlap.
    """

    seq_len: int
    max_new_tokens: int
    batch: int
    stride: int | None = None


def encoded(folder: Path, tokenizer: Tokenizer) -> Iterator[tuple[list[int], int]]:
    """Yields the ids (BOS first) and the UTF-8 length of every document."""
    for document in read_documents(folder):
        yield [tokenizer.bos_id, *tokenizer.encode(document.text)], len(document.text.encode())


def answers(candidate: Candidate, rows: Sequence[dict[str, Any]], limits: Limits) -> list[tuple[str, bool]]:
    """Returns each row's answer, special tokens shown, and whether it ended with the end of turn.

    Every rank must call it; they share the rows, and which are computed together does not depend on their number.
    """
    prompts = [candidate.template.prompt(row["messages"]) for row in rows]
    ends = candidate.template.end_of_turn
    end_of_turn = candidate.tokenizer.eos_id if ends is None else ends
    stops = [end_of_turn, candidate.tokenizer.eos_id]
    generator = Generator(candidate.model, limits.batch, max(map(len, prompts)) + limits.max_new_tokens)
    groups = [prompts[start : start + limits.batch] for start in range(0, len(prompts), limits.batch)]
    continued = over_ranks(groups, lambda group: generator.answer(group, stops, limits.max_new_tokens))
    results = []
    for ids in (ids for group in continued for ids in group):
        ended = bool(ids) and ids[-1] == end_of_turn
        text = candidate.tokenizer.decode(ids[:-1] if ids and ids[-1] in stops else ids, skip_special=False)
        results.append((text, ended))
    return results


def share(values: Sequence[bool]) -> float | None:
    """Returns the share of true values, None without any."""
    return sum(values) / len(values) if values else None


def score_text(candidate: Candidate, limits: Limits, folders: Mapping[str, str]) -> dict[str, float]:
    """Returns `bits_per_byte_LANG` for every language's folder of documents."""
    row = {}
    for lang, folder in folders.items():
        documents = encoded(Path(folder), candidate.tokenizer)
        row[f"bits_per_byte_{lang}"] = bits_per_byte(
            candidate.model, documents, limits.seq_len, limits.batch, limits.stride
        )
    return row


def score_choices(candidate: Candidate, tasks: Mapping[str, Task]) -> dict[str, float | None]:
    """Returns `task_NAME` of every multiple-choice task: the share answered right."""
    chosen = {name: task for name, task in tasks.items() if task.kind not in SPOKEN}
    return {f"task_{n}": share(choices_right(candidate.model, candidate.tokenizer, t)) for n, t in chosen.items()}


def score_answers(
    candidate: Candidate,
    limits: Limits,
    prompts: list[dict[str, Any]],
    questions: list[dict[str, Any]],
    tasks: Mapping[str, Task] | None = None,
) -> tuple[dict[str, float | None], list[str]]:
    """Returns form, language, repetition and exact match of the answers, and the answers to the prompts."""
    spoken = {name: task for name, task in (tasks or {}).items() if task.kind in SPOKEN}
    rows = [*prompts, *questions, *(row for task in spoken.values() for row in task.messages())]
    replies = iter(answers(candidate, rows, limits) if rows else [])
    open_replies = [next(replies) for _ in prompts]
    row: dict[str, float | None] = {}
    for kind, is_so in (("chat_form", in_chat_form), ("repetition", lambda text, ended: repeats(text))):
        for lang in sorted({p["lang"] for p in prompts}):
            of_lang = [reply for p, reply in zip(prompts, open_replies, strict=True) if p["lang"] == lang]
            row[f"{kind}_{lang}"] = share([is_so(*reply) for reply in of_lang])
    korean = [text for p, (text, _) in zip(prompts, open_replies, strict=True) if p["lang"] == "ko"]
    if prompts:
        row["answered_in_korean"] = share([is_korean(text) for text in korean])
    to_questions = [(q, *next(replies)) for q in questions]
    right = [(q["lang"], ended and exactly_matches(text, q["answers"])) for q, text, ended in to_questions]
    if right:
        row["exact_match"] = share([value for _, value in right])
    for lang in sorted({lang for lang, _ in right}):
        row[f"exact_match_{lang}"] = share([value for one, value in right if one == lang])
    for name, task in spoken.items():
        row[f"task_{name}"] = share([task.is_right(n, next(replies)[0]) for n in range(len(task.examples))])
    return row, [text for text, _ in open_replies]
