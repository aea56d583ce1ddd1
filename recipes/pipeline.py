"""Runs the stages of a pipeline on this machine, in order, and skips those whose result is still right.

    python -m recipes.pipeline --config configs/pipelines/demo.yaml [key=value ...]

The same file is submitted to a cluster by `python -m slurm.submit`.
A stage is skipped when its command, configuration, inputs and code are those of the run that made its
outputs. A stage that was killed is started again and resumes from its own checkpoints; one of which
something changed starts afresh, without its old outputs.
"""

import fcntl
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from configs.entry import parse
from configs.loader import UserError
from data_prep import stages
from data_prep.pipeline import PipelineConfig, begin, check, check_outputs, plan
from data_prep.process import Launcher


@parse(PipelineConfig, check)
def main(cfg: DictConfig) -> int:
    """Runs the stages of a pipeline that are not up to date."""
    began = time.monotonic()
    stamps = stages.Stamps(Path(cfg.output_dir))
    launcher = Launcher(show=sys.stdout.buffer)
    planned = plan(cfg)
    with exclusive(stamps.folder / "lock") as lock:
        for number, stage in enumerate(planned, start=1):
            title = f"[{number}/{len(planned)}] {stage.name}"
            dependencies = stamps.dependencies(stage)
            if not begin(stamps, stage, dependencies, title):
                continue
            seconds = run_stage(launcher, stage, stamps.output_dir / "logs" / f"{stage.name}.log", lock)
            if launcher.received is not None:
                name = signal.Signals(launcher.received).name
                print(f"{title}: stopped by {name}; the same command goes on from here", flush=True)
                return 128 + launcher.received
            stamps.end(stage, dependencies, seconds)
            print(f"{title}: done in {seconds:.1f} s", flush=True)
    print(f"{len(planned)} stages in {time.monotonic() - began:.1f} s", flush=True)
    return 0


def run_stage(launcher: Launcher, stage: stages.Stage, log: Path, lock: int) -> float:
    """Runs the stage's command and returns its seconds; a signal that came meanwhile is in `launcher`.

    Raises:
        UserError: the command cannot be started, failed, or did not write an output.
    """
    started = time.monotonic()
    try:
        exit_code = launcher.run(stage.words, log, lock)
    except OSError as error:
        raise UserError(f"stage {stage.name} cannot be started: {error}; mend its command") from None
    if launcher.received is None and exit_code != 0:
        end = f"exit code {exit_code}" if exit_code > 0 else f"signal {signal.Signals(-exit_code).name}"
        raise UserError(f"stage {stage.name} ended with {end}; {log} has its output; mend the cause and run again")
    if launcher.received is None:
        check_outputs(stage)
    return time.monotonic() - started


@contextmanager
def exclusive(path: Path) -> Iterator[int]:
    """Holds a lock that a started command inherits, so that a command orphaned by SIGKILL keeps it.

    Raises:
        UserError: another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path} is held by a running pipeline or its stage; wait for it or end it") from None
        yield file.fileno()


if __name__ == "__main__":
    main()
