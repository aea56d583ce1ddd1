"""What `clean` reads documents from: a dump, or files of documents; read in parts, several at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data_prep.document import Document


@dataclass(frozen=True)
class Part:
    """A byte range of one file that starts at a record and holds whole ones; the unit of work and of resuming."""

    path: Path
    start: int
    end: int


@dataclass(frozen=True)
class Rejection:
    """A record that gave no document, such as a redirect; `reason` is a key of the ledger."""

    id: str
    title: str
    reason: str


class Source(Protocol):
    """A series of documents in a fixed order; picklable, as workers get a copy."""

    lang: str | None
    """ISO 639-1 code if the whole source has one language."""

    def settings(self) -> dict[str, Any]:
        """Returns all that the documents depend on as JSON values, with the SHA-256 of the input files."""
        ...

    def parts(self, part_bytes: int) -> list[Part]:
        """Returns the parts, in order, each of about `part_bytes`; they depend on the input and `part_bytes` alone.

        Raises:
            CorpusError: the input is missing or not of the stated form.
        """
        ...

    def read(self, part: Part) -> "PartReader":
        """Returns the reader of one part."""
        ...


class PartReader(Protocol):
    """The records of one part, in order."""

    @property
    def position(self) -> int:
        """File offset read so far, for the progress bar."""
        ...

    def __iter__(self) -> Iterator[Document | Rejection]:
        """Yields one item per record, with memory for one at a time.

        Raises:
            CorpusError: the data is damaged; the message names the file and the byte offset.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Returns what else the part's summary should hold; `losses` and `unknown` are understood by `clean`.

        A reader that can go on behind damage lists it under `losses`, as JSON objects of `Loss`, and yields the rest.
        """
        ...


@dataclass(frozen=True)
class Loss:
    """A range that could not be read; offsets count bytes of the file, or of its decompressed content."""

    file: str
    start: int
    end: int
    cause: str
    decompressed: bool = False

    def __str__(self) -> str:
        of = "its decompressed content" if self.decompressed else "the file"
        return f"{self.file}: bytes {self.start} to {self.end} of {of}: {self.cause}"
