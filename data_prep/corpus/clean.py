"""`python -m data_prep clean`: a Wikipedia dump becomes documents; killed runs go on where they stopped.

In the output folder, `run.json` holds the run's fingerprint and `work/` the finished shards. When all are finished,
exact duplicates are taken out, the shards get their final place, and `manifest.json` is written last.
"""

import argparse
import fcntl
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.corpus.clean_shard import ShardTask, check_ledger, clean_shard, read_json
from data_prep.corpus.filters import Limits
from data_prep.document import CorpusError, read_jsonl, write_jsonl
from data_prep.lineage import MANIFEST, sha256_file, sha256_json, source_files, write_json, write_manifest
from data_prep.pool import run_tasks
from data_prep.wiki.dump import read_site, split
from data_prep.wiki.templates import load_table

RUN = "run.json"
WORK = "work"
LANGUAGES = ("ko", "en")
TOP_UNKNOWN = 20


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand `clean`."""
    parser = subparsers.add_parser("clean", help="clean a Wikipedia dump into documents", description=__doc__)
    parser.add_argument("--dump", type=Path, required=True, help="pages-articles(-multistream).xml.bz2, or .xml")
    parser.add_argument("--out", type=Path, required=True, help="folder of the documents")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: cores)")
    parser.add_argument("--lang", choices=LANGUAGES, help="language (default: what the dump says)")
    parser.add_argument("--min-chars", type=int, default=Limits.min_chars, help="shorter documents are dropped")
    parser.add_argument("--templates", type=Path, help="YAML file laid over data_prep/wiki/templates_ko.yaml")
    parser.add_argument("--shard-mb", type=float, default=16, help="megabytes of the dump per shard (default: 16)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Cleans the dump and returns 0.

    Raises:
        CorpusError: an option or the dump cannot be used, a shard failed, or `--out` holds another run.
    """
    _check_options(args)
    tasks, settings = _plan(args)
    state = _open_run(args.out, settings)
    with _locked(args.out):
        return _run(tasks, settings, state, args)


def _run(tasks: list[ShardTask], settings: dict[str, Any], state: dict[str, Any], args: argparse.Namespace) -> int:
    if (args.out / MANIFEST).is_file():
        print(f"{args.out} is complete with the same dump, settings and code; nothing to do", file=sys.stderr)
        return 0
    if state["facts"] is None:
        _clean_all(tasks, args)
        state["facts"] = _assemble(tasks, args.out)
        write_json(args.out / RUN, state)
    shutil.rmtree(args.out / WORK, ignore_errors=True)
    inputs = {"dump": args.dump} | ({"templates": args.templates} if args.templates else {})
    write_manifest(args.out, inputs, settings=settings, **state["facts"])
    ledger = state["facts"]["ledger"]
    print(f"{args.out}: {ledger['out']} documents of {ledger['in']} pages; dropped: {ledger['dropped']}")
    return 0


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; the lock ends with it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise CorpusError(
            f"{folder} is being written by another run; one at a time is possible; wait for it or give another --out"
        ) from None
    finally:
        os.close(handle)


def _check_options(args: argparse.Namespace) -> None:
    if args.workers < 1:
        raise CorpusError(f"--workers is {args.workers}; at least 1 is needed; give the number of cores")
    if args.min_chars < 0:
        raise CorpusError(f"--min-chars is {args.min_chars}; 0 or more is expected; give a number of characters")
    if not args.shard_mb > 0:
        raise CorpusError(f"--shard-mb is {args.shard_mb}; more than 0 is expected; 16 is the default")


def _plan(args: argparse.Namespace) -> tuple[list[ShardTask], dict[str, Any]]:
    """Returns the shards' tasks, and all that the documents depend on."""
    site = read_site(args.dump)
    lang = args.lang or site.lang
    if lang is None:
        raise CorpusError(
            f"{args.dump} names the wiki {site.dbname!r} at {site.base!r}; kowiki or enwiki is expected; "
            "pass --lang ko or --lang en"
        )
    limits = Limits(min_chars=args.min_chars)
    load_table(lang, args.templates)  # a broken table fails here, before any work
    parts = split(args.dump, max(1, int(args.shard_mb * 1e6)))
    folder = args.out / WORK
    tasks = [
        ShardTask(args.dump, part, site, folder, index, lang, limits, args.templates)
        for index, part in enumerate(parts)
    ]
    code = source_files([Path(__file__)])
    settings = {
        "dump_sha256": sha256_file(args.dump),
        "lang": lang,
        "limits": asdict(limits),
        "shard_mb": args.shard_mb,
        "templates_sha256": sha256_file(args.templates) if args.templates else None,
        "code_sha256": sha256_json([[path.name, sha256_file(path)] for path in code]),
    }
    return tasks, settings


