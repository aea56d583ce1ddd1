"""What a run needs of its GPUs and how long it takes at a stated rate: told before it starts, without a GPU."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from configs.loader import ConfigError, instantiate
from recipes.training.model.attention import choose_backend
from recipes.training.model.decoder import Architecture, build_model, stated_architecture
from recipes.training.model.freezing import keeps_base
from recipes.training.model.layout import world_problems
from recipes.training.model.tensor_parallel import tensor_parallel_problems
from recipes.training.optimization.optimizer import storage_dtype
from recipes.training.planning.adapters import adapter_line, adapter_memory
from recipes.training.planning.communication import bytes_per_step, bytes_per_token
from recipes.training.planning.footprint import (
    COMPUTE_BYTES,
    GIB,
    Precision,
    executed_flops_per_token,
    flops_per_token,
    frozen_parts,
    memory_by_part,
    parameter_counts,
)
from recipes.training.tables import aligned

LARGEST_MICRO_BATCH = 64


@dataclass
class EstimateSettings:
    """What a plan is told for."""

    world_sizes: list[int] = field(default_factory=lambda: [1, 8, 16, 64])
    """Numbers of GPUs; each is a column."""
    gpu_memory_gib: float = 80.0
    """Memory of a GPU."""
    tflops: float = 400.0
    """Rate at which a GPU computes, TFLOP/s: not its peak, what a run reaches; an H100 in bf16 is at 350 to 550."""
    dry_run_ranks: int = 0
    """Ranks of a step on tensors without data, whose peak is told beside the formula's; 0: none. Takes a minute."""


def estimate_problems(estimate: Any) -> list[str]:
    """Returns the problems of the key `estimate`."""
    problems = [
        f"estimate.{key}: {estimate[key]} is not positive; set it above 0"
        for key in ("gpu_memory_gib", "tflops")
        if not estimate[key] > 0
    ]
    if not estimate.world_sizes or min(estimate.world_sizes) < 1:
        problems.append(f"estimate.world_sizes: {list(estimate.world_sizes)}; numbers of GPUs from 1 on are expected")
    if estimate.dry_run_ranks < 0:
        problems.append(f"estimate.dry_run_ranks: {estimate.dry_run_ranks} is negative; set it to 0 or more")
    return problems


def compute_plan(cfg: DictConfig) -> str:
    """Returns parameters, operations, memory by part and speed of a run, for each of `estimate.world_sizes`.

    Args:
        cfg: `TrainSettings`, checked; of the weights only the shape is needed, see `stated_architecture`.

    Raises:
        ConfigError: nothing states the shape, or `layout.tensor_parallel` does not divide it.
    """
    model, precision = stated_architecture(cfg.weights, cfg.model), bytes_per_parameter(cfg)
    if problems := tensor_parallel_problems(cfg.layout.tensor_parallel, model):
        raise ConfigError("layout", problems)
    lines = [*_model_lines(cfg, model, precision), "", *aligned(_columns(cfg, model, precision), 1)]
    lines.append(
        f"GiB of one GPU at its peak; {cfg.estimate.tflops:g} TFLOP/s is assumed, and that communication hides behind "
        "computation; documents shorter than a sequence need less"
    )
    if cfg.layout.tensor_parallel > 1:
        compute = COMPUTE_BYTES[cfg.precision]
        of_token = bytes_per_token(model, compute, cfg.layout.tensor_parallel, cfg.activation_checkpointing)
        lines.append(
            f"tensor_parallel={cfg.layout.tensor_parallel}: of each token that its group computes, a GPU sends "
            f"{of_token / 2**20:.2f} MiB in sums that computation waits for"
        )
    if cfg.estimate.dry_run_ranks:
        lines += ["", *_dry_run_lines(cfg, model, precision)]
    return "\n".join(lines)


