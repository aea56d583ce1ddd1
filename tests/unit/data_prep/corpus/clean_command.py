"""Running `clean` in the tests of its behaviour."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from data_prep.corpus import clean
from data_prep.lineage import ROOT


def arguments(dump: Path | str, out: Path, *more: object) -> list[str]:
    return ["clean", "--dump", str(dump), "--out", str(out), "--shard-mb", "0.002", "--workers", "1", *map(str, more)]


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    clean.add_parser(parser.add_subparsers())
    return parser.parse_args(words)


def run(dump: Path | str, out: Path, *more: object) -> int:
    options = parsed(arguments(dump, out, *more))
    return options.run(options)


def start(words: list[str], **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-m", "data_prep", *words], cwd=ROOT, text=True, **options)


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text(encoding="utf-8"))


def content(out: Path) -> dict[str, str]:
    """Returns the hashes of all files but those that name the folder or the input."""
    named = ("run.json", "report.html", "report.json")
    return {name: entry["sha256"] for name, entry in manifest(out)["files"].items() if name not in named}
