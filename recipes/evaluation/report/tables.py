"""Scores side by side: on the terminal, in Markdown, and on the page with differences and confidence intervals."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from recipes.evaluation.report.html import cell, section, table
from recipes.evaluation.report.sources import Sources
from recipes.evaluation.report.words import both

COLUMNS = {
    "bits_per_byte_ko": "Bits per byte, Korean",
    "bits_per_byte_en": "Bits per byte, English",
    "chat_form_ko": "Ends its turn, Korean prompts",
    "chat_form_en": "Ends its turn, English prompts",
    "answered_in_korean": "Korean prompts answered in Korean",
    "exact_match": "Exact match",
    "exact_match_ko": "Exact match, Korean",
    "exact_match_en": "Exact match, English",
}
SHORT = {
    "bits_per_byte_ko": "bits/byte ko",
    "bits_per_byte_en": "bits/byte en",
    "chat_form_ko": "chat form ko",
    "chat_form_en": "chat form en",
    "answered_in_korean": "in Korean",
    "exact_match": "exact match",
    "exact_match_ko": "exact ko",
    "exact_match_en": "exact en",
}
RESULTS_NOTE = (
    "Lower is better for bits per byte, higher for all others. Small figures: the difference from the first row, "
    "and the 95 % confidence interval."
)
HARNESS_NOTE = "A group's score is the mean of its subjects, ± 1.96 standard errors; micro: the mean of its examples."
Z = 1.959964
"""Of the normal distribution, for 95 %."""


def figure(key: str, value: Any) -> str:
    """Returns a figure as shown: bits with three digits, shares as per cent, a dash for what is missing."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if key.startswith("bits") else f"{100 * value:.0f} %"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table, aligned for the terminal; the first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |" for line in ruled)


def text_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows of a report, one a model, as a Markdown table."""
    keys = columns_of(rows)
    head = ["model", *(SHORT.get(key, key) for key in keys)]
    return markdown_table([head, *([str(row["model"]), *(figure(key, row.get(key)) for key in keys)] for row in rows)])


def columns_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the scores that any row has, in order."""
    return list(dict.fromkeys(key for row in rows for key in row if key not in ("model", "scale")))


def wilson(share: float, count: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a share of `count` answers.

    Source: E. B. Wilson, 1927.
    """
    centre = share + Z**2 / (2 * count)
    spread = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return (centre - spread) / (1 + Z**2 / count), (centre + spread) / (1 + Z**2 / count)


def results(found: Sources) -> str:
    """Returns the section with the scores of `recipes/evaluate.py`."""
    if not found.rows:
        return ""
    keys, first = columns_of(found.rows), found.rows[0]
    rows = [
        (str(row["model"]), [_score(key, row.get(key), first.get(key), found.examples.get(key)) for key in keys])
        for row in found.rows
    ]
    body = table("Results", ["Model", *(COLUMNS.get(key, key) for key in keys)], rows)
    return section("Results", f"{body}\n<p>{both(RESULTS_NOTE)}</p>")


def _score(key: str, value: Any, first: Any, count: int | None) -> str:
    shown = escape(figure(key, value))
    if shown == "–":
        return f"<td>{shown}</td>"
    small = ""
    is_bits = key.startswith("bits")
    if isinstance(first, int | float) and math.isfinite(first) and value != first:
        small = _change(value - first, f"{value - first:+.3f}" if is_bits else f"{100 * (value - first):+.0f}", is_bits)
    if count and 0 <= value <= 1 and not is_bits:
        low, high = wilson(value, count)
        small += f"<small>{100 * low:.0f}–{100 * high:.0f} %, n = {count}</small>"
    return f"<td>{shown}{small}</td>"


def _change(change: float, shown: str, is_lower_better: bool) -> str:
    """Returns a difference with its direction as a mark too, for those who do not see the colour."""
    kind = "better" if (change < 0) == is_lower_better else "worse"
    return f'<small class="{kind}">{"▲" if change > 0 else "▼"} {shown}</small>'


def benchmarks(harness: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Returns the section with the scores of `recipes/harness.py`: a row a task, a column a model."""
    if not harness:
        return ""
    rows = []
    for label, found in scores_by_task(harness).items():
        some = next(iter(found.values()))
        cells = [_benchmark(found.get(model), some) for model in harness]
        rows.append((f"{label} ({some['shots']}-shot {some['metric']})", cells))
    return section("Benchmarks", table("Benchmarks", ["Task", *harness], rows) + f"\n<p>{both(HARNESS_NOTE)}</p>")


def scores_by_task(harness: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns label -> model -> score, in order; a model without a score of a task is left out there."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for model, scores in harness.items():
        for one in scores:
            found.setdefault(one["label"], {})[model] = one
    return found


def _benchmark(score: dict[str, Any] | None, first: dict[str, Any]) -> str:
    if score is None:
        return cell("–")
    error = score["macro_stderr"]
    small = f" ± {100 * Z * error:.1f}" if isinstance(error, int | float) and math.isfinite(error) else ""
    small += f", micro {100 * score['micro']:.1f}" if len(score["subjects"]) > 1 else ""
    change = 100 * (score["macro"] - first["macro"])
    mark = _change(change, f"{change:+.1f}", is_lower_better=False) if change else ""
    return f"<td>{100 * score['macro']:.1f}<small>{escape(small)}</small>{mark}</td>"
