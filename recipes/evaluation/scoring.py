"""Scores of a model: bits per byte of held-out text, form and language of its answers, exact match."""

import math
import unicodedata
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from data_prep.document import CorpusError

HEADER_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>", "<|reserved_special_token")


@torch.inference_mode()
def bits_per_byte(model: nn.Module, documents: Iterable[tuple[list[int], int]], seq_len: int, batch: int) -> float:
    """Returns the cross-entropy of the documents in bits per UTF-8 byte, comparable across tokenizers.

    A document longer than `seq_len` is scored in windows that do not overlap: a token sees what stands before
    it in its own window.

    Args:
        model: torchtune's decoder, without a key-value cache.
        documents: (ids with BOS first and without EOS, number of UTF-8 bytes of the text).
        seq_len: tokens a window.
        batch: windows computed at once.

    Raises:
        CorpusError: the documents have no byte, so the ratio is undefined.

    Source: log2 of the per-byte perplexity.
    """
    windows: list[list[int]] = []
    num_bytes = 0
    for tokens, size in documents:
        num_bytes += size
        windows += [tokens[i : i + seq_len + 1] for i in range(0, len(tokens) - 1, seq_len)]
    if not num_bytes:
        raise CorpusError("the held-out documents have no text; bits per byte need some; give other documents")
    windows.sort(key=len)  # windows of one length share a batch without padding much
    device = next(model.parameters()).device
    nats = 0.0
    for start in range(0, len(windows), batch):
        group = windows[start : start + batch]
        width = max(map(len, group))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in group], device=device)
        valid = torch.tensor([[i < len(row) for i in range(1, width)] for row in group], device=device)
        logits = model(ids[:, :-1]).float()
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        nats += float((losses * valid.flatten()).sum(dtype=torch.float64))
    return nats / math.log(2) / num_bytes


def in_chat_form(answer: str, ended: bool) -> bool:
    """Whether an answer is one clean turn: it has text, ended with the end-of-turn token, and holds no header.

    Args:
        answer: the decoded ids before the end-of-turn token, special tokens shown.
        ended: whether the end-of-turn token came within the limit.
    """
    return ended and bool(answer.strip()) and not any(mark in answer for mark in HEADER_MARKS)


def hangul_share(text: str) -> float:
    """Returns the share of Hangul among the letters of a text, 0 when it has none."""
    letters = [c for c in text if c.isalpha()]
    return sum("가" <= c <= "힣" or "ㄱ" <= c <= "ㆎ" for c in letters) / len(letters) if letters else 0.0


def is_korean(text: str) -> bool:
    """Whether at least half of the letters are Hangul."""
    return hangul_share(text) >= 0.5


def exactly_matches(answer: str, accepted: Sequence[str]) -> bool:
    """Whether the answer is one of the accepted ones after NFC, case, white space and final marks are folded."""
    return _fold(answer) in {_fold(one) for one in accepted}


def _fold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).rstrip(".!?。 ")
