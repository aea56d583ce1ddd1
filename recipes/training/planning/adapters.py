"""What a run with adapters needs of a GPU: a base without gradients and optimizer, and small matrices with both."""

from math import prod
from typing import Any

from recipes.training.model.adapters import MODULES
from recipes.training.model.decoder import Architecture
from recipes.training.model.nf4 import CHUNK, packed_shapes
from recipes.training.planning.footprint import (
    FRAGMENTATION,
    RESERVED_BYTES,
    Precision,
    parameter_counts,
    saved_bytes_per_token,
)

UNPACKING_BYTES = 12
"""A weight of the `CHUNK` being unpacked: its code as an index, value and product in fp32, and the result."""


def matrix_shapes(model: Architecture) -> dict[str, tuple[int, int]]:
    """Returns (rows, columns) of a layer's matrices, by Hugging Face's names."""
    width, inner = model.embed_dim, model.intermediate_dim
    kv_width = model.num_kv_heads * (width // model.num_heads)
    rows = {"q_proj": width, "k_proj": kv_width, "v_proj": kv_width, "o_proj": width}
    rows |= {"gate_proj": inner, "up_proj": inner, "down_proj": width}
    return {name: (rows[name], inner if name == "down_proj" else width) for name in MODULES}


def learnt_parameters(model: Architecture, adapter: Any) -> int:
    """Returns the number of parameters that learn."""
    shapes = [matrix_shapes(model)[name] for name in adapter.modules]
    lengths = sum(rows for rows, _ in shapes) if adapter.kind == "dora" else 0
    return int(model.num_layers * (adapter.rank * sum(map(sum, shapes)) + lengths))


def base_bytes(model: Architecture, adapter: Any, compute: int) -> tuple[int, int]:
    """Returns the bytes of a layer that do not learn, and of embedding and output layer; `compute` bytes a number."""
    counts = parameter_counts(model)
    matrices = (counts["attention"] + counts["mlp"]) // model.num_layers * compute
    if adapter.quantize_base:
        shapes = [shape for size in matrix_shapes(model).values() for shape in packed_shapes(*size).values()]
        matrices = sum(prod(shape) * dtype.itemsize for shape, dtype in shapes)
    return matrices + 2 * model.embed_dim * compute, (counts["embedding"] + counts["output"]) * compute


def adapter_memory(
    model: Architecture,
    adapter: Any,
    precision: Precision,
    *,
    shards: int,
    tokens: int,
    accumulates: bool,
    activations: str,
    compiled: bool,
    loss_chunk: int,
    keeps_gathered: bool = False,
) -> dict[str, int]:
    """Returns the bytes one GPU needs at the peak, by part; arguments as of `memory_by_part`.

    Args:
        model: shape of the base.
        adapter: `AdapterSettings`.
        precision: bytes per parameter that learns.
        shards: GPUs over which FSDP2 spreads one copy.
        tokens: of one micro-batch.
        accumulates: whether a step has several micro-batches.
        activations: as in the configuration.
        compiled: whether the layers are compiled.
        loss_chunk: positions whose logits exist at once, 0 for all.
        keeps_gathered: whether weights stay gathered from the forward to the backward pass.
    """
    learnt, rows = learnt_parameters(model, adapter), min(loss_chunk or tokens, tokens)
    layer, outer = base_bytes(model, adapter, precision.compute)
    layer_learnt = learnt * precision.stored // model.num_layers
    whole_layer = saved_bytes_per_token(model, "none", compiled) + _dropout_bytes(model, adapter, precision.compute)
    largest = max(map(prod, matrix_shapes(model).values()))
    unpacked = largest * precision.compute + (0 if compiled else CHUNK * UNPACKING_BYTES)
    gathered = outer + (model.num_layers if keeps_gathered else 2) * (layer + layer_learnt)
    kept = whole_layer if activations == "none" else saved_bytes_per_token(model, activations, compiled)
    parts = {
        "base": -(-(model.num_layers * layer + outer + model.embed_dim * precision.compute) // shards),
        "adapters": -(-learnt * precision.stored // shards),
        "gradients": -(-learnt * precision.gradient // shards),
        "optimizer": round(learnt * precision.optimizer / shards),
        "gathered": gathered if shards > 1 else 0,
        "accumulated": learnt * 4 if accumulates and shards > 1 else 0,
        "unpacked": unpacked if adapter.quantize_base else 0,
        "activations": round(model.num_layers * kept * tokens),
        "loss": rows * model.vocab_size * (4 + 2 * precision.compute),  # the output layer has no gradient
        "one layer": round(whole_layer * tokens) if activations != "none" else 0,
    }
    return parts | {"reserved": RESERVED_BYTES + round(FRAGMENTATION * sum(parts.values()))}


def adapter_line(model: Architecture, adapter: Any, precision: Precision, compute: str) -> str:
    """Returns in words what learns, and how the rest is stored."""
    learnt, total = learnt_parameters(model, adapter), sum(parameter_counts(model).values())
    layer, outer = base_bytes(model, adapter, precision.compute)
    bits = 8 * layer * model.num_layers / (total - outer / precision.compute)
    stored = f"{adapter.quantize_base or compute}, {bits:.2f} bits a weight; embeddings and norms in {compute}"
    return (
        f"{adapter.kind} of rank {adapter.rank} on {', '.join(adapter.modules)}: {learnt:,} parameters learn, "
        f"{learnt / total:.2%}; the layers' matrices in {stored}"
    )


def _dropout_bytes(model: Architecture, adapter: Any, compute: int) -> int:
    """Returns what the dropout of a layer's adapters keeps of a token: the inputs it left, and where."""
    if not adapter.dropout:
        return 0
    return sum(matrix_shapes(model)[name][1] for name in adapter.modules) * (compute + 1)
