"""The optimizer over fp32 master weights."""

from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from configs.loader import instantiate


def build_optimizer(node: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Instantiates `node._component_` over two groups: matrices, and norm scales without weight decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1]},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer = instantiate(node, [group for group in groups if group["params"]])
    return optimizer
