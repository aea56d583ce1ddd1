"""Scores held-out text during training: loss and bits per byte by language, and whether one is forgotten."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING, DictConfig
from torch import nn
from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm

from configs.loader import ConfigError, existing_path, positive
from data_prep.hf_directory import ModelDirectory
from recipes.training.data.batches import Batches
from recipes.training.data.held_out import HeldOut, open_held_out
from recipes.training.data.order import SampleOrder, Stage
from recipes.training.data.packing import TokenStream, open_shards
from recipes.training.data.plan import DataPlan, tokenizer_of
from recipes.training.distributed import World, sum_over_ranks
from recipes.training.monitoring.forgetting import ForgettingAlarm
from recipes.training.step import losses_of


@dataclass
class ValidationSettings:
    """What is scored, and when beside the start and the end of the run."""

    data: dict[str, str] = MISSING
    """Name, such as a language -> folder of token shards that the run does not train on."""
    every_steps: int = 500
    """Steps between validations."""
    max_tokens: int | None = None
    """Tokens of each folder that are scored, whole documents in a fixed shuffled order; null: all."""
    watch: str = "en"
    """The name in `data` whose rise raises the alarm."""
    max_rise: float | None = 0.05
    """Rise of its bits per byte over the run's start, as a share, above which the model forgets; null: no alarm."""


