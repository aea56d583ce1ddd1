"""Output layer and cross-entropy in one, a chunk of positions at a time, so that the logits never exist as a whole.

Llama-3's 128,256 logits of 8192 positions are 3.9 GiB in fp32, and a plain backward pass needs them twice. Here the
gradient of a chunk is taken right behind its loss, when its logits are at hand anyway: three matrix products in all,
as in the plain form, and memory that depends on the chunk alone.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from recipes.training.model.loss import IGNORE, summed_cross_entropy


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int, z_loss: float = 0.0
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

    Source: z-loss: Chowdhery et al. 2022 (PaLM), section 5, with 1e-4.
    """
    hidden, targets = hidden.flatten(0, 1), targets.flatten()
    if chunk:
        # on a GPU, counting the targets would wait for all work queued before; without data there is nothing to count
        if not (hidden.is_cuda or isinstance(hidden, FakeTensor)):
            rows = (targets != IGNORE).nonzero().squeeze(1)
            hidden, targets = (hidden, targets) if len(rows) == len(targets) else (hidden[rows], targets[rows])
        objective, cross_entropy = _Chunked.apply(hidden, weight, targets, chunk, z_loss, torch.is_grad_enabled())
        return objective, cross_entropy
    logits = F.linear(hidden, weight).float()
    cross_entropy = summed_cross_entropy(logits[None], targets[None])
    if not z_loss:
        return cross_entropy, cross_entropy.detach()
    squares = torch.where(targets != IGNORE, logits.logsumexp(1) ** 2, 0)
    return cross_entropy + z_loss * squares.sum(), cross_entropy.detach()


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        chunk: int,
        z_loss: float,
        is_training: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needs_hidden, needs_weight = (is_training and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        sums = torch.zeros(2, dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            logits = (hidden[rows] @ weight.t()).float()
            sums += _loss_and_gradient(logits, targets[rows], z_loss)
            gradient = logits.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(gradient, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight += gradient.t() @ hidden[rows]
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
        return hidden, weight, None, None, None, None


def _loss_and_gradient(logits: torch.Tensor, targets: torch.Tensor, z_loss: float) -> torch.Tensor:
    """Turns fp32 logits, (positions, vocab), into their gradient; returns objective and cross-entropy, (2,)."""
    is_valid = (targets != IGNORE).unsqueeze(1)
    index = torch.where(is_valid, targets.unsqueeze(1), 0)
    largest = logits.amax(dim=1, keepdim=True)
    logits -= largest
    of_target = logits.gather(1, index)
    total = logits.exp_().sum(dim=1, keepdim=True)
    log_total = total.log()
    cross_entropy = torch.where(is_valid, log_total - of_target, 0).sum()
    log_partition = log_total + largest
    penalty = torch.where(is_valid, z_loss * log_partition**2, 0).sum()
    logits *= torch.where(is_valid, (1 + 2 * z_loss * log_partition) / total, 0)
    logits.scatter_add_(1, index, -is_valid.float())
    return torch.stack([cross_entropy + penalty, cross_entropy])
