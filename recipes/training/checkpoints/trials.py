"""Starts a recipe as documented and kills it, all its processes, at a chosen moment."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from configs.loader import UserError

ROOT = Path(__file__).resolve().parents[3]
WAIT_SECONDS = 1800.0
"""A run that has not come to the moment after so long has failed."""


@dataclass(frozen=True)
class Launcher:
    """Starts the recipe as documented, with its output in the scratch folder."""

    recipe: str
    config: Path
    overrides: tuple[str, ...]

    def start(self, run: Path, ranks: int) -> subprocess.Popen[bytes]:
        """Starts a run folder's run; its output is added to a log beside the folder."""
        command = ["tune", "run", "--nproc_per_node", str(ranks), f"recipes/{self.recipe}.py"]
        command += ["--config", str(self.config.resolve()), *self.overrides, f"output_dir={run.resolve()}"]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        environment.pop("KOTUNE_ATTEMPT", None)  # of the job around this check, not of its runs
        with run.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)

    def finish(self, run: Path, ranks: int) -> None:
        """Runs to the end.

        Raises:
            UserError: the run fails.
        """
        process = self.start(run, ranks)
        try:
            process.wait()
        finally:
            kill_all(process)
        check_exit(run, process)

    def kill_at(self, run: Path, ranks: int, moment: Callable[[], bool]) -> str:
        """Starts a run and kills it at the moment; returns where it was then.

        Raises:
            UserError: the run fails by itself or makes no progress.
        """
        process = self.start(run, ranks)
        started = time.monotonic()
        try:
            while not moment():
                if process.poll() is not None:
                    check_exit(run, process)
                    return "ended before"
                if time.monotonic() - started > WAIT_SECONDS:
                    raise UserError(f"{run} made no progress in {WAIT_SECONDS:.0f} s; see {run.with_suffix('.log')}")
                time.sleep(0.002)
        finally:
            kill_all(process)
        is_saving = any(run.glob("checkpoints/step-*.tmp"))
        return f"step {num_rows(run)}" + (" in a save" if is_saving else "")


def in_a_save(run: Path, step: int) -> Callable[[], bool]:
    """Returns what is true while a checkpoint of that step or a later one is being written."""
    return lambda: any(int(path.name[5:13]) >= step for path in run.glob("checkpoints/step-*.tmp"))


def behind(run: Path, step: int, seconds: float) -> Callable[[], bool]:
    """Returns what is true so many seconds after that step."""
    seen: list[float] = []

    def is_over() -> bool:
        if num_rows(run) >= step:
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() - seen[0] >= seconds

    return is_over


def num_rows(run: Path) -> int:
    """Returns how many steps the metrics tell of; 0 without any."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b'"train/loss":') if path.exists() else 0


def check_exit(run: Path, process: subprocess.Popen[bytes]) -> None:
    """Checks that a run has ended well.

    Raises:
        UserError: it has not; the message has its own.
    """
    if process.returncode:
        log = run.with_suffix(".log")
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if "rror" in line]
        told = lines[0].strip() if lines else "no message"
        raise UserError(f"the run {run} ended with exit code {process.returncode}: {told}; 0 is expected; see {log}")


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Ends a launcher and everything it started with SIGKILL; the ranks are in sessions of their own."""
    for pid in [process.pid, *descendants(process.pid)]:
        with suppress(ProcessLookupError):
            if pid != process.pid or process.poll() is None:
                os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """Returns the processes below one, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):  # it may just have ended
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = list(children.get(pid, []))
    for child in found:
        found += children.get(child, [])
    return found
