"""What extending a vocabulary needs of each tokenizer format: words as pieces to join, and the file with new pieces.

In a byte-level vocabulary (tiktoken ranks, tokenizer.json of Llama-3's kind) a symbol is `bytes`; in one with
byte fallback (sentencepiece, tokenizer.json of Llama-2's kind) it is a piece or a character the vocabulary lacks.
"""

import base64
import collections
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import regex

from data_prep.document import CorpusError
from data_prep.tokens.tokenizer_formats import LLAMA3_SPLIT, TiktokenTokenizer, Tokenizer
from data_prep.tokens.tokenizer_json import HuggingFaceTokenizer, merges_of, token_of
from data_prep.tokens.tokenizer_sentencepiece import SPACE, SentencePieceTokenizer
from data_prep.tokens.vocab_learning import HANGUL

# Bytes that only Hangul has: syllables, letters of the compatibility block, old letters.
HANGUL_BYTES = re.compile(
    rb"\xea[\xb0-\xbf]|[\xeb\xec]|\xed[\x80-\x9e]|\xe3(?:\x84[\xb1-\xbf]|\x85|\x86[\x80-\x8e])|\xe1[\x84-\x87]"
)
HANGUL_PIECE = re.compile(f"{SPACE}?(?:{HANGUL.pattern})+")
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")
Symbol = Any  # bytes or str, one kind in a vocabulary
Segments = collections.Counter[tuple[Symbol, ...]]


class Base(Protocol):
    """A vocabulary that can be extended.

    Attributes:
        tokenizer: the tokenizer it comes from.
        file: name of the file that `extended` is the content of.
    """

    tokenizer: Tokenizer
    file: str

    def segments(self, words: Mapping[str, int]) -> Segments:
        """Returns the sequences of symbols within which merges are allowed, with their number."""

    def holds(self, piece: Symbol) -> bool:
        """Whether the base has the piece."""

    def ids(self, symbol: Symbol) -> list[int]:
        """Returns the ids by which the base writes a symbol."""

    def extended(self, pieces: Sequence[Symbol], merges: Sequence[tuple[Symbol, Symbol]]) -> bytes:
        """Returns the file with new pieces, which get the ids from `vocab_size` on, and merges in order."""


def open_base(tokenizer: Tokenizer) -> Base:
    """Returns the vocabulary of a tokenizer as one that can be extended.

    Raises:
        CorpusError: it is no BPE.
    """
    if isinstance(tokenizer, TiktokenTokenizer):
        return TiktokenBase(tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer):
        return SentencePieceBase(tokenizer)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return JsonBase(tokenizer)


class TiktokenBase:
    """Ranks; see `Base`.

    New ranks begin behind the special tokens, whose place stays free in the file.
    """

    file = "tokenizer.model"

    def __init__(self, tokenizer: TiktokenTokenizer) -> None:
        self.tokenizer: Tokenizer = tokenizer
        self._ranks = tokenizer
        self._id_of: dict[bytes, int] = {}

    def segments(self, words: Mapping[str, int]) -> Segments:
        """See `Base`."""
        split = regex.compile(LLAMA3_SPLIT)
        found: Segments = collections.Counter()
        for pretoken, count in _count(words, split.findall).items():
            ids = self.tokenizer.encode(pretoken)
            symbols = [self._ranks.token_bytes(id_) for id_ in ids]
            self._id_of.update(zip(symbols, ids, strict=True))
            _add_byte_segments(found, symbols, count)
        return found

    def holds(self, piece: Symbol) -> bool:
        """See `Base`."""
        return self._ranks.holds(piece)

    def ids(self, symbol: Symbol) -> list[int]:
        """See `Base`."""
        return [self._id_of[symbol]]

    def extended(self, pieces: Sequence[Symbol], merges: Sequence[tuple[Symbol, Symbol]]) -> bytes:
        """See `Base`."""
        old = self.tokenizer.path.read_bytes()
        first = self.tokenizer.vocab_size
        lines = [base64.b64encode(piece) + f" {first + number}\n".encode() for number, piece in enumerate(pieces)]
        return old + (b"" if old.endswith(b"\n") else b"\n") + b"".join(lines)