class Validation:
    """The held-out texts of a run, when they are scored, and what they scored at first.

    Attributes:
        step: of the last validation, None before the first.
        baseline_step: of the first, over which rises are told.
    """

    def __init__(self, settings: ValidationSettings, steps: int, texts: Sequence[HeldOut]) -> None:
        """Takes over the settings; `steps` is the length of the run."""
        self._settings, self._steps, self._texts = settings, steps, texts
        self._fingerprints = {text.name: text.fingerprint for text in texts}
        self._baseline: dict[str, float] = {}
        self.baseline_step = 0
        self.step: int | None = None
        watched = settings.max_rise is not None and settings.watch in self._fingerprints
        self._alarm = ForgettingAlarm(settings.max_rise or 0.0) if watched else None
        self._loaders: list[Batches] = []

    @property
    def texts(self) -> Sequence[HeldOut]:
        """Returns what is scored."""
        return self._texts

    @property
    def state(self) -> dict[str, Any]:
        """Returns what a resumed run goes on with, as plain values."""
        return {
            "step": self.step,
            "texts": self._fingerprints,
            "baseline": self._baseline,
            "baseline_step": self.baseline_step,
            "alarm": self._alarm.state if self._alarm else None,
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Goes on from what `state` returned; what other texts scored is no baseline for these."""
        if state is None or state["texts"] != self._fingerprints:
            return
        self.step, self._baseline, self.baseline_step = state["step"], state["baseline"], state["baseline_step"]
        if self._alarm:
            self._alarm = ForgettingAlarm(self._settings.max_rise or 0.0, state["alarm"])

    def is_due(self, step: int) -> bool:
        """Whether the texts are to be scored behind `step`: once at the start, then regularly, and at the end."""
        if step == self.step:
            return False
        return not self._baseline or step % self._settings.every_steps == 0 or step == self._steps

    def run(self, model: nn.Module, cfg: DictConfig, world: World, step: int, stop: object) -> dict[str, float] | None:
        """Scores all texts; every rank must call it.

        Args:
            model: as it is trained.
            cfg: `TrainSettings`.
            world: the ranks.
            step: steps that are done.
            stop: true when this rank is asked to stop, which all ranks then do before the next batch.

        Returns:
            For each text `validation/NAME/loss` in nats a token, `.../bits_per_byte` and `.../rise` over the first
            value, as a share of it; None when a rank was asked to stop.
        """
        started, values, bits = time.perf_counter(), {}, {}
        self._loaders = self._loaders or [batches_of(text, cfg.micro_batch, world) for text in self._texts]
        for text, loader in zip(self._texts, self._loaders, strict=True):
            sums = score(model, text, loader, cfg, world, stop)
            free_gathered(model)
            if sums is None:
                return None
            nats, targets = sums
            bits[text.name] = nats / math.log(2) / text.num_bytes
            values[f"validation/{text.name}/loss"] = nats / targets
            values[f"validation/{text.name}/bits_per_byte"] = bits[text.name]
        if not self._baseline:
            self._baseline, self.baseline_step = bits, step
        values |= {f"validation/{name}/rise": bits[name] / self._baseline[name] - 1 for name in bits}
        self.step = step
        return values | {"time/validation": time.perf_counter() - started}

    def judge(self, values: dict[str, float], data: DataPlan) -> tuple[dict[str, float], str]:
        """Returns what the alarm adds to the values of `run`, and its warning, empty if there is none to print."""
        if self._alarm is None:
            return {}, ""
        assert self.step is not None
        lang = self._settings.watch
        rise, replay = values[f"validation/{lang}/rise"], share_of(lang, data, self.step)
        is_raised = self._alarm.look(rise)
        now, before = values[f"validation/{lang}/bits_per_byte"], (self._baseline[lang], self.baseline_step)
        return self._alarm.figures(replay), self._alarm.message(lang, now, before, replay) if is_raised else ""


def batches_of(text: HeldOut, micro_batch: int, world: World) -> Batches:
    """Returns this rank's share of a text, one micro-batch a round."""
    order = SampleOrder([Stage(0, (Fraction(1),))], micro_batch * world.data_size, seed=0)
    return Batches([text], order, micro_batch, world.data_rank, world.data_size)


def score(
    model: nn.Module, text: HeldOut, loader: Batches, cfg: DictConfig, world: World, stop: object
) -> tuple[float, int] | None:
    """Returns the text's cross-entropy in nats and its targets, summed over all ranks; None when asked to stop."""
    nats, targets = torch.zeros((), dtype=torch.float64, device=world.device), 0
    rounds = range(math.ceil(text.num_sequences / (cfg.micro_batch * world.data_size)))
    hidden = world.rank != 0 or not sys.stderr.isatty()
    for number in tqdm(rounds, desc=f"validation {text.name}", unit="batch", leave=False, disable=hidden):
        if int(sum_over_ranks(torch.tensor(int(bool(stop))))):
            return None
        for batch in loader.micro_batches(number, world.device):
            with torch.no_grad():
                nats += losses_of(model, batch, cfg.loss_chunk)[1]
            targets += batch.num_targets
    sums = torch.stack([nats, torch.tensor(float(targets), dtype=torch.float64).to(world.device)])
    total, count = (sum_over_ranks(sums) / world.tensor_parallel).tolist()  # such ranks scored the same
    return total, int(count)


def free_gathered(model: nn.Module) -> None:
    """Frees the parameters that FSDP2 keeps gathered behind a forward pass, for a backward pass that never comes."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def share_of(lang: str, data: DataPlan, step: int) -> float | None:
    """Returns the share of a language in the text of the step before or, at 0, of the first; None if unknown."""
    if any(entry.lang is None for entry in data.mixture.sources):
        return None
    last = max(step, 1)
    counts = zip(data.order.exact(last - 1), data.order.exact(last), data.mixture.sources, strict=True)
    of_lang = sum((after - before for before, after, entry in counts if entry.lang == lang), Fraction(0))
    return float(of_lang / data.sequences_per_step)


def open_validation(cfg: DictConfig, data: DataPlan) -> Validation | None:
    """Opens the held-out texts of a run; None without the key `validation`.

    Raises:
        ConfigError: a text was made with another tokenizer than the model's, or is trained on.
        CorpusError: its number of bytes is not known.
    """
    if cfg.validation is None:
        return None
    vocab_size = ModelDirectory.open(cfg.weights).config["vocab_size"] if cfg.weights else cfg.model.vocab_size
    shards = {name: open_shards(Path(path), vocab_size, cfg.weights) for name, path in cfg.validation.data.items()}
    trained = {
        file["sha256"]: entry.name
        for entry, source in zip(data.mixture.sources, data.sources, strict=True)
        if isinstance(source, TokenStream)
        for file in source.shards.manifest["files"].values()
    }
    problems = [
        f"{name}: {one.folder} holds the same tokens as {trained[file['sha256']]}, which the run trains on; held-out "
        "text is expected; give other shards"
        for name, one in shards.items()
        for file_name, file in one.manifest["files"].items()
        if file["sha256"] in trained and file_name.endswith(".bin")
    ]
    if problems:
        raise ConfigError("validation.data", problems)
    texts = []
    for name, one in shards.items():
        tokenizer = tokenizer_of(TokenStream(one, cfg.seq_len, cfg.seed), cfg.weights)
        texts.append(open_held_out(name, one, cfg.seq_len, cfg.validation.max_tokens, tokenizer))
    return Validation(cfg.validation, cfg.steps, texts)


def validation_problems(cfg: DictConfig) -> list[str]:
    """Returns the problems of the key `validation`."""
    if cfg.validation is None:
        return []
    problems = positive(cfg, "validation.every_steps", "validation.max_tokens", "validation.max_rise")
    if not cfg.plan:  # a plan needs no text
        problems += existing_path(cfg, *(f"validation.data.{name}" for name in cfg.validation.data))
    if not cfg.validation.data:
        problems.append("validation.data: is empty; name at least one folder of token shards, or set validation=null")
    return problems
