"""Documents out of a Wikipedia dump, or of any other corpus, by one set of rules; killed runs go on where they stopped.

In the output folder, `run.json` holds the run's fingerprint and `work/` the finished shards. When all are finished,
duplicates and the surplus of stub families are taken out, the shards get their final place, and `manifest.json` is
written last. Exit code: 0 done; 1 bad input, nothing is called complete; 3 done, but a part of the input could not be
read (--accept-loss makes it 0).
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.corpus.assemble import UNKNOWN, assemble, find_drops
from data_prep.corpus.kowikitext import Shares, write_splits
from data_prep.corpus.progress import CleanBar
from data_prep.corpus.report import write_report
from data_prep.corpus.shard import ShardTask, clean_shard
from data_prep.disk import check_free, disk_full
from data_prep.document import CorpusError
from data_prep.filters.rules import LANGUAGES, Rules, load_rules
from data_prep.lineage import MANIFEST, sha256_file, sha256_json, source_files, write_json, write_manifest
from data_prep.pool import run_tasks
from data_prep.readers import options as readers
from data_prep.run_folder import RUN, locked, open_run
from data_prep.shard_files import read_json
from data_prep.source import Loss, Part, Source
from data_prep.wiki.dump import STDIN_NAME, Dump, open_dump

WORK = "work"
STYLES = ("documents", "kowikitext")
LOSS_EXIT = 3
OUT_PER_INPUT_BYTE = 0.5
STYLE_PER_INPUT_BYTE = 1.0  # kowikitext is not compressed


@dataclass(frozen=True)
class CleanRun:
    """What one call of the command is to do."""

    source: Source
    inputs: dict[str, Path]
    """Files and folders for the manifest, by name."""
    rules: dict[str, Rules]
    out: Path
    workers: int
    shard_bytes: int
    shares: Shares | None
    """Of the files in the form of kowikitext; None writes none."""
    settings: dict[str, Any]

    @property
    def work(self) -> Path:
        """Folder of the unfinished run's shards."""
        return self.out / WORK


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand `clean`."""
    parser = subparsers.add_parser("clean", help="clean a Wikipedia dump, or other documents", description=__doc__)
    add = parser.add_argument
    add("--dump", type=Path, nargs="+", metavar="FILE", help="MediaWiki export: .xml, .bz2, .gz, .zst, or - for a pipe")
    add("--out", type=Path, required=True, help="folder of the documents")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: cores)")
    add("--lang", choices=LANGUAGES, help="language (default: what the dump says; documents: each one's script)")
    add("--rules", type=Path, help="YAML file of thresholds (default: configs/data/filters_LANG.yaml)")
    add("--min-chars", type=int, help="shorter documents are dropped (default: as the rules say)")
    add("--templates", type=Path, help="YAML file laid over data_prep/wiki/templates_*.yaml")
    add("--shard-mb", type=float, default=16, help="megabytes of the input per shard (default: 16)")
    add("--max-page-mb", type=float, default=8, help="larger pages are dropped (default: 8; MediaWiki's limit is 2)")
    add("--style", choices=STYLES, default=STYLES[0], help="kowikitext: also write train, dev and test text files")
    add("--dev-share", type=float, default=Shares.dev, help="share of kowikitext.dev (default: 0.01)")
    add("--test-share", type=float, default=Shares.test, help="share of kowikitext.test (default: 0.01)")
    add("--accept-loss", action="store_true", help="exit code 0 though a part of the input could not be read")
    readers.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Cleans the source and returns 0, or 3 if a part of it could not be read.

    Raises:
        UserError: an option or the source cannot be used, a shard failed, the disk is full, or `--out` holds another
            run.
    """
    _check_options(args)
    asked = plan(args)
    _check_room(asked)
    with disk_full(args.out):
        state = open_run(args.out, asked.settings)
        with locked(args.out):
            facts = _run(asked, state)
    return _exit_code(facts, args.accept_loss)


