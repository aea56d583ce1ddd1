"""Merges the tensors of model directories as a stream: memory maps in, one tensor at a time out."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep.hf_directory import ModelDirectory, TensorWriter
from recipes.merging.chat_vector import add_chat_vector, compute_dtype
from recipes.merging.compatibility import MergeError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CHUNK_ELEMENTS = 1 << 20  # 4 MB in float32: the temporaries fit the cache and stay small whatever the tensor


def merge_tensors(
    models: tuple[ModelDirectory, ModelDirectory, ModelDirectory],
    folder: Path,
    scale_of: Callable[[str], float],
    device: torch.device,
    progress: Callable[[int], None],
) -> dict[str, dict[str, float]]:
    """Writes the safetensors shards of `target + scale * (plus - minus)` into `folder`.

    Memory holds one merged tensor and the chunks it is made from; the tensors keep the target's order
    and dtypes.

    Args:
        models: target, plus and minus, already found compatible.
        folder: where the shards go.
        scale_of: the scale for a tensor's name.
        device: where the arithmetic runs.
        progress: called with the number of tensors written so far.

    Returns:
        For every tensor its `scale` and the Frobenius norms `difference` (plus - minus) and `target`.

    Raises:
        MergeError: a merged value is not finite.
    """
    target = models[0]
    planned = [(entry.name, entry.dtype, entry.shape) for entry in target.tensors.values()]
    norms: dict[str, dict[str, float]] = {}
    with TensorWriter(folder, planned) as writer:
        for name in target.tensors:
            data, norms[name] = _merge_one(models, name, scale_of(name), device)
            writer.write(name, data)
            progress(len(norms))
        writer.finish()
    return norms


def total_norms(norms: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Returns the norms over all tensors together, and how large the difference is beside the target."""
    whole = {key: math.sqrt(sum(tensor[key] ** 2 for tensor in norms.values())) for key in ("difference", "target")}
    return {**whole, "ratio": whole["difference"] / whole["target"] if whole["target"] else None}


def _merge_one(
    models: tuple[ModelDirectory, ModelDirectory, ModelDirectory], name: str, scale: float, device: torch.device
) -> tuple[np.ndarray, dict[str, float]]:
    """Returns the bytes of one merged tensor, uint8 (num_bytes,), and its norms."""
    entry = models[0].tensors[name]
    maps = [model.read(name) for model in models]
    dtypes = [DTYPES[model.tensors[name].dtype] for model in models]
    merged = np.empty(entry.num_bytes, dtype=np.uint8)
    squares = {"difference": 0.0, "target": 0.0}
    for start in range(0, math.prod(entry.shape), CHUNK_ELEMENTS):
        target, plus, minus = (_chunk(data, dtype, start).to(device) for data, dtype in zip(maps, dtypes, strict=True))
        chunk = add_chat_vector(target, plus, minus, scale)
        if not bool(torch.isfinite(chunk).all()):
            paths = " + ".join([str(models[0].path), f"{scale} * ({models[1].path} - {models[2].path})"])
            raise MergeError(
                f"{name} of {paths} has values that are not finite in {entry.dtype}; "
                "finite ones are needed; check the inputs or lower the scale"
            )
        wide = compute_dtype(target, plus, minus)
        squares["difference"] += _sum_of_squares(plus.to(wide) - minus.to(wide))
        squares["target"] += _sum_of_squares(target)
        bytes_ = chunk.cpu().view(torch.uint8).numpy()
        offset = start * dtypes[0].itemsize
        merged[offset : offset + len(bytes_)] = bytes_
    return merged, {"scale": scale, **{key: math.sqrt(value) for key, value in squares.items()}}


def _sum_of_squares(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _chunk(data: np.ndarray, dtype: torch.dtype, start: int) -> Tensor:
    """Returns up to `CHUNK_ELEMENTS` elements from `start`, copied out of the read-only map; (elements,)."""
    size = dtype.itemsize
    return torch.from_numpy(np.array(data[start * size : (start + CHUNK_ELEMENTS) * size])).view(dtype)
