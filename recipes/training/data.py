"""What a step trains on: packed sequences whose order depends on the data, the seed and the step alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from configs.loader import ConfigError
from data_prep.dialogue.chat_template import ChatTemplate
from data_prep.dialogue.examples import read_chat_examples
from data_prep.document import CorpusError
from data_prep.hf_directory import ModelDirectory
from data_prep.lineage import sha256_file, sha256_json
from data_prep.tokens.shards import Shards
from recipes.training.loss import IGNORE

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
    """An endless, randomly accessible series of packed sequences."""

    fingerprint: str

    def sample(self, index: int) -> Sample:
        """Returns sequence `index` of the shuffled series."""
        ...


class TokenStream:
    """Token shards as one stream: documents in an order shuffled anew each epoch, cut every `seq_len` tokens.

    No token is dropped: a document longer than the rest of a sequence continues in the next one, and each
    token except a document's first is the target exactly once an epoch.
    """

    def __init__(self, shards: Shards, seq_len: int, seed: int) -> None:
        self._shards, self._seq_len, self._seed = shards, seq_len, seed
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.fingerprint = shards.fingerprint

    def sample(self, index: int) -> Sample:
        """Returns tokens `index * seq_len` onwards of the endless shuffled stream."""
        sample = Sample.empty(self._seq_len)
        filled = number = 0
        while filled < self._seq_len:
            epoch, offset = divmod(index * self._seq_len + filled, self._shards.num_tokens)
            order, ends = self._order(epoch)
            place = int(np.searchsorted(ends, offset, side="right"))
            document = int(order[place])
            length = int(self._shards.document_lengths[document])
            begin = offset - (int(ends[place]) - length)
            take = min(length - begin, self._seq_len - filled)
            ids = self._shards.read(document, begin, min(begin + take + 1, length)).astype(np.int64)
            sample.tokens[filled : filled + take] = ids[:take]
            sample.targets[filled : filled + len(ids) - 1] = ids[1:]
            sample.documents[filled : filled + take] = number
            filled += take
            number += 1
        return sample

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the epoch's document order and the stream offset behind each document."""
        if epoch not in self._epochs:
            order = _generator(self._seed, epoch, self.fingerprint).permutation(self._shards.num_documents)
            while len(self._epochs) > 1:
                self._epochs.pop(min(self._epochs))
            self._epochs[epoch] = (order, np.cumsum(self._shards.document_lengths[order]))
        return self._epochs[epoch]


class ChatExamples:
    """Chat examples packed whole into sequences; only assistant turns are targets."""

    def __init__(self, path: Path, template: ChatTemplate, seq_len: int, seed: int, over_long: str) -> None:
        """Encodes all examples.

        Args:
            path: chat examples, one JSON object a line.
            template: turns messages into ids and their loss mask.
            seq_len: an example never exceeds it.
            seed: of the order.
            over_long: `error`, or `drop` examples of more than `seq_len` tokens (counted in `dropped`).

        Raises:
            CorpusError: an example is too long under `error`, or none is left.
        """
        self._seq_len, self._seed = seq_len, seed
        self._examples: list[tuple[np.ndarray, np.ndarray]] = []
        self.dropped = 0
        for example in read_chat_examples(path):
            try:
                ids, trained = template.encode(example.messages)
            except CorpusError as error:
                raise CorpusError(f"{path}: example {example.id}: {error}") from None
            if len(ids) <= seq_len:
                self._examples.append((np.array(ids), np.array(trained)))
            elif over_long == "drop":
                self.dropped += 1
            else:
                raise CorpusError(
                    f"{path}: example {example.id} has {len(ids)} tokens; seq_len is {seq_len}; raise it, "
                    "or set over_long=drop"
                )
        if not self._examples:
            raise CorpusError(f"{path} holds no example of at most {seq_len} tokens; raise seq_len")
        self._epochs: list[list[list[int]]] = []
        self.fingerprint = sha256_json([sha256_file(path), template.template, template.tokenizer.sha256, over_long])

    def sample(self, index: int) -> Sample:
        """Returns sequence `index`; epochs follow one another, each packing every example once."""
        epoch = 0
        while index >= len(self._packing(epoch)):
            index -= len(self._packing(epoch))
            epoch += 1
        sample, filled = Sample.empty(self._seq_len), 0
        for number, example in enumerate(self._packing(epoch)[index]):
            ids, trained = self._examples[example]
            end = filled + len(ids)
            sample.tokens[filled:end] = ids
            sample.targets[filled : end - 1] = np.where(trained[1:], ids[1:], IGNORE)
            sample.documents[filled:end] = number
            filled = end
        return sample

    def _packing(self, epoch: int) -> list[list[int]]:
        """Returns the example numbers of each sequence of the epoch: next-fit over a shuffled order."""
        while len(self._epochs) <= epoch:
            order = _generator(self._seed, len(self._epochs), self.fingerprint).permutation(len(self._examples))
            bins: list[list[int]] = [[]]
            room = self._seq_len
            for example in order.tolist():
                length = len(self._examples[example][0])
                if length > room:
                    bins.append([])
                    room = self._seq_len
                bins[-1].append(example)
                room -= length
            self._epochs.append(bins)
        return self._epochs[epoch]


