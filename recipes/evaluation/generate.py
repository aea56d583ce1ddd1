"""Text from a model: greedy or sampled, in batches, with a key-value cache."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from recipes.evaluation.cache import CachedLayer, Step

SCORED_AT_ONCE = 512
"""Positions whose logits exist at once; those of a whole prompt can take gigabytes."""


class Generator:
    """Continues prompts with one model; holds its key-value cache. The model stays as it is."""

    def __init__(self, model: nn.Module, batch: int, max_tokens: int, compiled: bool = False) -> None:
        """Allocates the cache, in the dtype of the model's matrices.

        Args:
            model: torchtune's decoder, on its device.
            batch: prompts continued at once.
            max_tokens: prompt and answer together; at most the model's max_seq_len.
            compiled: whether the layers are compiled for single tokens, at the first one; a prompt is read without.
        """
        self._model = cast(Any, model.eval())
        self._batch, self._max_tokens, self._compiled = batch, max_tokens, compiled
        self._layers = [CachedLayer(layer, batch, max_tokens) for layer in self._model.layers]
        self.device = next(model.parameters()).device
        for layer in self._layers if compiled else []:
            layer.compile(fullgraph=True, dynamic=False)

    def answer(self, prompts: Sequence[list[int]], stop_ids: Sequence[int], max_new_tokens: int) -> list[list[int]]:
        """Returns the greedy continuation of every prompt, its stop id included when it was reached."""
        answers: list[list[int]] = []
        for start in range(0, len(prompts), self._batch):
            group = list(prompts[start : start + self._batch])
            continued: list[list[int]] = [[] for _ in group]
            for ids in self.stream(group, stop_ids, max_new_tokens, lambda logits: logits.argmax(-1)):
                for row, token in enumerate(ids):
                    if token is not None:
                        continued[row].append(token)
            answers += continued
        return answers

    @torch.inference_mode()
    def stream(
        self,
        prompts: Sequence[list[int]],
        stop_ids: Sequence[int],
        max_new_tokens: int,
        choose: Callable[[torch.Tensor], torch.Tensor],
    ) -> Iterator[list[int | None]]:
        """Yields the next token of every prompt, None behind its stop id, until all have ended.

        Args:
            prompts: at most `batch` lists of ids; shorter ones are padded on the left.
            stop_ids: an answer ends with the first of these.
            max_new_tokens: an answer without a stop id ends after these.
            choose: logits (prompts, vocab), fp32 -> ids (prompts,).

        Raises:
            ValueError: the longest prompt leaves no room for an answer in the cache.
        """
        width = max(len(prompt) for prompt in prompts)
        if width >= self._max_tokens:
            raise ValueError(f"a prompt has {width} tokens; prompt and answer may have {self._max_tokens}; shorten it")
        tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in prompts], device=self.device)
        padding = torch.tensor([width - len(row) for row in prompts], device=self.device)
        is_padded = len({len(row) for row in prompts}) > 1
        step = self._whole_prompts(width, padding, is_padded)
        running = [True] * len(prompts)
        for length in range(width, min(self._max_tokens, width + max_new_tokens)):
            chosen = choose(self._logits(self._hidden(tokens, step)[:, -1]))
            ids = chosen.tolist()
            yield [token if alive else None for token, alive in zip(ids, running, strict=True)]
            running = [alive and token not in stop_ids for token, alive in zip(ids, running, strict=True)]
            if not any(running):
                return
            tokens, step = chosen[:, None], self._one_token(length, padding, is_padded)

    @torch.inference_mode()
    def log_probabilities(self, ids: Sequence[int], most: int) -> Iterator[tuple[float, dict[int, float]]]:
        """Yields the log probability of every token but the first, and of the likeliest tokens in its place.

        Args:
            ids: one text, at most `max_tokens`.
            most: how many of the likeliest.
        """
        tokens = torch.tensor([list(ids)], device=self.device)
        hidden = self._hidden(tokens, self._whole_prompts(len(ids), tokens.new_zeros(1), is_padded=False))[0]
        for start in range(0, len(ids) - 1, SCORED_AT_ONCE):
            targets = tokens[0, start + 1 : start + 1 + SCORED_AT_ONCE]
            scores = self._logits(hidden[start : start + len(targets)]).log_softmax(-1)
            found = scores.gather(1, targets[:, None])[:, 0].tolist()
            best = scores.topk(most)
            for own, ids_, values in zip(found, best.indices.tolist(), best.values.tolist(), strict=True):
                yield own, dict(zip(ids_, values, strict=True))

    def _hidden(self, tokens: torch.Tensor, step: Step) -> torch.Tensor:
        """Returns the normalised hidden states, (batch, seq, embed_dim)."""
        hidden = self._model.tok_embeddings(tokens)
        for layer in self._layers:
            # `forward` is what a compiled layer does without compiling: prompts come in every length
            hidden = layer(hidden, step) if tokens.shape[1] == 1 else layer.forward(hidden, step)
        return self._model.norm(hidden)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns (n, vocab), fp32, of hidden states (n, embed_dim)."""
        return self._model.output(hidden).float()

    def _whole_prompts(self, width: int, padding: torch.Tensor, is_padded: bool) -> Step:
        """Returns where the tokens of prompts stand, `padding` of each row in front."""
        slots = torch.arange(width, device=self.device)
        mask = None
        if is_padded:
            # padding attends to itself: a row that attends to nothing would be NaN and spread through the values
            mask = (slots <= slots[:, None]) & ((slots >= padding[:, None, None]) | (slots == slots[:, None]))
            mask = mask[:, None]
        return Step((slots - padding[:, None]).clamp(min=0), slots, width, mask)

    def _one_token(self, slot: int, padding: torch.Tensor, is_padded: bool) -> Step:
        """Returns where one more token of every row stands, which goes to the column `slot`."""
        slots = torch.tensor([slot], device=self.device)
        # a compiled layer wants one shape, and attends to the whole cache; another reads no more than is filled
        length = self._max_tokens if self._compiled else slot + 1
        mask = None
        if is_padded or self._compiled:
            columns = torch.arange(length, device=self.device)
            mask = ((columns >= padding[:, None]) & (columns <= slots))[:, None, None]
        return Step(slots - padding[:, None], slots, length, mask)
