"""The chat vector: how large it was, and which scale suited."""

import math
import re
from collections import defaultdict
from html import escape
from typing import Any

from recipes.evaluation.report.charts import colour, line_chart
from recipes.evaluation.report.html import card, cards, cell, legend, table
from recipes.evaluation.report.sources import Sources
from recipes.evaluation.report.tables import columns_of, figure, name_of
from recipes.evaluation.report.words import both

LARGEST = 10
LAYER = re.compile(r"layers\.(\d+)\.(self_attn|mlp)\.")


def norms(found: Sources) -> str:
    """Returns the size of every chat vector beside the model it was added to: by layer, and where it is largest."""
    parts = []
    for artifact in found.artifacts:
        if not artifact.norms:
            continue
        lines = by_layer(artifact.norms["tensors"])
        chart = line_chart(f"Chat vector of {artifact.name} by layer, in per cent", "layer", lines)
        told = legend((colour(n), both(name)) for n, name in enumerate(lines))
        rows = [(name, list(map(cell, figures))) for name, *figures in largest(artifact.norms)]
        drawn = cards([card(both("Change beside the target's size, %"), chart + told)]) if lines else ""
        parts.append(f"<h3>{escape(artifact.name)}</h3>{drawn}")
        parts.append(table(f"Chat vector of {artifact.name}", ["Tensor", "Change", "Size", "Ratio"], rows))
    return "\n".join(parts)


def largest(norms: dict[str, Any]) -> list[list[str]]:
    """Returns (tensor, change, size, ratio) as shown: of all together, then of those that change most."""
    tensors = [(name, one) for name, one in norms["tensors"].items() if one["ratio"] is not None]
    first = sorted(tensors, key=lambda item: (-item[1]["ratio"], item[0]))[:LARGEST]
    return [
        [
            name.removeprefix("model.").removesuffix(".weight"),  # which nearly all have
            *(f"{one[key]:.3f}" for key in ("change", "target")),
            f"{one['ratio']:.2%}",
        ]
        for name, one in [("all", norms["all"]), *first]
    ]


def by_layer(tensors: dict[str, dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Returns for attention and MLP (layer, change in per cent of the target), both Frobenius norms of all matrices."""
    squares: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, one in tensors.items():
        if match := LAYER.search(name):
            sums = squares[match[2], int(match[1])]
            sums[0] += one["change"] ** 2
            sums[1] += one["target"] ** 2
    lines: dict[str, list[tuple[float, float]]] = {}
    for (kind, layer), (change, target) in sorted(squares.items()):
        if target:
            name = "attention" if kind == "self_attn" else "MLP"
            lines.setdefault(name, []).append((layer, 100 * math.sqrt(change / target)))
    return lines


def sweeps(found: Sources) -> str:
    """Returns the scores over the scale of the chat vector."""
    parts = []
    for sweep in found.sweeps:
        rows, keys = sweep["rows"], columns_of(sweep["rows"])
        cells = [(f"{row['scale']:g}", [cell(figure(key, row.get(key))) for key in keys]) for row in rows]
        choice = sweep["recommendation"]
        bits = [key for key in keys if key.startswith("bits")]
        groups = {"Bits per byte": bits, "Shares of answers": [key for key in keys if key not in bits]}
        charts = [_over_scales(name, rows, of, choice["scale"]) for name, of in groups.items()]
        scale = both("none") if choice["scale"] is None else f"{choice['scale']:g}"
        why = f"({escape(choice['reason'])}). {both('Rule')}: {escape(choice['rule'])}."
        told = f"<p>{both('Recommended scale')}: <b>{scale}</b> {why}</p>"
        parts.append(table("Scale sweep", ["Scale", *map(name_of, keys)], cells) + told + cards(charts))
    return "\n".join(parts)


def _over_scales(title: str, rows: list[dict[str, Any]], keys: list[str], chosen: float | None) -> str:
    lines = {key: [(row["scale"], row[key]) for row in rows if isinstance(row.get(key), int | float)] for key in keys}
    lines = {key: points for key, points in lines.items() if points}
    told = legend((colour(n), both(name_of(key))) for n, key in enumerate(lines))
    return card(both(title), line_chart(title, "scale", lines, mark=chosen) + told) if lines else ""