def memory(
    cfg: DictConfig, model: Architecture, precision: Precision, world_size: int, micro_batch: int
) -> dict[str, int]:
    """Returns the bytes that one GPU of `world_size` needs, by part."""
    tokens = cfg.seq_len * micro_batch
    if cfg.adapter:
        count = partial(adapter_memory, model, cfg.adapter)
    else:
        shared, is_frozen = cfg.layout.tensor_parallel, cfg.trainable == "embeddings"
        count = partial(memory_by_part, model, tensor_parallel=shared, layers_frozen=is_frozen)
    groups = world_size // cfg.layout.tensor_parallel
    return count(
        precision,
        shards=groups // cfg.layout.replicas,
        tokens=tokens,
        accumulates=not cfg.layout.reduce_every_micro_batch and cfg.global_batch_tokens > tokens * groups,
        activations=cfg.activation_checkpointing,
        compiled=cfg.compile,
        loss_chunk=cfg.loss_chunk,
        keeps_gathered=not cfg.layout.reshard_after_forward,
    )


def sent_bytes(cfg: DictConfig, model: Architecture, world_size: int) -> dict[str, float]:
    """Returns what one GPU of `world_size` sends in a step: to share matrices, and of weights and gradients."""
    ranks, compute = cfg.layout.tensor_parallel, COMPUTE_BYTES[cfg.precision]
    groups = world_size // ranks
    micro_batches = max(1, cfg.global_batch_tokens // (cfg.seq_len * cfg.micro_batch * groups))
    of_token = bytes_per_token(model, compute, ranks, cfg.activation_checkpointing)
    weights = bytes_per_step(
        model,
        compute,
        ranks=ranks,
        shards=groups // cfg.layout.replicas,
        replicas=cfg.layout.replicas,
        gathers=micro_batches * (2 if cfg.layout.reshard_after_forward else 1),
        reductions=micro_batches if cfg.layout.reduce_every_micro_batch else 1,
    )
    return {"sums": of_token * cfg.global_batch_tokens / groups, "weights": weights}


def bytes_per_parameter(cfg: DictConfig) -> Precision:
    """Returns what a parameter of the run takes; that of the optimizer is measured on a small one."""
    dtype = storage_dtype(cfg.optimizer)
    parameter = nn.Parameter(torch.zeros(1024, 1024, dtype=dtype))  # quantised states have tables of a fixed size
    parameter.grad = torch.zeros_like(parameter)
    with torch.compiler.set_stance("force_eager"):  # torchao's optimizers compile themselves
        optimizer: torch.optim.Optimizer = instantiate(cfg.optimizer, [parameter])
        optimizer.step()
    state = sum(_bytes(t) for t in optimizer.state[parameter].values() if isinstance(t, torch.Tensor) and t.dim())
    return Precision(dtype.itemsize, dtype.itemsize, state / parameter.numel(), COMPUTE_BYTES[cfg.precision])


def _bytes(tensor: torch.Tensor) -> int:
    """Returns the size of a tensor, of a quantised one that of its parts."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(_bytes(getattr(tensor, name)) for name in names)
    return tensor.nbytes


def _model_lines(cfg: DictConfig, model: Architecture, precision: Precision) -> list[str]:
    with torch.device("meta"):
        built = sum(p.numel() for p in build_model(model).parameters())
    counts = parameter_counts(model)
    assert built == sum(counts.values()), f"the model has {built} parameters, by parts they are {counts}"
    told = flops_per_token(model, cfg.seq_len, *frozen_parts(cfg))
    executed = executed_flops_per_token(model, cfg.seq_len, cfg.activation_checkpointing, *frozen_parts(cfg))
    backend = choose_backend("auto" if cfg.attention == "varlen" else cfg.attention, "cuda", cfg.precision, cfg.compile)
    learns = [adapter_line(model, cfg.adapter, precision, cfg.precision)] if cfg.adapter else []
    if cfg.trainable == "embeddings":
        outer = counts["embedding"] + counts["output"]
        learns = [f"embedding and output learn, {outer:,} or {outer / built:.2%}; the layers in {cfg.precision}"]
    return [
        f"{built:,} parameters: " + ", ".join(f"{name} {count:,}" for name, count in counts.items() if count),
        *learns,
        f"bytes of each{' that learns' if learns else ''}: {precision.stored} stored, {precision.gradient} gradient, "
        f"{precision.optimizer:.4g} optimizer "
        f"({cfg.optimizer['_component_']}); computed in {cfg.precision}{_float8(cfg)}, attention={backend} on a GPU",
        f"GFLOP a token, sequence {cfg.seq_len:,}: {told['full'] / 1e9:.2f} with attention over the whole square, "
        f"{told['causal'] / 1e9:.2f} causal; {executed / 1e9:.2f} computed with activation_checkpointing="
        f"{cfg.activation_checkpointing}",
    ]


def _float8(cfg: DictConfig) -> str:
    return f" and float8 ({cfg.float8})" if cfg.float8 else ""


def _columns(cfg: DictConfig, model: Architecture, precision: Precision) -> list[list[str]]:
    sizes = list(cfg.estimate.world_sizes)
    possible = [size for size in sizes if not world_problems(cfg.layout, size)]
    shared = cfg.layout.tensor_parallel
    told_sent = [] if keeps_base(cfg) else ["weights", "sums"] if shared > 1 else ["weights"]
    parts = {size: memory(cfg, model, precision, size, cfg.micro_batch) for size in possible}

    def row(name: str, tell: Callable[[int], str]) -> list[str]:
        return [name, *(tell(size) if size in parts else "-" for size in sizes)]

    names = list(parts[possible[0]]) if possible else []
    limit = cfg.estimate.gpu_memory_gib * GIB
    executed = executed_flops_per_token(model, cfg.seq_len, cfg.activation_checkpointing, *frozen_parts(cfg))
    rate = cfg.estimate.tflops * 1e12 / executed
    days = cfg.steps * cfg.global_batch_tokens / rate / 86_400

    def accumulation(size: int) -> str:
        sequences, at_once = cfg.global_batch_tokens // cfg.seq_len, size // shared * cfg.micro_batch
        return str(sequences // at_once) if sequences % at_once == 0 else "does not divide"

    def tell_sent(name: str) -> Callable[[int], str]:
        return lambda size: f"{sent_bytes(cfg, model, size)[name] / GIB:,.1f}"

    def most(size: int) -> str:
        needs = {n: sum(memory(cfg, model, precision, size, n).values()) for n in range(1, LARGEST_MICRO_BATCH + 1)}
        return str(max((n for n, need in needs.items() if need <= limit), default=0))

    return [
        ["GPUs", *map(str, sizes)],
        *(row(name, lambda size, name=name: f"{parts[size][name] / GIB:.1f}") for name in names),  # type: ignore[misc]
        row("sum", lambda size: f"{sum(parts[size].values()) / GIB:.1f}"),
        row(f"fits in {cfg.estimate.gpu_memory_gib:g}", lambda s: "yes" if sum(parts[s].values()) <= limit else "no"),
        row("largest micro_batch", most),
        row("micro-batches a step", accumulation),
        *(row(f"GiB sent a step, {name}", tell_sent(name)) for name in told_sent),
        row("tokens/s/GPU", lambda size: f"{rate:,.0f}"),
        row("tokens/s", lambda size: f"{rate * size:,.0f}"),
        row(f"days for {cfg.steps:,} steps", lambda size: f"{days / size:,.2f}"),
    ]


def _dry_run_lines(cfg: DictConfig, model: Architecture, precision: Precision) -> list[str]:
    from recipes.training.planning.dry_run import dry_run  # torch's fake tensors take a second to import

    size = cfg.estimate.dry_run_ranks
    if problems := world_problems(cfg.layout, size):
        raise ConfigError("estimate.dry_run_ranks", problems)
    peak = dry_run(cfg, model, size)
    parts = memory(cfg, model, precision, size, cfg.micro_batch)
    formula = sum(parts.values()) - parts["optimizer"] - parts["reserved"]
    told = ", ".join(f"{kind} {size / GIB:.1f}" for kind, size in peak.items() if size >= GIB / 20 and kind != "Total")
    return [
        f"dry run of rank 0 of {size}, without optimizer and reserve: {peak['Total'] / GIB:.1f} GiB at the peak, "
        f"{formula / GIB:.1f} by the formula",
        f"  at that moment: {told}",
    ]
