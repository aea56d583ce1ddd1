"""AdamW whose parameters live in bf16 without losing small updates.

At the learning rates of continued pretraining an update is smaller than half the distance to the next bf16
number for most weights, and rounding would discard it. Here each parameter keeps the rounding error of its
last write in a second bf16 number, which the next update is added to first (Kahan summation).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import ParamsT

STATE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SLOWEST_BF16_BETA2 = 0.95
"""A change of the second moment below half a bf16 spacing is lost, and (1 - beta2) of it is a step's: at 0.95 it
stops within 8 % of the right value, at 0.99 up to 60 % off, at 0.999 it does not move at all."""
BUCKET_ELEMENTS = {"cuda": 2**25, "cpu": 2**19}
"""Elements updated together: bounds the fp32 temporaries, on a CPU to what its cache holds."""


class Columns(NamedTuple):
    """What a step reads and writes, tensor by tensor, each (elements,)."""

    parameters: list[torch.Tensor]
    gradients: list[torch.Tensor]
    means: list[torch.Tensor]
    squares: list[torch.Tensor]
    compensations: list[torch.Tensor]


class Scalars(NamedTuple):
    """What a step multiplies with, the bias corrections folded in; tensors of no dimension for the fused form."""

    beta1: Any
    beta2: Any
    step_size: Any
    root_correction: Any
    eps: Any
    decay: Any


class KahanAdamW(torch.optim.Optimizer):
    """AdamW over bf16 parameters with a bf16 compensation: 8 bytes a parameter with bf16 moments, 12 with fp32.

    The arithmetic of a step is fp32; parameter and compensation together carry 16 significant bits. Works on plain
    tensors and on DTensors, whose state is sharded as they are, and so saves and loads at any world size.

    Source: Loshchilov & Hutter 2019 (AdamW), algorithm 2; Zamirai et al. 2021, Revisiting BFloat16 Training,
    algorithm 1 (Kahan summation in the weight update).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        state_dtype: str = "bf16",
        fused: bool = False,
    ) -> None:
        """Takes parameters or groups of them, as torch's optimizers do.

        Args:
            params: bf16 parameters.
            lr: learning rate.
            betas: decay of the two moments a step.
            eps: added to the root of the second moment.
            weight_decay: share of a parameter that is taken off a step, times the learning rate.
            state_dtype: of the moments, `bf16` or `fp32`.
            fused: makes the update one kernel a parameter through torch.compile: a tenth of the memory traffic.

        Raises:
            ValueError: a parameter is not bf16, or a hyperparameter is outside its range.
        """
        if problems := list(hyperparameter_problems(lr, betas, eps, weight_decay, state_dtype)):
            raise ValueError("; ".join(problems))
        self._state_dtype = STATE_DTYPES[state_dtype]
        self._fused: Callable[..., None] | None = torch.compile(_update, dynamic=True) if fused else None
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group.

        Raises:
            ValueError: a parameter is not bf16.
        """
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.dtype != torch.bfloat16:
                raise ValueError(
                    f"parameter of shape {tuple(parameter.shape)} is {parameter.dtype}; Kahan compensation is for "
                    "torch.bfloat16; store the parameters in bf16, or use torch.optim.AdamW"
                )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            by_age: dict[float, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_age.setdefault(self._count_step(parameter), []).append(parameter)
            for age, members in by_age.items():
                rows = [self._flat(parameter) for parameter in members]
                scalars = _scalars(group, age)
                if self._fused:  # has no temporaries to bound; tensors, as another float would compile it anew
                    scalars = Scalars(*(torch.tensor(number, device=rows[0][0].device) for number in scalars))
                for bucket in [[row] for row in rows] if self._fused else _buckets(rows):
                    (self._fused or _update)(Columns(*map(list, zip(*bucket, strict=True))), scalars)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state; moments keep their dtype, which torch would turn into the parameters'."""
        super().load_state_dict(state_dict)
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(saved, parameters, strict=True):
            for name in ("exp_avg", "exp_avg_sq") if number in state_dict["state"] else ():
                moment = state_dict["state"][number][name]
                self.state[parameter][name] = moment.to(device=parameter.device, dtype=self._state_dtype)

    def _count_step(self, parameter: torch.Tensor) -> float:
        """Returns the number of this step for the parameter, from 1, making its state in the first."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=self._state_dtype)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=self._state_dtype)
            state["compensation"] = torch.zeros_like(parameter)
        state["step"] += 1
        return float(state["step"])

    def _flat(self, parameter: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns this rank's part of the parameter, gradient, moments and compensation, each (elements,)."""
        state = self.state[parameter]
        assert parameter.grad is not None
        tensors = (parameter.detach(), parameter.grad, state["exp_avg"], state["exp_avg_sq"], state["compensation"])
        return tuple(_local(tensor).view(-1) for tensor in tensors)


