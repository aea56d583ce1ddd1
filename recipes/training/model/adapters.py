"""LoRA and DoRA: layers whose matrices stay as they are, in bf16 or NF4, beside small ones that learn."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from recipes.training.model.nf4 import BLOCK, nf4_linear, packed_shapes, unpack

KINDS = ("lora", "dora")
MODULES = {
    "q_proj": "attn.q_proj",
    "k_proj": "attn.k_proj",
    "v_proj": "attn.v_proj",
    "o_proj": "attn.output_proj",
    "gate_proj": "mlp.w1",
    "down_proj": "mlp.w2",
    "up_proj": "mlp.w3",
}
"""Hugging Face's names of a layer's matrices -> torchtune's."""
PARTS = ("lora_a", "lora_b", "magnitude")
"""The parameters that learn: (rank, columns), (rows, rank), and of DoRA (rows,)."""


@dataclass
class AdapterSettings:
    """Small matrices that learn in place of the model's, which stay as they are."""

    kind: str = "lora"
    """`lora`; or `dora`, which also learns the length of each row."""
    rank: int = 8
    """Of the product that is added to a matrix."""
    alpha: float = 16.0
    """The product counts alpha / rank times."""
    dropout: float = 0.0
    """Share of a matrix's inputs that its adapter does not see in a step."""
    modules: list[str] = field(default_factory=lambda: list(MODULES))
    """Matrices of every layer that get an adapter, by Hugging Face's names."""
    quantize_base: str | None = None
    """`nf4`: the layers' own matrices are stored in 4 bits (QLoRA); null: in the dtype of the computation."""


def adapter_problems(cfg: Any, stored: torch.dtype, shape: Any = None) -> list[str]:
    """Returns why a run cannot train adapters.

    Args:
        cfg: `TrainSettings`.
        stored: dtype in which the optimizer stores parameters.
        shape: `Architecture` of the model, None while it is not known.
    """
    adapter = cfg.adapter
    if adapter is None:
        return []
    problems = _setting_problems(adapter)
    if cfg.weights is None:
        problems.append("adapter: without weights; what does not learn must come from a model; set weights")
    if stored != torch.float32:
        problems.append(
            "adapter: with an optimizer that stores bf16; adapters are stored in fp32, they are small; "
            "use torch.optim.AdamW"
        )
    refused = {
        "embedding_lr": (cfg.embedding_lr, None, "embeddings do not learn then"),
        "float8": (cfg.float8, None, "adapters are not computed in float8"),
        "estimate.dry_run_ranks": (cfg.estimate.dry_run_ranks, 0, "torch's tracker wants gradients of all"),
    }
    for key, (value, needed, reason) in refused.items():
        if value != needed:
            remedy = "null" if needed is None else needed
            problems.append(f"{key}: {value} with an adapter; {reason}; set it to {remedy}")
    return problems or (_shape_problems(adapter, shape) if shape else [])


def _setting_problems(adapter: Any) -> list[str]:
    problems = []
    if adapter.kind not in KINDS:
        problems.append(f"adapter.kind: {adapter.kind!r} is not known; one of {', '.join(KINDS)}")
    if adapter.quantize_base not in (None, "nf4"):
        problems.append(f"adapter.quantize_base: {adapter.quantize_base!r} is not known; nf4, or null")
    if unknown := [name for name in adapter.modules if name not in MODULES]:
        problems.append(f"adapter.modules: {unknown[0]!r} is not known; some of {', '.join(MODULES)}")
    if not adapter.modules or len(set(adapter.modules)) < len(adapter.modules):
        told = "is empty" if not adapter.modules else f"names one twice: {', '.join(adapter.modules)}"
        problems.append(f"adapter.modules: {told}; name each that is to learn once")
    for key in ("rank", "alpha"):
        if not adapter[key] > 0:
            problems.append(f"adapter.{key}: {adapter[key]} is not positive; set it above 0")
    if not 0 <= adapter.dropout < 1:
        problems.append(f"adapter.dropout: {adapter.dropout} is no share from 0 to below 1; set it to 0.05, say")
    if adapter.dropout and adapter.kind == "dora":
        problems.append(
            f"adapter.dropout: {adapter.dropout} with kind=dora; it is there for lora alone; set it to 0, or kind=lora"
        )
    return problems


