"""What was submitted of a pipeline, and what became of it."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from configs.entry import exit_code_of
from configs.loader import load
from data_prep.pipeline import PipelineConfig, check
from slurm.commands import ENDED, job_states


def with_pipeline(description: str | None, action: Callable[[DictConfig], None]) -> int:
    """Runs a command about the pipeline that the command line names; returns its exit code."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    return exit_code_of(lambda: action(load(PipelineConfig, args.pipeline, args.overrides, check)))


@dataclass(frozen=True)
class Submitted:
    """One job of a submission, or one task of its array."""

    name: str
    """Of the stage, with the item."""
    job: str
    """As squeue names it: `12`, or `12_3`."""
    submission: Path


def submitted(output_dir: Path) -> list[Submitted]:
    """Returns all jobs ever submitted of the pipeline, the latest last."""
    found = []
    for file in sorted((output_dir / ".submissions").glob("*/jobs.json")):
        for row in json.loads(file.read_text(encoding="utf-8")):
            is_array = len(row["stages"]) > 1
            for index, name in enumerate(row["stages"]):
                found.append(Submitted(name, f"{row['job']}_{index}" if is_array else row["job"], file.parent))
    return found


def active_jobs(output_dir: Path) -> list[tuple[str, str, str]]:
    """Returns stage, job and state of the pipeline's jobs that wait or run."""
    states = job_states()
    found = []
    for job in submitted(output_dir):
        state, _ = states.get(job.job, ("", ""))
        if state and state not in ENDED:
            found.append((job.name, job.job, state))
    return found


def attempts(job: Submitted) -> list[dict[str, Any]]:
    """Returns the record that the job's supervisor keeps; empty before its first start."""
    file = job.submission / "jobs" / job.name / "attempts.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
