"""Documents to ids at the tokenizer's speed: lines are read here, parsed and encoded in worker processes.

The reading process only decompresses and splits lines, so that it keeps many workers busy. What comes out is in the
order of the input and does not depend on the number of workers.
"""

import collections
import functools
import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from data_prep.document import CorpusError
from data_prep.tokens.tokenizer import load_tokenizer
from data_prep.tokens.tokenizer_formats import Ids, Tokenizer, join

BATCH_BYTES = 500_000
MAX_WAITING_BYTES = 256_000_000
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Batch:
    """Some lines of a documents file, blank ones left out."""

    path: Path
    lines: list[tuple[int, bytes]]
    """(number in the file, from 1; content)."""
    num_read: int
    """Bytes of the files, as they lie on disk, that were read up to the end of the batch."""


@dataclass(frozen=True)
class Policy:
    """Whether a document's ids stand between BOS and EOS."""

    bos: bool
    eos: bool


@dataclass(frozen=True)
class EncodedBatch:
    """The ids of a batch's documents, one after another.

    Attributes:
        ids: (tokens,), uint32, with BOS and EOS as the policy says.
        origins: (source, lang) of each document.
        counts: (documents, 4), int64: tokens, UTF-8 bytes, characters and Hangul syllables of each
            document. No tokens: the document is dropped, as its text is white space only or has no piece.
        num_read: as in `Batch`.
    """

    ids: Ids
    origins: list[tuple[str, str]]
    counts: npt.NDArray[np.int64]
    num_read: int


def read_batches(paths: Sequence[Path], skip: int) -> Iterator[Batch]:
    """Yields the documents' lines of all files in about equal batches, the first `skip` documents left out.

    Raises:
        CorpusError: a file is no zstd file or is cut short.
    """
    before = 0
    for path in paths:
        lines: list[tuple[int, bytes]] = []
        size = position = 0
        for number, line, position in read_lines(path):
            if not line.strip():
                continue
            if skip:
                skip -= 1
                continue
            lines.append((number, line))
            size += len(line)
            if size >= BATCH_BYTES:
                yield Batch(path, lines, before + position)
                lines, size = [], 0
        if lines:
            yield Batch(path, lines, before + position)
        before += path.stat().st_size


