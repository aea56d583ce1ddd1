"""What a run will read: sequences, tokens and epochs of each source, told before the first step."""

import bisect
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from configs.loader import ConfigError, UserError, existing_path
from data_prep.document import write_jsonl
from data_prep.lineage import write_json
from data_prep.tokens.tokenizer import load_tokenizer
from data_prep.tokens.tokenizer_formats import Tokenizer
from recipes.training.data.mixture import Mixture, SourceEntry
from recipes.training.data.order import SampleOrder
from recipes.training.data.packing import ChatExamples, Source, TokenStream
from recipes.training.planning.estimate import compute_plan
from recipes.training.tables import aligned

EXCERPT_CHARS = 100


@dataclass(frozen=True)
class DataPlan:
    """The sources of a run and the order in which its steps read them; sequences are of `seq_len` tokens."""

    mixture: Mixture
    sources: tuple[Source, ...]
    order: SampleOrder
    steps: int
    sequences_per_step: int
    seq_len: int

    def identity(self) -> dict[str, str]:
        """Returns what decides which sequence a step reads, beside the seed and the sizes of a step."""
        return {"data": ", ".join(s.fingerprint[:12] for s in self.sources), "mixture": self.mixture.describe()}

    def tokens(self, step: int) -> dict[str, int]:
        """Returns the tokens each source has given before `step`, the padding of its sequences included."""
        counts = zip(self.mixture.sources, self.order.counts(step), strict=True)
        return {entry.name: count * self.seq_len for entry, count in counts}

    def epochs(self, step: int) -> dict[str, float]:
        """Returns how many times each source has been read through before `step`."""
        counts = zip(self.mixture.sources, self.sources, self.order.counts(step), strict=True)
        return {entry.name: count / source.sequences_per_epoch for entry, source, count in counts}

    def ledger(self, step: int) -> dict[str, dict[str, float]]:
        """Returns the tokens and epochs of each source before `step`; the tokens add up to the run's."""
        tokens, epochs = self.tokens(step), self.epochs(step)
        assert sum(tokens.values()) == step * self.sequences_per_step * self.seq_len, f"ledger of step {step}: {tokens}"
        return {name: {"tokens": tokens[name], "epochs": epochs[name]} for name in tokens}

    def as_json(self) -> dict[str, Any]:
        """Returns the whole plan as plain values; the tokens of the stages add up to the run's."""
        tokens, epochs = self.tokens(self.steps), self.epochs(self.steps)
        sources = {
            entry.name: {
                entry.kind: str(entry.path),
                "lang": entry.lang,
                "fingerprint": source.fingerprint,
                "tokens_in_an_epoch": source.num_tokens,
                "tokens": tokens[entry.name],
                "epochs": epochs[entry.name],
                "max_epochs": entry.max_epochs,
                **_chat_facts(entry, source),
            }
            for entry, source in zip(self.mixture.sources, self.sources, strict=True)
        }
        return {
            "steps": self.steps,
            "sequences_per_step": self.sequences_per_step,
            "seq_len": self.seq_len,
            "sources": sources,
            "stages": self._stages(),
        }

    def write(self, folder: Path) -> None:
        """Writes `mixture.json` into a run folder; where chat examples were dropped, also which and why."""
        write_json(folder / "mixture.json", self.as_json())
        chats = [source.found for source in self.sources if isinstance(source, ChatExamples)]
        if dropped := [asdict(one) for found in chats for one in found.dropped]:
            write_jsonl(folder / "dropped_examples.jsonl", dropped)

    def table(self) -> str:
        """Returns the plan for people: a row per source, a column per stage."""
        rows = [["source", "lang", "tokens"], ["", "", "in it"]]
        for stage in self.mixture.stages:
            ramp = f"ramp of {stage.ramp_steps}" if stage.ramp_steps else ""
            rows[0].append(f"step {stage.from_step}")
            rows[1].append("not reached" if stage.from_step >= self.steps else ramp)
        rows[0] += ["tokens", "sequences", "epochs", "at most"]
        rows[1] += ["read", "", "", ""]
        tokens, epochs = self.tokens(self.steps), self.epochs(self.steps)
        for number, (entry, source) in enumerate(zip(self.mixture.sources, self.sources, strict=True)):
            shares = [f"{100 * float(stage.shares[number]):.4g} %" for stage in self.mixture.stages]
            read = tokens[entry.name]
            limit = "any" if entry.max_epochs is None else f"{entry.max_epochs:g}"
            counts = [f"{read:,}", f"{read // self.seq_len:,}", f"{epochs[entry.name]:,.2f}", limit]
            rows.append([entry.name, entry.lang or "-", f"{source.num_tokens:,}", *shares, *counts])
        total = self.steps * self.sequences_per_step * self.seq_len
        head = (
            f"{self.steps:,} steps x {self.sequences_per_step:,} sequences x {self.seq_len:,} tokens = {total:,} tokens"
        )
        return "\n".join([head, *aligned(rows, 2)])

    def _stages(self) -> list[dict[str, Any]]:
        told = []
        starts = [min(stage.from_step, self.steps) for stage in self.mixture.stages]
        for stage, (start, end) in zip(self.mixture.stages, itertools.pairwise([*starts, self.steps]), strict=True):
            before, after = self.tokens(start), self.tokens(end)
            shares = zip(self.mixture.sources, stage.shares, strict=True)
            told.append(
                {
                    "from_step": stage.from_step,
                    "ramp_steps": stage.ramp_steps,
                    "shares": {entry.name: float(share) for entry, share in shares},
                    "tokens": {name: after[name] - before[name] for name in before},
                }
            )
        return told


