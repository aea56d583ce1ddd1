"""The report as one HTML page, with nothing loaded from elsewhere and no script."""

from collections import defaultdict
from html import escape
from pathlib import Path

from data_prep.lineage import whole_file
from recipes.evaluation.report import curves, data, forgetting, tables, vectors
from recipes.evaluation.report.html import contents, language, preformatted, section
from recipes.evaluation.report.road_map import road_map
from recipes.evaluation.report.sources import Run, Sources
from recipes.evaluation.report.words import both, switch

STYLE = Path(__file__).with_name("page.css")
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E"
    "%3Crect width='8' height='8' rx='2' fill='%230b62a8'/%3E%3C/svg%3E"
)
OPEN_ANSWERS = 8
"""Prompts whose answers are shown at once; the others unfold."""


def write_page(path: Path, found: Sources, first_language: str = "en") -> None:
    """Writes the page; its final name appears only when it is complete.

    Args:
        path: the .html file; its folder is created.
        found: what it shows.
        first_language: `en` or `ko`, shown until the reader chooses the other.
    """
    bodies = {
        "Road map": road_map(found),
        "Results": tables.results(found),
        "Benchmarks": tables.benchmarks(found.harness),
        "Held-out text": curves.held_out(found.runs),
        "Checkpoints": forgetting.checkpoints(found.runs),
        "Retention": forgetting.retention(found),
        "Training loss": curves.losses(found.runs),
        "Throughput": curves.throughput(found.runs),
        "Sample generations": generations(found),
        "Scale sweep": vectors.sweeps(found),
        "Chat vector": vectors.norms(found),
        "Composition": data.shown(data.compositions(found)),
        "Data ledger": data.shown(data.ledgers(found.artifacts)),
        "Commands and versions": commands(found.runs),
        "Settings of the evaluation": preformatted(found.settings) if found.settings else "",
    }
    bodies = {title: body for title, body in bodies.items() if body}
    page = (
        f'<!doctype html>\n<html lang="{first_language}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>kotune: report</title>\n'
        f'<link rel="icon" href="{ICON}">\n'
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n"
        f"<header>{switch(first_language)}\n<h1>kotune: {both('Report')}</h1>\n{tables.headline(found)}"
        f"{contents(bodies)}</header>\n"
        f"{''.join(section(title, body) for title, body in bodies.items())}</main>\n</body>\n</html>\n"
    )
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")


def generations(found: Sources) -> str:
    """Returns the models' answers to every prompt, side by side."""
    blocks = []
    for generation in found.generations:
        prompt = str(generation["prompt"])
        spoken = escape(str(generation.get("lang") or language(prompt)), quote=True)
        notes = generation.get("notes", {})
        answers = "".join(
            _answer(str(model), str(text), notes.get(model)) for model, text in generation["answers"].items()
        )
        blocks.append(f'<p class="prompt" lang="{spoken}">{escape(prompt)}</p>\n<dl class="answers">{answers}</dl>\n')
    rest = "".join(blocks[OPEN_ANSWERS:])
    more = f"<details><summary>{both('More answers')} ({len(blocks) - OPEN_ANSWERS})</summary>{rest}</details>"
    return "".join(blocks[:OPEN_ANSWERS]) + (more if rest else "")


def _answer(model: str, text: str, note: str | None) -> str:
    small = f" <small>{escape(note)}</small>" if note else ""
    return f'<div><dt>{escape(model)}{small}</dt><dd lang="{language(text)}">{escape(text)}</dd></div>'


def commands(runs: list[Run]) -> str:
    """Returns what to type to do the runs again, and the versions they had."""
    blocks = [f"<h3>{escape(run.name)}</h3>\n<pre>{escape(command_of(run))}</pre>\n" for run in runs if run.command]
    for versions, names in versions_of(runs).items():
        text = "\n".join(versions)
        blocks.append(f"<h3>{both('Versions')}: {escape(', '.join(names))}</h3>\n<pre>{escape(text)}</pre>\n")
    return "".join(blocks)


def versions_of(runs: list[Run]) -> dict[tuple[str, ...], list[str]]:
    """Returns versions, as NAME=VERSION -> the names of the runs that had them."""
    names: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for run in runs:
        if run.versions:
            names[tuple(f"{key}={value}" for key, value in run.versions.items())].append(run.name)
    return names


def command_of(run: Run) -> str:
    """Returns the command that starts a run again from the root of the repository, with as many processes."""
    _, entry, rest = run.command.strip().partition("recipes/")
    if not entry or not run.ranks:
        return run.command.strip()
    return f"tune run --nproc_per_node {run.ranks} {entry}{rest}"
