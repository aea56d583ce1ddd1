"""Compressed files as a series of streams: what cannot be decompressed is named, and reading goes on behind it.

A multistream bz2 file, a gz file of several members and a zst file of several frames are all series of streams, each
of which can be read without the others. Whatever is yielded has been held in memory once, never more than a few MB.
"""

import bz2
import mmap
import re
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import zstandard

from data_prep.document import CorpusError
from data_prep.source import Loss

BLOCK_BYTES = 256 * 1024  # read at once
MAX_OUT_BYTES = 8 * 1024 * 1024  # decompressed at once; a bz2 block below it is checked before it is yielded
MAX_WINDOW_BYTES = 128 * 1024 * 1024  # of zstd, the decoder's memory

# The magic of a stream with as much of its header as is fixed, so that chance matches are rare.
_STARTS = {
    "bz2": re.compile(rb"BZh[1-9]1AY&SY"),
    "gz": re.compile(rb"\x1f\x8b\x08[\x00-\x1f].{4}[\x00\x02\x04][\x00-\x0d\xff]", re.DOTALL),
    "zst": re.compile(rb"\x28\xb5\x2f\xfd"),
}
_LONGEST_START = 10  # bytes
_BY_MAGIC = {b"BZh": "bz2", b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst"}
_OTHERS = {b"7z\xbc\xaf": "7z", b"PK\x03\x04": "zip", b"\xfd7zXZ": "xz", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True)
class Piece:
    """Decompressed bytes, and where they come from: all offsets count bytes of the file.

    Of an XML file that is not compressed, every piece is a stream of its own.
    """

    data: bytes
    start: int
    """Where the stream of this piece starts."""
    end: int
    """How far the file has been read."""
    next_start: int
    """`start` of the next piece, if there is one."""


class _Inner(Protocol):
    """As `bz2.BZ2Decompressor`: one stream."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """One gzip member, with the interface of `bz2.BZ2Decompressor`."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self._is_full = False  # the limit may have been met with all input taken

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._is_full and not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self._is_full = len(out) == max_length
        return out


class _Zstd:
    """One zstd frame, with the interface of `bz2.BZ2Decompressor`, but for the limit."""

    needs_input = True

    def __init__(self) -> None:
        self._inner = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(data)


# What decompresses a stream, and how much it is fed at once: what comes out of a damaged slice is lost as a whole, and
# zstandard, which has no limit of its own, makes 128 KB of 4 bytes.
_INNER: dict[str, tuple[Callable[[], _Inner], int]] = {
    "bz2": (bz2.BZ2Decompressor, 4096),
    "gz": (_Gzip, BLOCK_BYTES),
    "zst": (_Zstd, 1024),
}
_ERRORS = (OSError, zlib.error, zstandard.ZstdError)


class _Decoder:
    """One stream. What was decompressed before damage comes out before the error."""

    def __init__(self, kind: str) -> None:
        make, self._slice_bytes = _INNER[kind]
        self._inner = make()
        self._waiting = b""
        self._error: Exception | None = None

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        """What follows the end of the stream."""
        return self._inner.unused_data + self._waiting

    @property
    def needs_input(self) -> bool:
        return self._error is None and not self._waiting and self._inner.needs_input

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Returns the next bytes, `max_length` or not many more.

        Raises:
            OSError, zlib.error, zstandard.ZstdError: the stream is damaged.
        """
        if self._error is not None:
            raise self._error
        data, done, size, out = self._waiting + data, 0, 0, []
        try:
            while size < max_length and not self._inner.eof and (done < len(data) or not self._inner.needs_input):
                feed = data[done : done + self._slice_bytes] if self._inner.needs_input else b""
                out.append(self._inner.decompress(feed, max_length - size))
                done, size = done + len(feed), size + len(out[-1])
        except _ERRORS as error:
            if not size:
                raise
            self._error = error
        self._waiting = data[done:]
        return b"".join(out)


def recognise(head: bytes, name: str) -> str:
    """Returns `bz2`, `gz`, `zst` or `xml`, as the first bytes of a file say; its name does not count.

    Raises:
        CorpusError: they say something else.
    """
    for magic, kind in _BY_MAGIC.items():
        if head.startswith(magic):
            return kind
    if head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n").startswith(b"<"):
        return "xml"
    other = next((kind for magic, kind in _OTHERS.items() if head.startswith(magic)), "")
    what = f"{name} is {other}" if other else f"{name} starts with {head[:8]!r}"
    raise CorpusError(f"{what}; UTF-8 XML (<), bz2, gz or zst is expected; give a page dump, or decompress it first")


def cut_points(path: Path, kind: str, part_bytes: int, must_hold: bytes = b"") -> list[int]:
    """Returns offsets at which a file can be cut, `part_bytes` or more apart, with 0 and the file's size.

    Compressed files are cut at streams that can be decompressed, XML before `must_hold`.
    """
    size = path.stat().st_size
    pattern = _STARTS.get(kind) or re.compile(re.escape(must_hold))
    cuts = [0]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while match := pattern.search(data, cuts[-1] + part_bytes):
            while match and kind in _INNER and not _decodes(data, match.start(), kind):
                match = pattern.search(data, match.start() + 1)
            if not match:
                break
            cuts.append(match.start())
    return [*cuts, size]


def _decodes(data: mmap.mmap, start: int, kind: str) -> bool:
    """Whether a stream begins here: chance may put its first bytes anywhere."""
    decoder = _Decoder(kind)
    try:
        while start < len(data) and not decoder.eof:
            if decoder.decompress(data[start : start + BLOCK_BYTES], 1):
                return True
            start += BLOCK_BYTES
    except _ERRORS:
        return False
    return decoder.eof


class Reader:
    """Iterates over the pieces and losses of one file or pipe, from an offset on; once.

    Args:
        read: returns up to so many bytes, none at the end; the first are those at `start`, behind `head`.
        kind: as `recognise` says.
        name: what losses call the file.
        start: offset of a stream; of any byte in XML.
        head: bytes at `start` that have been read already.
        seek: goes to an offset, so that the search for a stream behind a damaged one may go back; a pipe cannot.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        kind: str,
        name: str,
        start: int = 0,
        head: bytes = b"",
        seek: Callable[[int], Any] | None = None,
    ) -> None:
        self._input, self._kind, self._name, self._seek = read, kind, name, seek
        self._position, self._head = start, head  # of the end of the last block; what comes before the file's next byte

    def __iter__(self) -> Iterator[Piece | Loss]:
        """Yields pieces in file order; a loss stands where its bytes would have come."""
        block = self._read()
        if self._kind == "xml":
            while block:
                yield Piece(block, self._position - len(block), self._position, self._position)
                block = self._read()
        while block:
            block = yield from self._stream(block)
            while not (block := block.lstrip(b"\0")) and (block := self._read()):
                pass  # zeros pad a tape's blocks and are no stream

    def _read(self) -> bytes:
        block, self._head = self._head or self._input(BLOCK_BYTES), b""
        self._position += len(block)
        return block

    def _stream(self, block: bytes) -> Generator[Piece | Loss, None, bytes]:
        """Yields what one stream holds and returns what has been read of the next one."""
        start = self._position - len(block)
        decoder, last = _Decoder(self._kind), block
        while True:
            try:
                data = decoder.decompress(block, MAX_OUT_BYTES)
            except _ERRORS as error:
                block = self._next_start(start, last)
                cause = f"the {self._kind} stream is corrupt ({error})"
                yield Loss(self._name, start, self._position - len(block), cause)
                return block
            if decoder.eof:
                end = self._position - len(decoder.unused_data)
                yield Piece(data, start, end, end)
                return decoder.unused_data
            yield Piece(data, start, self._position, start)
            block = b""
            if decoder.needs_input:
                last = block = self._read()
                if not block:
                    yield Loss(self._name, start, self._position, f"the {self._kind} stream is truncated")
                    return b""

    def _next_start(self, start: int, block: bytes) -> bytes:
        """Reads on to the next stream that begins after `start`; returns it as far as read, or nothing at the end.

        Damage is found behind its place, and may hide the end of its stream: the search begins at `start` where it can.
        """
        if self._seek:
            self._position = start + 1
            self._seek(self._position)
            block = self._read()
        else:
            block = block[max(0, start + 1 - (self._position - len(block))) :]
        while not (match := _STARTS[self._kind].search(block)):
            if not (more := self._read()):
                return b""
            block = block[1 - _LONGEST_START :] + more
        return block[match.start() :]
