"""The interface of the three tokenizer formats, what they share, and the first of them: tiktoken ranks."""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tiktoken

from data_prep.document import CorpusError

# Source: `pat_str` of Meta's llama-models; it defines what the Llama-3 ranks mean.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
NUM_SPECIAL = 256
MAX_PIECE_CHARS = 400_000
MAX_RUN_CHARS = 25_000
LONG_RUN = re.compile(r"\s{64,}|\S{64,}")
# Looked for before tokenizer_config.json is asked: an instruct model's config names the end of a turn instead.
DOCUMENT_BEGINS = (BEGIN, "<s>")
DOCUMENT_ENDS = (END, "</s>", "<|endoftext|>")

Ids = npt.NDArray[np.uint32]
Raw = bytes | str
"""A piece: bytes in a byte-level vocabulary, text in one that falls back to bytes; an added token's text in both."""


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
        path: the file it was read from.
        sha256: hash of that file.
        vocab_size: rows an embedding needs, special tokens included.
        bos_id: begin of a document.
        eos_id: end of a document (not of a chat turn).
        special_tokens: string -> id.
    """

    path: Path
    sha256: str
    vocab_size: int
    bos_id: int
    eos_id: int
    special_tokens: dict[str, int]

    def encode(self, text: str) -> list[int]:
        """Returns ids of plain text: no BOS or EOS, and special strings in it stay ordinary text."""

    def encode_array(self, text: str) -> Ids:
        """Returns `encode` as an array, (tokens,), in time and memory linear in the text; on one core."""

    def encode_with_special(self, text: str) -> list[int]:
        """Returns ids of text whose special strings become their ids, as a chat template writes them."""

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Returns the text of ids; bytes that are no UTF-8 become U+FFFD."""

    def piece(self, id_: int) -> str:
        """Returns what one id stands for: its text, `<0xEB>` for a byte of a cut character, a special's name."""

    def raw(self, id_: int) -> "Raw | None":
        """Returns one id as the vocabulary has it; None where it has no token."""

    def split(self, raw: "Raw") -> list[int]:
        """Returns the ids by which this vocabulary writes a piece of another one, alone and as it stands there."""


def llama3_special_tokens() -> list[str]:
    """Returns the 256 strings that Meta-Llama-3-8B numbers after its ranks, in order."""
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(NUM_SPECIAL - 5)]
    headers = ["<|start_header_id|>", "<|end_header_id|>"]
    return [BEGIN, END, *reserved[:4], *headers, reserved[4], "<|eot_id|>", *reserved[5:]]


