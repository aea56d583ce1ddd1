"""The report as Markdown, with its curves as one PNG beside it: for a pull request or a model card."""

from collections.abc import Iterable
from pathlib import Path

from data_prep.lineage import whole_file
from recipes.evaluation.report import data
from recipes.evaluation.report.curves import facts, held_out_of, loss_of
from recipes.evaluation.report.forgetting import retention_lines
from recipes.evaluation.report.page import OPEN_ANSWERS, command_of, versions_of
from recipes.evaluation.report.picture import plot
from recipes.evaluation.report.road_map import road_text
from recipes.evaluation.report.sources import Run, Sources
from recipes.evaluation.report.tables import markdown_table, scores_by_task, text_table
from recipes.evaluation.report.vectors import largest


def write_markdown(path: Path, found: Sources) -> None:
    """Writes the .md file, and beside it a .png of the same name where there are curves."""
    picture = ""
    if any(loss_of(run) or held_out_of(run) for run in found.runs):
        plot(path.with_suffix(".png"), found)
        picture = f"![Loss and held-out bits per byte over the steps]({path.with_suffix('.png').name})"
    bodies = {
        "Road map": _table(["what", "kind", "made from"], road_text(found)),
        "Results": text_table(found.rows) if found.rows else "",
        "Benchmarks": _harness_table(found),
        "Curves": picture,
        **{f"Retention: {name}": markdown_table(retention_lines(one)) for name, one in found.retention.items()},
        "Throughput": _throughput(found.runs),
        "Sample generations": _answers(found),
        "Scale sweep": _sweeps(found),
        **{
            f"Chat vector: {artifact.name}": _table(["tensor", "change", "size", "ratio"], largest(artifact.norms))
            for artifact in found.artifacts
            if artifact.norms
        },
        "Composition": _table(["what", "in all", "of it"], map(data.text, data.compositions(found))),
        "Data ledger": _table(["what", "in all", "of it"], map(data.text, data.ledgers(found.artifacts))),
        "Commands and versions": _commands(found.runs),
    }
    parts = ["# Report", *(f"## {title}\n\n{body}" for title, body in bodies.items() if body)]
    with whole_file(path) as partial:
        partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _table(head: list[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(row) for row in rows]
    return markdown_table([head, *lines]) if lines else ""


def _harness_table(found: Sources) -> str:
    lines = []
    for label, scores in scores_by_task(found.harness).items():
        shown = [f"{100 * scores[model]['macro']:.1f}" if model in scores else "–" for model in found.harness]
        lines.append([label, *shown])
    return _table(["task", *found.harness], lines)


def _throughput(runs: list[Run]) -> str:
    every = {run.name: facts(run) for run in runs if run.steps}
    head = list(dict.fromkeys(label for one in every.values() for label in one))
    return _table(["run", *head], ([name, *(one.get(label, "–") for label in head)] for name, one in every.items()))


def _answers(found: Sources) -> str:
    parts = []
    for one in found.generations[:OPEN_ANSWERS]:
        rows = [[_text(str(model)), _text(str(answer))] for model, answer in one["answers"].items()]
        parts.append(f"**{_text(str(one['prompt']))}**\n\n" + _table(["model", "answer"], rows))
    rest = len(found.generations) - OPEN_ANSWERS
    return "\n\n".join([*parts, *([f"{rest} more prompts are on the HTML page."] if rest > 0 else [])])


def _text(text: str) -> str:
    """Returns somebody's text as one line of Markdown, without HTML or columns of its own."""
    for sign, shown in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*"), ("[", "\\[")):
        text = text.replace(sign, shown)
    return "<br>".join(text.strip().splitlines())


def _sweeps(found: Sources) -> str:
    parts = []
    for sweep in found.sweeps:
        choice = sweep["recommendation"]
        scale = "none" if choice["scale"] is None else f"{choice['scale']:g}"
        parts.append(f"{text_table(sweep['rows'])}\n\nRecommended: {scale} ({choice['reason']}).")
    return "\n\n".join(parts)


def _commands(runs: list[Run]) -> str:
    parts = [f"{run.name}:\n\n    {command_of(run)}" for run in runs if run.command]
    parts += [f"{', '.join(names)}: {' '.join(versions)}" for versions, names in versions_of(runs).items()]
    return "\n\n".join(parts)
