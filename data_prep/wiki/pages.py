"""Pages out of an export's bytes: `<page>` to `</page>` is cut out, and only then parsed, one page at a time."""

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from lxml import etree

from data_prep.source import Loss
from data_prep.streams import Piece

OPEN, CLOSE, ROOT_END = b"<page>", b"</page>", b"</mediawiki>"  # in text they would be escaped
HEAD_BYTES = 4096  # of a page, in which its title and id are looked for if it cannot be parsed

_TITLE = re.compile(rb"<title>([^<]*)</title>")
_ID = re.compile(rb"<id>\s*(\d+)\s*</id>")
_START = re.compile(rb"<page>\s*<title>[^<]*</title>\s*<ns>(-?\d+)</ns>\s*<id>\d+</id>\s*(<redirect\b)?")


class BrokenPageError(ValueError):
    """A page is no XML of the export's form; the message is the cause."""


@dataclass(frozen=True)
class Page:
    """One page with its latest revision, as the export states it; `namespace` is None if it does not."""

    id: str
    title: str
    namespace: int | None
    revision: str
    timestamp: str
    model: str
    text: str
    has_redirect: bool


@dataclass(frozen=True)
class Fragment:
    """The bytes of one page, or the head of a larger one than allowed; offsets count bytes of the file."""

    data: bytes
    start: int
    end: int
    is_whole: bool = True

    @property
    def title(self) -> str:
        """The title as written, also of a page that is no XML; empty without one."""
        match = _TITLE.search(self.data, 0, HEAD_BYTES)
        return match[1].decode("utf-8", "replace") if match else ""

    @property
    def id(self) -> str:
        """The page's number, also of a page that is no XML; empty without one."""
        match = _ID.search(self.data, 0, HEAD_BYTES)
        return match[1].decode() if match else ""

    @property
    def rejection(self) -> str | None:
        """Why its first elements say that it is no article; most pages of a dump need no parsing."""
        match = _START.match(self.data)
        if not match or not self.has_end:
            return None
        return "namespace" if int(match[1]) else "redirect" if match[2] else None

    @property
    def has_end(self) -> bool:
        """Whether it is a whole element; without `</page>` it goes up to the next page."""
        return self.data.endswith(CLOSE)


