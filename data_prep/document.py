"""The document, the unit of every corpus stage, and its JSON-lines files."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import zstandard

from configs.loader import UserError
from data_prep.lineage import whole_file

CHUNK_BYTES = 1 << 20


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
    for number, line in enumerate(_lines(path), start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path} line {number} is no UTF-8: {error}; convert the file to UTF-8") from None
        if text.strip():
            yield _parse(path, number, text)


def _lines(path: Path) -> Iterator[bytes]:
    rest = b""
    for chunk in _zstd_chunks(path) if path.suffix == ".zst" else _chunks(path):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    """Yields the decompressed content; unlike zstandard's reader it notices a frame without its end."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    try:
        for chunk in _chunks(path):
            while chunk:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(chunk)
                chunk = frame.unused_data
    except zstandard.ZstdError as error:
        raise CorpusError(f"{path} is no zstd file, or damaged: {error}; write the file anew") from None
    if not frame.eof:
        raise CorpusError(f"{path} is cut short at {path.stat().st_size} bytes; write the file anew")


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path} line {number} is no JSON: {error}; mend or remove the line") from None
    if not isinstance(value, dict):
        raise CorpusError(f"{path} line {number} holds {line.strip()[:40]!r}; a JSON object is expected; mend the line")
    return value


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes one JSON object a line (zstd when the name ends so) and returns their number.

    The final name appears only when the file is complete.
    """
    count = 0
    with whole_file(path) as partial, partial.open("wb") as raw:
        is_zstd = path.suffix == ".zst"
        stream = zstandard.ZstdCompressor(level=6).stream_writer(raw, closefd=False) if is_zstd else raw
        for row in rows:
            stream.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))
            count += 1
        if is_zstd:
            stream.close()  # writes the end of the frame
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
