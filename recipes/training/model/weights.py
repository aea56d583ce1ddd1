"""Weights between Hugging Face safetensors and the sharded model, each rank touching only its rows.

Hugging Face rotates halves where torchtune's rotary embedding rotates neighbours; the rows of q_proj and
k_proj are permuted between the two.
"""

import itertools
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torchtune.modules import TransformerDecoder

from configs.loader import ConfigError
from data_prep.hf_directory import ModelDirectory, TensorEntry, TensorWriter
from recipes.training.model.decoder import Architecture, plain_name

TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BLOCK_BYTES = 32 * 2**20
"""Of a tensor that are read at once: enough for a parallel file system, and little beside a shard of the model."""
_LAYER_NAMES = {
    "attn.q_proj.weight": "self_attn.q_proj.weight",
    "attn.k_proj.weight": "self_attn.k_proj.weight",
    "attn.v_proj.weight": "self_attn.v_proj.weight",
    "attn.output_proj.weight": "self_attn.o_proj.weight",
    "mlp.w1.weight": "mlp.gate_proj.weight",
    "mlp.w2.weight": "mlp.down_proj.weight",
    "mlp.w3.weight": "mlp.up_proj.weight",
    "sa_norm.scale": "input_layernorm.weight",
    "mlp_norm.scale": "post_attention_layernorm.weight",
}
_OUTER_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def hf_name(name: str) -> str:
    """Returns the Hugging Face name of a torchtune parameter."""
    name = plain_name(name)
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    _, index, rest = name.split(".", 2)
    return f"model.layers.{index}.{_LAYER_NAMES[rest]}"


