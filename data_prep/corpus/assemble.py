"""Makes one corpus of finished shards: duplicates and the surplus of stub families go, files get their final place.

Memory does not grow with the corpus but for one byte a document: hashes are compared in passes over their files.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.corpus.report import length_histogram
from data_prep.corpus.shard import KEYS, ShardTask
from data_prep.disk import disk_full
from data_prep.document import CorpusError, read_jsonl
from data_prep.lineage import write_json
from data_prep.pool import Report, run_tasks
from data_prep.shard_files import check_ledger, encode_line, line_writer, read_json, read_lines
from data_prep.wiki.unknown import UnknownTemplates

REASONS = ("", "duplicate_id", "duplicate", "stub_family")
"""Why an element of the array of drops is not 0."""
PASS_KEYS = 1 << 20  # compared at once
NUM_EXAMPLES = 3
FEW_SHARDS = 8
TOP_UNKNOWN = 20
UNKNOWN = "unknown_templates.json"

Drops = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PlaceTask:
    """A finished shard and what to leave out of it: place among its documents -> index in `REASONS`."""

    shard: ShardTask
    out: Path
    drops: dict[int, int]


def find_drops(shards: Sequence[ShardTask], max_per_skeleton: int) -> list[Drops]:
    """Returns for each shard which of its documents go, as indices in `REASONS`; 0 stays.

    Of equal ids, then of equal texts among what is left, the first in source order stays; then of each stub family
    the first `max_per_skeleton` (0: all).
    """
    drops = [np.zeros(shard.keys.stat().st_size // KEYS.itemsize, np.uint8) for shard in shards]
    for reason, (column, keep) in enumerate((("id", 1), ("text", 1), ("skeleton", max_per_skeleton)), start=1):
        if keep:
            _drop_surplus(shards, drops, column, keep, reason)
    return drops


def _drop_surplus(shards: Sequence[ShardTask], drops: list[Drops], column: str, keep: int, reason: int) -> None:
    starts = np.cumsum([0, *map(len, drops)])
    num_passes = int(-(-starts[-1] // PASS_KEYS))
    for number in range(num_passes):
        found: list[npt.NDArray[Any]] = []
        places: list[npt.NDArray[np.int64]] = []
        for shard, dropped, start in zip(shards, drops, starts[:-1], strict=True):
            hashes = np.fromfile(shard.keys, KEYS)[column].reshape(len(dropped), KEYS[column].itemsize // 8)
            mine = (hashes[:, 0] % num_passes == number) & (dropped == 0)
            found.append(hashes[mine])
            places.append(np.flatnonzero(mine) + start)
        surplus = np.concatenate(places)[_beyond(np.concatenate(found), keep)]
        for dropped, start, end in zip(drops, starts[:-1], starts[1:], strict=True):
            dropped[surplus[(surplus >= start) & (surplus < end)] - start] = reason


def _beyond(hashes: npt.NDArray[Any], keep: int) -> npt.NDArray[np.bool_]:
    """Returns for each row, (rows, words), whether `keep` or more equal rows come before it."""
    order = np.lexsort(hashes.T)  # stable: equal rows stay in their order
    ordered = hashes[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    places = np.arange(len(order))
    rank = places - np.maximum.accumulate(np.where(is_first, places, 0))
    beyond = np.empty(len(order), bool)
    beyond[order] = rank >= keep
    return beyond


def assemble(shards: Sequence[ShardTask], out: Path, drops: list[Drops], num_workers: int) -> dict[str, Any]:
    """Moves the shards to `out` without what goes, and returns the manifest's facts.

    Killed here, it can run again: a shard's files in its folder go only when the final ones exist.

    Raises:
        CorpusError: a shard cannot be placed, or the ledger does not add up.
        DiskFullError: there is no room.
    """
    facts, unknown = _totals(shards, drops)
    check_ledger(out, facts["ledger"])
    facts["duplicate_id_examples"] = _examples(shards, drops, REASONS.index("duplicate_id"))
    tasks = [
        PlaceTask(shard, out, {int(i): int(dropped[i]) for i in np.flatnonzero(dropped)})
        for shard, dropped in zip(shards, drops, strict=True)
    ]
    num_rewritten = sum(bool(task.drops) for task in tasks)
    workers = num_workers if num_rewritten > FEW_SHARDS else 1  # to start processes takes as long as a few shards
    failures = run_tasks(place, tasks, workers, lambda records, num_bytes: None)
    if failures:
        lines = [f"  shard {index:05d}: {message}" for index, message in sorted(failures.items())]
        raise CorpusError("\n".join([f"{len(failures)} shards could not be moved to {out}; start again", *lines]))
    with disk_full(out):
        write_json(out / UNKNOWN, unknown.as_json())
    return facts


def place(task: PlaceTask, report: Report) -> None:
    """Puts a shard's documents and rejects into the output folder.

    Raises:
        DiskFullError: there is no room.
    """
    files = [(task.shard.file(kind), task.out / task.shard.file(kind).name) for kind in ("rejected", "documents")]
    with disk_full(task.out):
        if not task.drops:
            for source, target in files:
                if source.exists():  # otherwise an earlier attempt has moved it
                    source.replace(target)
            return
        (rejected, _), (documents, _) = files
        with line_writer(task.out / rejected.name) as reject, line_writer(task.out / documents.name) as keep:
            for line in read_lines(rejected):
                reject(line)
            for i, line in enumerate(read_lines(documents)):
                if i in task.drops:
                    reject(encode_line({**json.loads(line), "reason": REASONS[task.drops[i]]}))
                else:
                    keep(line)


def _totals(shards: Sequence[ShardTask], drops: list[Drops]) -> tuple[dict[str, Any], UnknownTemplates]:
    """Adds up the shards' summaries, with what goes in the end."""
    num_in = num_out = num_chars = 0
    lengths: Counter[int] = Counter()
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("dropped", "dropped_characters", "changes")}
    unknown = UnknownTemplates()
    losses: list[dict[str, Any]] = []
    for shard, dropped in zip(shards, drops, strict=True):
        summary = read_json(shard.summary)
        chars = np.fromfile(shard.keys, KEYS)["chars"].astype(np.int64)
        num_in += summary["ledger"]["in"]
        num_out += int((dropped == 0).sum())
        num_chars += int(chars[dropped == 0].sum())
        lengths.update(length_histogram(chars[dropped == 0]))
        for code, reason in enumerate(REASONS[1:], start=1):
            counts["dropped"][reason] += int((dropped == code).sum())
            counts["dropped_characters"][reason] += int(chars[dropped == code].sum())
        counts["dropped"].update(summary["ledger"]["dropped"])
        counts["dropped_characters"].update(summary["dropped_characters"])
        counts["changes"].update(summary["changes"])
        unknown.merge(UnknownTemplates.from_json(summary.get("unknown", {})))
        losses += summary.get("losses", [])
    sums = {name: {key: n for key, n in counter.most_common() if n} for name, counter in counts.items()}
    facts = {
        "ledger": {"in": num_in, "out": num_out, "dropped": sums["dropped"]},
        "dropped_characters": sums["dropped_characters"],
        "counts": {"documents": num_out, "characters": num_chars, "shards": len(shards)},
        "lengths": [{"from": start, "documents": number} for start, number in sorted(lengths.items())],
        "changes": sums["changes"],
        "unknown_templates": unknown.as_json(TOP_UNKNOWN),
        "losses": losses,
    }
    return facts, unknown


def _examples(shards: Sequence[ShardTask], drops: list[Drops], code: int) -> list[dict[str, str]]:
    """Returns the first documents that go for a reason; their shards' files stay in place until the end."""
    found = (
        {"id": row["id"], "title": row["title"]}
        for shard, dropped in zip(shards, drops, strict=True)
        if (dropped == code).any()
        for i, row in enumerate(read_jsonl(shard.file("documents")))
        if dropped[i] == code
    )
    return list(islice(found, NUM_EXAMPLES))