def _open_run(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the state of the run in `out`, which is begun if the folder is new or empty."""
    run_file = out / RUN
    if not run_file.is_file():
        if out.exists() and (not out.is_dir() or any(p.name != f"{RUN}.tmp" for p in out.iterdir())):
            raise CorpusError(f"{out} exists and holds no {RUN}; a new or empty folder is expected; give another --out")
        state: dict[str, Any] = {"fingerprint": sha256_json(settings), "settings": settings, "facts": None}
        write_json(run_file, state)
        return state
    state = read_json(run_file)
    if state["fingerprint"] != sha256_json(settings):
        old = state["settings"]
        changes = [f"{key} was {old.get(key)!r}, is {new!r}" for key, new in settings.items() if old.get(key) != new]
        raise CorpusError(
            f"{out} was begun with fingerprint {state['fingerprint'][:12]}, this run has {sha256_json(settings)[:12]} "
            f"({'; '.join(changes)}); the same dump, settings and code are expected; give another --out or remove it"
        )
    return state


def _clean_all(tasks: list[ShardTask], args: argparse.Namespace) -> None:
    """Makes the shards that are not finished yet."""
    (args.out / WORK).mkdir(exist_ok=True)
    todo = [task for task in tasks if not task.summary.is_file()]
    done_bytes = sum(t.part.end - t.part.start for t in tasks if t not in todo)
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(
        total=args.dump.stat().st_size,
        initial=done_bytes,
        unit="B",
        unit_scale=True,
        mininterval=interval,
        desc="clean",
    ) as bar:
        num_pages = 0

        def show(pages: int, num_bytes: int) -> None:
            nonlocal num_pages
            num_pages += pages
            seconds = bar.format_dict["elapsed"] or 1.0
            bar.set_postfix_str(f"{num_pages} pages, {num_pages / seconds:.0f} pages/s", refresh=False)
            bar.update(num_bytes)

        failures = run_tasks(clean_shard, todo, args.workers, show)
    if failures:
        lines = [f"  shard {todo[i].index:05d}: {message}" for i, message in sorted(failures.items())]
        raise CorpusError(
            f"{len(failures)} of {len(tasks)} shards failed, {len(tasks) - len(failures)} are complete in "
            f"{args.out / WORK}; no manifest is written\n" + "\n".join(lines)
        )


def _assemble(tasks: list[ShardTask], out: Path) -> dict[str, Any]:
    """Moves the shards to their place without exact duplicates and returns the manifest's facts.

    Of equal texts the first in page order stays. Killed here, it can run again: a shard's files in
    `work/` go only when the final ones exist.
    """
    seen: set[bytes] = set()
    ledger: dict[str, Any] = {"in": 0, "out": 0, "dropped": Counter()}
    pii: Counter[str] = Counter()
    unknown: dict[str, list] = {}
    num_chars = 0
    for task in tasks:
        facts = read_json(task.summary)
        again = set()
        for position, digest in enumerate(map(bytes.fromhex, facts["hashes"])):
            if digest in seen:
                again.add(position)
            seen.add(digest)
        num_chars += facts["characters"] - _place(task, out, again)
        ledger["in"] += facts["ledger"]["in"]
        ledger["out"] += facts["ledger"]["out"] - len(again)
        ledger["dropped"].update(facts["ledger"]["dropped"])
        if again:
            ledger["dropped"]["duplicate"] += len(again)
        pii.update(facts["pii"])
        for name, (count, example) in facts["unknown"].items():
            entry = unknown.setdefault(name, [0, example])
            entry[0] += count
    ledger["dropped"] = dict(ledger["dropped"].most_common())
    check_ledger(out, ledger)
    top = sorted(unknown.items(), key=lambda item: (-item[1][0], item[0]))[:TOP_UNKNOWN]
    return {
        "ledger": ledger,
        "counts": {"documents": ledger["out"], "characters": num_chars, "shards": len(tasks)},
        "pii_replaced": dict(pii),
        "unknown_templates": [{"name": n, "count": count, "example": example} for n, (count, example) in top],
    }


def _place(task: ShardTask, out: Path, again: set[int]) -> int:
    """Puts a shard's files into `out` and returns the characters of the documents that are duplicates."""
    documents, rejected = task.file("documents"), task.file("rejected")
    if not again:
        for file in (rejected, documents):
            if file.exists():  # otherwise an earlier attempt has moved it
                file.replace(out / file.name)
        return 0
    duplicates = [row for i, row in enumerate(read_jsonl(documents)) if i in again]
    write_jsonl(
        out / rejected.name, chain(read_jsonl(rejected), ({**row, "reason": "duplicate"} for row in duplicates))
    )
    write_jsonl(out / documents.name, (row for i, row in enumerate(read_jsonl(documents)) if i not in again))
    return sum(len(row["text"]) for row in duplicates)
