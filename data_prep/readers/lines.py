"""JSON lines (plain, gz, zst or bz2) and tables of comma- or tab-separated values."""

import codecs
import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.document import CorpusError
from data_prep.readers.fields import Record
from data_prep.source import Part
from data_prep.streams import Piece, Reader

_MAGIC = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst", b"BZh": "bz2"}
_BOM = codecs.BOM_UTF8
LONGEST_LINE = 2**30
"""Bytes; a few kilobytes of zstd can hold terabytes, and a line is held in memory."""


def compression(path: Path) -> str:
    """Returns `gz`, `zst`, `bz2` or an empty string, as a file's first bytes say."""
    with path.open("rb") as file:
        head = file.read(4)
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")


def split_jsonl(path: Path, part_bytes: int) -> list[Part]:
    """Returns byte ranges that start at a line; a compressed file is one part."""
    size = path.stat().st_size
    if size <= part_bytes or compression(path):
        return [Part(path, 0, size)]
    cuts = [0]
    with path.open("rb") as file:
        while cuts[-1] + part_bytes < size:
            file.seek(cuts[-1] + part_bytes - 1)
            file.readline()
            cuts.append(file.tell())
    ends = [*cuts[1:], size]
    return [Part(path, start, end) for start, end in zip(cuts, ends, strict=True) if start < end]


def read_jsonl_part(part: Part) -> Iterator[Record]:
    """Yields (offset of the line in the decompressed file, offset read so far, object).

    Raises:
        CorpusError: a line is no UTF-8 or no JSON object, or the file is damaged.
    """
    for offset, position, line in _lines(part):
        if not line.strip():
            continue
        try:
            row = _object(line)
        except ValueError as error:
            if kind := compression(part.path):  # the cause may be damage, which only the end of the file tells
                for _ in _compressed_lines(part, kind):
                    pass
            raise CorpusError(f"{jsonl_place(part.path, offset)} {error}") from None
        yield offset, position, row


def read_numbered(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yields (number of the line, object) of JSON lines; in place of an object what is wrong with the line.

    Raises:
        CorpusError: the file is damaged.
    """
    for number, (_, _, line) in enumerate(_lines(Part(path, 0, path.stat().st_size)), start=1):
        if not line.strip():
            continue
        try:
            yield number, _object(line)
        except ValueError as error:
            yield number, str(error)


def read_array(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yields (number of the item, object) of one JSON array, which is held in memory; or what is wrong with the item.

    Raises:
        CorpusError: the file is no JSON, or damaged.
    """
    content = b"\n".join(line for _, _, line in _lines(Part(path, 0, path.stat().st_size)))
    try:
        items = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path} is no JSON array: {error}; one in UTF-8 is expected; mend the file") from None
    for number, item in enumerate(items, start=1):
        if isinstance(item, dict):
            yield number, item
        else:
            yield number, f"holds {str(item)[:40]!r}; a JSON object is expected; mend or remove the item"


def starts_array(path: Path) -> bool:
    """Whether the first line that is not blank begins a JSON array."""
    lines = (line.strip() for _, _, line in _lines(Part(path, 0, path.stat().st_size)))
    return next((line for line in lines if line), b"").startswith(b"[")


