"""The allocation that this process runs in: its nodes, its folders, and the steps that srun starts on it."""

import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.loader import ConfigError
from slurm.commands import (
    SlurmError,
    excluded_nodes,
    host_names,
    job_end_time,
    node_address,
    partition_nodes,
    slurm,
)
from slurm.launch import RECIPES, Launch, launch_of, run_folder

RANK = "slurm/rank.sh"
FIRST_PORT, NUM_PORTS = 20_000, 10_000
"""Ports of the rendezvous, below the range that the kernel gives to outgoing connections."""


@dataclass
class Step:
    """One `srun` of the job."""

    words: list[str]
    environment: dict[str, str]
    number: int
    """The step's number in Slurm."""
    is_training: bool = False
    was_asked: bool = False
    """Whether it was asked to save and leave."""


@dataclass
class Job:
    """One attempt of this job."""

    id: str
    """As Slurm names it for scancel: `12`, or `12_3` for an array task."""
    restarts: int
    nodes: list[str]
    launch: Launch
    folder: Path
    """Of the job's own records, over all its attempts."""
    run: Path | None
    """Run folder of a training; None for everything else."""
    num_nodes: int
    """Nodes that the run takes; more of them in `nodes` are spare."""
    ranks_per_node: int
    cpus_per_rank: int
    has_preflight: bool
    bad_nodes: list[str] = field(default_factory=list)
    num_steps: int = 0

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], words: Sequence[str], folder: Path | None = None
    ) -> "Job":
        """Returns the job that Slurm's variables describe.

        Args:
            environment: variables of the batch script.
            words: what to run.
            folder: where the job's records go; by default KOTUNE_JOBS/JOB.

        Raises:
            ConfigError: this process runs in no job, or spare nodes are asked for that are not there.
        """
        if "SLURM_JOB_ID" not in environment:
            raise ConfigError("slurm.supervise", ["SLURM_JOB_ID is not set; it runs inside a job; submit it by sbatch"])
        launch = job_launch(words, environment)
        nodes = host_names(environment["SLURM_JOB_NODELIST"])
        spare = _count(environment, "KOTUNE_SPARE_NODES", 0)
        if spare >= len(nodes):
            problem = f"KOTUNE_SPARE_NODES: {spare} of {len(nodes)} nodes; fewer are expected; add nodes, or lower it"
            raise ConfigError("environment", [problem])
        array = environment.get("SLURM_ARRAY_TASK_ID")
        name = f"{environment['SLURM_ARRAY_JOB_ID']}_{array}" if array else environment["SLURM_JOB_ID"]
        ranks = launch.ranks_per_node
        if launch.is_training:
            ranks = max(
                1, _count(environment, "KOTUNE_RANKS_PER_NODE", _count(environment, "SLURM_GPUS_ON_NODE", ranks))
            )
        cpus = int(environment.get("SLURM_CPUS_ON_NODE", "1"))
        return cls(
            id=name,
            restarts=int(environment.get("SLURM_RESTART_COUNT", "0")),
            nodes=nodes,
            launch=launch,
            folder=folder or Path(environment.get("KOTUNE_JOBS", "out/slurm")) / name,
            run=run_folder(launch.words) if launch.is_training else None,
            num_nodes=len(nodes) - spare if launch.module else 1,
            ranks_per_node=ranks,
            cpus_per_rank=max(1, cpus // ranks),
            has_preflight=launch.is_training and environment.get("KOTUNE_PREFLIGHT", "1") != "0",
        )

    @property
    def words(self) -> tuple[str, ...]:
        """The command's words, without what starts it."""
        return self.launch.words

    @property
    def attempt(self) -> str:
        """Name of this start of the job."""
        return f"{self.id}.{self.restarts}"

    @property
    def attempt_folder(self) -> Path:
        """Logs of this attempt's ranks, and the note of the first one that failed."""
        return self.folder / f"attempt-{self.restarts}"

    def training_step(self, words: Sequence[str]) -> Step:
        """Returns the step that runs the command: a task per rank, or a single one."""
        if self.launch.module is None:
            return self._step([*words], self.nodes[:1], 1, "command")
        ranks = self.ranks_per_node if self.launch.is_training else 1
        nodes = self.nodes[: self.num_nodes] if self.launch.is_training else self.nodes[:1]
        return self._step(["python", "-m", self.launch.module, *words], nodes, ranks, "rank")

    def preflight_step(self, words: Sequence[str]) -> Step:
        """Returns the step that examines all nodes, the spare ones too."""
        arguments = [*words, "--bad-nodes", str(self._bad_nodes_file)]
        step = self._step(["python", "-m", "slurm.preflight", *arguments], self.nodes, self.ranks_per_node, "preflight")
        step.is_training = False
        return step

    def _step(self, words: Sequence[str], nodes: Sequence[str], ranks: int, log: str) -> Step:
        command = [
            "srun",
            f"--nodes={len(nodes)}",
            f"--ntasks={len(nodes) * ranks}",
            f"--ntasks-per-node={ranks}",
            f"--cpus-per-task={self.cpus_per_rank}",
            f"--nodelist={','.join(nodes)}",
            "--mpi=none",
            # The other ranks may write down what they saw; the watchdog ends them. And an srun left over on a node
            # that was cut off must not kill the step of the same number of the next attempt.
            "--kill-on-bad-exit=0",
            "--wait=0",
            f"--output={self.attempt_folder}/{log}-%t.log",
            *shlex.split(os.environ.get("KOTUNE_SRUN_OPTIONS", "")),
            *("bash", RANK),
            *words,
        ]
        number, self.num_steps = self.num_steps, self.num_steps + 1
        return Step(command, self._environment(nodes, ranks), number, is_training=self.launch.is_training)

    def _environment(self, nodes: Sequence[str], ranks: int) -> dict[str, str]:
        """Returns what the step's tasks need to find one another, and the job's deadline."""
        raw_id = int("".join(filter(str.isdigit, os.environ["SLURM_JOB_ID"])))
        # Another port with every step: processes of the last one may still hold theirs.
        port = FIRST_PORT + (raw_id * 13 + self.restarts * 5 + self.num_steps) % NUM_PORTS
        deadline = job_end_time(os.environ["SLURM_JOB_ID"])
        return {
            "MASTER_ADDR": node_address(nodes[0]),
            "MASTER_PORT": str(port),
            "KOTUNE_RANKS_PER_NODE": str(ranks),
            "KOTUNE_ATTEMPT": self.attempt,
            "KOTUNE_ATTEMPT_DIR": str(self.attempt_folder),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self.cpus_per_rank)),
            "TORCH_FR_DUMP_TEMP_FILE": str((self.attempt_folder / "nccl-rank-").absolute()),
            "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str((self.attempt_folder / "nccl-rank-").absolute()),
            **({"KOTUNE_DEADLINE": f"{deadline:.0f}"} if deadline else {}),
            **self.launch.environment,
        }

    @property
    def _bad_nodes_file(self) -> Path:
        return self.attempt_folder / "bad_nodes"

    def read_bad_nodes(self) -> list[str]:
        """Returns the nodes of this job that preflight found bad."""
        try:
            named = self._bad_nodes_file.read_text(encoding="utf-8").split()
        except OSError:
            return []
        short = {name.split(".")[0] for name in named}
        return [node for node in self.nodes if node in named or node.split(".")[0] in short]

    def drop(self, bad: Iterable[str]) -> bool:
        """Leaves nodes out of the run and, at a requeue, out of the job; whether enough nodes remain."""
        self.bad_nodes += [node for node in bad if node not in self.bad_nodes]
        healthy = [node for node in self.nodes if node not in self.bad_nodes]
        if len(healthy) < self.num_nodes:
            return False
        self.nodes = healthy
        return True

    def exclude_bad_nodes(self) -> None:
        """Keeps the bad nodes out of the job that was just requeued: only now is it one that may be changed.

        What it leaves out already, by its user's wish or since an earlier requeue, stays out. Where too few nodes would
        remain, they are not excluded: a job that waits for ever tells nothing.
        """
        if not self.bad_nodes:
            return
        needed = len({*self.nodes, *self.bad_nodes})
        for _ in range(10):
            try:
                excluded = sorted({*excluded_nodes(self.id), *self.bad_nodes})
                remaining = len(partition_nodes(self.id) - set(excluded))
                if remaining < needed:
                    bad = " ".join(self.bad_nodes)
                    told = f"{bad} not excluded: {remaining} nodes of the partition would remain, {needed} are needed"
                    print(told, file=sys.stderr, flush=True)
                    return
                slurm("scontrol", "update", f"jobid={self.id}", f"ExcNodeList={','.join(excluded)}", tries=1)
                return
            except SlurmError as error:
                print(f"bad nodes not excluded yet: {error}", file=sys.stderr, flush=True)
                time.sleep(0.5)


