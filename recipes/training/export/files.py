"""The weights of a finished run as files: the whole model, or its adapters alone; both are read back."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from configs.loader import ConfigError
from data_prep.hf_directory import ModelDirectory
from recipes.training.checkpoints.checkpoint import load_tensors
from recipes.training.model import weights
from recipes.training.model.adapter_files import fingerprint, merged, parameter_shapes, write_peft
from recipes.training.model.decoder import Architecture, build_model
from recipes.training.model.freezing import EMBEDDINGS, keeps_base

Read = Callable[[str], torch.Tensor]


def read_parameter(checkpoint: Path, name: str, shape: torch.Size) -> torch.Tensor:
    """Returns a parameter of the checkpoint, whole, fp32."""
    tensor = torch.empty(shape)
    load_tensors(checkpoint, {"model": {name: tensor}}, alone=True)
    return tensor


def model_shapes(architecture: Architecture) -> dict[str, torch.Size]:
    """Returns the shapes of the model's parameters by their torchtune names."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in build_model(architecture).named_parameters()}


def write_model(
    folder: Path, read: Read, shapes: Mapping[str, torch.Size], architecture: Architecture, dtype: str
) -> None:
    """Writes a model as safetensors, then reads it back and compares bit for bit; both hold one tensor at a time.

    Args:
        folder: the model directory, with its config.json.
        read: returns the whole tensor of a torchtune parameter name.
        shapes: of the parameters.
        architecture: of the model.
        dtype: `F32` or `BF16`.

    Raises:
        ConfigError: a tensor read back differs, so the disk or the conversion is at fault.
    """
    weights.write_hf(folder, read, dict(shapes), architecture, dtype)
    written = ModelDirectory.open(folder)
    for name, shape in shapes.items():
        found = weights.read_matrix(name, shape, written, architecture)
        if not torch.equal(found, read(name).to(weights.TORCH_DTYPES[dtype])):
            raise ConfigError(folder, [f"tensor {name} read back differs from the checkpoint; export again"])


def model_reader(
    trained: DictConfig,
    architecture: Architecture,
    read: Callable[..., torch.Tensor],
    shapes: Mapping[str, torch.Size],
    as_trained: bool = True,
) -> Read:
    """Returns what reads a parameter of the model that a run has trained.

    Of a run with adapters, they are added; what did not learn is the weights' own, bit for bit.

    Args:
        trained: configuration of the run.
        architecture: of the model.
        read: returns a parameter of the checkpoint, by its name and shape.
        shapes: of the model's parameters.
        as_trained: whether a base that was quantised for the run is so here; otherwise it is as it lies on disk.
    """
    if not keeps_base(trained):
        return lambda name: read(name, shapes[name])
    base = ModelDirectory.open(trained.weights)
    if trained.get("adapter") is None:
        return lambda name: (
            read(name, shapes[name])
            if name in EMBEDDINGS
            else weights.read_matrix(name, shapes[name], base, architecture)
        )
    adapter = trained.adapter if as_trained else OmegaConf.merge(trained.adapter, {"quantize_base": None})
    _, learnt = parameter_shapes(architecture, adapter)
    dtype = torch.bfloat16 if trained.precision == "bf16" else torch.float32
    return merged(base, architecture, adapter, dtype, lambda name: read(name, learnt[name]))


def write_adapters(
    folder: Path, trained: DictConfig, architecture: Architecture, read: Callable[..., torch.Tensor], base: str
) -> None:
    """Writes what a run with adapters has learnt in PEFT's format; arguments as of `model_reader` and `write_peft`."""
    _, learnt = parameter_shapes(architecture, trained.adapter)
    tensors = {name: read(name, shape) for name, shape in learnt.items()}
    write_peft(folder, tensors, architecture, trained.adapter, base)


def check_base(trained: DictConfig, state: Mapping[str, Any]) -> None:
    """Checks that the weights that a run left as they are, wholly or in part, are still those.

    Raises:
        ConfigError: they were changed since.
    """
    wanted = state.get("identity", {}).get("base")  # None: it trained the whole model
    if wanted and fingerprint(ModelDirectory.open(trained.weights)) != wanted:
        problem = (
            f"{trained.weights} holds other tensors than when the run trained; what it learnt fits to those alone; "
            "restore the weights"
        )
        raise ConfigError("weights", [problem])
