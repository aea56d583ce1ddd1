"""Scores models on tasks of lm-evaluation-harness, side by side.

    python -m recipes.harness --config configs/harness/korean.yaml models.mine=out/llama3_8b_ko/models/sft

Writes `output_dir/harness.json` (read by `recipes.evaluation.report`) and `harness.md`. Each task's result is kept as
soon as it is there: the same command goes on behind it. Needs the extra `evaluate`.
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from tqdm import tqdm

from configs.entry import parse
from configs.loader import ConfigError, existing_path, one_of, positive
from data_prep.lineage import whole_file, write_json
from recipes.evaluation import harness
from recipes.evaluation.harness import BACKENDS, CHAT_TEMPLATES
from recipes.evaluation.harness_tasks import TaskSettings, load_task, require_harness, task_manager, unknown_tasks
from recipes.merging.directory import has_chat_template
from recipes.training.distributed import choose_device
from recipes.training.monitoring.metrics import versions


@dataclass
class HarnessConfig:
    """Models by name, and the tasks they are scored on."""

    output_dir: str = MISSING
    """Where the results go."""
    models: dict[str, str] = MISSING
    """Name in the table -> Hugging Face directory; with backend=endpoint the name under which it is served."""
    tasks: list[TaskSettings] = MISSING
    """In the order of the table."""
    include: list[str] = field(default_factory=list)
    """Folders with task files of your own, in the harness's form."""
    backend: str = "hf"
    """`hf`: transformers in this process; `vllm`, where it is installed; `endpoint`: an OpenAI-compatible server."""
    base_url: str | None = None
    """Of the endpoint's completions, such as http://localhost:8000/v1/completions."""
    tokenizer: str | None = None
    """Hugging Face directory of the endpoint's tokenizer."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the harness's model, such as tensor_parallel_size for vllm."""
    chat_template: str = "auto"
    """`auto`: a model with a chat template is asked through it, shots as turns; `apply` or `none` for all."""
    dtype: str = "bfloat16"
    """Of the computation: bfloat16 or float32."""
    batch: int = 8
    """Prompts computed at once."""
    limit: int | None = None
    """Examples a task, to try a configuration; the result is no score."""
    seed: int = 1234
    """Draws the shots; 1234 is the harness's own."""
    device: str = "auto"
    """auto, cpu or cuda."""


def check(cfg: DictConfig) -> list[str]:
    """Returns the problems of the settings."""
    require_harness()
    problems = one_of(cfg, "backend", BACKENDS) + one_of(cfg, "chat_template", CHAT_TEMPLATES)
    problems += one_of(cfg, "dtype", ["bfloat16", "float32"]) + positive(cfg, "batch", "limit")
    if cfg.backend == "endpoint":
        problems += [
            f"{key}: no value; backend=endpoint needs it; {what}"
            for key, what in (("base_url", "give the server's /v1/completions"), ("tokenizer", "name a directory"))
            if cfg[key] is None
        ]
    else:
        problems += existing_path(cfg, *(f"models.{name}" for name in cfg.models))
    problems += existing_path(cfg, "tokenizer")
    problems += [f"include: {path} does not exist; name a folder" for path in cfg.include if not Path(path).is_dir()]
    problems += [
        f"tasks[{n}].shots: {t.shots} is negative; give 0 or more" for n, t in enumerate(cfg.tasks) if t.shots < 0
    ]
    if not (cfg.models and cfg.tasks):
        problems.append("models, tasks: name at least one of each")
    return problems or unknown_tasks(index_of_tasks(cfg), cfg.tasks)


def index_of_tasks(cfg: DictConfig) -> Any:
    """Returns the harness's index of tasks for this configuration."""
    return task_manager(tuple(cfg.include), tuple(entry.task for entry in cfg.tasks))


def asks_in_chat(cfg: DictConfig, name: str) -> bool:
    """Whether a model is asked through its chat template.

    Raises:
        ConfigError: it shall be and has none.
    """
    found = has_chat_template(harness.directory_of(cfg, name))
    if cfg.chat_template == "apply" and not found:
        raise ConfigError(
            f"models.{name}", [f"{harness.directory_of(cfg, name)} has no chat template; set chat_template=auto"]
        )
    return found and cfg.chat_template != "none"


@parse(HarnessConfig, check)
def main(cfg: DictConfig) -> int:
    """Scores the models on the tasks."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    chats = {name: asks_in_chat(cfg, name) for name in cfg.models}
    loaded = [load_task(index_of_tasks(cfg), entry) for entry in cfg.tasks]
    device = choose_device(cfg.device)
    names = tqdm(cfg.models, desc="harness", unit="model")
    found = {name: harness.score_model(cfg, name, chats[name], loaded, device) for name in names}
    text = harness.comparison_table(found)
    text += "\n\n±: 1.96 standard errors. A group's score is the mean of its subjects; micro is that of its examples."
    if cfg.limit:
        text += f"\nOnly {cfg.limit} examples a task were asked: these are no scores."
    facts = {"config": OmegaConf.to_container(cfg, resolve=True), "versions": versions()}
    rows = {name: [asdict(one) for one in scores] for name, scores in found.items()}
    write_json(Path(cfg.output_dir) / "harness.json", {"harness": rows, **facts})
    with whole_file(Path(cfg.output_dir) / "harness.md") as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    main()
