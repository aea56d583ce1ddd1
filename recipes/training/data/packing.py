"""What a step trains on: packed sequences whose order depends on the data, the seed and the step alone."""

import bisect
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from configs.loader import ConfigError
from data_prep.dialogue.chat_rows import ChatSource
from data_prep.dialogue.chat_template import ChatTemplate
from data_prep.hf_directory import ModelDirectory
from data_prep.lineage import sha256_file
from data_prep.tokens.shards import Shards
from recipes.training.data.chat_examples import Policies, encode_examples
from recipes.training.data.order import generator
from recipes.training.model.loss import IGNORE

PADDING = -1
"""Document number of a position that holds no token of the data."""


@dataclass(frozen=True)
class Sample:
    """One packed sequence; all arrays are (seq_len,), int64.

    `targets` holds the next token of the same document, or `IGNORE`; `documents` numbers the documents
    within the sequence from 0, `PADDING` behind the last.
    """

    tokens: np.ndarray
    targets: np.ndarray
    documents: np.ndarray

    @classmethod
    def empty(cls, seq_len: int) -> "Sample":
        """Returns a sequence of padding."""
        return cls(np.zeros(seq_len, np.int64), np.full(seq_len, IGNORE), np.full(seq_len, PADDING))


class Source(Protocol):
    """An endless, randomly accessible series of packed sequences; `num_tokens` are those of one epoch."""

    fingerprint: str
    num_tokens: int

    @property
    def sequences_per_epoch(self) -> float:
        """Sequences that hold the source once."""
        ...

    def sample(self, index: int) -> Sample:
        """Returns sequence `index` of the shuffled series."""
        ...

    def documents(self, index: int) -> list[str]:
        """Returns the names of the documents of sequence `index`, as `Sample.documents` numbers them."""
        ...


class TokenStream:
    """Token shards as one stream: documents in an order shuffled anew each epoch, cut every `seq_len` tokens.

    No token is dropped: a document longer than the rest of a sequence continues in the next one, and each
    token except a document's first is the target exactly once an epoch.
    """

    def __init__(self, shards: Shards, seq_len: int, seed: int) -> None:
        self.shards, self._seq_len, self._seed = shards, seq_len, seed
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.fingerprint, self.num_tokens = shards.fingerprint, shards.num_tokens

    @property
    def sequences_per_epoch(self) -> float:
        """Sequences that hold every token once; the last of an epoch ends in the next one."""
        return self.num_tokens / self._seq_len

    def sample(self, index: int) -> Sample:
        """Returns tokens `index * seq_len` onwards of the endless shuffled stream."""
        sample, filled = Sample.empty(self._seq_len), 0
        for number, (document, begin, take) in enumerate(self._pieces(index)):
            following = min(begin + take + 1, int(self.shards.document_lengths[document]))
            ids = self.shards.read(document, begin, following)
            sample.tokens[filled : filled + take] = ids[:take]
            sample.targets[filled : filled + len(ids) - 1] = ids[1:]
            sample.documents[filled : filled + take] = number
            filled += take
        return sample

    def documents(self, index: int) -> list[str]:
        """Returns the documents of sequence `index`, numbered in the order of the shards."""
        return [f"document {document}" for document, _, _ in self._pieces(index)]

    def _pieces(self, index: int) -> Iterator[tuple[int, int, int]]:
        """Yields (document, first token within it, number of tokens) of what fills sequence `index`."""
        filled = 0
        while filled < self._seq_len:
            epoch, offset = divmod(index * self._seq_len + filled, self.num_tokens)
            order, ends = self._order(epoch)
            place = int(np.searchsorted(ends, offset, side="right"))
            document = int(order[place])
            begin = offset - (int(ends[place]) - int(self.shards.document_lengths[document]))
            take = min(int(ends[place]) - offset, self._seq_len - filled)
            yield document, begin, take
            filled += take

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the epoch's document order and the stream offset behind each document."""
        known = self._epochs.get(epoch)
        if known is None:
            order = generator(self._seed, epoch, self.fingerprint).permutation(self.shards.num_documents)
            known = (order, np.cumsum(self.shards.document_lengths[order]))
            # a new dictionary: the thread that reads ahead and the one that trains may both be here
            kept = self._epochs
            self._epochs = {number: kept[number] for number in sorted(kept)[-1:]} | {epoch: known}
        return known


