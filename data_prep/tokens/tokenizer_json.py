"""Tokenizers in the form of a Hugging Face `tokenizer.json`."""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import tokenizers

from data_prep.document import CorpusError
from data_prep.tokens.tokenizer_formats import (
    DOCUMENT_BEGINS,
    DOCUMENT_ENDS,
    LLAMA3_SPLIT,
    Ids,
    Raw,
    encode_windows,
    find_special,
    join,
    may_hold_long_run,
    no_tokenizer,
    readable,
    split_lines,
)

# A tokenizer that gives each of these the ids of its two parts may be cut wherever a line starts.
LINES = (("a\n", "b"), (" a \n\n", "b"), ("a!\n\n\n", "b c"), ("가\n", "나"))


class HuggingFaceTokenizer:
    """A `tokenizer.json`; see `Tokenizer`. Its tokenizer_config.json is read when it lies beside it."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.sha256 = hashlib.sha256(data).hexdigest()
        try:
            self._plain = _open(data)
        except ValueError as error:
            raise no_tokenizer(path, f"JSON, but {error}") from None
        self._plain.encode_special_tokens = True
        self._added = added = self._plain.get_added_tokens_decoder()
        self.special_tokens = {token.content: id_ for id_, token in sorted(added.items()) if token.special}
        self.vocab_size = max(self._plain.get_vocab(with_added_tokens=True).values()) + 1
        self.is_byte_level = '"ByteLevel"' in str(json.dumps(json.loads(data).get("decoder")))
        self._cuts_at_lines = all(
            np.array_equal(self._encode(a + b), join([self._encode(a), self._encode(b)])) for a, b in LINES
        )
        config = _read_tokenizer_config(path.parent)
        self.bos_id = find_special(self, (*DOCUMENT_BEGINS, config.get("bos_token")), "begin")
        self.eos_id = find_special(self, (*DOCUMENT_ENDS, config.get("eos_token")), "end")

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return self._encode_parts(text, self._encode).tolist()

    def encode_array(self, text: str) -> Ids:
        """See `Tokenizer`."""
        return self._encode_parts(text, self._encode_fast)

    def encode_with_special(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return self._special.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """See `Tokenizer`."""
        return self._special.decode([int(id_) for id_ in ids], skip_special_tokens=skip_special)

    def piece(self, id_: int) -> str:
        """See `Tokenizer`."""
        token = self._plain.id_to_token(int(id_))
        if token is None or token in self.special_tokens:
            return str(token)
        return readable(token_bytes(token)) if self.is_byte_level else token.replace("\u2581", " ")

    def raw(self, id_: int) -> Raw | None:
        """See `Tokenizer`."""
        token = self._plain.id_to_token(int(id_))
        return token if token is None or id_ in self._added or not self.is_byte_level else token_bytes(token)

    def split(self, raw: Raw) -> list[int]:
        """See `Tokenizer`."""
        if self.is_byte_level and isinstance(raw, str):
            return self.encode(raw)
        return [token.id for token in self._plain.model.tokenize(token_of(raw) if isinstance(raw, bytes) else raw)]

    def token_bytes(self, id_: int) -> bytes:
        """Returns the bytes of one id of a byte-level vocabulary."""
        return token_bytes(str(self._plain.id_to_token(int(id_))))

    def tokens(self, text: str) -> list[str]:
        """Returns the ids of `encode` as the vocabulary writes them."""
        return self._plain.encode(text, add_special_tokens=False).tokens

    def pretokens(self, text: str) -> list[str]:
        """Returns the parts of a text across which nothing is merged, in a byte-level vocabulary."""
        text = self._plain.normalizer.normalize_str(text) if self._plain.normalizer else text
        parts = self._plain.pre_tokenizer.pre_tokenize_str(text)
        return [token_bytes(part).decode(errors="replace") for part, _ in parts]

    def _encode_parts(self, text: str, encode: Callable[[str], Ids]) -> Ids:
        if self._cuts_at_lines:
            return join([encode(part) for part in split_lines(text)])
        return encode_windows(text, encode)

    def _encode_fast(self, text: str) -> Ids:
        if self._tiktoken is None or may_hold_long_run(text):
            return self._encode(text)
        return self._tiktoken.encode_to_numpy(text, disallowed_special=())

    @functools.cached_property
    def _special(self) -> tokenizers.Tokenizer:
        """The same tokenizer, to which special strings are their ids; a worker that only encodes needs none."""
        return _open(self.path.read_bytes())

    @functools.cached_property
    def _tiktoken(self) -> tiktoken.Encoding | None:
        """The same vocabulary for tiktoken, which is several times as fast; None when its ids could differ."""
        ranks = as_ranks(json.loads(self.path.read_bytes()))
        if ranks is None:
            return None
        none = {"<|none|>": self.vocab_size}  # at least one is needed; it is never allowed
        return tiktoken.Encoding(self.path.name, pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens=none)

    def _encode(self, text: str) -> Ids:
        # A batch of one: `encode_batch_fast` does without the offsets, which cost time, and stays on one core.
        return np.array(self._plain.encode_batch_fast([text], add_special_tokens=False)[0].ids, dtype=np.uint32)


def _open(data: bytes) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_buffer(data)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def as_ranks(content: dict[str, Any]) -> dict[bytes, int] | None:
    """Returns the vocabulary of a tokenizer.json as tiktoken's ranks, or None if the two could encode differently.

    tiktoken joins any two neighbours that make a token, the lowest id first, and takes a whole token as it is. So do
    merges that hold every way to join each token, in the order of the ids, with `ignore_merges`.
    """
    model = content["model"]
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}
    steps = (content.get("pre_tokenizer") or {}).get("pretokenizers", [])
    is_llama3 = len(steps) == 2 and steps[0] == split and steps[1]["type"] == "ByteLevel"
    if not is_llama3 or steps[1]["use_regex"] or steps[1]["add_prefix_space"] or content["normalizer"]:
        return None
    if (
        not model.get("ignore_merges")
        or model.get("dropout")
        or any(not one["special"] for one in content["added_tokens"])
    ):
        return None
    added = {one["content"] for one in content["added_tokens"]}
    vocab = {token: id_ for token, id_ in model["vocab"].items() if token not in added}
    merges = merges_of(model)
    order = [vocab.get(left + right, -1) for left, right in merges]
    known = set(merges)
    splits = ((token[:cut], token[cut:]) for token in vocab for cut in range(1, len(token)))
    wanted = [split in known for split in splits if split[0] in vocab and split[1] in vocab]
    if order != sorted(order) or not all(wanted) or len(wanted) != len(known):
        return None
    return {token_bytes(token): id_ for token, id_ in vocab.items()}


def merges_of(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the merges of a BPE model in either of the forms its file may have them in."""
    merges = (one.split(" ") if isinstance(one, str) else one for one in model["merges"])
    return [(left, right) for left, right in merges]


def token_bytes(token: str) -> bytes:
    """Returns the bytes that a token of a byte-level vocabulary stands for."""
    byte_of = bytes_of_characters()
    return bytes(byte_of[character] for character in token)


def token_of(data: bytes) -> str:
    """Returns the token of a byte-level vocabulary that stands for the bytes."""
    return "".join(_characters_of_bytes()[byte] for byte in data)


@functools.cache
def _characters_of_bytes() -> dict[int, str]:
    return {byte: character for character, byte in bytes_of_characters().items()}


@functools.cache
def bytes_of_characters() -> dict[str, int]:
    """Returns the byte each character of a byte-level vocabulary stands for.

    Source: GPT-2 `bytes_to_unicode`: printable Latin-1 stands for itself, the others follow from U+0100.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _read_tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise CorpusError(f"{path} is no JSON ({error}); mend or remove it") from None
    return config if isinstance(config, dict) else {}
