"""The training loop of CPT and SFT: what a step computes, and when it is logged and saved."""

import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import torch
from omegaconf import DictConfig

from configs.loader import ConfigError, UserError
from data_prep.hf_directory import ModelDirectory
from recipes.training.checkpoints.checkpoint import CheckpointStore, Retention
from recipes.training.checkpoints.saving import due
from recipes.training.control.control import Control, ValidationStop, open_control
from recipes.training.control.heartbeat import clear_finished
from recipes.training.control.stopping import stop_signals
from recipes.training.data.batches import Batches
from recipes.training.data.contents import write_skipped_step
from recipes.training.data.plan import DataPlan
from recipes.training.data.verification import verify_shards
from recipes.training.distributed import World, leave, log_to_file, on_rank_zero, process_group, set_timeouts
from recipes.training.model import weights
from recipes.training.model.adapter_files import fingerprint, load_base
from recipes.training.model.adapters import adapter_layout, seed_dropout
from recipes.training.model.decoder import Architecture, build_sharded_model, stated_architecture
from recipes.training.model.freezing import keeps_base
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
    weights_dtype,
)
from recipes.training.optimization.schedule import Schedule
from recipes.training.settings import check_world
from recipes.training.step import Run, StepResult, train_step

REQUEUE_EXIT_CODE = 85
"""Ended early with a checkpoint, as it was asked to: start the same command again."""


class TrainingError(UserError):
    """A run cannot go on; the message says at which step and why."""


def run_training(cfg: DictConfig, name: str, data: DataPlan) -> int:
    """Trains to `cfg.steps`, resuming from the newest checkpoint of the run folder.

    Args:
        cfg: `TrainSettings`, checked.
        name: label of the progress bar.
        data: what to train on.

    Returns:
        0 when all steps are done or the run was asked to end for good, `REQUEUE_EXIT_CODE` when it was asked to stop.

    Raises:
        ConfigError: weights or world size do not fit.
        CheckpointError: the newest checkpoint is of another run, all are damaged, or one cannot be written.
        CorpusError: a token shard differs from its checksum.
    """
    folder = Path(cfg.output_dir)
    validation = open_validation(cfg, data)
    with joined(cfg) as world, ExitStack() as stack:
        check_world(cfg, world.size)
        logger = stack.enter_context(log_to_file(world, folder / "logs"))
        control = stack.enter_context(open_control(cfg, world, stack.enter_context(stop_signals())))
        torch.manual_seed(cfg.seed)
        verify_shards([*data.sources, *(validation.texts if validation else [])], world)
        store = stack.enter_context(open_store(cfg, data, world))
        run, started = build_run(cfg, data, world), time.perf_counter()
        set_timeouts(cfg.limits.collective_seconds)
        latest = store.newest_sound()
        if cfg.adapter:
            load_base(run.model, *open_weights(cfg.weights), cfg.seed)
        elif cfg.weights and (latest is None or keeps_base(cfg)):
            weights.load(run.model, *open_weights(cfg.weights))
        elif latest is None:
            weights.initialise(run.model, cfg.seed)
        if latest:
            restore(run, validation, cfg, store, latest)
        control.timings.load = time.perf_counter() - started
        check_start(cfg, run.step)
        logger.info("rank %d of %d starts behind step %d of %d", world.rank, world.size, run.step, cfg.steps)
        on_rank_zero(world, lambda: announce(folder, cfg, data))
        repeats = validation is not None and validation.is_due(run.step)
        metrics = stack.enter_context(open_metrics(cfg, name, run.step, repeats, world))
        profiler = stack.enter_context(step_profiler(cfg, run.step, world))
        throughput = Throughput.of(cfg, architecture_of(cfg), world)
        observers = Observers(cfg, data, world, throughput, profiler, validation, metrics)
        exit_code = train(run, cfg, data, store, observers, control)
        control.enter("end", run.step)
        is_over = on_rank_zero(world, lambda: control.conclude(run.step, is_done=exit_code == 0))
    return leave(0 if is_over else exit_code)


def joined(cfg: DictConfig) -> AbstractContextManager[World]:
    """Joins the run's processes."""
    timeout = cfg.limits.collective_seconds
    return process_group(cfg.device, tensor_parallel=cfg.layout.tensor_parallel, collective_seconds=timeout)


def announce(folder: Path, cfg: DictConfig, data: DataPlan) -> None:
    """Writes down what the run is and what it reads, and prints the latter."""
    clear_finished(folder)
    describe_run(folder, cfg)
    data.write(folder)
    print(data.table(), flush=True)


