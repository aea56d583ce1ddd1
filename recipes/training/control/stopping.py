"""Why and when a run stops early: a signal, the file `stop`, the end of the job, or a launcher that is gone."""

import math
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""torchrun forwards the first three; Slurm and its users send the others."""
STOP_FILE = "stop"
"""In the run folder; its presence, with any content, asks the run to save and to leave."""
END = "end:"
"""What the stop file begins with when the run shall not go on later; the reason follows."""
DEADLINES = ("KOTUNE_DEADLINE", "SLURM_JOB_END_TIME")
"""Environment variables with the job's end in Unix seconds; the first one that is set counts."""
SLOW_STEP = 0.95
"""Quantile of the recent steps that a step is taken to need at most."""
LOOK_SECONDS = 1.0
"""Between two looks at the stop file, which may lie on a slow shared disk."""


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yields a list that the stop signals append to; a second signal is noted like the first and breaks nothing.

    A signal that was ignored when the process started stays so if it is SIGINT or SIGHUP (`nohup`, a shell's
    background job); job scripts ignore SIGUSR1 and SIGUSR2 only for the launcher's sake, which would die of them.

    Under torchrun the handlers stay until the process ends: the launcher sends SIGTERM to ranks that are still
    leaving when the first one has left.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    ignored = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in STOP_SIGNALS if number not in ignored}
    try:
        yield received
    finally:
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            for number, handler in before.items():
                signal.signal(number, handler)


def deadline_of(environment: Mapping[str, str], minutes: float | None, started: float) -> float | None:
    """Returns when the job ends or the run's own time is over, the earlier, in Unix seconds; None without a limit.

    Args:
        environment: may have one of `DEADLINES`.
        minutes: the run's own limit.
        started: when the run started, Unix seconds.

    Raises:
        ValueError: the environment's value is no number.
    """
    ends = [] if minutes is None else [started + 60 * minutes]
    for name in DEADLINES:
        if value := environment.get(name):
            try:
                ends.append(float(value))
            except ValueError:
                raise ValueError(f"{name}={value!r} is no number; Unix seconds are expected; mend it") from None
            break
    return min(ends, default=None)


def slow_quantile(seconds: Sequence[float]) -> float:
    """Returns the smallest value that `SLOW_STEP` of the values do not exceed; 0 without any."""
    return sorted(seconds)[math.ceil(SLOW_STEP * len(seconds)) - 1] if seconds else 0.0


@dataclass
class Timings:
    """How long the parts of this run take, seconds."""

    steps: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    """The last ones; the first of a process, which may compile, only until there is another."""
    load: float = 0.0
    """What stands in for a save before the first: both move the same bytes over the same disk."""
    save: float = 0.0
    """A whole save; 0: none is measured yet."""
    validation: float = 0.0
    """The longest so far."""
    _is_first: bool = True

    def step_took(self, seconds: float) -> None:
        """Notes a step."""
        if len(self.steps) == 1 and self._is_first:
            self.steps.clear()
            self._is_first = False
        self.steps.append(seconds)

    def lead(self, margin: float, validation_is_due: bool) -> float:
        """Returns the seconds that must be left behind this step for one more and the checkpoint.

        Two saves: one may be on its way in the background, and the last one waits for it.
        """
        validation = self.validation if validation_is_due else 0.0
        return margin + slow_quantile(self.steps) + validation + 2 * (self.save or self.load)


class StopRequests:
    """True once this rank is asked to stop; `reason` then says why.

    Rank 0 alone looks at the stop file and at the time; all ranks look at their signals and for their launcher.
    """

    def __init__(
        self, folder: Path, received: list[int], timings: Timings, *, deadline: float | None, margin: float, rank: int
    ) -> None:
        """Starts to look.

        Args:
            folder: the run folder.
            received: what `stop_signals` yields.
            timings: kept up to date by the loop.
            deadline: Unix seconds, or None.
            margin: seconds kept free before it.
            rank: of this process.
        """
        self.reason = ""
        self.validation_is_due = False  # and not yet under way
        self._file, self._received, self._timings = folder / STOP_FILE, received, timings
        self._deadline, self._margin, self._rank = deadline, margin, rank
        self._parent, self._looked = os.getppid(), -math.inf

    def __bool__(self) -> bool:
        """Whether this rank is asked to stop, looking again where it was not yet."""
        self.reason = self.reason or self._look()
        return bool(self.reason)

    def _look(self) -> str:
        if self._received:
            return signal.Signals(self._received[0]).name
        if "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != self._parent:
            return "the launcher is gone"
        if self._rank != 0:
            return ""
        left = math.inf if self._deadline is None else self._deadline - time.time()
        if left < (lead := self._timings.lead(self._margin, self.validation_is_due)):
            return f"{left:.0f} s are left, and {lead:.0f} s are kept for a step, the checkpoint and a margin"
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            if self._file.exists():
                return f"{self._file} exists"
        return ""

    def take_back(self) -> str:
        """Removes the stop file, so that the next start runs; for rank 0, behind the checkpoint.

        Returns:
            Why the run shall end for good, as the file says; empty where it may go on later.
        """
        try:
            text = self._file.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""
        self._file.unlink(missing_ok=True)
        return text.removeprefix(END).strip() or "asked to" if text.startswith(END) else ""
