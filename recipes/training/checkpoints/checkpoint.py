"""Checkpoints that are complete or absent: `step-00000500/` with the ranks' shards and `state.json`."""

import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from configs.loader import UserError
from recipes.training.distributed import World, on_rank_zero

STATE = "state.json"


class CheckpointError(UserError):
    """A checkpoint cannot be written, or does not belong to this run."""


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run; `identity` is what a checkpoint must share with the run that loads it."""

    folder: Path
    identity: dict[str, Any]
    keep: int
    world: World

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
        """Writes all ranks' shards, then `state.json`, then gives the folder its final name.

        Args:
            model: as `build_sharded_model` returns it.
            optimizer: over its parameters.
            state: plain values with `step`; the identity is added.
        """
        final = self.folder / f"step-{state['step']:08d}"
        partial = final.with_name(final.name + ".tmp")
        on_rank_zero(self.world, lambda: _remove(partial, final))
        model_state, optimizer_state = get_state_dict(model, optimizer)
        dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=str(partial))
        on_rank_zero(self.world, lambda: self._publish(partial, final, state))
        return final

    def restore(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Loads a checkpoint written at any world size; returns its state.

        Raises:
            CheckpointError: it was written by a run with another identity.
        """
        state = on_rank_zero(self.world, lambda: read_state(path))
        for key, wanted in self.identity.items():
            found = state["identity"].get(key)
            if found != wanted:
                raise CheckpointError(
                    f"{path} was written with {key}={found}, this run has {key}={wanted}; "
                    f"resume with {key}={found}, or start a new output_dir"
                )
        model_state, optimizer_state = get_state_dict(model, optimizer)
        load_tensors(path, {"model": model_state, "optimizer": optimizer_state})
        set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
        return state

    def latest(self) -> Path | None:
        """Returns the newest complete checkpoint as rank 0 sees it, on every rank."""
        return on_rank_zero(self.world, lambda: latest_checkpoint(self.folder))

    def _publish(self, partial: Path, final: Path, state: dict[str, Any]) -> None:
        with (partial / STATE).open("w", encoding="utf-8") as file:
            json.dump(state | {"identity": self.identity}, file, indent=2)
        for path in [*partial.iterdir(), partial]:
            _sync(path)
        partial.rename(final)
        _sync(self.folder)
        for old in complete_checkpoints(self.folder)[: -self.keep]:
            shutil.rmtree(old)


def load_tensors(path: Path, tensors: dict[str, Any], alone: bool = False) -> None:
    """Fills `tensors` (nested dicts of tensors) in place from a checkpoint's shards.

    Args:
        path: a complete checkpoint.
        tensors: may name a part of what the checkpoint holds.
        alone: this process reads by itself, without a process group.

    Raises:
        CheckpointError: a shard is missing or damaged.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # that one process reads alone
            dcp.load(tensors, checkpoint_id=str(path), no_dist=alone)
    except CheckpointException as error:
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(f"{path} is damaged: {reason}; remove it to use the one before") from None


def complete_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints whose name has no `.tmp` and whose state parses, oldest first."""
    return [p for p in sorted(folder.glob("step-*")) if p.suffix != ".tmp" and _has_state(p)]


def latest_checkpoint(folder: Path) -> Path | None:
    """Returns the newest complete checkpoint, or None."""
    found = complete_checkpoints(folder)
    return found[-1] if found else None


def read_state(path: Path) -> dict[str, Any]:
    """Returns a checkpoint's `state.json`.

    Raises:
        CheckpointError: the file is missing or does not parse, so the checkpoint is not complete.
    """
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no complete checkpoint: {error}; give another one") from None
    return state


def _has_state(path: Path) -> bool:
    try:
        read_state(path)
    except CheckpointError:
        return False
    return True


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            shutil.rmtree(path)
    paths[0].mkdir(parents=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
