"""What happened during the runs: loss, held-out text, speed."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from recipes.evaluation.report.charts import colour, line_chart, smoothed
from recipes.evaluation.report.html import card, cards, cell, legend, table
from recipes.evaluation.report.sources import Run
from recipes.evaluation.report.words import both

BITS = "/bits_per_byte"
SPEED = "Tokens/s"


def points_of(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """Returns (step, value) of the rows that have the key."""
    return [(float(row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)]


def held_out_of(run: Run) -> dict[str, list[tuple[float, float]]]:
    """Returns language -> (step, bits per byte) of what was measured during a run."""
    keys = dict.fromkeys(key for row in run.validations for key in row if key.endswith(BITS))
    return {key.removeprefix("validation/").removesuffix(BITS): points_of(run.validations, key) for key in keys}


def loss_of(run: Run) -> list[tuple[float, float]]:
    """Returns (step, training loss), without what is not finite, which no mean could have."""
    return [(step, loss) for step, loss in points_of(run.steps, "train/loss") if math.isfinite(loss)]


def losses(runs: Sequence[Run]) -> str:
    """Returns the training loss of every run."""
    figures = []
    for run in runs:
        if points := loss_of(run):
            means = smoothed(points)
            title = f"Training loss of {run.name} over {len(points)} steps"
            chart = line_chart(title, "step", {"loss": means}, faint=points)
            figures.append(card(escape(run.name), chart + legend([(None, change(means))])))
    note = f"<p>{both('Bold: running mean over a twentieth of the run; pale: every step.')}</p>" if figures else ""
    return note + cards(figures)


def change(points: Sequence[tuple[float, float]]) -> str:
    """Returns the first and the last value, and the change as a share of the first."""
    first, last = points[0][1], points[-1][1]
    share = f" ({last / first - 1:+.1%})" if first and math.isfinite(last / first) else ""
    return f"{first:.3f} → <b>{last:.3f}</b>{share}"


def held_out(runs: Sequence[Run]) -> str:
    """Returns the bits per byte that were measured during the runs: a chart a run, a line a language."""
    figures = []
    for run in runs:
        if lines := held_out_of(run):
            chart = line_chart(f"Bits per byte of {run.name}: {', '.join(lines)}", "step", lines)
            told = [(colour(n), f"{escape(name)} {change(points)}") for n, (name, points) in enumerate(lines.items())]
            figures.append(card(escape(run.name), chart + legend(told)))
    note = f"<p>{both('Bits per byte of text that no run has trained on.')}</p>" if figures else ""
    return note + cards(figures)


def facts(run: Run) -> dict[str, str]:
    """Returns what the metrics say about a run as a whole: label -> figure, as far as it was measured."""
    last = run.steps[-1]
    found = {"Steps": f"{last['step']:,}"}
    if "train/tokens" in last:
        found["Tokens"] = f"{last['train/tokens']:,.0f}"
    if ranks := run.ranks:
        found["Processes"] = str(ranks)
    if seconds := [row["time/step"] for row in run.steps if "time/step" in row]:
        found["Time in steps"] = _duration(sum(seconds))
        waits = [row.get("time/data_wait", 0.0) for row in run.steps if "time/step" in row]
        found["Waiting for data"] = f"{sum(waits) / (sum(seconds) or 1):.1%}"
    if rate := _median(run, "speed/tokens_per_second"):
        found[SPEED] = f"{rate:,.0f}"
    for key in dict.fromkeys(key for row in run.steps for key in row if key.startswith("speed/mfu")):
        found["MFU" + key.removeprefix("speed/mfu").replace("_", ", ")] = f"{_median(run, key):.1%}"
    for key, label in (("memory/peak_allocated_gib", "GPU memory, GiB"), ("memory/peak_rss_gib", "Memory, GiB")):
        if peaks := [row[key] for row in run.steps if key in row]:
            found[label] = f"{max(peaks):.1f}"
    if "train/skipped_steps" in last:
        found["Skipped steps"] = f"{last['train/skipped_steps']:.0f}"
    return found


def throughput(runs: Sequence[Run]) -> str:
    """Returns a table of the runs' sizes and speeds, and the tokens a second over the steps."""
    every = {run.name: facts(run) for run in runs if run.steps}
    if not every:
        return ""
    head = list(dict.fromkeys(label for one in every.values() for label in one))
    rows = [(name, [cell(one.get(label, "–")) for label in head]) for name, one in every.items()]
    figures = []
    for run in runs:
        if points := points_of(run.steps, "speed/tokens_per_second"):
            chart = line_chart(f"Tokens a second of {run.name}", "step", {SPEED: smoothed(points)}, faint=points)
            figures.append(card(f"{escape(run.name)}: {both(SPEED)}", chart))
    note = f"<p>{both('Speeds and MFU are medians over the steps.')}</p>"
    return table("Throughput", ["Run", *head], rows) + note + cards(figures)


def _median(run: Run, key: str) -> float:
    values = sorted(value for _, value in points_of(run.steps, key))
    return values[len(values) // 2] if values else 0.0


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min" if seconds >= 60 else f"{seconds:.0f} s"
