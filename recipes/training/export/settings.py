"""The keys of an export, with their units."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig

from configs.loader import existing_path, one_of, positive
from data_prep.dialogue.named_templates import name_problems
from data_prep.lineage import MANIFEST
from data_prep.model_card import licence_of, name_problem
from recipes.training.checkpoints.chosen import choice_problems
from recipes.training.export.gate import GATES, PROMPTS, missing_packages

REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]{0,95}")
"""OWNER/NAME on the Hub."""


@dataclass
class GenerationSettings:
    """Defaults that transformers and vLLM sample with; a value that is null is left to them."""

    temperature: float | None = None
    """Above 0."""
    top_p: float | None = None
    """Share of the probability that is sampled from, above 0 to 1."""
    top_k: int | None = None
    """Tokens that are sampled from."""
    repetition_penalty: float | None = None
    """Divides the logits of tokens that came before; 1 changes nothing."""
    no_repeat_ngram_size: int | None = None
    """Tokens of a sequence that may not come twice."""
    max_new_tokens: int | None = None
    """Longest answer, in tokens."""


@dataclass
class HubSettings:
    """Where on the Hugging Face Hub the export goes; the token is that of `hf auth login`, or HF_TOKEN."""

    repo: str = MISSING
    """OWNER/NAME; created when it does not exist."""
    private: bool = True
    """Whether a repository that is created is private."""
    only: bool = False
    """Whether to push what output_dir holds already, and export nothing."""


@dataclass
class ExportConfig:
    """One run to one model directory."""

    output_dir: str = MISSING
    """Hugging Face directory to write."""
    run: str = MISSING
    """Run folder."""
    checkpoint: str = "newest"
    """Which of its complete checkpoints: newest; best, as recipes.evaluate_run found it; or the number of a step."""
    tokenizer: str | None = None
    """Directory with the tokenizer files; default: the weights the run started from."""
    chat_template: str = "keep"
    """`keep`: the one of the run's SFT, else what the tokenizer directory has; or a name, as `chat_template` of SFT."""
    dtype: str = "bf16"
    """Of the written weights: bf16 or fp32; adapters kept apart are fp32."""
    adapter: str = "merge"
    """Of a run with adapters: `merge` adds them to its base, a whole model; `keep` writes them alone, for PEFT."""
    adapter_base: str | None = None
    """What kept adapters say they belong to, such as a name on the hub; default: the weights the run started from."""
    generation: GenerationSettings | None = None
    """Sampling defaults of generation_config.json; null: greedy."""
    gate: str = "transformers"
    """`weights`: they are read back bit for bit; `transformers`: it, or PEFT, loads the directory too, and tokenizer,
    logits and the end of answers are compared. It holds the model once in memory, in `dtype`."""
    gate_prompts: list[str] = field(default_factory=lambda: list(PROMPTS))
    """Questions that an instruction-tuned model is asked, one turn each."""
    gate_max_new_tokens: int = 128
    """Tokens within which their answers must end."""
    gate_min_ended: float = 0.5
    """Share of the answers that must end, 0 to 1; some models run on now and then, one without its end token always."""
    device: str = "cpu"
    """Of the gate: cpu or cuda."""
    name: str | None = None
    """Of the model, on its card; default: that of hub.repo, else of output_dir."""
    base_model: str | None = None
    """Name on the Hub of what all began with, for the card; default: what the card of the weights says."""
    license: str | None = None
    """The Hub's identifier; default: that of the weights' card, or of Llama-3, 3.1 and 3.2 as their shape tells."""
    data_licenses: dict[str, str] = field(default_factory=dict)
    """Source of training text -> its licence, for the card; Wikipedia's is known."""
    reports: list[str] = field(default_factory=list)
    """report.json of recipes/evaluate.py and harness.json of recipes/harness.py, for the card."""
    hub: HubSettings | None = None
    """Push to the Hub when all is checked; null: do not."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings."""
    choices = {"dtype": ["bf16", "fp32"], "adapter": ["merge", "keep"], "gate": list(GATES)}
    choices["device"] = ["auto", "cpu", "cuda"]
    problems = [problem for key, values in choices.items() for problem in one_of(cfg, key, values)]
    if cfg.chat_template != "keep":
        problems += [f"chat_template: {problem}" for problem in name_problems(cfg.chat_template)]
    folder = Path(cfg.output_dir)
    if any(folder.glob("*")) and not is_export(folder):
        problems.append(f"output_dir: {folder} holds files that are no export; give an empty or absent folder")
    if not 0 <= cfg.gate_min_ended <= 1:
        problems.append(f"gate_min_ended: {cfg.gate_min_ended} is no share; 0 to 1 is expected; set it so")
    problems += choice_problems(cfg.checkpoint)
    problems += positive(cfg, "gate_max_new_tokens") + missing_packages(cfg.gate, cfg.adapter)
    problems += [
        f"reports: {one} does not exist; give an existing file" for one in cfg.reports if not Path(one).is_file()
    ]
    problems += _generation_problems(cfg) + (_hub_problems(cfg) if cfg.hub else [])
    return problems + existing_path(cfg, "run", "tokenizer")


def is_export(folder: Path) -> bool:
    """Whether an export wrote the folder, so that another may take its place."""
    manifest = folder / MANIFEST
    text = manifest.read_text(encoding="utf-8") if manifest.is_file() else ""
    return any(f'"kind": "{kind}"' in text for kind in ("model", "adapter"))


def generation_config(cfg: DictConfig, token_ids: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of generation_config.json.

    Args:
        cfg: `ExportConfig`.
        token_ids: bos_token_id, eos_token_id and the like.
    """
    set_values = {key: value for key, value in (cfg.generation or {}).items() if value is not None}
    samples = any(key in set_values for key in ("temperature", "top_p", "top_k"))
    return {**token_ids, "do_sample": samples, **set_values}


def _generation_problems(cfg: DictConfig) -> list[str]:
    keys = [f"generation.{key}" for key in GenerationSettings.__dataclass_fields__]
    problems = positive(cfg, *keys) if cfg.generation else []
    if cfg.generation and (cfg.generation.top_p or 0) > 1:
        problems.append(f"generation.top_p: {cfg.generation.top_p} is above 1; it is a share; set it to 1 or less")
    return problems


def _hub_problems(cfg: DictConfig) -> list[str]:
    import huggingface_hub

    repo, folder, problems = cfg.hub.repo, Path(cfg.output_dir), []
    if not REPO.fullmatch(repo):
        problems.append(f"hub.repo: {repo!r} is no name on the Hub; OWNER/NAME is expected; write it so")
    if huggingface_hub.get_token() is None:
        problems.append(
            "hub: no token of the Hub is there; one that may write is needed; `hf auth login`, or set HF_TOKEN"
        )
    if cfg.hub.only and not is_export(folder):
        problems.append(f"hub.only: {folder} holds no export; export first, without hub.only")
    licence = cfg.license or (licence_of(folder) if cfg.hub.only else None)
    if not cfg.hub.private and (problem := name_problem(licence, repo.rpartition("/")[2])):
        problems.append(f"hub.repo: {problem}; rename it, or push to a private repository")
    return problems
