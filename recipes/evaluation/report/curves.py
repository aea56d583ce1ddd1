"""Curves over the steps of a run: loss, held-out text, rates."""

from collections.abc import Sequence
from html import escape
from typing import Any

from recipes.evaluation.report.charts import line_chart
from recipes.evaluation.report.html import section
from recipes.evaluation.report.sources import Run
from recipes.evaluation.report.words import both

BITS = "/bits_per_byte"


def points_of(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """Returns (step, value) of the rows that have the key."""
    return [(float(row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)]


def losses(runs: Sequence[Run]) -> str:
    """Returns the section with the training loss of every run."""
    figures = []
    for run in runs:
        if run.steps:
            title = f"Training loss of {run.name} over {len(run.steps)} steps"
            figures.append(_figure(run.name, title, points_of(run.steps, "train/loss"), _at_the_end(run.steps[-1])))
    return _charts("Training loss", figures)


def _at_the_end(last: dict[str, Any]) -> str:
    parts = [f"step {last['step']}", f"loss {last['train/loss']:.3f}"]
    parts += [f"{last['train/tokens']:,.0f} tokens"] if "train/tokens" in last else []
    parts += [f"{last['speed/tokens_per_second']:,.0f} tokens/s"] if "speed/tokens_per_second" in last else []
    parts += [f"lr {last['train/lr']:.2e}"] if "train/lr" in last else []
    return "At the end: " + ", ".join(parts)


def held_out(runs: Sequence[Run]) -> str:
    """Returns the section with the bits per byte that were measured during the runs, a chart a run and language."""
    figures = []
    for run in runs:
        keys = dict.fromkeys(key for row in run.validations for key in row if key.endswith(BITS))
        for key in keys:
            name = f"{run.name}: {key.removeprefix('validation/').removesuffix(BITS)}"
            points = points_of(run.validations, key)
            told = f"{points[0][1]:.4f} → {points[-1][1]:.4f} ({points[-1][1] / points[0][1] - 1:+.1%})"
            figures.append(_figure(name, f"Bits per byte of {name}", points, told))
    note = f"<p>{both('Bits per byte of text that no run has trained on.')}</p>" if figures else ""
    return _charts("Held-out text", figures, note)


def throughput(runs: Sequence[Run]) -> str:
    """Returns the section with tokens a second, and the MFU where it was measured."""
    figures = []
    for run in runs:
        mfu = dict.fromkeys(key for row in run.steps for key in row if key.startswith("speed/mfu"))
        for key in ("speed/tokens_per_second", *mfu):
            if points := points_of(run.steps, key):
                middle = sorted(value for _, value in points)[len(points) // 2]
                name = "MFU" + key.removeprefix("speed/mfu").replace("_", ", ") if key in mfu else "tokens/s"
                told = f"median {middle:.1%}" if key in mfu else f"median {middle:,.0f}"
                figures.append(_figure(f"{run.name}: {name}", f"{name} of {run.name}", points, told))
    return _charts("Throughput", figures)


def _figure(name: str, title: str, points: Sequence[tuple[float, float]], caption: str) -> str:
    chart = line_chart(title, "step", points)
    return f"<figure><h3>{escape(name)}</h3>{chart}<figcaption>{escape(caption)}</figcaption></figure>"


def _charts(title: str, figures: Sequence[str], note: str = "") -> str:
    return section(title, f'{note}<div class="charts">{"".join(figures)}</div>' if figures else "")
