"""What every stage that works file by file needs: files that appear whole, and a ledger that adds up."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zstandard

from data_prep.document import CHUNK_BYTES, CorpusError
from data_prep.lineage import whole_file

Write = Callable[[dict[str, Any]], None]

LEVEL = 3  # of zstd, its own default: 6 takes twice the time for 8 % less
_encode = json.JSONEncoder(ensure_ascii=False).encode


@contextmanager
def line_writer(path: Path) -> Iterator[Callable[[bytes], Any]]:
    """Yields a function that appends bytes to a zstd file; its final name appears after the last ones."""
    with (
        whole_file(path, of_process=True) as partial,
        partial.open("wb") as raw,
        zstandard.ZstdCompressor(level=LEVEL).stream_writer(raw, closefd=False) as stream,
    ):
        yield stream.write


@contextmanager
def jsonl_writer(path: Path) -> Iterator[Write]:
    """Yields a function that appends one JSON object, as `line_writer` does."""
    with line_writer(path) as write:
        yield lambda row: write(encode_line(row))


def encode_line(row: dict[str, Any]) -> bytes:
    """Returns a row of a JSON lines file."""
    return (_encode(row) + "\n").encode()


def read_lines(path: Path) -> Iterator[bytes]:
    """Yields the lines of a zstd file that this run has written."""
    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
        yield from io.BufferedReader(stream, CHUNK_BYTES)


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
