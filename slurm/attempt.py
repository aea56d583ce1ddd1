"""One attempt of a job at its command: what it may write, how it goes, and what has to follow.

A job that Slurm requeues keeps its id; every start of it is an attempt with an id of its own.
"""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.loader import ConfigError
from data_prep.lineage import write_json

SAVED_EXIT_CODE = 85
"""As recipes/training: a checkpoint is written, start again."""
CONFIG_EXIT_CODE = 2
"""As configs.loader: the configuration cannot be used; starting again cannot help."""


@dataclass(frozen=True)
class Limits:
    """What an attempt is granted; from the environment variable of the same name with KOTUNE_ before it."""

    start_timeout: float = 1800
    """Seconds until the first heartbeat: imports, the rendezvous."""
    heartbeat_grace: float = 600
    """Seconds beyond the time that the trainer grants its phase. The trainer's own watchdog comes first: it names the
    rank that hangs; this one is for a node, or an srun, that nobody hears from."""
    stop_timeout: float = 240
    """Seconds for a checkpoint that was asked for; below the lead time of --signal."""
    fail_grace: float = 30
    """Seconds that the other ranks get to write down what they saw when one has failed."""
    max_stalled: int = 3
    """Attempts in a row without a new checkpoint after which the job gives up."""
    max_requeues: int = 50
    """Times that a job comes back at all."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Limits":
        """Returns the defaults with what the environment changes.

        Raises:
            ConfigError: a value is no positive number.
        """
        values, problems = {}, []
        for name, field in cls.__dataclass_fields__.items():
            variable = f"KOTUNE_{name.upper()}"
            if (text := environment.get(variable)) is None:
                continue
            if re.fullmatch(r"\d+(\.\d+)?", text) is None or float(text) <= 0:
                problems.append(f"{variable}: {text!r} is no positive number; unset it, or give one")
            else:
                values[name] = int(float(text)) if field.type is int else float(text)
        if problems:
            raise ConfigError("environment", problems)
        return cls(**values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Signs:
    """What the watchdog looks at; times are unix seconds, 0.0 where there is none."""

    now: float
    started: float
    heartbeat: float = 0.0
    granted: float | None = None
    """Seconds that the phase of the heartbeat may take; None: it has no limit."""
    first_failure: float = 0.0
    stop_asked: float = 0.0
    is_fenced: bool = False


def fault(signs: Signs, limits: Limits, expects_heartbeat: bool) -> str | None:
    """Returns why the attempt has to be ended from outside; None while all is well."""
    if signs.is_fenced:
        return "another attempt owns the run folder now"
    if signs.stop_asked and signs.now - signs.stop_asked > limits.stop_timeout:
        return f"no checkpoint within {limits.stop_timeout:g} s after it was asked for"
    if signs.first_failure and signs.now - signs.first_failure > limits.fail_grace:
        return f"a rank failed {limits.fail_grace:g} s ago and others still run"
    if not expects_heartbeat:
        return None
    if not signs.heartbeat:
        silent, limit = signs.now - signs.started, limits.start_timeout
    elif signs.granted is None:
        return None
    else:
        silent, limit = signs.now - signs.heartbeat, signs.granted + limits.heartbeat_grace
    return f"no heartbeat for {silent:.0f} s, {limit:g} s are granted" if silent > limit else None


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    exit_code: int
    restarts: int
    """Times that Slurm had requeued the job before."""
    stalled: int
    """Attempts in a row, this one included, that brought no new checkpoint."""
    is_terminated: bool = False
    """SIGTERM came: a user's scancel, a preemption, the time limit. Slurm decides whether the job comes back."""
    is_fenced: bool = False


@dataclass(frozen=True)
class Verdict:
    """What follows an attempt: `done`, `requeue`, `failed` or `left` to Slurm, and why."""

    what: str
    why: str


def verdict(outcome: Outcome, limits: Limits) -> Verdict:
    """Returns what follows. Requeueing after SIGTERM would undo a user's scancel."""
    if outcome.is_fenced:
        return Verdict("left", "another attempt owns the run folder")
    if outcome.exit_code == 0:
        return Verdict("done", "finished")
    if outcome.is_terminated:
        return Verdict("left", "terminated by Slurm: scancel, preemption, or the time was over")
    if outcome.exit_code == CONFIG_EXIT_CODE:
        return Verdict("failed", "the configuration cannot be used; the message is in the log of rank 0")
    why = "checkpoint written" if outcome.exit_code == SAVED_EXIT_CODE else f"exit code {outcome.exit_code}"
    if outcome.stalled >= limits.max_stalled:
        return Verdict("failed", f"{why}; {outcome.stalled} attempts in a row without a new checkpoint")
    if outcome.restarts >= limits.max_requeues:
        return Verdict("failed", f"{why}; requeued {outcome.restarts} times, KOTUNE_MAX_REQUEUES")
    return Verdict("requeue", why)


