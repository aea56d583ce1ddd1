"""One HTML page about models and the runs that made them, with nothing loaded from elsewhere.

python -m recipes.evaluation.report --out out/demo/report.html out/demo/report.json out/demo/runs/* out/demo/tokens/*
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from configs.loader import UserError
from data_prep.lineage import MANIFEST, whole_file
from recipes.evaluation.charts import line_chart

STYLE = Path(__file__).with_name("page.css")
HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]")
COLUMNS = {
    "bits_per_byte_ko": "Bits per byte, Korean",
    "bits_per_byte_en": "Bits per byte, English",
    "chat_form_ko": "Ends its turn, Korean prompts",
    "chat_form_en": "Ends its turn, English prompts",
    "answered_in_korean": "Korean prompts answered in Korean",
    "exact_match": "Exact match",
    "exact_match_ko": "Exact match, Korean",
    "exact_match_en": "Exact match, English",
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
}


class ReportError(UserError):
    """A report cannot be made of a file; the message names it."""


def write_html(path: Path, report: dict[str, Any], runs: dict[str, Path]) -> None:
    """Writes the page; its final name appears only when it is complete.

    Args:
        path: the .html file; its folder is created.
        report: `rows` (a dict a model), `generations` (prompt, lang, answers by model), `settings`;
            each may be missing.
        runs: name -> run folder (has `metrics.jsonl`) or artifact folder (has a manifest with a `ledger`).

    Raises:
        ReportError: a file of a run cannot be read.
    """
    training = {name: metrics for name, folder in runs.items() if (metrics := read_metrics(folder))}
    sections = [
        _results(report.get("rows", [])),
        _curves(training),
        _ledgers(runs),
        _generations(report.get("generations", [])),
        _commands(runs),
        _section("Settings of the evaluation", _json(report["settings"])) if report.get("settings") else "",
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>kotune: report</title>\n'
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n<h1>Report</h1>\n"
        f"<p>{len(report.get('rows', []))} models, {len(training)} training runs.</p>\n"
        f"{''.join(sections)}</main>\n</body>\n</html>\n"
    )
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of `metrics.jsonl` that have a training loss; none without the file.

    The last line of a running or killed run may be cut short and is then left out.

    Raises:
        ReportError: another line is no JSON object.
    """
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            if number < len(lines):
                raise ReportError(f"{file} line {number} is no JSON object: {error}; mend or remove it") from None
    return [row for row in rows if "step" in row and "train/loss" in row]


def language(text: str) -> str:
    """Returns `ko` for text with Hangul, else `en`: what a screen reader should speak it as."""
    return "ko" if HANGUL.search(text) else "en"


def figure(key: str, value: Any) -> str:
    """Returns a figure as shown: bits with three digits, shares as per cent, a dash for what is missing."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if key.startswith("bits") else f"{100 * value:.0f} %"


def text_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows of a report as a Markdown table, aligned for the terminal."""
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "model"))
    lines = [["model", *(SHORT.get(key, key) for key in keys)]]
    lines += [[str(row["model"]), *(figure(key, row.get(key)) for key in keys)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |" for line in lines)


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n" if body else ""


def _table(caption: str, head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Returns a table that scrolls by itself; `rows` are (name, cells as `<td>` elements)."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "\n".join(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>' for name, cells in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption, quote=True)}"><table>\n'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _results(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "model"))
    cells = [(str(row["model"]), [f"<td>{figure(key, row.get(key))}</td>" for key in keys]) for row in rows]
    table = _table("Results", ["Model", *(COLUMNS.get(key, key) for key in keys)], cells)
    return _section("Results", f"{table}\n<p>Lower is better for bits per byte, higher for all others.</p>")


def _curves(training: dict[str, list[dict[str, Any]]]) -> str:
    figures = []
    for name, rows in training.items():
        last = rows[-1]
        parts = [f"step {last['step']}", f"loss {last['train/loss']:.3f}"]
        parts += [f"{last['train/tokens']:,.0f} tokens"] if "train/tokens" in last else []
        parts += [f"{last['speed/tokens_per_second']:,.0f} tokens/s"] if "speed/tokens_per_second" in last else []
        parts += [f"lr {last['train/lr']:.2e}"] if "train/lr" in last else []
        losses = [(float(row["step"]), float(row["train/loss"])) for row in rows]
        chart = line_chart(f"Training loss of {name} over {len(rows)} steps", "step", losses)
        caption = escape("At the end: " + ", ".join(parts))
        figures.append(f"<figure><h3>{escape(name)}</h3>{chart}<figcaption>{caption}</figcaption></figure>")
    return _section("Training loss", f'<div class="charts">{"".join(figures)}</div>' if figures else "")


def _ledgers(runs: dict[str, Path]) -> str:
    rows = []
    for name, folder in runs.items():
        manifest = _read_json(folder / MANIFEST)
        for entry, value in _numbers(manifest.get("ledger") or {}):
            rows.append((f"{name}: {entry}", [f"<td>{value:,}</td>"]))
    return _section("Data ledger", _table("Data ledger", ["What", "Count"], rows) if rows else "")


def _numbers(value: Any, prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """Yields (dotted name, number) of every number in a JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield prefix, value


def _generations(generations: Sequence[dict[str, Any]]) -> str:
    blocks = []
    for generation in generations:
        prompt = str(generation["prompt"])
        spoken = escape(str(generation.get("lang") or language(prompt)), quote=True)
        rows = [
            (str(model), [f'<td class="text" lang="{language(str(answer))}">{escape(str(answer))}</td>'])
            for model, answer in generation["answers"].items()
        ]
        blocks.append(f'<p class="prompt" lang="{spoken}">{escape(prompt)}</p>\n')
        blocks.append(_table(f"Answers to {prompt[:60]}", ["Model", "Answer"], rows))
    return _section("Sample generations", "".join(blocks))


def _commands(runs: dict[str, Path]) -> str:
    blocks = []
    for name, folder in runs.items():
        command, versions = folder / "command.txt", _read_json(folder / "versions.json")
        text = command.read_text(encoding="utf-8") if command.is_file() else ""
        if text or versions:
            body = escape(text) + escape(" ".join(f"{key}={value}" for key, value in versions.items()))
            blocks.append(f"<h3>{escape(name)}</h3>\n<pre>{body}</pre>\n")
    return _section("Commands and versions", "".join(blocks))


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, ensure_ascii=False, indent=2))}</pre>"


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ReportError(f"{path} holds no JSON object: {error}; mend or remove it") from None


def main() -> int:
    """Prints a report's table and, with --out, writes one HTML page about models and runs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="page to write")
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="RUN_OR_REPORT", help="report.json, run or data folder"
    )
    args = parser.parse_args()
    try:
        if missing := [path for path in args.sources if not path.exists()]:
            raise ReportError(f"{missing[0]} does not exist; give a report.json, a run folder or a data folder")
        report: dict[str, Any] = {}
        for path in [path for path in args.sources if path.is_file()]:
            report |= _read_json(path)
        if args.out:
            write_html(args.out, report, {str(path): path for path in args.sources if path.is_dir()})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(*[text_table(report["rows"])] if report.get("rows") else [], *filter(None, [args.out]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
