"""Sentencepiece models such as Llama-2's."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from data_prep.tokens.tokenizer_formats import (
    DOCUMENT_BEGINS,
    DOCUMENT_ENDS,
    Ids,
    Raw,
    encode_parts,
    encode_windows,
    find_special,
    special_pattern,
)

SPACE = "\u2581"  # stands for a space in a piece


class SentencePieceTokenizer:
    """A sentencepiece model such as Llama-2's; see `Tokenizer`. Normalisation may change the text."""

    def __init__(self, path: Path, data: bytes, model: sentencepiece.SentencePieceProcessor) -> None:
        self.path = path
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.vocab_size = model.get_piece_size()
        specials = [id_ for id_ in range(self.vocab_size) if model.is_control(id_) or model.is_unknown(id_)]
        self.special_tokens = {model.id_to_piece(id_): id_ for id_ in specials}
        self.bos_id = find_special(self, DOCUMENT_BEGINS, "begin")
        self.eos_id = find_special(self, DOCUMENT_ENDS, "end")
        self._special_pattern = special_pattern(self.special_tokens)
        self._model = model

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> Ids:
        """See `Tokenizer`."""
        return encode_windows(text, lambda part: self._model.encode_as_numpy(part).astype(np.uint32))

    def encode_with_special(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return encode_parts(self, self._special_pattern, text)

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

    def piece(self, id_: int) -> str:
        """See `Tokenizer`."""
        return self._model.id_to_piece(int(id_)).replace(SPACE, " ")

    def raw(self, id_: int) -> Raw | None:
        """See `Tokenizer`."""
        return str(self._model.id_to_piece(int(id_)))

    def split(self, raw: Raw) -> list[int]:
        """See `Tokenizer`."""
        assert isinstance(raw, str), "of a byte-level vocabulary"
        return list(self._literal.encode(raw.replace(SPACE, " ")))

    @functools.cached_property
    def _literal(self) -> sentencepiece.SentencePieceProcessor:
        """The same model, which adds no space in front and takes none away."""
        from sentencepiece import sentencepiece_model_pb2  # needs protobuf, which nothing that only encodes does

        proto: Any = sentencepiece_model_pb2  # its classes are made when it is imported
        model = proto.ModelProto.FromString(self.path.read_bytes())
        model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.remove_extra_whitespaces = False
        return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
