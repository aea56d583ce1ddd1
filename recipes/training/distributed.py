"""Processes of one run: their group, what they sum, and how rank 0's verdict reaches all."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from configs.loader import ConfigError

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Above the slowest legal wait, a checkpoint of the whole model."""


@dataclass(frozen=True)
class World:
    """This process among the others: its rank, their number, its device, and the mesh of all."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh


@contextmanager
def process_group(device: str) -> Iterator[World]:
    """Joins the processes that torchrun or `tune run` started; one process alone makes a group of one.

    Args:
        device: `cpu`, `cuda`, or `auto` for CUDA where it is available.

    Raises:
        ConfigError: CUDA is asked for and absent, or has fewer devices than local ranks.
    """
    kind, local_rank = choose_device(device), int(os.environ.get("LOCAL_RANK", "0"))
    if kind == "cuda":
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        target = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
        mesh = init_device_mesh(kind, (dist.get_world_size(),), mesh_dim_names=("data",))
        yield World(dist.get_rank(), dist.get_world_size(), target, mesh)
        dist.barrier()  # a rank that leaves early aborts those that still talk to it
    finally:
        dist.destroy_process_group()


def leave(exit_code: int) -> int:
    """Ends a process that torchrun started, at once; another one just gets its exit code back.

    gloo's threads can outlive their group and abort the interpreter while it shuts down ("terminate called
    without an active exception", about one exit in ten on a busy machine); torchrun would call the finished
    run failed. Call it when everything is written and closed.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    return exit_code


def choose_device(device: str) -> str:
    """Returns `cpu` or `cuda` for a configuration's `device`.

    Raises:
        ConfigError: CUDA is asked for and absent, or has fewer devices than local ranks.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError("device", [f"{device!r} is not known; one of auto, cpu, cuda"])
    available = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and not available):
        return "cpu"
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= available:
        raise ConfigError(
            "device", [f"local rank {local_rank} has no GPU, {available} found; start fewer processes or device=cpu"]
        )
    return "cuda"


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Returns the elementwise sum over all ranks; every rank must call it."""
    dist.all_reduce(values)
    return values


def on_rank_zero(world: World, action: Callable[[], T]) -> T:
    """Runs `action` on rank 0 alone; its result, or its error, is every rank's."""
    outcome: list[Any] = [None, None]
    if world.rank == 0:
        try:
            outcome[0] = action()
        except (ValueError, OSError) as error:  # the errors a user can mend, and a full or missing disk
            outcome[1] = error
    if world.size > 1:
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@contextmanager
def log_to_file(world: World, folder: str | os.PathLike[str]) -> Iterator[logging.Logger]:
    """Yields the run's logger, writing `folder/rank-N.log` on this rank."""
    os.makedirs(folder, exist_ok=True)
    logger = logging.getLogger("kotune")
    logger.setLevel(logging.INFO)
    handler = logging.FileHandler(os.path.join(folder, f"rank-{world.rank}.log"), encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        handler.close()