def plan_data(cfg: DictConfig, mixture: Mixture, sources: Sequence[Source]) -> DataPlan:
    """Lays out what a run reads from step 0 to `cfg.steps`.

    Args:
        cfg: `TrainSettings`, checked.
        mixture: as `cfg.data` says.
        sources: its sources, opened, in its order.

    Raises:
        ConfigError: a source would be read more often than its `max_epochs`, or two are the same text.
    """
    sequences_per_step = cfg.global_batch_tokens // cfg.seq_len
    order = SampleOrder(mixture.stages, sequences_per_step, cfg.seed)
    plan = DataPlan(mixture, tuple(sources), order, cfg.steps, sequences_per_step, cfg.seq_len)
    if problems := _above_max_epochs(plan) + _same_text(plan):
        raise ConfigError("data", problems)
    return plan


def show_plan(cfg: DictConfig, open_data: Callable[[], DataPlan]) -> int:
    """Prints what a run needs of its GPUs, then what it reads; returns exit code 0.

    Args:
        cfg: `TrainSettings`, checked.
        open_data: opens the run's data.

    Raises:
        UserError: the data, or the tokenizer of the weights, cannot be read; the first part is printed by then.
    """
    if os.environ.get("RANK", "0") == "0":
        print(compute_plan(cfg) + "\n", flush=True)
        if missing := existing_path(cfg, "weights"):
            raise ConfigError("what the run would read cannot be told", missing)
        show_data_plan(open_data(), cfg.weights)
    return 0


def show_data_plan(plan: DataPlan, weights: str | None) -> None:
    """Prints the plan and how the first step's documents begin.

    Args:
        plan: of the run.
        weights: model directory whose tokenizer decodes the text; without one the shards' own is looked for.
    """
    print(plan.table())
    for line in first_documents(plan, weights):
        print(line)


def first_documents(plan: DataPlan, weights: str | None, most: int = 3) -> list[str]:
    """Returns, for the first sequence of each source, the beginnings of its first documents."""
    lines = []
    for number, (entry, source) in enumerate(zip(plan.mixture.sources, plan.sources, strict=True)):
        if not any(picked == number for picked, _ in plan.order.step(0)):
            continue
        sample, names = source.sample(0), source.documents(0)
        tokenizer = tokenizer_of(source, weights)
        lines.append(f"{entry.name}: the first of its sequences in step 0 has {len(names)} documents")
        for document, name in enumerate(names[:most]):
            ids = sample.tokens[sample.documents == document]
            lines.append(f"  {name}, {len(ids)} tokens: {_excerpt(ids, tokenizer)}")
    return lines


def _chat_facts(entry: SourceEntry, source: Source) -> dict[str, Any]:
    """Returns where chat examples came from, and their ledger; nothing for token shards."""
    if entry.chat is None or not isinstance(source, ChatExamples):
        return {}
    told = asdict(entry.chat).items()
    return {"source": {key: value for key, value in told if value}, "examples": source.found.ledger()}


def _above_max_epochs(plan: DataPlan) -> list[str]:
    problems, epochs = [], plan.epochs(plan.steps)
    for entry in plan.mixture.sources:
        name, limit = entry.name, entry.max_epochs
        if limit is not None and epochs[name] > limit:
            within = bisect.bisect_right(range(plan.steps), limit, key=lambda step: plan.epochs(step)[name]) - 1
            problems.append(
                f"{name}: is read {epochs[name]:,.2f} times by step {plan.steps}; max_epochs is {limit:g}; lower its "
                f"weight, add text, raise max_epochs{f', or set steps={within}' if within else ''}"
            )
    return problems


def _same_text(plan: DataPlan) -> list[str]:
    first: dict[str, str] = {}
    problems = []
    for entry, source in zip(plan.mixture.sources, plan.sources, strict=True):
        if (other := first.setdefault(source.fingerprint, entry.name)) != entry.name:
            problems.append(
                f"{entry.name}: {entry.path} holds the same text as {other}; a text read under two names has twice "
                "the epochs that are told; name it once, with the sum of the weights"
            )
    return problems


def _excerpt(ids: np.ndarray, tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return " ".join(map(str, ids[:16].tolist()))
    text = " ".join(tokenizer.decode(ids[:EXCERPT_CHARS].tolist(), skip_special=False).split())
    return text if len(text) <= EXCERPT_CHARS else text[:EXCERPT_CHARS] + "…"


def tokenizer_of(source: Source, weights: str | None) -> Tokenizer | None:
    """Returns the tokenizer that made the source's ids, if it is still where it was."""
    if isinstance(source, ChatExamples):
        return source.tokenizer
    places = [weights] if weights else []
    if isinstance(source, TokenStream):
        places.append(source.shards.manifest.get("inputs", {}).get("tokenizer", {}).get("path"))
    for place in filter(None, places):
        try:
            return load_tokenizer(Path(place))
        except UserError:
            continue
    return None