def hyperparameter_problems(
    lr: float, betas: Iterable[float], eps: float, weight_decay: float, state_dtype: str
) -> Iterator[str]:
    """Yields what is wrong with the arguments of `KahanAdamW`; for a configuration's check."""
    beta1, beta2 = betas
    if lr < 0 or eps < 0 or weight_decay < 0:
        yield f"lr {lr}, eps {eps}, weight_decay {weight_decay}; none may be negative; raise it to 0 or more"
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        yield f"betas {[beta1, beta2]}; both lie in [0, 1); lower them"
    if state_dtype not in STATE_DTYPES:
        yield f"state_dtype {state_dtype!r} is not known; one of {', '.join(STATE_DTYPES)}; set one of them"
    elif state_dtype == "bf16" and beta2 > SLOWEST_BF16_BETA2:
        yield (
            f"betas[1] is {beta2} with state_dtype=bf16; above {SLOWEST_BF16_BETA2} a bf16 second moment cannot decay; "
            "lower it to 0.95, or set state_dtype=fp32"
        )


def _scalars(group: dict[str, Any], age: float) -> Scalars:
    lr, (beta1, beta2) = float(group["lr"]), group["betas"]
    step_size, root_correction = lr / (1 - beta1**age), math.sqrt(1 - beta2**age)
    return Scalars(beta1, beta2, step_size, root_correction, group["eps"], lr * group["weight_decay"])


def _update(columns: Columns, scalars: Scalars) -> None:
    """Applies one AdamW step in fp32 and splits the result into parameter and compensation."""
    parameters, gradients, means, squares, compensations = columns
    gradients32 = [g.float() for g in gradients]
    means32 = [m.float() for m in means]  # fp32 moments come back as they are, and change in place
    torch._foreach_lerp_(means32, gradients32, 1 - scalars.beta1)
    squares32 = [s.float() for s in squares]
    torch._foreach_mul_(squares32, scalars.beta2)
    torch._foreach_mul_(gradients32, gradients32)
    torch._foreach_mul_(gradients32, 1 - scalars.beta2)
    torch._foreach_add_(squares32, gradients32)
    denominators = torch._foreach_sqrt(squares32)
    torch._foreach_div_(denominators, scalars.root_correction)
    torch._foreach_add_(denominators, scalars.eps)
    changes = torch._foreach_div(means32, denominators)
    torch._foreach_mul_(changes, scalars.step_size)
    weights = [p.float() for p in parameters]
    torch._foreach_add_(weights, [c.float() for c in compensations])
    torch._foreach_mul_(weights, 1 - scalars.decay)
    torch._foreach_sub_(weights, changes)
    rounded = [_rounded(w) for w in weights]
    torch._foreach_copy_(parameters, rounded)
    torch._foreach_sub_(weights, rounded)
    torch._foreach_copy_(compensations, weights)
    if means[0].dtype != torch.float32:
        torch._foreach_copy_(means, means32)
        torch._foreach_copy_(squares, squares32)


def _rounded(values: torch.Tensor) -> torch.Tensor:
    """Returns fp32 values rounded to the nearest bf16, still as fp32."""
    if not torch.compiler.is_compiling():
        return values.bfloat16().float()
    # the compiler keeps fp32 across such a pair of casts, and the compensation would be 0; so round by the bits
    bits = values.view(torch.int32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).view(torch.float32)


def _buckets(rows: Iterable[tuple[torch.Tensor, ...]]) -> Iterator[list[tuple[torch.Tensor, ...]]]:
    """Cuts and groups rows of equally long vectors, so that a bucket has at most `BUCKET_ELEMENTS` elements."""
    bucket: list[tuple[torch.Tensor, ...]] = []
    filled = 0
    for row in rows:
        limit = BUCKET_ELEMENTS[row[0].device.type]
        for pieces in zip(*(vector.split(limit) for vector in row), strict=True):
            if bucket and filled + pieces[0].numel() > limit:
                yield bucket
                bucket, filled = [], 0
            bucket.append(pieces)
            filled += pieces[0].numel()
    if bucket:
        yield bucket


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
