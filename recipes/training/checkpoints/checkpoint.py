"""Checkpoints that are complete or absent: `step-00000500/` with the ranks' shards and `state.json`.

The step loop waits for a copy to CPU memory only; a thread writes it, over a process group of its own.
"""

import copy
import logging
import sys
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from recipes.training.checkpoints import folder as folders
from recipes.training.checkpoints.fence import attempt_suffix, check_attempt
from recipes.training.checkpoints.folder import (
    CheckpointError,
    Retention,
    complete_checkpoints,
    latest_checkpoint,
    read_state,
)
from recipes.training.checkpoints.metadata import CheckpointReader, PlainValuesPlanner
from recipes.training.checkpoints.staging import Staging
from recipes.training.checkpoints.writing import (
    WHAT_LEARNS,
    check_room,
    on_coordinator,
    removed_on_error,
    state_tensors,
    whole_bytes,
    write_shards,
)
from recipes.training.distributed import COLLECTIVE_SECONDS, World, on_rank_zero

__all__ = [
    "CheckpointError",
    "CheckpointStore",
    "Retention",
    "complete_checkpoints",
    "latest_checkpoint",
    "load_tensors",
    "read_state",
]


class CheckpointStore:
    """The checkpoints of one run; use as a context manager on every rank, within the process group.

    Attributes:
        folder: `checkpoints/` of the run folder.
        world: the ranks.
        save_seconds: of the longest save so far, from its start until the checkpoint had its name; 0.0 before.
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], world: World, retention: Retention, in_background: bool = True
    ) -> None:
        """Opens the store.

        Args:
            folder: `checkpoints/` of the run folder.
            identity: what a checkpoint must share with the run that loads it, plain values.
            world: the ranks.
            retention: which checkpoints stay.
            in_background: whether `save` returns before all is written; needs the state's bytes in CPU memory.
        """
        self.folder, self.world, self.save_seconds = folder, world, 0.0
        self._identity, self._retention, self._in_background = identity, retention, in_background
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=COLLECTIVE_SECONDS))
        self._staging = Staging()
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._figures: dict[str, float] = {}
        self._last_start = time.monotonic()

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._writer.shutdown(wait=True)

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], ephemeral: bool = False
    ) -> Path:
        """Copies the state to CPU memory and starts to write it: all ranks' shards, `state.json`, then the final name.

        A save that is still under way is waited for.

        Args:
            model: as `build_sharded_model` returns it.
            optimizer: over its parameters.
            state: plain values with `step`; the identity is added.
            ephemeral: the checkpoint goes when a newer one is complete.

        Returns:
            The folder that the checkpoint will be.

        Raises:
            CheckpointError: the one before could not be written, the disk lacks the room, or another attempt of the
                run has taken over.
        """
        started = time.perf_counter()
        self.wait()
        self._last_start = time.monotonic()
        tensors = state_tensors(model, optimizer)
        final = self.folder / f"step-{state['step']:08d}"
        partial = final.with_name(f"{final.name}{attempt_suffix()}.tmp")
        needed = whole_bytes(tensors)
        on_rank_zero(self.world, lambda: self._prepare(partial, needed))
        state = copy.deepcopy(state) | {"identity": self._identity, "ephemeral": ephemeral}  # the run's go on counting
        if self._in_background:
            tensors = self._staging.copy(tensors)
        blocked = time.perf_counter() - started
        self._pending = self._writer.submit(self._write, tensors, partial, final, state, started, blocked)
        if not self._in_background:
            self.wait()
        return final

    def wait(self) -> None:
        """Returns when nothing is being written any more.

        Raises:
            CheckpointError: what was being written could not be; every rank raises it.
        """
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def asks(self, every_minutes: float | None) -> dict[str, bool]:
        """Returns what this rank asks all for at the next step edge: `save` by rank 0's clock, `wait` after an error.

        Args:
            every_minutes: minutes after the start of a save at which the next is due; null: by steps only.
        """
        minutes = (time.monotonic() - self._last_start) / 60
        is_due = self.world.rank == 0 and every_minutes is not None and minutes >= every_minutes
        failed = self._pending is not None and self._pending.done() and self._pending.exception() is not None
        return {"save": is_due, "wait": failed}

    def figures(self) -> dict[str, float]:
        """Returns, once, the figures of the save that was finished last: seconds blocked and in all, and bytes."""
        figures, self._figures = self._figures, {}
        return figures

    def newest_sound(self) -> Path | None:
        """Returns the newest checkpoint whose files are what was written, on every rank; the ranks share the reading.

        Half-written ones are deleted. A damaged one is named in the log and on stderr, marked, and left where it is.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged.
        """
        found: list[tuple[Path, str | None]] = on_rank_zero(self.world, self._survey)
        problems = []
        for path, problem in reversed(found):
            problem = problem or self._read_whole(path)
            if problem is None:
                return path
            on_rank_zero(self.world, lambda p=path, text=problem: _note_damage(p, text))  # type: ignore[misc]
            problems.append(f"{path.name}: {problem}")
        if problems:
            raise CheckpointError(
                f"{self.folder}: all {len(problems)} checkpoints are damaged ({'; '.join(problems)}); a sound one "
                f"is expected; restore files (and remove {folders.DAMAGED}), or start anew with another output_dir"
            )
        return None

    def restore(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Loads a checkpoint written at any world size and layout; returns its state.

        The settings of the optimizer's groups stay those of the configuration.

        Raises:
            CheckpointError: it was written by a run with another identity.
        """
        state = on_rank_zero(self.world, lambda: read_state(path))
        for key, wanted in self._identity.items():
            found = state["identity"].get(key)
            if found != wanted:
                raise CheckpointError(
                    f"{path} was written with {key}={found}, this run has {key}={wanted}; "
                    f"resume with {key}={found}, or start a new output_dir"
                )
        model_state, optimizer_state = get_state_dict(model, optimizer, options=WHAT_LEARNS)
        tensors = {"model": model_state, "optimizer": {"state": optimizer_state["state"]}}
        load_tensors(path, tensors, group=self._group)
        set_state_dict(
            model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state, options=WHAT_LEARNS
        )
        return state

    def _prepare(self, partial: Path, needed: int) -> None:
        check_attempt(self.folder.parent)
        with folders.told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if partial.exists():
                folders.remove(partial)
            check_room(self.folder, needed)
            partial.mkdir()

    def _write(
        self, tensors: dict[str, Any], partial: Path, final: Path, state: dict[str, Any], started: float, blocked: float
    ) -> None:
        """Runs in the writing thread of every rank, over its own group."""
        with removed_on_error(self._group, partial):
            files = write_shards(tensors, partial, self._group)
            on_coordinator(self._group, lambda: self._publish(partial, final, state | {"files": files}))
        seconds = time.perf_counter() - started
        blocked = blocked if self._in_background else seconds
        self.save_seconds = max(self.save_seconds, seconds)
        num_bytes = sum(facts["bytes"] for facts in files.values())
        self._figures = {"time/save_blocked": blocked, "time/save": seconds, "checkpoint/bytes": float(num_bytes)}
        kind = "ephemeral checkpoint" if state["ephemeral"] else "checkpoint"
        told = (kind, final.name, num_bytes / 1e6, blocked, seconds)
        logging.getLogger("kotune").info("%s %s: %.1f MB, steps blocked for %.3f s, complete after %.3f s", *told)

    def _publish(self, partial: Path, final: Path, state: dict[str, Any]) -> None:
        with folders.told(self.folder):
            folders.write_state(partial, state)
            check_attempt(self.folder.parent)
            folders.put_in_place(partial, final)
            self._remove_outdated()

    def _remove_outdated(self) -> None:
        states = {path: read_state(path) for path in complete_checkpoints(self.folder)}
        folders.remove(*self._retention.outdated(states))

    def _survey(self) -> list[tuple[Path, str | None]]:
        check_attempt(self.folder.parent)
        with folders.told(self.folder):
            folders.remove_leftovers(self.folder)
        return [(path, folders.known_problem(path)) for path in folders.step_folders(self.folder)]

    def _read_whole(self, path: Path) -> str | None:
        """Returns what is wrong with the files of a checkpoint, or None; each rank reads a share of them."""
        files = on_rank_zero(self.world, lambda: read_state(path).get("files", {}))
        share = dict(sorted(files.items(), key=lambda item: -item[1]["bytes"])[self.world.rank :: self.world.size])
        told: list[Any] = [None] * self.world.size
        dist.all_gather_object(told, list(folders.file_problems(path, share)), group=self._group)
        return ", ".join(sorted(problem for rank in told for problem in rank)) or None


def load_tensors(
    path: Path, tensors: dict[str, Any], alone: bool = False, group: dist.ProcessGroup | None = None
) -> None:
    """Fills `tensors` (nested dicts of tensors) in place from a checkpoint's shards.

    Args:
        path: a complete checkpoint.
        tensors: may name a part of what the checkpoint holds.
        alone: this process reads by itself, without a process group.
        group: of the ranks that read; default: all.

    Raises:
        CheckpointError: a shard is missing or damaged.
    """
    reader, planner = CheckpointReader(path), PlainValuesPlanner()
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # that one process reads alone
            dcp.load(tensors, storage_reader=reader, planner=planner, no_dist=alone, process_group=group)
    except CheckpointException as error:
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(f"{path} is damaged: {reason}; remove it to use the one before") from None


def _note_damage(path: Path, problem: str) -> None:
    text = f"checkpoint {path} is damaged and not used: {problem}; trying the one before"
    if not problem.startswith("marked by"):
        folders.mark_damaged(path, problem)
    logging.getLogger("kotune").error(text)
    print(f"warning: {text}", file=sys.stderr, flush=True)
