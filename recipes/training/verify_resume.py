"""Proves for a configuration that a run killed at any moment and resumed is the run that was not.

    python -m recipes.training.verify_resume --config configs/cpt/demo_ko.yaml --ranks 2 --other-ranks 1 --kills 3

Three short runs are started as documented, by `tune run`, in a scratch folder: a straight one; one that is killed with
SIGKILL, all its processes, at random moments, every other time inside a save, and resumed each time; and one that is
killed once and resumed with another number of processes. Samples and losses of every step and the last checkpoint's
tensors are compared: bit for bit with the same number of processes, within a tolerance with another.
"""

import argparse
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from configs.entry import exit_code_of
from configs.loader import ConfigError, load, resolve
from recipes.training.checkpoints.comparison import Comparison, compare_runs, rows_by_step
from recipes.training.checkpoints.trials import Launcher, behind, in_a_save, num_rows
from recipes.training.data.sources import open_data
from recipes.training.tables import aligned
from recipes.training.which_documents import check_same_data, read_config

TOLERANCES = {"fp32": (1e-4, 1e-4), "bf16": (1e-2, 5e-2)}
"""Of losses, and of the tensors of model and optimizer, at another number of processes, where sums are added in another
order; by `precision`. The moments are averages of gradients, which bf16 rounds by some per cent of a small one."""


@dataclass
class Outcome:
    """What befell one of the runs, and how it compares with the straight one."""

    name: str
    ranks: str
    kills: list[str] = field(default_factory=list)
    comparison: Comparison = field(default_factory=Comparison)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the check; returns 0 for PASS, 1 for FAIL, 2 when the configuration cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="of the run that is to be trusted")
    parser.add_argument("--recipe", choices=["cpt", "sft"], help="default: the name of the configuration's folder")
    parser.add_argument("--ranks", type=int, default=2, help="processes of the straight and the killed run")
    parser.add_argument("--other-ranks", type=int, default=1, help="processes that a third run is resumed with")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--scratch", type=Path, help="default: output_dir with -verify-resume; removed after a PASS")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(arguments)
    return exit_code_of(lambda: verify(args))


def verify(args: argparse.Namespace) -> int:
    """Runs, compares, prints; returns the exit code."""
    recipe = args.recipe or ("sft" if args.config.parent.name == "sft" else "cpt")
    given = load_config(recipe, args.config, args.overrides)
    short = shortened(given, args.steps, args.overrides)
    cfg = load_config(recipe, args.config, [*short, *args.overrides])
    scratch = args.scratch or Path(f"{given.output_dir.rstrip('/')}-verify-resume")
    if scratch.exists() and any(scratch.iterdir()):
        raise ConfigError(scratch, ["is not empty; the check writes its runs there; remove it, or give --scratch"])
    scratch.mkdir(parents=True, exist_ok=True)
    print(f"short runs in {scratch}, with {' '.join(short)}; see *.log there", flush=True)
    launcher = Launcher(recipe, args.config, (*short, *args.overrides))
    chance = random.Random(args.seed)
    outcomes = [
        straight_run(launcher, scratch / "straight", args.ranks),
        killed_run(launcher, scratch / "killed", cfg, args.ranks, args.ranks, args.kills, chance),
        killed_run(launcher, scratch / "other", cfg, args.ranks, args.other_ranks, 1, chance),
    ]
    identical = (0.0, 0.0)
    other = identical if args.ranks == args.other_ranks else TOLERANCES[cfg.precision]
    for outcome, limits in zip(outcomes, (identical, identical, other), strict=True):
        run = scratch / outcome.name
        outcome.comparison = compare_runs(run, scratch / "straight", *limits)
        outcome.comparison.problems.extend(sample_problems(cfg, run))
    print("\n".join(aligned(table(outcomes), 3)))
    problems = [f"{o.name}: {problem}" for o in outcomes for problem in o.comparison.problems]
    if problems:
        print(f"FAIL: {'; '.join(problems[:3])}" + (f"; and {len(problems) - 3} more" if len(problems) > 3 else ""))
        return 1
    shutil.rmtree(scratch)
    print(f"PASS: bit for bit with {args.ranks} ranks, losses within {other[0]:g} with {args.other_ranks}")
    return 0


def load_config(recipe: str, path: Path, overrides: Sequence[str]) -> DictConfig:
    """Returns the recipe's configuration, checked."""
    module = f"recipes.{recipe}"  # by name: a room does not import what is launched
    return load(resolve(f"{module}.{recipe.capitalize()}Config"), path, overrides, resolve(f"{module}.check"))


def shortened(cfg: DictConfig, steps: int, overrides: Sequence[str]) -> list[str]:
    """Returns what makes a run short, as overrides; what the user overrides is left alone."""
    keys: dict[str, object] = {
        "steps": steps,
        "save_every_steps": 2,
        "save_every_minutes": None,
        "keep_every_steps": None,
        "ephemeral_every_steps": None,
        "warmup_steps": min(cfg.warmup_steps, steps // 3),
        "decay_steps": min(cfg.decay_steps, steps // 3),
        "schedule_start_step": 0,
        "validation": None,
        "wandb": None,
        "profile": None,
    }
    given = {override.partition("=")[0].partition(".")[0] for override in overrides}
    return [f"{key}={'null' if value is None else value}" for key, value in keys.items() if key not in given]


def straight_run(launcher: Launcher, run: Path, ranks: int) -> Outcome:
    """Runs without a disturbance."""
    launcher.finish(run, ranks)
    return Outcome(run.name, str(ranks))


def killed_run(
    launcher: Launcher, run: Path, cfg: DictConfig, ranks: int, last_ranks: int, num_kills: int, chance: random.Random
) -> Outcome:
    """Runs with kills, spread over the steps at random, and to the end with `last_ranks`."""
    outcome = Outcome(run.name, str(ranks) if ranks == last_ranks else f"{ranks}, then {last_ranks}")
    width = max(1, (cfg.steps - 2) // max(1, num_kills))
    for number in range(num_kills):
        earliest = max(number * width + cfg.save_every_steps, num_rows(run) + 1)
        step = chance.randint(earliest, max(earliest, (number + 1) * width))
        later = chance.random() * 0.5
        moment = in_a_save(run, step) if number % 2 == 0 else behind(run, step, later)
        outcome.kills.append(launcher.kill_at(run, ranks, moment))
    launcher.finish(run, last_ranks)
    return outcome


def sample_problems(cfg: DictConfig, run: Path) -> list[str]:
    """Returns a problem for every step whose samples, by what the run folder says, are not the configuration's."""
    expected, found = open_data(cfg), open_data(read_config(run, 1))
    check_same_data(run, found)
    steps = range(len(rows_by_step(run)))
    return [
        f"step {step + 1} reads other samples" for step in steps if expected.order.step(step) != found.order.step(step)
    ]


def table(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Returns the rows of the table of all runs."""
    rows = [["run", "ranks", "killed at", "steps", "loss differs by", "tensors differ by"]]
    for outcome in outcomes:
        found = outcome.comparison
        rows.append([outcome.name, outcome.ranks, ", ".join(outcome.kills) or "-", str(found.steps)])
        rows[-1] += [f"{found.loss:.2g}", f"{found.weights:.2g}"]
    return rows


if __name__ == "__main__":
    sys.exit(main())
