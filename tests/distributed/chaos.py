"""Faults for the chaos test: what breaks a run of two ranks, at a random moment, and what undoes the fault."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.support import ROOT

RANKS = 2
FOLDER_BYTES = 64 * 2**20
"""Of the small file system that the run folder lies in; a checkpoint of the tiny model takes 2 MB."""
MARK = "touched-by-chaos"
START_SECONDS = 600
"""Longest start of two ranks on a machine that is busy with other things."""


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Makes the folder a file system of its own; yields whether that is permitted here."""
    folder.mkdir()
    size = f"size={FOLDER_BYTES}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "chaos", folder], capture_output=True, check=False)
    try:
        yield mounted.returncode == 0
    finally:
        while subprocess.run(["umount", "--lazy", folder], capture_output=True, check=False).returncode == 0:
            pass  # once more than it was mounted: a fault mounts parts of it again


class Launch:
    """The documented command, running: its launcher, its ranks, and how far they are."""

    def __init__(self, config: Path, run: Path, log: Path) -> None:
        """Starts it; what it prints goes to `log`."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        command = ["tune", "run", "--nproc_per_node", str(RANKS), "recipes/cpt.py", "--config", str(config)]
        env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.run, self.log = run, log
        with log.open("w", encoding="utf-8") as out:
            self.launcher = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)
        self._ranks: list[int] = []
        self._line = len(started_behind(run))

    def is_over(self) -> bool:
        """Whether the launcher has ended."""
        return self.launcher.poll() is not None

    def steps_done(self) -> int:
        """Returns the steps since this start; 0 while it starts."""
        starts = started_behind(self.run)
        return max(0, last_step(self.run) - starts[-1]) if len(starts) > self._line else 0

    def wait_for(self, what: "Moment", random_: random.Random) -> None:
        """Waits for a random moment of the kind, or for the end of the run."""
        limit, steps = time.monotonic() + START_SECONDS, random_.randint(1, 4)
        while not self.is_over() and time.monotonic() < limit:
            if what == "start" and len(self.ranks()) == RANKS:
                time.sleep(random_.uniform(0, 5))
                break
            if what != "start" and self.steps_done() >= steps and (what == "step" or self.is_saving()):
                break
            time.sleep(0.002)
        time.sleep(random_.uniform(0, 0.06))
        assert not self.is_over(), f"it ended before its fault\n{self.log.read_text(encoding='utf-8')}"

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.run / "checkpoints").glob("*.tmp"))

    def ranks(self) -> list[int]:
        """Returns the ranks' process ids, none while the launcher has not started them."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # a process that has just ended
                parent = int(path.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1])
                if parent == self.launcher.pid and is_rank(int(path.name)):
                    found.append(int(path.name))
        self._ranks = found or self._ranks  # of a launcher that was killed, they are nobody's children
        return sorted(found)

    def everyone(self) -> list[int]:
        """Returns the ids of the launcher and its ranks."""
        return [self.launcher.pid, *self.ranks()]

    def end(self, seconds: float) -> int | None:
        """Waits, then kills what is left, as Slurm does with a job; returns the exit code, None after `seconds`."""
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.launcher.wait(seconds)
        if code is None:
            kill(self.everyone())
        kill([pid for pid in self._ranks if is_rank(pid)])
        self.launcher.wait()
        return code


def is_rank(pid: int) -> bool:
    """Whether a process is a rank of a training run; numbers of processes come back."""
    try:
        return b"recipes.cpt" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def kill(pids: list[int]) -> None:
    """Kills processes at once."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


Moment = str
"""`start`: up to 5 s after the ranks have come to life; `step`: after some steps;
`save`: while a checkpoint is being written."""


def last_step(run: Path) -> int:
    """Returns the step of the last whole row of metrics.jsonl."""
    steps = [row["step"] for row in rows(run)]
    return steps[-1] if steps else 0


def rows(run: Path) -> list[dict[str, float]]:
    """Returns the whole rows of metrics.jsonl; a kill may have cut the last one."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def started_behind(run: Path) -> list[int]:
    """Returns the step behind which each start of the run took it up, as rank 0's log tells."""
    path = run / "logs" / "rank-0.log"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return [
        int(line.split("starts behind step ")[1].split()[0]) for line in text.splitlines() if "starts behind" in line
    ]


def checkpoints(run: Path) -> list[Path]:
    """Returns the folders with a final name, oldest first."""
    return [path for path in sorted((run / "checkpoints").glob("step-*")) if path.suffix != ".tmp"]


def good_steps(run: Path) -> list[int]:
    """Returns the steps of the complete checkpoints that no fault has touched, and 0 for the start of the run."""
    return [0, *(int(path.name[5:]) for path in checkpoints(run) if not (path / MARK).exists())]


def damage(folder: Path, how: str, random_: random.Random) -> None:
    """Damages one file of a complete checkpoint, as a disk or a clumsy copy does, and marks the folder for the test."""
    (folder / MARK).touch()
    state, shards = folder / "state.json", sorted(folder.glob("*.distcp"))
    if how == "no state.json":
        state.unlink()
    elif how == "cut state.json":
        truncate(state, random_)
    elif how == "cut shard":
        truncate(random_.choice(shards), random_)
    elif how == "no shard":
        random_.choice(shards).unlink()
    else:
        flip(random_.choice([*shards, folder / ".metadata", state]), random_)


DAMAGES = ("no state.json", "cut state.json", "cut shard", "no shard", "flipped byte")


def truncate(path: Path, random_: random.Random) -> bytes:
    """Cuts a file at a random byte; returns what it was."""
    whole = path.read_bytes()
    path.write_bytes(whole[: random_.randrange(len(whole))])
    return whole


def flip(path: Path, random_: random.Random) -> bytes:
    """Flips a bit of a file; returns what it was."""
    whole = path.read_bytes()
    damaged, position = bytearray(whole), random_.randrange(len(whole))
    damaged[position] ^= 1 << random_.randrange(8)
    path.write_bytes(damaged)
    return whole


@contextlib.contextmanager
def full_disk(run: Path, random_: random.Random) -> Iterator[None]:
    """Leaves less room than a checkpoint needs, by up to all of it, and takes what the run frees meanwhile."""
    left, over = random_.randrange(0, 2 * 2**20), threading.Event()
    ballast = run.parent / "ballast"

    def fill() -> None:
        with ballast.open("wb") as file:
            while not over.wait(0.001):
                free = os.statvfs(run.parent).f_bavail * os.statvfs(run.parent).f_frsize
                with contextlib.suppress(OSError):  # the run may take room between the two calls
                    if free > left:
                        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size + free - left)

    filler = threading.Thread(target=fill)
    filler.start()
    try:
        yield
    finally:
        over.set()
        filler.join()
        ballast.unlink()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Makes a folder read-only for root too, as soon as no file in it is open for writing."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        remount = ["mount", "-o", "remount,bind,ro", folder]
        while subprocess.run(remount, capture_output=True, check=False).returncode:
            time.sleep(0.001)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def describe(faults: Counter[str]) -> str:
    """Returns the faults with their numbers, a line each."""
    return "\n".join(f"| {name} | {number} |" for name, number in sorted(faults.items()))
