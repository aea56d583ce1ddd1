"""One optimizer step: forward and backward over the micro-batches, the guard's verdict, the update."""

from dataclasses import dataclass, field

import torch
from omegaconf import DictConfig
from torch import nn
from torch.distributed.tensor import DTensor

from recipes.training.data import Batches
from recipes.training.distributed import World, sum_over_ranks
from recipes.training.guard import Guard
from recipes.training.loss import IGNORE
from recipes.training.optimizer import set_learning_rates
from recipes.training.schedule import Schedule

LEDGER = ("tokens", "trained", "masked", "padded", "skipped")


@dataclass
class Run:
    """What a step changes: the model, the optimizer, and how far the run has come."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    schedule: Schedule
    peak_lrs: list[float]
    """Of the optimizer's groups."""
    guard: Guard
    step: int = 0
    ledger: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LEDGER, 0))


@dataclass(frozen=True)
class StepResult:
    """What is reported of a step; `skipped` is the reason why the weights were left alone, empty otherwise."""

    metrics: dict[str, float]
    skipped: str
    stopping: bool
    """Any rank was asked to stop."""


def train_step(run: Run, cfg: DictConfig, world: World, stop: bool) -> StepResult:
    """Computes one optimizer step, and applies it unless the guard objects.

    The loss is the sum over valid targets divided by the valid targets of the whole global batch, which are
    counted over ranks and micro-batches before the first forward pass.
    """
    batches = run.batches.micro_batches(run.step, world.device)
    targets = sum(int((batch.targets != IGNORE).sum()) for batch in batches)
    padded = sum(batch.padding for batch in batches)
    counts = sum_over_ranks(torch.tensor([targets, padded, int(stop)], dtype=torch.int64, device=world.device))
    num_targets, num_padded, num_stops = counts.tolist()
    factor = run.schedule.factor(run.step)
    set_learning_rates(run.optimizer, run.peak_lrs, factor)
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)  # objective, cross-entropy
    for index, batch in enumerate(batches):
        run.model.set_requires_gradient_sync(index == len(batches) - 1)  # type: ignore[operator]
        inputs = {"mask": batch.mask, "input_pos": batch.positions}
        losses = run.model(batch.tokens, targets=batch.targets, loss_chunk=cfg.loss_chunk, z_loss=cfg.z_loss, **inputs)
        (losses[0] / max(1, num_targets)).backward()
        sums += torch.stack(losses).detach()
    objective, loss = (sum_over_ranks(sums) / max(1, num_targets)).tolist()
    norm = clip_gradients(run.model, cfg.clip_grad_norm)
    skipped = run.guard.judge(loss, norm)
    if not skipped:
        run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    count_tokens(run.ledger, cfg.global_batch_tokens, num_targets, num_padded, bool(skipped))
    metrics = {"train/loss": loss, "train/grad_norm": norm, "train/lr": run.peak_lrs[0] * factor}
    if cfg.z_loss:
        metrics["train/z_loss"] = objective - loss
    metrics |= {"train/skipped_steps": run.guard.num_skips, "train/tokens": run.ledger["tokens"]}
    metrics["train/targets"] = run.ledger["trained"]
    return StepResult(metrics, skipped, num_stops > 0)


def clip_gradients(model: nn.Module, limit: float) -> float:
    """Scales the gradients down to the global norm `limit`, and returns the norm before.

    The norm is taken in fp32 over all ranks' shards; bf16 gradients would give it three digits.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2.0, dtype=torch.float32)))
    nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def count_tokens(ledger: dict[str, int], tokens: int, trained: int, padded: int, is_skipped: bool) -> None:
    """Adds one step to the run's token ledger, in = trained + masked + padded + skipped."""
    masked = tokens - trained - padded
    assert masked >= 0, f"ledger does not add up: {tokens} tokens, {trained} trained, {padded} padded"
    counts = {"skipped": tokens} if is_skipped else {"trained": trained, "masked": masked, "padded": padded}
    for name, count in {"tokens": tokens, **counts}.items():
        ledger[name] = ledger.get(name, 0) + count
