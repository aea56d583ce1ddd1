"""Scores side by side: on the terminal, in Markdown, and on the page with differences and confidence intervals."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from recipes.evaluation.report.html import cell, table
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
    "repetition_ko": "Answers in a loop, Korean prompts",
    "repetition_en": "Answers in a loop, English prompts",
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
    "repetition_ko": "loops ko",
    "repetition_en": "loops en",
}
HEADLINE = ("bits_per_byte_ko", "bits_per_byte_en", "chat_form_ko", "answered_in_korean", "exact_match")
"""Scores that the page begins with."""
LOWER_IS_BETTER = ("bits_per_byte", "repetition")
RESULTS_NOTE = (
    "Lower is better for bits per byte and loops, higher for all others. Small figures: the difference from the first "
    "row, and the 95 % confidence interval."
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


def name_of(key: str) -> str:
    """Returns what a score is called on the page; a small task of one's own has its own name."""
    return COLUMNS.get(key, key.removeprefix("task_"))


def headline(found: Sources) -> str:
    """Returns the most telling scores of the last model beside the first one's."""
    if len(found.rows) < 2:
        return ""
    first, last = found.rows[0], found.rows[-1]
    tiles = "".join(
        f"<li><span>{both(name_of(key))}</span><b>{figure(key, first[key])} → {figure(key, last[key])}</b>"
        f"{_from_to(key, first[key], last[key])}</li>"
        for key in HEADLINE
        if "–" not in (figure(key, first.get(key)), figure(key, last.get(key)))
    )
    names = f"{escape(str(first['model']))} → {escape(str(last['model']))}"
    return f'<p>{names}</p>\n<ul class="tiles">{tiles}</ul>\n' if tiles else ""


def _from_to(key: str, first: float, last: float) -> str:
    if first == last:
        return ""
    shown = f"{last / first - 1:+.1%}" if _is_bits(key) else f"{100 * (last - first):+.0f}"
    return difference(last - first, shown, _is_lower_better(key))


def _is_bits(key: str) -> bool:
    return key.startswith("bits")


def _is_lower_better(key: str) -> bool:
    return key.startswith(LOWER_IS_BETTER)


def results(found: Sources) -> str:
    """Returns the scores of `recipes/evaluate.py`."""
    if not found.rows:
        return ""
    keys, first = columns_of(found.rows), found.rows[0]
    rows = [
        (str(row["model"]), [_score(key, row.get(key), first.get(key), found.examples.get(key)) for key in keys])
        for row in found.rows
    ]
    counts = {name_of(key): f"n = {found.examples[key]:,}" for key in keys if found.examples.get(key)}
    body = table("Results", ["Model", *map(name_of, keys)], rows, counts)
    return f"{body}\n<p>{both(RESULTS_NOTE)}</p>"


def _score(key: str, value: Any, first: Any, count: int | None) -> str:
    shown = escape(figure(key, value))
    if shown == "–":
        return f"<td>{shown}</td>"
    small = ""
    if isinstance(first, int | float) and math.isfinite(first) and value != first:
        change = value - first
        small = difference(change, f"{change:+.3f}" if _is_bits(key) else f"{100 * change:+.0f}", _is_lower_better(key))
    if count and 0 <= value <= 1 and not _is_bits(key):
        low, high = wilson(value, count)
        small += f"<small>{100 * low:.0f}–{100 * high:.0f} %</small>"
    return f"<td>{shown}{small}</td>"


def difference(change: float, shown: str, is_lower_better: bool) -> str:
    """Returns a difference with its direction as a mark too, for those who do not see the colour."""
    kind = "better" if (change < 0) == is_lower_better else "worse"
    return f'<small class="{kind}">{"▲" if change > 0 else "▼"} {shown}</small>'


def benchmarks(harness: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Returns the scores of `recipes/harness.py`: a row a task, a column a model."""
    if not harness:
        return ""
    rows = []
    for label, found in scores_by_task(harness).items():
        some = next(iter(found.values()))
        cells = [_benchmark(found.get(model), some) for model in harness]
        rows.append((f"{label} ({some['shots']}-shot {some['metric']})", cells))
    return table("Benchmarks", ["Task", *harness], rows) + f"\n<p>{both(HARNESS_NOTE)}</p>"


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
    mark = difference(change, f"{change:+.1f}", is_lower_better=False) if change else ""
    return f"<td>{100 * score['macro']:.1f}<small>{escape(small)}</small>{mark}</td>"
