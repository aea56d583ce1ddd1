"""The training loop of CPT and SFT: what a step computes, and when it is logged and saved."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import torch
from omegaconf import DictConfig

from configs.loader import ConfigError, UserError
from data_prep.hf_directory import ModelDirectory
from recipes.training import weights
from recipes.training.checkpoint import CheckpointStore
from recipes.training.contents import write_skipped_step
from recipes.training.data import Batches
from recipes.training.distributed import World, leave, log_to_file, on_rank_zero, process_group
from recipes.training.guard import Guard
from recipes.training.metrics import Metrics, describe_run, versions
from recipes.training.model import Architecture, build_sharded_model
from recipes.training.optimizer import (
    build_optimizer,
    hyperparameters,
    optimizer_layout,
    peak_learning_rates,
    storage_dtype,
)
from recipes.training.plan import DataPlan
from recipes.training.schedule import Schedule
from recipes.training.settings import check_world
from recipes.training.step import Run, StepResult, train_step

REQUEUE_EXIT_CODE = 85
"""Ended early with a checkpoint, after a signal: start the same command again."""


class TrainingError(UserError):
    """A run cannot go on; the message says at which step and why."""


def run_training(cfg: DictConfig, name: str, data: DataPlan) -> int:
    """Trains to `cfg.steps`, resuming from the newest checkpoint of the run folder.

    Args:
        cfg: `TrainSettings`, checked.
        name: label of the progress bar.
        data: what to train on.

    Returns:
        0 when all steps are done, `REQUEUE_EXIT_CODE` when a signal ended the run early.

    Raises:
        ConfigError: weights or world size do not fit.
        CheckpointError: the newest checkpoint is of another run.
    """
    folder = Path(cfg.output_dir)
    with process_group(cfg.device) as world, ExitStack() as stack:
        check_world(cfg, world.size)
        logger = stack.enter_context(log_to_file(world, folder / "logs"))
        torch.manual_seed(cfg.seed)
        store = CheckpointStore(folder / "checkpoints", identity(cfg, data), cfg.keep_checkpoints, world)
        run = build_run(cfg, data, world)
        if latest := store.latest():
            restore(run, cfg, store, latest)
        elif cfg.weights:
            weights.load(run.model, *open_weights(cfg.weights))
        else:
            weights.initialise(run.model, cfg.seed)
        check_start(cfg, run.step)
        logger.info("rank %d of %d starts behind step %d of %d", world.rank, world.size, run.step, cfg.steps)
        on_rank_zero(world, lambda: announce(folder, cfg, data))
        metrics = stack.enter_context(Metrics(folder, run.step, cfg.steps, name)) if world.rank == 0 else None
        stop = stack.enter_context(stop_signals())
        exit_code = train(run, cfg, data, store, metrics, stop)
    return leave(exit_code)


def announce(folder: Path, cfg: DictConfig, data: DataPlan) -> None:
    """Writes down what the run is and what it reads, and prints the latter."""
    describe_run(folder, cfg)
    data.write(folder)
    print(data.table(), flush=True)


def build_run(cfg: DictConfig, data: DataPlan, world: World) -> Run:
    """Builds the sharded model, its optimizer and the rank's batches; the weights are not yet set."""
    architecture = open_weights(cfg.weights)[1] if cfg.weights else Architecture(**cfg.model)
    modes = (cfg.precision, cfg.activation_checkpointing, storage_dtype(cfg.optimizer), cfg.compile)
    model = build_sharded_model(architecture, world, *modes)
    optimizer = build_optimizer(cfg, model)
    return Run(
        model=model,
        optimizer=optimizer,
        batches=Batches(data.sources, data.order, cfg.micro_batch, world.rank, world.size),
        schedule=Schedule.of(cfg),
        peak_lrs=peak_learning_rates(optimizer),
        guard=Guard(cfg.guard),
    )


