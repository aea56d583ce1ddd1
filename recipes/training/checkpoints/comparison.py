"""Whether two runs computed the same: samples, losses, and weights of their last checkpoints."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from recipes.training.checkpoints.checkpoint import load_tensors
from recipes.training.checkpoints.folder import latest_checkpoint
from recipes.training.checkpoints.metadata import read_metadata

COUNTS = ("train/tokens", "train/targets")


@dataclass(frozen=True)
class Comparison:
    """How far a run is from the straight one.

    Attributes:
        steps: of the run.
        loss: largest relative difference of a step's loss.
        weights: largest relative difference of a tensor's norm, |a - b| / |b|, of model and optimizer.
        problems: why the runs are not the same, empty where they are, within the tolerance.
    """

    steps: int = 0
    loss: float = math.nan
    weights: float = math.nan
    problems: list[str] = field(default_factory=list)


def compare_runs(run: Path, straight: Path, tolerance: float, of_tensors: float | None = None) -> Comparison:
    """Compares the metrics and the last checkpoints of two run folders.

    Args:
        run: killed and resumed.
        straight: neither.
        tolerance: of losses, relative; 0: they must be identical.
        of_tensors: of the tensors of model and optimizer; default: that of the losses.
    """
    ours, theirs = rows_by_step(run), rows_by_step(straight)
    steps = [row["step"] for row in ours]
    if steps != [row["step"] for row in theirs]:
        problem = f"its metrics have the steps {_span(steps)}, those of the straight run 1 to {len(theirs)}"
        return Comparison(len(ours), problems=[problem])
    problems, losses = [], [0.0]
    for mine, other in zip(ours, theirs, strict=True):
        names = [*COUNTS, *(name for name in other if name.startswith("tokens/"))]
        if wrong := [name for name in names if mine.get(name) != other[name]]:
            found = f"{wrong[0]}={mine.get(wrong[0])}, {other[wrong[0]]} in the straight run"
            problems.append(f"step {mine['step']} has read something else: {found}")
        losses.append(_difference(mine["train/loss"], other["train/loss"]))
        if losses[-1] > tolerance:
            found = f"{mine['train/loss']}, {other['train/loss']} in the straight run"
            problems.append(f"step {mine['step']} has the loss {found}")
    weights, tensor = largest_difference(_last(run), _last(straight))
    if weights > (tolerance if of_tensors is None else of_tensors):
        problems.append(f"tensor {tensor} of the last checkpoint differs by {weights:.2g} of its norm")
    return Comparison(len(ours), max(losses), weights, problems)


def rows_by_step(run: Path) -> list[dict[str, float]]:
    """Returns the rows of a run's metrics that tell of a training step."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "train/loss" in row]


def largest_difference(ours: Path, theirs: Path) -> tuple[float, str]:
    """Returns the largest relative difference between the tensors of two checkpoints, and the tensor's name."""
    names = dict(_tensors(ours))
    others = dict(_tensors(theirs))
    if missing := sorted(names.keys() ^ others.keys()):
        return math.inf, missing[0]
    largest = (0.0, "")
    for name, entry in names.items():
        mine, other = (_read(path, name, entry).double() for path in (ours, theirs))
        if not torch.equal(mine, other):
            largest = max(largest, (float((mine - other).norm() / other.norm().clamp(min=1e-30)), name))
    return largest


def _tensors(checkpoint: Path) -> Iterator[tuple[str, TensorStorageMetadata]]:
    for name, entry in read_metadata(checkpoint).state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            yield name, entry


def _read(checkpoint: Path, name: str, entry: TensorStorageMetadata) -> torch.Tensor:
    tensor = torch.empty(entry.size, dtype=entry.properties.dtype)
    load_tensors(checkpoint, {name: tensor}, alone=True)
    return tensor


def _last(run: Path) -> Path:
    checkpoint = latest_checkpoint(run / "checkpoints")
    assert checkpoint is not None, f"{run} has no checkpoint"
    return checkpoint


def _difference(ours: float | None, theirs: float | None) -> float:
    if ours == theirs:
        return 0.0
    if ours is None or theirs is None:  # not finite
        return math.inf
    return abs(ours - theirs) / max(abs(theirs), 1e-30)


def _span(steps: list[float]) -> str:
    return ", ".join(map(str, steps)) if len(steps) < 20 else f"{steps[0]} to {steps[-1]}, {len(steps)} of them"
