"""Adapters and files: their base as it is loaded, and what has been learnt in PEFT's format or added to the base."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from configs.loader import ConfigError
from data_prep.hf_directory import ModelDirectory
from data_prep.lineage import write_json
from recipes.training.model import weights
from recipes.training.model.adapters import (
    MODULES,
    AdaptedLinear,
    adapted_layers,
    add_adapters,
    initial_a,
    is_adapter,
    square_lengths,
)
from recipes.training.model.decoder import Architecture, build_model, plain_name
from recipes.training.model.nf4 import pack, unpack

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
_PEFT_NAMES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
SAMPLE_BYTES = 4096
Read = Callable[[str], torch.Tensor]


def load_base(model: nn.Module, directory: ModelDirectory, architecture: Architecture, seed: int) -> None:
    """Fills the (possibly sharded) model with its base, and its adapters with their first values.

    What is stored in NF4 is quantised matrix by matrix: beside the model, one matrix is held. Each rank reads such a
    matrix whole, as its scales are centred together, and keeps its part.

    Raises:
        ConfigError: as of `weights.load`.
    """
    layers = dict(adapted_layers(model))
    packed = {f"{name}.weight": layer for name, layer in layers.items() if layer.is_packed}
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters() if not is_adapter(name)}
    plain = {name: p for name, p in parameters.items() if f"{name.rpartition('.')[0]}.weight" not in packed}
    weights.check_tensors({n: p.data for n, p in plain.items()} | {n: _meta(p) for n, p in packed.items()}, directory)
    weights.fill(plain, directory, architecture)
    dtype = plain["tok_embeddings.weight"].dtype
    for name, layer in packed.items():
        _fill_packed(layer, name, directory, architecture, dtype)
    for index, layer in enumerate(layers.values()):
        if layer.lora_a is not None and layer.lora_b is not None:
            _fill(layer.lora_a, initial_a(layer.lora_a.shape, seed * 1_000_003 + index))
            _fill(layer.lora_b, torch.zeros(layer.lora_b.shape))
    for name, layer in layers.items():
        if layer.magnitude is not None and not layer.is_packed:
            matrix = weights.read_matrix(f"{name}.weight", _meta(layer).shape, directory, architecture)
            _fill(layer.magnitude, square_lengths(matrix.to(dtype)).sqrt())


def fingerprint(directory: ModelDirectory) -> str:
    """Returns a hash of the tensors' names, shapes and dtypes, and of a sample of each one's bytes.

    Three pieces of `SAMPLE_BYTES` tell two trained models apart; to read all of 8B would take minutes at each start.
    """
    digest = hashlib.sha256()
    for name, entry in sorted(directory.tensors.items()):
        digest.update(f"{name} {entry.dtype} {entry.shape}\n".encode())
        data, last = directory.read(name), max(0, entry.num_bytes - SAMPLE_BYTES)
        for start in (0, last // 2, last):
            digest.update(data[start : start + SAMPLE_BYTES].tobytes())
    return digest.hexdigest()


def parameter_shapes(architecture: Architecture, adapter: Any) -> tuple[dict[str, torch.Size], dict[str, torch.Size]]:
    """Returns the shapes of the base's parameters and of the adapters', by their torchtune names."""
    with torch.device("meta"):
        model = build_model(architecture)
    base = {name: parameter.shape for name, parameter in model.named_parameters()}
    add_adapters(model, adapter)
    return base, {name: p.shape for name, p in model.named_parameters() if is_adapter(name)}


def write_peft(
    folder: Path, learnt: Mapping[str, torch.Tensor], architecture: Architecture, adapter: Any, base: str
) -> None:
    """Writes `adapter_model.safetensors` and `adapter_config.json`, as `peft` loads them, and reads them back.

    Args:
        folder: exists.
        learnt: the adapters by their torchtune names, fp32.
        architecture: says which rows are permuted.
        adapter: `AdapterSettings`.
        base: what the adapters are to be loaded over: a directory or a name on the hub.

    Raises:
        ConfigError: what was read back differs, so the disk is at fault.
    """
    tensors = {}
    for name, tensor in learnt.items():
        module, _, part = name.rpartition(".")
        rows = weights.rotary_rows(name, len(tensor), architecture) if part != "lora_a" else None
        if rows is not None:
            tensor = tensor[torch.from_numpy(np.argsort(rows))]
        tensors[f"base_model.model.{_hf_module(module)}.{_PEFT_NAMES[part]}"] = tensor.contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    found = load_file(folder / WEIGHTS_FILE)
    if found.keys() != tensors.keys() or any(not torch.equal(found[name], t) for name, t in tensors.items()):
        raise ConfigError(folder / WEIGHTS_FILE, ["read back differs from the checkpoint; export again"])
    write_json(folder / CONFIG_FILE, peft_config(adapter, base))


def peft_config(adapter: Any, base: str) -> dict[str, Any]:
    """Returns the content of `adapter_config.json`."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": list(adapter.modules),
        "use_dora": adapter.kind == "dora",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "modules_to_save": None,
    }


def merged(
    directory: ModelDirectory, architecture: Architecture, adapter: Any, dtype: torch.dtype, read_learnt: Read
) -> Read:
    """Returns what reads a parameter of the base by its torchtune name, with what was learnt added; fp32, not rounded.

    The base is what the run computed with: of `dtype`, or unpacked from NF4.

    Args:
        directory: the base.
        architecture: its shape.
        adapter: `AdapterSettings`.
        dtype: of the run's computation.
        read_learnt: returns an adapter's parameter by its torchtune name, fp32.
    """
    base, learnt = parameter_shapes(architecture, adapter)
    matrices = {f".{name}.weight" for name in MODULES.values()}

    def read(name: str) -> torch.Tensor:
        matrix = weights.read_matrix(name, base[name], directory, architecture)
        is_packed = adapter.quantize_base and any(name.endswith(suffix) for suffix in matrices)
        matrix = (unpack(**pack(matrix), dtype=dtype) if is_packed else matrix.to(dtype)).float()
        module = name.removesuffix(".weight")
        if f"{module}.lora_a" not in learnt:
            return matrix
        a, b = read_learnt(f"{module}.lora_a"), read_learnt(f"{module}.lora_b")
        matrix = matrix.addmm(b, a, alpha=adapter.alpha / adapter.rank)
        if f"{module}.magnitude" in learnt:
            matrix *= (read_learnt(f"{module}.magnitude") / square_lengths(matrix).sqrt()).unsqueeze(1)
        return matrix

    return read


def _fill_packed(
    layer: AdaptedLinear, name: str, directory: ModelDirectory, architecture: Architecture, dtype: torch.dtype
) -> None:
    matrix = weights.read_matrix(name, _meta(layer).shape, directory, architecture).to(layer.weight.device)
    parts = pack(matrix)
    del matrix
    for part, tensor in parts.items():
        _fill(getattr(layer, part), tensor)
    if layer.magnitude is not None:
        _fill(layer.magnitude, square_lengths(unpack(**parts, dtype=dtype)).sqrt())


def _fill(parameter: nn.Parameter, whole: torch.Tensor) -> None:
    weights.fill_rows(parameter, lambda start, stop: whole[start:stop])


def _meta(layer: AdaptedLinear) -> torch.Tensor:
    return torch.empty(layer.out_features, layer.in_features, device="meta")


def _hf_module(module: str) -> str:
    return weights.hf_name(f"{module}.weight").removesuffix(".weight")
