"""How a model is spread over the ranks: FSDP2, in groups, tensor parallelism; nothing of it on a single one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from recipes.training.distributed import World
from recipes.training.model.casting import cast_in_forward
from recipes.training.model.tensor_parallel import split_model


@dataclass
class LayoutSettings:
    """FSDP2's, for more than one rank; one rank alone holds the plain model."""

    replicas: int = 1
    """Groups of ranks that hold a whole model each (HSDP): weights are gathered within a group alone, e.g. one of the
    nodes; gradients are added over all."""
    reshard_after_forward: bool = True
    """Whether a layer's gathered weights are given back between its forward and backward pass; false gathers them
    once less, and keeps the whole model in the compute dtype on every rank."""
    prefetch_layers: int = 0
    """Layers whose weights are gathered while one is computed; 0: the next one, as FSDP2 does by itself."""
    reduce_every_micro_batch: bool = False
    """Whether gradients are reduced behind every micro-batch: they never lie whole on a rank, 4 bytes a parameter
    less, and are sent as often as there are micro-batches."""
    tensor_parallel: int = 1
    """Neighbouring ranks that share each matrix and compute the same sequences together; they talk four times a layer,
    so keep them within a node. 1: each rank computes sequences of its own."""


def layout_problems(layout: Any, stored: torch.dtype) -> list[str]:
    """Returns the problems of a run's `layout`, with parameters stored as `stored`, that one process can see."""
    problems = []
    if layout.replicas < 1:
        problems.append(f"layout.replicas: {layout.replicas} is below 1; 1 shards over all ranks; set it to 1 or more")
    if layout.tensor_parallel < 1:
        problems.append(
            f"layout.tensor_parallel: {layout.tensor_parallel} is below 1; 1 shares no matrix; set it to 1 or more"
        )
    if layout.prefetch_layers < 0:
        problems.append(f"layout.prefetch_layers: {layout.prefetch_layers} is negative; set it to 0 or more")
    if layout.reduce_every_micro_batch and stored != torch.float32:
        problems.append(
            "layout.reduce_every_micro_batch: true with an optimizer that stores bf16; reduced gradients would add up "
            "in bf16, fp32 is needed; set it to false, or use torch.optim.AdamW"
        )
    return problems


def world_problems(layout: Any, world_size: int) -> list[str]:
    """Returns why `world_size` ranks cannot be laid out so."""
    shared, groups = layout.tensor_parallel, world_size // layout.tensor_parallel
    if world_size % shared:
        return [
            f"layout.tensor_parallel: {shared} do not divide {world_size} ranks; every group needs as many; "
            f"set one of {_divisors(world_size)}, or start other ranks"
        ]
    if groups % layout.replicas:
        told = f"{world_size} ranks" if shared == 1 else f"the {groups} groups of layout.tensor_parallel={shared}"
        return [
            f"layout.replicas: {layout.replicas} do not divide {told}; every replica needs as many; "
            f"set one of {_divisors(groups)}, or start other ranks"
        ]
    return []


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def spread(model: nn.Module, world: World, precision: str, layout: Any) -> None:
    """Shards the decoder in place over the ranks; a single rank keeps it whole.

    Gradients are reduced in fp32, and those of the ranks are summed, not averaged: the loss is already divided by
    the global number of targets. Between the micro-batches of a step nothing is reduced: the model's
    `set_requires_gradient_sync` says which is the last.

    Args:
        model: with `layers`, on the meta device, all parameters of one dtype.
        world: the ranks.
        precision: of the computation, `fp32` or `bf16`.
        layout: `LayoutSettings`.
    """
    if world.size == 1:
        if precision == "bf16" and next(model.parameters()).dtype == torch.float32:
            cast_in_forward(model)
        return
    assert world.tensor_parallel == layout.tensor_parallel, f"{world}, but {layout}"
    mesh, layers = device_mesh(world, layout.replicas), list(model.layers)  # type: ignore[arg-type]
    if layout.tensor_parallel > 1:
        split_model(model, mesh["tensor"])
        mesh = mesh["replica", "shard"] if layout.replicas > 1 else mesh["shard"]
    compute: torch.dtype | None = torch.bfloat16 if precision == "bf16" else torch.float32
    if not model.tok_embeddings.weight.requires_grad:  # type: ignore[union-attr]
        compute = None  # the base is stored in it, and adapters, which are small, are gathered in fp32
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=layout.reshard_after_forward)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    if layout.prefetch_layers:
        for number, layer in enumerate(layers):
            layer.set_modules_to_forward_prefetch(layers[number + 1 : number + 1 + layout.prefetch_layers])
            layer.set_modules_to_backward_prefetch(layers[max(0, number - layout.prefetch_layers) : number][::-1])
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum
    if layout.reduce_every_micro_batch:
        model.set_requires_gradient_sync = lambda is_last: None  # type: ignore[assignment]


def device_mesh(world: World, replicas: int) -> DeviceMesh:
    """Returns the mesh of all ranks: replicas if there are several, shards, and last who shares a matrix, if any do."""
    sizes = {"replica": replicas, "shard": world.data_size // replicas, "tensor": world.tensor_parallel}
    kept = {name: size for name, size in sizes.items() if name == "shard" or size > 1}
    if len(kept) == 1:
        return world.mesh
    return init_device_mesh(world.device.type, tuple(kept.values()), mesh_dim_names=tuple(kept))
