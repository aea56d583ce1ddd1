"""Matrix products in float8, through torchao; not yet tried on a GPU."""

from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torchao.float8 import Float8LinearConfig, convert_to_float8_training

RECIPES = ("tensorwise", "rowwise")
"""One scale a tensor, the fastest; or one a row, nearer to bf16."""
ALIGNMENT = 16
"""Rows and columns of a float8 matrix are multiples of this."""


def float8_problems(cfg: DictConfig, device: str) -> list[str]:
    """Returns why a run cannot compute in float8.

    Args:
        cfg: `TrainSettings`.
        device: `cpu` or `cuda`.
    """
    recipe = cfg.float8
    if recipe is None:
        return []
    if recipe not in RECIPES:
        return [f"float8: {recipe!r} is not known; one of {', '.join(RECIPES)}, or null"]
    problems = []
    if device != "cuda":
        problems.append(f"float8: {recipe} on device={device}; it needs an H100 or newer; set float8=null")
    elif torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9):
        name = torch.cuda.get_device_name()
        problems.append(f"float8: {recipe} on {name}; it has no float8 units, an H100 has; set float8=null")
    if not cfg.compile:
        problems.append(f"float8: {recipe} without compile=true; scaling alone would cost more than it saves; set it")
    if cfg.precision != "bf16":
        problems.append(f"float8: {recipe} with precision={cfg.precision}; what is not float8 is bf16; set it to bf16")
    return problems


def use_float8(layers: nn.ModuleList, recipe: str, **options: Any) -> None:
    """Makes the matrices of the layers compute in float8, in place; parameters keep names, dtype and values.

    The embeddings and the output layer, which the loss is most sensitive to, stay as they are.

    Args:
        layers: of the decoder.
        recipe: one of `RECIPES`.
        options: further fields of torchao's `Float8LinearConfig`.
    """
    config = replace(Float8LinearConfig.from_recipe_name(recipe), **options)

    def fits(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and not (module.in_features % ALIGNMENT or module.out_features % ALIGNMENT)

    convert_to_float8_training(layers, config=config, module_filter_fn=fits)
