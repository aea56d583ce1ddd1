"""The micro-batches of a step, made ahead of it."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from recipes.training.data.order import SampleOrder
from recipes.training.data.packing import PADDING, Sample, Source
from recipes.training.model.attention import Documents
from recipes.training.model.loss import IGNORE


@dataclass(frozen=True)
class Batch:
    """A micro-batch: int64, (batch, seq); a token attends to those before it in its document."""

    tokens: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    documents: Documents
    num_targets: int
    padding: int
    """Positions that hold no token of the data."""

    def pinned(self) -> "Batch":
        """Returns the batch in memory from which a GPU copies while the CPU goes on."""
        return self._map(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch on the device; from pinned memory, the copy is queued there and not waited for."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        documents = replace(self.documents, offsets=move(self.documents.offsets))
        tokens, targets, positions = map(move, (self.tokens, self.targets, self.positions))
        return replace(self, tokens=tokens, targets=targets, positions=positions, documents=documents)


class Batches:
    """The micro-batches of this rank at any step; those of the step after are made while one is computed."""

    def __init__(
        self, sources: Sequence[Source], order: SampleOrder, micro_batch: int, rank: int, world_size: int
    ) -> None:
        self._sources, self._order, self._micro_batch = sources, order, micro_batch
        self._rank, self._world_size = rank, world_size
        self._worker = ThreadPoolExecutor(1, "batches")
        self._ahead: dict[int, Future[list[Batch]]] = {}

    def micro_batches(self, step: int, device: torch.device) -> list[Batch]:
        """Returns this rank's share of the step's global batch, and has the next step's made in the background.

        A GPU gets them from pinned memory, without the CPU waiting for the copy.
        """
        ready = self._ahead.pop(step, None)
        batches = ready.result() if ready else self._assemble(step, device.type == "cuda")
        for other in self._ahead.values():  # of a step that is not asked for
            other.cancel()
        self._ahead = {step + 1: self._worker.submit(self._assemble, step + 1, device.type == "cuda")}
        return [batch.to(device) for batch in batches]

    def _assemble(self, step: int, pinned: bool) -> list[Batch]:
        picks = self._order.step(step)[self._rank :: self._world_size]
        samples = [self._sources[source].sample(index) for source, index in picks]
        groups = [samples[i : i + self._micro_batch] for i in range(0, len(samples), self._micro_batch)]
        batches = [collate(group) for group in groups]
        return [batch.pinned() for batch in batches] if pinned else batches


def collate(samples: Sequence[Sample]) -> Batch:
    """Returns packed sequences as one micro-batch, on the CPU."""
    tokens, targets, documents = (
        torch.from_numpy(np.stack([getattr(s, name) for s in samples])) for name in ("tokens", "targets", "documents")
    )
    index = torch.arange(tokens.shape[1]).expand_as(tokens)
    is_start = torch.ones_like(documents, dtype=torch.bool)
    is_start[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = torch.where(is_start, index, 0).cummax(dim=1).values
    return Batch(
        tokens,
        targets,
        positions=index - starts,
        documents=Documents.of(documents, torch.device("cpu")),
        num_targets=int((targets != IGNORE).sum()),
        padding=int((documents == PADDING).sum()),
    )
