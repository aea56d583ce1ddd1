"""The chat vector: how large it was, and which scale suited."""

from html import escape

from recipes.evaluation.report.charts import line_chart
from recipes.evaluation.report.html import cell, section, table
from recipes.evaluation.report.sources import Sources
from recipes.evaluation.report.tables import COLUMNS, columns_of, figure
from recipes.evaluation.report.words import both

LARGEST = 10


def norms(found: Sources) -> str:
    """Returns the section with the tensors that a chat vector changed most beside their size."""
    parts = []
    for artifact in found.artifacts:
        if not artifact.norms:
            continue
        tensors = [(name, one) for name, one in artifact.norms["tensors"].items() if one["ratio"] is not None]
        largest = sorted(tensors, key=lambda item: (-item[1]["ratio"], item[0]))[:LARGEST]
        rows = [
            (name, [cell(f"{one['change']:.4g}"), cell(f"{one['target']:.4g}"), cell(f"{one['ratio']:.2%}")])
            for name, one in [("all", artifact.norms["all"]), *largest]
        ]
        parts.append(
            f"<h3>{escape(artifact.name)}</h3>" + table("Chat vector", ["Tensor", "Change", "Size", "Ratio"], rows)
        )
    return section("Chat vector", "\n".join(parts))


def sweeps(found: Sources) -> str:
    """Returns the section with the scores over the scale of the chat vector."""
    parts = []
    for sweep in found.sweeps:
        rows, keys = sweep["rows"], columns_of(sweep["rows"])
        cells = [(str(row["model"]), [cell(figure(key, row.get(key))) for key in keys]) for row in rows]
        charts = []
        for key in keys:
            points = [(row["scale"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
            name = COLUMNS.get(key, key)
            charts.append(f"<figure><h3>{both(name)}</h3>{line_chart(name, 'scale', points)}</figure>")
        choice = sweep["recommendation"]
        scale = both("none") if choice["scale"] is None else f"{choice['scale']:g}"
        told = f"<p>{both('Recommended scale')}: {scale} ({escape(choice['reason'])}). {escape(choice['rule'])}.</p>"
        head = ["Model", *(COLUMNS.get(key, key) for key in keys)]
        parts.append(table("Scale sweep", head, cells) + f'{told}<div class="charts">{"".join(charts)}</div>')
    return section("Scale sweep", "\n".join(parts))
