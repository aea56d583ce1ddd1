"""A dump that can only be read from its start, cut into files of XML that several workers can clean.

One reader decompresses, as fast as one core does; a part is a file in the work folder until it is cleaned. What a
killed run has cleaned is decompressed again and compared by its hash, not cleaned again.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from data_prep.disk import disk_full
from data_prep.document import CorpusError
from data_prep.source import Loss, Part
from data_prep.streams import Piece
from data_prep.wiki.pages import OPEN, ROOT_END

_END_BYTES = 1024  # in which </mediawiki> is looked for

Known = Callable[[int], str | None]
"""Part's number -> the SHA-256 of its XML, if it has been cleaned."""


@dataclass(frozen=True)
class SpooledPart(Part):
    """A file of XML that was cut out of a decompressed dump."""

    origin: str
    """The dump, as messages call it."""
    xml_start: int
    """Where it starts in the decompressed dump."""
    input_bytes: int
    """Bytes of the dump that were read for it."""
    sha256: str


@dataclass
class Spool:
    """Cuts one dump into parts of about `part_bytes` of XML, at the start of a page.

    Args:
        pieces: the whole dump.
        name: what losses call it.
        part_bytes: a part ends before the first page that starts behind so many bytes.
        folder: where the parts are written.
        first: number of the dump's first part.
        known: parts that need not be written.
    """

    pieces: Iterable[Piece | Loss]
    name: str
    part_bytes: int
    folder: Path
    first: int
    known: Known
    losses: list[Loss] = field(default_factory=list)
    """Complete when all parts are drawn."""

    def parts(self) -> Iterator[SpooledPart | None]:
        """Yields the parts in order, and None whenever a piece was read.

        Raises:
            CorpusError: a part that was cleaned is another one now.
            DiskFullError: there is no room for a part.
        """
        writer = self._writer(self.first, 0, 0)
        tail = ending = b""
        end = 0
        for piece in self.pieces:
            if isinstance(piece, Loss):
                self.losses.append(piece)
                writer.write(tail)
                if writer.size:  # so that no page is put together of two halves
                    yield writer.finish(piece.end)
                    writer = self._writer(writer.index + 1, writer.xml_start + writer.size, piece.end)
                tail, ending, end = b"", ROOT_END, piece.end
                continue
            end = piece.end
            data = tail + piece.data
            while (cut := data.find(OPEN, max(0, self.part_bytes - writer.size))) >= 0:
                writer.write(data[:cut])
                yield writer.finish(end)
                writer = self._writer(writer.index + 1, writer.xml_start + writer.size, end)
                data = data[cut:]
            keep = len(data) - len(OPEN) + 1
            writer.write(data[: max(0, keep)])
            tail = data[max(0, keep) :]
            ending = (ending + data)[-_END_BYTES:]
            yield None
        writer.write(tail)
        if ROOT_END not in ending:
            xml_end = writer.xml_start + writer.size
            self.losses.append(Loss(self.name, xml_end, xml_end, "the export ends without </mediawiki>", True))
        yield writer.finish(end)

    def _writer(self, index: int, xml_start: int, input_start: int) -> "_Writer":
        path = self.folder / f"part-{index:05d}.xml"
        return _Writer(path, index, self.name, xml_start, input_start, self.known(index))


class _Writer:
    """One part under way; it has a file only if `known` is None."""

    def __init__(
        self, path: Path, index: int, origin: str, xml_start: int, input_start: int, known: str | None
    ) -> None:
        self.index, self.origin, self.xml_start, self.size = index, origin, xml_start, 0
        self._path, self._input_start, self._known = path, input_start, known
        self._partial = path.with_name(f"{path.name}.tmp")
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None

    def write(self, data: bytes) -> None:
        self.size += len(data)
        self._digest.update(data)
        if self._known is None and data:
            with disk_full(self._partial):
                self._file = self._file or self._partial.open("wb")
                self._file.write(data)

    def finish(self, input_end: int) -> SpooledPart:
        """Gives the file its name."""
        sha256 = self._digest.hexdigest()
        if self._known not in (None, sha256):
            raise CorpusError(
                f"part {self.index} of the dump has the SHA-256 {sha256[:12]}, {str(self._known)[:12]} was cleaned "
                "before; the same dump is expected; give another --out or remove it"
            )
        if self._known is None:
            with disk_full(self._path):
                (self._file or self._partial.open("wb")).close()
                self._partial.replace(self._path)
        input_bytes = input_end - self._input_start
        return SpooledPart(self._path, 0, self.size, self.origin, self.xml_start, input_bytes, sha256)
