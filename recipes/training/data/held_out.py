"""Held-out text as windows of tokens, packed into sequences, with the bytes it has."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.document import CorpusError
from data_prep.lineage import sha256_json
from data_prep.tokens.shards import Shards
from data_prep.tokens.tokenizer_formats import Tokenizer
from recipes.training.data.order import generator
from recipes.training.data.packing import Sample


@dataclass(frozen=True)
class Window:
    """Tokens of one document that are scored without a look at what stands before them: (document, begin, stop)."""

    document: int
    begin: int
    stop: int


class HeldOut:
    """A `Source` of finite length: documents cut into windows as `recipes/evaluate.py` cuts them.

    Each token of the text is a target once, and the end-of-document token is none, as it stands for no byte. Windows
    share a sequence without seeing one another. Behind the last sequence come empty ones, so that ranks with fewer
    sequences can keep step with the others.

    Attributes:
        name: what the metrics call it.
        num_bytes: UTF-8 length of the text that is scored.
        num_sequences: how many hold a window.
        fingerprint: of what is scored.
        num_tokens: that are read, over all windows.
    """

    def __init__(self, name: str, shards: Shards, seq_len: int, documents: npt.NDArray[np.int64], num_bytes: int):
        """Cuts and packs.

        Args:
            name: what the metrics call it.
            shards: the text.
            seq_len: tokens a window, and a sequence.
            documents: those that are scored, (n,).
            num_bytes: of their text.
        """
        settings = shards.manifest.get("settings", {})
        self.name, self.shards, self.num_bytes, self._seq_len = name, shards, num_bytes, seq_len
        self._bos = None if settings.get("bos", True) else shards.manifest["tokenizer"]["bos_id"]
        windows = self._windows(documents, int(settings.get("eos", True)))
        self._packed = pack(windows, seq_len)
        self.num_sequences = len(self._packed)
        self.num_tokens = sum(window.stop - window.begin - 1 for window in windows)
        self.fingerprint = sha256_json([shards.fingerprint, seq_len, len(documents), num_bytes])

    @property
    def sequences_per_epoch(self) -> float:
        """Sequences that hold every window once."""
        return self.num_sequences

    def sample(self, index: int) -> Sample:
        """Returns sequence `index`, an empty one behind the last."""
        sample, filled = Sample.empty(self._seq_len), 0
        for number, window in enumerate(self._packed[index] if index < self.num_sequences else ()):
            ids = self._read(window)
            end = filled + len(ids) - 1
            sample.tokens[filled:end], sample.targets[filled:end] = ids[:-1], ids[1:]
            sample.documents[filled:end] = number
            filled = end
        return sample

    def documents(self, index: int) -> list[str]:
        """Returns the documents of sequence `index`, numbered in the order of the shards."""
        return [f"document {window.document}" for window in self._packed[index]]

    def _windows(self, documents: npt.NDArray[np.int64], num_eos: int) -> list[Window]:
        """Returns the windows, each of up to `seq_len` tokens and the one that the last of them predicts."""
        missing = int(self._bos is not None)  # where the shards have no BOS, one is thought of in front
        lengths = self.shards.document_lengths[documents] - num_eos + missing
        return [
            Window(document, begin, min(begin + self._seq_len + 1, length))
            for document, length in zip(documents.tolist(), lengths.tolist(), strict=True)
            for begin in range(0, length - 1, self._seq_len)
        ]

    def _read(self, window: Window) -> npt.NDArray[np.int64]:
        if self._bos is None:
            return self.shards.read(window.document, window.begin, window.stop).astype(np.int64)
        ids = self.shards.read(window.document, max(0, window.begin - 1), window.stop - 1).astype(np.int64)
        return ids if window.begin else np.concatenate([[self._bos], ids])


def pack(windows: Sequence[Window], seq_len: int) -> list[list[Window]]:
    """Returns the windows by sequence: each the longest that is left, and the shortest that fit behind it."""
    order = sorted(windows, key=lambda window: window.begin - window.stop)
    packed, first, last = [], 0, len(order) - 1
    while first <= last:
        sequence, room = [order[first]], seq_len - (order[first].stop - order[first].begin - 1)
        first += 1
        while first <= last and (size := order[last].stop - order[last].begin - 1) <= room:
            sequence.append(order[last])
            room, last = room - size, last - 1
        packed.append(sequence)
    return packed


def open_held_out(
    name: str, shards: Shards, seq_len: int, max_tokens: int | None, tokenizer: Tokenizer | None
) -> HeldOut:
    """Chooses the documents that are scored, and counts their bytes.

    Args:
        name: what the metrics call it.
        shards: the text.
        seq_len: tokens a window.
        max_tokens: documents are taken in a shuffled order as long as they fit into this; None takes all.
        tokenizer: that made the ids; counts the bytes under `max_tokens`, where the manifest's are of all documents.

    Raises:
        CorpusError: the number of bytes cannot be known, or is 0; no document fits into `max_tokens`.
    """
    if max_tokens is None or shards.num_tokens <= max_tokens:
        counts = [row.get("utf8_bytes") for row in shards.manifest.get("sources", [])]
        if not counts or None in counts:
            raise CorpusError(
                f"validation.data.{name}: {shards.folder} does not say how many bytes its text has; bits per byte need "
                "`utf8_bytes` in the manifest's sources; make the shards with `python -m data_prep tokens`"
            )
        documents, num_bytes = np.arange(shards.num_documents), sum(counts)
    else:
        documents = _choose(name, shards, max_tokens)
        num_bytes = _count_bytes(name, shards, documents, tokenizer)
    if not num_bytes:
        raise CorpusError(f"validation.data.{name}: {shards.folder} has 0 bytes of text; give a corpus with text")
    return HeldOut(name, shards, seq_len, documents, num_bytes)


def _choose(name: str, shards: Shards, max_tokens: int) -> npt.NDArray[np.int64]:
    """Returns the first documents of a fixed shuffled order that fit; longer ones are passed over."""
    chosen, left = [], max_tokens
    for document in generator(0, 0, shards.fingerprint).permutation(shards.num_documents).tolist():
        if (length := int(shards.document_lengths[document])) <= left:
            chosen.append(document)
            left -= length
    if not chosen:
        raise CorpusError(
            f"validation.max_tokens: {max_tokens}, and the shortest document of {name} has "
            f"{shards.document_lengths.min()} tokens; whole documents are scored; raise it"
        )
    return np.sort(np.array(chosen))


def _count_bytes(name: str, shards: Shards, documents: npt.NDArray[np.int64], tokenizer: Tokenizer | None) -> int:
    if tokenizer is None:
        raise CorpusError(
            f"validation.max_tokens: leaves out a part of {name}, and the tokenizer that made {shards.folder} is not "
            "found; it is needed to count the bytes of the rest; put it beside the weights, or give a corpus that is "
            "scored whole with max_tokens=null"
        )
    lengths = shards.document_lengths
    texts = (tokenizer.decode(shards.read(n, 0, int(lengths[n])).tolist()) for n in documents.tolist())
    return sum(len(text.encode()) for text in texts)