def _object(line: bytes) -> dict[str, Any]:
    """Returns the object of a line; a ValueError says what else the line is, and what to change."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        message = f"is no UTF-8 at its byte {error.start}: {error.reason}; UTF-8 is expected; convert the file"
        raise ValueError(message) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON: {error}; a JSON object is expected; {_hint(line)}") from None
    if not isinstance(row, dict):
        shown = line[:40].decode(errors="replace")
        raise ValueError(f"holds {shown!r}; a JSON object is expected; {_hint(line)}")
    return row


def _hint(line: bytes) -> str:
    if line.lstrip()[:1] == b"[":
        return "write one object a line, not one array: `jq -c '.[]' FILE`"
    return "mend or remove the line"


def jsonl_place(path: Path, offset: int) -> str:
    """Returns file and number of the line that starts at `offset`; reads the file up to there, for a message."""
    number = 1
    try:
        for start, _, _ in _lines(Part(path, 0, path.stat().st_size)):
            if start >= offset:
                break
            number += 1
    except CorpusError:
        return f"{path} at byte {offset}"
    return f"{path} line {number}"


def _lines(part: Part) -> Iterator[tuple[int, int, bytes]]:
    """Yields (offset of the line in the decompressed file, offset read so far, the line)."""
    kind = compression(part.path)
    if kind:
        yield from _compressed_lines(part, kind)
        return
    with part.path.open("rb") as file:
        file.seek(part.start)
        offset = part.start
        while offset < part.end and (line := file.readline()):
            end = offset + len(line)
            yield offset, end, line.removeprefix(_BOM) if offset == 0 else line
            offset = end


def _compressed_lines(part: Part, kind: str) -> Iterator[tuple[int, int, bytes]]:
    waiting: list[bytes] = []  # the beginning of a line that is not complete
    offset = 0
    with part.path.open("rb") as file:
        for piece in Reader(file.read, kind, str(part.path)):
            if not isinstance(piece, Piece):  # what comes behind a loss may begin within a line
                raise CorpusError(f"{piece}; a whole {kind} file is expected; copy it anew")
            *whole, rest = piece.data.split(b"\n")
            for line in whole:
                if waiting:
                    line, waiting = b"".join([*waiting, line]), []
                yield offset, piece.end, line.removeprefix(_BOM) if offset == 0 else line
                offset += len(line) + 1
            waiting += [rest] if rest else []
            if sum(map(len, waiting)) > LONGEST_LINE:
                raise CorpusError(
                    f"{part.path} has a line of more than {LONGEST_LINE} bytes, decompressed; a document a line is "
                    "expected; split the file"
                )
    if waiting:
        yield offset, part.end, b"".join(waiting)


def read_table_part(part: Part, delimiter: str, encoding: str) -> Iterator[Record]:
    """Yields (number of the line, offset read so far, row) of a table whose first line names its columns.

    Comma-separated values may be quoted and then hold line breaks; tab-separated ones are taken as they are.

    Raises:
        CorpusError: the file is not in that encoding, or a row has other columns than the first line.
    """
    csv.field_size_limit(sys.maxsize)  # the default, 128 KB, is shorter than an article
    with part.path.open("rb") as raw, io.TextIOWrapper(raw, reading_encoding(encoding), newline="") as file:
        reader = csv.reader(
            file, delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        )
        try:
            names = next(reader, [])
            for row in reader:
                if row and len(row) != len(names):
                    raise CorpusError(
                        f"{part.path} line {reader.line_num} has {len(row)} columns; the first line names {len(names)} "
                        f"({', '.join(names)[:80]}); mend the line, or give --format"
                    )
                if row:
                    yield reader.line_num, raw.tell(), dict(zip(names, row, strict=True))
        except UnicodeDecodeError:
            raise wrong_encoding(part.path, encoding) from None
        except csv.Error as error:
            raise CorpusError(f"{part.path} line {reader.line_num} is no table: {error}; mend the line") from None


def reading_encoding(encoding: str) -> str:
    """Returns the codec to read with: a byte order mark before UTF-8 is no text."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def wrong_encoding(path: Path, encoding: str) -> CorpusError:
    """Returns the error for a file that `encoding` cannot decode, with the first such byte."""
    decoder = codecs.getincrementaldecoder(encoding)()
    offset = 0
    with path.open("rb") as file:
        while block := file.read(1 << 16):
            try:
                pending = len(decoder.getstate()[0])
                decoder.decode(block)
            except UnicodeDecodeError as error:
                place, found = offset - pending + error.start, error.object[error.start : error.start + 4]
                break
            offset += len(block)
        else:
            place, found = offset, b""
    return CorpusError(
        f"{path} is no {encoding} at byte {place} ({found!r}); text in {encoding} is expected; "
        "give its encoding, such as --encoding cp949, or convert it to UTF-8"
    )
