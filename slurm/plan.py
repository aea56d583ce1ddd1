"""Which stages of a pipeline have to run as jobs, what each waits for, and the words sbatch is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from data_prep import pipeline, stages
from recipes.training.tables import aligned
from slurm.launch import Launch, launch_of, run_folder
from slurm.lead import LIMIT_CHECK_SECONDS, lead_seconds


@dataclass(frozen=True)
class PlannedJob:
    """One job, or one job array, of a pipeline."""

    name: str
    """The stage's, as in the file."""
    stages: tuple[stages.Stage, ...]
    """One, or the items that are not done."""
    waits_for: tuple[str, ...]
    """Names of the jobs before it that make what it reads."""
    resources: DictConfig

    @property
    def launch(self) -> Launch:
        """How Slurm starts its command."""
        return launch_of(self.stages[0].words)


def planned_jobs(cfg: DictConfig, stamps: stages.Stamps) -> tuple[list[PlannedJob], list[str]]:
    """Returns the jobs to submit, in order, and the names of the stages that are done.

    A stage is submitted if it is not done, or if a job before it may change what it reads; it then waits for that
    job, and ends at once if nothing changed. Stages that read nothing of one another run side by side.

    Raises:
        ConfigError: an input does not exist and no stage makes it.
    """
    jobs: list[PlannedJob] = []
    done: list[str] = []
    for entry, members in pipeline.groups(cfg):
        todo, waits_for = [], []
        for stage in members:
            before = [job.name for job in jobs if _reads(stage, job)]
            if before or not stamps.is_done(stage, stamps.dependencies(stage)):
                todo.append(stage)
                waits_for += before
            else:
                done.append(stage.name)
        if todo:
            jobs.append(PlannedJob(entry.name, tuple(todo), _direct(waits_for, jobs), entry.resources))
    return jobs, done


def _direct(names: Sequence[str], jobs: Sequence[PlannedJob]) -> tuple[str, ...]:
    """Returns the names, once each, without those that another of them waits for anyway."""
    by_name = {job.name: job for job in jobs}
    above: set[str] = set()
    waiting = list(names)
    while waiting:
        more = by_name[waiting.pop()].waits_for
        above.update(more)
        waiting += more
    return tuple(name for name in dict.fromkeys(names) if name not in above)


def _reads(stage: stages.Stage, job: PlannedJob) -> bool:
    made = [path for other in job.stages for path in other.outputs]
    read = [*stage.inputs, *([stage.config] if stage.config else [])]
    return any(stages.overlap(one, other) for one in read for other in made)


def sbatch_options(job: PlannedJob, cluster: DictConfig, submission: Path, ids: Mapping[str, str]) -> list[str]:
    """Returns the words after `sbatch --parsable`.

    Args:
        job: what to submit.
        cluster: `ClusterSettings`.
        submission: folder of the snapshot and the logs.
        ids: job ids of what was submitted before, by name.
    """
    resources, launch = job.resources, job.launch
    is_array = len(job.stages) > 1
    partition = resources.partition or (resources.gpus_per_node and cluster.gpu_partition) or cluster.partition
    spare = cluster.spare_nodes if launch.is_training else 0
    lead = _lead(job, cluster) if launch.is_training else None
    values = {
        "job-name": f"kotune-{job.name}",
        "chdir": submission / "code",
        "output": submission / "logs" / (f"{job.name}-%A_%a.log" if is_array else f"{job.name}-%j.log"),
        "nodes": resources.nodes + spare,
        "time": resources.time or cluster.time,
        "partition": partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": ",".join(cluster.exclude),
        "gpus-per-node": resources.gpus_per_node or None,
        "cpus-per-task": resources.cpus,
        "mem": None if resources.memory_gb is None else f"{resources.memory_gb}G" if resources.memory_gb else "0",
        "dependency": "afterok:" + ":".join(ids[name] for name in job.waits_for) if job.waits_for else None,
        # An afterok on a job that failed would otherwise wait for ever.
        "kill-on-invalid-dep": "yes",
        "array": f"0-{len(job.stages) - 1}" + (f"%{resources.array}" if resources.array else "") if is_array else None,
        "signal": f"B:USR1@{lead}" if lead else None,
    }
    said = {**cluster.sbatch, **{key: value for key, value in values.items() if value}}
    return [*(f"--{key}={value}" for key, value in said.items()), f"slurm/{launch.script}"]


def _lead(job: PlannedJob, cluster: DictConfig) -> int:
    """Returns the seconds of a training's warning; its run is unknown while a stage must write its configuration."""
    config = job.stages[0].config
    run = run_folder(job.launch.words) if config is None or config.is_file() else None
    return lead_seconds(run, cluster.lead_seconds)


def job_variables(job: PlannedJob, cluster: DictConfig, submission: Path) -> dict[str, str]:
    """Returns the variables that tell a job which stage it runs."""
    launch = job.launch
    ranks = job.resources.gpus_per_node or launch.ranks_per_node
    # A minute of the warning's lead is Slurm's own imprecision.
    stop = {"KOTUNE_STOP_TIMEOUT": str(_lead(job, cluster) - LIMIT_CHECK_SECONDS)} if launch.is_training else {}
    return {
        "KOTUNE_SUBMISSION": str(submission),
        "KOTUNE_STAGES": " ".join(stage.name for stage in job.stages),
        "KOTUNE_SPARE_NODES": str(cluster.spare_nodes if launch.is_training else 0),
        "KOTUNE_RANKS_PER_NODE": str(ranks),
        **stop,
    }


def table(rows: Sequence[Sequence[object]], heads: Sequence[str]) -> str:
    """Returns rows as text, columns aligned to the left."""
    return "\n".join(aligned([[str(cell) for cell in row] for row in [heads, *rows]], len(heads)))
