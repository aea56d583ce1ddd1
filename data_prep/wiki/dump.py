"""Pages of a MediaWiki export (`.xml`, `.xml.bz2`), in byte ranges that several processes can read at once."""

import bz2
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lxml import etree

from data_prep.document import CorpusError

CHUNK_BYTES = 256 * 1024
HEADER_BYTES = 4 * 1024 * 1024  # siteinfo is a few kilobytes; more than this is no export

# Wikimedia's multistream dumps start a bz2 stream every 100 pages; the magic of a stream and of its first block.
_STREAM = re.compile(rb"BZh[1-9]1AY&SY")
_PAGE_TAG = re.compile(rb"<page>")  # in text it would be escaped
_ROOT = re.compile(rb"<mediawiki\b[^<>]*>")
_DBNAME = re.compile(rb"<dbname>([^<]*)</dbname>")
_BASE = re.compile(rb"<base>([^<]*)</base>")
_LANG = re.compile(r"(?:^|//)(ko|en)(?:wiki$|\.)")
_REDIRECT = re.compile(r"\s*#\s*(?:넘겨주기|redirect)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Site:
    """What an export says of its wiki: the database's name, the main page's URL and the root element's tag."""

    dbname: str
    base: str
    root_tag: bytes

    @property
    def lang(self) -> str | None:
        """`ko` or `en` as the database's name or the URL tells, otherwise None."""
        match = _LANG.search(self.dbname) or _LANG.search(self.base)
        return match[1] if match else None

    def url(self, title: str) -> str:
        """Returns a page's address; empty if the export names none."""
        return f"{self.base.rpartition('/')[0]}/{quote(title.replace(' ', '_'))}" if self.base else ""


@dataclass(frozen=True)
class Part:
    """A byte range of the file that starts at a page (the first: at the header) and holds whole pages."""

    start: int
    end: int
    is_last: bool


@dataclass(frozen=True)
class Page:
    """One page with its latest revision, as the export states it."""

    id: str
    title: str
    namespace: str
    revision: str
    timestamp: str
    model: str
    text: str
    is_redirect: bool


def read_site(path: Path) -> Site:
    """Returns what the export's header says.

    Raises:
        CorpusError: the file is missing, empty, neither bz2 nor XML, or no MediaWiki export.
    """
    if not path.is_file():
        raise CorpusError(f"{path} does not exist; give a MediaWiki export (.xml or .xml.bz2) as --dump")
    if not path.stat().st_size:
        raise CorpusError(f"{path} is empty; a MediaWiki export is expected; fetch the dump again")
    header = b""
    for _, chunk in _chunks(path, 0, path.stat().st_size):
        header += chunk
        if b"</siteinfo>" in header or b"<page>" in header or len(header) > HEADER_BYTES:
            break
    root = _ROOT.search(header)
    if not root:
        raise CorpusError(f"{path} starts with {header[:40]!r}; a MediaWiki export has <mediawiki>; give a page dump")
    dbname, base = (match[1].decode() if match else "" for match in (_DBNAME.search(header), _BASE.search(header)))
    return Site(dbname, base.replace("&amp;", "&"), root[0])


def split(path: Path, part_bytes: int) -> list[Part]:
    """Returns the file's parts, each of about `part_bytes` of the file, cut where a page starts.

    The cuts depend on the file and `part_bytes` alone. A bz2 file of one stream, or whose streams
    do not start at a page (pbzip2), is one part.
    """
    size = path.stat().st_size
    cuts = [0]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        is_bz2 = data[:3] == b"BZh"
        while match := (_STREAM if is_bz2 else _PAGE_TAG).search(data, cuts[-1] + part_bytes):
            start = match.start()
            while is_bz2 and match and not _starts_at_page(path, match.start(), size):
                match = _STREAM.search(data, match.end())
                start = match.start() if match else size
            if start >= size:
                break
            cuts.append(start)
    return [Part(a, b, b == size) for a, b in zip(cuts, [*cuts[1:], size], strict=True)]


def _starts_at_page(path: Path, start: int, end: int) -> bool:
    head = b""
    try:
        for _, chunk in _chunks(path, start, end):
            head += chunk
            if len(head) > 100:
                break
    except CorpusError:
        return False  # not a stream, or a corrupt one: whoever reads across it reports it
    return head.lstrip().startswith(b"<page>")


class PageReader:
    """Iterates over the pages of one part; `position` is the file offset read so far."""

    def __init__(self, path: Path, part: Part, site: Site) -> None:
        self.path, self.part, self.site = path, part, site
        self.position = part.start

    def __iter__(self) -> Iterator[Page]:
        """Yields the pages in file order, with memory for one page at a time.

        Raises:
            CorpusError: the part is truncated or corrupt (named by its offset) or its XML is broken.
        """
        # Entities, DTDs and the network stay out: a dump needs none of them.
        parser = etree.XMLPullParser(
            ("end",), tag="{*}page", resolve_entities=False, huge_tree=True, no_network=True, load_dtd=False
        )
        title = ""
        try:
            for chunk in self._document():
                parser.feed(chunk)
                for _, element in parser.read_events():
                    page = self._page(element)
                    title = page.title
                    yield page
                    element.clear()
                    while element.getprevious() is not None:
                        del element.getparent()[0]
            parser.close()
        except etree.XMLSyntaxError as error:
            where = f"after page {title!r}" if title else "before the first page"
            raise CorpusError(
                f"{self.path}: broken XML {where}, near byte {self.position}: {error.msg}; "
                "whole <page> elements are expected; fetch the dump again"
            ) from None

    def _document(self) -> Iterator[bytes]:
        if self.part.start:
            yield self.site.root_tag
        for position, chunk in _chunks(self.path, self.part.start, self.part.end):
            self.position = position
            yield chunk
        if not self.part.is_last:
            yield b"</mediawiki>"

    def _page(self, element: etree._Element) -> Page:
        def text(name: str) -> str:
            return element.findtext(f"{{*}}{name}") or ""

        body = element.find("{*}revision/{*}text")
        if body is not None and len(body):
            raise CorpusError(
                f"{self.path}: page {text('title')!r} holds an entity or element in its text; "
                "plain text is expected; fetch the dump from its origin again"
            )
        wikitext = (body.text if body is not None else "") or ""
        return Page(
            id=text("id"),
            title=text("title"),
            namespace=text("ns") or "0",
            revision=text("revision/{*}id"),
            timestamp=text("revision/{*}timestamp"),
            model=text("revision/{*}model") or "wikitext",
            text=wikitext,
            is_redirect=element.find("{*}redirect") is not None or bool(_REDIRECT.match(wikitext)),
        )


def _chunks(path: Path, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yields (file offset, XML bytes) of a byte range of the file."""
    with path.open("rb") as file:
        head = file.read(512)
        if head.startswith(b"BZh"):
            yield from _decompressed(path, start, end)
        elif head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            file.seek(start)
            while chunk := file.read(min(CHUNK_BYTES, end - file.tell())):
                yield file.tell(), chunk
        else:
            raise CorpusError(f"{path} starts with {head[:8]!r}; bz2 (BZh) or XML (<) is expected; decompress it first")


def _decompressed(path: Path, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    decoder, stream_start, is_fresh = bz2.BZ2Decompressor(), start, True
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(min(CHUNK_BYTES, end - file.tell())):
            while block:
                try:
                    data = decoder.decompress(block)
                except OSError:
                    raise CorpusError(
                        f"{path}: the bz2 stream at byte {stream_start} is corrupt; its data does not match its "
                        "checksum or form; fetch the dump again"
                    ) from None
                is_fresh = False
                yield file.tell(), data
                if not decoder.eof:
                    break
                block = decoder.unused_data
                stream_start = file.tell() - len(block)
                decoder, is_fresh = bz2.BZ2Decompressor(), True
    if not is_fresh:
        raise CorpusError(
            f"{path}: the bz2 stream at byte {stream_start} is truncated, the file ends at byte {end}; "
            "a whole stream is expected; fetch the dump again"
        )
