"""What a model has kept of each language: its bits per byte beside those of the model it came from."""

from collections.abc import Callable, Sequence
from typing import Any

from recipes.evaluation.report.tables import markdown_table

BITS = "bits_per_byte_"
NOTE = (
    "Retention: the base's bits per byte as a share of the model's; 100 % is all of it, above 100 % is a gain. {guard} "
    "counts as forgotten where it costs more than {rise:.1%} more bits per byte than with {base}."
)


def retention(
    rows: Sequence[dict[str, Any]], guard: str, max_rise: float, suggest: Callable[[float], float | None]
) -> dict[str, Any] | None:
    """Returns the retention table as plain values; None without a second model, or without text that all have scored.

    Args:
        rows: of an evaluation, with `model` and `bits_per_byte_LANG`, perhaps `step`; the first is the base.
        guard: language that must not be forgotten.
        max_rise: its largest rise, as a share of the base's bits per byte.
        suggest: rise -> share of replay to try next, None where none is known to help.
    """
    languages = [key.removeprefix(BITS) for key in (rows[0] if rows else {}) if key.startswith(BITS)]
    if len(rows) < 2 or not languages:
        return None
    base = {lang: rows[0][BITS + lang] for lang in languages}
    table = []
    for row in rows:
        bits = {lang: row[BITS + lang] for lang in languages}
        rise = bits[guard] / base[guard] - 1 if guard in base else 0.0
        table.append(
            {
                "model": row["model"],
                "step": row.get("step"),
                "bits_per_byte": bits,
                "change": {lang: bits[lang] - base[lang] for lang in languages},
                "retention": {lang: base[lang] / bits[lang] for lang in languages},
                "alarm": rise > max_rise,
                "suggested_replay": suggest(rise) if rise > max_rise else None,
                "best": False,
            }
        )
    facts = {"guard": guard, "max_rise": max_rise, "base": rows[0]["model"], "languages": languages}
    return {**facts, "rows": table}


def as_markdown(table: dict[str, Any]) -> str:
    """Returns the retention table for people, and what its columns mean."""
    languages, guard = table["languages"], table["guard"]
    heads = [f"{what} {lang}" for what in ("bits/byte", "change", "retention") for lang in languages]
    lines = [["model", *heads, f"{guard} forgotten"]]
    for row in table["rows"]:
        figures = [f"{row['bits_per_byte'][lang]:.4f}" for lang in languages]
        figures += [f"{row['change'][lang]:+.4f}" for lang in languages]
        figures += [f"{row['retention'][lang]:.1%}" for lang in languages]
        lines.append([row["model"] + (" (best)" if row["best"] else ""), *figures, _alarm(row)])
    return f"{markdown_table(lines)}\n\n{NOTE.format(guard=guard, rise=table['max_rise'], base=table['base'])}\n"


def _alarm(row: dict[str, Any]) -> str:
    if not row["alarm"]:
        return "no"
    share = row["suggested_replay"]
    return "yes; lower the learning rate" if share is None else f"yes; replay {share:.0%}"
