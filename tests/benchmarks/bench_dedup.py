"""Speed, memory, recall and false positives of `data_prep dedup` on documents whose duplicates are known.

python tests/benchmarks/bench_dedup.py [--documents 100000] [--workers 2] [--folder DIR] [--threshold 0.8]

Two folders of Korean-like documents (300-800 characters) are made, always the same: a fifth of the second are edited
copies of the first's, evenly over true Jaccard similarities of .5 to 1, 2 % are exact copies. Prints one JSON line.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data_prep.document import Document, as_row, read_jsonl, write_jsonl  # noqa: E402
from data_prep.lineage import commit, write_manifest  # noqa: E402

PER_FILE = 25_000
VOCABULARY = 60_000
EDITED, EXACT = 0.2, 0.02
BINS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
SAMPLE_SECONDS = 0.05


def main() -> None:
    """Makes the documents, runs the command once and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        place = Path(name)
        truth, num_bytes = make(place, args.documents)
        told = measure(place, args.workers, args.threshold)
        facts = {"documents": args.documents, "megabytes": round(num_bytes / 1e6, 1), "workers": args.workers}
        told["documents_per_second"] = round(args.documents / told["seconds"])
        told["mb_per_second"] = round(num_bytes / 1e6 / told["seconds"], 1)
        versions = {"python": platform.python_version(), "numpy": np.__version__}
        machine = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "commit": commit(), **versions}
        print(json.dumps(facts | told | judge(place, truth, args.threshold) | machine))


def make(place: Path, num_documents: int) -> tuple[dict[str, float], int]:
    """Writes the folders `old` and `new`; returns the true similarity of each document of `old` that has a copy."""
    rng = np.random.default_rng(20240520)
    vocabulary = _vocabulary(rng)
    truth: dict[str, float] = {}
    num_bytes, half = 0, num_documents // 2
    for begin in range(0, half, PER_FILE):
        rows: dict[str, list[dict[str, Any]]] = {"old": [], "new": []}
        for number in range(begin, min(begin + PER_FILE, half)):
            words = _words(rng, vocabulary)
            kind = rng.random()
            copy = words if kind < EXACT else _edited(rng, words, vocabulary)
            if kind < EXACT + EDITED:
                truth[f"old-{number}"] = _jaccard(words, copy)
            else:
                copy = _words(rng, vocabulary)
            for name, year, body in (("old", 2020, words), ("new", 2022, copy)):
                text = " ".join(body)
                num_bytes += len(text.encode())
                stamp = f"{year}-01-01T00:00:00Z"
                rows[name].append(as_row(Document(f"{name}-{number}", text, name, "ko", body[0], "", "", stamp)))
        for name, documents in rows.items():
            write_jsonl(place / name / f"documents-{begin // PER_FILE:05d}.jsonl.zst", documents)
    for name in ("old", "new"):
        write_manifest(place / name, {}, ledger={"in": half, "out": half, "dropped": {}})
    return truth, num_bytes


def _vocabulary(rng: np.random.Generator) -> list[str]:
    """Words of one to six syllables; their frequencies follow Zipf's law in `_words`."""
    lengths = rng.integers(1, 7, VOCABULARY)
    return ["".join(map(chr, rng.integers(0xAC00, 0xD7A4, n))) for n in lengths]


def _words(rng: np.random.Generator, vocabulary: list[str]) -> list[str]:
    num_words = int(rng.integers(67, 178))  # 300 to 800 characters at 4.5 a word with its space
    ranks = VOCABULARY ** rng.random(num_words)  # density 1 / rank
    return [vocabulary[rank] for rank in ranks.astype(int) - 1]


def _edited(rng: np.random.Generator, words: list[str], vocabulary: list[str]) -> list[str]:
    """Returns a copy of which runs of words are replaced, for a similarity of about .5 to 1."""
    copy, wanted = list(words), rng.uniform(0.5, 1.0)
    budget = len(words) * (1 - wanted) / (1 + wanted)  # shingles that change
    while budget > 0:
        run = int(rng.integers(1, max(2, int(budget) - 3)))
        begin = int(rng.integers(0, len(copy) - run + 1))
        copy[begin : begin + run] = [vocabulary[i] for i in rng.integers(0, VOCABULARY, run)]
        budget -= run + 4
    return copy