class TiktokenTokenizer:
    """Meta's `tokenizer.model` with ranks; see `Tokenizer`.

    The special tokens stand behind the ranks. An extended vocabulary (`extend-vocab`) leaves their place free and
    goes on behind them, so that no id of the old one changes its meaning.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        ranks = _read_ranks(path, data)
        self.path = path
        self.sha256 = hashlib.sha256(data).hexdigest()
        taken = set(ranks.values())
        self._first_special = next(rank for rank in range(len(ranks) + 1) if rank not in taken)
        names = llama3_special_tokens()
        self.special_tokens = {text: self._first_special + number for number, text in enumerate(names)}
        self.vocab_size = len(ranks) + NUM_SPECIAL
        self.bos_id, self.eos_id = self.special_tokens[BEGIN], self.special_tokens[END]
        self._special_pattern = special_pattern(self.special_tokens)
        self._encoding = tiktoken.Encoding(
            path.name, pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens=self.special_tokens
        )

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> Ids:
        """See `Tokenizer`."""
        parts = [self._encoding.encode_to_numpy(part, disallowed_special=()) for part in split_long(text)]
        return parts[0] if len(parts) == 1 else join(parts)

    def encode_with_special(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return encode_parts(self, self._special_pattern, text)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """See `Tokenizer`."""
        specials = range(self._first_special, self._first_special + NUM_SPECIAL)
        return self._encoding.decode([id_ for id_ in map(int, ids) if not skip_special or id_ not in specials])

    def piece(self, id_: int) -> str:
        """See `Tokenizer`."""
        return readable(self.token_bytes(id_))

    def raw(self, id_: int) -> Raw | None:
        """See `Tokenizer`."""
        is_special = self._first_special <= id_ < self._first_special + NUM_SPECIAL
        return self.piece(id_) if is_special else self.token_bytes(id_)

    def split(self, raw: Raw) -> list[int]:
        """See `Tokenizer`."""
        # the one way to join bytes that are no whole characters; private, but the same since tiktoken's first release
        return self.encode(raw) if isinstance(raw, str) else list(self._encoding._encode_single_piece(raw))

    def token_bytes(self, id_: int) -> bytes:
        """Returns the bytes of one id."""
        return self._encoding.decode_single_token_bytes(int(id_))

    def holds(self, token: bytes) -> bool:
        """Whether the bytes are one token."""
        try:
            self._encoding.encode_single_token(token)
        except KeyError:
            return False
        return True


def split_long(text: str) -> Iterator[str]:
    """Yields parts of a text that tiktoken's regular expressions can take without a stack overflow.

    A text over 400,000 characters is cut after a line break where a line starts, which leaves every
    token as it was, or where it must be if there is none. A run of over 25,000 characters with, or
    without, white space is cut every 25,000, as Meta's reference does.

    Source: llama-models `Tokenizer.encode`; https://github.com/openai/tiktoken/issues/195.
    """
    for part in split_lines(text):
        runs = LONG_RUN.finditer(part) if may_hold_long_run(part) else iter(())
        cuts = [cut for run in runs for cut in range(run.start() + MAX_RUN_CHARS, run.end(), MAX_RUN_CHARS)]
        yield from (part[a:b] for a, b in zip([0, *cuts], [*cuts, len(part)], strict=True))


def may_hold_long_run(text: str) -> bool:
    """Whether some half of a run's length has no space, or nothing else; in a fraction of the expression's time."""
    step = MAX_RUN_CHARS // 2
    starts = range(0, len(text) - step + 1, step) if len(text) > MAX_RUN_CHARS else range(0)
    return any(text.find(" ", start, start + step) < 0 or text[start : start + step].isspace() for start in starts)


def split_lines(text: str) -> Iterator[str]:
    """Yields parts of at most 400,000 characters, cut where a line starts, or where they must be without one."""
    return _cut(text, "\n", neighbour=1, first=1)


def _read_ranks(path: Path, data: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise no_tokenizer(path, f"with {line[:40]!r} in line {number}, where `base64 rank` is expected") from None
    lacking = [byte for byte in range(256) if bytes([byte]) not in ranks]
    order = np.sort(np.fromiter(ranks.values(), np.int64, len(ranks)))
    steps = np.diff(order, prepend=-1)
    # One gap is allowed, of the special tokens' size: an extended vocabulary goes on behind them.
    if lacking or not (np.isin(steps, (1, 1 + NUM_SPECIAL)).all() and steps[0] == 1 and (steps > 1).sum() <= 1):
        raise no_tokenizer(path, f"with {len(ranks)} ranks that are not 0, 1, ... or lack {len(lacking)} single bytes")
    return ranks


def special_pattern(specials: Iterable[str]) -> re.Pattern[str]:
    """Returns an expression whose one group matches any of the special strings, the longest first."""
    return re.compile(f"({'|'.join(map(re.escape, sorted(specials, key=len, reverse=True)))})")


def encode_windows(text: str, encode: Callable[[str], Ids]) -> Ids:
    """Returns the ids of a text of any length from an encoder that treats the start of a text in its own way.

    A text over 400,000 characters is cut before spaces (where there is none, between two characters). The parts
    after the first are encoded behind a line break whose ids are taken off again, so that no part is a start.
    No piece reaches across a space that ends a word, so every id is as it was.
    """
    parts = list(_cut(text, " ", neighbour=-1, first=0))
    if len(parts) <= 1:
        return encode(text)
    lead = encode("\n")
    can_be_cut = np.array_equal(encode("a b"), join([encode("a"), encode("\n b")[len(lead) :]]))
    found = [encode(parts[0])] if can_be_cut else []
    for part in parts[1:]:
        ids = encode("\n" + part)
        is_cut_at_space = part.startswith(" ") or lead.size > 0  # without a lead a part counts as a new word
        if not (can_be_cut and is_cut_at_space and np.array_equal(ids[: len(lead)], lead)):
            return encode(text)  # slow, but right
        found.append(ids[len(lead) :])
    return join(found)


def _cut(text: str, mark: str, neighbour: int, first: int) -> Iterator[str]:
    """Yields parts of at most 400,000 characters, each but the first starting `first` characters behind a mark.

    The mark is the last one whose neighbour, so many characters behind it, is no white space.
    """
    start = 0
    while start < len(text):
        stop = start + MAX_PIECE_CHARS
        if stop < len(text):
            found = text.rfind(mark, start, stop)
            while found > start and text[found + neighbour].isspace():
                found = text.rfind(mark, start, found)
            stop = found + first if found > start else stop
        yield text[start:stop]
        start = stop


def join(parts: Sequence[Ids]) -> Ids:
    """Returns the parts' ids one after another."""
    return np.concatenate(parts) if parts else np.empty(0, np.uint32)


def readable(data: bytes) -> str:
    """Returns UTF-8 as text; a byte that is part of no whole character as `<0xEB>`."""
    text = data.decode("utf-8", errors="surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda match: f"<0x{ord(match[0]) - 0xDC00:02X}>", text)


def encode_parts(tokenizer: Tokenizer, pattern: re.Pattern[str], text: str) -> list[int]:
    """Returns the ids of text whose special strings, found by `pattern`, become their ids."""
    specials = tokenizer.special_tokens
    parts = pattern.split(text)
    return [
        id_
        for number, part in enumerate(parts)
        for id_ in ([specials[part]] if number % 2 else tokenizer.encode(part) if part else [])
    ]


def find_special(tokenizer: Tokenizer, names: Sequence[Any], which: str) -> int:
    """Returns the id of the first of the names that is a special token; `which` is "begin" or "end"."""
    # Older tokenizer_config.json files write a token as {"content": ...}.
    texts = [name.get("content") if isinstance(name, dict) else name for name in names]
    for text in texts:
        if text in tokenizer.special_tokens:
            return tokenizer.special_tokens[text]
    wanted = ", ".join(str(text) for text in texts if text)
    raise no_tokenizer(tokenizer.path, f"without a special token for the {which} of a document (one of {wanted})")


def no_tokenizer(path: Path, what: str) -> CorpusError:
    """Returns the error for a file that is no tokenizer; `what` goes on after "a file"."""
    return CorpusError(
        f"{path} is no usable tokenizer: a file {what}; Meta's tokenizer.model, a sentencepiece model or "
        "a tokenizer.json is expected; give one of these"
    )
