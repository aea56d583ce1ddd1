"""Submits a pipeline as dependent jobs; what is done already is skipped.

    python -m slurm.submit --pipeline configs/pipelines/llama3_llams_8b.yaml [--dry-run] [--cluster FILE] [vars.x=y ...]

The file is the one that `python -m recipes.pipeline` runs on one machine. Code and configuration are copied to
`output_dir/.submissions/TIME`, and the jobs run from there; each leaves the stamp that the local runner would leave.
"""

import argparse
import os
import shlex
import sys
import textwrap
import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from configs.entry import exit_code_of
from configs.loader import UserError, load
from data_prep import stages
from data_prep.lineage import write_json
from data_prep.pipeline import PipelineConfig
from data_prep.pipeline import check as check_pipeline
from slurm import snapshot
from slurm.cluster import ClusterSettings, job_environment
from slurm.cluster import check as check_cluster
from slurm.commands import SlurmError, refuse_other_folder, slurm, submit_job
from slurm.plan import PlannedJob, job_variables, planned_jobs, sbatch_options, table
from slurm.submissions import active_jobs

FIXED = ("command", "config ", "code")
"""What a stage depends on that a submission fixes; inputs come with the jobs before it."""


def arguments() -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="YAML file, e.g. configs/pipelines/llama3_llams_8b.yaml")
    parser.add_argument("--cluster", default="configs/slurm/default.yaml", help="YAML file of slurm/cluster.py's keys")
    parser.add_argument("--dry-run", action="store_true", help="print the jobs and sbatch's words, submit nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args()


def main() -> int:
    """Submits what is not done and prints the jobs."""
    args = arguments()
    refuse_other_folder()
    cfg = load(PipelineConfig, args.pipeline, args.overrides, check_pipeline)
    cluster = load(ClusterSettings, args.cluster, (), check_cluster)
    jobs, done = planned_jobs(cfg, stages.Stamps(Path(cfg.output_dir)))
    for name in done:
        print(f"{name}: unchanged, skipped")
    if not jobs:
        print("all stages are done")
        return 0
    if args.dry_run:
        return show(jobs, cluster, Path(cfg.output_dir).absolute() / ".submissions" / "TIME")
    refuse_if_queued(Path(cfg.output_dir))
    return submit(jobs, cfg, cluster)


def show(jobs: list[PlannedJob], cluster: DictConfig, submission: Path) -> int:
    """Prints what would be submitted."""
    ids = {job.name: f"<{job.name}>" for job in jobs}
    print_jobs(jobs, cluster, dict.fromkeys(ids, "-"))
    for job in jobs:
        print(f"\n# {job.name}: {shlex.join(job.stages[0].words)}")
        print(shlex.join(["sbatch", "--parsable", *sbatch_options(job, cluster, submission, ids)]))
    return 0


def submit(jobs: list[PlannedJob], cfg: DictConfig, cluster: DictConfig) -> int:
    """Copies the code, submits the jobs and prints them; all of them or none.

    Raises:
        SlurmError: sbatch refuses one; those before it are cancelled.
    """
    for stage in (stage for job in jobs for stage in job.stages):
        for path in stage.outputs:  # before the copy, so that it links the folder
            path.parent.mkdir(parents=True, exist_ok=True)
    submission = new_folder(Path(cfg.output_dir).absolute() / ".submissions")
    (submission / "logs").mkdir()
    facts = snapshot.take(submission / "code")
    OmegaConf.save(cfg, submission / "pipeline.yaml", resolve=True)
    write_json(submission / "expected.json", fixed_dependencies(jobs, Path(cfg.output_dir)))
    ids: dict[str, str] = {}
    rows = []
    try:
        for job in jobs:
            environment = job_environment(cluster, sys.prefix) | job_variables(job, cluster, submission)
            ids[job.name] = submit_job(sbatch_options(job, cluster, submission, ids), environment)
            names = [stage.name for stage in job.stages]
            rows.append({"job": ids[job.name], "name": job.name, "stages": names, "waits_for": list(job.waits_for)})
            write_json(submission / "jobs.json", rows)
    except SlurmError:
        if ids:
            slurm("scancel", *ids.values())
        raise
    print_jobs(jobs, cluster, ids)
    print(f"\ncode {facts['commit']} and logs: {submission}")
    return 0


def fixed_dependencies(jobs: list[PlannedJob], output_dir: Path) -> dict[str, dict[str, str]]:
    """Returns what each stage depends on and must still find when its job starts."""
    stamps = stages.Stamps(output_dir)
    found = {}
    for stage in (stage for job in jobs for stage in job.stages):
        is_there = stage.config is None or stage.config.is_file()  # a stage before it may make it
        known = stamps.dependencies(stages.without_inputs(stage)) if is_there else {}
        found[stage.name] = {name: value for name, value in known.items() if name.startswith(FIXED)}
    return found


def refuse_if_queued(output_dir: Path) -> None:
    """Checks that no job of the pipeline is in the queue or running.

    Raises:
        SlurmError: one is; the message names it.
    """
    if active := active_jobs(output_dir):
        named = ", ".join(f"{name} as job {job} ({state})" for name, job, state in active[:5])
        what = f"{len(active)} of the pipeline's stages are queued already: {named}"
        raise SlurmError(f"{what}; none is expected; wait for them, or python -m slurm.cancel --pipeline FILE")


def new_folder(parent: Path) -> Path:
    """Makes a folder named by the time."""
    for suffix in ["", *(f"-{number}" for number in range(2, 100))]:
        folder = parent / (time.strftime("%Y%m%d-%H%M%S") + suffix)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise UserError(f"{parent} has a hundred submissions of this second; fewer are expected; wait a second")


def print_jobs(jobs: list[PlannedJob], cluster: DictConfig, ids: dict[str, str]) -> None:
    """Prints the table of jobs."""
    rows = [
        [
            job.name if len(job.stages) == 1 else f"{job.name} x {len(job.stages)}",
            ids[job.name],
            job.resources.nodes,
            job.resources.gpus_per_node or "-",
            job.resources.time or cluster.time,
            ", ".join(job.waits_for) or "-",
            f"{job.launch.script}: {textwrap.shorten(' '.join(job.launch.words), 60)}",
        ]
        for job in jobs
    ]
    print(table(rows, ["stage", "job", "nodes", "gpus", "time", "waits for", "command"]))


if __name__ == "__main__":
    os.environ.pop("SLURM_JOB_ID", None)  # submitted from within an interactive job, it is no step of that one
    sys.exit(exit_code_of(main))
