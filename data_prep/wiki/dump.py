"""MediaWiki exports as a source of documents: files and standard input, compressed or not, of one wiki.

A multistream bz2 file, and plain XML, is read in byte ranges by several processes at once. What can only be read from
its start (a single bz2 stream, gz, zst, a pipe) is cut into files of XML first, see `spool`.
"""

import hashlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

from data_prep.document import CorpusError
from data_prep.lineage import sha256_file
from data_prep.source import Loss, Part
from data_prep.streams import BLOCK_BYTES, Piece, Reader, cut_points, recognise
from data_prep.wiki.articles import ArticleReader
from data_prep.wiki.pages import OPEN, PageCutter
from data_prep.wiki.siteinfo import Site, parse_site, read_header
from data_prep.wiki.spool import Known, Spool, SpooledPart
from data_prep.wiki.templates import load_table

STDIN = Path("-")
STDIN_NAME = "standard input"
HEAD_BYTES = 512  # by which a file's form is recognised
MAX_PART_RATIO = 4  # a multistream file has streams of under a megabyte; a larger range than so many parts has not


@dataclass(frozen=True)
class DumpPart(Part):
    """Bytes `start` to `end` of a dump: what one worker cleans; `end` is the file's end or where a page may start."""

    size: int
    """Of the whole file."""


@dataclass(frozen=True)
class DumpFile:
    """One file of a dump, or standard input."""

    path: Path
    kind: str
    """`bz2`, `gz`, `zst` or `xml`."""
    site: Site
    size: int | None
    """Bytes; None for standard input."""

    @property
    def name(self) -> str:
        """The file as messages call it."""
        return STDIN_NAME if self.path == STDIN else str(self.path)


@dataclass
class Stdin:
    """Standard input, as far as it was read to see what it is; its hash is known when all is read."""

    file: BufferedReader
    digest: Any = field(default_factory=hashlib.sha256)
    head: list[Piece | Loss] = field(default_factory=list)
    rest: Iterator[Piece | Loss] = field(default_factory=lambda: iter(()))

    def read(self, size: int) -> bytes:
        """Reads up to `size` bytes, as soon as some are there: what feeds the pipe may be slow."""
        data = self.file.read1(size)
        self.digest.update(data)
        return data

    def sha256(self) -> str:
        """Reads all that is left and returns the hash of all that came."""
        while self.read(BLOCK_BYTES):
            pass
        return self.digest.hexdigest()


@dataclass
class Dump:
    """The articles of an export; implements `corpus.source.Source`.

    Args:
        files: of one wiki, in order.
        lang: language of the articles.
        templates: YAML file laid over the shipped tables.
        max_page_bytes: larger `<page>` elements are rejected.
    """

    files: Sequence[DumpFile]
    lang: str | None
    templates: Path | None = None
    max_page_bytes: int = 8_000_000
    stdin: Stdin | None = None
    losses: list[Loss] = field(default_factory=list)
    """What could not be decompressed in the files that `stream` cut; complete when its parts are drawn."""

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what a worker neither needs nor can have."""
        return {**self.__dict__, "stdin": None}

    @property
    def site(self) -> Site:
        """The wiki, as the first file describes it."""
        return self.files[0].site

    def settings(self) -> dict[str, Any]:
        """Returns the files' names and hashes, and the options; see `Source`."""
        dumps = [{"path": f.name, "sha256": None if f.size is None else sha256_file(f.path)} for f in self.files]
        return {
            "dump": dumps,
            "templates_sha256": sha256_file(self.templates) if self.templates else None,
            "max_page_bytes": self.max_page_bytes,
        }

    def parts(self, part_bytes: int) -> list[Part]:
        """Returns the byte ranges of files that can be read so; see `Source`."""
        return [part for file in self.files for part in _ranges(file, part_bytes) or []]

    def stream(self, part_bytes: int, folder: Path, known: Known) -> Iterator[Part | None]:
        """Yields the parts of all files in order, writing those of files that can only be read from their start.

        Args:
            part_bytes: bytes of the file, or of XML where a part is written.
            folder: where parts are written.
            known: see `spool`.

        Yields:
            Parts, and None now and then while one is being made.
        """
        count = 0
        self.losses.clear()
        for file in self.files:
            if (ranges := _ranges(file, part_bytes)) is not None:
                yield from ranges
                count += len(ranges)
                continue
            spool = Spool(self._pieces(file), file.name, part_bytes, folder, count, known)
            for part in spool.parts():
                yield part
                count += part is not None
            self.losses += spool.losses

    def read(self, part: Part) -> ArticleReader:
        """Returns the reader of one part; see `Source`."""
        assert self.lang is not None
        source = self.site.dbname or self.files[0].path.name.split(".")[0] or "stdin"
        if isinstance(part, SpooledPart):
            pieces = _read_range(part.path, "xml", 0)
            cutter = PageCutter(pieces, part.origin, part.end, self.max_page_bytes, is_plain=True, must_end=False)
            shift: int | None = part.xml_start
        else:
            assert isinstance(part, DumpPart)
            kind = next(f.kind for f in self.files if f.path == part.path)
            pieces = _read_range(part.path, kind, part.start)
            is_last = part.end == part.size
            cutter = PageCutter(pieces, str(part.path), part.end, self.max_page_bytes, kind == "xml", must_end=is_last)
            shift = None
        return ArticleReader(cutter, self.site, source, self.lang, load_table(self.lang, self.templates), shift)

    def _pieces(self, file: DumpFile) -> Iterator[Piece | Loss]:
        if self.stdin is not None and file.path == STDIN:
            return itertools.chain(self.stdin.head, self.stdin.rest)
        return _read_range(file.path, file.kind, 0)


