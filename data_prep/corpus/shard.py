"""One part of a source becomes one shard: documents, rejects, keys, and a summary written last as the done-marker."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.disk import disk_full
from data_prep.document import Document, as_row
from data_prep.filters.rules import Rules, prepare
from data_prep.filters.stubs import skeleton
from data_prep.lineage import whole_file, write_json
from data_prep.pool import Report
from data_prep.shard_files import Write, check_ledger, jsonl_writer
from data_prep.source import Part, PartReader, Rejection, Source

REPORT_RECORDS = 200
# Records of a wiki that are no article by their nature: counted, not written out.
COUNTED_ONLY = frozenset({"namespace", "redirect", "not_wikitext", "disambiguation"})

_HEADING = re.compile(r"^ ?(= = .* = =)$", re.MULTILINE)

KEYS = np.dtype([("text", "<u8", 2), ("id", "<u8", 2), ("skeleton", "<u8"), ("chars", "<u4")])
"""What decides over a document when all shards are made: hashes of its text, id and skeleton, and its length."""


@dataclass(frozen=True)
class ShardTask:
    """All a worker needs to know; `folder` is where the unfinished run keeps its shards."""

    source: Source
    part: Part
    folder: Path
    index: int
    rules: Mapping[str, Rules]
    """By language; a document of another one is judged, and dropped, by the first."""
    with_headings: bool
    """Also write the texts with headings as kowikitext has them."""

    def file(self, kind: str) -> Path:
        """Returns the path of the shard's `documents`, `rejected` or `headings` file."""
        return self.folder / f"{kind}-{self.index:05d}.jsonl.zst"

    @property
    def keys(self) -> Path:
        """The documents' keys, an array of `KEYS`."""
        return self.folder / f"keys-{self.index:05d}.bin"

    @property
    def summary(self) -> Path:
        """The file that exists only when the shard is complete."""
        return self.folder / f"summary-{self.index:05d}.json"

    @property
    def input_bytes(self) -> int:
        """Bytes of the input that the part stands for, for the progress bar."""
        return getattr(self.part, "input_bytes", self.part.end - self.part.start)


def clean_shard(task: ShardTask, report: Report) -> None:
    """Writes the shard's files.

    Raises:
        CorpusError: the part cannot be read, the disk is full, or the shard's ledger does not add up.
    """
    with disk_full(task.folder):
        facts = _write_files(task, report)
        check_ledger(task.summary, facts["ledger"])
        with whole_file(task.summary, of_process=True) as partial:
            write_json(partial, facts)
    if task.part.path.parent == task.folder:  # cut out of a stream for this shard only
        task.part.path.unlink()


def _write_files(task: ShardTask, report: Report) -> dict[str, Any]:
    reader = task.source.read(task.part)
    progress = _Progress(task, report)
    dropped: Counter[str] = Counter()
    dropped_chars: Counter[str] = Counter()
    changes: Counter[str] = Counter()
    keys = bytearray()
    with (
        jsonl_writer(task.file("documents")) as write_document,
        jsonl_writer(task.file("rejected")) as write_reject,
        jsonl_writer(task.file("headings")) as write_headings,
    ):
        for record in reader:
            progress.count(reader)
            if isinstance(record, Rejection):
                dropped[record.reason] += 1
                if record.reason not in COUNTED_ONLY:
                    write_reject(as_row(Document(record.id, "", title=record.title), reason=record.reason))
                continue
            rules = task.rules.get(record.lang) or next(iter(task.rules.values()))
            verdict = prepare(record, rules)
            document = verdict.document
            if verdict.reason:
                dropped[verdict.reason] += 1
                dropped_chars[verdict.reason] += len(document.text)
                write_reject(as_row(document, reason=verdict.reason, detail=verdict.detail))
                continue
            changes.update(verdict.changes)
            keys += key_of(document)
            write_document(vars(document))  # `as_row` copies what is not kept
            if task.with_headings:
                _write_headings(reader, document, rules, write_headings)
    progress.end()
    _write_keys(task.keys, keys)
    num_out = len(keys) // KEYS.itemsize
    return {
        "ledger": {"in": progress.records, "out": num_out, "dropped": dict(dropped)},
        "dropped_characters": dict(dropped_chars),
        "changes": dict(changes),
        "part_sha256": getattr(task.part, "sha256", None),
        **reader.facts(),
    }


def _write_headings(reader: PartReader, document: Document, rules: Rules, write: Write) -> None:
    """Writes the document as kowikitext has it; a source without headings gives its plain text."""
    with_headings = getattr(reader, "with_headings", None)
    text = document.text
    if with_headings:
        text = prepare(Document(document.id, with_headings(), lang=document.lang), rules).document.text
        text = _HEADING.sub(r" \1 ", text)  # `prepare` takes the spaces at the end of a line, and before the first
    write({"id": document.id, "title": document.title, "text": text})


def key_of(document: Document) -> bytes:
    """Returns one element of a `KEYS` array."""
    hashes = [
        hashlib.blake2b(part.encode("utf-8", "replace"), digest_size=16).digest()
        for part in (document.text, document.id)
    ]
    return b"".join(hashes) + skeleton(document).to_bytes(8, "little") + len(document.text).to_bytes(4, "little")


def _write_keys(path: Path, keys: bytes | bytearray) -> None:
    with whole_file(path, of_process=True) as partial:
        partial.write_bytes(keys)


class _Progress:
    """Counts records and tells the parent now and then how many, and how far the part was read."""

    def __init__(self, task: ShardTask, report: Report) -> None:
        self.records = 0
        self._task, self._report = task, report
        self._reported = (0, 0)

    def count(self, reader: PartReader) -> None:
        self.records += 1
        if self.records % REPORT_RECORDS == 0:
            part = self._task.part
            share = (reader.position - part.start) / max(1, part.end - part.start)
            self._tell(int(self._task.input_bytes * min(1.0, share)))

    def end(self) -> None:
        self._tell(self._task.input_bytes)

    def _tell(self, num_bytes: int) -> None:
        self._report(self.records - self._reported[0], num_bytes - self._reported[1])
        self._reported = (self.records, num_bytes)
