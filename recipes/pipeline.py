"""Runs the stages of a pipeline on this machine, in order, and skips those whose result is still right.

    python -m recipes.pipeline --config configs/pipelines/demo.yaml [key=value ...]

A stage is skipped when its command, configuration, inputs and code are those of the run that made its
outputs. A stage that was killed is started again and resumes from its own checkpoints; one of which
something changed starts afresh, without its old outputs.
"""

import fcntl
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, DictConfig

from configs.loader import UserError, parse
from data_prep import stages
from data_prep.process import Launcher


@dataclass
class StageConfig:
    """One command, and everything it reads and writes."""

    name: str = MISSING
    command: str = MISSING  # split as a shell would, run without one; ${output_dir} is filled in
    config: str | None = None  # the YAML file the command reads
    inputs: list[str] = field(default_factory=list)  # files and folders
    outputs: list[str] = field(default_factory=list)  # removed when the stage starts afresh


@dataclass
class PipelineConfig:
    """The stages run one after another; their output is kept in output_dir/logs/<stage>.log."""

    output_dir: str = MISSING
    stages: list[StageConfig] = MISSING


def check(cfg: DictConfig) -> list[str]:
    """Returns what is wrong with the pipeline as a whole."""
    return stages.problems(Path(cfg.output_dir), plan(cfg))


@parse(PipelineConfig, check)
def main(cfg: DictConfig) -> int:
    """Runs the stages of a pipeline that are not up to date."""
    began = time.monotonic()
    stamps = stages.Stamps(Path(cfg.output_dir))
    launcher = Launcher(show=sys.stdout.buffer)
    with exclusive(stamps.folder / "lock") as lock:
        for number, stage in enumerate(plan(cfg), start=1):
            title = f"[{number}/{len(cfg.stages)}] {stage.name}"
            dependencies = stamps.dependencies(stage)
            if stamps.is_done(stage, dependencies):
                print(f"{title}: unchanged, skipped", flush=True)
                continue
            start_afresh_if_changed(stamps, stage, dependencies, title)
            print(f"{title} {shlex.join(stage.words)}", flush=True)
            stamps.start(stage, dependencies)
            seconds = run_stage(launcher, stage, stamps.output_dir / "logs" / f"{stage.name}.log", lock)
            if launcher.received is not None:
                name = signal.Signals(launcher.received).name
                print(f"{title}: stopped by {name}; the same command goes on from here", flush=True)
                return 128 + launcher.received
            stamps.end(stage, dependencies, seconds)
            print(f"{title}: done in {seconds:.1f} s", flush=True)
    print(f"{len(cfg.stages)} stages in {time.monotonic() - began:.1f} s", flush=True)
    return 0


def plan(cfg: DictConfig) -> list[stages.Stage]:
    """Returns the stages of the configuration with their paths and their commands' words."""
    return [
        stages.Stage(
            name=stage.name,
            words=tuple(stages.split(stage.command)),
            config=Path(stage.config) if stage.config else None,
            inputs=tuple(map(Path, stage.inputs)),
            outputs=tuple(map(Path, stage.outputs)),
        )
        for stage in cfg.stages
    ]


def start_afresh_if_changed(stamps: stages.Stamps, stage: stages.Stage, now: dict[str, str], title: str) -> None:
    """Removes the outputs of a run that other dependencies went into, and says so."""
    if changes := stamps.changes(stage, now):
        removed, kept = stamps.remove_outputs(stage)
        print(f"{title}: changed since its last run: {', '.join(changes)}", flush=True)
        for verb, paths in (("removed", removed), ("kept, as it lies outside output_dir:", kept)):
            for path in paths:
                print(f"{title}: {verb} {path}", flush=True)


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
    missing = [str(path) for path in stage.outputs if not path.exists()]
    if launcher.received is None and missing:
        raise UserError(f"stage {stage.name} ended well without writing {', '.join(missing)}; mend its `outputs`")
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
