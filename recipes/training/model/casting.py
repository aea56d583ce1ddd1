"""One GPU without FSDP: layers that compute in bf16 from fp32 weights, and gradients that add up in fp32.

FSDP2 on a single rank copies every weight twice a step for nothing. What it does beside that is done here: the
results are the same to rounding, so that a run may go on at any world size.
"""

import torch
import torch.nn.functional as F
from torch import nn


class CastLinear(nn.Linear):
    """Computes in the dtype of its input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns (..., out_features), in the dtype of `input`."""
        return F.linear(input, self.weight.to(input.dtype))


class CastEmbedding(nn.Embedding):
    """Returns bf16, whatever it stores."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns (..., embedding_dim), bf16."""
        return super().forward(input).bfloat16()


def cast_in_forward(model: nn.Module) -> None:
    """Makes the matrices and embeddings of a model, which store fp32, compute in bf16; in place, names unchanged.

    The scales of the norms stay as they are stored: their layer computes in fp32.
    """
    kinds: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: CastLinear, nn.Embedding: CastEmbedding}
    for module in model.modules():
        if type(module) in kinds:
            module.__class__ = kinds[type(module)]


class GradientSums:
    """Adds up the gradients of bf16 parameters over micro-batches in fp32, and rounds once, at the last one."""

    def __init__(self, model: nn.Module) -> None:
        self._sums: dict[nn.Parameter, torch.Tensor] = {}
        self.is_last = True
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dtype != torch.float32:
                parameter.register_post_accumulate_grad_hook(self._add)

    def _add(self, parameter: torch.Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        total = self._sums.pop(parameter, None)
        if total is not None:
            gradient = total.add_(gradient)
        if self.is_last:
            parameter.grad = gradient.to(parameter.dtype)
        else:
            self._sums[parameter] = gradient.float()