class SentencePieceBase:
    """A sentencepiece BPE model; see `Base`. New pieces score below all old ones, in the order of their learning."""

    file = "tokenizer.model"

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        from sentencepiece import sentencepiece_model_pb2  # needs protobuf, which nothing else here does

        proto: Any = sentencepiece_model_pb2  # its classes are made when it is imported
        self.tokenizer: Tokenizer = tokenizer
        self._proto = proto.ModelProto.FromString(tokenizer.path.read_bytes())
        if self._proto.trainer_spec.model_type != proto.TrainerSpec.BPE:
            raise _no_bpe(tokenizer)
        self._normal = proto.ModelProto.SentencePiece.NORMAL
        self._pieces = [piece.piece for piece in self._proto.pieces]
        self._id_of = {piece: id_ for id_, piece in enumerate(self._pieces)}

    def segments(self, words: Mapping[str, int]) -> Segments:
        """See `Base`."""
        return _fallback_segments(words, lambda word: [self._pieces[id_] for id_ in self.tokenizer.encode(word)])

    def holds(self, piece: Symbol) -> bool:
        """See `Base`."""
        return piece in self._id_of

    def ids(self, symbol: Symbol) -> list[int]:
        """See `Base`."""
        return _fallback_ids(self._id_of, symbol)

    def extended(self, pieces: Sequence[Symbol], merges: Sequence[tuple[Symbol, Symbol]]) -> bytes:
        """See `Base`."""
        proto = type(self._proto).FromString(self._proto.SerializeToString())
        lowest = min(piece.score for piece in proto.pieces if piece.type == self._normal)
        for number, piece in enumerate(pieces, start=1):
            proto.pieces.add(piece=piece, score=min(lowest, 0.0) - number, type=self._normal)
        proto.trainer_spec.vocab_size = len(proto.pieces)
        return proto.SerializeToString()


class JsonBase:
    """A tokenizer.json with a BPE model, byte-level or with byte fallback; see `Base`.

    The special tokens enter the model's vocabulary, so that they keep their ids: else the library numbers
    them after the model's pieces, however many there are.
    """

    file = "tokenizer.json"

    def __init__(self, tokenizer: HuggingFaceTokenizer) -> None:
        self.tokenizer: Tokenizer = tokenizer
        self._json = tokenizer
        self._content = json.loads(tokenizer.path.read_bytes())
        model = self._content["model"]
        if model.get("type", "BPE") != "BPE" or not (tokenizer.is_byte_level or model.get("byte_fallback")):
            raise _no_bpe(tokenizer)
        self._id_of: dict[str, int] = model["vocab"]

    def segments(self, words: Mapping[str, int]) -> Segments:
        """See `Base`."""
        pieces = self._json.tokens
        if not self._json.is_byte_level:
            return _fallback_segments(words, pieces)
        found: Segments = collections.Counter()
        for pretoken, count in _count(words, self._json.pretokens).items():
            _add_byte_segments(found, [self._json.token_bytes(id_) for id_ in self.tokenizer.encode(pretoken)], count)
        return found

    def holds(self, piece: Symbol) -> bool:
        """See `Base`."""
        return _as_token(piece) in self._id_of

    def ids(self, symbol: Symbol) -> list[int]:
        """See `Base`."""
        return [self._id_of[_as_token(symbol)]] if isinstance(symbol, bytes) else _fallback_ids(self._id_of, symbol)

    def extended(self, pieces: Sequence[Symbol], merges: Sequence[tuple[Symbol, Symbol]]) -> bytes:
        """See `Base`."""
        model = self._content["model"]
        vocab = dict(model["vocab"])
        vocab |= {token["content"]: token["id"] for token in self._content["added_tokens"]}
        new = {_as_token(piece): self.tokenizer.vocab_size + number for number, piece in enumerate(pieces)}
        old = merges_of(model)
        learned = [(_as_token(left), _as_token(right)) for left, right in merges]
        as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
        joined = [" ".join(one) if as_text else list(one) for one in _all_merges(old, learned, vocab, new)]
        content = {**self._content, "model": {**model, "vocab": vocab | new, "merges": joined}}
        return json.dumps(content, ensure_ascii=False, indent=1).encode()