def build_run(cfg: DictConfig, data: DataPlan, world: World) -> Run:
    """Builds the sharded model, its optimizer and the rank's batches; the weights are not yet set."""
    architecture = architecture_of(cfg)
    modes = (cfg.precision, cfg.activation_checkpointing, weights_dtype(cfg), cfg.compile)
    keys = {name: cfg[name] for name in ("attention", "cuda_graphs", "float8", "layout", "adapter", "trainable")}
    model = build_sharded_model(architecture, world, *modes, **keys)
    optimizer = build_optimizer(cfg, model)
    return Run(
        model=model,
        optimizer=optimizer,
        batches=Batches(data.sources, data.order, cfg.micro_batch, world.data_rank, world.data_size),
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
    run: Run, cfg: DictConfig, data: DataPlan, store: CheckpointStore, observers: Observers, control: Control
) -> int:
    """Runs steps until `cfg.steps` or until any rank is asked to stop; returns the exit code.

    Raises:
        TrainingError: the guard gives up.
        CheckpointError: a checkpoint cannot be written.
    """
    if run.step >= cfg.steps and observers.metrics:
        print(f"{cfg.output_dir}: all {cfg.steps} steps are done already")
    if not validate(run, observers, control):
        return REQUEUE_EXIT_CODE  # nothing has changed since the checkpoint
    while run.step < cfg.steps:
        control.begin_step(run.step + 1, observers.validation_is_due(run.step + 1), store.save_seconds)
        started = time.perf_counter()
        seed_dropout(cfg.adapter, cfg.seed, run.step, store.world.rank)
        asks = store.asks(cfg.save_every_minutes)
        result = train_step(run, cfg, store.world, control.stop, asks)
        result.metrics.update(store.figures())
        control.timings.step_took(seconds := time.perf_counter() - started)
        observers.step_ended(run.step, result, seconds)
        if result.skipped and (why := note_skipped_step(run, cfg, data, store.world, observers, result)):
            control.enter("save", run.step)
            saved = save(run, data, store, observers, "kept")  # skipped steps have changed nothing
            store.wait()
            raise TrainingError(f"{why}; the last checkpoint is {saved}")
        is_validated = validate(run, observers, control)
        stopping = result.stopping or not is_validated
        kind = due(cfg, run.step, stopping or "save" in result.asked)
        if kind or "wait" in result.asked:
            control.enter("save", run.step)
        if "wait" in result.asked:
            store.wait()  # raises what befell the checkpoint, on every rank
        if kind:
            save(run, data, store, observers, kind)
        if stopping and (run.step < cfg.steps or not is_validated):
            store.wait()
            return REQUEUE_EXIT_CODE
    store.wait()
    return 0


def validate(run: Run, observers: Observers, control: Control) -> bool:
    """Scores the held-out text if that is due; returns False when a rank was asked to stop meanwhile."""
    if not observers.validation_is_due(run.step):
        return True
    started, control.stop.validation_is_due = time.perf_counter(), False
    is_whole = observers.validate(run, ValidationStop(control, run.step))
    control.timings.validation = max(control.timings.validation, time.perf_counter() - started)
    return is_whole


def open_store(cfg: DictConfig, data: DataPlan, world: World) -> CheckpointStore:
    """Returns the checkpoints of the run."""
    retention = Retention(cfg.keep_checkpoints, cfg.keep_every_steps)
    folder = Path(cfg.output_dir) / "checkpoints"
    return CheckpointStore(folder, identity(cfg, data), world, retention, cfg.async_checkpoints)


def save(run: Run, data: DataPlan, store: CheckpointStore, observers: Observers, kind: str) -> Path:
    """Starts to write a checkpoint, `kept` or `ephemeral`, of the step that just ended; returns its folder."""
    state = {"step": run.step, "ledger": run.ledger, "sources": data.ledger(run.step), "guard": run.guard.state}
    if observers.validation:
        state["validation"] = observers.validation.state
    return store.save(run.model, run.optimizer, state | {"versions": versions()}, kind == "ephemeral")


def note_skipped_step(
    run: Run, cfg: DictConfig, data: DataPlan, world: World, observers: Observers, result: StepResult
) -> str:
    """Writes down what the step that was just skipped had read.

    Returns:
        Why the run cannot go on, where more steps were skipped than `guard.max_skips`; empty otherwise.
    """
    facts = {"step": run.step, "reason": result.skipped, **result.metrics}
    path = on_rank_zero(world, lambda: write_skipped_step(Path(cfg.output_dir), data, cfg.weights, facts))
    observers.warn(f"step {run.step} skipped: {result.skipped}; what it read: {path}")
    if not run.guard.gives_up:
        return ""
    return (
        f"{run.guard.num_skips} of the last {cfg.guard.window_steps} steps were skipped, step {run.step} because "
        f"{result.skipped}; guard.max_skips={cfg.guard.max_skips} are allowed; look at {path}, lower optimizer.lr, "
        f"or raise guard.max_skips"
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
        "adapter": adapter_layout(cfg.adapter),
        "trainable": None if cfg.trainable == "all" else cfg.trainable,
        "base": fingerprint(open_weights(cfg.weights)[0]) if keeps_base(cfg) else None,
    }
