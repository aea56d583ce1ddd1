"""Tasks of lm-evaluation-harness: where they are found, how many shots they get, and where those come from."""

import difflib
import functools
import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from configs.loader import ConfigError
from data_prep.document import CorpusError

HOW_TO_INSTALL = 'pip install -e ".[evaluate]"'


@dataclass
class TaskSettings:
    """One task, group or tag of the harness, and how it is asked."""

    task: str = MISSING
    """Its name in the harness or in a file of `include`."""
    metric: str = MISSING
    """What is shown, such as acc, acc_norm or exact_match; with its filter where the task has several, such as
    `exact_match,flexible-extract`."""
    shots: int = MISSING
    """Solved examples in front of a question; the harness's own default is never taken silently."""
    fewshot_split: str | None = None
    """Split of the data that shots are drawn from; null: the task's."""
    label: str | None = None
    """Name in the table; null: the task's."""


def require_harness() -> None:
    """Raises ConfigError if the extra is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("harness", [f"lm_eval is not installed; it is an extra; {HOW_TO_INSTALL}"])


@functools.cache
def task_manager(include: tuple[str, ...], names: tuple[str, ...]) -> Any:
    """Returns the harness's index of tasks; its own 12,000 files are read only if `include` does not hold all names."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    own = TaskManager(include_path=list(include), include_defaults=False)
    return own if set(names) <= set(own.all_tasks) else TaskManager(include_path=list(include))


def unknown_tasks(manager: Any, tasks: Sequence[TaskSettings]) -> list[str]:
    """Returns a problem for each task that the harness does not have."""
    problems = []
    for number, entry in enumerate(tasks):
        if entry.task not in manager.all_tasks:
            close = difflib.get_close_matches(entry.task, manager.all_tasks, n=1)
            hint = f"did you mean {close[0]}?" if close else "see `lm-eval ls tasks`, or name its folder in `include`"
            problems.append(f"tasks[{number}].task: the harness knows no {entry.task!r}; {hint}")
    return problems


def load_task(manager: Any, entry: TaskSettings) -> list[Any]:
    """Builds a task, or all of a group, and reads its data.

    Raises:
        CorpusError: the data cannot be had, or lack the split for the shots.
        ConfigError: shots would come from the examples that are scored.
    """
    try:
        found = list(manager.load([entry.task])["tasks"].values())
        for task in found:
            task.set_config(key="num_fewshot", value=entry.shots)
            if entry.fewshot_split:
                task.fewshot_cfg.split = entry.fewshot_split
                task.sampler = type(task.sampler)(list(task.fewshot_docs()), rnd=None)
    except KeyError as error:
        raise CorpusError(
            f"task {entry.task}: its data have no split {error}; the task and fewshot_split name one; name another, "
            "or set shots: 0"
        ) from None
    except (OSError, ConnectionError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CorpusError(
            f"task {entry.task}: its data cannot be read ({first}); a network or a filled Hugging Face cache is "
            "needed; download them once with `datasets`, or name a task over local files in `include`"
        ) from None
    if entry.shots and (leaking := [task.config.task for task in found if shots_leak(task)]):
        raise ConfigError(
            "tasks",
            [
                f"{entry.task}: {entry.shots} shots of {', '.join(leaking[:3])} would come from the split that is "
                "scored; another is needed; set fewshot_split to one (dev, train), or shots: 0"
            ],
        )
    return found


def shots_leak(task: Any) -> bool:
    """Whether a task's solved examples come from those that are scored."""
    scored = task.config.test_split or task.config.validation_split
    split = task.fewshot_cfg.split
    if split is None and not callable(task.fewshot_cfg.samples) and not task.fewshot_cfg.samples:
        # the harness's own rule: training, else validation, else the scored examples
        split = task.config.training_split or task.config.validation_split or scored
    return bool(split == scored)
