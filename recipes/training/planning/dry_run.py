"""One training step on tensors without data: what a run needs of a GPU, found by running it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from recipes.training.data.batches import Batch, collate
from recipes.training.data.packing import Sample
from recipes.training.distributed import World
from recipes.training.model.decoder import Architecture, Decoder, lay_out, materialise
from recipes.training.optimization.optimizer import storage_dtype


def dry_run(cfg: DictConfig, architecture: Architecture, world_size: int) -> dict[str, int]:
    """Runs a step of rank 0 of `world_size` on fake tensors; returns the bytes at its peak by torch's kind of tensor.

    That is the forward and backward pass of one micro-batch, or of two if a step has several: the gradients of the
    first wait for the second. The state of the optimizer is not in it. Attention is that of a CPU, and the layers are
    not compiled: one whose memory budget only the compiler can keep to is computed again as a whole (`full`).

    Args:
        cfg: `TrainSettings`, checked.
        architecture: of the model.
        world_size: ranks to pretend; no other process is needed.
    """
    accumulates = not cfg.layout.reduce_every_micro_batch
    accumulates &= cfg.global_batch_tokens > cfg.seq_len * cfg.micro_batch * (world_size // cfg.layout.tensor_parallel)
    mode = "full" if cfg.activation_checkpointing not in ("none", "selective") else cfg.activation_checkpointing
    with fake_world(world_size, cfg.layout.tensor_parallel) as world:
        storage = storage_dtype(cfg.optimizer)
        model = lay_out(architecture, world, cfg.precision, mode, storage, attention="per_document", layout=cfg.layout)
        batch = collate([Sample.empty(cfg.seq_len)] * cfg.micro_batch)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = materialise(model, world.device)
            # no optimizer: the tracker would count what its kernel keeps for a moment as state
            tracker = FSDPMemTracker(model) if world_size > 1 else MemTracker()
            if world_size == 1:
                tracker.track_external(model)
            with tracker:
                for is_last in (False, True) if accumulates else (True,):
                    tracker.reset_mod_stats()  # it follows one pass; its peak stays
                    _backward(model, cfg, batch, is_last)
            peak = tracker.get_tracker_snapshot("peak")[world.device]
    return {str(getattr(kind, "value", kind)): int(size) for kind, size in peak.items()}


def _backward(model: Decoder, cfg: DictConfig, batch: Batch, is_last: bool) -> None:
    model.set_requires_gradient_sync(is_last)
    inputs: dict[str, Any] = {"mask": batch.documents, "input_pos": batch.positions}
    objective, _ = model(batch.tokens, targets=batch.targets, loss_chunk=cfg.loss_chunk, z_loss=cfg.z_loss, **inputs)
    objective.backward()


@contextmanager
def fake_world(size: int, tensor_parallel: int = 1) -> Iterator[World]:
    """Yields rank 0 of `size` ranks whose collectives do nothing; no process group may exist."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("data",))
        yield World(0, size, torch.device("cpu"), mesh, tensor_parallel)
    finally:
        dist.destroy_process_group()
