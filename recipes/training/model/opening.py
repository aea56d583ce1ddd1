"""A model to be used: a Hugging Face directory, or a checkpoint of a training run as it lies there."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf

from configs.loader import ConfigError
from data_prep.dialogue.chat_template import stored_templates
from data_prep.dialogue.named_templates import OWN
from data_prep.hf_directory import ModelDirectory
from recipes.training.checkpoints.folder import STATE, latest_checkpoint, read_state
from recipes.training.export import files
from recipes.training.model import weights
from recipes.training.model.decoder import Architecture, Decoder, build_model, restore_rope, stated_architecture


@dataclass(frozen=True)
class ModelSource:
    """A model that is found and whose weights are not read yet."""

    path: Path
    """The Hugging Face directory, or the checkpoint."""
    architecture: Architecture
    tokenizer: Path
    """Directory of its tokenizer."""
    chat_template: str | None
    """Name for `open_template`; None: it has none."""
    trained: DictConfig | None = None
    """Configuration of the run that wrote the checkpoint."""


def find_model(path: Path, tokenizer: str | None = None) -> ModelSource:
    """Looks at a model without reading its weights.

    Args:
        path: Hugging Face directory, a run folder (its newest checkpoint is meant), or one of its checkpoints.
        tokenizer: directory of the tokenizer of a run that started from no weights.

    Raises:
        ConfigError: it is none of these, or the tokenizer is not known.
        CheckpointError: the checkpoint is not complete.
    """
    if (path / STATE).is_file():
        return find_checkpoint(path, path.parents[1], tokenizer)
    if (path / "config.yaml").is_file() and (newest := latest_checkpoint(path / "checkpoints")):
        return find_checkpoint(newest, path, tokenizer)
    directory = ModelDirectory.open(path)
    shape = Architecture.from_hf(directory.config, directory.path / "config.json")
    return ModelSource(directory.path, shape, directory.path, _own_template(directory.path))


def find_checkpoint(path: Path, run: Path, tokenizer: str | None) -> ModelSource:
    """Looks at a checkpoint of a run; see `find_model`."""
    read_state(path)
    if not (run / "config.yaml").is_file():
        raise ConfigError(run, [f"has no config.yaml; the run folder of {path} is expected there; leave it in place"])
    trained = cast(DictConfig, OmegaConf.load(run / "config.yaml"))
    if (place := tokenizer or trained.weights) is None:
        raise ConfigError(run, ["started from no weights; name the tokenizer's directory as tokenizer=..."])
    stated = trained.get("chat_template")
    template = stated if stated and stated != OWN else _own_template(Path(place))
    shape = stated_architecture(trained.weights, None if trained.weights else trained.model)
    return ModelSource(path, shape, Path(place), template, trained)


def open_model(source: ModelSource, device: torch.device, dtype: torch.dtype) -> Decoder:
    """Loads a model; memory beside it is that of one tensor.

    Args:
        source: as `find_model` returns it.
        device: of the model.
        dtype: of its matrices; norms and rotary caches stay in fp32.

    Raises:
        ConfigError: a tensor is missing or has another shape, or a run's adapters belong to other weights.
        CheckpointError: the checkpoint is damaged.
    """
    model = model_to_fill(source.architecture, device, dtype)
    if source.trained is None:
        weights.load(model, ModelDirectory.open(source.path), source.architecture)
        return model
    files.check_base(source.trained, read_state(source.path))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    read = partial(files.read_parameter, source.path)
    reader = files.model_reader(source.trained, source.architecture, read, shapes)
    for name, parameter in model.named_parameters():
        parameter.copy_(reader(name))
    return model


def model_to_fill(architecture: Architecture, device: torch.device, dtype: torch.dtype) -> Decoder:
    """Returns a decoder for inference whose parameters have no values yet.

    Args:
        architecture: its shape.
        device: of the parameters.
        dtype: of the matrices. Norms stay in fp32, in which they compute, and rotary caches too.
    """
    with torch.device("meta"):
        model = build_model(architecture).requires_grad_(False).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype if parameter.dim() > 1 else torch.float32)
    model.to_empty(device=device)
    restore_rope(model, device)
    return model


def _own_template(folder: Path) -> str | None:
    return OWN if "default" in stored_templates(folder) else None
