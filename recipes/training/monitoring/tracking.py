"""Sends a run's metrics to Weights & Biases, an optional package, beside the files that are always written."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from configs.loader import ConfigError

OWN = ("id", "resume", "dir", "config")
"""Arguments of `wandb.init` that the run sets itself."""
ID_FILE = "wandb_id.txt"


class Tracker:
    """One W&B run; a resumed training run goes on with the same one."""

    def __init__(self, folder: Path, cfg: DictConfig) -> None:
        """Starts it, or goes on with the one whose id stands in the run folder.

        Args:
            folder: the run folder.
            cfg: `TrainSettings` with `wandb`, the arguments of `wandb.init`; all of it is sent.

        Raises:
            ConfigError: W&B refuses, for want of a login, a network or a known argument.
        """
        import wandb

        arguments: dict[str, Any] = OmegaConf.to_container(cfg.wandb, resolve=True)  # type: ignore[assignment]
        file, settings = folder / ID_FILE, OmegaConf.to_container(cfg, resolve=True)
        known = file.read_text(encoding="utf-8").strip() if file.is_file() else None
        try:
            self._run = wandb.init(**arguments, id=known, resume="allow", dir=str(folder), config=settings)
        except (wandb.errors.Error, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            problem = f"W&B does not start: {reason}; log in with `wandb login`, set wandb.mode=offline, or wandb=null"
            raise ConfigError("wandb", [problem]) from None
        file.write_text(f"{self._run.id}\n", encoding="utf-8")
        self._run.define_metric("*", step_metric="step")  # W&B's own step cannot go back, a resumed run's can

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Sends finite values of a step, in the background."""
        self._run.log({"step": step, **values})

    def finish(self, failed: bool) -> None:
        """Waits until everything is sent."""
        self._run.finish(exit_code=int(failed))


def tracking_problems(cfg: DictConfig) -> list[str]:
    """Returns the problems of the key `wandb`."""
    if cfg.wandb is None:
        return []
    problems = [
        f"wandb.{key}: is set by the run itself, from output_dir and the configuration; remove it"
        for key in OWN
        if key in cfg.wandb
    ]
    if not cfg.plan and importlib.util.find_spec("wandb") is None:
        problems.append(
            "wandb: is set, but the package wandb is not installed; it is no dependency of kotune; "
            "run `pip install wandb`, or set wandb=null"
        )
    return problems
