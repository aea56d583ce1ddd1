"""Cancels the jobs of a submitted pipeline; what they have done stays and is taken up by the next submission.

python -m slurm.cancel --pipeline configs/pipelines/llama3_llams_8b.yaml [key=value ...]
"""

import argparse
import sys
from pathlib import Path

from configs.loader import UserError, load
from data_prep.pipeline import PipelineConfig, check
from slurm.commands import slurm
from slurm.submissions import active_jobs


def main() -> int:
    """Cancels all that wait or run, the waiting ones first, so that none starts meanwhile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    try:
        cfg = load(PipelineConfig, args.pipeline, args.overrides, check)
        active = sorted(active_jobs(Path(cfg.output_dir)), key=lambda job: job[2] != "PENDING")
        for name, job, state in active:
            slurm("scancel", job)
            print(f"{name}: job {job} cancelled, it was {state}")
        if not active:
            print("no job of the pipeline waits or runs")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
