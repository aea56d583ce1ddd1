"""What was read and what became of it: the ledger of every artifact, the composition of shards and of runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from typing import Any

from recipes.evaluation.report.charts import bar, colour
from recipes.evaluation.report.html import card, cards, legend
from recipes.evaluation.report.sources import Artifact, Sources
from recipes.evaluation.report.words import both


@dataclass(frozen=True)
class Account:
    """A whole, and what it is made of."""

    name: str
    whole: str
    """What is counted."""
    total: int | float
    parts: list[tuple[str, int | float]]
    """(Name, count); in sum the total, or the ledger does not say what became of all."""
    is_ledger: bool = False
    """Whether the parts have names of ours, which the page translates."""
    epochs: dict[str, float] = field(default_factory=dict)
    """Of parts that were read so many times."""

    @property
    def adds_up(self) -> bool:
        """Whether the parts are all of the whole."""
        return self.total > 0 and sum(count for _, count in self.parts) == self.total


def ledgers(artifacts: Sequence[Artifact]) -> Iterator[Account]:
    """Yields the accounts of every artifact's ledger, a level of it each; data before the models made of it."""
    for artifact in sorted(artifacts, key=lambda one: one.manifest.get("kind") == "model"):
        ledger = artifact.manifest.get("ledger") or {}
        is_nested = ledger and all(isinstance(value, dict) for value in ledger.values())
        for level, part in ledger.items() if is_nested else [("", ledger)]:
            if counts := list(numbers(part)):
                (whole, total), *rest = counts
                parts = [(name.replace("dropped.", "").replace("out.", ""), count) for name, count in rest]
                yield Account(artifact.name, f"{level}: {whole}" if level else whole, total, parts, is_ledger=True)


def numbers(value: Any, prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """Yields (dotted name, number) of every number in a JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield prefix, value


def compositions(found: Sources) -> Iterator[Account]:
    """Yields the tokens by source of every artifact with more than one, and of every run."""
    for artifact in found.artifacts:
        sources = [one for one in artifact.manifest.get("sources") or [] if isinstance(one, dict) and "tokens" in one]
        if len(sources) > 1:
            parts = [(f"{one.get('source', '–')} ({one.get('lang', '–')})", one["tokens"]) for one in sources]
            yield Account(artifact.name, "tokens", sum(count for _, count in parts), parts)
    for run in found.runs:
        sources = run.mixture.get("sources", {})
        parts = [(name, one["tokens"]) for name, one in sources.items()]
        epochs = {name: one["epochs"] for name, one in sources.items() if one.get("epochs") is not None}
        if parts:
            yield Account(run.name, "tokens", sum(count for _, count in parts), parts, epochs=epochs)


def shown(accounts: Iterator[Account]) -> str:
    """Returns a box a name with its accounts: the parts as a bar where they add up, and as figures."""
    boxes = groupby(accounts, key=lambda one: one.name)
    return cards(card(escape(name), "".join(map(_bar_and_figures, ones))) for name, ones in boxes)


def _bar_and_figures(one: Account) -> str:
    parts = [(name, count) for name, count in one.parts if count]
    *level, whole = one.whole.split(": ")
    counted = "".join(f"{both(word)}: " for word in level) + both(whole)
    lines: list[tuple[int | None, str]] = [(None, f"<b>{one.total:,}</b> {counted}")]
    for number, (name, count) in enumerate(parts):
        share = f" ({count / one.total:.1%})" if one.adds_up else ""
        share += f", {one.epochs[name]:.2f} {both('epochs')}" if name in one.epochs else ""
        lines.append(
            (
                colour(number) if one.adds_up else None,
                f"{both(name) if one.is_ledger else escape(name)} {count:,}{share}",
            )
        )
    told = f"{one.whole} {one.total:,}: " + ", ".join(f"{name} {count:,}" for name, count in parts)
    return (bar(told, [count for _, count in parts]) if one.adds_up else "") + legend(lines)


def text(one: Account) -> list[str]:
    """Returns an account as a line of a Markdown table: name, whole, parts."""
    parts = [f"{name} {count:,}" for name, count in one.parts if count]
    return [one.name, f"{one.total:,} {one.whole}", ", ".join(parts) or "–"]