def _all_merges(
    old: Sequence[tuple[str, str]], learned: Sequence[tuple[str, str]], vocab: Mapping[str, int], new: Mapping[str, int]
) -> list[tuple[str, str]]:
    """Returns the old merges and the new ones, with all ways to join a piece, as tiktoken and sentencepiece take them.

    An old piece that a new one is a part of has new ways, which stand behind its old ones.
    """
    ways: dict[str, list[tuple[str, str]]] = {}
    for piece in [*vocab, *new]:
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        found = [one for one in splits if all(side in vocab or side in new for side in one)]
        ways[piece] = [one for one in found if piece in new or one[0] in new or one[1] in new]
    last = {left + right: number for number, (left, right) in enumerate(old)}
    joined: dict[tuple[str, str], None] = {}
    for number, (left, right) in enumerate(old):
        joined[left, right] = None
        if last[left + right] == number:
            joined.update(dict.fromkeys(ways[left + right]))
    for left, right in learned:
        joined.update(dict.fromkeys([(left, right), *(ways[left + right] if left + right in new else [])]))
    return list(joined)


def _count(words: Mapping[str, int], split: Any) -> collections.Counter[str]:
    """Returns the pretokens with Hangul of all words, with their number."""
    counts: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        for pretoken in split(word):
            if HANGUL.search(pretoken):
                counts[pretoken] += count
    return counts


def _add_byte_segments(found: Segments, symbols: Sequence[bytes], count: int) -> None:
    """Adds the stretches of a pretoken in which any two neighbours hold Hangul bytes.

    So every new piece holds some, and a text without Hangul is encoded as before.
    """
    start = 0
    for end in range(1, len(symbols) + 1):
        if end == len(symbols) or not HANGUL_BYTES.search(symbols[end - 1] + symbols[end]):
            if end - start > 1:
                found[tuple(symbols[start:end])] += count
            start = end


def _fallback_segments(words: Mapping[str, int], pieces_of: Any) -> Segments:
    """Returns the stretches of pieces that are Hangul, with the space in front; bytes become the character again."""
    found: Segments = collections.Counter()
    for word, count in words.items():
        run: list[str] = []
        for symbol in [*_characters(pieces_of(word.strip())), ""]:
            if HANGUL_PIECE.fullmatch(symbol) and (not run or not symbol.startswith(SPACE)):
                run.append(symbol)
                continue
            if run and run != [SPACE]:
                found[tuple(run)] += count
            run = [symbol] if symbol == SPACE or HANGUL_PIECE.fullmatch(symbol) else []
    return found


def _characters(pieces: Sequence[str]) -> list[str]:
    symbols: list[str] = []
    cut = b""
    for piece in pieces:
        if byte := BYTE_PIECE.fullmatch(piece):
            cut += bytes([int(byte[1], 16)])
            continue
        symbols += cut.decode(errors="replace")
        cut = b""
        symbols.append(piece)
    return [*symbols, *cut.decode(errors="replace")]


def _fallback_ids(id_of: Mapping[str, int], symbol: str) -> list[int]:
    return [id_of[symbol]] if symbol in id_of else [id_of[f"<0x{byte:02X}>"] for byte in symbol.encode()]


def _as_token(symbol: Symbol) -> str:
    return token_of(symbol) if isinstance(symbol, bytes) else symbol


def _no_bpe(tokenizer: Tokenizer) -> CorpusError:
    return CorpusError(
        f"{tokenizer.path} is no byte-pair encoding over bytes or with byte fallback; only such a vocabulary can be "
        "extended by merges; give Meta's tokenizer.model, a sentencepiece BPE model or such a tokenizer.json"
    )
