"""The three tokenizer formats behind one interface: tiktoken ranks, sentencepiece and tokenizer.json."""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tiktoken
import tokenizers

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

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns `encode` of each text, computed on all cores."""

    def encode_with_special(self, text: str) -> list[int]:
        """Returns ids of text whose special strings become their ids, as a chat template writes them."""

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Returns the text of ids; bytes that are no UTF-8 become U+FFFD."""


def llama3_special_tokens() -> list[str]:
    """Returns the 256 strings that Meta-Llama-3-8B numbers after its ranks, in order."""
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(NUM_SPECIAL - 5)]
    headers = ["<|start_header_id|>", "<|end_header_id|>"]
    return [BEGIN, END, *reserved[:4], *headers, reserved[4], "<|eot_id|>", *reserved[5:]]


class TiktokenTokenizer:
    """Meta's `tokenizer.model` with ranks; see `Tokenizer`."""

    def __init__(self, path: Path, data: bytes) -> None:
        ranks = _read_ranks(path, data)
        self.path = path
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.special_tokens = {text: len(ranks) + number for number, text in enumerate(llama3_special_tokens())}
        self.vocab_size = len(ranks) + NUM_SPECIAL
        self.bos_id, self.eos_id = self.special_tokens[BEGIN], self.special_tokens[END]
        self._special_pattern = special_pattern(self.special_tokens)
        self._first_special = len(ranks)
        self._encoding = tiktoken.Encoding(
            path.name, pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens=self.special_tokens
        )

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return [id_ for piece in split_long(text) for id_ in self._encoding.encode_ordinary(piece)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer`."""
        pieces = [list(split_long(text)) for text in texts]
        encoded = iter(self._encoding.encode_ordinary_batch([piece for group in pieces for piece in group]))
        return [[id_ for _ in group for id_ in next(encoded)] for group in pieces]

    def encode_with_special(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return _encode_parts(self, self._special_pattern, text)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """See `Tokenizer`."""
        kept = [int(id_) for id_ in ids if not skip_special or id_ < self._first_special]
        return self._encoding.decode(kept)


class SentencePieceTokenizer:
    """A sentencepiece model such as Llama-2's; see `Tokenizer`. Normalisation may change the text."""

    def __init__(self, path: Path, data: bytes, model: sentencepiece.SentencePieceProcessor) -> None:
        self.path = path
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.vocab_size = model.get_piece_size()
        specials = [id_ for id_ in range(self.vocab_size) if model.is_control(id_) or model.is_unknown(id_)]
        self.special_tokens = {model.id_to_piece(id_): id_ for id_ in specials}
        self.bos_id = _find_special(self, DOCUMENT_BEGINS, "begin")
        self.eos_id = _find_special(self, DOCUMENT_ENDS, "end")
        self._special_pattern = special_pattern(self.special_tokens)
        self._model = model

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return self._model.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer`."""
        return self._model.encode(list(texts))

    def encode_with_special(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return _encode_parts(self, self._special_pattern, text)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """See `Tokenizer`."""
        if skip_special:
            return self._model.decode([int(id_) for id_ in ids if id_ not in self.special_tokens.values()])
        names = {id_: text for text, id_ in self.special_tokens.items()}
        parts: list[str | list[int]] = []
        for id_ in map(int, ids):
            if id_ in names:
                parts.append(names[id_])
            elif parts and isinstance(parts[-1], list):
                parts[-1].append(id_)
            else:
                parts.append([id_])
        return "".join(part if isinstance(part, str) else self._model.decode(part) for part in parts)


class HuggingFaceTokenizer:
    """A `tokenizer.json`; see `Tokenizer`. Its tokenizer_config.json is read when it lies beside it."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.sha256 = hashlib.sha256(data).hexdigest()
        try:
            self._plain, self._special = (tokenizers.Tokenizer.from_buffer(data) for _ in range(2))
        except ValueError as error:
            raise no_tokenizer(path, f"JSON, but {error}") from None
        self._plain.encode_special_tokens = True
        for tokenizer in (self._plain, self._special):
            tokenizer.no_padding()
            tokenizer.no_truncation()
        added = self._plain.get_added_tokens_decoder()
        self.special_tokens = {token.content: id_ for id_, token in sorted(added.items()) if token.special}
        self.vocab_size = max(self._plain.get_vocab(with_added_tokens=True).values()) + 1
        config = _read_tokenizer_config(path.parent)
        self.bos_id = _find_special(self, (*DOCUMENT_BEGINS, config.get("bos_token")), "begin")
        self.eos_id = _find_special(self, (*DOCUMENT_ENDS, config.get("eos_token")), "end")

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer`."""
        return [encoding.ids for encoding in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_with_special(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return self._special.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """See `Tokenizer`."""
        return self._special.decode([int(id_) for id_ in ids], skip_special_tokens=skip_special)


def split_long(text: str) -> Iterator[str]:
    """Yields parts of a text that tiktoken's regular expressions can take without a stack overflow.

    A text over 400,000 characters is cut after a line break where a line starts, which leaves every
    token as it was, or where it must be if there is none. A run of over 25,000 characters with, or
    without, white space is cut every 25,000, as Meta's reference does.

    Source: llama-models `Tokenizer.encode`; https://github.com/openai/tiktoken/issues/195.
    """
    start = 0
    while start < len(text):
        stop = start + MAX_PIECE_CHARS
        if stop < len(text):
            cut = text.rfind("\n", start, stop)
            while cut > start and text[cut + 1].isspace():
                cut = text.rfind("\n", start, cut)
            stop = cut + 1 if cut > start else stop
        part = text[start:stop]
        runs = LONG_RUN.finditer(part) if len(part) > MAX_RUN_CHARS else iter(())
        cuts = [cut for run in runs for cut in range(run.start() + MAX_RUN_CHARS, run.end(), MAX_RUN_CHARS)]
        yield from (part[a:b] for a, b in zip([0, *cuts], [*cuts, len(part)], strict=True))
        start = stop


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
    if lacking or sorted(ranks.values()) != list(range(len(ranks))):
        raise no_tokenizer(path, f"with {len(ranks)} ranks that are not 0, 1, ... or lack {len(lacking)} single bytes")
    return ranks


def special_pattern(specials: Iterable[str]) -> re.Pattern[str]:
    """Returns an expression whose one group matches any of the special strings, the longest first."""
    return re.compile(f"({'|'.join(map(re.escape, sorted(specials, key=len, reverse=True)))})")


def _encode_parts(tokenizer: Tokenizer, pattern: re.Pattern[str], text: str) -> list[int]:
    specials = tokenizer.special_tokens
    parts = pattern.split(text)
    return [
        id_
        for number, part in enumerate(parts)
        for id_ in ([specials[part]] if number % 2 else tokenizer.encode(part) if part else [])
    ]


def _find_special(tokenizer: Tokenizer, names: Sequence[Any], which: str) -> int:
    # Older tokenizer_config.json files write a token as {"content": ...}.
    texts = [name.get("content") if isinstance(name, dict) else name for name in names]
    for text in texts:
        if text in tokenizer.special_tokens:
            return tokenizer.special_tokens[text]
    wanted = ", ".join(str(text) for text in texts if text)
    raise no_tokenizer(tokenizer.path, f"without a special token for the {which} of a document (one of {wanted})")


def _read_tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise CorpusError(f"{path} is no JSON ({error}); mend or remove it") from None
    return config if isinstance(config, dict) else {}


def no_tokenizer(path: Path, what: str) -> CorpusError:
    """Returns the error for a file that is no tokenizer; `what` goes on after "a file"."""
    return CorpusError(
        f"{path} is no usable tokenizer: a file {what}; Meta's tokenizer.model, a sentencepiece model or "
        "a tokenizer.json is expected; give one of these"
    )
