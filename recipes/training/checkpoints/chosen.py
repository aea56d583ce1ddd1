"""Which checkpoint of a run is meant: the newest, the best by the rule of its evaluation, or that of a step."""

import json
from pathlib import Path

from configs.loader import ConfigError
from recipes.training.checkpoints.folder import complete_checkpoints, latest_checkpoint, read_state

BEST = "best.json"
"""In the run folder; written by `recipes.evaluate_run`."""


def choice_problems(which: str) -> list[str]:
    """Returns the problem of a configuration's `checkpoint`, if it has one."""
    if which in ("newest", "best") or which.isdigit():
        return []
    return [f"checkpoint: {which!r} is not known; one of newest, best, or the number of a step"]


def chosen_checkpoint(run: Path, which: str) -> Path:
    """Returns a complete checkpoint of a run.

    Args:
        run: run folder.
        which: `newest`, `best`, or a step as text.

    Raises:
        ConfigError: the run has no such checkpoint.
        CheckpointError: the kept one is damaged.
    """
    if which == "newest":
        if (newest := latest_checkpoint(run / "checkpoints")) is None:
            raise ConfigError(run, ["holds no complete checkpoint; give the output_dir of a training run"])
        return newest
    if which == "best":
        file = run / BEST
        if not file.is_file():
            problem = (
                "does not exist; it says which checkpoint is best; run recipes.evaluate_run with "
                f"run={run}, or give checkpoint=newest"
            )
            raise ConfigError(file, [problem])
        told = json.loads(file.read_text(encoding="utf-8"))
        if told["checkpoint"] is None:
            best = "none" if told["step"] is None else f"step {told['step']}"
            raise ConfigError(file, [f"says that the best is {best}, {told['reason']}; give checkpoint=newest"])
        read_state(run / told["checkpoint"])
        return run / told["checkpoint"]
    found = complete_checkpoints(run / "checkpoints") + complete_checkpoints(run / "best")
    for path in found:
        if read_state(path)["step"] == int(which):
            return path
    steps = ", ".join(dict.fromkeys(str(read_state(path)["step"]) for path in found)) or "none"
    raise ConfigError(run, [f"has no complete checkpoint of step {which}; there are: {steps}; give one of them"])
