"""The keys of a training run, shared by CPT and SFT, with their units."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import MISSING, DictConfig, OmegaConf

from configs.loader import COMPONENT, ConfigError, existing_path, one_of, positive
from recipes.training.checkpoints.saving import saving_problems
from recipes.training.control.limits import LimitSettings, limit_problems
from recipes.training.data.mixture import read_mixture
from recipes.training.model.activations import MODES, memory_budget
from recipes.training.model.adapters import AdapterSettings, adapter_problems
from recipes.training.model.attention import BACKENDS, choose_backend
from recipes.training.model.compiling import cuda_graph_problems
from recipes.training.model.decoder import Architecture, stated_architecture
from recipes.training.model.float8 import float8_problems
from recipes.training.model.freezing import trainable_problems
from recipes.training.model.layout import LayoutSettings, layout_problems, world_problems
from recipes.training.model.tensor_parallel import tensor_parallel_problems
from recipes.training.monitoring.profiling import ProfileSettings, profile_problems
from recipes.training.monitoring.tracking import tracking_problems
from recipes.training.monitoring.validation import ValidationSettings, validation_problems
from recipes.training.optimization.guard import GuardSettings
from recipes.training.optimization.optimizer import has_compiler, optimizer_problems, storage_dtype
from recipes.training.optimization.schedule import SCHEDULES
from recipes.training.planning.estimate import EstimateSettings, estimate_problems


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
    """Shape of a new model; beside `weights`, the shape that their config.json must state."""
    data: Any = MISSING
    """A path of token shards or chat examples, a list of paths or of {shards | chat | hub: path, weight: share, ...}, a
    mixture file (*.yaml) with stages, or its content as a mapping; see `recipes/training/data/mixture.py`."""
    plan: bool = field(default=False, metadata={"flag": True})
    """Print what the run would need and read, and end; also as --plan. Needs neither a GPU nor the weights."""
    estimate: EstimateSettings = field(default_factory=EstimateSettings)
    """What the plan is told for."""
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
    """`_component_` and its arguments; recipes.training.optimization.adamw.KahanAdamW stores the parameters in bf16."""
    adapter: AdapterSettings | None = None
    """LoRA, QLoRA or DoRA: small matrices learn and the model stays as it is; null: all of the model learns."""
    trainable: str = "all"
    """`all`; or `embeddings`: the token embeddings and the output layer learn and the layers stay as they are, to warm
    up the rows of new pieces. Gradients, optimizer state and checkpoints are of what learns alone."""
    embedding_lr: float | None = None
    """Learning rate of the token embeddings and the output layer; null: optimizer.lr."""
    schedule: str = "cosine"
    """`cosine`, or `warmup_stable_decay`."""
    warmup_steps: int = 0
    """The learning rate rises linearly over these."""
    decay_steps: int = 0
    """Last steps of the run, over which warmup_stable_decay lowers the learning rate."""
    min_lr_ratio: float = 0.1
    """Share of the learning rate that the schedule ends at."""
    schedule_start_step: int = 0
    """The schedule starts anew here: set it to the step a run ended at, and `steps` higher, to go on training."""
    clip_grad_norm: float = 1.0
    """Largest norm of the global gradient."""
    guard: GuardSettings = field(default_factory=GuardSettings)
    """When a step is skipped because its loss or gradient cannot be right."""
    z_loss: float = 0.0
    """Weight of log(sum of exp(logits))**2 beside the cross-entropy; 1e-4 is usual."""
    loss_chunk: int = 2048
    """Positions whose logits exist at once; 0: a micro-batch's all at once."""
    activation_checkpointing: str = "full"
    """`none`; `full`: layers are computed again; `selective`: what lies between matrix products and attention is; or,
    with compile=true, the share of activations that the compiler keeps: at 0.7 no product is computed again."""
    compile: bool = False
    """Whether the layers are compiled."""
    cuda_graphs: bool = False
    """Whether a GPU replays each compiled layer as a graph; one rank only. Not yet tried on a GPU."""
    attention: str = "auto"
    """`varlen`: one kernel for all documents (CUDA, bf16); `per_document`: one call a document; `mask`: dense; `auto`:
    the fastest of these, and for micro-batches whose rows are one document each a causal kernel, cuDNN's first."""
    float8: str | None = None
    """`tensorwise` or `rowwise`: the layers' matrix products in float8 (H100 or newer, compile=true)."""
    layout: LayoutSettings = field(default_factory=LayoutSettings)
    """How FSDP2 and tensor parallelism spread the model over the ranks."""
    validation: ValidationSettings | None = None
    """Held-out text that is scored during the run."""
    save_every_steps: int = 500
    """Steps between checkpoints; the last step is always saved."""
    save_every_minutes: float | None = None
    """Minutes, by rank 0's clock, after which a checkpoint is written even so; null: by steps only."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    keep_every_steps: int | None = None
    """Checkpoints of steps divisible by this are kept for ever; a multiple of save_every_steps."""
    ephemeral_every_steps: int | None = None
    """Steps between checkpoints that are deleted when the next one, of either kind, is complete; null: none."""
    async_checkpoints: bool = True
    """Whether steps go on while a checkpoint is written; it needs the rank's share of the state in CPU memory too."""
    limits: LimitSettings = field(default_factory=LimitSettings)
    """When the run ends itself before its job does, and when a phase counts as hung."""
    peak_tflops: float | None = None
    """Dense bf16 rate of one GPU, for the MFU; null: by the GPU's name, and no MFU where that is not known."""
    wandb: dict[str, Any] | None = None
    """Arguments of `wandb.init`, such as {project, entity, name, mode: offline}; null: no W&B."""
    profile: ProfileSettings | None = None
    """Steps that torch.profiler records."""


