"""What an export says of its wiki in the lines before its first page."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from lxml import etree

from data_prep.document import CorpusError
from data_prep.source import Loss
from data_prep.streams import Piece

HEADER_BYTES = 4 * 1024 * 1024  # siteinfo is a few kilobytes; more than this is no export

# Names that every wiki understands beside its own; an export without <namespaces> leaves only these.
CANONICAL = (
    "Media:-2 Special:-1 Talk:1 User:2 User talk:3 Project:4 Project talk:5 File:6 File talk:7 Image:6 Image talk:7 "
    "MediaWiki:8 MediaWiki talk:9 Template:10 Template talk:11 Help:12 Help talk:13 Category:14 Category talk:15 "
    "Module:828 Module talk:829"
)

_CANONICAL = re.compile(r"([A-Z][A-Za-z ]*):(-?\d+)")
_ROOT = re.compile(rb"<mediawiki\b[^<>]*>")
_SITEINFO = re.compile(rb"<siteinfo>.*?</siteinfo>", re.DOTALL)
_ENCODING = re.compile(rb"""^\s*<\?xml\b[^<>]*\bencoding\s*=\s*["']([^"'<>]*)["']""")
_LANG = re.compile(r"(?:^|//)(ko|en)(?:wiki$|\.)")


@dataclass(frozen=True)
class Site:
    """The parts of `<siteinfo>`; empty where an export does not state them."""

    dbname: str = ""
    sitename: str = ""
    base: str = ""
    generator: str = ""
    case: str = ""
    namespaces: tuple[tuple[int, str], ...] = ()
    """Key and local name, as the export writes it; the article namespace has no name."""

    @property
    def lang(self) -> str | None:
        """`ko` or `en` as the database's name or the URL tells, otherwise None."""
        match = _LANG.search(self.dbname) or _LANG.search(self.base)
        return match[1] if match else None

    def url(self, title: str) -> str:
        """Returns a page's address; empty if the export names none."""
        return f"{self.base.rpartition('/')[0]}/{quote(title.replace(' ', '_'))}" if self.base else ""

    def namespace_of(self, title: str) -> int:
        """Returns the namespace of a page that states none: its title's prefix, in any case, with `_` or a space."""
        prefix, colon, _ = title.partition(":")
        if not colon:
            return 0
        wanted = _folded(prefix)
        names = [*((name, key) for key, name in self.namespaces), *_canonical()]
        return next((key for name, key in names if name and _folded(name) == wanted), 0)

    def facts(self) -> dict[str, Any]:
        """Returns the site as JSON values, for the manifest."""
        return asdict(self) | {"namespaces": {str(key): name for key, name in self.namespaces}}


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def _canonical() -> list[tuple[str, int]]:
    return [(match[1], int(match[2])) for match in _CANONICAL.finditer(CANONICAL)]


def read_header(pieces: Iterable[Piece | Loss], name: str) -> bytes:
    """Returns the first bytes of an export, with its siteinfo.

    Raises:
        CorpusError: they are damaged, or no MediaWiki export.
    """
    header = b""
    for piece in pieces:
        if isinstance(piece, Loss):
            raise CorpusError(
                f"{name}: {piece.cause} at byte {piece.start}; an export starts with the description of its wiki; "
                "fetch the dump again"
            )
        header += piece.data
        if b"</siteinfo>" in header or b"<page>" in header or len(header) > HEADER_BYTES:
            break
    encoding = _ENCODING.match(header.removeprefix(b"\xef\xbb\xbf"))
    if encoding and encoding[1].lower() not in (b"utf-8", b"utf8", b"us-ascii"):
        raise CorpusError(
            f"{name} declares the encoding {encoding[1].decode('ascii', 'replace')}; MediaWiki exports are UTF-8; "
            "convert it with iconv and correct its first line"
        )
    if not _ROOT.search(header):
        raise CorpusError(f"{name} starts with {header[:40]!r}; a MediaWiki export has <mediawiki>; give a page dump")
    return header


def parse_site(header: bytes, name: str) -> Site:
    """Returns what the header of an export says.

    Raises:
        CorpusError: its `<siteinfo>` is no XML.
    """
    found = _SITEINFO.search(header)
    if not found:
        return Site()
    try:
        info = etree.fromstring(found[0], etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
        namespaces = tuple((int(ns.get("key", "")), ns.text or "") for ns in info.iterfind("namespaces/namespace"))
    except (etree.XMLSyntaxError, ValueError) as error:
        raise CorpusError(f"{name}: its <siteinfo> is broken: {error}; fetch the dump again") from None
    dbname, sitename, base, generator, case = (
        info.findtext(tag) or "" for tag in ("dbname", "sitename", "base", "generator", "case")
    )
    return Site(dbname, sitename, base, generator, case, namespaces)
