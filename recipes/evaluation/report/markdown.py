"""The report as Markdown, with its curves as one PNG beside it: for a pull request or a model card."""

from pathlib import Path

from matplotlib.figure import Figure

from data_prep.lineage import whole_file
from recipes.evaluation.report.curves import BITS, points_of
from recipes.evaluation.report.data import numbers
from recipes.evaluation.report.road_map import road_text
from recipes.evaluation.report.sources import Sources
from recipes.evaluation.report.tables import markdown_table, scores_by_task, text_table


def write_markdown(path: Path, found: Sources) -> None:
    """Writes the .md file, and beside it a .png of the same name where there are curves."""
    parts = ["# Report"]
    road = road_text(found)
    if road:
        parts.append("## Road map\n\n" + markdown_table([("what", "kind", "made from"), *road]))
    if found.rows:
        parts.append("## Results\n\n" + text_table(found.rows))
    if found.harness:
        parts.append("## Benchmarks\n\n" + _harness_table(found))
    if any(run.steps for run in found.runs):
        picture = path.with_suffix(".png")
        plot(picture, found)
        parts.append(f"## Curves\n\n![Loss and held-out bits per byte over the steps]({picture.name})")
    ledger = [
        (f"{one.name}: {name}", f"{n:,}") for one in found.artifacts for name, n in numbers(one.manifest.get("ledger"))
    ]
    if ledger:
        parts.append("## Data ledger\n\n" + markdown_table([("what", "count"), *ledger]))
    for run in found.runs:
        if run.command:
            parts.append(f"## {run.name}\n\n    {run.command.strip()}")
    with whole_file(path) as partial:
        partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _harness_table(found: Sources) -> str:
    lines = [["task", *found.harness]]
    for label, scores in scores_by_task(found.harness).items():
        shown = [f"{100 * scores[model]['macro']:.1f}" if model in scores else "–" for model in found.harness]
        lines.append([label, *shown])
    return markdown_table(lines)


def plot(path: Path, found: Sources) -> None:
    """Writes a PNG: the training loss, and the bits per byte of held-out text, as far as there are any."""
    losses = [(run.folder.name, points_of(run.steps, "train/loss")) for run in found.runs if run.steps]
    bits = [
        (f"{run.folder.name}: {key.removeprefix('validation/').removesuffix(BITS)}", points_of(run.validations, key))
        for run in found.runs
        for key in dict.fromkeys(key for row in run.validations for key in row if key.endswith(BITS))
    ]
    panels = [panel for panel in (("training loss", losses, ""), ("bits per byte, held out", bits, "o")) if panel[1]]
    figure = Figure(figsize=(8, 3.5 * len(panels)), layout="constrained")
    for axes, (label, curves, marker) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for name, points in curves:
            axes.plot(*zip(*points, strict=True), marker=marker, label=name)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120, metadata={"Software": None})
