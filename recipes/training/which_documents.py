"""Prints what one step of a run read, document by document.

    python -m recipes.training.which_documents --run out/llama3_8b_ko/cpt --step 1234

The order of the data is a function of the configuration, so that any step of a finished, running or planned run can
be looked up, on any machine that has the data.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from configs.entry import exit_code_of
from configs.loader import ConfigError
from recipes.training.checkpoints.checkpoint import latest_checkpoint, read_state
from recipes.training.data.contents import step_contents
from recipes.training.data.plan import DataPlan
from recipes.training.data.sources import open_data

EXCERPT = 160
"""Characters of a document, or a fifth as many ids, on its line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per document, or with --json everything as JSON lines; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder, with config.yaml")
    parser.add_argument("--step", type=int, required=True, help="counted from 1, as in metrics.jsonl")
    parser.add_argument("--json", action="store_true", help="whole texts, one JSON object a document")
    args = parser.parse_args(arguments)
    return exit_code_of(lambda: show(args))


def show(args: argparse.Namespace) -> None:
    """Prints what the command line asks for."""
    cfg = read_config(args.run, args.step)
    data = open_data(cfg)
    check_same_data(args.run, data)
    for row in step_contents(data, args.step - 1, cfg.weights):
        print(json.dumps(row, ensure_ascii=False) if args.json else _line(row))


def read_config(run: Path, step: int) -> DictConfig:
    """Returns the resolved configuration of a run.

    Raises:
        ConfigError: the folder is no run folder, or the run has no such step.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ConfigError(run, ["has no config.yaml; a run folder is expected; give the run's output_dir"])
    cfg = OmegaConf.load(path)
    assert isinstance(cfg, DictConfig)
    if not 1 <= step <= cfg.steps:
        raise ConfigError(run, [f"--step {step}; the run has steps 1 to {cfg.steps}; give one of them"])
    return cfg


def check_same_data(run: Path, data: DataPlan) -> None:
    """Checks that the data are those the run has read, as far as it has left a checkpoint.

    Raises:
        ConfigError: they are not.
    """
    checkpoint = latest_checkpoint(run / "checkpoints")
    before = read_state(checkpoint)["identity"] if checkpoint else {}
    problems = [
        f"the {key} is {now} now; the run read {before[key]}; restore the data that it names in config.yaml"
        for key, now in data.identity().items()
        if before.get(key, now) != now
    ]
    if problems:
        raise ConfigError(run, problems)


def _line(row: dict[str, object]) -> str:
    if "text" in row:
        content = " ".join(str(row["text"]).split())[:EXCERPT]
    else:
        ids = row["token_ids"]
        assert isinstance(ids, list)
        content = " ".join(map(str, ids[: EXCERPT // 5]))
    return f"{row['source']} sequence {row['sequence']}, {row['document']}, {row['num_tokens']} tokens: {content}"


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    sys.exit(main())
