"""The stages of `dedup` beside those of a single file: its folder is begun, and finished with ledger and manifest.

begin -> sketch_shard for every file -> choose -> write_shard for every file -> finish
"""

import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.dedup import minhash
from data_prep.dedup.shards import DedupShard
from data_prep.document import CorpusError
from data_prep.lineage import MANIFEST, sha256_json, sha256_path, source_files, write_json, write_manifest
from data_prep.run_folder import RUN
from data_prep.shard_files import check_ledger, read_json

KEEP = {
    "newest": "newest timestamp, then highest revision, then the folder given first, then the place in it",
    "first": "the folder given first, then the place in it",
    "longest": "longest text, then the folder given first, then the place in it",
}
WORK = "work"
CODE = "data_prep.dedup.command"  # the module whose imports are the code of a run
CLUSTERS = "clusters.jsonl.zst"


@dataclass(frozen=True)
class Dedup:
    """What a run is asked to do."""

    documents: tuple[Path, ...]
    out: Path
    threshold: float = 0.8
    keep: str = "newest"
    same_id: bool = True

    @property
    def partial(self) -> Path:
        """The folder that becomes `out` when it is complete."""
        return self.out.with_name(self.out.name + ".tmp")

    def folder_names(self) -> list[str]:
        """Returns what clusters call the folders: their names, or their paths if two have the same name."""
        names = [folder.name for folder in self.documents]
        return names if len(set(names)) == len(names) else [str(folder) for folder in self.documents]

    def settings(self) -> dict[str, Any]:
        """Returns what the choice depends on beside the documents, with the order of their worth in words."""
        return {
            "threshold": self.threshold,
            "keep": self.keep,
            "keep_order": KEEP[self.keep],
            "folders": [str(folder) for folder in self.documents],
            "same_id": self.same_id,
            "permutations": minhash.NUM_PERMUTATIONS,
            "bands": minhash.NUM_BANDS,
            "words": minhash.WORDS,
        }

    def shards(self) -> list[DedupShard]:
        """Returns the files of documents in the order of the folders given.

        Raises:
            CorpusError: a folder holds none.
        """
        paths = []
        for number, folder in enumerate(self.documents):
            found = sorted(folder.glob("documents-*.jsonl.zst"))
            if not found:
                raise CorpusError(
                    f"{folder} holds no documents-*.jsonl.zst; an output folder of `clean` or `dedup` is expected; "
                    "mend --documents"
                )
            paths += [(path, number) for path in found]
        needs = self.keep == "newest"
        return [DedupShard(path, number, i, self.partial, needs) for i, (path, number) in enumerate(paths)]


def check(task: Dedup) -> None:
    """Raises what is wrong with the request.

    Raises:
        CorpusError: a folder of documents is missing, unfinished, empty or given twice.
    """
    for folder in task.documents:
        if not folder.is_dir():
            raise CorpusError(
                f"{folder} does not exist; a folder with documents-*.jsonl.zst is expected; mend --documents"
            )
        if not (folder / MANIFEST).is_file():
            raise CorpusError(
                f"{folder} has no {MANIFEST}, so it is unfinished; a complete folder is expected; "
                "run the command that writes it to its end"
            )
    if again := [str(f) for f, n in Counter(f.resolve() for f in task.documents).items() if n > 1]:
        raise CorpusError(f"{again[0]} is given twice in --documents; each folder once is expected; leave one out")
    task.shards()


def begin(task: Dedup) -> bool:
    """Opens the folder of the unfinished run and returns whether there is work to do.

    Raises:
        CorpusError: as `check`, or `out` or the unfinished run's folder holds something else.
    """
    check(task)
    facts = {
        "documents_sha256": [sha256_path(folder) for folder in task.documents],
        "settings": task.settings(),
        "code_sha256": sha256_json([[p.name, sha256_path(p)] for p in source_files([CODE])]),
    }
    fingerprint = sha256_json(facts)
    if task.out.exists() and (not task.out.is_dir() or any(task.out.iterdir())):
        manifest = task.out / MANIFEST
        if manifest.is_file() and f'"{fingerprint}"' in manifest.read_text(encoding="utf-8"):
            return False
        raise CorpusError(
            f"{task.out} holds another run or other files; an empty folder is expected; give another --out"
        )
    if task.partial.exists() and any(task.partial.iterdir()):
        if not (task.partial / RUN).is_file():
            raise CorpusError(
                f"{task.partial} holds no {RUN}; an unfinished run is expected; remove it or give another --out"
            )
        if read_json(task.partial / RUN)["fingerprint"] == fingerprint:
            return True
        print(f"{task.partial}: begun with other documents, settings or code; starting anew", file=sys.stderr)
        for path in task.partial.iterdir():  # the folder itself is locked
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (task.partial / WORK).mkdir(parents=True, exist_ok=True)
    write_json(task.partial / RUN, {"fingerprint": fingerprint, **facts})
    return True


def is_counted(task: Dedup) -> bool:
    """Whether all documents of the run are written and counted, so that only `finish` is left."""
    return "totals" in read_json(task.partial / RUN)


def finish(task: Dedup) -> dict[str, Any]:
    """Adds up the shards' ledgers, writes the manifest, gives the folder its final name and returns the ledger.

    Raises:
        CorpusError: the ledger does not add up.
    """
    state = read_json(task.partial / RUN)
    if "totals" not in state:
        summaries = [read_json(shard.work("summary")) for shard in task.shards()]
        state["totals"] = _totals(summaries, len(task.documents))
        check_ledger(task.out, state["totals"]["ledger"])
        write_json(task.partial / RUN, state)  # from here on work/ is not needed
    shutil.rmtree(task.partial / WORK, ignore_errors=True)
    inputs = {f"documents_{i}": folder for i, folder in enumerate(task.documents)}
    facts = {"fingerprint": state["fingerprint"], "settings": task.settings(), **state["totals"]}
    write_manifest(task.partial, inputs, **facts)
    if task.out.exists():
        task.out.rmdir()
    task.partial.replace(task.out)
    return state["totals"]["ledger"]


def _totals(summaries: list[dict[str, Any]], num_folders: int) -> dict[str, Any]:
    folders = [_sum([s["ledger"] for s in summaries if s["folder"] == number]) for number in range(num_folders)]
    characters = sum(summary["characters"] for summary in summaries)
    ledger = _sum(folders)
    return {
        "ledger": ledger,
        "ledger_of_folders": folders,
        "counts": {"documents": ledger["out"], "characters": characters, "shards": len(summaries)},
    }


def _sum(ledgers: list[dict[str, Any]]) -> dict[str, Any]:
    dropped: Counter[str] = Counter()
    for ledger in ledgers:
        dropped.update(ledger["dropped"])
    return {
        "in": sum(ledger["in"] for ledger in ledgers),
        "out": sum(ledger["out"] for ledger in ledgers),
        "dropped": dict(sorted(dropped.items())),
    }
