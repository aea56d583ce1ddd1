"""What models are asked, read and checked before the first of them is loaded, and a model's figures."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from data_prep.dialogue.chat_template import LLAMA3, ChatTemplate
from data_prep.dialogue.named_templates import open_template
from data_prep.document import CorpusError, read_jsonl
from data_prep.lineage import sha256_json, sha256_path
from data_prep.tokens.tokenizer import load_tokenizer
from recipes.evaluation.candidate import Candidate, score_answers, score_choices, score_text
from recipes.evaluation.settings import limits_of
from recipes.evaluation.tasks import SPOKEN, Task, longest_choice, read_task


@dataclass(frozen=True)
class Exam:
    """All that is asked."""

    documents: dict[str, str]
    prompts: list[dict[str, Any]]
    questions: list[dict[str, Any]]
    tasks: dict[str, Task]


def read_exam(cfg: DictConfig) -> Exam:
    """Reads prompts, questions and tasks.

    Raises:
        CorpusError: a row lacks a key, or a file is no task.
    """
    prompts = read_rows(cfg.prompts, "lang", "messages")
    questions = read_rows(cfg.questions, "lang", "messages", "answers")
    tasks = {name: read_task(Path(path)) for name, path in cfg.tasks.items()}
    return Exam(dict(cfg.documents), prompts, questions, tasks)


def read_rows(path: str | None, *keys: str) -> list[dict[str, Any]]:
    """Returns the rows of a file of prompts or questions, none without a file; one without a key is an error."""
    rows = list(read_jsonl(Path(path))) if path else []
    for number, row in enumerate(rows, start=1):
        if missing := [key for key in keys if key not in row]:
            raise CorpusError(f"{path} row {number} lacks {', '.join(missing)}; {', '.join(keys)} are needed; add it")
    return rows


def length_problems(cfg: DictConfig, exam: Exam, name: str, template: ChatTemplate, most_tokens: int) -> list[str]:
    """Returns a problem for whatever has more tokens than a model reads.

    Args:
        cfg: `ScoringSettings`.
        exam: what it is asked.
        name: of the model.
        template: of the model.
        most_tokens: that it reads.
    """
    spoken = [row for task in exam.tasks.values() if task.kind in SPOKEN for row in task.messages()]
    rows = [*exam.prompts, *exam.questions, *spoken]
    longest = max((len(template.prompt(row["messages"])) for row in rows), default=-cfg.max_new_tokens)
    needed = {
        "seq_len": cfg.seq_len if cfg.documents else 0,
        "prompt and answer": longest + cfg.max_new_tokens,
        "question and choice": longest_choice(template.tokenizer, list(exam.tasks.values())),
    }
    return [
        f"{key}: {n} tokens, {name} reads {most_tokens}; take fewer" for key, n in needed.items() if n > most_tokens
    ]


def identity(cfg: DictConfig, exam: Exam) -> str:
    """Returns a hash of all that a model's figures depend on beside the model."""
    texts = {lang: sha256_path(Path(folder)) for lang, folder in exam.documents.items()}
    asked = [exam.prompts, exam.questions, {name: asdict(task) for name, task in exam.tasks.items()}]
    return sha256_json([texts, asked, cfg.seq_len, cfg.stride, cfg.max_new_tokens, cfg.dtype])


def template_of(tokenizer: Path, name: str | None) -> ChatTemplate:
    """Returns a model's chat template, Llama-3's for a base model.

    Args:
        tokenizer: directory of its tokenizer.
        name: as `open_template` knows it; None for a model without one.
    """
    loaded = load_tokenizer(tokenizer)
    return ChatTemplate(loaded, LLAMA3) if name is None else open_template(name, loaded, tokenizer)


def score(cfg: DictConfig, exam: Exam, template: ChatTemplate, model: nn.Module) -> tuple[dict[str, Any], list[str]]:
    """Returns a model's figures, and its answers to the prompts.

    Every rank must call it; the figures do not depend on their number.

    Args:
        cfg: `ScoringSettings`.
        exam: what it is asked.
        template: of the model.
        model: torchtune's decoder, on its device.
    """
    candidate, limits = Candidate(model, template.tokenizer, template), limits_of(cfg)
    row: dict[str, Any] = {**score_text(candidate, limits, exam.documents), **score_choices(candidate, exam.tasks)}
    figures, replies = score_answers(candidate, limits, exam.prompts, exam.questions, exam.tasks)
    return row | figures, replies


def examples_behind(exam: Exam) -> dict[str, int]:
    """Returns how many answers stand behind each share, for its confidence interval."""
    asked, questioned = Counter(row["lang"] for row in exam.prompts), Counter(row["lang"] for row in exam.questions)
    counts = {f"{share}_{lang}": count for share in ("chat_form", "repetition") for lang, count in asked.items()}
    counts |= {"answered_in_korean": asked["ko"], "exact_match": len(exam.questions)}
    counts |= {f"exact_match_{lang}": count for lang, count in questioned.items()}
    return counts | {f"task_{name}": len(task.examples) for name, task in exam.tasks.items()}
