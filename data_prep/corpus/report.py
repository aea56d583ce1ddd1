"""What cleaning did, for a person (report.html) and for a program (report.json): counts, reasons, samples."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_prep.corpus.report_page import page
from data_prep.document import read_jsonl
from data_prep.lineage import whole_file, write_json

SAMPLES = 5  # of each reason
SAMPLE_CHARS = 200
TOP_UNKNOWN = 50
# Lower ends of the length histogram, characters.
LENGTHS = (0, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)


def write_report(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes `report.json` and `report.html` into a finished output folder.

    Args:
        folder: holds `rejected-*.jsonl.zst`; each line is a document with its `reason`, and perhaps `detail`: the
            value that crossed the limit.
        facts: `ledger` (in, out, dropped by reason); if there are: `counts` (documents, characters), `lengths`
            (rows of `from`, `documents`: `length_histogram` of what stays), `changes` (what `filters.prepare`
            counted), `unknown_templates` (`UnknownTemplates.as_json()`), `losses` (of the input), `settings`.

    Raises:
        CorpusError: a file of the folder is damaged.
    """
    report = collect(folder, facts)
    write_json(folder / "report.json", report)
    with whole_file(folder / "report.html") as partial:
        partial.write_text(page(folder.resolve().name, report), encoding="utf-8")


def collect(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the report says, as JSON values; the same folder and facts always give the same."""
    rejected = _Rejected()
    for row in _rows(folder, "rejected"):
        rejected.add(row)
    dropped = dict(facts["ledger"]["dropped"])
    unknown = facts.get("unknown_templates") or {}
    return {
        "ledger": facts["ledger"],
        "counts": facts.get("counts", {}),
        "dropped_characters": {reason: rejected.characters[reason] for reason in dropped if reason in rejected.samples},
        "changes": dict(sorted((facts.get("changes") or {}).items())),
        "lengths": facts.get("lengths", []),
        "samples": {reason: rejected.best(reason) for reason in dropped if reason in rejected.samples},
        "unknown_templates": dict(list(unknown.items())[:TOP_UNKNOWN]),
        "num_unknown_templates": len(unknown),
        "losses": facts.get("losses") or [],
        "settings": facts.get("settings", {}),
    }


def length_histogram(num_chars: npt.ArrayLike) -> dict[int, int]:
    """Returns lower end of each bin -> how many of the lengths, characters, fall into it."""
    places = np.searchsorted(LENGTHS, np.asarray(num_chars), side="right") - 1
    numbers = np.bincount(places, minlength=len(LENGTHS))
    return dict(zip(LENGTHS, numbers.tolist(), strict=True))


class _Rejected:
    """Characters by reason, and the documents of each reason whose hashed ids are the lowest: a fair sample."""

    def __init__(self) -> None:
        self.characters: Counter[str] = Counter()
        self.samples: dict[str, list[tuple[int, str, dict[str, str]]]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        reason, text = str(row["reason"]), str(row["text"])
        self.characters[reason] += len(text)
        rank = -int.from_bytes(hashlib.blake2b(str(row["id"]).encode(), digest_size=8).digest(), "big")
        heap = self.samples.setdefault(reason, [])
        if len(heap) == SAMPLES and rank <= heap[0][0]:
            return
        sample = {key: str(row.get(key, "")) for key in ("id", "title", "detail")} | {"text": text[:SAMPLE_CHARS]}
        entry = (rank, sample["id"], sample)
        if len(heap) < SAMPLES:
            heapq.heappush(heap, entry)
        else:
            heapq.heapreplace(heap, entry)

    def best(self, reason: str) -> list[dict[str, str]]:
        return [sample for _, _, sample in sorted(self.samples[reason], key=lambda entry: (-entry[0], entry[1]))]


def _rows(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    paths = sorted(folder.glob(f"{kind}-*.jsonl.zst"))
    sizes = [path.stat().st_size for path in paths]
    with tqdm(
        total=sum(sizes), unit="B", unit_scale=True, desc=f"report: {kind}", mininterval=1, delay=5, leave=False
    ) as bar:
        for path, size in zip(paths, sizes, strict=True):
            yield from read_jsonl(path)
            bar.update(size)
