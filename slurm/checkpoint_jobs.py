"""Submits a job for each checkpoint of a run, as it appears, which scores it.

    python -m slurm.checkpoint_jobs --config configs/evaluate_run/llama3_8b_ko.yaml [--cluster FILE] [key=value ...]
    sbatch slurm/command.sbatch python -m slurm.checkpoint_jobs --config ...       # the same as a job beside the run

It gives each checkpoint a second place by hard links until it is scored, so that the run may delete its own. It ends
when the run is finished and each checkpoint has its job; started again it goes on, and submits anew what has failed.
The jobs run `recipes.evaluate_run` with step=N: rows, best checkpoint and the rule to end the run are those of it.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from configs.entry import exit_code_of
from configs.loader import load
from data_prep.lineage import ROOT, write_json
from recipes.evaluate_run import EvaluateRunConfig, check, regular_checkpoints
from recipes.evaluation import following
from slurm.cluster import ClusterSettings, job_environment
from slurm.cluster import check as check_cluster
from slurm.commands import ENDED, job_states, refuse_other_folder, submit_job


def arguments() -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of recipes.evaluate_run")
    parser.add_argument("--cluster", default="configs/slurm/default.yaml", help="YAML file of slurm/cluster.py's keys")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of a job; 0 for none")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args()


def unscored(run: Path) -> dict[int, Path]:
    """Returns what has no result yet, by step: checkpoints, and as step 0 what the run started from."""
    weights = OmegaConf.load(run / "config.yaml").weights
    has_start = not weights or (run / following.FOLDER / "step-00000000.json").is_file()
    found = {} if has_start else {0: Path(weights)}
    return found | {following.step_of(path): path for path in following.waiting(run, regular_checkpoints(run))}


def still_there(run: Path, jobs: dict[str, str]) -> dict[str, str]:
    """Returns the jobs of an earlier start that wait, run, or have left a result."""
    states = job_states() if jobs else {}
    active = {job for job, (state, _) in states.items() if state not in ENDED}
    return {s: job for s, job in jobs.items() if job in active or (run / following.FOLDER / f"step-{s}.json").is_file()}


def options(run: Path, step: int, gpus: int, cluster: DictConfig) -> list[str]:
    """Returns sbatch's options of the job of one checkpoint."""
    values = {
        "job-name": f"kotune-evaluate-{step}",
        "chdir": ROOT,
        "output": (run / following.FOLDER / "job-%j.log").absolute(),
        "time": cluster.time,
        "partition": (cluster.gpu_partition if gpus else None) or cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": ",".join(cluster.exclude),
        "gpus-per-node": gpus or None,
    }
    return [f"--{key}={value}" for key, value in {**cluster.sbatch, **{k: v for k, v in values.items() if v}}.items()]


def follow(cfg: DictConfig, cluster: DictConfig, args: argparse.Namespace) -> None:
    """Submits jobs until the run is finished and each checkpoint has one.

    Raises:
        SlurmError: sbatch refuses.
    """
    run, environment = Path(cfg.run), job_environment(cluster, sys.prefix)
    while not (run / "config.yaml").is_file():
        time.sleep(cfg.poll_seconds)
    file = run / following.FOLDER / "jobs.json"
    jobs = still_there(run, json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    while True:
        is_finished = (run / following.FINISHED).exists()  # first: it is written behind the last checkpoint
        for step, path in unscored(run).items():
            name = f"{step:08d}"
            if name in jobs or (step and following.pin(run, path) is None):
                continue  # it has its job, or was deleted by the run before it could be kept
            file.parent.mkdir(exist_ok=True)
            words = ["slurm/evaluate_run.sbatch", "--config", args.config, *args.overrides, f"step={step}"]
            jobs[name] = submit_job([*options(run, step, args.gpus, cluster), *words], environment)
            write_json(file, jobs)
            print(f"step {step}: job {jobs[name]}", flush=True)
        if is_finished:
            return
        time.sleep(cfg.poll_seconds)


def main() -> None:
    """Submits a job for each checkpoint of a run."""
    args = arguments()
    refuse_other_folder()
    cfg = load(EvaluateRunConfig, args.config, [*args.overrides, "watch=true"], check)
    follow(cfg, load(ClusterSettings, args.cluster, (), check_cluster), args)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
