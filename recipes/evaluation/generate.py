"""Text from a model: greedy or sampled, in batches, with a key-value cache."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn


class Generator:
    """Continues prompts with one model; holds its key-value cache."""

    def __init__(self, model: nn.Module, batch: int, max_tokens: int) -> None:
        """Allocates the cache.

        Args:
            model: torchtune's decoder, on its device.
            batch: prompts continued at once.
            max_tokens: prompt and answer together; at most the model's max_seq_len.
        """
        self._model, self._batch, self._max_tokens = model.eval(), batch, max_tokens
        self._device = next(model.parameters()).device
        dtype = next(model.parameters()).dtype
        with self._device:
            model.setup_caches(batch, dtype, decoder_max_seq_len=max_tokens)  # type: ignore[operator]

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
            choose: logits (batch, vocab), fp32 -> ids (batch,).

        Raises:
            ValueError: the longest prompt leaves no room for an answer in the cache.
        """
        width = max(len(prompt) for prompt in prompts)
        if width >= self._max_tokens:
            raise ValueError(f"a prompt has {width} tokens; prompt and answer may have {self._max_tokens}; shorten it")
        self._model.reset_caches()  # type: ignore[operator]
        rows = [*prompts, *([[0]] * (self._batch - len(prompts)))]
        tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=self._device)
        padding = torch.tensor([width - len(row) for row in rows], device=self._device)
        mask, positions = self._attention(width, padding)
        running = [True] * len(prompts)
        for length in range(width, min(self._max_tokens, width + max_new_tokens)):
            logits = self._model(tokens, mask=mask, input_pos=positions)[:, -1].float()
            chosen = choose(logits)
            ids = chosen.tolist()
            yield [token if alive else None for token, alive in zip(ids, running, strict=False)]
            running = [alive and token not in stop_ids for token, alive in zip(ids, running, strict=False)]
            if not any(running):
                return
            tokens, positions = chosen[:, None], (length - padding)[:, None]
            columns = torch.arange(self._max_tokens, device=self._device)
            mask = ((columns >= padding[:, None]) & (columns <= length))[:, None]

    def _attention(self, width: int, padding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the prompt's mask (batch, width, max_tokens), True = attends, and positions (batch, width)."""
        queries = torch.arange(width, device=self._device)[:, None]
        keys = torch.arange(self._max_tokens, device=self._device)
        # padding attends to itself: a row that attends to nothing would be NaN and spread through the values
        allowed = (keys <= queries) & ((keys >= padding[:, None, None]) | (keys == queries))
        return allowed, (queries.T - padding[:, None]).clamp(min=0)
