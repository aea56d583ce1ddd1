"""Scores of a model: bits per byte of held-out text, form, language and repetition of its answers, exact match."""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from data_prep.document import CorpusError

HEADER_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>", "<|reserved_special_token")
NOT_SCORED = -100
"""In the place of a target: the decoder leaves it out of its sum."""
LOSS_CHUNK = 1024
"""Positions whose logits exist at once: half a gigabyte for Llama-3's vocabulary."""
LOOP = re.compile(r"(.{1,200}?)\1{2,}", re.DOTALL)
LOOP_CHARS = 24
"""A loop fills at least these, so that laughter, a rule of dashes or a doubled word is none."""

T = TypeVar("T")
R = TypeVar("R")
Window = tuple[list[int], int]
"""Ids, and how many of the last ones are scored."""


def over_ranks(groups: Sequence[T], compute: Callable[[T], R]) -> list[R]:
    """Returns `compute` of every group, in their order, on every rank; the ranks share the work.

    What a group gives does not depend on the number of ranks, so neither does a sum over them, to the last bit. Every
    rank must call it; without a process group this one computes all.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [compute(group) for group in groups]
    rank, size = dist.get_rank(), dist.get_world_size()
    found: list[list[R]] = [[] for _ in range(size)]
    dist.all_gather_object(found, [compute(group) for group in groups[rank::size]])
    return [found[number % size][number // size] for number in range(len(groups))]


def windows(tokens: list[int], seq_len: int, stride: int) -> list[Window]:
    """Cuts a document so that each token but the first is scored once.

    A window has `seq_len` tokens to read and starts `stride` behind the one before; what that one has scored it only
    reads, so that a token sees at least `seq_len - stride` tokens before it, or all there are.

    Args:
        tokens: ids with BOS first.
        seq_len: tokens that a model reads at once.
        stride: from 1 to `seq_len`; the latter cuts windows that do not overlap.
    """
    found, done = [], 1
    for begin in range(0, len(tokens) - 1, stride):
        stop = min(begin + seq_len + 1, len(tokens))
        found.append((tokens[begin:stop], stop - done))
        done = stop
        if stop == len(tokens):
            break
    return found


@torch.inference_mode()
def bits_per_byte(
    model: nn.Module, documents: Iterable[tuple[list[int], int]], seq_len: int, batch: int, stride: int | None = None
) -> float:
    """Returns the cross-entropy of the documents in bits per UTF-8 byte, comparable across tokenizers.

    Every rank must call it with the same documents; each computes a share, and the result is the same at any number
    of ranks, bit for bit.

    Args:
        model: torchtune's decoder, without a key-value cache.
        documents: (ids with BOS first and without EOS, number of UTF-8 bytes of the text).
        seq_len: tokens a window.
        batch: windows computed at once.
        stride: tokens between the starts of two windows; null: `seq_len`, so that they do not overlap.

    Raises:
        CorpusError: the documents have no byte, so the ratio is undefined.

    Source: log2 of the per-byte perplexity.
    """
    cut: list[Window] = []
    num_bytes = 0
    for tokens, size in documents:
        num_bytes += size
        cut += windows(tokens, seq_len, stride or seq_len)
    if not num_bytes:
        raise CorpusError("the held-out documents have no text; bits per byte need some; give other documents")
    cut.sort(key=lambda window: len(window[0]))  # windows of one length share a batch without padding much
    groups = [cut[start : start + batch] for start in range(0, len(cut), batch)]
    nats = math.fsum(over_ranks(groups, lambda group: scored_nats(model, group)))
    return nats / math.log(2) / num_bytes


@torch.inference_mode()
def scored_nats(model: nn.Module, group: Sequence[Window]) -> float:
    """Returns the cross-entropy of the scored tokens of some windows, computed at once; nats, summed in fp32."""
    width = max(len(tokens) for tokens, _ in group)
    device = next(model.parameters()).device
    ids = torch.zeros(len(group), width, dtype=torch.int64)
    targets = torch.full((len(group), width - 1), NOT_SCORED)
    for row, (tokens, scored) in enumerate(group):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        targets[row, len(tokens) - 1 - scored : len(tokens) - 1] = ids[row, len(tokens) - scored : len(tokens)]
    # the decoder's own loss: logits of a chunk of positions, fp32 sums
    return float(model(ids[:, :-1].to(device), targets=targets.to(device), loss_chunk=LOSS_CHUNK)[1])


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


def repeats(answer: str) -> bool:
    """Whether an answer has fallen into a loop.

    It has if a piece of up to 200 characters, with a letter in it, stands three or more times in a row and fills at
    least `LOOP_CHARS` characters; white space counts as one space.
    """
    text = " ".join(answer.split()) + " "  # so that the last of the pieces ends as the others do
    return any(len(m[0]) >= LOOP_CHARS and any(map(str.isalpha, m[1])) for m in LOOP.finditer(text))


def exactly_matches(answer: str, accepted: Sequence[str]) -> bool:
    """Whether the answer is one of the accepted ones after NFC, case, white space and final marks are folded."""
    return folded(answer) in {folded(one) for one in accepted}


def folded(text: str) -> str:
    """Returns a text without differences of NFC, case, white space and final marks."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).rstrip(".!?。 ")
