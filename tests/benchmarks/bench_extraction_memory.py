"""Peak memory of `clean`, parent and workers, on dumps of any size: it must not grow with them.

    python tests/benchmarks/bench_extraction_memory.py [--data FOLDER] [--copies 64] [--workers 2]

Three dumps are made of a small one: over 300 MB of XML as many streams, the same as a single stream, and one stream
with a page of 200 MB. Peaks are VmHWM of each process, as Linux counts it; megabytes are of 10**6 bytes.
"""

import argparse
import bz2
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bench_extraction import WORK, repeat_dump  # noqa: E402

LIMIT_MB = 200
HUGE_PAGE_BYTES = 200_000_000
POLL_SECONDS = 0.05
MULTISTREAM, SINGLE, HUGE = "multistream", "single stream", "page of 200 MB"
SHARD_MB = {MULTISTREAM: "16", SINGLE: "16", HUGE: "0.5"}  # the last compresses so well that it would be one part


def single_stream(dump: Path, out: Path, huge_page_bytes: int = 0) -> int:
    """Writes a dump anew as one bz2 stream, with one more page of about so many bytes; returns the bytes of XML."""
    compressor, total = bz2.BZ2Compressor(), 0
    with bz2.open(dump) as source, out.open("wb") as file:
        for piece in _with_huge_page(iter(lambda: source.read(1 << 20), b""), huge_page_bytes):
            file.write(compressor.compress(piece))
            total += len(piece)
        file.write(compressor.flush())
    return total


def _with_huge_page(pieces: Iterator[bytes], num_bytes: int) -> Iterator[bytes]:
    for piece in pieces:
        before, page, after = piece.partition(b"<page>")
        yield before
        if page and num_bytes:
            yield b"<page><title>huge</title><ns>0</ns><id>999999999</id><revision><id>1</id><text>"
            line = "거대한 문서의 한 줄이다.\n".encode() * 1000
            yield from (line for _ in range(num_bytes // len(line)))
            yield b"</text></revision></page>\n"
            num_bytes = 0
        yield page + after


def peaks(command: list[str | Path]) -> tuple[int, list[int], float]:
    """Runs a command; returns the peak bytes of its process and of each of its children, and the seconds it took."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    found: dict[int, int] = {}
    while process.poll() is None:
        for pid in (process.pid, *_children(process.pid)):
            found[pid] = max(found.get(pid, 0), _peak(pid))
        time.sleep(POLL_SECONDS)
    if process.returncode:
        raise SystemExit(f"{command[:4]} ended with exit code {process.returncode}")
    parent = found.pop(process.pid)
    return parent, sorted(found.values(), reverse=True), time.perf_counter() - begin


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


def _peak(pid: int) -> int:
    with contextlib.suppress(OSError):
        match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(match[1]) * 1024 if match else 0
    return 0


def main() -> None:
    """Prints one line for each dump and writes the figures to `out/bench/extraction_memory.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/kowiki-hybrid", help="a small dump")
    parser.add_argument("--copies", type=int, default=64)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    dumps = {name: WORK / f"memory-{number}.xml.bz2" for number, name in enumerate(SHARD_MB)}
    small = next(args.data.glob("*multistream.xml.bz2"))
    sizes = {MULTISTREAM: repeat_dump(small, args.copies, dumps[MULTISTREAM])}
    sizes[SINGLE] = single_stream(dumps[MULTISTREAM], dumps[SINGLE])
    sizes[HUGE] = single_stream(small, dumps[HUGE], HUGE_PAGE_BYTES)
    facts = {}
    for name, dump in dumps.items():
        out = WORK / "memory"
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "data_prep", "clean", "--dump", dump, "--out", out]
        parent, workers, seconds = peaks([*command, "--workers", args.workers, "--shard-mb", SHARD_MB[name]])
        facts[name] = {
            "xml_mb": round(sizes[name] / 1e6),
            "parent_mb": round(parent / 1e6),
            "workers_mb": [round(peak / 1e6) for peak in workers],
            "seconds": round(seconds, 1),
        }
        is_within = max(parent, *workers, 0) < LIMIT_MB * 1e6
        print(json.dumps({"dump": name, **facts[name], "within_200_mb": is_within}), flush=True)
    (WORK / "extraction_memory.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
