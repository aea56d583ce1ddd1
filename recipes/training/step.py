"""One optimizer step: forward and backward over the micro-batches, the guard's verdict, the update."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import nn
from torch.distributed.tensor import DTensor

from recipes.training.data.batches import Batch, Batches
from recipes.training.distributed import World, sum_over_ranks
from recipes.training.monitoring.throughput import peak_memory
from recipes.training.optimization.guard import Guard
from recipes.training.optimization.optimizer import set_learning_rates
from recipes.training.optimization.schedule import Schedule

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
    asked: frozenset[str] = frozenset()
    """Names of `asks` that are true on any rank."""


def train_step(
    run: Run, cfg: DictConfig, world: World, stop: object, asks: Mapping[str, bool] = MappingProxyType({})
) -> StepResult:
    """Computes one optimizer step, and applies it unless the guard objects.

    The loss is the sum over valid targets divided by the valid targets of the whole global batch, which are
    counted over ranks and micro-batches before the first forward pass.

    The CPU waits for the device once, in `gather`: the guard must see the numbers before the weights may change.
    `stop` is true when this rank is asked to stop; it is looked at as late, behind the backward pass. Of the names of
    `asks`, equal on all ranks, the result has those that are true on any.
    """
    started = time.perf_counter()
    batches = run.batches.micro_batches(run.step, world.device)
    waited = time.perf_counter() - started
    targets = torch.tensor(sum(batch.num_targets for batch in batches)).to(world.device, non_blocking=True)
    factor = run.schedule.factor(run.step)
    set_learning_rates(run.optimizer, run.peak_lrs, factor)
    num_targets = sum_over_ranks(targets.clone()) // world.tensor_parallel  # ranks that share matrices read the same
    sums = forward_and_backward(run.model, batches, num_targets, cfg)
    norm = clip_gradients(run.model, cfg.clip_grad_norm)
    on_host = {"padded": sum(batch.padding for batch in batches), "stop": bool(stop), "time/data_wait": waited}
    on_host |= {f"ask {name}": value for name, value in asks.items()} | peak_memory(world.device)
    rows = gather({"objective": sums[0], "loss": sums[1], "targets": targets, "norm": norm}, on_host, world)
    shares = rows[:: world.tensor_parallel]
    trained, padded = (sum(int(row[name]) for row in shares) for name in ("targets", "padded"))
    objective, loss = (sum(row[name] for row in shares) / max(1, trained) for name in ("objective", "loss"))
    skipped = run.guard.judge(loss, rows[0]["norm"])
    if not skipped:
        run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    count_tokens(run.ledger, cfg.global_batch_tokens, trained, padded, bool(skipped))
    metrics = {
        "train/loss": loss,
        "train/loss_max_over_ranks": largest_loss(rows),
        "train/grad_norm": rows[0]["norm"],
        "train/lr": run.peak_lrs[0] * factor,
    }
    if cfg.z_loss:
        metrics["train/z_loss"] = objective - loss
    metrics |= {"train/skipped_steps": run.guard.num_skips, "train/tokens": run.ledger["tokens"]}
    metrics["train/targets"] = run.ledger["trained"]
    metrics |= {name: max(row[name] for row in rows) for name in on_host if "/" in name}
    asked = frozenset(name for name in asks if any(row[f"ask {name}"] for row in rows))
    return StepResult(metrics, skipped, any(row["stop"] for row in rows), asked)


def forward_and_backward(
    model: nn.Module, batches: Sequence[Batch], num_targets: torch.Tensor, cfg: DictConfig
) -> torch.Tensor:
    """Adds up the gradients of a step; returns this rank's sums of objective and cross-entropy, (2,), float64.

    Args:
        model: as `build_sharded_model` returns it.
        batches: this rank's micro-batches.
        num_targets: valid targets of the whole global batch, on the device.
        cfg: `TrainSettings`.
    """
    divisor = num_targets.clamp(min=1)
    sums = torch.zeros(2, dtype=torch.float64, device=num_targets.device)
    for index, batch in enumerate(batches):
        model.set_requires_gradient_sync(index == len(batches) - 1)  # type: ignore[operator]
        losses = losses_of(model, batch, cfg.loss_chunk, cfg.z_loss)
        (losses[0] / divisor).backward()
        sums += torch.stack(losses).detach()
    return sums


def losses_of(
    model: nn.Module, batch: Batch, loss_chunk: int, z_loss: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the objective and the cross-entropy of a micro-batch, summed over its valid targets, fp32."""
    inputs = {"mask": batch.documents, "input_pos": batch.positions}
    losses: tuple[torch.Tensor, torch.Tensor] = model(
        batch.tokens, targets=batch.targets, loss_chunk=loss_chunk, z_loss=z_loss, **inputs
    )
    return losses


def clip_gradients(model: nn.Module, limit: float) -> torch.Tensor:
    """Scales the gradients down to the global norm `limit`; returns the norm before, () on the device, fp64.

    The norms of a rank's parts are taken in fp32, as bf16 gradients would give them three digits, and summed over the
    ranks at once; what several ranks hold alike counts once.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    parts = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    norms = torch.stack(torch._foreach_norm(parts, 2.0, dtype=torch.float32)).double()
    if any(isinstance(g, DTensor) for g in gradients):
        weights = torch.tensor([1 / num_copies(g) for g in gradients], dtype=torch.float64)
        norm = sum_over_ranks((norms**2 * weights.to(norms.device, non_blocking=True)).sum()).sqrt()
    else:
        norm = torch.linalg.vector_norm(norms)
    torch._foreach_mul_(parts, (limit / (norm + 1e-6)).clamp(max=1.0).float())
    return norm


def num_copies(tensor: torch.Tensor) -> int:
    """Returns how many ranks hold the part of a tensor that this rank holds."""
    if not isinstance(tensor, DTensor):
        return dist.get_world_size()
    sizes = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return dist.get_world_size() // math.prod(size for size, placement in sizes if not placement.is_replicate())


def gather(on_device: Mapping[str, torch.Tensor], on_host: Mapping[str, float], world: World) -> list[dict[str, float]]:
    """Returns every rank's numbers by name, in one collective and one wait for the device.

    Args:
        on_device: scalars that the device may still be computing.
        on_host: numbers that the CPU has.
        world: the ranks; all give the same names in the same order.
    """
    known = torch.tensor([float(value) for value in on_host.values()], dtype=torch.float64)
    mine = torch.cat([torch.stack([t.double() for t in on_device.values()]), known.to(world.device, non_blocking=True)])
    rows = mine.new_zeros(world.size, len(mine))
    rows[world.rank] = mine
    return [dict(zip((*on_device, *on_host), row, strict=True)) for row in sum_over_ranks(rows).tolist()]


def largest_loss(rows: Sequence[Mapping[str, float]]) -> float:
    """Returns the largest mean loss of a rank, of those that have targets; one that is not finite counts as such."""
    losses = [row["loss"] / row["targets"] for row in rows if row["targets"]]
    return next((loss for loss in losses if not math.isfinite(loss)), max(losses, default=0.0))


def count_tokens(ledger: dict[str, int], tokens: int, trained: int, padded: int, is_skipped: bool) -> None:
    """Adds one step to the run's token ledger, in = trained + masked + padded + skipped."""
    masked = tokens - trained - padded
    assert masked >= 0, f"ledger does not add up: {tokens} tokens, {trained} trained, {padded} padded"
    counts = {"skipped": tokens} if is_skipped else {"trained": trained, "masked": masked, "padded": padded}
    for name, count in {"tokens": tokens, **counts}.items():
        ledger[name] = ledger.get(name, 0) + count
