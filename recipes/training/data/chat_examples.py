"""Chat examples as ids and loss masks: which can be learnt from, and what became of the others."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.dialogue.chat_rows import ChatSource
from data_prep.dialogue.chat_template import ChatTemplate
from data_prep.dialogue.examples import ChatExample, Unusable, read_examples
from data_prep.dialogue.messages import Message, UnusableExample, split_system
from data_prep.document import CorpusError

KEY_OF_REASON = {"empty_answer": "empty_answers", "special_tokens": "special_tokens", "over_long": "over_long"}
POLICIES = {
    "invalid": ("error", "drop"),
    "empty_answers": ("error", "drop"),
    "special_tokens": ("error", "drop"),
    "over_long": ("error", "drop", "split"),
}
TRAIN_ON = ("all", "last")


@dataclass(frozen=True)
class Policies:
    """What becomes of examples that cannot be learnt from as they are, each a value of `POLICIES`; what is learnt."""

    invalid: str = "error"
    empty_answers: str = "error"
    special_tokens: str = "error"
    over_long: str = "error"
    train_on: str = "all"

    def key_of(self, reason: str) -> str:
        """Returns the key that decides about a reason."""
        return KEY_OF_REASON.get(reason, "invalid")


@dataclass(frozen=True)
class Encoded:
    """An example, or a part of one: ids, uint32, and whether each is learnt, bool; (tokens,)."""

    name: str
    ids: npt.NDArray[np.uint32]
    is_learnt: npt.NDArray[np.bool_]


@dataclass
class ExampleSet:
    """The examples of a source, and the ledger: in + splits = examples + dropped."""

    name: str
    num_in: int = 0
    num_split: int = 0
    """Examples that were split into several."""
    num_parts: int = 0
    """Those that they were split into."""
    dropped_turns: int = 0
    """Questions with their answers that were too long for a part of their own."""
    examples: list[Encoded] = field(default_factory=list)
    dropped: list[Unusable] = field(default_factory=list)

    def ledger(self) -> dict[str, Any]:
        """Returns the ledger as plain values.

        Raises:
            CorpusError: it does not add up.
        """
        if self.num_in + self.num_parts - self.num_split != len(self.examples) + len(self.dropped):
            raise CorpusError(
                f"{self.name}: {self.num_in} examples + {self.num_parts} parts of {self.num_split} are not "
                f"{len(self.examples)} learnt + {len(self.dropped)} dropped; the ledger must add up; report this"
            )
        split = {"examples": self.num_split, "into": self.num_parts, "turns_dropped": self.dropped_turns}
        return {
            "in": self.num_in,
            "out": len(self.examples),
            "dropped": dict(sorted(Counter(one.reason for one in self.dropped).items())),
            **({"split": split} if self.num_split else {}),
            "tokens": self.num_tokens,
            "learnt_tokens": sum(int(one.is_learnt.sum()) for one in self.examples),
        }

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples."""
        return sum(len(one.ids) for one in self.examples)

    def describe(self) -> str:
        """Returns the ledger as a line for people."""
        ledger = self.ledger()
        told = [f"{number} {reason}" for reason, number in ledger["dropped"].items()]
        line = f"{self.name}: {ledger['in']:,} examples read, {ledger['out']:,} to learn from"
        line += f"; dropped {', '.join(told)}" if told else ""
        if split := ledger.get("split"):
            line += f"; split {split['examples']} into {split['into']}"
            line += f", without {split['turns_dropped']} turns too long by themselves" if split["turns_dropped"] else ""
        return line

    def fingerprint(self) -> str:
        """Returns a hash of all that is learnt from: the ids, and which of them are learnt."""
        content = hashlib.sha256()
        for one in self.examples:
            content.update(len(one.ids).to_bytes(8, "little") + one.ids.tobytes() + one.is_learnt.tobytes())
        return content.hexdigest()