@dataclass
class PageCutter:
    """Cuts out the pages that start before the offset `end`, with memory for one page of at most `max_bytes`.

    Args:
        pieces: from the start of a stream on; the cutter draws no more than the last page needs.
        name: what losses call the file.
        end: offset of the page or stream that belongs to the next part.
        max_bytes: of a larger page only the head is yielded.
        is_plain: whether the pieces are bytes of the file as they stand; otherwise a page is known by its stream.
        must_end: whether the end of the pieces is the end of an export.
    """

    pieces: Iterable[Piece | Loss]
    name: str
    end: int
    max_bytes: int
    is_plain: bool
    must_end: bool
    position: int = 0
    """How far the file has been read."""

    _buffer: bytearray = field(default_factory=bytearray)
    _origins: list[tuple[int, Piece]] = field(default_factory=list)  # (end in the buffer, its piece without data)
    _is_open: bool = False  # the buffer, or the head of what was skipped, starts with a page of this part
    _head: Fragment | None = None  # of a page too large to be kept
    _scanned: int = 0  # bytes of the buffer that hold no start of CLOSE
    _has_ended: bool = False  # the last thing seen is ROOT_END, or a loss up to the end

    def __iter__(self) -> Iterator[Fragment | Loss]:
        """Yields pages and losses in file order."""
        for piece in self.pieces:
            if isinstance(piece, Loss):
                if not self._is_open and piece.start >= self.end:
                    return
                yield self._interrupted(piece)
                if piece.start >= self.end:
                    return
                continue
            self.position = piece.end
            self._buffer += piece.data
            self._origins.append((len(self._buffer), replace(piece, data=b"")))
            yield from self._pages()
            if not (self._is_open or self.must_end or piece.next_start < self.end or self._may_go_on()):
                return
        if self._is_open:
            yield Loss(
                self.name, self._open_head().start, self.position, f"page {self._open_head().title!r} has no </page>"
            )
        elif self.must_end and not self._has_ended:
            yield Loss(self.name, self.position, self.position, "the export ends without </mediawiki>")

    def _pages(self) -> Iterator[Fragment]:
        """Yields the pages that end in the buffer."""
        while self._is_open or self._find_page():
            close = self._buffer.find(CLOSE, self._scanned)
            if close < 0:
                if len(self._buffer) > self.max_bytes:
                    self._head = self._open_head()
                    self._forget(len(self._buffer) - len(CLOSE))
                self._scanned = max(0, len(self._buffer) - len(CLOSE))
                return
            close += len(CLOSE)
            if (again := self._buffer.rfind(OPEN, 1, close)) > 0:  # what is open has no end, perhaps in another part
                yield self._fragment(again)
                self._forget(again)
                self._is_open, self._head = False, None
                continue
            if self._head or close > self.max_bytes:
                yield replace(self._open_head(), end=self._end(close - 1), is_whole=False)
            else:
                yield self._fragment(close)
            self._forget(close)
            self._is_open, self._head = False, None

    def _find_page(self) -> bool:
        """Drops what stands before the next page; False if none of this part's starts in the buffer."""
        start = self._buffer.find(OPEN)
        if start < 0:
            self._has_ended = self._has_ended or ROOT_END in self._buffer
            self._forget(max(0, len(self._buffer) - len(ROOT_END)))
            return False
        self._forget(start)
        self._scanned, self._has_ended = len(OPEN), False
        self._is_open = self._offset(0) < self.end
        if not self._is_open:
            self._forget(len(self._buffer))
        return self._is_open

    def _interrupted(self, loss: Loss) -> Loss:
        """Drops the open page, as its rest is lost, and returns the loss that covers it too."""
        if self._is_open:
            head = self._open_head()
            cause = f"{loss.cause}; page {head.title!r} is cut off"
            loss = replace(loss, start=min(loss.start, head.start), cause=cause)
        self._buffer.clear()
        self._origins.clear()
        self._is_open, self._head, self._has_ended = False, None, True
        return loss

    def _may_go_on(self) -> bool:
        return any(self._buffer.endswith(OPEN[:length]) for length in range(1, len(OPEN)))

    def _fragment(self, size: int) -> Fragment:
        """Returns the first `size` bytes of the open page."""
        data = bytes(memoryview(self._buffer)[:size])
        return Fragment(data, self._offset(0), self._end(len(data) - 1))

    def _open_head(self) -> Fragment:
        return self._head or self._fragment(HEAD_BYTES)

    def _offset(self, index: int) -> int:
        """Returns where the file holds a byte of the buffer, or where that byte's stream starts."""
        end, piece = next(origin for origin in self._origins if index < origin[0])
        return piece.end - (end - index) if self.is_plain else piece.start

    def _end(self, index: int) -> int:
        """Returns where the file goes on behind a byte of the buffer, or how far it was read for that byte."""
        end, piece = next(origin for origin in self._origins if index < origin[0])
        return piece.end - (end - index) + 1 if self.is_plain else piece.end

    def _forget(self, size: int) -> None:
        """Drops the first bytes of the buffer."""
        del self._buffer[:size]
        self._origins = [(end - size, piece) for end, piece in self._origins if end > size]


def parse_page(data: bytes) -> Page:
    """Returns the page of one `<page>` element; of several revisions the last, as exports list the oldest first.

    Raises:
        BrokenPageError: it is not well-formed, no UTF-8, has no id, or its text holds elements.
    """
    try:
        root = etree.fromstring(data, _parser())
    except etree.XMLSyntaxError as error:
        raise BrokenPageError(f"broken XML: {error.msg}") from None
    fields = {child.tag: child for child in root}
    revision = fields.get("revision")
    parts = {child.tag: child for child in revision} if revision is not None else {}
    number, namespace = _text(fields.get("id")).strip(), _text(fields.get("ns")).strip()
    if not number.isdecimal():
        raise BrokenPageError(f"its id is {number!r}, a number is expected")
    if namespace and not namespace.removeprefix("-").isdecimal():
        raise BrokenPageError(f"its namespace is {namespace!r}, a number is expected")
    if (body := parts.get("text")) is not None and len(body):
        raise BrokenPageError(f"its text holds the element or entity {body[0].text or body[0].tag!r}")
    return Page(
        id=number,
        title=_text(fields.get("title")),
        namespace=int(namespace) if namespace else None,
        revision=_text(parts.get("id")),
        timestamp=_text(parts.get("timestamp")),
        model=_text(parts.get("model")) or "wikitext",
        text=_text(body),
        has_redirect="redirect" in fields,
    )


@functools.cache
def _parser() -> etree.XMLParser:
    # Entities, DTDs and the network stay out: a dump needs none of them.
    return etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=True)


def _text(element: etree._Element | None) -> str:
    return (element.text or "") if element is not None else ""
