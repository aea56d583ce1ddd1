"""The keys of a training run, shared by CPT and SFT, with their units."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig

from configs.loader import ConfigError, existing_path, one_of, positive
from recipes.training.data import data_entries
from recipes.training.model import Architecture


@dataclass
class TrainSettings:
    """One run of the training loop."""

    output_dir: str = MISSING
    """Run folder: config.yaml, metrics.jsonl, checkpoints/, logs/."""
    seed: int = 0
    """Of the sample order and, without `weights`, of the initial weights."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: str = "bf16"
    """Dtype of the computation, bf16 or fp32; master weights, reductions and optimizer are fp32."""
    weights: str | None = None
    """Hugging Face directory to start from; without it `model` gives a new model's shape."""
    model: Architecture | None = None
    """Shape of a new model; excludes `weights`, whose config.json states it."""
    data: Any = MISSING
    """Token shards or chat examples: a path, a list of paths, or a list of {shards | chat: path, weight: share}."""
    seq_len: int = 8192
    """Tokens a packed sequence."""
    global_batch_tokens: int = 4_194_304
    """Tokens an optimizer step over all ranks; gradient accumulation follows from it."""
    micro_batch: int = 1
    """Sequences a rank computes at once."""
    steps: int = MISSING
    """Optimizer steps of the whole run, counted across restarts."""
    optimizer: dict[str, Any] = field(
        default_factory=lambda: {
            "_component_": "torch.optim.AdamW",
            "lr": 1.0e-5,
            "betas": [0.9, 0.95],
            "weight_decay": 0.1,
        }
    )
    """`_component_` and its arguments."""
    warmup_steps: int = 0
    """The learning rate rises linearly over these, then falls by a cosine."""
    min_lr_ratio: float = 0.1
    """Share of the learning rate that the cosine ends at."""
    clip_grad_norm: float = 1.0
    """Largest norm of the global gradient."""
    activation_checkpointing: bool = True
    """Whether each layer recomputes its activations in the backward pass."""
    save_every_steps: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""


def check_settings(cfg: DictConfig) -> list[str]:
    """Returns the problems of a run's settings that one process can see."""
    problems = one_of(cfg, "device", ["auto", "cpu", "cuda"]) + one_of(cfg, "precision", ["bf16", "fp32"])
    problems += positive(
        cfg, "seq_len", "global_batch_tokens", "micro_batch", "steps", "save_every_steps", "keep_checkpoints",
        "clip_grad_norm",
    )  # fmt: skip
    problems += existing_path(cfg, "weights")
    if (cfg.weights is None) == (cfg.model is None):
        problems.append("weights, model: give exactly one, the weights to start from or a new model's shape")
    if cfg.seq_len > 0 and cfg.global_batch_tokens % cfg.seq_len:
        problems.append(
            f"global_batch_tokens: {cfg.global_batch_tokens} is no multiple of seq_len={cfg.seq_len}; "
            f"use {max(1, cfg.global_batch_tokens // cfg.seq_len) * cfg.seq_len}"
        )
    if not 0 <= cfg.min_lr_ratio <= 1:
        problems.append(f"min_lr_ratio: {cfg.min_lr_ratio} is not between 0 and 1; set it within")
    if "_component_" not in cfg.optimizer:
        problems.append("optimizer: has no _component_; name the class, e.g. torch.optim.AdamW")
    try:
        data_entries(cfg.data)
    except ConfigError as error:
        problems += error.problems
    return problems


def check_world(cfg: DictConfig, world_size: int) -> None:
    """Checks that the global batch divides over the ranks.

    Raises:
        ConfigError: it does not; the message names world sizes that fit.
    """
    sequences = cfg.global_batch_tokens // cfg.seq_len
    if sequences % (world_size * cfg.micro_batch):
        fitting = [n for n in range(1, sequences + 1) if sequences % (n * cfg.micro_batch) == 0]
        raise ConfigError(
            "global_batch_tokens",
            [
                f"{cfg.global_batch_tokens} tokens are {sequences} sequences of {cfg.seq_len}, not divisible by "
                f"{world_size} ranks x micro_batch={cfg.micro_batch}; "
                f"start {' or '.join(map(str, fitting)) or 'fewer'} ranks, or change the batch"
            ],
        )
