"""How the next token is chosen: the settings of published model cards, with the meaning transformers gives them."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from data_prep.document import CorpusError
from data_prep.generation_settings import generation_config


@dataclass(frozen=True)
class Sampling:
    """Settings of one answer; the defaults take the likeliest token."""

    temperature: float = 0.0
    """0 takes the likeliest token; above 0 samples."""
    top_k: int = 0
    """Sampled from so many likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Sampled from the likeliest tokens that make up this share; 1 for all."""
    min_p: float = 0.0
    """Least probability of a sampled token, as a share of the likeliest one's."""
    repetition_penalty: float = 1.0
    """Divides the positive logits, and multiplies the negative ones, of tokens of prompt and answer."""
    no_repeat_ngram_size: int = 0
    """No so many tokens in a row come twice in prompt and answer; 0 for no rule."""


RANGES = {
    "temperature": (lambda value: value >= 0, "0 or more"),
    "top_k": (lambda value: value >= 0, "0 (all) or more"),
    "top_p": (lambda value: 0 < value <= 1, "above 0, at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "repetition_penalty": (lambda value: value > 0, "above 0; 1 is none"),
    "no_repeat_ngram_size": (lambda value: value >= 0, "0 (none) or more"),
}


def sampling_problems(values: Mapping[str, Any]) -> list[str]:
    """Returns a problem for each setting that is out of its range; None is not set."""
    return [
        f"{name}: {values[name]} is out of range; use {allowed}"
        for name, (fits, allowed) in RANGES.items()
        if values.get(name) is not None and not (math.isfinite(values[name]) and fits(values[name]))
    ]


def changed(sampling: Sampling, values: Mapping[str, Any]) -> Sampling:
    """Returns the settings with those of `values` that are given and not None in their place."""
    names = [field.name for field in fields(Sampling)]
    return replace(sampling, **{name: values[name] for name in names if values.get(name) is not None})


def own_sampling(folder: Path) -> Sampling:
    """Returns what a model's generation_config.json asks for.

    As in transformers, only a model with `do_sample` samples, then by default at temperature 1 and of 50 tokens.

    Raises:
        CorpusError: the file is no JSON object, or a setting in it is out of its range.
    """
    found = generation_config(folder)
    values = {field.name: found.get(field.name) for field in fields(Sampling)}
    if not found.get("do_sample"):
        values |= {"temperature": 0.0, "top_k": None, "top_p": None, "min_p": None}
    else:
        values |= {"temperature": found.get("temperature") or 1.0, "top_k": found.get("top_k", 50)}
    wrong = [name for name, value in values.items() if not isinstance(value, int | float | None)]
    problems = [f"{name} is no number" for name in wrong] or sampling_problems(values)
    if problems:
        raise CorpusError(f"{folder / 'generation_config.json'}: {'; '.join(problems)}; mend it there")
    return changed(Sampling(), values)


class Sampler:
    """Chooses the tokens of one answer; remembers them.

    The steps and their order are those of transformers' `generate`: repetition penalty, repeated n-grams, temperature,
    top_k, top_p, min_p.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], seed: int, device: torch.device) -> None:
        self._sampling, self._history = sampling, list(prompt)
        self._random = torch.Generator(device).manual_seed(seed)
        self._seen = torch.tensor(sorted(set(prompt)), dtype=torch.int64, device=device)
        self._followers: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for end in range(1, len(self._history) + 1):
            self._note_ngram(end)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns the next token, (1,), of logits (1, vocab), fp32."""
        scores = self.scores(logits)
        if self._sampling.temperature == 0:
            chosen = scores.argmax(-1)
        else:
            chosen = torch.multinomial(scores.softmax(-1), 1, generator=self._random)[:, 0]
        self._history.append(int(chosen))
        self._note_ngram(len(self._history))
        if self._sampling.repetition_penalty != 1:
            self._seen = torch.cat([self._seen, chosen]).unique()
        return chosen

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns the logits, (1, vocab), that the next token is drawn from; what it cannot be is -inf."""
        settings = self._sampling
        if settings.repetition_penalty != 1:
            found = logits[:, self._seen]
            penalised = torch.where(found < 0, found * settings.repetition_penalty, found / settings.repetition_penalty)
            logits = logits.index_copy(1, self._seen, penalised)
        if settings.no_repeat_ngram_size and (banned := self._followers.get(self._last_tokens())):
            logits = logits.index_fill(1, torch.tensor(banned, device=logits.device), -math.inf)
        if settings.temperature == 0:
            return logits
        return _likeliest(logits / settings.temperature, settings)

    def _last_tokens(self) -> tuple[int, ...]:
        count = self._sampling.no_repeat_ngram_size - 1
        return tuple(self._history[len(self._history) - count :]) if count <= len(self._history) else (-1,)

    def _note_ngram(self, end: int) -> None:
        """Remembers which token ends the n-gram before position `end`."""
        size = self._sampling.no_repeat_ngram_size
        if size and end >= size:
            self._followers[tuple(self._history[end - size : end - 1])].append(self._history[end - 1])


def _likeliest(logits: torch.Tensor, settings: Sampling) -> torch.Tensor:
    """Returns the logits, (1, vocab), with -inf for all that top_k, top_p and min_p leave out.

    Source: Fan et al. 2018, section 5.1 (top_k); Holtzman et al. 2020, section 3.1 (top_p); Nguyen et al. 2024 (min_p).
    """
    if settings.top_k:
        least = logits.topk(min(settings.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if settings.top_p < 1:
        ascending, order = logits.sort(descending=False)
        left_out = ascending.softmax(-1).cumsum(-1) <= 1 - settings.top_p
        left_out[:, -1] = False  # the likeliest one stays
        logits = logits.masked_fill(left_out.scatter(1, order, left_out), -math.inf)
    if settings.min_p:
        shares = logits.softmax(-1)
        logits = logits.masked_fill(shares < settings.min_p * shares.amax(-1, keepdim=True), -math.inf)
    return logits
