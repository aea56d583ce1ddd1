"""Scores the checkpoints of a training run, in a process of its own, while the run goes on or behind it.

    python -m recipes.evaluate_run --config configs/evaluate_run/demo.yaml run=out/demo/runs/cpt --watch

Adds a row a checkpoint to `RUN/evaluations.jsonl`, keeps the best one in `RUN/best`, writes what each language has
kept to `RUN/retention.md`, and may ask the run to end. Killed and started again, it goes on where it was. One process
at a time follows a run; jobs of one checkpoint each (`step=N`, see `slurm.checkpoint_jobs`) may run side by side.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from configs.entry import parse
from configs.loader import ConfigError, UserError, positive
from recipes.evaluation import following
from recipes.evaluation.exam import Exam, identity, length_problems, read_exam, score, template_of
from recipes.evaluation.rule import RuleSettings
from recipes.evaluation.settings import ScoringSettings, dtype_of, scoring_problems
from recipes.training.checkpoints.folder import CheckpointError, complete_checkpoints, read_state
from recipes.training.distributed import World, leave, on_rank_zero, process_group
from recipes.training.model.opening import ModelSource, find_checkpoint, find_model, open_model
from recipes.training.monitoring.forgetting import suggest_replay


@dataclass
class EvaluateRunConfig(ScoringSettings):
    """A run, and what its checkpoints are scored on."""

    run: str = MISSING
    """Run folder."""
    watch: bool = field(default=False, metadata={"flag": True})
    """Wait for further checkpoints until the run is finished; also as --watch. Otherwise those that are there."""
    step: int | None = None
    """Score the checkpoint of this step alone, as a job of its own; 0: what the run started from."""
    rule: RuleSettings = field(default_factory=RuleSettings)
    """The best checkpoint, and when the run ends early; `max_rise` and `guard` belong to it too."""
    poll_seconds: float = 5.0
    """Between two looks at the run folder."""
    give_up_minutes: float | None = None
    """Without a sign of life of the run for so long, watching ends with an error; null: never."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings."""
    problems = scoring_problems(cfg) + positive(cfg, "poll_seconds", "give_up_minutes", "rule.patience")
    if cfg.rule.gain not in cfg.documents:
        problems.append(
            f"rule.gain: {cfg.rule.gain!r} is none of documents; checkpoints are chosen by it; add its text"
        )
    if cfg.watch and cfg.step is not None:
        problems.append(f"step: {cfg.step} with watch=true; one checkpoint is there or not; leave one of them out")
    if not cfg.watch and not (Path(cfg.run) / "config.yaml").is_file():
        problems.append(f"run: {cfg.run} holds no config.yaml; give a run folder, or set watch=true to wait for it")
    return problems


def look(cfg: DictConfig) -> tuple[str, Path | None]:
    """Returns what comes next: `start` or `score` with what to load, `wait`, or `end`.

    Raises:
        UserError: the checkpoint of `step` is not there.
    """
    run = Path(cfg.run)
    is_finished = (run / following.FINISHED).exists()  # first: it is written behind the last checkpoint
    if not (run / "config.yaml").is_file():
        return "wait", None
    weights, done = OmegaConf.load(run / "config.yaml").weights, {row["step"] for row in following.recorded(run)}
    if weights and 0 not in done and not cfg.step:
        return "start", Path(weights)
    for checkpoint in following.waiting(run, regular_checkpoints(run)):
        if cfg.step not in (None, following.step_of(checkpoint)):
            continue
        if pinned := following.pin(run, checkpoint):
            return "score", pinned
        print(f"{checkpoint} was deleted by the run before it could be scored; it is left out", flush=True)
    if cfg.step and cfg.step not in done:
        raise UserError(f"{run} has no complete checkpoint of step {cfg.step}; give one that is there as step=...")
    return ("wait" if cfg.watch and not is_finished else "end"), None


def regular_checkpoints(run: Path) -> list[Path]:
    """Returns the complete checkpoints that are not ephemeral."""
    found = []
    for path in complete_checkpoints(run / "checkpoints"):
        with suppress(CheckpointError):  # deleted meanwhile
            found += [] if read_state(path).get("ephemeral") else [path]
    return found


def score_source(cfg: DictConfig, exam: Exam, source: ModelSource, world: World) -> tuple[dict[str, Any], list[str]]:
    """Loads a model; returns its figures and answers. Every rank must call it.

    Raises:
        ConfigError: it reads fewer tokens than it is asked.
    """
    template = template_of(source.tokenizer, source.chat_template)
    if problems := length_problems(cfg, exam, source.path.name, template, source.architecture.max_seq_len):
        raise ConfigError(cfg.run, problems)
    return score(cfg, exam, template, open_model(source, world.device, dtype_of(cfg, world.device)))


def is_given_up(cfg: DictConfig, since: float) -> bool:
    """Whether the run has shown no sign of life for too long; `since`: Unix seconds of the last thing that was done."""
    beat = Path(cfg.run) / "heartbeat.json"
    last = max(since, beat.stat().st_mtime if beat.is_file() else 0.0)
    return cfg.give_up_minutes is not None and time.time() - last > 60 * cfg.give_up_minutes


@parse(EvaluateRunConfig, check)
def main(cfg: DictConfig) -> int:
    """Scores the checkpoints of a run."""
    exam, run, since = read_exam(cfg), Path(cfg.run), time.time()
    scoring = identity(cfg, exam)
    with process_group(cfg.device) as world:
        on_rank_zero(world, lambda: following.begin(run, scoring, is_alone=cfg.step is None))
        while (found := on_rank_zero(world, lambda: look(cfg)))[0] != "end":
            what, path = found
            if path is None:
                if on_rank_zero(world, partial(is_given_up, cfg, since)):
                    raise UserError(
                        f"{run} shows no sign of life since {cfg.give_up_minutes:g} minutes; start it again"
                    )
                time.sleep(cfg.poll_seconds)
                continue
            started, step = time.perf_counter(), 0 if what == "start" else following.step_of(path)
            source = find_checkpoint(path, run, cfg.tokenizer) if step else find_model(path)
            figures, answers = score_source(cfg, exam, source, world)
            facts = {"step": step, "model": f"step {step}" if step else "start"}
            row = {**facts, **figures, "seconds": time.perf_counter() - started, "scoring": scoring}
            on_rank_zero(world, partial(following.conclude, cfg, row, answers, suggest_replay))
            since = time.time()
    return leave(0)


if __name__ == "__main__":
    main()