def _run(plan: CleanRun, state: dict[str, Any]) -> dict[str, Any]:
    """Does what is left to do and returns the manifest's facts."""
    if (plan.out / MANIFEST).is_file():
        _check_stdin(plan, state)
        print(f"{plan.out} is complete with the same input, settings and code; nothing to do", file=sys.stderr)
        return state["facts"]
    if state["facts"] is None:
        shards = _clean_all(plan)
        drops = find_drops(shards, next(iter(plan.rules.values())).max_per_skeleton)
        facts = assemble(shards, plan.out, drops, plan.workers)
        if isinstance(plan.source, Dump):
            facts["losses"] += [asdict(loss) for loss in plan.source.losses]
            facts["site"] = plan.source.site.facts()
            facts["stdin_sha256"] = plan.source.stdin.sha256() if plan.source.stdin else None
        if plan.shares:
            facts["kowikitext"] = write_splits(shards, drops, plan.out, plan.shares)
        state["facts"] = facts
        write_json(plan.out / RUN, state)
    shutil.rmtree(plan.work, ignore_errors=True)
    facts = {"settings": plan.settings, **state["facts"]}
    write_report(plan.out, {**facts, "unknown_templates": read_json(plan.out / UNKNOWN)})
    write_manifest(plan.out, plan.inputs, **facts)
    _tell(plan.out, state["facts"])
    return state["facts"]


def _check_options(args: argparse.Namespace) -> None:
    if (args.dump is None) == (args.documents is None):
        given = "both are given" if args.dump else "neither is given"
        raise CorpusError(f"--dump and --documents: {given}; one of them is expected; choose what to read")
    if args.dump is None and args.templates:
        raise CorpusError(
            f"--templates {args.templates} is given with --documents; only a dump has templates; leave it out"
        )
    if args.workers < 1:
        raise CorpusError(f"--workers is {args.workers}; at least 1 is needed; give the number of cores")
    if args.min_chars is not None and args.min_chars < 0:
        raise CorpusError(f"--min-chars is {args.min_chars}; 0 or more is expected; give a number of characters")
    if not args.shard_mb > 0:
        raise CorpusError(f"--shard-mb is {args.shard_mb}; more than 0 is expected; 16 is the default")
    if not args.max_page_mb > 0:
        raise CorpusError(f"--max-page-mb is {args.max_page_mb}; more than 0 is expected; 8 is the default")
    Shares(args.dev_share, args.test_share).check()


def plan(args: argparse.Namespace) -> CleanRun:
    """Returns what the options ask for; nothing is written yet.

    Raises:
        UserError: the source, the rules or the templates cannot be used.
    """
    source = readers.from_arguments(args) or open_dump(
        args.dump, args.lang, args.templates, int(args.max_page_mb * 1e6)
    )
    overrides = [] if args.min_chars is None else [f"min_chars={args.min_chars}"]
    lang = args.lang or source.lang
    languages = [lang] if lang else list(LANGUAGES[:1] if args.rules else LANGUAGES)
    rules = {lang: load_rules(args.rules, lang, overrides) for lang in languages}
    shares = Shares(args.dev_share, args.test_share) if args.style == "kowikitext" else None
    code = source_files([Path(__file__)])
    settings = {
        "source": source.settings(),
        "lang": lang,
        "rules": {name: asdict(rule) for name, rule in rules.items()},
        "shard_mb": args.shard_mb,
        "kowikitext": asdict(shares) if shares else None,
        "code_sha256": sha256_json([[path.name, sha256_file(path)] for path in code]),
    }
    inputs = {"documents": Path(args.documents)} if args.documents else _dump_inputs(args.dump)
    inputs |= {name: path for name, path in (("templates", args.templates), ("rules", args.rules)) if path}
    present = {name: path for name, path in inputs.items() if path.exists()}  # no pipe, no dataset of the Hub
    shard_bytes = max(1, int(args.shard_mb * 1e6))
    return CleanRun(source, present, rules, args.out, args.workers, shard_bytes, shares, settings)


def _dump_inputs(paths: list[Path]) -> dict[str, Path]:
    return {"dump" if len(paths) == 1 else f"dump-{number}": path for number, path in enumerate(paths, start=1)}


def _check_room(plan: CleanRun) -> None:
    """Compares an estimate of what a new run writes with the room there is."""
    size = _input_bytes(plan)
    if size is not None and not (plan.out / RUN).is_file():
        share = OUT_PER_INPUT_BYTE + (STYLE_PER_INPUT_BYTE if plan.shares else 0)
        check_free(plan.out, int(size * share), "the corpus of this input")