def restore(run: Run, cfg: DictConfig, store: CheckpointStore, path: Path) -> None:
    """Takes the run up where a checkpoint left it, under the settings of the configuration.

    Raises:
        CheckpointError: the checkpoint is of another run.
    """
    configured = hyperparameters(run.optimizer)
    state = store.restore(path, run.model, run.optimizer)
    for group, settings in zip(run.optimizer.param_groups, configured, strict=True):
        group.update(settings)
    run.step, run.ledger = state["step"], state["ledger"]
    run.guard = Guard(cfg.guard, state.get("guard"))


def check_start(cfg: DictConfig, step: int) -> None:
    """Checks that the run is where the schedule starts, or behind.

    Raises:
        ConfigError: it is not.
    """
    if step < cfg.schedule_start_step:
        problem = (
            f"{cfg.schedule_start_step} lies ahead of step {step}, where the run is; a schedule starts anew where an "
            f"earlier one ended; set it to {step} or less"
        )
        raise ConfigError("schedule_start_step", [problem])


def train(
    run: Run, cfg: DictConfig, data: DataPlan, store: CheckpointStore, metrics: Metrics | None, stop: list[int]
) -> int:
    """Runs steps until `cfg.steps` or until any rank got a signal; returns the exit code.

    Raises:
        TrainingError: the guard gives up.
    """
    if run.step >= cfg.steps and metrics:
        print(f"{cfg.output_dir}: all {cfg.steps} steps are done already")
    while run.step < cfg.steps:
        started = time.perf_counter()
        result = train_step(run, cfg, store.world, bool(stop))
        seconds = time.perf_counter() - started
        result.metrics["speed/tokens_per_second"] = cfg.global_batch_tokens / seconds
        result.metrics.update({f"tokens/{source}": count for source, count in data.tokens(run.step).items()})
        if metrics:
            metrics.log_step(run.step, result.metrics)
        if result.skipped:
            note_skipped_step(run, cfg, data, store, result)
        if result.stopping or run.step == cfg.steps or run.step % cfg.save_every_steps == 0:
            state = {"step": run.step, "ledger": run.ledger, "sources": data.ledger(run.step)}
            store.save(run.model, run.optimizer, state | {"guard": run.guard.state, "versions": versions()})
        if result.stopping and run.step < cfg.steps:
            return REQUEUE_EXIT_CODE
    return 0


def note_skipped_step(run: Run, cfg: DictConfig, data: DataPlan, store: CheckpointStore, result: StepResult) -> None:
    """Writes down what the step that was just skipped had read.

    Raises:
        TrainingError: more steps were skipped than `guard.max_skips`.
    """
    facts = {"step": run.step, "reason": result.skipped, **result.metrics}
    path = on_rank_zero(store.world, lambda: write_skipped_step(Path(cfg.output_dir), data, cfg.weights, facts))
    logging.getLogger("kotune").warning("step %d skipped: %s; what it read: %s", run.step, result.skipped, path)
    if run.guard.gives_up:
        raise TrainingError(
            f"{run.guard.num_skips} of the last {cfg.guard.window_steps} steps were skipped, step {run.step} because "
            f"{result.skipped}; guard.max_skips={cfg.guard.max_skips} are allowed; look at {path}, lower optimizer.lr, "
            f"or raise guard.max_skips; the last checkpoint is {store.latest()}"
        )


def open_weights(path: str) -> tuple[ModelDirectory, Architecture]:
    """Returns a Hugging Face directory and the shape of its model."""
    directory = ModelDirectory.open(path)
    return directory, Architecture.from_hf(directory.config, directory.path / "config.json")


def identity(cfg: DictConfig, data: DataPlan) -> dict[str, object]:
    """Returns what a checkpoint and the run that loads it must agree on."""
    return {
        **data.identity(),
        "seq_len": cfg.seq_len,
        "global_batch_tokens": cfg.global_batch_tokens,
        "seed": cfg.seed,
        "optimizer": optimizer_layout(cfg),
        "weights": cfg.weights,
    }


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yields a list that SIGTERM, SIGUSR1 and SIGUSR2 append to; the loop looks at it between steps."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    caught = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
    before = {number: signal.signal(number, note) for number in caught}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