def job_launch(words: Sequence[str], environment: Mapping[str, str]) -> Launch:
    """Returns what the words after `python -m slurm.supervise` start.

    Raises:
        ConfigError: there are none, or an array task has no line of its own.
    """
    if not words:
        raise ConfigError("slurm.supervise", ["no command; a recipe or `command WORDS` is expected; give one"])
    if words[0] == "command":
        return launch_of(_with_item(words[1:], environment))
    if words[0] in RECIPES:
        return launch_of(["python", "-m", *words])
    return launch_of(words)


def _count(environment: Mapping[str, str], name: str, otherwise: int) -> int:
    """Returns a number of the environment; `otherwise` where it is unset or empty.

    Raises:
        ConfigError: it is no whole number.
    """
    text = environment.get(name) or str(otherwise)
    if not text.isdecimal():
        raise ConfigError(
            "environment", [f"{name}: {text!r} is no whole number; one of 0 or more is expected; mend it"]
        )
    return int(text)


def _with_item(words: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Returns the words with {item} and {name} of an array task filled in from the file KOTUNE_ITEMS."""
    items, index = environment.get("KOTUNE_ITEMS"), environment.get("SLURM_ARRAY_TASK_ID")
    if items is None or index is None:
        return list(words)
    lines = Path(items).read_text(encoding="utf-8").splitlines()
    item = lines[int(index)].strip() if int(index) < len(lines) else ""
    if not item:
        problem = f"{items} has no line for task {index}; lines 0 to {len(lines) - 1} are expected; mend --array"
        raise ConfigError("KOTUNE_ITEMS", [problem])
    return [word.replace("{item}", item).replace("{name}", Path(item).name.split(".")[0]) for word in words]
