"""Runs of the documented command that a test sends signals to while they go on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from data_prep.lineage import sha256_file
from tests.recipes.conftest import write_cpt_config
from tests.support import ROOT, random_shards, tiny_llama, tiny_tokenizer

PATIENCE_SECONDS = 240
"""A shared machine may take minutes for what takes seconds."""


class Launched:
    """`tune run` of a recipe in a session of its own, as a terminal would start it."""

    def __init__(self, command: Sequence[str], folder: Path, env: dict[str, str]) -> None:
        self.run, self._log = folder / "run", folder / "output.txt"
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        settings = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
        with self._log.open("wb") as log:
            self.launcher = subprocess.Popen(
                command, cwd=ROOT, env=settings, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._ranks: dict[int, int] = {}

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def steps(self) -> int:
        """Steps that metrics.jsonl tells of."""
        path = self.run / "metrics.jsonl"
        return path.read_bytes().count(b'train/loss"') if path.exists() else 0

    def until(self, happened, what: str) -> None:
        ends = time.monotonic() + PATIENCE_SECONDS
        while not happened():
            assert time.monotonic() < ends, f"no {what} within {PATIENCE_SECONDS} s\n{self.output}"
            assert self.launcher.poll() is None, f"the run ended before {what}\n{self.output}"
            time.sleep(0.02)

    def until_step(self, step: int) -> None:
        self.until(lambda: self.steps() >= step, f"step {step}")

    def ranks(self) -> dict[int, int]:
        """Rank -> process id."""
        if not self._ranks:
            for pid in children(self.launcher.pid):
                pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                found = [int(pair[5:]) for pair in pairs if pair.startswith(b"RANK=")]
                self._ranks |= dict.fromkeys(found, pid)
        return self._ranks

    def kill(self) -> None:
        """Kills what is left of it."""
        if self.launcher.poll() is None:
            self.ranks()
            self.launcher.kill()
        for pid in self._ranks.values():
            if is_running(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.launcher.wait()

    def wait(self) -> int:
        return self.launcher.wait(PATIENCE_SECONDS)

    def wait_for_ranks(self) -> None:
        """Waits for ranks whose launcher is gone."""
        ends = time.monotonic() + PATIENCE_SECONDS
        while any(is_running(pid) for pid in self._ranks.values()):
            assert time.monotonic() < ends, f"ranks go on\n{self.output}"
            time.sleep(0.05)

    def log_of(self, rank: int) -> str:
        return (self.run / "logs" / f"rank-{rank}.log").read_text(encoding="utf-8")

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.run / "checkpoints").glob("step-*"))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    return False


@contextmanager
def started(folder: Path, *overrides: str, prefix: Sequence[str] = (), **env: str) -> Iterator[Launched]:
    """Yields a run of two ranks that would go on for long; whatever is left of it is killed."""
    command = ["tune", "run", "--nproc_per_node", "2", "recipes/cpt.py", "--config", str(write_config(folder))]
    launched = Launched([*prefix, *command, *overrides], folder, env)
    try:
        yield launched
    finally:
        launched.kill()


def write_config(folder: Path) -> Path:
    """Writes a tiny model, its shards, and a configuration of very many steps without a regular checkpoint."""
    base = tiny_llama(tiny_tokenizer(folder / "base"))
    shards = random_shards(folder / "shards", sha256=sha256_file(base / "tokenizer.json"))
    path = write_cpt_config(folder, base, shards)
    long = {"steps": 100_000, "save_every_steps": 100_000, "warmup_steps": 0}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | long))
    return path
