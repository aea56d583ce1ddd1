"""Extraction against its peers on a dump whose wanted text is known: speed, memory, recall, noise; one interleaved run.

    python tests/benchmarks/bench_extraction.py [--data FOLDER] [--copies 4] [--rounds 3]

The peers are installed into a virtual environment of their own, `out/bench/peers`; two of them are GPL or AGPL and
never become dependencies. Megabytes are of XML; a core's seconds are user and system time of all processes.
"""

import argparse
import bz2
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data_prep.document import read_jsonl  # noqa: E402
from tests.benchmarks.peers.extract import METHODS  # noqa: E402
from tests.benchmarks.truth import read_truth, recall_and_noise  # noqa: E402

WORK = ROOT / "out" / "bench"
PACKAGES = ["wikiextractor==3.1.0", "wikitextparser==3.0.0", "mwparserfromhell==0.7.2", "xmltodict==1.0.4", "lxml"]
PAGES_PER_STREAM = 100
OURS = "kotune clean"


@dataclass
class Result:
    """What the rounds of one method measured."""

    core_seconds: list[float] = field(default_factory=list)
    wall_seconds: list[float] = field(default_factory=list)
    rss_bytes: int = 0
    recall: float = 0.0
    noise: float = 0.0


def peers_python() -> Path:
    """Returns the peers' interpreter, installing them at the first call."""
    folder = WORK / "peers"
    if not (folder / "complete").is_file():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *PACKAGES], check=True)
        (folder / "complete").touch()
    return folder / "bin" / "python"


def repeat_dump(dump: Path, copies: int, out: Path) -> int:
    """Writes the dump's pages `copies` times, with ids and titles of their own, and returns the bytes of XML."""
    xml = bz2.decompress(dump.read_bytes())
    start, end = xml.index(b"<page>"), xml.rindex(b"</page>") + len(b"</page>")
    pages = re.findall(rb"<page>.*?</page>\s*", xml[start:end] + b"\n", re.DOTALL)
    total = 0

    def stream(data: bytes) -> bytes:
        nonlocal total
        total += len(data)
        return bz2.compress(data)

    with out.open("wb") as file:
        file.write(stream(xml[:start]))
        for copy in range(copies):
            numbered = [_renumber(page, copy) for page in pages]
            for first in range(0, len(numbered), PAGES_PER_STREAM):
                file.write(stream(b"".join(numbered[first : first + PAGES_PER_STREAM])))
        file.write(stream(xml[end:]))
    return total


def _renumber(page: bytes, copy: int) -> bytes:
    if not copy:
        return page
    page = re.sub(rb"<id>(\d+)</id>", lambda m: b"<id>%d%07d</id>" % (copy, int(m[1])), page, count=1)
    return re.sub(rb"</title>", b" %d</title>" % copy, page, count=1)


def timed(command: list[str | Path]) -> tuple[float, float, int]:
    """Runs a command; returns wall seconds, user and system seconds of its processes, and the largest one's memory."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:4]} ended with exit code {process.returncode}")
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def texts_of(out: Path) -> dict[str, str]:
    """Returns page id -> text of one method's output; ours with what the filters took out, as peers have none."""
    paths = sorted(out.glob("*.jsonl.zst")) if out.is_dir() else [out]
    rows = (row for path in paths for row in read_jsonl(path))
    return {row["id"].rpartition("-")[2]: row["text"] for row in rows if row.get("text")}


def measure(dump: Path, truth: dict[str, list[str]], rounds: int) -> dict[str, Result]:
    """Runs all methods one after another, `rounds` times."""
    results = {name: Result() for name in [OURS, *METHODS]}
    for number in range(rounds):
        for name, result in results.items():
            out = WORK / ("kotune" if name == OURS else "peer.jsonl")
            shutil.rmtree(out, ignore_errors=True)
            if name == OURS:
                command = [sys.executable, "-m", "data_prep", "clean", "--dump", dump, "--out", out, "--workers", "1"]
            else:
                command = [peers_python(), ROOT / "tests/benchmarks/peers/extract.py", name, dump, out]
            wall, core, rss = timed(command)
            result.wall_seconds.append(wall)
            result.core_seconds.append(core)
            result.rss_bytes = max(result.rss_bytes, rss)
            if number == 0:
                result.recall, result.noise = recall_and_noise(texts_of(out), truth)
    return results


def table(results: dict[str, Result], num_bytes: int) -> Iterator[str]:
    """Yields the lines of the Markdown table; ratios compare each round with ours in the same round."""
    yield "| method | MB/s a core [range] | ours is faster by [range] | peak RSS | recall | noise |"
    yield "|---|---|---|---|---|---|"
    ours = results[OURS].core_seconds
    for name, result in results.items():
        rates = [num_bytes / 1e6 / seconds for seconds in result.core_seconds]
        ratios = [theirs / mine for theirs, mine in zip(result.core_seconds, ours, strict=True)]
        yield (
            f"| {name} | {spread(rates)} | {spread(ratios)} | {result.rss_bytes / 1e6:.0f} MB "
            f"| {result.recall:.4f} | {result.noise:.4f} |"
        )


def spread(values: list[float]) -> str:
    """Returns `median [smallest-largest]`."""
    return f"{statistics.median(values):.1f} [{min(values):.1f}-{max(values):.1f}]"


def main() -> None:
    """Prints the table and writes the figures to `out/bench/extraction.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/kowiki-hybrid", help="dump and truth")
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    peers_python()
    dump = WORK / "pages-articles-multistream.xml.bz2"
    num_bytes = repeat_dump(next(args.data.glob("*multistream.xml.bz2")), args.copies, dump)
    truth = read_truth(next(args.data.glob("*truth.jsonl")))
    results = measure(dump, truth, args.rounds)
    print(f"{num_bytes / 1e6:.1f} MB of XML, {args.rounds} rounds")
    print("\n".join(table(results, num_bytes)))
    facts = {"megabytes": num_bytes / 1e6, "methods": {name: vars(result) for name, result in results.items()}}
    (WORK / "extraction.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
