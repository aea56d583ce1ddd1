"""The training loop of CPT and SFT: what a step computes, and when it is logged and saved."""

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
from recipes.training.checkpoints.checkpoint import CheckpointStore
from recipes.training.data.batches import Batches
from recipes.training.data.contents import write_skipped_step
from recipes.training.data.plan import DataPlan
from recipes.training.distributed import World, leave, log_to_file, on_rank_zero, process_group
from recipes.training.model import weights
from recipes.training.model.decoder import Architecture, build_sharded_model, stated_architecture
from recipes.training.monitoring.metrics import describe_run, versions
from recipes.training.monitoring.observers import Observers, open_metrics
from recipes.training.monitoring.profiling import step_profiler
from recipes.training.monitoring.throughput import Throughput
from recipes.training.monitoring.validation import Validation, open_validation
from recipes.training.optimization.guard import Guard
from recipes.training.optimization.optimizer import (
    build_optimizer,
    hyperparameters,
    optimizer_layout,
    peak_learning_rates,
    storage_dtype,
)
from recipes.training.optimization.schedule import Schedule
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
    validation = open_validation(cfg, data)
    with process_group(cfg.device) as world, ExitStack() as stack:
        check_world(cfg, world.size)
        logger = stack.enter_context(log_to_file(world, folder / "logs"))
        torch.manual_seed(cfg.seed)
        store = CheckpointStore(folder / "checkpoints", identity(cfg, data), cfg.keep_checkpoints, world)
        run = build_run(cfg, data, world)
        if latest := store.latest():
            restore(run, validation, cfg, store, latest)
        elif cfg.weights:
            weights.load(run.model, *open_weights(cfg.weights))
        else:
            weights.initialise(run.model, cfg.seed)
        check_start(cfg, run.step)
        logger.info("rank %d of %d starts behind step %d of %d", world.rank, world.size, run.step, cfg.steps)
        on_rank_zero(world, lambda: announce(folder, cfg, data))
        stop = stack.enter_context(stop_signals())
        repeats = validation is not None and validation.is_due(run.step)
        metrics = stack.enter_context(open_metrics(cfg, name, run.step, repeats, world))
        profiler = stack.enter_context(step_profiler(cfg, run.step, world))
        throughput = Throughput.of(cfg, architecture_of(cfg), world)
        observers = Observers(cfg, data, world, throughput, profiler, validation, metrics)
        exit_code = train(run, cfg, data, store, observers, stop)
    return leave(exit_code)


def announce(folder: Path, cfg: DictConfig, data: DataPlan) -> None:
    """Writes down what the run is and what it reads, and prints the latter."""
    describe_run(folder, cfg)
    data.write(folder)
    print(data.table(), flush=True)


def build_run(cfg: DictConfig, data: DataPlan, world: World) -> Run:
    """Builds the sharded model, its optimizer and the rank's batches; the weights are not yet set."""
    architecture = architecture_of(cfg)
    modes = (cfg.precision, cfg.activation_checkpointing, storage_dtype(cfg.optimizer), cfg.compile)
    keys = {"attention": cfg.attention, "float8": cfg.float8, "layout": cfg.layout}
    model = build_sharded_model(architecture, world, *modes, **keys)
    optimizer = build_optimizer(cfg, model)
    return Run(
        model=model,
        optimizer=optimizer,
        batches=Batches(data.sources, data.order, cfg.micro_batch, world.rank, world.size),
        schedule=Schedule.of(cfg),
        peak_lrs=peak_learning_rates(optimizer),
        guard=Guard(cfg.guard),
    )


def restore(run: Run, validation: Validation | None, cfg: DictConfig, store: CheckpointStore, path: Path) -> None:
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
    if validation:
        validation.restore(state.get("validation"))


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
    run: Run, cfg: DictConfig, data: DataPlan, store: CheckpointStore, observers: Observers, stop: list[int]
) -> int:
    """Runs steps until `cfg.steps` or until any rank got a signal; returns the exit code.

    Raises:
        TrainingError: the guard gives up.
    """
    if run.step >= cfg.steps and observers.metrics:
        print(f"{cfg.output_dir}: all {cfg.steps} steps are done already")
    if not observers.validate(run, stop):
        return REQUEUE_EXIT_CODE  # nothing has changed since the checkpoint
    while run.step < cfg.steps:
        started = time.perf_counter()
        result = train_step(run, cfg, store.world, bool(stop))
        observers.step_ended(run.step, result, time.perf_counter() - started)
        if result.skipped:
            note_skipped_step(run, cfg, data, store, observers, result)
        is_validated = observers.validate(run, stop)
        stopping = result.stopping or not is_validated
        if stopping or run.step == cfg.steps or run.step % cfg.save_every_steps == 0:
            save(run, data, store, observers)
        if stopping and (run.step < cfg.steps or not is_validated):
            return REQUEUE_EXIT_CODE
    return 0


def save(run: Run, data: DataPlan, store: CheckpointStore, observers: Observers) -> None:
    """Writes a checkpoint of the step that just ended."""
    state = {"step": run.step, "ledger": run.ledger, "sources": data.ledger(run.step), "guard": run.guard.state}
    if observers.validation:
        state["validation"] = observers.validation.state
    store.save(run.model, run.optimizer, state | {"versions": versions()})


def note_skipped_step(
    run: Run, cfg: DictConfig, data: DataPlan, store: CheckpointStore, observers: Observers, result: StepResult
) -> None:
    """Writes down what the step that was just skipped had read.

    Raises:
        TrainingError: more steps were skipped than `guard.max_skips`.
    """
    facts = {"step": run.step, "reason": result.skipped, **result.metrics}
    path = on_rank_zero(store.world, lambda: write_skipped_step(Path(cfg.output_dir), data, cfg.weights, facts))
    observers.warn(f"step {run.step} skipped: {result.skipped}; what it read: {path}")
    if run.guard.gives_up:
        raise TrainingError(
            f"{run.guard.num_skips} of the last {cfg.guard.window_steps} steps were skipped, step {run.step} because "
            f"{result.skipped}; guard.max_skips={cfg.guard.max_skips} are allowed; look at {path}, lower optimizer.lr, "
            f"or raise guard.max_skips; the last checkpoint is {store.latest()}"
        )


def architecture_of(cfg: DictConfig) -> Architecture:
    """Returns the shape of the run's model."""
    return stated_architecture(cfg.weights, cfg.model)


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
