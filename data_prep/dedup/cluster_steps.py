"""The stages of `cluster` as datatrove steps, and the executors that run them. Needs the extra `cluster`."""

import argparse
import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from omegaconf import DictConfig

from data_prep.corpus.shard import ShardTask, clean_shard
from data_prep.dedup import choice, run, shards
from data_prep.dedup.cluster_plan import Plan
from data_prep.dedup.run import Dedup
from data_prep.document import CorpusError
from data_prep.lineage import MANIFEST, ROOT


class _Step(PipelineStep):
    """A step that reads and writes files of its own; datatrove's documents pass through it untouched."""

    type = "kotune"

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Does the rank's share at once: a generator would wait for somebody to ask for its documents."""
        with self.track_time("rank"):
            self.share(rank, world_size)
        return data

    @abstractmethod
    def share(self, rank: int, world_size: int) -> None:
        """Does the share of rank `rank` of `world_size`."""

    def count(self, documents: int, num_bytes: int) -> None:
        """Adds to datatrove's statistics; what our stages report their progress to."""
        self.stat_update("documents", value=documents)
        self.stat_update("bytes", value=num_bytes, unit="batch")


class CleanParts(_Step):
    """Cleans and filters parts of the sources: rank r of w those of number r, r + w, ..."""

    name = "clean parts"

    def __init__(self, tasks: Sequence[ShardTask]) -> None:
        super().__init__()
        self.tasks = tasks

    def share(self, rank: int, world_size: int) -> None:  # noqa: D102
        for task in self.tasks[rank::world_size]:
            is_complete = (task.folder.parent / MANIFEST).is_file()  # its shards have got their final place
            if not is_complete and not task.summary.is_file():
                clean_shard(task, self.count)


class Command(_Step):
    """Runs a command of `data_prep` in one rank: `clean` puts finished parts together, `tokens` encodes."""

    name = "command"

    def __init__(self, args: argparse.Namespace, num_workers: int | None) -> None:
        super().__init__()
        self.args, self.num_workers = args, num_workers

    def share(self, rank: int, world_size: int) -> None:  # noqa: D102
        if rank == 0:
            workers = self.num_workers or len(os.sched_getaffinity(0))
            args = argparse.Namespace(**vars(self.args) | {"workers": workers})
            if code := args.run(args):
                raise CorpusError(f"{args.out}: exit code {code}; 0 is expected; see above, mend it and start again")


class _DedupStep(_Step):
    def __init__(self, task: Dedup) -> None:
        super().__init__()
        self.task = task

    def is_done(self) -> bool:
        """Whether the folder is complete; `BeginDedup` has made sure that it is of this run."""
        return (self.task.out / MANIFEST).is_file()


class BeginDedup(_DedupStep):
    """Checks the folders of documents and opens the unfinished run's folder."""

    name = "begin dedup"

    def share(self, rank: int, world_size: int) -> None:  # noqa: D102
        run.begin(self.task)


class SketchDocuments(_DedupStep):
    """Sketches files of documents: rank r of w those of number r, r + w, ..."""

    name = "sketch documents"

    def share(self, rank: int, world_size: int) -> None:  # noqa: D102
        for shard in [] if self.is_done() else self.task.shards()[rank::world_size]:
            if not shard.work("sketches").is_file():
                shards.sketch_shard(shard, self.count)


class ChooseDocuments(_DedupStep):
    """Compares all documents in one rank."""

    name = "choose documents"

    def share(self, rank: int, world_size: int) -> None:  # noqa: D102
        if not self.is_done() and not run.is_counted(self.task):
            choice.choose(self.task)


class WriteDocuments(_DedupStep):
    """Writes the documents that stay and those that go, file by file as `SketchDocuments`."""

    name = "write documents"

    def share(self, rank: int, world_size: int) -> None:  # noqa: D102
        if self.is_done() or run.is_counted(self.task):
            return
        for shard in self.task.shards()[rank::world_size]:
            if not shard.work("summary").is_file():
                shards.write_shard(shard, self.count)


class FinishDedup(_DedupStep):
    """Checks the ledger and gives the folder its final name."""

    name = "finish dedup"

    def share(self, rank: int, world_size: int) -> None:  # noqa: D102
        if not self.is_done():
            run.finish(self.task)


def stages(plan: Plan, num_workers: int | None = None) -> list[tuple[str, list[PipelineStep], int]]:
    """Returns the stages in order: name, steps, number of ranks; each needs the one before to be complete.

    Args:
        plan: what to do.
        num_workers: processes of a stage of one rank; None for the cores that the rank has.
    """
    found: list[tuple[str, list[PipelineStep], int]] = []
    if plan.parts:
        found.append(("1-clean", [CleanParts(plan.parts)], min(plan.max_tasks, len(plan.parts))))
    found += [
        ("2-assemble", [*(Command(args, num_workers) for args in plan.cleans), BeginDedup(plan.dedup)], 1),
        ("3-sketch", [SketchDocuments(plan.dedup)], plan.num_tasks),
        ("4-choose", [ChooseDocuments(plan.dedup)], 1),
        ("5-write", [WriteDocuments(plan.dedup)], plan.num_tasks),
        ("6-finish", [FinishDedup(plan.dedup)], 1),
    ]
    return found + ([("7-tokens", [Command(plan.tokens, num_workers)], 1)] if plan.tokens else [])


def run_here(plan: Plan, num_workers: int) -> None:
    """Runs the stages on this machine, `num_workers` ranks at once.

    Raises:
        UserError: a rank failed; the others' work is kept.
    """
    for name, steps, num_tasks in stages(plan, num_workers):
        workers = min(num_workers, num_tasks)
        LocalPipelineExecutor(steps, num_tasks, workers, str(plan.logs / name)).run()


def submit(plan: Plan, slurm: DictConfig) -> list[SlurmPipelineExecutor]:
    """Hands the stages to Slurm, each to start when the one before has ended well."""
    before: SlurmPipelineExecutor | None = None
    executors = []
    for name, steps, num_tasks in stages(plan):
        cpus, memory_gb = slurm.cpus_per_task, slurm.mem_per_cpu_gb
        if name == "4-choose":
            cpus, memory_gb = 1, slurm.choose_mem_gb
        elif name in ("2-assemble", "7-tokens"):
            cpus = slurm.single_cpus
        before = SlurmPipelineExecutor(
            steps,
            tasks=num_tasks,
            time=slurm.time,
            partition=slurm.partition,
            cpus_per_task=cpus,
            mem_per_cpu_gb=memory_gb,
            workers=slurm.max_running,
            job_name=f"kotune-{name}",
            qos=slurm.qos,
            # The ranks load our steps by name, and relative paths mean what they mean here.
            env_command=f"source {Path(slurm.venv).absolute()} && cd {Path.cwd()} && export PYTHONPATH={ROOT}",
            sbatch_args=dict(slurm.sbatch),
            logging_dir=str(plan.logs / name),
            depends=before,
            mail_type="NONE",
        )
        executors.append(before)
    executors[-1].run()
    return executors
