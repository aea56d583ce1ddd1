"""Profiles a few steps of a run with torch.profiler, on rank 0."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING, DictConfig
from torch.profiler import ProfilerActivity, profile, schedule

from recipes.training.distributed import World

MOST_ROWS = 40


@dataclass
class ProfileSettings:
    """Steps whose operations are recorded."""

    first_step: int = MISSING
    """Counted from 1, as in metrics.jsonl; the one before it warms the profiler up."""
    steps: int = 3
    """Recorded in a row; a trace of one step of an 8B model is about 100 MB before it is compressed."""


class StepProfiler:
    """Records the configured steps; call `step` behind each one."""

    def __init__(self, recorder: Any = None) -> None:
        self._recorder = recorder

    def step(self) -> None:
        """Says that a step has ended."""
        if self._recorder:
            self._recorder.step()


@contextmanager
def step_profiler(cfg: DictConfig, start_step: int, world: World) -> Iterator[StepProfiler]:
    """Yields a profiler that leaves `profile/step-FIRST-LAST.json.gz` and a table beside it in the run folder.

    A run that is resumed inside or behind the window, and every rank but the first, records nothing.

    Args:
        cfg: `TrainSettings`.
        start_step: steps that are done already.
        world: the ranks.
    """
    window = cfg.profile
    if window is None or world.rank or window.first_step <= start_step:
        yield StepProfiler()
        return
    ahead = window.first_step - 1 - start_step
    warm_up = min(1, ahead)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (world.device.type == "cuda")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that the first step has none before it
        plan = schedule(skip_first=ahead - warm_up, wait=0, warmup=warm_up, active=window.steps, repeat=1)
    folder = Path(cfg.output_dir) / "profile"
    name = f"step-{window.first_step:08d}-{min(cfg.steps, window.first_step + window.steps - 1):08d}"
    with profile(
        activities=activities,
        schedule=plan,
        on_trace_ready=lambda recorder: write_trace(recorder, folder, name, world.device),
    ) as recorder:
        yield StepProfiler(recorder)


def write_trace(recorder: Any, folder: Path, name: str, device: torch.device) -> None:
    """Writes the trace, for chrome://tracing or Perfetto, and the operations that took longest as a table."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{name}.tmp.json.gz"
    recorder.export_chrome_trace(str(partial))
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    table = recorder.key_averages().table(sort_by=order, row_limit=MOST_ROWS)
    (folder / f"{name}.txt").write_text(table, encoding="utf-8")
    partial.replace(folder / f"{name}.json.gz")


def profile_problems(cfg: DictConfig) -> list[str]:
    """Returns the problems of the key `profile`."""
    window = cfg.profile
    if window is None:
        return []
    problems = [
        f"profile.{key}: {window[key]} is below 1; steps are counted from 1; raise it"
        for key in ("first_step", "steps")
        if window[key] < 1
    ]
    if window.first_step > cfg.steps:
        problems.append(
            f"profile.first_step: {window.first_step} is behind the last of {cfg.steps} steps; lower it, or set "
            "profile=null"
        )
    return problems
