"""A model under evaluation: its answers, and its row of the table."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from data_prep.dialogue.chat_template import ChatTemplate
from data_prep.document import read_documents
from data_prep.tokens.tokenizer import Tokenizer
from recipes.evaluation.generate import Generator
from recipes.evaluation.scoring import bits_per_byte, exactly_matches, in_chat_form, is_korean


@dataclass(frozen=True)
class Candidate:
    """A model ready to be scored."""

    model: nn.Module
    tokenizer: Tokenizer
    template: ChatTemplate


@dataclass(frozen=True)
class Limits:
    """How much is computed: tokens a window of text, tokens an answer, and sequences at once."""

    seq_len: int
    max_new_tokens: int
    batch: int


def encoded(folder: Path, tokenizer: Tokenizer) -> Iterator[tuple[list[int], int]]:
    """Yields the ids (BOS first) and the UTF-8 length of every document."""
    for document in read_documents(folder):
        yield [tokenizer.bos_id, *tokenizer.encode(document.text)], len(document.text.encode())


def answers(candidate: Candidate, rows: list[dict[str, Any]], limits: Limits) -> list[tuple[str, bool]]:
    """Returns each row's answer, special tokens shown, and whether it ended with the end of turn."""
    prompts = [candidate.template.prompt(row["messages"]) for row in rows]
    ends = candidate.template.end_of_turn
    end_of_turn = candidate.tokenizer.eos_id if ends is None else ends
    stops = [end_of_turn, candidate.tokenizer.eos_id]
    generator = Generator(candidate.model, limits.batch, max(map(len, prompts)) + limits.max_new_tokens)
    results = []
    for ids in generator.answer(prompts, stops, limits.max_new_tokens):
        ended = bool(ids) and ids[-1] == end_of_turn
        text = candidate.tokenizer.decode(ids[:-1] if ids and ids[-1] in stops else ids, skip_special=False)
        results.append((text, ended))
    return results


def share(values: list[bool]) -> float | None:
    """Returns the share of true values, None without any."""
    return sum(values) / len(values) if values else None


def score_text(candidate: Candidate, limits: Limits, folders: dict[str, str]) -> dict[str, float]:
    """Returns `bits_per_byte_LANG` for every language's folder of documents."""
    row = {}
    for lang, folder in folders.items():
        documents = encoded(Path(folder), candidate.tokenizer)
        row[f"bits_per_byte_{lang}"] = bits_per_byte(candidate.model, documents, limits.seq_len, limits.batch)
    return row


def score_answers(
    candidate: Candidate, limits: Limits, prompts: list[dict[str, Any]], questions: list[dict[str, Any]]
) -> tuple[dict[str, float | None], list[str]]:
    """Returns form, language and exact match of the answers, and the answers to the prompts."""
    row: dict[str, float | None] = {}
    replies = answers(candidate, [*prompts, *questions], limits) if prompts or questions else []
    open_replies, replies_to_questions = replies[: len(prompts)], replies[len(prompts) :]
    for lang in sorted({p["lang"] for p in prompts}):
        row[f"chat_form_{lang}"] = share(
            [in_chat_form(*r) for p, r in zip(prompts, open_replies, strict=True) if p["lang"] == lang]
        )
    korean = [text for p, (text, _) in zip(prompts, open_replies, strict=True) if p["lang"] == "ko"]
    row["answered_in_korean"] = share([is_korean(text) for text in korean])
    right = [
        (q["lang"], ended and exactly_matches(text, q["answers"]))
        for q, (text, ended) in zip(questions, replies_to_questions, strict=True)
    ]
    row["exact_match"] = share([value for _, value in right])
    for lang in sorted({lang for lang, _ in right}):
        row[f"exact_match_{lang}"] = share([value for one, value in right if one == lang])
    return row, [text for text, _ in open_replies]
