"""Cancels the jobs of a submitted pipeline; what they have done stays and is taken up by the next submission.

python -m slurm.cancel --pipeline configs/pipelines/llama3_llams_8b.yaml [key=value ...]
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from slurm.commands import slurm
from slurm.submissions import active_jobs, with_pipeline


def cancel(cfg: DictConfig) -> None:
    """Cancels all that wait or run, the waiting ones first, so that none starts meanwhile."""
    active = sorted(active_jobs(Path(cfg.output_dir)), key=lambda job: job[2] != "PENDING")
    for name, job, state in active:
        slurm("scancel", job)
        print(f"{name}: job {job} cancelled, it was {state}")
    if not active:
        print("no job of the pipeline waits or runs")


if __name__ == "__main__":
    sys.exit(with_pipeline(__doc__, cancel))
