"""How long before its limit a training has to be warned."""

import json
from pathlib import Path

from slurm.attempt import modified

LIMIT_CHECK_SECONDS = 60
"""Slurm looks at time limits every 30 s and may be late and early by as much."""


def lead_seconds(run: Path | None, otherwise: int) -> int:
    """Returns the seconds for `--signal`: what the last run of the folder needs to end a step and save, doubled.

    Args:
        run: run folder; without steps and a checkpoint in it, it says nothing.
        otherwise: for a run that says nothing, and the least.
    """
    if run is None:
        return otherwise
    measured = 2 * (slowest_step(run) + save_seconds(run)) + LIMIT_CHECK_SECONDS
    return max(otherwise, round(measured))


def slowest_step(run: Path) -> float:
    """Returns the seconds of the slowest of the last hundred steps; 0.0 without any."""
    rows = last_rows(run, 100)
    return max((float(row.get("speed/step_seconds", 0.0)) for row in rows), default=0.0)


def save_seconds(run: Path) -> float:
    """Returns how long the newest checkpoint took: from its first file to the last, `state.json`; 0.0 without one."""
    states = sorted((run / "checkpoints").glob("step-*/state.json"))
    if not states:
        return 0.0
    times = [modified(file) for file in states[-1].parent.rglob("*") if file.is_file()]
    return max(times) - min(times)


def last_rows(run: Path, count: int) -> list[dict[str, float]]:
    """Returns the last rows of a run's metrics; a line that is being written is left out."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4096 * count))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines[-count:]:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]
