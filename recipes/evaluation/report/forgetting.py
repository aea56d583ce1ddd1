"""What a run's checkpoints gained and forgot: their scores over the steps, and the retention of every language."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from recipes.evaluation.report.charts import colour, line_chart
from recipes.evaluation.report.curves import change, points_of
from recipes.evaluation.report.html import card, cards, legend, table
from recipes.evaluation.report.sources import Run, Sources
from recipes.evaluation.report.tables import difference, name_of
from recipes.evaluation.report.words import both

TEXT = "bits_per_byte_"
NO_SCORES = ("step", "seconds")


def checkpoints(runs: Sequence[Run]) -> str:
    """Returns charts of what `recipes/evaluate_run.py` measured: bits per byte in one, every other score in its own."""
    figures = []
    for run in runs:
        keys = list(dict.fromkeys(key for row in run.evaluations for key in row))
        bits = [key for key in keys if key.startswith(TEXT)]
        text = {key.removeprefix(TEXT): points_of(run.evaluations, key) for key in bits}
        best = next((row["step"] for row in run.retention.get("rows", []) if row.get("best")), None)
        others = {key: points_of(run.evaluations, key) for key in keys if key not in NO_SCORES and key not in bits}
        charts = {"Bits per byte": text} | {name_of(key): {key: points} for key, points in others.items() if points}
        for name, lines in charts.items():
            if not any(lines.values()):
                continue
            told: list[tuple[int | None, str]] = [
                (colour(n), f"{escape(label)} {change(points)}") for n, (label, points) in enumerate(lines.items())
            ]
            told += [(None, f"{both('best checkpoint')}: {best}")] if best is not None else []
            chart = line_chart(f"{name} of the checkpoints of {run.name}", "step", lines, mark=best)
            figures.append(card(f"{escape(run.name)}: {both(name)}", chart + legend(told)))
    return cards(figures)


def retention(found: Sources) -> str:
    """Returns the retention tables: bits per byte by language beside those of the base."""
    parts = []
    for name, one in found.retention.items():
        head = ["Model", *(f"{lang} {what}" for lang in one["languages"] for what in ("bits/byte", "kept")), "Replay"]
        rows = [(str(row["model"]) + (" ★" if row.get("best") else ""), _cells(row, one)) for row in one["rows"]]
        parts.append(f"<h3>{escape(name)}</h3>{table(f'Retention of {name}', head, rows)}")
        limit = f"{escape(one['guard'])} {one['max_rise']:+.1%}"
        parts.append(f"<p>{both('Largest rise of bits per byte that gives no alarm')}: {limit}.</p>")
    note = f"<p>{both(NOTE)}</p>" if parts else ""
    return note + "\n".join(parts)


NOTE = "Kept: bits per byte of the base divided by those of the model; 100 % is nothing forgotten, above is a gain."


def _cells(row: dict[str, Any], one: dict[str, Any]) -> list[str]:
    cells = []
    for lang in one["languages"]:
        bits, change_, kept = (row[key].get(lang) for key in ("bits_per_byte", "change", "retention"))
        small = difference(change_, f"{change_:+.3f}", is_lower_better=True) if change_ else ""
        alarm = f'<small class="worse">{both("alarm")}</small>' if row["alarm"] and lang == one["guard"] else ""
        cells += [f"<td>{_number(bits, '.3f')}{small}{alarm}</td>", f"<td>{_number(kept, '.1%')}</td>"]
    replay = row.get("suggested_replay")
    return [*cells, f"<td>{'–' if replay is None else f'{replay:.0%}'}</td>"]


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) and math.isfinite(value) else "–"


def retention_lines(one: dict[str, Any]) -> list[list[str]]:
    """Returns a retention table as lines of Markdown cells; the first is its head."""
    languages = one["languages"]
    lines = [["model", *(f"{lang} {what}" for lang in languages for what in ("bits/byte", "change", "kept"))]]
    for row in one["rows"]:
        values = [
            _number(row[key].get(lang), form)
            for lang in languages
            for key, form in (("bits_per_byte", ".3f"), ("change", "+.3f"), ("retention", ".1%"))
        ]
        marks = " (best)" * bool(row.get("best")) + " (alarm)" * bool(row["alarm"])
        lines.append([f"{row['model']}{marks}", *values])
    return lines
