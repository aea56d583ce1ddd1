"""What a sweep over scales shows: a table, a plot, and the scale a stated rule recommends."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from configs.loader import ConfigError
from data_prep.dialogue.chat_template import ChatTemplate
from data_prep.document import CorpusError, read_jsonl
from data_prep.lineage import whole_file, write_json
from recipes.evaluation.candidate import Limits
from recipes.evaluation.report.tables import text_table

SHARES = ("chat_form_ko", "chat_form_en", "answered_in_korean")
RULE = (
    "of the scales whose bits per byte rise over the target's by at most {rise:.0%} in every language, the one with "
    "the highest mean of chat form (each language) and Korean answers to Korean prompts; among equals the one with "
    "the fewest bits per byte, then the smallest"
)


def read_prompts(path: Path, template: ChatTemplate, limits: Limits, most_tokens: int) -> list[dict[str, Any]]:
    """Returns the prompts once all of them, and the windows of text, are known to fit the model.

    Args:
        path: one {lang, messages} a line.
        template: of the model.
        limits: of the scoring.
        most_tokens: that the model reads.

    Raises:
        CorpusError: a prompt lacks a key.
        ConfigError: the model reads fewer tokens.
    """
    rows = list(read_jsonl(path))
    for number, row in enumerate(rows, start=1):
        if not {"lang", "messages"} <= row.keys():
            raise CorpusError(f"{path} row {number} has {', '.join(row)}; lang and messages are needed; add them")
    longest = max((len(template.prompt(row["messages"])) for row in rows), default=0) + limits.max_new_tokens
    needed = {"seq_len": limits.seq_len, "max_new_tokens: prompt and answer": longest}
    wrong = {key: count for key, count in needed.items() if count > most_tokens}
    if wrong:
        text = "tokens, the model reads"
        raise ConfigError("sweep", [f"{key}: {n} {text} {most_tokens}; take fewer" for key, n in wrong.items()])
    return rows


def write_results(
    folder: Path, scored: dict[str, Any], prompts: Sequence[dict[str, Any]], max_rise: float, facts: dict[str, Any]
) -> str:
    """Writes sweep.json (`rows`, `generations`, as a report has them, and `recommendation`), sweep.png and sweep.md.

    Args:
        folder: of the sweep.
        scored: scale -> `figures` and `answers` to the prompts, in the order of the scales; the first is 0.
        prompts: `lang` and `messages` of each.
        max_rise: see `recommend`.
        facts: further values for sweep.json.

    Returns:
        The text of sweep.md.
    """
    names = {scale: f"scale {float(scale):g}" for scale in scored}
    table = [{"model": names[scale], **one["figures"]} for scale, one in scored.items()]
    rows = [{**row, "scale": float(scale)} for scale, row in zip(scored, table, strict=True)]
    generations = [
        {
            "prompt": prompt["messages"][-1]["content"],
            "lang": prompt["lang"],
            "answers": {names[scale]: one["answers"][number] for scale, one in scored.items()},
        }
        for number, prompt in enumerate(prompts)
    ]
    choice = recommend(rows, max_rise)
    results = {"rows": rows, "generations": generations, "recommendation": choice}
    write_json(folder / "sweep.json", {**facts, "scored": scored, **results})
    plot(folder / "sweep.png", rows, choice["scale"])
    found = "no scale" if choice["scale"] is None else f"scale {choice['scale']:g}"
    text = f"{text_table(table)}\n\nRecommended: {found} ({choice['reason']}).\nRule: {choice['rule']}.\n"
    (folder / "sweep.md").write_text(text, encoding="utf-8")
    return text


def recommend(rows: Sequence[dict[str, Any]], max_rise: float) -> dict[str, Any]:
    """Returns the recommended `scale` (None if no scale will do), the `rule`, and the `reason`.

    Args:
        rows: a row a scale with `scale`, `bits_per_byte_LANG` and the shares; the first is that of scale 0, the target.
        max_rise: largest rise of the bits per byte, as a share of the target's.
    """
    target, others = rows[0], rows[1:]
    fitting = [row for row in others if all(rise <= max_rise for rise in rises(row, target).values())]
    rule = RULE.format(rise=max_rise)
    if not fitting:
        worst = min((max(rises(row, target).values()) for row in others), default=0.0)
        reason = f"bits per byte rise by {worst:.0%} or more at every scale; {max_rise:.0%} are allowed"
        return {"scale": None, "rule": rule, "reason": reason}

    def merit(row: dict[str, Any]) -> tuple[float, float, float]:
        bits = [value for key, value in row.items() if key.startswith("bits_per_byte_")]
        return round(chat_share(row), 9), -fmean(bits) if bits else 0.0, -row["scale"]

    best = max(fitting, key=merit)
    if chat_share(best) <= chat_share(target):
        reason = f"no scale chats better than the target itself ({chat_share(target):.0%}) within {max_rise:.0%}"
        return {"scale": None, "rule": rule, "reason": reason}
    highest = max(rises(best, target).values(), default=0.0)
    reason = f"{chat_share(best):.0%} in chat form and language, bits per byte at most {highest:+.0%}"
    return {"scale": best["scale"], "rule": rule, "reason": reason}


def rises(row: dict[str, Any], target: dict[str, Any]) -> dict[str, float]:
    """Returns the rise of the bits per byte over the target's, as a share of it, by language."""
    prefix = "bits_per_byte_"
    return {key.removeprefix(prefix): row[key] / target[key] - 1 for key in target if key.startswith(prefix)}


def chat_share(row: dict[str, Any]) -> float:
    """Returns the mean of the shares a row has, 0 without any."""
    return fmean([row[key] for key in SHARES if row.get(key) is not None] or [0.0])


def plot(path: Path, rows: Sequence[dict[str, Any]], recommended: float | None) -> None:
    """Writes a PNG: bits per byte over the scale, and below the shares of answers; the recommended scale is marked."""
    figure = Figure(figsize=(7, 7), layout="constrained")
    scales = [row["scale"] for row in rows]
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, label, keys in (
        (upper, "bits per byte", [key for key in rows[0] if key.startswith("bits_per_byte_")]),
        (lower, "share of answers", [key for key in SHARES if rows[0].get(key) is not None]),
    ):
        for key in keys:
            axes.plot(scales, [row[key] for row in rows], marker="o", label=key.removeprefix("bits_per_byte_"))
        if recommended is not None:
            axes.axvline(recommended, color="grey", linestyle=":", label=f"recommended: {recommended:g}")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    lower.set_xlabel("scale of the chat vector")
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120, metadata={"Software": None})
