"""Scores models side by side on held-out text, prompts and questions.

    tune run --nproc_per_node 1 recipes/evaluate.py --config configs/evaluate/demo.yaml

Writes `output_dir/report.json`: a row a model, and the answers behind the figures.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from tqdm import tqdm

from configs.loader import ConfigError, existing_path, parse, positive
from data_prep.dialogue.chat_template import LLAMA3, ChatTemplate
from data_prep.document import CorpusError, read_jsonl
from data_prep.lineage import write_json
from data_prep.tokens.tokenizer import load_tokenizer
from recipes.evaluation.candidate import Candidate, Limits, score_answers, score_text
from recipes.evaluation.report.tables import text_table
from recipes.merging.directory import has_chat_template
from recipes.training.distributed import choose_device
from recipes.training.loop import open_weights
from recipes.training.model import weights
from recipes.training.model.decoder import build_model
from recipes.training.monitoring.metrics import versions


@dataclass
class EvaluateConfig:
    """Models by name, and what they are scored on."""

    output_dir: str = MISSING
    """Where report.json goes."""
    models: dict[str, str] = MISSING
    """Name in the table -> Hugging Face directory, in the order of the rows."""
    documents: dict[str, str] = field(default_factory=dict)
    """Language -> folder of held-out documents, for bits per byte."""
    prompts: str | None = None
    """Open prompts, one {id, lang, messages} a line, for form and language of the answers."""
    questions: str | None = None
    """Questions, one {id, lang, messages, answers} a line, for exact match."""
    seq_len: int = 512
    """Tokens a window of held-out text."""
    max_new_tokens: int = 64
    """Longest answer."""
    batch: int = 32
    """Windows or prompts computed at once."""
    seed: int = 0
    """Unused: answers are greedy."""
    device: str = "auto"
    """auto, cpu or cuda."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings."""
    problems = existing_path(cfg, "prompts", "questions") + positive(cfg, "seq_len", "max_new_tokens", "batch")
    named = [f"models.{name}" for name in cfg.models] + [f"documents.{lang}" for lang in cfg.documents]
    if not (cfg.models and (cfg.documents or cfg.prompts or cfg.questions)):
        problems.append("models: name at least one, and documents, prompts or questions to score it on")
    return problems + existing_path(cfg, *named)


def read_rows(path: str | None, *keys: str) -> list[dict[str, Any]]:
    """Returns the rows of a file of prompts or questions, none without a file; one without a key is an error."""
    rows = list(read_jsonl(Path(path))) if path else []
    for number, row in enumerate(rows, start=1):
        if missing := [key for key in keys if key not in row]:
            raise CorpusError(f"{path} row {number} lacks {', '.join(missing)}; {', '.join(keys)} are needed; add it")
    return rows


def prompt_template(path: Path) -> ChatTemplate:
    """Returns the directory's chat template, Llama-3's for a base model."""
    tokenizer = load_tokenizer(path)
    return ChatTemplate.from_directory(tokenizer, path) if has_chat_template(path) else ChatTemplate(tokenizer, LLAMA3)


def check_lengths(cfg: DictConfig, rows: list[dict[str, Any]]) -> None:
    """Checks that windows, prompts and answers fit every model, before the first is scored.

    Raises:
        ConfigError: a model reads fewer tokens; all of them at once.
    """
    problems = []
    for name, path in cfg.models.items():
        limit, template = open_weights(path)[1].max_seq_len, prompt_template(Path(path))
        longest = max((len(template.prompt(row["messages"])) for row in rows), default=-cfg.max_new_tokens)
        needed = {"seq_len": cfg.seq_len if cfg.documents else 0, "prompt and answer": longest + cfg.max_new_tokens}
        problems += [f"{key}: {n} tokens, {name} reads {limit}; take fewer" for key, n in needed.items() if n > limit]
    if problems:
        raise ConfigError("models", problems)


def open_candidate(path: Path, device: str) -> Candidate:
    """Loads a Hugging Face directory in fp32."""
    directory, architecture = open_weights(str(path))
    model = build_model(architecture)
    weights.load(model, directory, architecture)
    template = prompt_template(path)
    return Candidate(model.to(device).eval(), template.tokenizer, template)


def examples_behind(prompts: list[dict[str, Any]], questions: list[dict[str, Any]]) -> dict[str, int]:
    """Returns how many answers stand behind each share, for its confidence interval."""
    asked, questioned = Counter(row["lang"] for row in prompts), Counter(row["lang"] for row in questions)
    counts = {f"chat_form_{lang}": count for lang, count in asked.items()} | {"answered_in_korean": asked["ko"]}
    return counts | {f"exact_match_{lang}": n for lang, n in questioned.items()} | {"exact_match": len(questions)}


@parse(EvaluateConfig, check)
def main(cfg: DictConfig) -> int:
    """Scores the models and writes report.json."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    device = choose_device(cfg.device)
    prompts = read_rows(cfg.prompts, "lang", "messages")
    questions = read_rows(cfg.questions, "lang", "messages", "answers")
    check_lengths(cfg, prompts + questions)
    limits = Limits(cfg.seq_len, cfg.max_new_tokens, cfg.batch)
    report: dict[str, Any] = {"rows": [], "generations": []}
    replies: dict[str, list[str]] = {}
    for name, path in tqdm(cfg.models.items(), desc="evaluate", unit="model"):
        candidate = open_candidate(Path(path), device)
        row: dict[str, Any] = {"model": name, **score_text(candidate, limits, cfg.documents)}
        figures, replies[name] = score_answers(candidate, limits, prompts, questions)
        report["rows"].append(row | figures)
    for number, prompt in enumerate(prompts):
        shown = {"prompt": prompt["messages"][-1]["content"], "lang": prompt["lang"]}
        report["generations"].append(shown | {"answers": {name: texts[number] for name, texts in replies.items()}})
    report["examples"] = examples_behind(prompts, questions)
    settings = OmegaConf.to_container(cfg, resolve=True)
    report["settings"] = {"decoding": "greedy", "config": settings, "versions": versions()}
    write_json(Path(cfg.output_dir) / "report.json", report)
    print(text_table(report["rows"]))
    return 0


if __name__ == "__main__":
    main()
