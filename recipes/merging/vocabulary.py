"""Rows of the embedding and the head: which token each belongs to, and which rows of several models are added."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from recipes.merging.errors import MergeError
from recipes.merging.names import EMBEDDINGS, LanguagePart

TOKENIZER_MODELS = ("tokenizer.model", "original/tokenizer.model")
ABSENT = -1
Tokens = list[str | None]  # by id; None where the tokenizer has no token, as for padding rows
Rows = tuple[np.ndarray, np.ndarray]  # for each row of the target its row in plus and minus, or ABSENT; int64


def tokens_of(folder: Path) -> Tokens | None:
    """Returns the tokens of a model directory; None without a tokenizer.json or a sentencepiece model.

    The strings of both formats are the same where one was converted from the other, as for Llama-2.

    Raises:
        MergeError: the file is damaged.
    """
    ids: dict[str, int] = {}
    content = tokenizer_json(folder)
    if content is not None:
        vocab = content["model"].get("vocab", {})
        ids = dict(vocab) if isinstance(vocab, dict) else {piece: id_ for id_, (piece, _) in enumerate(vocab)}
        ids |= {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    elif (model := sentencepiece_model(folder)) is not None:
        ids = {model.id_to_piece(id_): id_ for id_ in range(model.get_piece_size())}
        if (folder / "added_tokens.json").is_file():
            ids |= json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
    if not ids:
        return None
    tokens: Tokens = [None] * (max(ids.values()) + 1)
    for token, id_ in ids.items():
        tokens[id_] = token
    return tokens


def tokenizer_json(folder: Path) -> dict[str, Any] | None:
    """Returns the parsed tokenizer.json, None without the file.

    Raises:
        MergeError: it is no tokenizer file.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        content["model"].get("vocab")
        _ = [(token["content"], token["id"]) for token in content.get("added_tokens") or []]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MergeError(
            f"{file} is no tokenizer file: {error!r}; one with a model is expected; copy it again"
        ) from None
    return dict(content)


def sentencepiece_model(folder: Path) -> sentencepiece.SentencePieceProcessor | None:
    """Returns the directory's sentencepiece model; None without one (Llama-3's tokenizer.model is none)."""
    for name in TOKENIZER_MODELS:
        if (folder / name).is_file():
            try:
                return sentencepiece.SentencePieceProcessor(model_proto=(folder / name).read_bytes())
            except RuntimeError:  # a list of tiktoken ranks
                return None
    return None


def special_ids(folder: Path) -> dict[str, int]:
    """Returns the special tokens of tokenizer.json with their ids; none without the file."""
    added = (tokenizer_json(folder) or {}).get("added_tokens") or []
    return {token["content"]: token["id"] for token in added if token.get("special", True)}


def num_rows(part: LanguagePart) -> int:
    """Returns the rows of the embedding, 0 without one."""
    entry = part.tensors.get(EMBEDDINGS)
    return entry.shape[0] if entry is not None and entry.shape else 0


def matched_rows(rule: str, target: LanguagePart, plus: LanguagePart, minus: LanguagePart) -> Rows | None:
    """Returns which rows of plus and minus belong to each row of the target; None where all are the same.

    Args:
        rule: keep_target_rows or by_token (see `MergeConfig.vocabulary`); the others match no rows.
        target: the model the vector is added to.
        plus: the instruction-tuned model.
        minus: its base.
    """
    if rule not in ("keep_target_rows", "by_token"):
        return None
    lists = [_padded(part) for part in (target, plus, minus)]
    if rule == "by_token":
        ids = [{token: id_ for id_, token in enumerate(tokens) if token is not None} for tokens in lists[1:]]
        both = [token if token is not None and all(token in one for one in ids) else None for token in lists[0]]
        plus_rows, minus_rows = ([ABSENT if t is None else one[t] for t in both] for one in ids)
        return np.array(plus_rows, dtype=np.int64), np.array(minus_rows, dtype=np.int64)
    count = min(map(len, lists))
    same = [a == b == c for a, b, c in zip(*lists, strict=False)]
    rows = np.full(len(lists[0]), ABSENT, dtype=np.int64)
    rows[:count] = np.where(same, np.arange(count), ABSENT)
    return rows, rows


def row_problems(rule: str, one: LanguagePart, other: LanguagePart) -> Iterator[str]:
    """Yields what keeps rows of two models from being matched by the rule."""
    lists = [tokens_of(part.model.path) for part in (one, other)]
    paths = [part.model.path for part in (one, other)]
    for tokens, path in zip(lists, paths, strict=True):
        if tokens is None:
            yield (
                f"{path} has neither tokenizer.json nor a sentencepiece tokenizer.model; vocabulary={rule} compares "
                "tokens; add the file"
            )
    if lists[0] is None or lists[1] is None:
        return
    if rule == "by_token":
        shared, smaller = len({*lists[0]} & {*lists[1]} - {None}), min(len(lists[0]), len(lists[1]))
        if shared * 2 < smaller:
            yield (
                f"{paths[0]} and {paths[1]} share {shared} of {smaller} tokens; at least half are "
                "expected of tokenizers of one family; use vocabulary=exclude_embeddings"
            )
        return
    pairs = zip(*lists, strict=False)
    differing = [id_ for id_, (a, b) in enumerate(pairs) if a is not None and b is not None and a != b]
    if differing:
        id_ = differing[0]
        yield (
            f"token {id_} is {lists[0][id_]!r} in {paths[0]} but {lists[1][id_]!r} in {paths[1]} ({len(differing)} "
            "such ids); keep_target_rows needs the same tokens in shared rows; use vocabulary=by_token"
        )


def _padded(part: LanguagePart) -> Tokens:
    """Returns a token (or None) for every row of the embedding."""
    tokens, count = tokens_of(part.model.path) or [], num_rows(part)
    return [*tokens[:count], *[None] * (count - len(tokens))]
