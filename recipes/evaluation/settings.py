"""The keys of an evaluation: what models are scored on, and how it is computed."""

from dataclasses import dataclass, field

import torch
from omegaconf import DictConfig

from configs.loader import existing_path, one_of, positive
from recipes.evaluation.candidate import Limits

DTYPES = ("auto", "bfloat16", "float32")


@dataclass
class ScoringSettings:
    """Texts, prompts and questions, and how they are computed."""

    documents: dict[str, str] = field(default_factory=dict)
    """Language -> folder of held-out documents, for bits per byte."""
    prompts: str | None = None
    """Open prompts, one {id, lang, messages} a line, for form, language and repetition of the answers."""
    questions: str | None = None
    """Questions, one {id, lang, messages, answers} a line, for exact match."""
    tasks: dict[str, str] = field(default_factory=dict)
    """Name in the table -> file of a small task of your own; `configs/evaluate/tasks/` has one of each kind."""
    seq_len: int = 512
    """Tokens a window of held-out text."""
    stride: int | None = None
    """Tokens between the starts of two windows; null: seq_len, so that they do not overlap. Half of it costs twice the
    time, and every token sees at least half a window before it."""
    max_new_tokens: int = 64
    """Longest answer."""
    batch: int = 32
    """Windows or prompts a rank computes at once."""
    dtype: str = "auto"
    """Of the computation: bfloat16, float32, or auto for bfloat16 on a GPU and float32 on a CPU."""
    tokenizer: str | None = None
    """Directory of the tokenizer, for checkpoints of a run that started from no weights."""
    guard: str = "en"
    """Language that must not be forgotten, of `documents`."""
    max_rise: float = 0.05
    """Rise of its bits per byte over the first model's, as a share, above which a model counts as forgetting."""
    device: str = "auto"
    """auto, cpu or cuda."""


def scoring_problems(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings."""
    problems = positive(cfg, "seq_len", "stride", "max_new_tokens", "batch") + one_of(cfg, "dtype", DTYPES)
    if cfg.stride is not None and cfg.stride > cfg.seq_len:
        problems.append(f"stride: {cfg.stride} is above seq_len={cfg.seq_len} and leaves tokens out; lower it")
    if cfg.max_rise < 0:
        problems.append(f"max_rise: {cfg.max_rise} is below 0; 0.05 allows 5 % more bits per byte; raise it")
    if not (cfg.documents or cfg.prompts or cfg.questions or cfg.tasks):
        problems.append("documents, prompts, questions, tasks: none is given; name what to score models on")
    named = [f"documents.{lang}" for lang in cfg.documents] + [f"tasks.{name}" for name in cfg.tasks]
    return problems + existing_path(cfg, "prompts", "questions", "tokenizer", *named)


def limits_of(cfg: DictConfig) -> Limits:
    """Returns how much is computed at once."""
    return Limits(cfg.seq_len, cfg.max_new_tokens, cfg.batch, cfg.stride)


def dtype_of(cfg: DictConfig, device: torch.device) -> torch.dtype:
    """Returns the dtype that models are computed in."""
    is_half = cfg.dtype == "bfloat16" or (cfg.dtype == "auto" and device.type == "cuda")
    return torch.bfloat16 if is_half else torch.float32
