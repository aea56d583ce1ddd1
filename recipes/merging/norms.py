"""How large a vector is beside the model it is added to: for every tensor, and for the rows of special tokens."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from data_prep.hf_directory import ModelDirectory
from recipes.merging.blocks import DTYPES
from recipes.merging.names import EMBEDDINGS, HEAD
from recipes.merging.plan import MergePlan
from recipes.merging.vocabulary import ABSENT, special_ids

LARGEST_SHOWN = 10


def tensor_norms(plan: MergePlan, shards: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Returns the Frobenius norms of every tensor and of all together.

    Of each: `target`; `difference`, a plus - minus for every vector after pruning; `change`, what was added of all
    vectors; and `ratio`, the change beside the target (None for a target of zeros).

    Args:
        plan: of the merge.
        shards: what `merge_tensors` returns of every shard.
    """
    squares = {name: sums for shard in shards for name, sums in shard["squares"].items()}
    tensors = {}
    for name, tensor in plan.tensors.items():
        if tensor.sources:
            scales = [source.scale for source in tensor.sources]
            tensors[name] = {"scale": scales, **_norms(*squares[name])}
    count = len(plan.vectors)
    sums = [squares[name] for name in tensors]
    total = [math.fsum(one[0] for one in sums), math.fsum(one[1] for one in sums)]
    differences = [math.fsum(one[2][number] for one in sums) for number in range(count)]
    return {"all": _norms(total[0], total[1], differences), "tensors": tensors}


def special_rows(plan: MergePlan, folder: Path) -> list[dict[str, Any]]:
    """Returns the norms of the special tokens' rows in embedding and head.

    Rows that no training has touched, as most of Llama-3's reserved ones, show as such: their difference is about 0.

    Args:
        plan: of the merge.
        folder: with the finished shards.
    """
    merged = ModelDirectory.open(folder)
    ids = sorted(special_ids(plan.target.model.path).items(), key=lambda item: item[1])
    return [
        {
            "token": token,
            "id": id_,
            "tensor": entry.name,
            "target": float(_row(plan.target.model, entry.name, id_).norm()),
            "difference": _row_differences(plan, entry.name, id_),
            "merged": float(_row(merged, entry.name, id_).norm()),
        }
        for name in (EMBEDDINGS, HEAD)
        if (entry := plan.target.tensors.get(name)) is not None
        for token, id_ in ids
        if id_ < entry.shape[0]
    ]


def largest_table(norms: dict[str, Any], count: int = LARGEST_SHOWN) -> str:
    """Returns the tensors that change most beside their size, as a Markdown table."""
    tensors = [(name, one) for name, one in norms["tensors"].items() if one["ratio"] is not None]
    largest = sorted(tensors, key=lambda item: (-item[1]["ratio"], item[0]))[:count]
    lines = ["| tensor | scale | change | target | ratio |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {', '.join(f'{scale:g}' for scale in one['scale'])} | {one['change']:.4g} | {one['target']:.4g} "
        f"| {one['ratio']:.2%} |"
        for name, one in largest
    ]
    return "\n".join(lines)


def _norms(target: float, change: float, differences: list[float]) -> dict[str, Any]:
    return {
        "difference": [math.sqrt(one) for one in differences],
        "change": math.sqrt(change),
        "target": math.sqrt(target),
        "ratio": math.sqrt(change / target) if target else None,
    }


def _row_differences(plan: MergePlan, name: str, row: int) -> list[float | None]:
    """Returns the norm of plus - minus in a row of the target, for every vector; None where the row gets nothing."""
    found: list[float | None] = []
    for source, (plus, minus) in zip(plan.tensors[name].sources, plan.vectors, strict=False):  # excluded: no sources
        rows = (row, row) if source.rows is None else (int(source.rows[0][row]), int(source.rows[1][row]))
        if ABSENT in rows:
            found.append(None)
        else:
            here, there = _row(plus.model, source.plus.name, rows[0]), _row(minus.model, source.minus.name, rows[1])
            found.append(float((here - there).norm()))
    return found


def _row(model: ModelDirectory, name: str, row: int) -> torch.Tensor:
    """Returns one row in float64."""
    entry = model.tensors[name]
    size = entry.num_bytes // entry.shape[0]
    data = model.read(name)[row * size : (row + 1) * size]
    return torch.from_numpy(data.copy()).view(DTYPES[entry.dtype]).double()
