"""One part of a dump becomes one shard: documents, rejects, and a summary written last as the done-marker."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from data_prep.corpus.filters import Limits, rejection
from data_prep.corpus.pii import replace_pii
from data_prep.document import CorpusError, Document, as_row
from data_prep.lineage import write_json
from data_prep.pool import Report
from data_prep.wiki import brackets, wikitext
from data_prep.wiki.dump import Page, PageReader, Part, Site
from data_prep.wiki.templates import Table, load_table

REPORT_PAGES = 200
MAX_UNKNOWN = 5000  # template names kept per shard; the manifest shows the top 20 of all

Write = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ShardTask:
    """All a worker needs to know; `folder` is where the unfinished run keeps its shards."""

    dump: Path
    part: Part
    site: Site
    folder: Path
    index: int
    lang: str
    limits: Limits
    templates: Path | None

    def file(self, kind: str) -> Path:
        """Returns the path of the shard's `documents` or `rejected` file."""
        return self.folder / f"{kind}-{self.index:05d}.jsonl.zst"

    @property
    def summary(self) -> Path:
        """The file that exists only when the shard is complete."""
        return self.folder / f"summary-{self.index:05d}.json"


def clean_shard(task: ShardTask, report: Report) -> None:
    """Writes the shard's documents, rejects and summary.

    Raises:
        CorpusError: the dump's part cannot be read, or the shard's ledger does not add up.
    """
    table = load_table(task.lang, task.templates)
    reader = PageReader(task.dump, task.part, task.site)
    dropped: Counter[str] = Counter()
    pii: Counter[str] = Counter()
    unknown: dict[str, list] = {}
    hashes: list[str] = []
    num_pages = num_chars = reported_pages = 0
    reported_bytes = task.part.start
    with jsonl_writer(task.file("documents")) as write_document, jsonl_writer(task.file("rejected")) as write_reject:
        for page in reader:
            num_pages += 1
            if num_pages % REPORT_PAGES == 0:
                report(REPORT_PAGES, reader.position - reported_bytes)
                reported_pages, reported_bytes = num_pages, reader.position
            if reason := _page_rejection(page, table):
                dropped[reason] += 1
                continue
            document = _document(page, task, brackets.Page(table, page.title, unknown))
            document.text, found = replace_pii(document.text)
            if reason := rejection(document, task.limits):
                dropped[reason] += 1
                write_reject(as_row(document, reason=reason))
                continue
            pii += found
            hashes.append(text_hash(document.text))
            num_chars += len(document.text)
            write_document(as_row(document))
    report(num_pages - reported_pages, task.part.end - reported_bytes)
    ledger = {"in": num_pages, "out": len(hashes), "dropped": dict(dropped)}
    check_ledger(task.summary, ledger)
    most = sorted(unknown.items(), key=lambda item: -item[1][0])[:MAX_UNKNOWN]
    facts = {"ledger": ledger, "characters": num_chars, "pii": dict(pii), "unknown": dict(most), "hashes": hashes}
    partial = task.summary.with_name(f"{os.getpid()}-{task.summary.name}")
    write_json(partial, facts)
    partial.replace(task.summary)


def check_ledger(place: Path, ledger: dict[str, Any]) -> None:
    """Compares what came in with what went out and what was dropped.

    Raises:
        CorpusError: they differ, so a document was lost or counted twice.
    """
    accounted = ledger["out"] + sum(ledger["dropped"].values())
    if ledger["in"] != accounted:
        raise CorpusError(
            f"{place}: the ledger accounts for {accounted} of {ledger['in']} inputs ({ledger}); "
            "in = out + dropped is expected; remove the output folder and run again"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object of a JSON file that an earlier attempt of the run wrote.

    Raises:
        CorpusError: the file is damaged; it is only ever renamed into place whole.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path} cannot be read: {error}; it was whole once; remove the output folder") from None


def text_hash(text: str) -> str:
    """Returns 128 bits of the NFC text's hash; `wikitext.clean` returns NFC."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@contextmanager
def jsonl_writer(path: Path) -> Iterator[Write]:
    """Yields a function that appends one JSON object; the final name appears after the last one.

    The unfinished file bears the process's number: a killed run's last worker may live a moment longer.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with partial.open("wb") as raw, zstandard.ZstdCompressor(level=6).stream_writer(raw, closefd=False) as stream:

        def write(row: dict[str, Any]) -> None:
            stream.write((json.dumps(row, ensure_ascii=False) + "\n").encode())

        yield write
    partial.replace(path)


def _page_rejection(page: Page, table: Table) -> str | None:
    """Returns why a page is no article; such pages are counted, not kept."""
    if page.namespace != "0":
        return "namespace"
    if page.is_redirect:
        return "redirect"
    if page.model != "wikitext":
        return "not_wikitext"
    is_choice = page.title.endswith(("(동음이의)", "(동명이인)", "(disambiguation)"))
    return "disambiguation" if is_choice or table.disambiguation.search(page.text) else None


def _document(page: Page, task: ShardTask, templates: brackets.Page) -> Document:
    source = task.site.dbname or task.dump.name.split(".")[0]
    return Document(
        id=f"{source}-{page.id}",
        text=wikitext.clean(page.text, page.title, lang=task.lang, page=templates),
        source=source,
        lang=task.lang,
        title=page.title,
        url=task.site.url(page.title),
        revision=page.revision,
        timestamp=page.timestamp,
    )
