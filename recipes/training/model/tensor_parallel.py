"""Tensor parallelism: neighbouring ranks hold each matrix together and compute the same sequences together.

Queries, keys, values, gate and up are split by output columns, so that a rank has whole heads; what follows them is
split by input rows, and the ranks' products are summed. Embedding and output layer are split over the vocabulary. The
norms are whole on each rank and see the same numbers on all. A layer sums over the ranks twice in its forward pass,
and twice in its backward pass.

DTensors hold the parameters, for FSDP2 and checkpoints; what is computed are plain local tensors.

Source: Shoeybi et al. 2019 (Megatron-LM), section 3.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from recipes.training.model.cross_entropy import Scratch, chunked_cross_entropy
from recipes.training.model.loss import IGNORE

BY_COLUMNS = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.w1", "mlp.w3")
"""Matrices of a layer of which each rank computes a part of the output."""
BY_ROWS = ("attn.output_proj", "mlp.w2")
"""Matrices of a layer that take a part of the input each, and whose products are summed."""


class ColumnLinear(nn.Linear):
    """Computes this rank's part of the output features."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns (..., out_features / ranks) of a whole input."""
        return F.linear(input, local(self.weight))


class RowLinear(nn.Linear):
    """Computes from this rank's part of the input features, and sums over the ranks."""

    group_name: str

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns (..., out_features), whole, of an input of (..., in_features / ranks)."""
        return _Sum.apply(F.linear(input, local(self.weight)), self.group_name)


class VocabularyEmbedding(nn.Embedding):
    """Looks up the tokens whose rows this rank has, and sums over the ranks."""

    group_name: str
    index: int

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns (..., embedding_dim), whole."""
        weight = local(self.weight)
        rows, is_elsewhere = _own_rows(input, len(weight), self.index)
        found = F.embedding(rows, weight).masked_fill(is_elsewhere.unsqueeze(-1), 0)
        return _Sum.apply(found, self.group_name)


def split_model(model: Any, ranks: DeviceMesh) -> None:
    """Splits the matrices of a decoder over the mesh of one dimension, in place; parameters keep their names.

    Args:
        model: on the meta device; the sizes divide as `tensor_parallel_problems` says.
        ranks: of this rank and its neighbours.
    """
    for layer in model.layers:
        for name in BY_COLUMNS:
            _split(layer.get_submodule(name), ColumnLinear, ranks, 0)
        for name in BY_ROWS:
            _split(layer.get_submodule(name), RowLinear, ranks, 1)
    _split(model.tok_embeddings, VocabularyEmbedding, ranks, 0)
    if isinstance(model.output, nn.Linear):
        _split(model.output, ColumnLinear, ranks, 0)
    if hasattr(torch._functorch.config, "unsafe_treat_script_objects_as_zero_size"):
        # in compiled layers the mesh is such an object; a memory budget may count it as nothing, it holds no tensors
        torch._functorch.config.unsafe_treat_script_objects_as_zero_size = True
    name = ranks.get_group().group_name
    for norm in [model.norm, *(n for layer in model.layers for n in (layer.sa_norm, layer.mlp_norm))]:
        # behind a norm each rank computes a part: there the gradients of the parts come together again
        norm.register_forward_hook(lambda module, inputs, output: _Share.apply(output, name))


def tensor_parallel_problems(ranks: int, architecture: Any) -> list[str]:
    """Returns why `ranks` cannot share the matrices of an `Architecture`."""
    names = ("num_heads", "num_kv_heads", "intermediate_dim", "vocab_size")
    sizes = {name: getattr(architecture, name) for name in names}
    wrong = [f"{name}={size}" for name, size in sizes.items() if size % ranks]
    if not wrong:
        return []
    fitting = [str(n) for n in range(1, min(sizes.values()) + 1) if not any(size % n for size in sizes.values())]
    return [
        f"layout.tensor_parallel: {ranks} does not divide {', '.join(wrong)}; each rank holds whole heads and as many "
        f"columns as the others; set one of {', '.join(fitting)}"
    ]


