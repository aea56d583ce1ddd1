"""A pipeline file: its stages with their resources, and what happens before and after one of them runs."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig

from configs.loader import UserError, positive
from data_prep import stages

TIME = re.compile(r"(\d+-)?\d{1,3}:\d\d:\d\d")


@dataclass
class Resources:
    """What a job of the stage is given; `slurm.submit` reads it, a run on this machine does not."""

    nodes: int = 1
    gpus_per_node: int = 0  # of a training: also its ranks on a node; without GPUs the command says how many
    cpus: int | None = None  # cores of a node
    memory_gb: int | None = None  # of a node; 0: all of it
    time: str | None = None  # limit, as sbatch reads it: HH:MM:SS
    partition: str | None = None
    array: int | None = None  # of a stage with `items`: most of them at once


@dataclass
class StageConfig:
    """One command, and everything it reads and writes."""

    name: str = MISSING
    command: str = MISSING  # split as a shell would, run without one; ${output_dir} is filled in
    config: str | None = None  # the YAML file the command reads
    inputs: list[str] = field(default_factory=list)  # files and folders
    outputs: list[str] = field(default_factory=list)  # removed when the stage starts afresh
    items: list[str] = field(default_factory=list)  # a stage NAME-ITEM for each; {item} is filled in everywhere
    resources: Resources = field(default_factory=Resources)


@dataclass
class PipelineConfig:
    """The stages run one after another; their output is kept in output_dir/logs/<stage>.log."""

    output_dir: str = MISSING
    vars: dict[str, Any] = field(default_factory=dict)  # ${vars.NAME} in the stages; vars.NAME=VALUE overrides
    stages: list[StageConfig] = MISSING


def check(cfg: DictConfig) -> list[str]:
    """Returns what is wrong with the pipeline as a whole."""
    problems = []
    for stage in cfg.stages:
        texts = [stage.command, stage.config or "", *stage.inputs, *stage.outputs]
        if bool(stage["items"]) != any("{item}" in text for text in texts):
            problems.append(
                f"stage {stage.name}: {len(stage['items'])} items, and {{item}} stands "
                f"{'nowhere' if stage['items'] else 'in it'}; a stage has both or neither; add the other"
            )
        problems += [f"stage {stage.name}: {text}" for text in resource_problems(stage.resources, len(stage["items"]))]
    return problems + stages.problems(Path(cfg.output_dir), plan(cfg))


def resource_problems(resources: DictConfig, num_items: int) -> list[str]:
    """Returns what is wrong with what a stage asks of Slurm."""
    problems = positive(resources, "nodes", "cpus", "array")
    problems += [
        f"{key}: {resources[key]} is negative; set it to 0 or more"
        for key in ("gpus_per_node", "memory_gb")
        if (resources[key] or 0) < 0
    ]
    if resources.time is not None and not TIME.fullmatch(resources.time):
        problems.append(f"time: {resources.time!r} is no limit; [DAYS-]HH:MM:SS is expected; write it so, in quotes")
    if resources.array and not num_items:
        problems.append(f"array: {resources.array}, and the stage has no items; give it items, or leave array out")
    return [f"resources.{problem}" for problem in problems]


def groups(cfg: DictConfig) -> list[tuple[DictConfig, list[stages.Stage]]]:
    """Returns each entry of the file with its stages: one, or one for each item."""
    return [
        (stage, [_stage(stage, item) for item in (stage["items"] or [""])])  # `items` is also a method of the node
        for stage in cfg.stages
    ]


def plan(cfg: DictConfig) -> list[stages.Stage]:
    """Returns the stages of the configuration with their paths and their commands' words."""
    return [stage for _, members in groups(cfg) for stage in members]


def _stage(cfg: DictConfig, item: str) -> stages.Stage:
    def filled(texts: Iterable[str]) -> tuple[str, ...]:
        return tuple(text.replace("{item}", item) for text in texts)

    return stages.Stage(
        name=f"{cfg.name}-{item}" if item else cfg.name,
        words=filled(stages.split(cfg.command)),
        config=Path(*filled([cfg.config])) if cfg.config else None,
        inputs=tuple(map(Path, filled(cfg.inputs))),
        outputs=tuple(map(Path, filled(cfg.outputs))),
    )


def begin(stamps: stages.Stamps, stage: stages.Stage, now: dict[str, str], title: str) -> bool:
    """Records that the stage starts, without the outputs of other dependencies; False where nothing is to be done."""
    if stamps.is_done(stage, now):
        print(f"{title}: unchanged, skipped", flush=True)
        return False
    start_afresh_if_changed(stamps, stage, now, title)
    print(f"{title} {shlex.join(stage.words)}", flush=True)
    stamps.start(stage, now)
    return True


def start_afresh_if_changed(stamps: stages.Stamps, stage: stages.Stage, now: dict[str, str], title: str) -> None:
    """Removes the outputs of a run that other dependencies went into, and says so."""
    if changes := stamps.changes(stage, now):
        removed, kept = stamps.remove_outputs(stage)
        print(f"{title}: changed since its last run: {', '.join(changes)}", flush=True)
        for verb, paths in (("removed", removed), ("kept, as it lies outside output_dir:", kept)):
            for path in paths:
                print(f"{title}: {verb} {path}", flush=True)


def check_outputs(stage: stages.Stage) -> None:
    """Checks that a stage that ended well wrote what it declares.

    Raises:
        UserError: it did not.
    """
    if missing := [str(path) for path in stage.outputs if not path.exists()]:
        raise UserError(f"stage {stage.name} ended well without writing {', '.join(missing)}; mend its `outputs`")