def newest_step(run: Path | None) -> int:
    """Returns the step of the newest complete checkpoint of a run folder; 0 without one."""
    found = [] if run is None else (run / "checkpoints").glob("step-*/state.json")
    steps = [re.fullmatch(r"step-(\d+)", path.parent.name) for path in found]
    return max((int(match[1]) for match in steps if match), default=0)


def heartbeat(run: Path | None, attempt: str) -> tuple[float, float | None]:
    """Returns when this attempt's run last wrote its heartbeat, and the seconds it granted itself; 0.0 before."""
    if run is None:
        return 0.0, None
    try:
        beat = json.loads((run / "heartbeat.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0, None
    if beat.get("attempt") != attempt:
        return 0.0, None
    return modified(run / "heartbeat.json"), beat.get("limit_seconds")


def modified(path: Path) -> float:
    """Returns a file's time of change; 0.0 if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


class Record:
    """The job's attempts, kept in `folder/attempts.json` over requeues."""

    def __init__(self, folder: Path, *, is_new: bool) -> None:
        self.file = folder / "attempts.json"
        self.attempts: list[dict[str, Any]] = []
        if self.file.is_file() and not is_new:
            self.attempts = json.loads(self.file.read_text(encoding="utf-8"))

    def start(self, attempt: str, nodes: Sequence[str], step: int) -> None:
        """Notes that an attempt begins."""
        self.attempts.append({"attempt": attempt, "nodes": list(nodes), "from_step": step, "began": round(time.time())})
        write_json(self.file, self.attempts)

    def end(self, step: int, exit_code: int) -> int:
        """Notes how the last attempt went; returns how many attempts in a row brought no new checkpoint."""
        last = self.attempts[-1]
        last |= {"to_step": step, "exit_code": exit_code, "ended": round(time.time())}
        last["stalled"] = 0 if step > last["from_step"] else 1 + self.stalled()
        write_json(self.file, self.attempts)
        return last["stalled"]

    def conclude(self, said: Verdict) -> None:
        """Notes what followed."""
        self.attempts[-1] |= {"verdict": said.what, "why": said.why}
        write_json(self.file, self.attempts)

    def stalled(self) -> int:
        """Returns how many attempts before the last one, in a row, brought nothing.

        One that its node took down with it has no end on record and counts as such.
        """
        count = 0
        for attempt in reversed(self.attempts[:-1]):
            if "stalled" in attempt:
                return count + attempt["stalled"]
            if self.attempts[-1]["from_step"] > attempt["from_step"]:
                break
            count += 1
        return count


class Fence:
    """The file `attempt` of a run folder: it names the attempt that may write checkpoints.

    After a network partition an older attempt can still be alive on a node that Slurm has given up.
    """

    def __init__(self, run: Path | None, attempt: str) -> None:
        self.run, self.attempt = run, attempt

    def take(self) -> None:
        """Makes this attempt the owner, and forgets an older one's stop request."""
        if self.run is not None:
            self.run.mkdir(parents=True, exist_ok=True)
            partial = self.run / f"attempt.{os.getpid()}.tmp"
            partial.write_text(self.attempt + "\n", encoding="utf-8")
            partial.replace(self.run / "attempt")
            (self.run / "stop").unlink(missing_ok=True)

    def owner(self) -> str:
        """Returns the attempt that owns the run folder; this one where the file system does not answer."""
        if self.run is None:
            return self.attempt
        try:
            return (self.run / "attempt").read_text(encoding="utf-8").strip()
        except OSError:
            return self.attempt

    def is_lost(self) -> bool:
        """Whether another attempt owns the run folder."""
        return self.owner() != self.attempt

    def is_lost_to_another_job(self) -> bool:
        """Whether it is not even a later attempt of the same job that owns it."""
        return self.owner().rpartition(".")[0] != self.attempt.rpartition(".")[0]