class ChatExamples:
    """Chat examples packed whole into sequences; only assistant turns are targets. `found` has their ledger."""

    def __init__(self, source: ChatSource, template: ChatTemplate, seq_len: int, seed: int, policies: Policies) -> None:
        """Encodes all examples.

        Args:
            source: file or dataset of chat examples.
            template: turns messages into ids and their loss mask.
            seq_len: an example never exceeds it.
            seed: of the order.
            policies: what becomes of examples that cannot be learnt from as they are.

        Raises:
            CorpusError: an example cannot be used under a policy `error`, or none is left.
        """
        self._seq_len, self._seed, self.tokenizer = seq_len, seed, template.tokenizer
        self.found = encode_examples(source, template, seq_len, policies)
        self._examples = self.found.examples
        self._epochs: list[list[list[int]]] = []
        self._ends: list[int] = []
        self._growing = threading.Lock()
        self.num_tokens = self.found.num_tokens
        self.fingerprint = self.found.fingerprint()

    def sample(self, index: int) -> Sample:
        """Returns sequence `index`; epochs follow one another, each packing every example once."""
        sample, filled = Sample.empty(self._seq_len), 0
        for number, example in enumerate(self._packed(index)):
            ids, is_learnt = self._examples[example].ids, self._examples[example].is_learnt
            end = filled + len(ids)
            sample.tokens[filled:end] = ids
            sample.targets[filled : end - 1] = np.where(is_learnt[1:], ids[1:].astype(np.int64), IGNORE)
            sample.documents[filled:end] = number
            filled = end
        return sample

    @property
    def sequences_per_epoch(self) -> float:
        """Sequences that hold every example once, in the first epoch; another order packs a few more or less."""
        self._packed(0)
        return self._ends[0]

    def documents(self, index: int) -> list[str]:
        """Returns the ids of the examples in sequence `index`."""
        return [self._examples[example].name for example in self._packed(index)]

    def _packed(self, index: int) -> list[int]:
        """Returns the example numbers of sequence `index`: each epoch packs a shuffled order next-fit."""
        with self._growing:  # the thread that reads ahead and the one that trains may both be here
            while not self._ends or index >= self._ends[-1]:
                self._epochs.append(self._pack(len(self._epochs)))
                self._ends.append((self._ends[-1] if self._ends else 0) + len(self._epochs[-1]))
        epoch = bisect.bisect_right(self._ends, index)
        return self._epochs[epoch][index - self._ends[epoch]]  # the negative place counts from the epoch's end

    def _pack(self, epoch: int) -> list[list[int]]:
        order = generator(self._seed, epoch, self.fingerprint).permutation(len(self._examples))
        bins: list[list[int]] = [[]]
        room = self._seq_len
        for example in order.tolist():
            length = len(self._examples[example].ids)
            if length > room:
                bins.append([])
                room = self._seq_len
            bins[-1].append(example)
            room -= length
        return bins


def open_shards(folder: Path, vocab_size: int, weights: str | None) -> Shards:
    """Opens token shards, checking that they were made with the tokenizer of the model that reads them.

    Args:
        folder: the shards.
        vocab_size: of the model.
        weights: Hugging Face directory of the model; one without tokenizer files is not compared.

    Raises:
        ConfigError: the shards' vocabulary is larger than the model's, or the tokenizer is another one.
        CorpusError: the folder holds no complete shards.
    """
    shards = Shards.open(folder)
    size, sha256 = shards.manifest["tokenizer"]["vocab_size"], shards.manifest["tokenizer"]["sha256"]
    if size > vocab_size:
        problem = f"was made with {size} pieces, the model has {vocab_size}; make the shards with the model's tokenizer"
        raise ConfigError(folder, [problem])
    names = ModelDirectory.open(weights).tokenizer_files() if weights else []
    hashes = {name: sha256_file(Path(weights or "") / name) for name in names}
    if hashes and sha256 not in hashes.values():
        found = ", ".join(f"{name} {one[:12]}" for name, one in hashes.items())
        problem = f"was made with the tokenizer {sha256[:12]}, {weights} has {found}; make the shards with one of them"
        raise ConfigError(folder, [problem])
    return shards
