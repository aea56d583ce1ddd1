"""A Slurm of four nodes on this machine: Debian's munge, slurmctld and slurmd, started for the session."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm.commands import ENDED
from tests.recipes.conftest import base, shards  # noqa: F401
from tests.support import ROOT

MINI_SLURM = ROOT / "tests" / "slurm" / "mini_slurm.sh"


class Cluster:
    """The cluster, as its user sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "etc" / "slurm.conf"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"]),
            "PYTHONPATH": str(ROOT),
            "KOTUNE_VENV": sys.prefix,
            "KOTUNE_JOBS": str(folder / "jobs"),
            "OMP_NUM_THREADS": "1",
        }

    def mini(self, *words: str) -> None:
        result = subprocess.run([MINI_SLURM, *words, "-d", self.folder], capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{' '.join(words)}: {result.stdout}{result.stderr}"

    def run(
        self, *words: object, check: bool = True, cwd: Path = ROOT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = list(map(str, words))
        result = subprocess.run(
            command, cwd=cwd, env={**self.environment, **environment}, capture_output=True, text=True, timeout=300
        )
        assert not check or result.returncode == 0, f"{' '.join(command)}: {result.stdout}{result.stderr}"
        return result

    def sbatch(self, script: str, *words: object, options: tuple[str, ...] = (), **environment: str) -> str:
        """Submits a file of slurm/ as a user does; returns the job's id. Its log lies beside the cluster's."""
        log = f"--output={self.folder}/job-%A_%a.log" if any("--array" in o for o in options) else ""
        log = log or f"--output={self.folder}/job-%j.log"
        return self.run("sbatch", "--parsable", log, *options, f"slurm/{script}", *words, **environment).stdout.strip()

    def log(self, job: str) -> str:
        path = self.folder / f"job-{job}.log"
        return path.read_text() if path.exists() else ""

    def states(self) -> dict[str, str]:
        rows = self.run("squeue", "--noheader", "--all", "--array", "--states=all", "--format=%i %T").stdout
        return dict(line.split() for line in rows.splitlines())

    def wait(self, *jobs: str, timeout: float = 400) -> list[str]:
        """Waits until the jobs have ended; returns their states."""
        self.until(lambda: all(self.states()[job] in ENDED for job in jobs), timeout, lambda: self._tell(jobs))
        return [self.states()[job] for job in jobs]

    def until(self, is_so: Callable[[], bool], timeout: float, tell: Callable[[], object] = str) -> None:
        end = time.monotonic() + timeout
        while not is_so():
            assert time.monotonic() < end, f"not so within {timeout} s: {tell()}"
            time.sleep(0.3)

    def _tell(self, jobs: tuple[str, ...]) -> str:
        return f"{self.states()}\n" + "\n".join(f"{job}: {self.log(job)}" for job in jobs)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    if missing := [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name, path=path) is None]:
        pytest.skip(f"{', '.join(missing)} not installed; apt-get install --no-install-recommends slurm-wlm munge")
    made = Cluster(Path(f"/tmp/kotune-slurm-{os.getpid()}"))  # short: unix sockets lie in it
    made.mini("start", "-n", "4")
    yield made
    made.mini("clean")


@pytest.fixture
def healthy(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with all nodes up; what a test left running is cancelled, nodes it took down come back."""
    yield cluster
    cluster.run("scancel", "--me", check=False)
    for node in ("n1", "n2", "n3", "n4"):
        subprocess.run([MINI_SLURM, "start-slurmd", node, "-d", cluster.folder], capture_output=True, check=False)