def _clean_all(plan: CleanRun) -> list[ShardTask]:
    """Makes the shards that are not finished yet and returns all of them."""
    plan.work.mkdir(exist_ok=True)
    for leftover in [*plan.work.glob("part-*"), *plan.work.glob("*.tmp")]:
        leftover.unlink(missing_ok=True)  # of a killed run, whose last worker may be ending still
    shards: list[ShardTask] = []
    given: list[ShardTask] = []
    with CleanBar(_input_bytes(plan)) as bar:
        failures = run_tasks(clean_shard, _unfinished(plan, shards, given, bar), plan.workers, bar.show)
    if failures:
        lines = [f"  shard {given[i].index:05d}: {message}" for i, message in sorted(failures.items())]
        raise CorpusError(
            f"{len(failures)} of {len(shards)} shards failed, {len(shards) - len(failures)} are complete in "
            f"{plan.work}; no manifest is written; start again when the cause is mended\n" + "\n".join(lines)
        )
    return shards


def _unfinished(
    plan: CleanRun, shards: list[ShardTask], given: list[ShardTask], bar: CleanBar
) -> Iterator[ShardTask | None]:
    """Yields the shards to make; adds all of them to `shards`, those yielded to `given`."""

    def known(index: int) -> str | None:
        summary = plan.work / f"summary-{index:05d}.json"
        return str(read_json(summary)["part_sha256"]) if summary.is_file() else None

    source = plan.source
    parts: Iterable[Part | None]
    parts = (
        source.stream(plan.shard_bytes, plan.work, known)
        if isinstance(source, Dump)
        else source.parts(plan.shard_bytes)
    )
    for part in parts:
        if part is None:
            yield None
            continue
        task = ShardTask(source, part, plan.work, len(shards), plan.rules, plan.shares is not None)
        shards.append(task)
        if task.summary.is_file():
            bar.skip(task.input_bytes)
        else:
            given.append(task)
            yield task


def _input_bytes(plan: CleanRun) -> int | None:
    """Returns the size of the input; None for a pipe."""
    if isinstance(plan.source, Dump):
        sizes = [file.size for file in plan.source.files]
        return None if None in sizes else sum(size or 0 for size in sizes)
    return sum(part.end - part.start for part in plan.source.parts(plan.shard_bytes))


def _check_stdin(plan: CleanRun, state: dict[str, Any]) -> None:
    """A pipe is known by its content alone: it must be that of the finished run."""
    if isinstance(plan.source, Dump) and plan.source.stdin:
        now, before = plan.source.stdin.sha256(), state["facts"]["stdin_sha256"]
        if now != before:
            raise CorpusError(
                f"{plan.out} is complete with a {STDIN_NAME} of SHA-256 {before[:12]}, this one has {now[:12]}; "
                "the same input is expected; give another --out or remove it"
            )


def _tell(out: Path, facts: dict[str, Any]) -> None:
    ledger = facts["ledger"]
    print(f"{out}: {ledger['out']} documents of {ledger['in']} records; dropped: {ledger['dropped']}")
    for example in facts["duplicate_id_examples"]:
        print(f"  the id of an earlier document: {example['id']} {example['title']!r}")
    if unknown := facts["unknown_templates"]:
        print(f"templates the table does not know, the most frequent of those in {out / UNKNOWN}:")
        for name, entry in unknown.items():
            example = entry["examples"][0]
            print(f"  {entry['count']:>8} {name}: {' '.join(example['call'].split())} ({example['title']})")
    print(f"what each rule removed, with samples: {out / 'report.html'}")


def _exit_code(facts: dict[str, Any], accept_loss: bool) -> int:
    losses = [Loss(**loss) for loss in facts["losses"]]
    if not losses:
        return 0
    print(f"{len(losses)} parts of the input could not be read:", file=sys.stderr)
    for loss in losses:
        print(f"  {loss}", file=sys.stderr)
    if not accept_loss:
        print(f"exit code {LOSS_EXIT}; fetch the input again, or pass --accept-loss", file=sys.stderr)
    return 0 if accept_loss else LOSS_EXIT
