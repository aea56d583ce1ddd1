"""Scores models side by side on held-out text, prompts and questions.

    tune run --nproc_per_node 1 recipes/evaluate.py --config configs/evaluate/demo.yaml

Writes `output_dir/report.json`: a row a model, and the answers behind the figures.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from tqdm import tqdm

from configs.loader import existing_path, parse, positive
from data_prep.chat_template import LLAMA3, ChatTemplate
from data_prep.document import CorpusError, read_jsonl
from data_prep.lineage import write_json
from data_prep.tokenizer import load_tokenizer
from recipes.evaluation.candidate import Candidate, Limits, score_answers, score_text
from recipes.training import weights
from recipes.training.distributed import choose_device
from recipes.training.loop import open_weights
from recipes.training.metrics import versions
from recipes.training.model import build_model


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
    return problems + existing_path(cfg, *named)


def open_candidate(path: Path, device: str) -> Candidate:
    """Loads a Hugging Face directory in fp32; a base model is prompted in Llama-3's chat form."""
    directory, architecture = open_weights(str(path))
    model = build_model(architecture)
    weights.load(model, directory, architecture)
    tokenizer = load_tokenizer(path)
    try:
        template = ChatTemplate.from_directory(tokenizer, path)
    except CorpusError:
        template = ChatTemplate(tokenizer, LLAMA3)
    return Candidate(model.to(device).eval(), tokenizer, template)


@parse(EvaluateConfig, check)
def main(cfg: DictConfig) -> int:
    """Scores the models and writes report.json."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    device = choose_device(cfg.device)
    prompts, questions = ([*read_jsonl(Path(path))] if path else [] for path in (cfg.prompts, cfg.questions))
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
    settings = OmegaConf.to_container(cfg, resolve=True)
    report["settings"] = {"decoding": "greedy", "config": settings, "versions": versions()}
    write_json(Path(cfg.output_dir) / "report.json", report)
    print(table(report["rows"]))
    return 0


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as a text table."""
    names = list(rows[0])
    cells = [[str(row["model"]), *(cell(name, row[name]) for name in names[1:])] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    lines = [[name.ljust(width) for name, width in zip(line, widths, strict=True)] for line in [names, *cells]]
    return "\n".join("  ".join(line) for line in lines)


def cell(name: str, value: float | None) -> str:
    """Returns a figure as the table shows it: bits per byte with three digits, shares in per cent."""
    if value is None:
        return "-"
    return f"{value:.3f}" if name.startswith("bits") else f"{100 * value:.0f} %"


if __name__ == "__main__":
    main()