def _shape_problems(adapter: Any, shape: Any) -> list[str]:
    kv_width = shape.num_kv_heads * (shape.embed_dim // shape.num_heads)
    smallest = dict.fromkeys(MODULES, shape.embed_dim) | {"k_proj": kv_width, "v_proj": kv_width}
    name = min(adapter.modules, key=lambda name: smallest[name])
    problems = []
    if adapter.rank > smallest[name]:
        problems.append(
            f"adapter.rank: {adapter.rank} is more than the {smallest[name]} rows of {name}; a matrix has no higher "
            f"rank; set it to {smallest[name]} or less"
        )
    for columns in {shape.embed_dim, shape.intermediate_dim}:
        if adapter.quantize_base and columns % BLOCK:
            problems.append(
                f"adapter.quantize_base: {adapter.quantize_base} with rows of {columns} weights; they are quantised in "
                f"blocks of {BLOCK}; set it to null"
            )
    return problems


class AdaptedLinear(nn.Module):
    """Takes the place of a matrix: what it was stays, and what the adapter has learnt is added.

    With x (..., columns): y = W x + alpha / rank * B A x, and DoRA scales each row of that to the length `magnitude`,
    |W + alpha / rank * B A| taken as constant in the backward pass.

    Source: Hu et al. 2021 (LoRA), section 4.1; Liu et al. 2024 (DoRA), equations 5 and 11.
    """

    lora_a: nn.Parameter | None
    lora_b: nn.Parameter | None
    magnitude: nn.Parameter | None
    weight: nn.Parameter
    scales: nn.Parameter
    factors: nn.Parameter

    def __init__(self, stock: nn.Linear, adapter: Any, learns: bool) -> None:
        """Takes over a matrix on the meta device; the weight keeps its name.

        Args:
            stock: without bias.
            adapter: `AdapterSettings`.
            learns: whether it gets an adapter; otherwise it is only quantised.
        """
        super().__init__()
        rows, columns = stock.weight.shape
        self.in_features, self.out_features = columns, rows
        self.is_packed = adapter.quantize_base is not None
        parts: dict[str, torch.Tensor] = {"weight": stock.weight.data}
        if self.is_packed:
            shapes = packed_shapes(rows, columns).items()
            parts = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in shapes}
        for name, tensor in parts.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.scaling, self.dropout = adapter.alpha / adapter.rank, float(adapter.dropout)
        shapes_of_parts = ((adapter.rank, columns), (rows, adapter.rank), (rows,))
        for name, part_shape in zip(PARTS, shapes_of_parts, strict=True):
            exists = learns and (name != "magnitude" or adapter.kind == "dora")
            self.register_parameter(name, nn.Parameter(torch.empty(part_shape, device="meta")) if exists else None)

    def frozen(self, dtype: torch.dtype) -> torch.Tensor:
        """Returns the matrix that does not learn, (rows, columns), of `dtype`."""
        if self.is_packed:
            return unpack(self.weight, self.scales, self.factors, dtype)
        return self.weight.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (..., rows), in the dtype of `x`."""
        if self.is_packed:
            y = nf4_linear(x, self.weight, self.scales, self.factors)
        else:
            y = F.linear(x, self.weight.to(x.dtype))
        if self.lora_a is None or self.lora_b is None:
            return y
        a, b = self.lora_a.to(x.dtype), self.lora_b.to(x.dtype)
        # a validation, which computes no gradients, scores the model that will be exported
        drops = self.dropout > 0 and self.training and torch.is_grad_enabled()
        seen = F.dropout(x, self.dropout) if drops else x
        y = y + self.scaling * F.linear(F.linear(seen, a), b)
        if self.magnitude is None:
            return y
        with torch.no_grad():
            lengths = row_lengths(self.frozen(x.dtype), a, b, self.scaling)
        return y * (self.magnitude.float() / lengths).to(x.dtype)


def row_lengths(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """Returns the length of each row of weight + scaling * b @ a, (rows,), fp32, without forming that matrix.

    Args:
        weight: (rows, columns).
        a: (rank, columns), of the same dtype.
        b: (rows, rank), likewise.
        scaling: a number.
    """
    crossed = ((weight @ a.t()).float() * b.float()).sum(1)
    a, b = a.float(), b.float()
    squares = (F.linear(b, a @ a.t()) * b).sum(1)
    total = square_lengths(weight) + 2 * scaling * crossed + scaling**2 * squares
    return total.clamp(min=torch.finfo(torch.float32).tiny).sqrt()


def square_lengths(weight: torch.Tensor) -> torch.Tensor:
    """Returns the squared length of each row of (rows, columns), (rows,), fp32."""
    return torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).square()


def add_adapters(model: nn.Module, adapter: Any) -> None:
    """Freezes a decoder on the meta device and gives its layers the adapters, in place; names stay.

    Args:
        model: with `layers`, of torchtune's stock modules.
        adapter: `AdapterSettings`.
    """
    model.requires_grad_(False)
    chosen = {MODULES[name] for name in adapter.modules}
    for layer in model.layers:  # type: ignore[union-attr]
        for name in MODULES.values():
            if name in chosen or adapter.quantize_base:
                parent, child = name.split(".")
                owner = layer.get_submodule(parent)
                setattr(owner, child, AdaptedLinear(owner.get_submodule(child), adapter, name in chosen))


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """Yields the matrices that are quantised or have an adapter, with their torchtune names, in order."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            yield name.replace("_checkpoint_wrapped_module.", ""), module


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name learns in a run with adapters."""
    return name.rpartition(".")[2] in PARTS


def adapter_layout(adapter: Any) -> dict[str, Any] | None:
    """Returns what two runs must share for one to load the other's adapters; None without any."""
    if adapter is None:
        return None
    shared = {key: adapter[key] for key in ("kind", "rank", "alpha", "quantize_base")}
    return shared | {"modules": sorted(adapter.modules)}


def seed_dropout(adapter: Any, seed: int, step: int, rank: int) -> None:
    """Draws a step's dropout from its number and the rank, so that a resumed run draws what the straight one does."""
    if adapter is not None and adapter.dropout:
        torch.manual_seed((seed * 1_000_003 + step) * 65_537 + rank)


def initial_a(shape: Sequence[int], seed: int) -> torch.Tensor:
    """Returns the first values of a matrix A, (rank, columns), fp32: uniform, as a linear layer of torch has them.

    B starts at 0, so that the model starts as it was.

    Source: Kaiming initialisation with a = sqrt(5), as in the code of Hu et al. 2021.
    """
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(*shape).uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