def open_dump(
    paths: Sequence[Path], lang: str | None, templates: Path | None = None, max_page_bytes: int = 8_000_000
) -> Dump:
    """Returns the source that `--dump` names; the first bytes of each file are read.

    Args:
        paths: files, or `-` for standard input.
        lang: language of the articles; None is what the export says.
        templates: YAML file laid over the shipped tables.
        max_page_bytes: larger `<page>` elements are rejected.

    Raises:
        CorpusError: a file is missing, empty, not readable or no export, two are of different wikis, or the language
            is neither given nor known.
    """
    for path in paths:
        if list(paths).count(path) > 1:
            raise CorpusError(f"--dump names {path} twice; each file is read once; name it once")
    stdin = Stdin(cast(BufferedReader, sys.stdin.buffer)) if STDIN in paths else None
    files = [_describe_stdin(stdin) if stdin and path == STDIN else _describe(path) for path in paths]
    first = files[0]
    for file in files[1:]:
        if file.site.dbname != first.site.dbname:
            raise CorpusError(
                f"{file.name} is of the wiki {file.site.dbname!r}, {first.name} of {first.site.dbname!r}; "
                "one wiki per run is possible; clean them one after the other"
            )
    if (lang := lang or first.site.lang) is None:
        raise CorpusError(
            f"{first.name} names the wiki {first.site.dbname!r} at {first.site.base!r}; kowiki or enwiki is known; "
            "pass --lang ko or --lang en, whose template table and rules fit best"
        )
    load_table(lang, templates)  # a broken table fails here, before any work
    return Dump(files, lang, templates, max_page_bytes, stdin)


def _describe(path: Path) -> DumpFile:
    if not path.exists():
        raise CorpusError(f"{path} does not exist; give a MediaWiki export (.xml, .bz2, .gz or .zst) as --dump")
    if not path.is_file():
        raise CorpusError(f"{path} is no file; a MediaWiki export is expected; for a pipe give --dump - < {path}")
    if not (size := path.stat().st_size):
        raise CorpusError(f"{path} is empty; a MediaWiki export is expected; fetch the dump again")
    try:
        with path.open("rb") as file:
            kind = recognise(file.read(HEAD_BYTES), str(path))
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}; permission to read it is needed") from None
    header = read_header(_read_range(path, kind, 0), str(path))
    return DumpFile(path, kind, parse_site(header, str(path)), size)


def _describe_stdin(stdin: Stdin) -> DumpFile:
    head = b""
    while len(head) < HEAD_BYTES and (more := stdin.read(HEAD_BYTES)):
        head += more
    if not head:
        raise CorpusError(f"{STDIN_NAME} is empty; a MediaWiki export is expected; pipe one into --dump -")
    kind = recognise(head, STDIN_NAME)
    stdin.rest = iter(Reader(stdin.read, kind, STDIN_NAME, head=head))

    def seen() -> Iterator[Piece | Loss]:
        for piece in stdin.rest:
            stdin.head.append(piece)
            yield piece

    return DumpFile(STDIN, kind, parse_site(read_header(seen(), STDIN_NAME), STDIN_NAME), None)


def _read_range(path: Path, kind: str, start: int) -> Iterator[Piece | Loss]:
    with path.open("rb") as file:
        file.seek(start)
        yield from Reader(file.read, kind, str(path), start, seek=file.seek)


def _ranges(file: DumpFile, part_bytes: int) -> list[Part] | None:
    """Returns the ranges of a file that can be read independently; None if it must be read from its start."""
    if file.size is None:
        return None
    cuts = cut_points(file.path, file.kind, part_bytes, OPEN)
    largest = max(b - a for a, b in itertools.pairwise(cuts))
    is_one_stream = len(cuts) == 2 and file.size > part_bytes
    if file.kind != "xml" and (is_one_stream or largest > MAX_PART_RATIO * part_bytes):
        return None
    return [DumpPart(file.path, a, b, file.size) for a, b in itertools.pairwise(cuts)]
