"""An answer as it is written: pieces of text, why it ended, and the turns that fit before it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from configs.loader import UserError
from data_prep.dialogue.chat_template import ChatTemplate
from data_prep.dialogue.messages import Message
from data_prep.generation_settings import end_ids
from data_prep.hf_directory import ModelDirectory
from data_prep.tokens.tokenizer import Tokenizer
from recipes.evaluation.generate import Generator
from recipes.evaluation.sampling import Sampler, Sampling


class PromptError(UserError):
    """A prompt cannot be answered; the message says why."""


@dataclass(frozen=True)
class Talker:
    """A model ready to answer."""

    name: str
    generator: Generator
    tokenizer: Tokenizer
    template: ChatTemplate | None
    """None of a base model, which only completes texts."""
    stop_ids: tuple[int, ...]
    sampling: Sampling
    """What is not asked for otherwise."""
    most_tokens: int
    """Prompt and answer together."""
    vocab_size: int


@dataclass(frozen=True)
class Wish:
    """How one answer is to be written."""

    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    """An answer ends before the first of these, or with it where it is a special token."""
    seed: int = 0
    logprobs: int | None = None
    """How many of the likeliest tokens are told at each place; None: no log probabilities at all."""


@dataclass(frozen=True)
class Scored:
    """A token, its log probability before any sampling setting, and the likeliest ones in its place."""

    id: int
    logprob: float | None
    """None of a text's first token, which nothing precedes."""
    best: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """What one token brought: text (often none), the number of tokens so far, and in the last one why it ended."""

    text: str
    tokens: int
    reason: str | None = None
    """`stop`: an end token or a stop string; `length`: max_new_tokens or all the model reads; None: it goes on."""
    scored: Scored | None = None


def opening(system: str | None, question: str) -> list[Message]:
    """Returns the messages that begin a conversation."""
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": question}]


def stop_ids(directory: ModelDirectory, tokenizer: Tokenizer, template: ChatTemplate | None) -> tuple[int, ...]:
    """Returns the ids that end an answer: those of the model's files, or the document end, and the template's."""
    ids = end_ids(directory.path) or [tokenizer.eos_id]
    end_of_turn = template.end_of_turn if template else None
    return tuple(dict.fromkeys([*ids, *([] if end_of_turn is None else [end_of_turn])]))


class PartialText:
    """Turns ids into text while they come, in whole characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._ids = tokenizer, list[int]()
        self._start = self._given = 0
        """Where what is decoded begins, and up to where it has been given out."""

    def add(self, id_: int) -> str:
        """Returns the text that has become complete; an unfinished character waits for its other tokens."""
        self._ids.append(id_)
        # the last piece is decoded again, because some tokenizers write a token differently at the start of a text
        before = self._tokenizer.decode(self._ids[self._start : self._given])
        text = self._tokenizer.decode(self._ids[self._start :])
        if text.endswith("�"):
            return ""
        self._start, self._given = self._given, len(self._ids)
        return text[len(before) :]


def speak(talker: Talker, prompt: Sequence[int], wish: Wish) -> Iterator[Piece]:
    """Yields the answer to a prompt, a piece a token, the last one with its reason.

    Raises:
        PromptError: the prompt leaves no room for an answer.
    """
    if len(prompt) >= talker.most_tokens:
        raise PromptError(
            f"the prompt has {len(prompt)} tokens; {talker.most_tokens} are the limit of prompt and answer; shorten it"
        )
    specials = talker.tokenizer.special_tokens
    ends = {*talker.stop_ids, *(specials[text] for text in wish.stop if text in specials)}
    stops = [text for text in wish.stop if text not in specials]
    sampler = Sampler(wish.sampling, prompt, wish.seed, talker.generator.device)
    scored: list[Scored] = []

    def choose(logits: torch.Tensor) -> torch.Tensor:
        chosen = sampler(logits)
        if wish.logprobs is not None:
            scored.append(_scored(int(chosen), logits[0], wish.logprobs))
        return chosen

    text, held, count = PartialText(talker.tokenizer), "", 0
    for (token,) in talker.generator.stream([list(prompt)], list(ends), wish.max_new_tokens, choose):
        assert token is not None
        count, last = count + 1, scored[-1] if scored else None
        if token in ends:
            yield Piece(held, count, "stop", last)
            return
        held += text.add(token)
        if (end := min((held.find(stop) for stop in stops if stop in held), default=-1)) >= 0:
            yield Piece(held[:end], count, "stop", last)
            return
        ready = len(held) - _begun(held, stops)
        yield Piece(held[:ready], count, None, last)
        held = held[ready:]
    yield Piece(held, count, "length")


def _scored(id_: int, logits: torch.Tensor, most: int) -> Scored:
    scores = logits.log_softmax(-1)
    best = scores.topk(most)
    return Scored(id_, float(scores[id_]), dict(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


def _begun(text: str, stops: Sequence[str]) -> int:
    """Returns how many characters at the end of a text may be the beginning of a stop string."""
    return max((length for stop in stops for length in range(1, len(stop)) if text.endswith(stop[:length])), default=0)


def fitting(talker: Talker, messages: Sequence[Message], max_new_tokens: int) -> tuple[list[Message], int]:
    """Returns the messages without as many of the oldest turns as must go for an answer to fit, and their number.

    The system turn and the last question stay. An answer finds room for `max_new_tokens`, or for a quarter of what the
    model reads where that is less, unless these two leave less still.

    Raises:
        PromptError: system turn and last question alone are too long.
        UnusableExample: see `ChatTemplate.prompt`.
    """
    assert talker.template is not None
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns, dropped = list(messages[len(system) :]), 0
    room = min(max_new_tokens, talker.most_tokens // 4)
    while (count := len(talker.template.prompt([*system, *turns]))) + room > talker.most_tokens:
        if len(turns) == 1:
            break
        turns, dropped = turns[2:], dropped + 1
    if count >= talker.most_tokens:
        raise PromptError(f"the prompt has {count} tokens; {talker.most_tokens} are the limit; shorten it")
    return [*system, *turns], dropped
