"""What a stage's command becomes inside a job: ranks of a recipe over all nodes, or one command on one node.

A pipeline file states a command once, as it is typed on one machine. This module is the only place that says
what Slurm starts in its stead.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

TRAINING = ("recipes.cpt", "recipes.sft")
"""Recipes that spread over nodes, and whose run folder takes a stop request, a fence and a heartbeat."""
RECIPES = (*TRAINING, "recipes.chat_vector", "recipes.evaluate", "recipes.evaluate_run")
"""Modules with an sbatch file of their own."""


@dataclass(frozen=True)
class Launch:
    """One command as Slurm starts it."""

    module: str | None
    """Module that every rank runs; None: the words are one command on one node."""
    words: tuple[str, ...]
    """Arguments of the module, or the whole command."""
    ranks_per_node: int
    """As the command states it; GPUs of a node win over it."""
    environment: dict[str, str]
    """Variables that the command sets with `env`."""

    @property
    def script(self) -> str:
        """Name of the file in slurm/ that runs it."""
        if self.module in RECIPES:
            return f"{self.module.rpartition('.')[2]}.sbatch"
        return "data_prep.sbatch" if "data_prep" in self.words[:3] else "command.sbatch"

    @property
    def is_training(self) -> bool:
        """Whether it is a run of the training loop."""
        return self.module in TRAINING


def launch_of(words: Sequence[str]) -> Launch:
    """Returns how Slurm starts a command.

    `tune run [torchrun's options] recipes/x.py ARGUMENTS` and `python -m recipes.x ARGUMENTS` become ranks of
    `recipes.x` where x has an sbatch file; everything else stays the command it is. Variables of a leading
    `env A=B ...` are set for either.
    """
    rest, environment = list(words), {}
    if rest and rest[0] == "env":
        pairs = list(itertools.takewhile(lambda word: "=" in word and not word.startswith("-"), rest[1:]))
        environment = dict(pair.split("=", 1) for pair in pairs)
        rest = rest[1 + len(pairs) :]
    module, arguments, ranks = _recipe(rest)
    if module in RECIPES:
        return Launch(module, tuple(arguments), ranks if module in TRAINING else 1, environment)
    return Launch(None, tuple(rest), 1, environment)


def run_folder(arguments: Sequence[str]) -> Path | None:
    """Returns the `output_dir` that a recipe's arguments and configuration give; None where none does.

    The command line wins over the file, the file over its `base`, as in `configs.loader`.
    """
    given = [word.split("=", 1)[1] for word in arguments if word.startswith("output_dir=")]
    config = option(arguments, "--config")
    if given or config is None:
        return Path(given[-1]) if given else None
    layer = OmegaConf.load(config)
    if "output_dir" not in layer and "base" in layer:
        layer = OmegaConf.load(Path(config).parent / str(layer.base))
    return Path(layer.output_dir) if "output_dir" in layer else None


def option(words: Sequence[str], name: str) -> str | None:
    """Returns the value of `--name VALUE` or `--name=VALUE`."""
    for word, following in itertools.pairwise([*words, ""]):
        if word == name:
            return following or None
        if word.startswith(f"{name}="):
            return word.split("=", 1)[1]
    return None


def _recipe(words: Sequence[str]) -> tuple[str | None, Sequence[str], int]:
    """Returns module, arguments and ranks of one node of a command that launches a recipe."""
    if list(words[:2]) == ["tune", "run"]:
        place = next((i for i, word in enumerate(words) if word.startswith("recipes/") and word.endswith(".py")), None)
        if place is not None:
            ranks = option(words[:place], "--nproc_per_node") or option(words[:place], "--nproc-per-node") or "1"
            module = words[place].removesuffix(".py").replace("/", ".")
            return module, words[place + 1 :], int(ranks) if ranks.isdigit() else 1
    if len(words) > 2 and words[0].startswith("python") and words[1] == "-m":
        return words[2], words[3:], 1
    return None, (), 1
