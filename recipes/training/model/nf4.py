"""NF4: matrices that do not learn, stored in 4 bits a weight, and their product without keeping the unpacked matrix.

The numbers are those of torchao's `NF4Tensor`. It is not used itself: under FSDP2 each rank would centre the scales of
its own rows, so that a run would change with the world size, and its dispatch cannot be compiled. Here a matrix is
three tensors of integers, which FSDP2 shards, gathers and leaves alone like any other frozen parameter.

Source: Dettmers et al. 2023 (QLoRA), section 3: block-wise 4-bit NormalFloat, and its scales quantised once more.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

LEVELS = (
    -1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0,
    0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0,
)  # fmt: skip
"""What the 16 codes stand for, times the scale of their block; torchao's rounding of the paper's appendix E."""
BLOCK = 64
"""Neighbours of a row that share a scale."""
SCALES_BLOCK = 256
"""Scales that share a factor."""
CHUNK = 2**22
"""Weights packed or unpacked at once, where the compiler does not do it in one pass: little lies beside the result."""


def packed_shapes(rows: int, columns: int) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Returns shape and dtype of the three parts of a packed matrix, (rows, columns); `columns` divides by `BLOCK`.

    `weight` holds two codes a byte, `scales` one a block, `factors` the bits of fp32 numbers: a factor for each
    `SCALES_BLOCK` scales and, last, the mean of all. As integers they are never cast to the compute dtype.
    """
    num_factors = -(-rows * columns // (BLOCK * SCALES_BLOCK))
    return {
        "weight": (torch.Size([rows, columns // 2]), torch.uint8),
        "scales": (torch.Size([rows, columns // BLOCK]), torch.int8),
        "factors": (torch.Size([num_factors + 1]), torch.int32),
    }


@torch.no_grad()
def pack(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the parts of the matrix, see `packed_shapes`.

    Args:
        matrix: (rows, columns), any float dtype; computed in fp32, `CHUNK` weights at once.
    """
    rows, columns = matrix.shape
    step = max(1, CHUNK // columns)
    starts = range(0, rows, step)
    largest = torch.cat([matrix[i : i + step].unflatten(1, (-1, BLOCK)).abs().amax(2).float() for i in starts])
    scales, factors = _pack_scales(largest.flatten())
    codes = torch.cat([_codes(matrix[i : i + step].float(), largest[i : i + step]) for i in starts])
    return {"weight": codes, "scales": scales.view(rows, -1), "factors": factors}


def unpack(weight: torch.Tensor, scales: torch.Tensor, factors: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns the matrix, (rows, columns), of `dtype`, computed in fp32 and rounded once.

    Args:
        weight: (rows, columns / 2), uint8, the first of two neighbours in the upper four bits.
        scales: (rows, columns / BLOCK), int8.
        factors: as `packed_shapes` says, int32.
        dtype: of the result.
    """
    levels = torch.tensor(LEVELS, dtype=torch.float32, device=weight.device)
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)
    unpacked = _unpack_scales(scales, factors)
    if torch.compiler.is_compiling():  # into one kernel, without anything beside the result
        return _unpack_rows(weight, unpacked, pairs, dtype)
    rows, columns = weight.shape[0], weight.shape[1] * 2
    matrix = torch.empty(rows, columns, dtype=dtype, device=weight.device)
    step = max(1, CHUNK // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        matrix[part] = _unpack_rows(weight[part], unpacked[part], pairs, dtype)
    return matrix


def nf4_linear(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Returns the product of (..., columns) with a packed matrix, (..., rows), in the dtype of `x`.

    For the backward pass the packed matrix is kept and unpacked again.
    """
    product: torch.Tensor = _Nf4Linear.apply(x, weight, scales, factors)
    return product


class _Nf4Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*parts)
        weight, scales, factors = parts
        return F.linear(x, unpack(weight, scales, factors, x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        weight, scales, factors = ctx.saved_tensors
        return grads[0] @ unpack(weight, scales, factors, grads[0].dtype), None, None, None


def _pack_scales(largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns int8 scales and the bits of their factors and mean, of the largest magnitude of each block, (blocks,)."""
    mean = largest.mean()
    groups = math.ceil(len(largest) / SCALES_BLOCK)
    centred = F.pad(largest - mean, (0, groups * SCALES_BLOCK - len(largest))).view(groups, SCALES_BLOCK)
    widest = centred.abs().amax(1)
    factors = torch.where(widest > 0, 256 / (2 * widest), 1.0)
    scales = (centred * factors.unsqueeze(1)).round().clamp(-128, 127).to(torch.int8)
    return scales.flatten()[: len(largest)], torch.cat([factors, mean.view(1)]).view(torch.int32)


def _unpack_scales(scales: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    numbers = factors.view(torch.float32)
    each = numbers[:-1].repeat_interleave(SCALES_BLOCK)[: scales.numel()].view(scales.shape)
    return scales / each + numbers[-1]


def _codes(rows: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Returns the codes of the nearest levels, two a byte, (rows, columns / 2)."""
    levels = torch.tensor(LEVELS, dtype=torch.float32, device=rows.device)
    blocks = rows.unflatten(1, (-1, BLOCK)) / torch.where(largest > 0, largest, 1.0).unsqueeze(2)
    codes = torch.bucketize(blocks, (levels[1:] + levels[:-1]) / 2, out_int32=True).to(torch.uint8).flatten(1)
    return codes[:, ::2] << 4 | codes[:, 1::2]


def _unpack_rows(weight: torch.Tensor, scales: torch.Tensor, pairs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    values = pairs.index_select(0, weight.flatten().int()).view(*scales.shape, BLOCK)
    return (values * scales.unsqueeze(2)).to(dtype).flatten(1)
