"""The document, the unit of every corpus stage, and its JSON-lines files."""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import zstandard

from configs.loader import UserError


class CorpusError(UserError):
    """Corpus input or output cannot be used; the message names the file and what to change."""


@dataclass
class Document:
    """One text with its origin; `lang` is an ISO 639-1 code, `timestamp` ISO 8601."""

    id: str
    text: str
    source: str = ""
    lang: str = ""
    title: str = ""
    url: str = ""
    revision: str = ""
    timestamp: str = ""


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a `.jsonl` or `.jsonl.zst` file, one a line, skipping blank lines.

    Raises:
        CorpusError: the file is missing, is no UTF-8 or zstd, or a line is no JSON object.
    """
    if not path.is_file():
        raise CorpusError(f"{path} does not exist; give an existing .jsonl or .jsonl.zst file")
    number = 0
    try:
        with path.open("rb") as raw:
            stream = zstandard.ZstdDecompressor().stream_reader(raw) if path.suffix == ".zst" else raw
            for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8"), start=1):
                if not line.strip():
                    continue
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise CorpusError(f"{path} line {number} holds {line.strip()[:40]!r}; a JSON object is expected")
                yield value
    except (UnicodeDecodeError, zstandard.ZstdError, json.JSONDecodeError) as error:
        raise CorpusError(f"{path} line {number + 1} cannot be read: {error}; mend or remove the file") from None


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes one JSON object a line (zstd when the name ends so) and returns their number.

    The final name appears only when the file is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    count = 0
    with partial.open("wb") as raw:
        is_zstd = path.suffix == ".zst"
        stream = zstandard.ZstdCompressor(level=6).stream_writer(raw, closefd=False) if is_zstd else raw
        for row in rows:
            stream.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))
            count += 1
        if is_zstd:
            stream.close()  # writes the end of the frame
    partial.replace(path)
    return count


def read_documents(folder: Path) -> Iterator[Document]:
    """Yields the documents of `folder/documents-*.jsonl.zst` in file order.

    Raises:
        CorpusError: the folder holds no such file, or a line lacks `id` or `text`.
    """
    paths = sorted(folder.glob("documents-*.jsonl.zst"))
    if not paths:
        raise CorpusError(f"{folder} holds no documents-*.jsonl.zst; give the output folder of `data_prep clean`")
    names = {f.name for f in fields(Document)}
    for path in paths:
        for row in read_jsonl(path):
            if not isinstance(row.get("id"), str) or not isinstance(row.get("text"), str):
                raise CorpusError(f"{path}: a document lacks `id` or `text` ({str(row)[:60]}); both are needed")
            yield Document(**{name: row[name] for name in names & row.keys()})


def as_row(document: Document, **extra: Any) -> dict[str, Any]:
    """Returns the document's JSON object, with `extra` keys such as `reason`."""
    return asdict(document) | extra
