"""The training loop of CPT and SFT: what a step computes, and when it is logged and saved."""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from omegaconf import DictConfig
from torch import nn
from torch.distributed.tensor import DTensor

from configs.loader import UserError
from data_prep.hf_directory import ModelDirectory
from data_prep.lineage import sha256_json
from recipes.training import weights
from recipes.training.checkpoint import CheckpointStore
from recipes.training.data import Batches, SampleOrder, Source
from recipes.training.distributed import World, leave, log_to_file, on_rank_zero, process_group, sum_over_ranks
from recipes.training.loss import IGNORE, summed_cross_entropy
from recipes.training.metrics import Metrics, describe_run, versions
from recipes.training.model import Architecture, build_sharded_model
from recipes.training.optimizer import build_optimizer
from recipes.training.schedule import warmup_cosine
from recipes.training.settings import check_world

REQUEUE_EXIT_CODE = 85
"""Ended early with a checkpoint, after a signal: start the same command again."""


class TrainingError(UserError):
    """A run cannot go on; the message says at which step and why."""


@dataclass
class Run:
    """What a step changes: the model, the optimizer, and how far the run has come."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    step: int = 0
    ledger: dict[str, int] = field(default_factory=lambda: {"tokens": 0, "trained": 0, "masked": 0, "padded": 0})


def run_training(cfg: DictConfig, name: str, sources: Sequence[Source], shares: Sequence[float]) -> int:
    """Trains to `cfg.steps`, resuming from the newest checkpoint of the run folder.

    Args:
        cfg: `TrainSettings`, checked.
        name: label of the progress bar.
        sources: what to train on.
        shares: the sources' weights, any scale.

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
        store = CheckpointStore(folder / "checkpoints", identity(cfg, sources, shares), cfg.keep_checkpoints, world)
        run = build_run(cfg, sources, shares, world)
        if latest := store.latest():
            state = store.restore(latest, run.model, run.optimizer)
            run.step, run.ledger = state["step"], state["ledger"]
        elif cfg.weights:
            weights.load(run.model, *open_weights(cfg.weights))
        else:
            weights.initialise(run.model, cfg.seed)
        logger.info("rank %d of %d starts behind step %d of %d", world.rank, world.size, run.step, cfg.steps)
        on_rank_zero(world, lambda: describe_run(folder, cfg))
        metrics = stack.enter_context(Metrics(folder, run.step, cfg.steps, name)) if world.rank == 0 else None
        stop = stack.enter_context(stop_signals())
        exit_code = train(run, cfg, world, store, metrics, stop)
    return leave(exit_code)


def build_run(cfg: DictConfig, sources: Sequence[Source], shares: Sequence[float], world: World) -> Run:
    """Builds the sharded model, its optimizer and the rank's batches; the weights are not yet set."""
    architecture = open_weights(cfg.weights)[1] if cfg.weights else Architecture(**cfg.model)
    model = build_sharded_model(architecture, world, cfg.precision, cfg.activation_checkpointing)
    order = SampleOrder(shares, cfg.global_batch_tokens // cfg.seq_len, cfg.seed)
    batches = Batches(sources, order, cfg.micro_batch, world.rank, world.size)
    return Run(model, build_optimizer(cfg.optimizer, model), batches)


def train(
    run: Run, cfg: DictConfig, world: World, store: CheckpointStore, metrics: Metrics | None, stop: list[int]
) -> int:
    """Runs steps until `cfg.steps` or until any rank got a signal; returns the exit code."""
    if run.step >= cfg.steps and metrics:
        print(f"{cfg.output_dir}: all {cfg.steps} steps are done already")
    while run.step < cfg.steps:
        started = time.perf_counter()
        values, stopping = train_step(run, cfg, world, bool(stop))
        if not math.isfinite(values["train/loss"]):
            raise TrainingError(
                f"loss is {values['train/loss']} at step {run.step}; finite is expected; lower optimizer.lr, or look "
                f"at the step's data; the last checkpoint is {store.latest()}"
            )
        seconds = time.perf_counter() - started
        values["speed/tokens_per_second"] = cfg.global_batch_tokens / seconds
        if metrics:
            metrics.log_step(run.step, values)
        if stopping or run.step == cfg.steps or run.step % cfg.save_every_steps == 0:
            store.save(run.model, run.optimizer, {"step": run.step, "ledger": run.ledger, "versions": versions()})
        if stopping and run.step < cfg.steps:
            return REQUEUE_EXIT_CODE
    return 0


def train_step(run: Run, cfg: DictConfig, world: World, stop: bool) -> tuple[dict[str, float], bool]:
    """Computes and applies one optimizer step.

    The loss is the sum over valid targets divided by the valid targets of the whole global batch, which are
    counted over ranks and micro-batches before the first forward pass.

    Returns:
        The step's metrics, and whether any rank was asked to stop.
    """
    batches = run.batches.micro_batches(run.step, world.device)
    targets = sum(int((batch.targets != IGNORE).sum()) for batch in batches)
    padded = sum(batch.padding for batch in batches)
    counts = sum_over_ranks(torch.tensor([targets, padded, int(stop)], dtype=torch.int64, device=world.device))
    num_targets, num_padded, num_stops = counts.tolist()
    lr_factor = warmup_cosine(run.step, cfg.steps, cfg.warmup_steps, cfg.min_lr_ratio)
    for group in run.optimizer.param_groups:
        group["lr"] = cfg.optimizer.lr * lr_factor
    loss_sum = torch.zeros((), dtype=torch.float64, device=world.device)
    for index, batch in enumerate(batches):
        run.model.set_requires_gradient_sync(index == len(batches) - 1)  # type: ignore[operator]
        logits = run.model(batch.tokens, mask=batch.mask, input_pos=batch.positions)
        loss = summed_cross_entropy(logits, batch.targets)
        (loss / max(1, num_targets)).backward()
        loss_sum += loss.detach()
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), cfg.clip_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    count_tokens(run.ledger, cfg.global_batch_tokens, num_targets, num_padded)
    return {
        "train/loss": float(sum_over_ranks(loss_sum)) / max(1, num_targets),
        "train/grad_norm": float(norm.full_tensor() if isinstance(norm, DTensor) else norm),
        "train/lr": cfg.optimizer.lr * lr_factor,
        "train/tokens": run.ledger["tokens"],
        "train/targets": run.ledger["trained"],
    }, num_stops > 0


def count_tokens(ledger: dict[str, int], tokens: int, trained: int, padded: int) -> None:
    """Adds one step to the run's token ledger, in = trained + masked + padded."""
    masked = tokens - trained - padded
    assert masked >= 0, f"ledger does not add up: {tokens} tokens, {trained} trained, {padded} padded"
    for name, count in (("tokens", tokens), ("trained", trained), ("masked", masked), ("padded", padded)):
        ledger[name] += count


def open_weights(path: str) -> tuple[ModelDirectory, Architecture]:
    """Returns a Hugging Face directory and the shape of its model."""
    directory = ModelDirectory.open(path)
    return directory, Architecture.from_hf(directory.config, directory.path / "config.json")


def identity(cfg: DictConfig, sources: Sequence[Source], shares: Sequence[float]) -> dict[str, object]:
    """Returns what a checkpoint and the run that loads it must agree on."""
    return {
        "data": sha256_json([[s.fingerprint for s in sources], list(shares)]),
        "seq_len": cfg.seq_len,
        "global_batch_tokens": cfg.global_batch_tokens,
        "seed": cfg.seed,
        "optimizer": cfg.optimizer["_component_"],
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
