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
COLLECTIVE_SECONDS = 7200.0
"""Above the slowest legal wait, a checkpoint of the whole model; a run's is its key `limits.collective_seconds`."""

JOIN_SECONDS = 900.0
"""How long ranks wait for each other to join."""


@dataclass(frozen=True)
class World:
    """This process among the others: its rank, their number, its device, and the mesh of all."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    tensor_parallel: int = 1
    """Neighbouring ranks that compute the same sequences together."""

    @property
    def data_rank(self) -> int:
        """Returns which of the shares of the data this rank computes."""
        return self.rank // self.tensor_parallel

    @property
    def data_size(self) -> int:
        """Returns the number of shares of the data."""
        return self.size // self.tensor_parallel


@contextmanager
def process_group(
    device: str, collective_seconds: float = COLLECTIVE_SECONDS, tensor_parallel: int = 1
) -> Iterator[World]:
    """Joins the processes that torchrun or `tune run` started; one process alone makes a group of one.

    Args:
        device: `cpu`, `cuda`, or `auto` for CUDA where it is available.
        collective_seconds: timeout of the group of all ranks; `set_timeouts` gives it to the others.
        tensor_parallel: neighbouring ranks that compute the same sequences; `world_problems` says what fits.

    Raises:
        ConfigError: CUDA is asked for and absent, or has fewer devices than local ranks.
    """
    kind, local_rank = choose_device(device), int(os.environ.get("LOCAL_RANK", "0"))
    if kind == "cuda":
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    keep_to_this_machine()
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timedelta(seconds=min(JOIN_SECONDS, collective_seconds)))
        set_timeouts(collective_seconds)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        target = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
        mesh = init_device_mesh(kind, (dist.get_world_size(),), mesh_dim_names=("data",))
        yield World(dist.get_rank(), dist.get_world_size(), target, mesh, tensor_parallel)
        dist.barrier()  # a rank that leaves early aborts those that still talk to it
    finally:
        dist.destroy_process_group()


def keep_to_this_machine() -> None:
    """Makes gloo listen on the loopback interface alone when all ranks are here; it does on the host name's else.

    A set GLOO_SOCKET_IFNAME stays. The store of torchrun listens on all interfaces whatever is set.
    """
    is_alone = os.environ.get("WORLD_SIZE", "1") == os.environ.get("LOCAL_WORLD_SIZE", "1")
    if is_alone and os.path.isdir("/sys/class/net/lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def process_groups() -> list[dist.ProcessGroup]:
    """Returns the groups that this process is in, also those that meshes made."""
    return list(dist.distributed_c10d._world.pg_map)


def set_timeouts(seconds: float) -> None:
    """Gives every process group that exists the same timeout; a mesh's own would be torch's, for NCCL ten minutes."""
    for group in process_groups():
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


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
    """Yields the run's logger, writing `folder/rank-N.log` on this rank.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    logger = logging.getLogger("kotune")
    logger.setLevel(logging.INFO)
    try:
        os.makedirs(folder, exist_ok=True)
        handler = logging.FileHandler(os.path.join(folder, f"rank-{world.rank}.log"), encoding="utf-8")
    except OSError as error:
        problem = f"{folder} cannot be written to: {error.strerror}; a writable folder is expected; mend it, or move it"
        raise ConfigError("output_dir", [problem]) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        handler.close()
