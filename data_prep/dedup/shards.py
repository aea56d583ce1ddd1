"""One file of documents in `dedup`: its sketches before the choice, its kept and dropped documents after it.

In the folder `work/` of the unfinished run stand, for the file of number 7: `sketches-00007.bin` (`RECORD`s) and
`labels-00007.jsonl` (what a cluster tells of each), `dropped-00007.jsonl.zst` (the choice), `summary-00007.json`.
A file bears its final name only when it is complete, so whatever is there need not be made again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.dedup import minhash
from data_prep.disk import disk_full
from data_prep.document import CorpusError, Document, as_row, read_jsonl
from data_prep.lineage import whole_file, write_json
from data_prep.pool import Report
from data_prep.shard_files import check_ledger, jsonl_writer

RECORD = np.dtype(
    [
        ("text", "<u8", (2,)),  # hash of the folded text
        ("name", "<u8", (2,)),  # hash of source and id of a document with versions, else 0
        ("timestamp", "<i8"),  # microseconds since 1970
        ("revision", "<i8"),
        ("chars", "<u4"),  # of the folded text
        ("sketch", "<u4", (minhash.NUM_PERMUTATIONS,)),
    ]
)
NONE = np.iinfo(np.int64).min + 1  # no timestamp, no revision; its negative is a number too
REASONS = {"exact": "exact_duplicate", "near": "near_duplicate", "same_id": "same_id"}

BATCH_DOCUMENTS = 1000
BATCH_CHARS = 2_000_000

_FIELDS = [field.name for field in fields(Document)]


@dataclass(frozen=True)
class DedupShard:
    """One file of documents."""

    documents: Path
    folder: int
    """Position of its folder among those given."""
    index: int
    """Position of the file among all files."""
    out: Path
    """Folder of the unfinished run."""
    needs_timestamps: bool

    def work(self, kind: str) -> Path:
        """Returns the path of one of the shard's working files."""
        suffix = {"sketches": "bin", "labels": "jsonl", "dropped": "jsonl.zst", "summary": "json"}[kind]
        return self.out / "work" / f"{kind}-{self.index:05d}.{suffix}"

    def num_sketched(self) -> int:
        """Returns the number of its documents, known once it is sketched."""
        return self.work("sketches").stat().st_size // RECORD.itemsize


def sketch_shard(shard: DedupShard, report: Report) -> None:
    """Writes the records and labels of the shard's documents.

    Raises:
        CorpusError: the file cannot be read, or a timestamp that is needed is none.
    """
    labels, sketches = shard.work("labels"), shard.work("sketches")
    with (
        disk_full(shard.out),
        # the outer one gets its name last: it marks the shard as sketched
        whole_file(sketches, of_process=True) as sketches_partial,
        whole_file(labels, of_process=True) as labels_partial,
        sketches_partial.open("wb") as sketch_file,
        labels_partial.open("wb") as label_file,
    ):
        for batch in _batches(read_shard(shard.documents)):
            sketch_file.write(_records(batch, shard).tobytes())
            for document in batch:
                label = [document.id, document.title, document.timestamp]
                label_file.write(json.dumps(label, ensure_ascii=False).encode() + b"\n")
            report(len(batch), sum(map(_num_bytes, batch)))


def write_shard(shard: DedupShard, report: Report) -> None:
    """Writes the documents that stay, those that go with reason and `duplicate_of`, and the summary.

    Raises:
        CorpusError: the shard's ledger does not add up.
    """
    choice = read_jsonl(shard.work("dropped"))
    verdict = next(choice, None)
    reasons: Counter[str] = Counter()
    num_read = num_kept = num_chars = 0
    with (
        disk_full(shard.out),
        jsonl_writer(shard.out / f"documents-{shard.index:05d}.jsonl.zst") as write_document,
        jsonl_writer(shard.out / f"rejected-{shard.index:05d}.jsonl.zst") as write_reject,
    ):
        for batch in _batches(read_shard(shard.documents)):
            for position, document in enumerate(batch, start=num_read):
                if verdict is not None and verdict["position"] == position:
                    reasons[verdict["reason"]] += 1
                    told = {key: value for key, value in verdict.items() if key != "position"}
                    write_reject(as_row(document, **told))
                    verdict = next(choice, None)
                else:
                    write_document(as_row(document))
                    num_kept, num_chars = num_kept + 1, num_chars + len(document.text)
            num_read += len(batch)
            report(len(batch), sum(map(_num_bytes, batch)))
    ledger = {"in": num_read, "out": num_kept, "dropped": dict(reasons)}
    check_ledger(shard.work("summary"), ledger)
    if verdict is not None:
        raise CorpusError(
            f"{shard.documents} has {num_read} documents; one at position {verdict['position']} is expected, as when "
            f"it was compared; leave the file alone while dedup runs, remove {shard.out} and run again"
        )
    write_json(shard.work("summary"), {"ledger": ledger, "characters": num_chars, "folder": shard.folder})


