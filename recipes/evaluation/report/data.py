"""What was read and what became of it: ledgers of every artifact, mixtures of every run."""

from collections.abc import Iterator
from typing import Any

from recipes.evaluation.report.html import cell, section, table
from recipes.evaluation.report.sources import Sources


def ledgers(found: Sources) -> str:
    """Returns the section with the counts of every artifact's ledger."""
    rows = [
        (f"{artifact.name}: {entry}", [cell(f"{value:,}")])
        for artifact in found.artifacts
        for entry, value in numbers(artifact.manifest.get("ledger") or {})
    ]
    return section("Data ledger", table("Data ledger", ["What", "Count"], rows) if rows else "")


def numbers(value: Any, prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """Yields (dotted name, number) of every number in a JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield prefix, value


def mixtures(found: Sources) -> str:
    """Returns the section with the sources of every run: tokens read, epochs, share."""
    rows = []
    for run in found.runs:
        sources = run.mixture.get("sources", {})
        total = sum(one["tokens"] for one in sources.values()) or 1
        for name, one in sources.items():
            share, epochs = f"{one['tokens'] / total:.0%}", one.get("epochs")
            figures = [f"{one['tokens']:,}", "–" if epochs is None else f"{epochs:.2f}", share]
            rows.append((f"{run.name}: {name}", [cell(text) for text in figures]))
    return section("Mixtures", table("Mixtures", ["Source", "Tokens", "Epochs", "Share"], rows) if rows else "")