def check_settings(cfg: DictConfig) -> list[str]:
    """Returns the problems of a run's settings that one process can see."""
    problems = one_of(cfg, "device", ["auto", "cpu", "cuda"]) + one_of(cfg, "precision", ["bf16", "fp32"])
    problems += positive(
        cfg, "seq_len", "global_batch_tokens", "micro_batch", "steps",
        "clip_grad_norm", "embedding_lr", "guard.window_steps", "guard.spike_sigmas", "peak_tflops",
    )  # fmt: skip
    problems += estimate_problems(cfg.estimate) if cfg.plan else existing_path(cfg, "weights")
    if cfg.weights is None and cfg.model is None:
        problems.append("weights, model: neither is given; name the weights to start from, or a new model's shape")
    if cfg.seq_len > 0 and cfg.global_batch_tokens % cfg.seq_len:
        problems.append(
            f"global_batch_tokens: {cfg.global_batch_tokens} is no multiple of seq_len={cfg.seq_len}; "
            f"use {max(1, cfg.global_batch_tokens // cfg.seq_len) * cfg.seq_len}"
        )
    problems += saving_problems(cfg)
    problems += trainable_problems(cfg)
    problems += schedule_problems(cfg) + optimizer_problems(cfg) + compute_problems(cfg) + parallel_problems(cfg)
    problems += validation_problems(cfg) + tracking_problems(cfg) + profile_problems(cfg) + limit_problems(cfg)
    if cfg.plan:
        return problems  # what is wrong with the data, the plan tells below what can be told without them
    try:
        read_mixture(cfg.data, cfg.global_batch_tokens)
    except ConfigError as error:
        problems += error.problems
    return problems


def schedule_problems(cfg: DictConfig) -> list[str]:
    """Returns the problems of the learning rate's schedule."""
    problems = one_of(cfg, "schedule", SCHEDULES)
    if not 0 <= cfg.min_lr_ratio <= 1:
        problems.append(f"min_lr_ratio: {cfg.min_lr_ratio} is not between 0 and 1; set it within")
    problems += [
        f"{key}: {cfg[key]} is negative; set it to 0 or more"
        for key in ("warmup_steps", "decay_steps", "schedule_start_step")
        if cfg[key] < 0
    ]
    if (cfg.schedule == "warmup_stable_decay") != (cfg.decay_steps > 0):
        problems.append(
            f"decay_steps: {cfg.decay_steps} with schedule={cfg.schedule}; warmup_stable_decay needs it above 0 and "
            "cosine decays all the way; change one of the two"
        )
    left = cfg.steps - cfg.schedule_start_step
    if cfg.warmup_steps + cfg.decay_steps > left:
        problems.append(
            f"warmup_steps, decay_steps: {cfg.warmup_steps} + {cfg.decay_steps} are more than the {left} steps from "
            f"schedule_start_step={cfg.schedule_start_step} to steps={cfg.steps}; lower them, or raise steps"
        )
    return problems