def read_shard(path: Path) -> Iterator[Document]:
    """Yields the documents of one `documents-*.jsonl.zst`.

    Raises:
        CorpusError: the file cannot be read, or a document lacks `id` or `text` or has a field that is no text.
    """
    for row in read_jsonl(path):
        known = {name: row[name] for name in _FIELDS if name in row}
        if wrong := [n for n in ("id", "text") if n not in known] or [n for n, v in known.items() if not _is_text(v)]:
            raise CorpusError(
                f"{path}: in document {str(row)[:60]!r} the field {wrong[0]} is {str(known.get(wrong[0]))[:40]!r}; "
                "Unicode text is expected; mend the document"
            )
        yield Document(**known)


def read_records(shards: Sequence[DedupShard]) -> tuple[npt.NDArray[np.void], minhash.Sketches]:
    """Returns the records of all shards without their sketches, (documents,), and the sketches, (documents, 128)."""
    sizes = [shard.num_sketched() for shard in shards]
    small = np.dtype([(name, RECORD[name]) for name in RECORD.names or () if name != "sketch"])
    records = np.empty(sum(sizes), small)
    sketches = np.empty((sum(sizes), minhash.NUM_PERMUTATIONS), np.uint32)
    begin = 0
    for shard, size in zip(shards, sizes, strict=True):
        part = np.fromfile(shard.work("sketches"), RECORD)
        for name in small.names or ():
            records[name][begin : begin + size] = part[name]
        sketches[begin : begin + size] = part["sketch"]
        begin += size
    return records, sketches


def _records(batch: Sequence[Document], shard: DedupShard) -> npt.NDArray[np.void]:
    folded = [minhash.fold(document.text) for document in batch]
    records = np.zeros(len(batch), RECORD)
    records["text"] = [_hash(text) for text in folded]
    records["chars"] = [len(text) for text in folded]
    records["sketch"] = minhash.sketch(folded)
    records["revision"] = [int(d.revision) if _is_number(d.revision) else NONE for d in batch]
    records["timestamp"] = [_microseconds(d, shard) if shard.needs_timestamps else NONE for d in batch]
    has_versions = [bool(d.id and (d.revision or d.timestamp)) for d in batch]
    records["name"] = [
        _hash(f"{d.source}\0{d.id}") if has else (0, 0) for d, has in zip(batch, has_versions, strict=True)
    ]
    return records


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    num_chars = 0
    for document in documents:
        batch.append(document)
        num_chars += len(document.text)
        if len(batch) >= BATCH_DOCUMENTS or num_chars >= BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def _hash(text: str) -> tuple[int, int]:
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _is_text(value: object) -> bool:
    """Whether the value can be written as UTF-8: a lone surrogate, which JSON allows, cannot."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _num_bytes(document: Document) -> int:
    return len(document.text.encode())


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 18


def _microseconds(document: Document, shard: DedupShard) -> int:
    if not document.timestamp:
        return NONE
    try:
        moment = datetime.fromisoformat(document.timestamp)
    except ValueError:
        raise CorpusError(
            f"{shard.documents}: document {document.id!r} has the timestamp {document.timestamp!r}; ISO 8601 such as "
            "2024-05-20T01:02:03Z is expected; mend it, or choose by --keep first or --keep longest"
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds
