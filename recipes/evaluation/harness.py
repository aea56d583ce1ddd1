"""lm-evaluation-harness on our models: chat templates applied once, answers that end, and both averages of a group."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from configs.loader import ConfigError
from data_prep.generation_settings import end_ids
from data_prep.lineage import sha256_path, write_json
from recipes.evaluation.harness_tasks import TaskSettings
from recipes.evaluation.report.tables import markdown_table

BACKENDS = ("hf", "vllm", "endpoint")
CHAT_TEMPLATES = ("auto", "apply", "none")


@dataclass(frozen=True)
class Score:
    """Result of a task: shares of 1 (or what the metric gives), and how many examples stand behind them."""

    label: str
    metric: str
    shots: int
    macro: float
    """Mean over the subjects of a group, each counting alike."""
    macro_stderr: float
    micro: float
    """Mean over all examples."""
    micro_stderr: float
    examples: int
    subjects: dict[str, float]


def end_of_answer(folder: Path) -> list[str]:
    """Returns the tokens that end an answer, as text; see `end_ids`."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    texts = {token["id"]: token["content"] for token in content.get("added_tokens") or []}
    return [texts[one] for one in end_ids(folder) if one in texts]


def stop_at(tasks: Sequence[Any], ends: Sequence[str]) -> None:
    """Adds the ends of an answer to the stop lists of the tasks that generate.

    The harness knows one end of text; a chat model ends its answer with another token, and would run on into a
    turn of its own making that is then scored.
    """
    for task in tasks:
        if task.config.output_type == "generate_until":
            until = (task.config.generation_kwargs or {}).get("until") or []
            until = [until] if isinstance(until, str) else list(until)
            stops = {"until": [*until, *(end for end in ends if end not in until)]}
            task.set_config(key="generation_kwargs", value=stops, update=True)


def check_bos(lm: Any, chat: bool, name: str) -> None:
    """Checks that a prompt reaches the model with exactly one BOS, if its tokenizer has one.

    Raises:
        ConfigError: it has none or two; Llama was trained with one, and both cost several points.
    """
    bos = getattr(getattr(lm, "tokenizer", None), "bos_token_id", None)
    if bos is None:
        return
    text = lm.apply_chat_template([{"role": "user", "content": "한국의 수도는?"}]) if chat else "한국의 수도는"
    ids = _flat(lm.tok_encode(text))
    if (count := ids.count(bos)) != 1:
        raise ConfigError(
            f"models.{name}",
            [
                f"a prompt starts with {count} BOS tokens; one is expected; "
                f"set model_args.add_bos_token to {'false' if count else 'true'}"
            ],
        )


def _flat(ids: Any) -> list[int]:
    return [one for row in ids for one in _flat(row)] if isinstance(ids, list) else [ids]


def scores(results: Mapping[str, Any], tasks: Sequence[Any], entry: TaskSettings) -> Score:
    """Returns a task's score out of the harness's results.

    Both averages are given, for published figures use either: KMMLU's paper the macro average, the harness's table
    the micro average.

    Raises:
        ConfigError: the task does not give the metric.
    """
    subjects, errors, sizes = {}, {}, {}
    for task in tasks:
        name = task.config.task
        row = results["results"][name]
        key = metric_key(row, entry)
        subjects[name], sizes[name] = float(row[key]), int(results["n-samples"][name]["effective"])
        metric, _, rest = key.partition(",")
        error = row.get(f"{metric}_stderr,{rest}")
        errors[name] = float(error) if isinstance(error, int | float) else math.nan
    total, count = sum(sizes.values()), len(subjects)
    return Score(
        label=entry.label or entry.task,
        metric=entry.metric,
        shots=entry.shots,
        macro=sum(subjects.values()) / count,
        macro_stderr=math.sqrt(sum(error**2 for error in errors.values())) / count,
        micro=sum(subjects[name] * size for name, size in sizes.items()) / total,
        micro_stderr=math.sqrt(sum((errors[name] * size) ** 2 for name, size in sizes.items())) / total,
        examples=total,
        subjects=subjects,
    )


def comparison_table(found: Mapping[str, Sequence[Score]]) -> str:
    """Returns a Markdown table, a row a task and a column a model.

    Args:
        found: model -> its scores, of the same tasks in the same order.
    """
    lines = [["task", *found]]
    for scores_of_task in zip(*found.values(), strict=True):
        one = scores_of_task[0]
        lines.append([f"{one.label} ({one.shots}-shot {one.metric})", *map(_cell, scores_of_task)])
    return markdown_table(lines)


def _cell(score: Score) -> str:
    text = f"{score.macro:.4f}"
    if math.isfinite(score.macro_stderr):
        text += f" ± {1.96 * score.macro_stderr:.4f}"
    return text + (f" (micro {score.micro:.4f})" if len(score.subjects) > 1 else "")


def metric_key(row: Mapping[str, Any], entry: TaskSettings) -> str:
    """Returns the key of the harness's result, `metric,filter`, that a metric names."""
    keys = [key for key in row if "," in key and "_stderr" not in key]
    if entry.metric in keys:
        return entry.metric
    found = [key for key in keys if key.split(",")[0] == entry.metric]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(key.removesuffix(",none") for key in found or keys)
    what = "several of that name" if found else "none of that name"
    raise ConfigError("tasks", [f"{entry.task} has no single metric {entry.metric!r} ({what}); it gives {shown}"])


def directory_of(cfg: DictConfig, name: str) -> Path:
    """Returns the directory that holds a model's tokenizer and chat template."""
    return Path(cfg.tokenizer if cfg.backend == "endpoint" else cfg.models[name])


def open_model(cfg: DictConfig, name: str, device: str) -> Any:
    """Loads a model in the harness's form."""
    from lm_eval.api.registry import get_model

    model, extra = cfg.models[name], OmegaConf.to_container(cfg.model_args)
    if cfg.backend == "endpoint":
        kind, own = "local-completions", {"model": model, "base_url": cfg.base_url, "tokenizer": cfg.tokenizer}
    else:
        kind, own = cfg.backend, {"pretrained": model, "dtype": cfg.dtype}
    common = {"batch_size": cfg.batch, "max_batch_size": None, "device": device}
    return get_model(kind).create_from_arg_obj({**own, **extra}, common)  # type: ignore[dict-item]


def part_key(cfg: DictConfig, name: str, entry: TaskSettings, chat: bool) -> dict[str, Any]:
    """Returns all that a score depends on."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    keys = ("backend", "base_url", "model_args", "dtype", "limit", "seed")
    weights = cfg.models[name] if cfg.backend == "endpoint" else sha256_path(Path(cfg.models[name]))
    task = OmegaConf.to_container(entry)
    return {"model": weights, "task": task, "chat": chat, "lm_eval": version("lm_eval"), **{k: plain[k] for k in keys}}


def score_model(cfg: DictConfig, name: str, chat: bool, loaded: Sequence[Sequence[Any]], device: str) -> list[Score]:
    """Scores a model on the tasks of which no result is kept; returns all scores, in the order of the tasks."""
    from lm_eval import simple_evaluate

    found, lm = [], None
    stops = end_of_answer(directory_of(cfg, name))
    for entry, tasks in zip(cfg.tasks, loaded, strict=True):
        part = Path(cfg.output_dir) / "parts" / name / f"{entry.label or entry.task}.json"
        key = part_key(cfg, name, entry, chat)
        kept = json.loads(part.read_text(encoding="utf-8")) if part.is_file() else {}
        if kept.get("key") != key:
            if lm is None:
                lm = open_model(cfg, name, device)
                check_bos(lm, chat, name)
            stop_at(tasks, stops)
            results = simple_evaluate(
                model=lm, tasks=tasks, limit=cfg.limit, apply_chat_template=chat, fewshot_as_multiturn=True,
                fewshot_random_seed=cfg.seed, log_samples=False,
            )  # fmt: skip
            kept = {"key": key, "score": asdict(scores(results, tasks, entry))}
            write_json(part, kept)
        found.append(Score(**kept["score"]))
    return found
