"""A run's folder: what it was started with, and what it measured."""

import functools
import json
import math
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from omegaconf import DictConfig, OmegaConf
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data_prep.lineage import commit, whole_file, write_json
from recipes.training.monitoring.tracking import Tracker

PACKAGES = ("torch", "torchtune", "torchao", "numpy", "safetensors", "omegaconf")


@functools.cache  # each save states them; the code that runs is that of the start
def versions() -> dict[str, str]:
    """Returns the commit and the versions of Python and the packages a result depends on."""
    return {"commit": commit(), "python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def describe_run(folder: Path, cfg: DictConfig) -> None:
    """Writes `config.yaml` (resolved), `command.txt` and `versions.json`; no environment, no secrets."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
    (folder / "command.txt").write_text(shlex.join(sys.argv) + "\n", encoding="utf-8")
    write_json(folder / "versions.json", versions())


class Metrics:
    """`metrics.jsonl`, TensorBoard, a progress bar and, if wanted, W&B; use as a context manager, on rank 0."""

    def __init__(
        self,
        folder: Path,
        start_step: int,
        steps: int,
        name: str,
        *,
        tracker: Tracker | None = None,
        repeats_validation: bool = False,
    ) -> None:
        """Opens the files, dropping rows that a resumed run is about to repeat.

        Args:
            folder: the run folder.
            start_step: rows of later steps are removed.
            steps: length of the progress bar.
            name: its label.
            tracker: gets what the files get.
            repeats_validation: also removes the validation of `start_step`.
        """
        path = folder / "metrics.jsonl"
        rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [row for row in rows if _is_kept(row, start_step, repeats_validation)]
        with whole_file(path) as partial:  # a kill, or a full disk, must not take the history with it
            partial.write_text("".join(row + "\n" for row in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else 0)
        self._tracker = tracker
        interval = 0.5 if sys.stderr.isatty() else 10.0
        self._bar = tqdm(initial=start_step, total=steps, desc=name, unit="step", mininterval=interval)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._board.close()
        self._file.close()
        if self._tracker:
            self._tracker.finish(failed=kind is not None)

    def log_step(self, step: int, values: dict[str, float]) -> None:
        """Writes the values of the step that just ended, counted from 1; one that is not finite as null."""
        self._write(step, values)
        shown = {"loss": f"{values['train/loss']:.3f}"}
        if (rate := values.get("speed/tokens_per_second")) is not None:
            shown["tokens/s"] = f"{rate:,.0f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def log_validation(self, step: int, values: dict[str, float]) -> None:
        """Writes what held-out text scored behind a step, 0 for none, as a row of its own."""
        self._write(step, values)
        self._bar.unpause()  # its time left is that of the steps

    def note(self, text: str) -> None:
        """Prints a line above the progress bar."""
        tqdm.write(text, file=sys.stderr)

    def _write(self, step: int, values: dict[str, float]) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **dict.fromkeys(values), **finite}) + "\n")
        self._file.flush()
        for name, value in finite.items():
            self._board.add_scalar(name, value, step)
        if self._tracker:
            self._tracker.log(step, finite)


def _is_kept(line: str, start_step: int, repeats_validation: bool) -> bool:
    """Whether a row of an earlier run still holds; the last line of a killed run may be cut short."""
    try:
        row = json.loads(line)
        is_validation, step = "train/loss" not in row, row["step"]
    except (ValueError, KeyError, TypeError):
        return False
    repeated = step == start_step and is_validation and repeats_validation
    return bool(0 < start_step >= step and not repeated)  # a run without a checkpoint starts anew