def rotary_rows(name: str, num_rows: int, architecture: Architecture) -> np.ndarray | None:
    """Returns, for each row of torchtune's parameter, its row in Hugging Face's; None when they are the same.

    Source: the inverse of `_permute` in torchtune's `convert_weights.hf_to_tune`.
    """
    heads = {"q_proj": architecture.num_heads, "k_proj": architecture.num_kv_heads}
    count = next((n for part, n in heads.items() if f".{part}." in name), None)
    if count is None:
        return None
    head_dim = num_rows // count
    return np.arange(num_rows).reshape(count, 2, head_dim // 2).transpose(0, 2, 1).reshape(-1)


def load(model: nn.Module, directory: ModelDirectory, architecture: Architecture) -> None:
    """Fills the (possibly sharded) model from a Hugging Face directory.

    A rank reads the bytes of its own rows and no others, at most `BLOCK_BYTES` at a time, in the order of the files;
    beside the model it holds one such block, twice while rows are permuted.

    Raises:
        ConfigError: a tensor is missing or has another shape or dtype; all of them at once.
    """
    fill(dict(model.named_parameters()), directory, architecture)


def fill(parameters: Mapping[str, nn.Parameter], directory: ModelDirectory, architecture: Architecture) -> None:
    """Fills some parameters of the model as `load` does, given by their torchtune names.

    Raises:
        ConfigError: as of `load`.
    """
    check_tensors(parameters, directory)
    found = [(directory.tensors[hf_name(name)], name) for name in parameters]
    for entry, name in sorted(found, key=lambda pair: (pair[0].file, pair[0].start)):
        parameter = parameters[name]
        rows = rotary_rows(name, parameter.shape[0], architecture)
        with entry.file.open("rb", buffering=0) as stream:
            fill_rows(parameter, partial(_read_rows, stream.fileno(), entry, rows, own_columns(parameter)))


def initialise(model: TransformerDecoder, seed: int) -> None:
    """Draws the weights of a new model: normal with std 1/sqrt(fan-in), ones for norms; the same at any world size.

    Projections into the residual stream are scaled down by sqrt(2 * layers). At Llama-3-8B's width that is the usual
    0.016; the demo's model of width 192 reaches in 400 steps the loss that a std of 0.02 takes 600 for.

    Source: LeCun et al. 1998, Efficient BackProp, section 4.6; Radford et al. 2019 (GPT-2), section 2.3.
    """
    num_layers = len(model.layers)
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.dim() == 1:
            full = torch.ones(parameter.shape)
        else:
            into_residual = "output_proj" in name or ".w2." in name
            std = 1 / math.sqrt(parameter.shape[1] * (2 * num_layers if into_residual else 1))
            generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
            full = torch.empty(parameter.shape).normal_(std=std, generator=generator)[:, own_columns(parameter)]

        def rows(start: int, stop: int, full: torch.Tensor = full) -> torch.Tensor:
            return full[start:stop]

        fill_rows(parameter, rows)


def write_hf(
    folder: Path,
    read: Callable[[str], torch.Tensor],
    shapes: dict[str, torch.Size],
    architecture: Architecture,
    dtype: str,
) -> None:
    """Writes the tensors of a model as Hugging Face safetensors, one at a time.

    Args:
        folder: the model directory.
        read: returns the whole tensor of a torchtune parameter name, any float dtype.
        shapes: parameter names -> shapes, in the order of writing.
        architecture: says which rows are permuted.
        dtype: `F32` or `BF16`; the tensors are rounded once to it.
    """
    writer = TensorWriter(folder, [(hf_name(name), dtype, tuple(shape)) for name, shape in shapes.items()])
    for name, shape in shapes.items():
        tensor = read(name).to(TORCH_DTYPES[dtype])
        rows = rotary_rows(name, shape[0], architecture)
        if rows is not None:
            tensor = tensor[torch.from_numpy(np.argsort(rows))]
        writer.write(hf_name(name), tensor.contiguous().view(torch.uint8).numpy().reshape(-1))
    writer.finish()


def read_matrix(name: str, shape: torch.Size, directory: ModelDirectory, architecture: Architecture) -> torch.Tensor:
    """Returns the whole tensor of a torchtune parameter, of that shape, in the dtype of the file."""
    parameter = nn.Parameter(torch.empty(shape, dtype=TORCH_DTYPES[directory.tensors[hf_name(name)].dtype]))
    fill({name: parameter}, directory, architecture)
    return parameter.data


def check_tensors(parameters: Mapping[str, torch.Tensor], directory: ModelDirectory) -> None:
    """Checks that a directory holds tensors of these torchtune names and shapes.

    Raises:
        ConfigError: a tensor is missing or has another shape or dtype; all of them at once.
    """
    problems = []
    for name, parameter in parameters.items():
        entry = directory.tensors.get(hf_name(name))
        if entry is None:
            problems.append(f"tensor {hf_name(name)} is missing; download the model again")
        elif entry.shape != tuple(parameter.shape):
            problems.append(
                f"tensor {entry.name} has shape {list(entry.shape)}, config.json says {list(parameter.shape)}; "
                "the two files do not belong together"
            )
        elif entry.dtype not in TORCH_DTYPES:
            problems.append(f"tensor {entry.name} is {entry.dtype}; {', '.join(TORCH_DTYPES)} can be loaded")
    if problems:
        raise ConfigError(directory.path, problems)


def _read_rows(
    file: int, entry: TensorEntry, rows: np.ndarray | None, columns: slice, start: int, stop: int
) -> torch.Tensor:
    """Returns rows of a tensor, (stop - start, columns), in the dtype of the file.

    Args:
        file: descriptor of the open file.
        entry: the tensor.
        rows: for each of our rows its row in the file; None when they are the same.
        columns: that are wanted; without a start, all.
        start: of our rows.
        stop: of our rows.

    Raises:
        ConfigError: the file ends before the tensor does.
    """
    wanted = np.arange(start, stop) if rows is None else rows[start:stop]
    ascending = np.sort(wanted)
    row_bytes = entry.num_bytes // entry.shape[0]
    if columns.start is None:
        first, width, breaks = 0, row_bytes, [0, *(np.flatnonzero(np.diff(ascending) != 1) + 1).tolist(), len(wanted)]
    else:  # a part of each row: one read a row, as what lies between them is several times more
        bounds = [edge * row_bytes // entry.shape[1] for edge in (columns.start, columns.stop)]
        first, width, breaks = bounds[0], bounds[1] - bounds[0], list(range(len(wanted) + 1))
    block = np.empty((len(wanted), width), dtype=np.uint8)
    for begin, end in itertools.pairwise(breaks):
        offset = entry.start + int(ascending[begin]) * row_bytes + first
        _read_into(file, block[begin:end].data.cast("B"), offset, entry)
    if rows is not None:
        block = block[np.searchsorted(ascending, wanted)]
    return torch.from_numpy(block).view(TORCH_DTYPES[entry.dtype]).reshape(len(wanted), *(-1 for _ in entry.shape[1:]))


def _read_into(file: int, buffer: memoryview, offset: int, entry: TensorEntry) -> None:
    while buffer:
        count = os.preadv(file, [buffer], offset)
        if not count:
            problem = f"ends at byte {offset}, {entry.name} ends at {entry.stop}; copy the file again"
            raise ConfigError(entry.file, [problem])
        buffer, offset = buffer[count:], offset + count


def own_columns(parameter: nn.Parameter) -> slice:
    """Returns the columns of the whole matrix that this rank holds; `slice(None)` for all of them."""
    shape, offset = _own_part(parameter)
    if len(shape) < 2 or shape[1] == parameter.shape[1] or 0 in shape:
        return slice(None)
    return slice(offset[1], offset[1] + shape[1])


def fill_rows(parameter: nn.Parameter, read: Callable[[int, int], torch.Tensor]) -> None:
    """Copies rows `read(start, stop)` of the whole tensor, each with `own_columns`, into this rank's part of it.

    That is done a block at a time.
    """
    local, (shape, offset) = parameter.data, _own_part(parameter)
    if isinstance(parameter, DTensor):
        local = parameter.to_local().data
    if 0 in shape:
        return
    row_bytes = math.prod(shape[1:]) * 4  # at most, in a file
    step = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        local[start:stop].copy_(read(offset[0] + start, offset[0] + stop))


def _own_part(parameter: nn.Parameter) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the shape of this rank's part of a tensor, and where in the whole it begins."""
    if not isinstance(parameter, DTensor):
        return tuple(parameter.shape), (0,) * parameter.dim()
    return compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
