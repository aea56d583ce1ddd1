"""`python -m data_prep dedup`: exact and near-duplicates across any number of folders.

Two documents are exact duplicates if their texts are equal in NFC with white space folded, near-duplicates if their
sets of word 5-grams have an estimated Jaccard similarity of at least --threshold (MinHash, 128 permutations). Two
versions of a page (same source and id) count as duplicates even if the page has changed more than that. What goes is
always like a document that stays. `clusters.jsonl.zst` tells for each document what went for it.

A run that was killed goes on where it stopped: finished files of sketches and of documents are not made again.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.dedup.choice import choose
from data_prep.dedup.run import KEEP, Dedup, begin, check, finish, is_counted
from data_prep.dedup.shards import sketch_shard, write_shard
from data_prep.disk import disk_full
from data_prep.document import CorpusError
from data_prep.lineage import MANIFEST
from data_prep.pool import Function, run_tasks
from data_prep.run_folder import locked
from data_prep.shard_files import read_json


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand `dedup`."""
    parser = subparsers.add_parser("dedup", help="drop duplicates across folders", description=__doc__)
    parser.add_argument("--documents", type=Path, nargs="+", required=True, help="folders with documents-*.jsonl.zst")
    parser.add_argument("--out", type=Path, required=True, help="folder of the documents that stay")
    parser.add_argument("--keep", choices=KEEP, default="newest", help="which of a cluster stays (default: newest)")
    parser.add_argument("--threshold", type=float, default=0.8, help="estimated Jaccard similarity (default: 0.8)")
    parser.add_argument(
        "--same-id",
        choices=("drop", "keep"),
        default="drop",
        help="other versions of a page (same source and id) that are no near-duplicates (default: drop)",
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: cores)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the documents that stay, those dropped and the clusters, and returns 0.

    Raises:
        CorpusError: a folder holds no documents, an option cannot be used, or `--out` holds something else.
    """
    if args.workers < 1:
        raise CorpusError(f"--workers is {args.workers}; at least 1 is needed; give the number of cores")
    task = request(args)
    check(task)
    with _locked(task.partial):
        if not begin(task):
            print(f"{args.out} is complete with the same documents, settings and code; nothing to do", file=sys.stderr)
            return 0
        with disk_full(task.partial):
            if not is_counted(task):
                _run_shards("sketches", sketch_shard, task, args.workers)
                choose(task)
                _run_shards("summary", write_shard, task, args.workers)
            ledger = finish(task)
    dropped = ", ".join(f"{number} {reason}" for reason, number in ledger["dropped"].items()) or "none"
    print(f"{args.out}: {ledger['out']} of {ledger['in']} documents; dropped: {dropped}")
    return 0


def request(args: argparse.Namespace) -> Dedup:
    """Returns what the options ask for.

    Raises:
        CorpusError: the threshold is not above 0 and at most 1.
    """
    if not 0 < args.threshold <= 1:
        raise CorpusError(f"--threshold is {args.threshold}; above 0 and at most 1 is expected; 0.8 is the default")
    return Dedup(tuple(args.documents), args.out, args.threshold, args.keep, args.same_id == "drop")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it for this process; left empty, it is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        yield
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _run_shards(kind: str, function: Function, task: Dedup, num_workers: int) -> None:
    """Runs a stage for the files that lack what it makes.

    Raises:
        CorpusError: some failed; the others are complete and will not be made again.
    """
    shards = task.shards()
    todo = [shard for shard in shards if not shard.work(kind).is_file()]
    description = {"sketches": "sketch", "summary": "write"}[kind]
    interval = 0.5 if sys.stderr.isatty() else 30
    done = sum(shard.num_sketched() for shard in shards if shard not in todo)
    total = _num_expected(task) if kind == "sketches" else sum(shard.num_sketched() for shard in shards)
    with tqdm(total=total, initial=done, unit=" documents", desc=description, mininterval=interval) as bar:
        num_bytes = 0

        def show(documents: int, text_bytes: int) -> None:
            nonlocal num_bytes
            num_bytes += text_bytes
            seconds = bar.format_dict["elapsed"] or 1.0
            bar.set_postfix_str(f"{num_bytes / 1e6 / seconds:.1f} MB/s of text", refresh=False)
            bar.update(documents)

        failures = run_tasks(function, todo, num_workers, show)
    if failures:
        lines = [f"  {todo[i].documents}: {message}" for i, message in sorted(failures.items())]
        raise CorpusError(
            f"{len(failures)} of {len(shards)} files failed, {len(shards) - len(failures)} are complete in "
            f"{task.partial}; a finished run is expected; mend these and run again\n" + "\n".join(lines)
        )


def _num_expected(task: Dedup) -> int | None:
    """Returns how many documents the folders hold by their ledgers; None if one does not say."""
    ledgers = [read_json(folder / MANIFEST).get("ledger") for folder in task.documents]
    return sum(ledger["out"] for ledger in ledgers if ledger) if all(ledgers) else None
