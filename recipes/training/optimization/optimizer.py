"""The optimizer a run names, its parameter groups, and in which dtype its parameters are stored."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from configs.loader import COMPONENT, instantiate, resolve
from recipes.training.model.decoder import plain_name
from recipes.training.model.freezing import EMBEDDINGS
from recipes.training.optimization.adamw import KahanAdamW, hyperparameter_problems


def storage_dtype(node: DictConfig) -> torch.dtype:
    """Returns the dtype in which the parameters of the optimizer `node` are stored and updated.

    It follows from the optimizer, so that bf16 parameters cannot meet one that would lose their small updates.
    """
    keeps_updates = resolve(node[COMPONENT]) is KahanAdamW or node.get("bf16_stochastic_round", False)
    return torch.bfloat16 if keeps_updates else torch.float32


def weights_dtype(cfg: DictConfig) -> torch.dtype:
    """Returns the dtype in which a run stores the model: of what learns by its optimizer, else of the computation."""
    if cfg.adapter:
        return torch.bfloat16 if cfg.precision == "bf16" else torch.float32
    return storage_dtype(cfg.optimizer)


def optimizer_layout(cfg: DictConfig) -> str:
    """Returns what two runs must share for one to load the other's optimizer state."""
    stored = str(storage_dtype(cfg.optimizer)).removeprefix("torch.")
    details = {"parameters": stored if stored != "float32" else None, "state_dtype": _state_dtype(cfg.optimizer)}
    details["embedding_lr"] = "own group" if cfg.embedding_lr is not None else None
    told = ", ".join(f"{key}={value}" for key, value in details.items() if value)
    return cfg.optimizer[COMPONENT] + (f" ({told})" if told else "")


def optimizer_problems(cfg: DictConfig) -> list[str]:
    """Returns the problems of a run's `optimizer`, with what stands beside it; for the check of the settings."""
    if COMPONENT not in cfg.optimizer:
        return ["optimizer: has no _component_; name the class, e.g. torch.optim.AdamW"]
    return [f"optimizer: {problem}" for problem in _problems(cfg)]


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Instantiates the optimizer over groups of the parameters that learn.

    They are the matrices; the norms' scales, without weight decay; and with `embedding_lr` a third one, of the token
    embeddings and the output layer.

    Args:
        cfg: `TrainSettings`, checked.
        model: its parameters are stored as `storage_dtype` says.
    """
    own = EMBEDDINGS if cfg.embedding_lr is not None else ()
    trained = [(plain_name(name), p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trained if p.dim() > 1 and name not in own]},
        {"params": [p for name, p in trained if p.dim() <= 1], "weight_decay": 0.0},
        {"params": [p for name, p in trained if name in own], "lr": cfg.embedding_lr},
    ]
    arguments = {}
    if resolve(cfg.optimizer[COMPONENT]) is torch.optim.AdamW and not cfg.optimizer.keys() & {"fused", "foreach"}:
        arguments["fused"] = True
    optimizer: torch.optim.Optimizer = instantiate(
        cfg.optimizer, [group for group in groups if group["params"]], **arguments
    )
    return optimizer


def peak_learning_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """Returns the learning rate of each group as configured; call it before the first step."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Returns each group's settings; loading a state overwrites them with the saved ones."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def set_learning_rates(optimizer: torch.optim.Optimizer, peaks: list[float], factor: float) -> None:
    """Sets each group's learning rate to its peak times `factor`."""
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        if isinstance(group["lr"], torch.Tensor):  # torchao's kernels read it from its memory
            group["lr"].fill_(peak * factor)
        else:
            group["lr"] = peak * factor


def _state_dtype(node: DictConfig) -> str | None:
    return node.get("state_dtype", "bf16") if resolve(node[COMPONENT]) is KahanAdamW else None


def _problems(cfg: DictConfig) -> Iterator[str]:
    node = cfg.optimizer
    try:
        kind = resolve(node[COMPONENT])
    except ImportError:
        return  # the loader has named it
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        yield f"{node[COMPONENT]} is no optimizer; a subclass of torch.optim.Optimizer is expected; name one"
        return
    if cfg.precision == "fp32" and storage_dtype(node) == torch.bfloat16:
        yield (
            f"{node[COMPONENT]} stores the parameters in bf16 with precision=fp32; fp32 computation needs fp32 "
            "parameters; set precision=bf16, or use torch.optim.AdamW"
        )
    if kind is KahanAdamW:
        given = {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.01, "state_dtype": "bf16"}
        given |= {key: value for key, value in OmegaConf.to_container(node).items() if key in given}  # type: ignore[union-attr]
        yield from hyperparameter_problems(**given)  # type: ignore[arg-type]
    is_compiled = kind.__module__.startswith("torchao.") or (kind is KahanAdamW and node.get("fused", False))
    if is_compiled and not has_compiler():
        yield f"{node[COMPONENT]} compiles its update; no C++ compiler is found; install g++, or use another one"


def has_compiler() -> bool:
    """Whether torch.compile finds the C++ compiler that it needs on a CPU, and for its launchers on a GPU."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None or shutil.which("clang++") is not None
