"""Files of the run folder that others read: `heartbeat.json` while it runs, `finished.json` when all steps are done."""

import json
import os
import time
from pathlib import Path
from typing import Any

HEARTBEAT = "heartbeat.json"
FINISHED = "finished.json"
BEAT_SECONDS = 1.0
"""At least these lie between two heartbeats of one phase."""


class Heartbeat:
    """Says where rank 0 is; written by its main thread, so that it stops when the run hangs."""

    def __init__(self, folder: Path) -> None:
        """Writes to `folder/heartbeat.json`."""
        self._path, self._written, self._phase = folder / HEARTBEAT, 0.0, ""
        self._attempt = os.environ.get("KOTUNE_ATTEMPT", "")

    def beat(self, phase: str, step: int, limit: float | None) -> None:
        """Writes the file if the last one is a second old or of another phase.

        Args:
            phase: `load`, `step`, `validation`, `save` or `end`.
            step: counted from 1.
            limit: seconds after which the phase counts as hung; None: no limit.
        """
        now = time.time()
        if phase == self._phase and now - self._written < BEAT_SECONDS:
            return
        self._written, self._phase = now, phase
        write_json(
            self._path, {"step": step, "time": now, "attempt": self._attempt, "phase": phase, "limit_seconds": limit}
        )


def note_finished(folder: Path, step: int, reason: str = "") -> None:
    """Writes that the run is over; the exit code says it too, but torchrun does not pass that on.

    Args:
        folder: the run folder.
        step: the last one.
        reason: why it ended before all steps were done.
    """
    write_json(folder / FINISHED, {"step": step} | ({"reason": reason} if reason else {}))


def clear_finished(folder: Path) -> None:
    """Removes the note of an earlier end: `steps` may have been raised."""
    (folder / FINISHED).unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces a small file as a whole: a reader sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
    partial.replace(path)
