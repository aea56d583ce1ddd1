"""Writes the ranks' shards of a checkpoint, and says what was written: bytes and checksums by file."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.tensor import DTensor

from recipes.training.checkpoints.folder import CheckpointError, facts

T = TypeVar("T")
METADATA = ".metadata"
MARGIN = 1.02
"""Of the bytes of the tensors: names and headers of the files, measured on 8B-like shapes below 1 %."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class HashingFileSystem(FileSystem):
    """Takes the SHA-256 of what is written, while it is written."""

    def __init__(self) -> None:
        self.written: dict[str, dict[str, Any]] = {}
        self.error: OSError | None = None  # torch.save raises another one, about its zip file

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[Any, None, None]:
        """Opens a file for writing; its bytes and checksum stand in `written` when the block has ended."""
        with super().create_stream(path, mode) as stream:
            hashing = _HashingStream(stream)
            try:
                yield hashing
            finally:
                self.error = self.error or hashing.error
        self.written[Path(path).name] = {"bytes": hashing.size, "sha256": hashing.digest.hexdigest()}


class _HashingStream:
    """What torch.save and the shard writer need of a file."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.size, self.digest = stream, 0, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            count: int = self._stream.write(data)
        except OSError as error:
            self.error = error
            raise
        self.size += count
        return count

    def __getattr__(self, name: str) -> Any:  # tell, flush, fileno, close; seek would make the checksum wrong
        if name not in ("tell", "flush", "fileno", "close", "closed", "writable"):
            raise AttributeError(name)
        return getattr(self._stream, name)


WHAT_LEARNS = StateDictOptions(ignore_frozen_params=True, strict=False)
"""What does not learn is not in a checkpoint: the run loads it from where it came from."""


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns what a checkpoint holds, by name; the tensors are those of model and optimizer, not copies.

    The settings of the optimizer's groups are not among them: they are the configuration's.
    """
    model_state, optimizer_state = get_state_dict(model, optimizer, options=WHAT_LEARNS)
    return {"model": model_state, "optimizer": {"state": optimizer_state["state"]}}


def whole_bytes(value: Any) -> int:
    """Returns the bytes of all ranks' tensors in nested dicts, of replicated ones once."""
    if isinstance(value, dict):
        return sum(map(whole_bytes, value.values()))
    if isinstance(value, DTensor):
        local = value.to_local()
        return int(whole_bytes(local) * value.numel() / local.numel()) if local.numel() else value.nbytes
    if hasattr(value, "__tensor_flatten__"):  # torchao's quantised states
        return sum(whole_bytes(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    return value.nbytes if isinstance(value, torch.Tensor) else 0


def check_room(folder: Path, needed: int) -> None:
    """Compares the bytes of a checkpoint with the room of its disk.

    Raises:
        CheckpointError: there is less.
    """
    free = shutil.disk_usage(folder).free
    if free < needed * MARGIN:
        raise CheckpointError(
            f"{folder}: {free / 1e9:,.3f} GB are free, a checkpoint needs {needed * MARGIN / 1e9:,.3f} GB, so none is "
            "written; the older ones stay valid; make room, lower keep_checkpoints or move output_dir to another disk, "
            "and start the same command again"
        )


def write_shards(tensors: dict[str, Any], folder: Path, group: dist.ProcessGroup) -> dict[str, dict[str, Any]]:
    """Writes every rank's tensors below `folder` and waits until they are on disk.

    Args:
        tensors: as `state_tensors` returns them, or a copy on the CPU.
        folder: exists.
        group: all ranks, on the CPU.

    Returns:
        Name -> {bytes, sha256} of the files of all ranks.

    Raises:
        CheckpointError: a rank could not write; every rank raises the same.
    """
    writer = dcp.FileSystemWriter(folder)
    writer.fs = files = HashingFileSystem()
    try:
        dcp.save(tensors, storage_writer=writer, process_group=group)
    except CheckpointException as error:
        raise CheckpointError(_told(folder, error, gathered(files.error, group))) from None
    shards = {name: told for name, told in files.written.items() if not name.startswith(METADATA)}
    written = gathered(shards, group)
    metadata = on_coordinator(group, lambda: facts(folder / METADATA))
    return {name: told for rank in written for name, told in rank.items()} | {METADATA: metadata}


def on_coordinator(group: dist.ProcessGroup, action: Callable[[], T]) -> T:
    """Runs `action` on rank 0 of a group whose collectives are its own; the result, or the error, is every rank's."""
    outcome: list[Any] = [None, None]
    if dist.get_rank(group) == 0:
        try:
            outcome[0] = action()
        except (ValueError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, group=group)
    if outcome[1] is not None:
        raise outcome[1]
    return cast(T, outcome[0])


@contextmanager
def removed_on_error(group: dist.ProcessGroup, folder: Path) -> Iterator[None]:
    """Removes a half-written checkpoint when the block raises a CheckpointError, to give its room back."""
    try:
        yield
    except (CheckpointError, OSError):
        if dist.get_rank(group) == 0:
            with suppress(OSError):
                shutil.rmtree(folder)
        raise


def gathered(value: T, group: dist.ProcessGroup) -> list[T]:
    """Returns every rank's value."""
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def _told(folder: Path, error: CheckpointException, seen: list[OSError | None]) -> str:
    reasons: dict[int, BaseException] = {rank: failure[0] for rank, failure in error.failures.items()}
    reasons |= {rank: reason for rank, reason in enumerate(seen) if reason}
    rank, reason = min(reasons.items(), key=lambda item: (seen[item[0]] is None, item[0]))
    remedy = "mend the cause and start the same command again"
    if isinstance(reason, OSError) and reason.errno in NO_ROOM:
        remedy = "make room or move output_dir to another disk, and start the same command again"
    return (
        f"{folder.name} cannot be written by rank {rank}: {type(reason).__name__}: {reason}; the older checkpoints "
        f"stay valid; {remedy}"
    )
