"""Output layer and cross-entropy in one, a chunk of positions at a time, so that the logits never exist as a whole.

Llama-3's 128,256 logits of 8192 positions are 3.9 GiB in fp32, and a plain backward pass needs them twice. Here the
gradient of a chunk is taken right behind its loss, when its logits are at hand anyway: three matrix products in all,
as in the plain form, and memory that depends on the chunk alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from recipes.training.model.loss import IGNORE, summed_cross_entropy

LossAndGradient = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of fp32 logits, (positions, vocab), and targets, (positions,): turns the logits into their gradient in place and
returns objective and cross-entropy, (2,)."""


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    chunk: int,
    z_loss: float = 0.0,
    scratch: "Scratch | None" = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the objective to differentiate and the cross-entropy in it, both fp32 sums over the valid targets.

    objective = sum over targets of -log p(target) + z_loss * log(sum of exp(logits))**2; without `z_loss` both are
    the same number. The second result carries no gradient.

    Args:
        hidden: (batch, seq, dim), fp32 or bf16.
        weight: (vocab, dim), of the same dtype; its gradient is accumulated in fp32.
        targets: (batch, seq), int64; `IGNORE` is not counted.
        chunk: positions whose logits exist at once; 0 computes all at once, with autograd's own backward pass.
        z_loss: weight of the second term, which keeps the logits from drifting.
        scratch: the same from step to step spares a CPU the time in which it clears new memory.

    Source: z-loss: Chowdhery et al. 2022 (PaLM), section 5, with 1e-4.
    """
    hidden, targets = hidden.flatten(0, 1), targets.flatten()
    if chunk:
        # on a GPU, counting the targets would wait for all work queued before; without data there is nothing to count
        is_counted = not (hidden.is_cuda or isinstance(hidden, FakeTensor))
        if is_counted:
            rows = (targets != IGNORE).nonzero().squeeze(1)
            hidden, targets = (hidden, targets) if len(rows) == len(targets) else (hidden[rows], targets[rows])
        of_chunk = partial(_loss_and_gradient, z_loss=z_loss, all_count=is_counted)
        return chunked_cross_entropy(hidden, weight, targets, chunk, scratch or Scratch(), of_chunk)
    logits = F.linear(hidden, weight).float()
    cross_entropy = summed_cross_entropy(logits[None], targets[None])
    if not z_loss:
        return cross_entropy, cross_entropy.detach()
    squares = torch.where(targets != IGNORE, logits.logsumexp(1) ** 2, 0)
    return cross_entropy + z_loss * squares.sum(), cross_entropy.detach()


class Scratch:
    """Memory of a chunk's logits that a CPU keeps from step to step.

    Beyond 32 MiB the C library gives memory back when it is freed, and the system clears every page of the next piece:
    for logits, a third of the time of their matrix product. A GPU's allocator keeps memory by itself.
    """

    def __init__(self) -> None:
        """Holds nothing yet."""
        self._kept: dict[torch.dtype, torch.Tensor] = {}

    def take(self, rows: int, columns: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Returns a matrix, (rows, columns), without values, valid until the next call with this dtype."""
        if like.device.type != "cpu" or isinstance(like, FakeTensor):
            return like.new_empty(rows, columns, dtype=dtype)
        size = rows * columns
        if dtype not in self._kept or self._kept[dtype].numel() < size:
            with torch.inference_mode(False):  # or else no later training step could write to it
                self._kept[dtype] = like.new_empty(size, dtype=dtype)
        return self._kept[dtype][:size].view(rows, columns)


def chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    chunk: int,
    scratch: Scratch,
    loss_and_gradient: LossAndGradient,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns objective and cross-entropy, with the gradient taken behind each chunk's loss.

    Args:
        hidden: (positions, dim).
        weight: (vocab, dim), of the same dtype; its gradient is accumulated in fp32.
        targets: (positions,), int64.
        chunk: positions whose logits exist at once.
        scratch: for the logits.
        loss_and_gradient: of a chunk.
    """
    settings = (chunk, scratch, loss_and_gradient, torch.is_grad_enabled())
    objective, cross_entropy = _Chunked.apply(hidden, weight, targets, *settings)
    return objective, cross_entropy


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        chunk: int,
        scratch: Scratch,
        loss_and_gradient: LossAndGradient,
        is_training: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needs_hidden, needs_weight = (is_training and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.empty_like(weight, dtype=torch.float32) if needs_weight else None
        sums = torch.zeros(2, dtype=torch.float32, device=hidden.device)
        shape = (min(chunk, len(hidden)), len(weight))
        products = scratch.take(*shape, weight, weight.dtype)
        values = products if weight.dtype == torch.float32 else scratch.take(*shape, weight, torch.float32)
        for start in range(0, max(1, len(hidden)), chunk):
            rows = slice(start, start + chunk)
            product = torch.mm(hidden[rows], weight.t(), out=products[: len(hidden[rows])])
            logits = product if values is products else values[: len(product)].copy_(product)
            sums += loss_and_gradient(logits, targets[rows])
            gradient = product if values is products else product.copy_(logits)
            if grad_hidden is not None:
                torch.mm(gradient, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                _add_product(grad_weight, gradient.t(), hidden[rows], is_first=start == 0)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        objective, cross_entropy = sums[0].clone(), sums[1].clone()  # FSDP hooks no views
        ctx.mark_non_differentiable(cross_entropy)
        return objective, cross_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # in place: a second backward pass over the same graph finds them changed, and autograd refuses it
        hidden = None if grad_hidden is None else grad_hidden.mul_(grads[0])
        weight = None if grad_weight is None else grad_weight.mul_(grads[0]).to(ctx.weight_dtype)
        return hidden, weight, None, None, None, None, None


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, is_first: bool) -> None:
    """Adds a product to `total`, fp32, which before the first holds no values."""
    if left.dtype == total.dtype:
        total.addmm_(left, right, beta=0 if is_first else 1)
    elif is_first:
        total.copy_(left @ right)
    else:
        total += left @ right


def _loss_and_gradient(logits: torch.Tensor, targets: torch.Tensor, z_loss: float, all_count: bool) -> torch.Tensor:
    """Turns fp32 logits, (positions, vocab), into their gradient; returns objective and cross-entropy, (2,)."""
    is_valid = (targets != IGNORE).unsqueeze(1)
    index = torch.where(is_valid, targets.unsqueeze(1), 0)
    largest, of_target = logits.amax(dim=1, keepdim=True), logits.gather(1, index)
    probabilities = torch.softmax(logits, dim=1, out=logits)
    # the largest probability is 1 / sum(exp(logits - largest)), and never so small that its logarithm is not finite
    log_partition = largest - probabilities.amax(dim=1, keepdim=True).log()
    cross_entropy = torch.where(is_valid, log_partition - of_target, 0).sum()
    penalty = torch.where(is_valid, z_loss * log_partition**2, 0).sum()
    if z_loss or not all_count:
        probabilities *= torch.where(is_valid, 1 + 2 * z_loss * log_partition, 0)
    probabilities.scatter_add_(1, index, -is_valid.float())
    return torch.stack([cross_entropy + penalty, cross_entropy])