class SampleOrder:
    """Which sequence of which source stands where in a global batch.

    After every step each source has given its weight's share of all sequences, to within one.
    """

    def __init__(self, weights: Sequence[float], sequences_per_step: int, seed: int) -> None:
        self._shares = np.array(weights, float) / sum(weights)
        self._per_step, self._seed = sequences_per_step, seed
        self._drawn, self._next_step = np.zeros(len(weights), np.int64), 0

    def step(self, step: int) -> list[tuple[int, int]]:
        """Returns (source, index within the source) of every sequence of the step's global batch."""
        if step < self._next_step:
            self._drawn, self._next_step = np.zeros_like(self._drawn), 0
        while self._next_step < step:
            self._drawn = self._drawn + self._quota()
            self._next_step += 1
        quota = self._quota()
        picks = [(s, int(self._drawn[s]) + i) for s in range(len(quota)) for i in range(quota[s])]
        return [picks[i] for i in _generator(self._seed, step, "order").permutation(len(picks))]

    def _quota(self) -> np.ndarray:
        """Returns the sequences each source gives to the next step: its deficit, by largest remainder."""
        deficit = self._shares * (self._drawn.sum() + self._per_step) - self._drawn
        quota = np.maximum(0, np.floor(deficit)).astype(np.int64)
        for source in np.argsort(-(deficit - quota), kind="stable")[: self._per_step - int(quota.sum())]:
            quota[source] += 1
        return quota


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the device: int64 (batch, seq); `mask` bool (batch, seq, seq), True = attends."""

    tokens: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    padding: int
    """Positions that hold no token of the data."""


class Batches:
    """The micro-batches of this rank at any step."""

    def __init__(
        self, sources: Sequence[Source], order: SampleOrder, micro_batch: int, rank: int, world_size: int
    ) -> None:
        self._sources, self._order, self._micro_batch = sources, order, micro_batch
        self._rank, self._world_size = rank, world_size

    def micro_batches(self, step: int, device: torch.device) -> list[Batch]:
        """Returns this rank's share of the step's global batch."""
        picks = self._order.step(step)[self._rank :: self._world_size]
        samples = [self._sources[source].sample(index) for source, index in picks]
        groups = [samples[i : i + self._micro_batch] for i in range(0, len(samples), self._micro_batch)]
        return [_collate(group, device) for group in groups]


def data_entries(data: Any) -> list[dict[str, Any]]:
    """Normalises the key `data`: a path, a list of paths, or a list of {shards | chat, weight}.

    Raises:
        ConfigError: another form, a missing path, or a weight that is not positive; all at once.
    """
    problems, entries = [], []
    for number, item in enumerate([data] if isinstance(data, str) else list(data)):
        if isinstance(item, str):
            item = {"chat" if Path(item).is_file() else "shards": item}
        item = dict(item)
        kinds = item.keys() & {"shards", "chat"}
        unknown = sorted(item.keys() - {"shards", "chat", "weight"})
        weight = item.get("weight", 1.0)
        where = f"data[{number}]"
        if unknown or len(kinds) != 1:
            problems.append(
                f"{where}: has keys {', '.join(map(str, item))}; one of shards or chat, and weight, are known"
            )
            continue
        path = Path(item[next(iter(kinds))])
        if not path.exists():
            problems.append(f"{where}: {path} does not exist; give token shards or a chat-example file")
        if not isinstance(weight, int | float) or weight <= 0:
            problems.append(f"{where}: weight {weight!r} is not a number above 0; set one, or remove the entry")
        entries.append({next(iter(kinds)): path, "weight": weight})
    if not problems and not entries:
        problems.append("data: is empty; give at least one folder of token shards or chat-example file")
    if problems:
        raise ConfigError("data", problems)
    return entries


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


def _collate(samples: list[Sample], device: torch.device) -> Batch:
    tokens, targets, documents = (
        torch.from_numpy(np.stack([getattr(s, name) for s in samples])).to(device)
        for name in ("tokens", "targets", "documents")
    )
    seq_len = tokens.shape[1]
    index = torch.arange(seq_len, device=device).expand_as(tokens)
    is_start = torch.ones_like(documents, dtype=torch.bool)
    is_start[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = torch.where(is_start, index, 0).cummax(dim=1).values
    causal = torch.ones(seq_len, seq_len, dtype=torch.bool, device=device).tril()
    mask = (documents[:, :, None] == documents[:, None, :]) & causal
    return Batch(tokens, targets, index - starts, mask, int((documents == PADDING).sum()))


def _generator(seed: int, number: int, salt: str) -> np.random.Generator:
    return np.random.default_rng([seed, number, int(sha256_json(salt)[:16], 16)])
