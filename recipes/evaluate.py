"""Scores models side by side on held-out text, prompts, questions and small tasks.

    tune run --nproc_per_node 1 recipes/evaluate.py --config configs/evaluate/demo.yaml

Writes `output_dir/report.json`: a row a model, and the answers behind the figures. More processes share the work; the
figures are those of one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from tqdm import tqdm

from configs.entry import parse
from configs.loader import ConfigError, existing_path
from data_prep.lineage import write_json
from recipes.evaluation.exam import Exam, examples_behind, length_problems, read_exam, score, template_of
from recipes.evaluation.report.tables import text_table
from recipes.evaluation.retention import as_markdown, retention
from recipes.evaluation.settings import ScoringSettings, dtype_of, scoring_problems
from recipes.evaluation.tasks import tasks_table
from recipes.training.distributed import World, leave, process_group
from recipes.training.model.opening import ModelSource, find_model, open_model
from recipes.training.monitoring.forgetting import suggest_replay
from recipes.training.monitoring.metrics import versions


@dataclass
class EvaluateConfig(ScoringSettings):
    """Models by name, and what they are scored on."""

    output_dir: str = MISSING
    """Where report.json goes."""
    models: dict[str, str] = MISSING
    """Name in the table -> Hugging Face directory, run folder (its newest checkpoint) or checkpoint, in the order of
    the rows; the first is what the others are compared with."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings."""
    problems = [] if cfg.models else ["models: none is given; name at least one"]
    return problems + scoring_problems(cfg) + existing_path(cfg, *(f"models.{name}" for name in cfg.models))


def find_models(cfg: DictConfig, exam: Exam) -> dict[str, ModelSource]:
    """Looks at every model, and whether all that it is asked fits, before the first is loaded.

    Raises:
        ConfigError: a model is none, or reads fewer tokens; all of the latter at once.
    """
    found = {name: find_model(Path(path), cfg.tokenizer) for name, path in cfg.models.items()}
    problems = []
    for name, source in found.items():
        template = template_of(source.tokenizer, source.chat_template)
        problems += length_problems(cfg, exam, name, template, source.architecture.max_seq_len)
    if problems:
        raise ConfigError("models", problems)
    return found


def compare(cfg: DictConfig, exam: Exam, found: dict[str, ModelSource], world: World) -> dict[str, Any]:
    """Returns the report: rows, answers, and what the languages have kept."""
    report: dict[str, Any] = {"rows": [], "generations": []}
    replies: dict[str, list[str]] = {}
    for name, source in tqdm(found.items(), desc="evaluate", unit="model", disable=world.rank != 0):
        template = template_of(source.tokenizer, source.chat_template)
        model = open_model(source, world.device, dtype_of(cfg, world.device))
        figures, replies[name] = score(cfg, exam, template, model)
        del model  # before the next one is loaded
        report["rows"].append({"model": name, **figures})
    for number, prompt in enumerate(exam.prompts):
        shown = {"prompt": prompt["messages"][-1]["content"], "lang": prompt["lang"]}
        report["generations"].append(shown | {"answers": {name: texts[number] for name, texts in replies.items()}})
    report["examples"] = examples_behind(exam)

    def suggest(rise: float) -> float | None:
        return suggest_replay(rise, cfg.max_rise, None)

    if table := retention(report["rows"], cfg.guard, cfg.max_rise, suggest):
        report["retention"] = table
    settings = OmegaConf.to_container(cfg, resolve=True)
    report["settings"] = {"decoding": "greedy", "config": settings, "versions": versions()}
    return report


@parse(EvaluateConfig, check)
def main(cfg: DictConfig) -> int:
    """Scores the models and writes report.json."""
    exam = read_exam(cfg)
    found = find_models(cfg, exam)
    with process_group(cfg.device) as world:
        report = compare(cfg, exam, found, world)
        if world.rank == 0:
            write_json(Path(cfg.output_dir) / "report.json", report)
            names = [key for key in report["rows"][0] if not key.startswith("task_")]
            print(text_table([{key: row[key] for key in names} for row in report["rows"]]))
            if exam.tasks:
                print("\n" + tasks_table(report["rows"], report["examples"]))
            if "retention" in report:
                print("\n" + as_markdown(report["retention"]), end="")
    return leave(0)


if __name__ == "__main__":
    main()
