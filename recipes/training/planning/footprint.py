"""What a run needs of each GPU, and how fast it can be at best: counted from the shapes, without a GPU.

Floating-point operations are counted in two conventions that are both in use: `full` takes attention over the whole
square of positions (as Megatron and torchtitan do), `causal` over the half that is computed. Memory is exact for
weights, gradients and optimizer; what the layers keep for the backward pass is a count of the tensors that torch
saves for a Llama layer.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from recipes.training.model.decoder import Architecture
from recipes.training.model.freezing import keeps_base

GIB = 2**30
COMPUTE_BYTES = {"bf16": 2, "fp32": 4}
RESERVED_BYTES = 2 * GIB
"""CUDA context, NCCL buffers and cuBLAS workspaces; measured values lie between 1 and 2.5 GiB."""
FRAGMENTATION = 0.03
"""Share of the rest that the allocator cannot use, with expandable segments."""


@dataclass(frozen=True)
class Precision:
    """Bytes per parameter: as stored, its gradient, and the optimizer's state."""

    stored: int
    gradient: int
    optimizer: float
    compute: int


def parameter_counts(model: Architecture) -> dict[str, int]:
    """Returns the parameters by part; they add up to the model's."""
    width, kv_width = model.embed_dim, model.num_kv_heads * (model.embed_dim // model.num_heads)
    return {
        "embedding": model.vocab_size * width,
        "attention": model.num_layers * 2 * width * (width + kv_width),
        "mlp": model.num_layers * 3 * width * model.intermediate_dim,
        "norms": (2 * model.num_layers + 1) * width,
        "output": 0 if model.tied_embeddings else model.vocab_size * width,
    }


def frozen_parts(cfg: Any) -> tuple[bool, bool]:
    """Returns whether the layers' matrices, and whether the head, have no gradients of their own in a run."""
    return keeps_base(cfg), cfg.get("adapter") is not None


def flops_per_token(
    model: Architecture, seq_len: int, layers_frozen: bool = False, head_frozen: bool = False
) -> dict[str, float]:
    """Returns the floating-point operations of forward and backward by convention, none of them recomputed.

    Frozen matrices have no gradients of their own; the operations of adapters are left out.

    Source: PaLM (arXiv 2204.02311), appendix B: 6 N + 12 L H Q T.
    """
    counts = parameter_counts(model)
    layers, head = counts["attention"] + counts["mlp"], model.vocab_size * model.embed_dim
    attention = 12.0 * model.num_layers * model.embed_dim * seq_len
    products = (4 if layers_frozen else 6) * layers + (4 if head_frozen else 6) * head
    return {"full": products + attention, "causal": products + attention / 2}


def executed_flops_per_token(
    model: Architecture, seq_len: int, activations: str, layers_frozen: bool = False, head_frozen: bool = False
) -> float:
    """Returns what is really computed per token, causal, with what `activations` computes again.

    The backward pass of a fused attention kernel computes the scores again: 5 products to the forward's 2. Above a
    memory budget of 0.5 the compiler computes only elementwise work again; below, this counts all products.
    """
    counts = parameter_counts(model)
    layers = 2.0 * (counts["attention"] + counts["mlp"])
    attention = 2.0 * model.num_layers * model.embed_dim * seq_len  # forward: scores and values, half of the square
    head = 2.0 * model.vocab_size * model.embed_dim
    plain = (2 if layers_frozen else 3) * layers + (2 if head_frozen else 3) * head + 3.5 * attention
    return plain + (layers + attention if _recomputes_products(activations) else 0)


def saved_bytes_per_token(model: Architecture, activations: str, compiled: bool, tensor_parallel: int = 1) -> float:
    """Returns what one layer keeps of one token for the backward pass, in bf16, on one of the ranks that share it.

    Of a Llama-3-8B layer: 212 KiB (`none`, with norms that keep fp32 copies; torchtune's own attention, which expands
    keys and values, was counted at 224), 148 KiB (compiled), 92 KiB (compiled, budget 0.7), 100 KiB (`selective`),
    8 KiB (`full`). A budget between 0 and 0.7 is taken as linear. Tensor parallelism divides what lies between the
    norms and the sums: queries, keys, values, what attention returns, and all of the MLP's inside.
    """
    d, i = model.embed_dim, model.intermediate_dim / tensor_parallel
    kv = model.num_kv_heads * (d // model.num_heads) / tensor_parallel
    own = d / tensor_parallel
    if activations == "full":
        return 2 * d
    if activations == "selective":
        return 6 * d + 4 * own + 4 * kv + 4 * i
    if activations == "none":
        return 11 * d + 5 * own + 6 * i if compiled else 20 * d + 4 * own + 4 * kv + 8 * i
    budget, at_seven_tenths = float(activations), 4 * d + 5 * own + 4 * i
    return at_seven_tenths if budget >= 0.7 else 2 * d + (at_seven_tenths - 2 * d) * budget / 0.7


def memory_by_part(
    model: Architecture,
    precision: Precision,
    *,
    shards: int,
    tokens: int,
    accumulates: bool,
    activations: str,
    compiled: bool,
    loss_chunk: int,
    keeps_gathered: bool = False,
    tensor_parallel: int = 1,
    layers_frozen: bool = False,
) -> dict[str, int]:
    """Returns the bytes one GPU needs at the peak, by part.

    Args:
        model: the decoder's shape.
        precision: bytes per parameter.
        shards: GPUs over which FSDP2 spreads a copy of the model; without `tensor_parallel`, 1 is the plain model.
        tokens: of one micro-batch.
        accumulates: whether a step has several micro-batches; their gradients stay whole until the last one.
        activations: as in the configuration.
        compiled: whether the layers are compiled.
        loss_chunk: positions whose logits exist at once, 0 for all.
        keeps_gathered: whether weights stay gathered from the forward to the backward pass.
        tensor_parallel: GPUs that share each matrix.
        layers_frozen: whether embedding and output alone learn; the rest is stored in the compute dtype.
    """
    counts = {n: c if n == "norms" else c // tensor_parallel for n, c in parameter_counts(model).items()}
    total, vocab_size = sum(counts.values()), model.vocab_size // tensor_parallel
    layer, outer = (counts["attention"] + counts["mlp"]) // model.num_layers, counts["embedding"] + counts["output"]
    saved = partial(saved_bytes_per_token, model, compiled=compiled, tensor_parallel=tensor_parallel)
    is_plain = shards * tensor_parallel == 1
    rows = min(loss_chunk or tokens, tokens)
    num_layers, copies = (model.num_layers if keeps_gathered else 2), precision.compute
    if is_plain:  # weights stored in the compute dtype are used as they lie; others are cast in each pass
        num_layers, copies = (model.num_layers if activations == "none" else 1), copies % precision.stored
        num_layers = 0 if layers_frozen else num_layers
    learnt = outer if layers_frozen else total
    parts = {
        "parameters": -(-(learnt * precision.stored + (total - learnt) * precision.compute) // shards),
        "gradients": -(-learnt * precision.gradient // shards),
        "optimizer": round(learnt * precision.optimizer / shards),
        # beside the layers in flight, embeddings and output throughout
        "gathered": (outer + num_layers * layer) * copies,
        "accumulated": learnt * 4 if accumulates and (not is_plain or precision.stored < 4) else 0,
        "activations": round(model.num_layers * saved(activations) * tokens),
        # logits in the compute dtype and fp32, and their gradient; the weight's fp32 gradient
        "loss": rows * vocab_size * (4 + 2 * precision.compute) + 4 * vocab_size * model.embed_dim,
        "one layer": round(saved("none") * tokens) if activations != "none" else 0,
    }
    return parts | {"reserved": RESERVED_BYTES + round(FRAGMENTATION * sum(parts.values()))}


def _recomputes_products(activations: str) -> bool:
    if activations in ("none", "selective"):
        return False
    return activations == "full" or float(activations) < 0.5
