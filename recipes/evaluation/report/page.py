"""The report as one HTML page, with nothing loaded from elsewhere and no script."""

from html import escape
from pathlib import Path

from data_prep.lineage import whole_file
from recipes.evaluation.report import curves, data, tables, vectors
from recipes.evaluation.report.html import language, preformatted, section, table
from recipes.evaluation.report.road_map import road_map
from recipes.evaluation.report.sources import Run, Sources
from recipes.evaluation.report.words import both, switch

STYLE = Path(__file__).with_name("page.css")


def write_page(path: Path, found: Sources, first_language: str = "en") -> None:
    """Writes the page; its final name appears only when it is complete.

    Args:
        path: the .html file; its folder is created.
        found: what it shows.
        first_language: `en` or `ko`, shown until the reader chooses the other.
    """
    sections = [
        road_map(found),
        tables.results(found),
        tables.benchmarks(found.harness),
        curves.held_out(found.runs),
        curves.losses(found.runs),
        curves.throughput(found.runs),
        vectors.sweeps(found),
        vectors.norms(found),
        data.mixtures(found),
        data.ledgers(found),
        generations(found),
        commands(found.runs),
        section("Settings of the evaluation", preformatted(found.settings)) if found.settings else "",
    ]
    counts = f"{len(found.rows)} models, {len(found.runs)} training runs."
    page = (
        f'<!doctype html>\n<html lang="{first_language}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>kotune: report</title>\n'
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n"
        f"{switch(first_language)}\n<h1>{both('Report')}</h1>\n<p>{counts}</p>\n"
        f"{''.join(sections)}</main>\n</body>\n</html>\n"
    )
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")


def generations(found: Sources) -> str:
    """Returns the section with the models' answers to every prompt."""
    blocks = []
    for generation in found.generations:
        prompt = str(generation["prompt"])
        spoken = escape(str(generation.get("lang") or language(prompt)), quote=True)
        rows = [
            (str(model), [f'<td class="text" lang="{language(str(answer))}">{escape(str(answer))}</td>'])
            for model, answer in generation["answers"].items()
        ]
        blocks.append(f'<p class="prompt" lang="{spoken}">{escape(prompt)}</p>\n')
        blocks.append(table(f"Answers to {prompt[:60]}", ["Model", "Answer"], rows))
    return section("Sample generations", "".join(blocks))


def commands(runs: list[Run]) -> str:
    """Returns the section with what to type, and the versions, to do a run again."""
    blocks = []
    for run in runs:
        if run.command or run.versions:
            versions = " ".join(f"{key}={value}" for key, value in run.versions.items())
            blocks.append(f"<h3>{escape(run.name)}</h3>\n<pre>{escape(run.command)}{escape(versions)}</pre>\n")
    return section("Commands and versions", "".join(blocks))