def encode_examples(
    source: ChatSource, template: ChatTemplate, seq_len: int, policies: Policies, strict: bool = True
) -> ExampleSet:
    """Reads and encodes all examples of a source.

    Args:
        source: file or dataset.
        template: turns messages into ids and their loss mask.
        seq_len: tokens that an example may have.
        policies: what becomes of those that cannot be learnt from as they are.
        strict: whether an example whose policy is `error` ends the reading; without it, it counts as dropped.

    Raises:
        CorpusError: an example cannot be used, or none is left; the message names file and line.
    """
    found = ExampleSet(source.path)
    for place, example in read_examples(source):
        found.num_in += 1
        if isinstance(example, Unusable):
            unusable: Unusable | None = example
        else:
            unusable = _add(found, place, example, template, seq_len, policies)
        if unusable is None:
            continue
        key = policies.key_of(unusable.reason)
        if strict and getattr(policies, key) == "error":
            choices = " or ".join(f"{key}={value}" for value in POLICIES[key][1:])
            raise CorpusError(f"{unusable.message}, or set {choices}")
        found.dropped.append(unusable)
    if strict and not found.examples:
        raise CorpusError(
            f"{found.name} holds no example of at most {seq_len} tokens to learn from ({found.describe()}); "
            "at least one is needed; raise seq_len, or give another file"
        )
    return found


def _add(
    found: ExampleSet, place: str, example: ChatExample, template: ChatTemplate, seq_len: int, policies: Policies
) -> Unusable | None:
    """Adds an example, whole or in parts; returns what is wrong with it if it cannot be."""
    where = f"{place}: example {example.id}" if example.id != place else place
    try:
        whole = _encode(example.id, example.messages, template, policies)
        if len(whole.ids) <= seq_len:
            found.examples.append(whole)
            return None
        parts: list[Encoded] = []
        dropped_turns = 0
        if policies.over_long == "split":
            parts, dropped_turns = _split(example, template, seq_len, policies)
    except UnusableExample as error:
        return Unusable(place, error.reason, f"{where}: {error}")
    if not parts:
        told = f"{where} has {len(whole.ids)} tokens; seq_len is {seq_len}; raise it"
        return Unusable(place, "over_long", told)
    found.num_split, found.num_parts = found.num_split + 1, found.num_parts + len(parts)
    found.dropped_turns += dropped_turns
    found.examples += parts
    return None


def _encode(name: str, messages: list[Message], template: ChatTemplate, policies: Policies) -> Encoded:
    ids, is_learnt = template.encode(messages, policies.train_on)
    return Encoded(name, np.array(ids, np.uint32), np.array(is_learnt))


def _split(example: ChatExample, template: ChatTemplate, seq_len: int, policies: Policies) -> tuple[list[Encoded], int]:
    """Returns the parts of a dialogue that fit, each with the system message, and the number of turns left out.

    A part ends where the next question with its answer would not fit. One that does not fit alone is left out.
    """
    system, turns = split_system(example.messages)
    pairs = [turns[start : start + 2] for start in range(0, len(turns), 2)]
    parts: list[Encoded] = []
    held: Encoded | None = None
    messages: list[Message] = []
    dropped = 0
    for pair in pairs:
        longer = _encode(example.id, [*system, *messages, *pair], template, policies)
        if messages and len(longer.ids) > seq_len:
            parts += [held] if held else []
            messages, held = [], None
            longer = _encode(example.id, [*system, *pair], template, policies)
        if len(longer.ids) <= seq_len:
            messages, held = [*messages, *pair], longer
        else:
            dropped += 1
    parts += [held] if held else []
    named = [Encoded(f"{example.id}/{number}", part.ids, part.is_learnt) for number, part in enumerate(parts, start=1)]
    return named, dropped


def length_bins(found: ExampleSet, num_bins: int = 8) -> Iterator[tuple[int, int, int]]:
    """Yields (shortest, longest, number) of the examples' lengths in tokens, in bins up to the longest one's."""
    lengths = np.array([len(one.ids) for one in found.examples])
    edges = [int(lengths.max()) * number // num_bins for number in range(num_bins + 1)]
    for low, high in itertools.pairwise(edges):
        yield low + 1, high, int(((lengths > low) & (lengths <= high)).sum())