def compute_problems(cfg: DictConfig) -> list[str]:
    """Returns the problems of how loss and layers are computed."""
    problems = [
        f"{key}: {OmegaConf.select(cfg, key)} is negative; set it to 0 or more"
        for key in ("z_loss", "loss_chunk", "guard.max_skips")
        if OmegaConf.select(cfg, key) < 0
    ]
    try:
        budget = memory_budget(cfg.activation_checkpointing)
    except ValueError as error:
        return [*problems, f"activation_checkpointing: {error}"]
    if budget is not None and not cfg.compile:
        problems.append(
            f"activation_checkpointing: a memory budget of {budget} without compile=true; only the compiler can keep "
            f"to one; set compile=true, or one of {', '.join(MODES)}"
        )
    if cfg.compile and not has_compiler():
        problems.append("compile: true, and no C++ compiler is found; install g++, or set compile=false")
    return problems


def parallel_problems(cfg: DictConfig) -> list[str]:
    """Returns the problems of how layers are computed on this device (`plan`: on a GPU) and spread over ranks."""
    is_on_cpu = cfg.device == "cpu" or not (cfg.plan or torch.cuda.is_available())
    device = "cpu" if is_on_cpu else "cuda"
    problems = one_of(cfg, "attention", BACKENDS) + float8_problems(cfg, device)
    try:
        choose_backend(cfg.attention, device, cfg.precision, cfg.compile)
    except ValueError as error:
        problems.append(f"attention: {error}")
    with suppress(ImportError):  # the loader has named it
        stored = storage_dtype(cfg.optimizer) if COMPONENT in cfg.optimizer else torch.float32
        problems += layout_problems(cfg.layout, stored) + adapter_problems(cfg, stored, known_shape(cfg))
        problems += cuda_graph_problems(cfg, device, stored)
    if cfg.layout.tensor_parallel > 1:
        if cfg.float8:
            problems.append(
                f"float8: {cfg.float8} with layout.tensor_parallel={cfg.layout.tensor_parallel}; only whole matrices "
                "are computed in float8; set float8=null, or layout.tensor_parallel=1"
            )
        if cfg.adapter is not None:
            problems.append(
                f"adapter: with layout.tensor_parallel={cfg.layout.tensor_parallel}; adapters learn beside whole "
                "matrices; set layout.tensor_parallel=1, or adapter=null"
            )
        if cfg.compile and cfg.activation_checkpointing == "full":
            problems.append(
                f"activation_checkpointing: full with compile=true and layout.tensor_parallel="
                f"{cfg.layout.tensor_parallel}; torch 2.13 cannot compile that; set it to 0, which keeps as little, or "
                "compile=false"
            )
        if cfg.model is not None:
            problems += tensor_parallel_problems(cfg.layout.tensor_parallel, cfg.model)
    return problems


def known_shape(cfg: DictConfig) -> Architecture | None:
    """Returns the shape of the run's model, None where it cannot be told: opening the weights then says why."""
    with suppress(ConfigError):
        return stated_architecture(cfg.weights, cfg.model)
    return None


def check_world(cfg: DictConfig, world_size: int) -> None:
    """Checks that the ranks can be laid out, and that the global batch divides over them.

    Raises:
        ConfigError: they cannot, or it does not; the message names world sizes that fit.
    """
    shared = cfg.layout.tensor_parallel
    problems = world_problems(cfg.layout, world_size)
    problems += tensor_parallel_problems(shared, stated_architecture(cfg.weights, cfg.model))
    if cfg.cuda_graphs and world_size > 1:
        problems.append(
            f"cuda_graphs: true with {world_size} ranks; a graph reads weights where they were, and FSDP gathers them "
            "elsewhere; set cuda_graphs=false, or start one rank"
        )
    if problems:
        raise ConfigError("layout", problems)
    sequences = cfg.global_batch_tokens // cfg.seq_len
    if sequences % (world_size // shared * cfg.micro_batch):
        fitting = [n * shared for n in range(1, sequences + 1) if sequences % (n * cfg.micro_batch) == 0]
        ranks = f"{world_size} ranks" if shared == 1 else f"{world_size // shared} groups of {shared} ranks"
        raise ConfigError(
            "global_batch_tokens",
            [
                f"{cfg.global_batch_tokens} tokens are {sequences} sequences of {cfg.seq_len}, not divisible by "
                f"{ranks} x micro_batch={cfg.micro_batch}; "
                f"start {' or '.join(map(str, fitting)) or 'fewer'} ranks, or change the batch"
            ],
        )