def _jaccard(one: list[str], other: list[str]) -> float:
    a, b = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (one, other))
    return len(a & b) / len(a | b)


def measure(place: Path, num_workers: int, threshold: float) -> dict[str, Any]:
    """Runs the command and returns its seconds and peak resident memory."""
    command = [sys.executable, "-m", "data_prep", "dedup", "--documents", str(place / "old"), str(place / "new")]
    command += ["--out", str(place / "out"), "--workers", str(num_workers), "--threshold", str(threshold)]
    begin = time.perf_counter()
    stages: dict[str, float] = {}
    with subprocess.Popen(command, cwd=ROOT) as process:
        peaks = {"sum": 0, "process": 0}
        watcher = threading.Thread(target=_watch, args=(process, peaks, place / "out.tmp", stages))
        watcher.start()
        code = process.wait()
        seconds = time.perf_counter() - begin
        watcher.join()
    if code:
        sys.exit(f"dedup ended with exit code {code}")
    return {
        "seconds": round(seconds, 1),
        "seconds_until": {name: round(moment - begin, 1) for name, moment in stages.items()},
        "peak_rss_mb_all_processes": round(peaks["sum"] / 1024),
        "peak_rss_mb_largest_process": round(peaks["process"] / 1024),
    }


def _watch(process: subprocess.Popen[bytes], peaks: dict[str, int], work: Path, stages: dict[str, float]) -> None:
    """Samples the resident memory (VmRSS, VmHWM; kB) of the process and its descendants until it ends."""
    while process.poll() is None:
        found = [_status(pid) for pid in _family(process.pid)]
        peaks["sum"] = max(peaks["sum"], sum(rss for rss, _ in found))
        peaks["process"] = max([peaks["process"], *(high for _, high in found)])
        if "compare" not in stages and (work / "clusters.jsonl.zst.tmp").exists():
            stages["compare"] = time.perf_counter()
        if "write" not in stages and (work / "documents-00000.jsonl.zst").exists():
            stages["write"] = time.perf_counter()
        time.sleep(SAMPLE_SECONDS)


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from _family(int(child))


def _status(pid: int) -> tuple[int, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    values = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "VmHWM")))
    rss, high = (int(values.get(name, "0 kB").split()[0]) for name in ("VmRSS", "VmHWM"))
    return rss, high


def judge(place: Path, truth: dict[str, float], threshold: float) -> dict[str, Any]:
    """Compares what was dropped with the truth."""
    dropped = {row["id"]: row for path in sorted((place / "out").glob("rejected-*")) for row in read_jsonl(path)}
    right = {name for name, row in dropped.items() if row["duplicate_of"] == name.replace("old", "new")}
    total: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for name, similarity in truth.items():
        low = max(low for low in (0.0, *BINS) if low <= similarity)
        key = "1" if low == 1 else f"{low:.2f}-{min(b for b in BINS if b > low):.2f}"
        total[key] += 1
        found[key] += name in right
    above = [name for name, similarity in truth.items() if similarity >= threshold]
    return {
        "dropped": len(dropped),
        "recall_at_threshold": round(sum(name in right for name in above) / len(above), 4),
        "dropped_by_true_jaccard": {k: f"{found[k]}/{n} = {found[k] / n:.3f}" for k, n in sorted(total.items())},
        "false_positives": {
            "unrelated": len(dropped.keys() - truth.keys()),
            "wrong_keeper": len(dropped.keys() & truth.keys() - right),
            "below_threshold_by_more_than_.05": sum(truth[name] < threshold - 0.05 for name in right),
            "below_threshold": sum(truth[name] < threshold for name in right),
        },
    }


if __name__ == "__main__":
    main()
