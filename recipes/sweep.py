"""Scores a chat vector at several scales, without writing a model: which scale chats and still knows its Korean?

    python -m recipes.sweep --config configs/sweep/demo.yaml [key=value ...]

Writes sweep.json (as a report's, with all answers), sweep.md and sweep.png to `output_dir`. Tensors are merged in
memory exactly as `recipes.chat_vector` would write them. A sweep that was interrupted keeps the scales it had scored.
"""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import MISSING, DictConfig, OmegaConf
from torch import nn
from tqdm import tqdm

from configs.entry import parse
from configs.loader import ConfigError, existing_path, positive
from data_prep.dialogue.chat_template import LLAMA3, ChatTemplate
from data_prep.lineage import sha256_file, sha256_json, sha256_path, source_files, write_json
from data_prep.tokens.tokenizer import load_tokenizer
from recipes.evaluation.candidate import Candidate, Limits, score_answers, score_text
from recipes.evaluation.sweep import read_prompts, write_results
from recipes.merging.chat_files import chat_settings, has_chat_template
from recipes.merging.in_memory import merged_tensors
from recipes.merging.plan import MergePlan, plan_merge
from recipes.merging.settings import MergeConfig, problems, scaled
from recipes.merging.tensors import fingerprint
from recipes.training.distributed import choose_device
from recipes.training.model import weights
from recipes.training.model.decoder import Architecture, build_model


@dataclass
class SweepConfig(MergeConfig):
    """A merge, the factors on its scales, and what the results are scored on."""

    output_dir: str = MISSING
    """Where sweep.json, sweep.md and sweep.png go."""
    scales: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75, 1.0, 1.25])
    """Factors on all scales of the merge, which keep their proportions; 0, the target, is always scored as well."""
    documents: dict[str, str] = field(default_factory=dict)
    """Language -> folder of held-out documents, for bits per byte."""
    prompts: str | None = None
    """Open prompts, one {id, lang, messages} a line, for form and language of the answers."""
    max_rise: float = 0.1
    """Largest rise of the bits per byte over the target's that a recommended scale may have; 0.1 is 10 %."""
    seq_len: int = 512
    """Tokens a window of held-out text."""
    max_new_tokens: int = 64
    """Longest answer."""
    batch: int = 32
    """Windows or prompts computed at once."""
    device: str = "auto"
    """Of the scoring: auto, cpu or cuda."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings."""
    found = problems(cfg) + existing_path(cfg, "prompts", *(f"documents.{lang}" for lang in cfg.documents))
    found += positive(cfg, "seq_len", "max_new_tokens", "batch")
    wrong = [scale for scale in cfg.scales if not (math.isfinite(scale) and scale > 0)]
    found += [f"scales: {scale} is no positive number; give those to be tried, as [0.5, 1.0]" for scale in wrong]
    found += [] if cfg.scales else ["scales: the list is empty; give those to be tried, as [0.5, 1.0]"]
    found += [] if cfg.max_rise >= 0 else [f"max_rise: {cfg.max_rise} is below 0; 0.1 allows 10 % more bits per byte"]
    if not (cfg.documents and cfg.prompts):
        found.append("documents, prompts: one is missing; a scale is chosen by both; set them")
    return found


def open_template(plan: MergePlan) -> ChatTemplate:
    """Returns the template the merged model would have; Llama-3's where no model has one."""
    tokenizer = load_tokenizer(chat_settings(plan)[0].path)
    source = plan.directories[plan.settings.chat_from].path
    return (
        ChatTemplate.from_directory(tokenizer, source) if has_chat_template(source) else ChatTemplate(tokenizer, LLAMA3)
    )


def score(
    cfg: DictConfig, plan: MergePlan, limits: Limits, prompts: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """Merges in memory, and returns the figures and the answers to the prompts."""
    template, model = open_template(plan), plan.target.model
    architecture = Architecture.from_hf(model.config, model.path / "config.json")
    decoder = build_model(architecture)
    fill(decoder, plan, architecture)
    candidate = Candidate(decoder.to(choose_device(cfg.device)).eval(), template.tokenizer, template)
    row: dict[str, Any] = score_text(candidate, limits, cfg.documents)
    figures, answers = score_answers(candidate, limits, prompts, [])
    return row | {key: value for key, value in figures.items() if value is not None}, answers


def fill(decoder: nn.Module, plan: MergePlan, architecture: Architecture) -> None:
    """Copies the merged tensors into the decoder, one at a time.

    Raises:
        ConfigError: a tensor of the decoder is not in the target.
    """
    names = {name: weights.hf_name(name) for name, _ in decoder.named_parameters()}
    if missing := sorted(names.values() - plan.tensors.keys()):
        raise ConfigError("target", [f"has no {missing[0]}; a plain Llama is scored; give a model that is one"])
    with merged_tensors(plan) as read, torch.no_grad():
        for name, parameter in decoder.named_parameters():
            tensor = read(names[name])
            rows = weights.rotary_rows(name, len(tensor), architecture)
            parameter.copy_(tensor if rows is None else tensor[torch.from_numpy(rows)])


def identity(cfg: DictConfig, plan: MergePlan) -> str:
    """Returns what rows of an earlier run must agree on to be kept."""
    data = {name: sha256_path(Path(path)) for name, path in {**cfg.documents, "prompts": cfg.prompts}.items()}
    code = [sha256_file(file) for file in source_files([Path(__file__)])]
    return sha256_json([fingerprint(plan), data, code, cfg.seq_len, cfg.max_new_tokens, cfg.device])


@parse(SweepConfig, check)
def main(cfg: DictConfig) -> None:
    """Scores a chat vector at several scales."""
    if os.environ.get("RANK", "0") != "0":
        return
    folder = Path(cfg.output_dir)
    settings = cast(SweepConfig, OmegaConf.to_object(cfg))
    plan = plan_merge(settings)
    model = plan.target.model
    most_tokens = Architecture.from_hf(model.config, model.path / "config.json").max_seq_len
    limits = Limits(cfg.seq_len, cfg.max_new_tokens, cfg.batch)
    prompts = read_prompts(Path(cfg.prompts), open_template(plan), limits, most_tokens)
    known, result = identity(cfg, plan), folder / "sweep.json"
    before = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    scored = before["scored"] if before.get("identity") == known else {}
    factors = [str(factor) for factor in [0.0, *sorted(set(cfg.scales))]]
    for factor in tqdm(factors, desc="sweep", unit="scale"):
        if factor not in scored:
            figures, answers = score(cfg, plan_merge(scaled(settings, float(factor))), limits, prompts)
            scored[factor] = {"figures": figures, "answers": answers}
            write_json(result, {"identity": known, "scored": scored})
    scored = {factor: scored[factor] for factor in factors}
    facts = {"identity": known, "settings": OmegaConf.to_container(cfg, resolve=True)}
    print(write_results(folder, scored, prompts, cfg.max_rise, facts), end="")


if __name__ == "__main__":
    main()
