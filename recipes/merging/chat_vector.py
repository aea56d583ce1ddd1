"""The chat vector: what instruction tuning added to a base model, added to another model of that base."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Term:
    """One vector's share of a sum, for some elements of one tensor.

    Attributes:
        plus: the instruction-tuned model's elements; their dtype may differ from the target's.
        minus: the elements of the base that `plus` was tuned from.
        scale: 1 adds the difference as it is.
        threshold: differences whose magnitude is below it are left out (TIES).
        kept: which differences stay (DARE), bool; None for all.
        rescale: factor on the differences that stay, on top of `scale`.
    """

    plus: Tensor
    minus: Tensor
    scale: float
    threshold: float = 0.0
    kept: Tensor | None = None
    rescale: float = 1.0

    @property
    def is_dense(self) -> bool:
        """Whether every difference is added, none rescaled."""
        return self.threshold == 0 and self.kept is None


def add_chat_vector(target: Tensor, plus: Tensor, minus: Tensor, scale: float) -> Tensor:
    """Returns `target + scale * (plus - minus)`; see `add_chat_vectors`."""
    return add_chat_vectors(target, [Term(plus, minus, scale)])[0]


def add_chat_vectors(
    target: Tensor, terms: Sequence[Term], combine: str = "sum"
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Returns `target + sum of scale * (plus - minus)`, rounded once to the dtype of `target`, and what was added.

    The sum is taken in float32 for 16-bit tensors and in float64 when one of them is wider. Floating
    point alone does not keep two laws: `t + (p - t)` differs from `p` where `p` is far smaller than `t`
    (its low bits are lost in the difference, in any precision), and `-0.0 + 0.0` is `0.0`. Here

    - `plus` equal to `minus` (or `scale` 0) gives `target`: what is subtracted is `|scale| * (minus - plus)`, which
      is then `0.0`, and `-0.0 - 0.0` is `-0.0`;
    - `target` equal to `minus`, with `scale` 1 and no other vector's change, gives `plus`, element by element.

    Equal means equal bits, so that the laws also hold for the sign of zero.

    Args:
        target: any shape; float64, float32, float16 or bfloat16.
        terms: the vectors, at least one; their tensors have the target's shape.
        combine: `sum`, or `ties` for the mean of those that agree in sign.

    Returns:
        The merged tensor; all that was added, negated; and for every term the differences before they were scaled,
        negated where the scale is positive. The latter two are in the dtype of the arithmetic.

    Source: Huang et al., "Chat Vector", arXiv 2310.04799, equation 2; task arithmetic, arXiv 2212.04089.
    """
    wide = compute_dtype(target, *(tensor for term in terms for tensor in (term.plus, term.minus)))
    differences = [term_differences(term, wide) for term in terms]
    changes = [_scaled(d, term) for d, term in zip(differences, terms, strict=True)]
    if len(changes) == 1:
        total = changes[0]
    else:
        total = elected_mean(changes) if combine == "ties" else torch.stack(changes).sum(0)
    merged = (target.to(wide) - total).to(target.dtype)
    for index, term in enumerate(terms):
        if term.scale == 1 and term.is_dense:
            others = [change for other, change in enumerate(changes) if other != index]
            merged = _take_exact(merged, target, term, others)
    return merged, total, differences


def elected_mean(changes: Sequence[Tensor]) -> Tensor:
    """Returns for every element the mean of the changes whose sign is that of the changes' sum.

    Source: Yadav et al., "TIES-Merging", arXiv 2306.01708, section 3, steps 2 and 3.
    """
    stack = torch.stack(list(changes))
    agrees = (stack.sign() == stack.sum(0).sign()) & (stack != 0)
    return torch.where(agrees, stack, 0.0).sum(0) / agrees.sum(0).clamp(min=1)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Returns the dtype of the arithmetic: float32, or float64 when a tensor has more than 16 bits."""
    return torch.float64 if any(tensor.dtype.itemsize > 2 for tensor in tensors) else torch.float32


def term_differences(term: Term, wide: torch.dtype | None = None) -> Tensor:
    """Returns -sign(scale) * (plus - minus) of the differences that stay, `0.0` (never `-0.0`) for the others.

    Args:
        term: the vector's elements.
        wide: dtype of the arithmetic; by default that of `compute_dtype`.
    """
    wide = wide or compute_dtype(term.plus, term.minus)
    plus, minus = term.plus.to(wide), term.minus.to(wide)
    difference = plus - minus if term.scale < 0 else minus - plus
    if term.threshold:
        difference = torch.where(difference.float().abs() < term.threshold, 0.0, difference)
    if term.kept is not None:
        difference = torch.where(term.kept, difference, 0.0)
    return difference


def _scaled(difference: Tensor, term: Term) -> Tensor:
    if term.scale == 0:
        return torch.zeros_like(difference)  # also where the difference is not finite
    factor = abs(term.scale) * term.rescale
    return difference if factor == 1 else difference * factor


def _take_exact(merged: Tensor, target: Tensor, term: Term, others: Sequence[Tensor]) -> Tensor:
    """Returns `merged` with `plus` where `target` is `minus` and the other vectors change nothing."""
    plus = term.plus.to(merged.dtype)
    if others or term.minus.dtype != target.dtype:
        wide = compute_dtype(target, term.minus)
        exact = _same_bits(target.to(wide), term.minus.to(wide))
        for change in others:
            exact &= change == 0
        return torch.where(exact, plus, merged)
    # the same with masks of -1 and 0: comparing into the own integer type is vectorised, into bool it is not
    bits = BITS[target.dtype.itemsize]
    mask = torch.eq(target.view(bits), term.minus.view(bits), out=torch.empty_like(target, dtype=bits)).neg_()
    out = merged.view(bits)
    out ^= (out ^ plus.view(bits)) & mask
    return merged


def _same_bits(one: Tensor, other: Tensor) -> Tensor:
    return one.view(BITS[one.dtype.itemsize]) == other.view(BITS[other.dtype.itemsize])
