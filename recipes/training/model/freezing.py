"""What of a model learns: all of it, its embeddings and head alone, or adapters beside it."""

from typing import Any

import torch
from torch import nn

from recipes.training.model.adapters import add_adapters

TRAINABLE = ("all", "embeddings")
EMBEDDINGS = ("tok_embeddings.weight", "output.weight")
"""Parameters with a row for each token, by torchtune's names; a tied model has the first alone."""


def trainable_problems(cfg: Any) -> list[str]:
    """Returns why a run cannot train what its `trainable` says; `cfg` is `TrainSettings`."""
    if cfg.trainable not in TRAINABLE:
        return [f"trainable: {cfg.trainable!r} is not known; one of {', '.join(TRAINABLE)}"]
    if cfg.trainable == "all":
        return []
    problems = []
    if cfg.weights is None:
        problems.append(
            f"trainable: {cfg.trainable} without weights; what does not learn must come from a model; set weights"
        )
    refused = {
        "adapter": (cfg.adapter is not None, "null", "adapters learn in the layers, which stay as they are"),
        "float8": (cfg.float8 is not None, "null", "layers that stay as they are, are not computed in float8"),
        "estimate.dry_run_ranks": (cfg.estimate.dry_run_ranks != 0, "0", "torch's tracker wants gradients of all"),
    }
    for key, (is_set, remedy, reason) in refused.items():
        if is_set:
            problems.append(f"{key}: is set with trainable={cfg.trainable}; {reason}; set it to {remedy}")
    return problems


def keeps_base(cfg: Any) -> bool:
    """Whether a run of these settings leaves a part of its weights as it is: a checkpoint then lacks that part."""
    return cfg.get("adapter") is not None or cfg.get("trainable", "all") != "all"


def freeze(model: nn.Module, precision: str, trainable: str, adapter: Any) -> None:
    """Marks what learns of a decoder on the meta device, in place; names stay.

    Args:
        model: with `layers`, of torchtune's stock modules, stored in the dtype of what learns.
        precision: `fp32` or `bf16`, in which what does not learn is stored, as nothing small is ever added to it.
        trainable: one of `TRAINABLE`.
        adapter: `AdapterSettings`; they are added, and nothing else learns.
    """
    if adapter:
        add_adapters(model, adapter)
    elif trainable == "embeddings":
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        for name, parameter in model.named_parameters():
            if name not in EMBEDDINGS:
                parameter.requires_grad_(False)
                parameter.data = parameter.data.to(dtype)
