"""Shows where a submitted pipeline is.

    python -m slurm.status --pipeline configs/pipelines/llama3_llams_8b.yaml [key=value ...]

One line a stage: its state, its job, and for a training steps, tokens, loss, tokens/s and the time left.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data_prep import stages
from data_prep.pipeline import plan
from slurm.commands import ENDED, job_states
from slurm.launch import launch_of, run_folder
from slurm.lead import last_rows
from slurm.plan import table
from slurm.submissions import Submitted, attempts, submitted, with_pipeline

HEADS = ["stage", "state", "job", "steps", "tokens", "loss", "tokens/s", "left", "note"]


def show(cfg: DictConfig) -> None:
    """Prints the table."""
    print(table(rows(cfg, job_states()), HEADS))


def rows(cfg: DictConfig, states: dict[str, tuple[str, str]]) -> list[list[object]]:
    """Returns a row for each stage; `states` is what Slurm still knows of the user's jobs."""
    output_dir = Path(cfg.output_dir)
    latest = {job.name: job for job in submitted(output_dir)}
    found = []
    for stage in plan(cfg):
        job = latest.get(stage.name)
        state, note = state_of(output_dir, stage, job, states)
        launch = launch_of(stage.words)
        run = run_folder(launch.words) if launch.is_training and _is_readable(stage) else None
        found.append([stage.name, state, job.job if job else "-", *progress(run, is_running=state == "RUNNING"), note])
    return found


def state_of(
    output_dir: Path, stage: stages.Stage, job: Submitted | None, states: dict[str, tuple[str, str]]
) -> tuple[str, str]:
    """Returns a stage's state and what is to be known beside it.

    Slurm forgets a job some minutes after its end; the stage's stamp and the supervisor's record do not.
    """
    state, reason = states.get(job.job, ("", "")) if job else ("", "")
    past = attempts(job) if job else []
    if state and state not in ENDED:
        tries = f"attempt {len(past)}; " if len(past) > 1 else ""
        return state, tries + (reason if state == "PENDING" else f"on {reason}")
    stamp = output_dir / ".stages" / f"{stage.name}.json"
    stamped = json.loads(stamp.read_text(encoding="utf-8"))["state"] if stamp.is_file() else "-"
    if stamped == "done":
        return "done", ""
    why = str(past[-1].get("why", "")) if past else ""
    if state == "CANCELLED" and not past:
        why = "before it started: a job that it waits for did not end well, or scancel"
    if job is None:
        return ("begun", "by recipes.pipeline") if stamped == "running" else ("-", "not submitted")
    log = f"log: {log_of(job)}" if log_of(job).is_file() else ""
    return state or "ended", "; ".join(filter(None, [why, log]))


def log_of(job: Submitted) -> Path:
    """Returns the log that Slurm writes for the job."""
    group = {row["job"]: row["name"] for row in json.loads((job.submission / "jobs.json").read_text(encoding="utf-8"))}
    return job.submission / "logs" / f"{group[job.job.split('_')[0]]}-{job.job}.log"


def progress(run: Path | None, *, is_running: bool) -> list[object]:
    """Returns steps, tokens, loss, tokens/s and time left of a run folder, as text; dashes where there is nothing."""
    settings = run_settings(run)
    recent = last_rows(run, 50) if run else []
    if not recent or not settings:
        return ["-"] * 5
    last, total = recent[-1], int(settings["steps"])
    step = int(last["step"])
    seconds = [row["speed/step_seconds"] for row in recent if "speed/step_seconds" in row]
    left = (total - step) * median(seconds) if seconds and is_running else None
    speeds = [row["speed/tokens_per_second"] for row in recent if "speed/tokens_per_second" in row]
    return [
        f"{step}/{total}",
        f"{step * int(settings['global_batch_tokens']):,}",
        f"{last['train/loss']:.4f}" if "train/loss" in last else "-",
        f"{median(speeds):,.0f}" if speeds else "-",
        duration(left) if left is not None else "-",
    ]


def run_settings(run: Path | None) -> dict[str, Any]:
    """Returns the resolved configuration of a run folder; empty before it starts."""
    if run is None or not (run / "config.yaml").is_file():
        return {}
    return dict(OmegaConf.load(run / "config.yaml"))


def duration(seconds: float) -> str:
    """Returns hours and minutes, or minutes and seconds."""
    whole = time.gmtime(round(seconds))
    days = round(seconds) // 86400
    if seconds >= 3600:
        return f"{days * 24 + whole.tm_hour} h {whole.tm_min:02d} min"
    return f"{whole.tm_min} min {whole.tm_sec:02d} s"


def _is_readable(stage: stages.Stage) -> bool:
    return stage.config is None or stage.config.is_file()


if __name__ == "__main__":
    sys.exit(with_pipeline(__doc__, show))
