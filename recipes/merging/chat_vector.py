"""The chat vector: what instruction tuning added to a base model, added to another model of that base."""

import torch
from torch import Tensor

BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def add_chat_vector(target: Tensor, plus: Tensor, minus: Tensor, scale: float) -> Tensor:
    """Returns `target + scale * (plus - minus)`, rounded once to the dtype of `target`.

    The sum is taken in float32 for 16-bit tensors and in float64 when one of them is wider. Floating
    point alone does not keep two laws: `t + (p - t)` differs from `p` where `p` is far smaller than `t`
    (its low bits are lost in the difference, in any precision), and `-0.0 + 0.0` is `0.0`. Both have an
    exact answer that needs no arithmetic, so it is taken, element by element:

    - `plus` equal to `minus` (or `scale` 0) gives `target`;
    - `target` equal to `minus`, with `scale` 1, gives `plus`.

    Equal means equal bits, so that the laws also hold for the sign of zero.

    Args:
        target: any shape; float64, float32, float16 or bfloat16.
        plus: the instruction-tuned model's tensor, same shape; its dtype may differ.
        minus: the tensor of the base that `plus` was tuned from, same shape; its dtype may differ.
        scale: 1 adds the vector as it is.

    Source: Huang et al., "Chat Vector", arXiv 2310.04799, equation 2; task arithmetic, arXiv 2212.04089.
    """
    if scale == 0:
        return target.clone()
    wide = compute_dtype(target, plus, minus)
    t, p, m = (tensor.to(wide) for tensor in (target, plus, minus))
    merged = (p - m).mul_(scale).add_(t)
    if scale == 1:
        merged = torch.where(_same_bits(t, m), p, merged)
    merged = torch.where(_same_bits(p, m), t, merged)
    return merged.to(target.dtype)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Returns the dtype of the arithmetic: float32, or float64 when a tensor has more than 16 bits."""
    return torch.float64 if any(tensor.dtype.itemsize > 2 for tensor in tensors) else torch.float32


def _same_bits(one: Tensor, other: Tensor) -> Tensor:
    return one.view(BITS[one.dtype]) == other.view(BITS[other.dtype])
