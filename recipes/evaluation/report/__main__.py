"""Prints a table of scores, and writes one HTML page, or Markdown, about models and the runs that made them.

    python -m recipes.evaluation.report --out out/demo/report.html out/demo/report.json out/demo/runs/*

Reads report.json, comparison.json, harness.json, sweep.json, run folders, and folders with a manifest (documents,
tokens, models).
"""

import argparse
import sys
from pathlib import Path

from configs.entry import exit_code_of
from recipes.evaluation.report.markdown import write_markdown
from recipes.evaluation.report.page import write_page
from recipes.evaluation.report.sources import read_sources
from recipes.evaluation.report.tables import text_table
from recipes.evaluation.report.words import LANGUAGES


def main() -> None:
    """Prints and writes what the command line asks for."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m recipes.evaluation.report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="page to write")
    parser.add_argument("--markdown", type=Path, metavar="FILE.md", help="the same as Markdown, with FILE.png")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="of the page, until its reader switches")
    parser.add_argument("sources", nargs="+", type=Path, metavar="RUN_OR_REPORT", help="files and folders to read")
    args = parser.parse_args()
    found = read_sources(args.sources)
    if args.out:
        write_page(args.out, found, args.language)
    if args.markdown:
        write_markdown(args.markdown, found)
    written = [str(path) for path in (args.out, args.markdown) if path]
    print(*[text_table(found.rows)] if found.rows else [], *written, sep="\n")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