def encode_batches(
    batches: Iterable[Batch], tokenizer: Tokenizer, policy: Policy, workers: int
) -> Iterator[EncodedBatch]:
    """Yields the encoded batches in order; what waits is bounded in number and in bytes.

    Raises:
        CorpusError: a line is no document, or a worker process died.
    """
    if workers == 1:
        yield from (encode_batch(tokenizer, policy, batch) for batch in batches)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of the tokenizers' threads
    waiting: collections.deque[tuple[int, Future[EncodedBatch]]] = collections.deque()
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker)
    try:
        for batch in batches:
            size = sum(len(line) for _, line in batch.lines)
            while waiting and (len(waiting) >= 4 * workers or sum(n for n, _ in waiting) + size > MAX_WAITING_BYTES):
                yield waiting.popleft()[1].result()
            waiting.append((size, pool.submit(_encode_in_worker, tokenizer.path, policy, batch)))
        while waiting:
            yield waiting.popleft()[1].result()
    except BrokenProcessPool:
        raise CorpusError(
            "a worker process was ended from outside, as the system does when memory runs out; "
            "it has to live until the end; give fewer --workers and run again, finished shards are kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def encode_batch(tokenizer: Tokenizer, policy: Policy, batch: Batch) -> EncodedBatch:
    """Parses and encodes the documents of a batch on one core."""
    begin = np.array([tokenizer.bos_id] if policy.bos else [], dtype=np.uint32)
    end = np.array([tokenizer.eos_id] if policy.eos else [], dtype=np.uint32)
    parts: list[Ids] = []
    origins: list[tuple[str, str]] = []
    encoded: list[bytes] = []
    counts = np.empty((len(batch.lines), 4), dtype=np.int64)
    for index, (number, line) in enumerate(batch.lines):
        row = _parse(batch.path, number, line)
        text = document_text(row.get("title", ""), row["text"])
        encoded.append(_to_utf8(row["id"], text))
        ids = tokenizer.encode_array(text) if text.strip() else begin[:0]
        document = [begin, ids, end] if ids.size else []
        parts += document
        origins.append((row.get("source", ""), row.get("lang", "")))
        counts[index, :3] = sum(map(len, document)), len(encoded[-1]), len(text)
    counts[:, 3] = num_hangul_syllables(encoded)
    return EncodedBatch(join(parts), origins, counts, batch.num_read)


def document_counts(batch: Batch) -> tuple[list[tuple[str, str]], npt.NDArray[np.int64]]:
    """Returns (source, lang) of each document, and its UTF-8 bytes, characters and Hangul syllables, (documents, 3).

    Counted is the text that would be encoded.
    """
    rows = [_parse(batch.path, number, line) for number, line in batch.lines]
    texts = [document_text(row.get("title", ""), row["text"]) for row in rows]
    encoded = [_to_utf8(row["id"], text) for row, text in zip(rows, texts, strict=True)]
    counts = np.array([[len(data), len(text)] for data, text in zip(encoded, texts, strict=True)], dtype=np.int64)
    origins = [(row.get("source", ""), row.get("lang", "")) for row in rows]
    return origins, np.column_stack([counts, num_hangul_syllables(encoded)])


def document_text(title: str, text: str) -> str:
    """Returns what is encoded of a document: its title, a blank line, its text.

    The title is left out when it is empty or the text starts with it already, as the text of a web page often does.
    """
    return text if not title or text.startswith(title) or not text.strip() else f"{title}\n\n{text}"


def num_hangul_syllables(texts: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """Returns how many precomposed Hangul syllables, U+AC00 to U+D7A3, each UTF-8 text has, (texts,).

    On the bytes of all texts together, as calls on short arrays would take a tenth of a tokenizer's time.
    """
    data = np.frombuffer(b"".join([*texts, bytes(2)]), dtype=np.uint8)
    is_syllable = np.zeros(len(data), dtype=bool)
    for start in range(0, len(data) - 2, BLOCK_BYTES):  # a document of 200 MB would take 2 GB at once
        block = data[start : start + BLOCK_BYTES + 2]
        is_syllable[start : start + len(block) - 2] = _starts_syllable(block)
    ends = list(itertools.accumulate(map(len, texts)))
    counts = [np.count_nonzero(is_syllable[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    return np.array(counts, dtype=np.int64)


def _starts_syllable(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Returns of each byte of UTF-8 text whether a syllable starts there; the last two are looked at only."""
    is_start = (data[:-2] == 0xEB) | (data[:-2] == 0xEC)  # every character of three bytes that starts so is one
    first, last = np.flatnonzero(data[:-2] == 0xEA), np.flatnonzero(data[:-2] == 0xED)
    is_start[first[data[first + 1] >= 0xB0]] = True  # from EA B0 80
    tails = data[last + 1].astype(np.int64) * 256 + data[last + 2]
    is_start[last[tails <= 0x9EA3]] = True  # to ED 9E A3
    return is_start


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} line {number} is no UTF-8: {error}; convert the file to UTF-8") from None
    except ValueError as error:
        raise CorpusError(f"{path} line {number} is no JSON: {error}; mend or remove the line") from None
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not isinstance(row.get("text"), str):
        raise CorpusError(
            f"{path} line {number}: a document lacks `id` or `text` ({line[:60]!r}); both are needed; clean again"
        )
    return row


def _to_utf8(id_: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"document {id_!r} holds a lone surrogate at character {error.start}; "
            "text must be valid Unicode; clean the documents again"
        ) from None


def read_lines(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """Yields (number from 1, line, bytes of the file read so far); linear for lines of any length."""
    number, open_line = 1, list[bytes]()
    position = 0
    for block, position in _read_blocks(path):
        *lines, rest = block.split(b"\n")
        for line in lines:
            yield number, b"".join([*open_line, line]) if open_line else line, position
            number += 1
            open_line.clear()
        if rest:
            open_line.append(rest)
    if open_line:
        yield number, b"".join(open_line), position


def _read_blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    frame = zstandard.ZstdDecompressor().decompressobj()
    try:
        with path.open("rb") as file:
            while data := file.read(BLOCK_BYTES):
                while data:
                    if frame.eof:
                        frame = zstandard.ZstdDecompressor().decompressobj()
                    yield frame.decompress(data), file.tell()
                    data = frame.unused_data
    except zstandard.ZstdError as error:
        raise CorpusError(f"{path} is no zstd file, or damaged: {error}; write the file anew") from None
    if not frame.eof:
        raise CorpusError(f"{path} is cut short at {path.stat().st_size} bytes; write the file anew")


def _encode_in_worker(tokenizer: Path, policy: Policy, batch: Batch) -> EncodedBatch:
    return encode_batch(_load_once(tokenizer), policy, batch)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@functools.cache
def _load_once(path: Path) -> Tokenizer:
    return load_tokenizer(path)
