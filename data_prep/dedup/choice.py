"""The stage of `dedup` that needs all documents' sketches at once: who stays, who goes for whom."""

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.dedup import minhash
from data_prep.dedup.duplicates import KINDS, Ints, Verdicts, find_duplicates
from data_prep.dedup.run import CLUSTERS, Dedup
from data_prep.dedup.shards import REASONS, read_records
from data_prep.document import write_jsonl

Label = Callable[[int], dict[str, Any]]


def choose(task: Dedup) -> None:
    """Decides which documents go, and writes for each file which ones, and the clusters of all.

    Memory: about 800 bytes a document.
    """
    shards = task.shards()
    if all(shard.work("dropped").is_file() for shard in shards) and (task.partial / CLUSTERS).is_file():
        return
    records, sketches = read_records(shards)
    names = records["name"] if task.same_id else np.zeros_like(records["name"])
    verdicts = find_duplicates(sketches, records["text"], names, _order(records, task.keep), task.threshold)
    del records, sketches, names  # before the labels come
    labels = [shard.work("labels").read_bytes().split(b"\n")[:-1] for shard in shards]
    begins = np.cumsum([0, *map(len, labels)])
    folders = task.folder_names()

    def label(position: int) -> dict[str, Any]:
        number = int(np.searchsorted(begins, position, side="right")) - 1
        name, title, timestamp = json.loads(labels[number][position - int(begins[number])])
        return {"folder": folders[shards[number].folder], "id": name, "title": title, "timestamp": timestamp}

    write_jsonl(task.partial / CLUSTERS, _clusters(verdicts, label))
    gone = np.flatnonzero(verdicts.keeper >= 0)
    for shard, first, end in zip(shards, begins[:-1], begins[1:], strict=True):
        own = gone[np.searchsorted(gone, first) : np.searchsorted(gone, end)]
        write_jsonl(shard.work("dropped"), (_drop(int(i), int(first), verdicts, label) for i in own))


def _order(records: npt.NDArray[np.void], keep: str) -> Ints:
    """Returns the positions of the documents, the worthiest first; the position itself decides between equals."""
    place = np.arange(len(records))
    if keep == "newest":
        return np.lexsort((place, -records["revision"], -records["timestamp"]))
    return np.lexsort((place, -records["chars"].astype(np.int64))) if keep == "longest" else place


def _similarity(position: int, verdicts: Verdicts) -> float:
    return round(int(verdicts.num_equal[position]) / minhash.NUM_PERMUTATIONS, 4)


def _drop(position: int, first: int, verdicts: Verdicts, label: Label) -> dict[str, Any]:
    keeper = label(int(verdicts.keeper[position]))
    return {
        "position": position - first,  # in its file
        "reason": REASONS[KINDS[verdicts.kind[position]]],
        "duplicate_of": keeper["id"],
        "duplicate_in": keeper["folder"],
        "similarity": _similarity(position, verdicts),
    }


def _clusters(verdicts: Verdicts, label: Label) -> Iterator[dict[str, Any]]:
    """Yields one row per document that stays for others, in the order of the documents."""
    gone = np.flatnonzero(verdicts.keeper >= 0)
    gone = gone[np.argsort(verdicts.keeper[gone], kind="stable")]
    for keeper, members in groupby(gone.tolist(), key=lambda i: int(verdicts.keeper[i])):
        kept = label(keeper)
        rows = [label(i) | {"similarity": _similarity(i, verdicts), "kind": KINDS[verdicts.kind[i]]} for i in members]
        yield {"kept": kept.pop("id"), **kept, "members": rows}