def vocabulary_cross_entropy(
    hidden: torch.Tensor, weight: DTensor, targets: torch.Tensor, chunk: int, z_loss: float, scratch: Scratch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what `linear_cross_entropy` returns, on every rank, of an output layer split over the vocabulary.

    A rank computes the logits of its own entries alone; of a position the ranks exchange the largest logit, the sum
    of the exponentials and the target's logit. The gradient of `hidden` is this rank's part, to be summed.

    Args:
        hidden: (batch, seq, dim), the same on each rank.
        weight: (vocab, dim), in its first dimension split over a mesh of one; its gradient is accumulated in fp32.
        targets: (batch, seq), int64; `IGNORE` is not counted.
        chunk: positions whose logits exist at once, 0 for all.
        z_loss: weight of log(sum of exp(logits))**2.
        scratch: for the logits.
    """
    hidden, targets = hidden.flatten(0, 1), targets.flatten()
    group, index = weight.device_mesh.get_group().group_name, weight.device_mesh.get_local_rank()
    of_chunk = partial(_loss_and_gradient, z_loss=z_loss, group=group, index=index)
    return chunked_cross_entropy(hidden, local(weight), targets, chunk or len(hidden), scratch, of_chunk)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the part of a tensor that this rank holds; a gradient flows back to the whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _loss_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, z_loss: float, group: str, index: int
) -> torch.Tensor:
    """Turns this rank's fp32 logits, (positions, vocab / ranks), into their gradient; returns the two sums, (2,)."""
    is_valid = (targets != IGNORE).unsqueeze(1)
    rows, is_elsewhere = _own_rows(targets.unsqueeze(1), logits.shape[1], index)
    largest = _reduce(logits.amax(dim=1, keepdim=True), "max", group)
    logits -= largest
    of_target = logits.gather(1, rows).masked_fill(is_elsewhere, 0)
    own_total = logits.exp_().sum(dim=1, keepdim=True)
    of_target, total = _reduce(torch.stack([of_target, own_total]), "sum", group)
    log_total = total.log()
    cross_entropy = torch.where(is_valid, log_total - of_target, 0).sum()
    log_partition = log_total + largest
    penalty = torch.where(is_valid, z_loss * log_partition**2, 0).sum()
    logits *= torch.where(is_valid, (1 + 2 * z_loss * log_partition) / total, 0)
    logits.scatter_add_(1, rows, -(is_valid & ~is_elsewhere).float())
    return torch.stack([cross_entropy + penalty, cross_entropy])


def _own_rows(tokens: torch.Tensor, num_rows: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the rows of tokens in this rank's part of the vocabulary, 0 for those of others, and which those are."""
    rows = tokens - index * num_rows
    is_elsewhere = (rows < 0) | (rows >= num_rows)
    return rows.masked_fill(is_elsewhere, 0), is_elsewhere


class _Sum(torch.autograd.Function):
    """Sums over the ranks; each rank's part gets the gradient of the sum."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: str) -> torch.Tensor:
        return _reduce(part, "sum", group)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


class _Share(torch.autograd.Function):
    """Passes on what is the same on each rank; its gradient is the sum of those of the ranks' parts."""

    @staticmethod
    def forward(ctx: Any, whole: torch.Tensor, group: str) -> torch.Tensor:
        ctx.group = group
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _reduce(grads[0], "sum", ctx.group), None


def _reduce(tensor: torch.Tensor, operation: str, group: str) -> torch.Tensor:
    # the operators themselves: they give plain tensors, and compile
    reduced = torch.ops._c10d_functional.all_reduce(tensor.contiguous(), operation, group)
    return torch.ops._c10d_functional.wait_tensor(reduced)


def _split(module: nn.Module, kind: type[nn.Module], ranks: DeviceMesh, dimension: int) -> None:
    """Turns a module into one of `kind`, whose weight is split in that dimension."""
    assert type(module) in kind.__mro__, f"{type(module).__name__} cannot become {kind.__name__}"
    module.__class__ = kind
    module.group_name, module.index = ranks.get_group().group_name, ranks.get_local_rank()  # type: ignore[assignment]
    assert isinstance(module.weight, nn.Parameter)
    # without a source rank nothing is sent; there are no values yet
    weight = distribute_tensor(module.weight.data, ranks, [Shard(dimension)], src_data_rank=None)
    module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)
