"""Pages and their dump: a MediaWiki export (schema 0.10) in multistream bzip2 with its index."""

import bz2
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from data_prep.document import CorpusError
from data_prep.lineage import whole_file

PAGES_PER_STREAM = 100
_CORE = {
    "ko": "미디어 특수 - 토론 사용자 사용자토론 위키백과 위키백과토론 파일 파일토론 미디어위키 미디어위키토론 "
    "틀 틀토론 도움말 도움말토론 분류 분류토론",
    "en": "Media Special - Talk User User_talk Wikipedia Wikipedia_talk File File_talk MediaWiki MediaWiki_talk "
    "Template Template_talk Help Help_talk Category Category_talk",
}
_EXTRA = {
    "ko": {
        100: "들머리",
        101: "들머리토론",
        102: "위키프로젝트",
        103: "위키프로젝트토론",
        118: "초안",
        119: "초안토론",
    },
    "en": {100: "Portal", 101: "Portal talk", 118: "Draft", 119: "Draft talk"},
}
_MODULES = {"ko": {828: "모듈", 829: "모듈토론"}, "en": {828: "Module", 829: "Module talk"}}
_SITES = {
    "ko": ("위키백과", "kowiki", "https://ko.wikipedia.org/wiki/%EB%8C%80%EB%AC%B8"),
    "en": ("Wikipedia", "enwiki", "https://en.wikipedia.org/wiki/Main_Page"),
}
_REDIRECT = re.compile(r"#(?:넘겨주기|redirect)\s*:?\s*\[\[([^\]|#]+)", re.IGNORECASE)
_SCHEMA = "http://www.mediawiki.org/xml/export-0.10"


@dataclass(frozen=True)
class Page:
    """A wiki page; the title's prefix decides its namespace."""

    title: str
    text: str


def namespaces(lang: str) -> dict[int, str]:
    """Returns namespace key -> name as the Wikipedia of that language has them; 0 is the article namespace."""
    core = {key: name.replace("_", " ") for key, name in enumerate(_CORE[lang].split(), start=-2)}
    talk = {710: "TimedText", 711: "TimedText talk"}
    return core | {0: ""} | _EXTRA[lang] | talk | _MODULES[lang]


def namespace(title: str, lang: str) -> int:
    """Returns the namespace key of a full title."""
    prefix, colon, _ = title.partition(":")
    keys = {name: key for key, name in namespaces(lang).items() if name}
    return keys.get(prefix.strip(), 0) if colon else 0


def is_article(page: Page, lang: str) -> bool:
    """Whether the page is in the article namespace and no redirect."""
    return namespace(page.title, lang) == 0 and not _REDIRECT.match(page.text)


def read_pages(path: Path) -> list[Page]:
    """Returns the pages of a `.wiki` file, where a line `@@ TITLE` starts each page.

    Raises:
        CorpusError: the file does not start with such a line, or a title is empty.
    """
    parts = re.split(r"^@@ *(.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    titles, texts = [t.strip() for t in parts[1::2]], parts[2::2]
    if parts[0].strip() or not all(titles):
        raise CorpusError(f"{path} starts with {parts[0][:30]!r} or has an empty title; start pages with `@@ TITLE`")
    return [Page(title, text.strip("\n")) for title, text in zip(titles, texts, strict=True)]


def write_dump(folder: Path, name: str, lang: str, pages: list[Page]) -> None:
    """Writes `NAME-pages-articles-multistream.xml.bz2` and its index `offset:id:title` in the given page order."""
    ids = _page_ids(pages)
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{name}-pages-articles-multistream.xml.bz2"
    index: list[str] = []
    with whole_file(final) as partial, partial.open("wb") as file:
        file.write(bz2.compress(_header(lang).encode("utf-8")))
        for start in range(0, len(pages), PAGES_PER_STREAM):
            batch = pages[start : start + PAGES_PER_STREAM]
            index += [f"{file.tell()}:{ids[page.title]}:{page.title}\n" for page in batch]
            file.write(bz2.compress("".join(_page_xml(page, ids[page.title], lang) for page in batch).encode("utf-8")))
        file.write(bz2.compress(b"</mediawiki>\n"))
    with whole_file(folder / f"{name}-pages-articles-multistream-index.txt.bz2") as partial:
        partial.write_bytes(bz2.compress("".join(index).encode("utf-8")))


def _page_ids(pages: Iterable[Page]) -> dict[str, int]:
    """Gives each title an id that depends on the title, so that other pages do not move it."""
    ids: dict[str, int] = {}
    taken: set[int] = set()
    for title in sorted(page.title for page in pages):
        number = 1 + int(hashlib.sha256(title.encode()).hexdigest()[:12], 16) % 4_000_000
        while number in taken:
            number += 1
        taken.add(number)
        ids[title] = number
    return ids


def _header(lang: str) -> str:
    site, database, base = _SITES[lang]
    lines = [
        f'<mediawiki xmlns="{_SCHEMA}/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        f'xsi:schemaLocation="{_SCHEMA}/ {_SCHEMA}.xsd" version="0.10" xml:lang="{lang}">',
        "  <siteinfo>",
        f"    <sitename>{site}</sitename>",
        f"    <dbname>{database}</dbname>",
        f"    <base>{base}</base>",
        "    <generator>MediaWiki 1.38</generator>",
        "    <case>first-letter</case>",
        "    <namespaces>",
        *_namespace_lines(lang),
        "    </namespaces>",
        "  </siteinfo>",
    ]
    return "\n".join(lines) + "\n"


def _namespace_lines(lang: str) -> Iterator[str]:
    for key, name in sorted(namespaces(lang).items()):
        start = f'      <namespace key="{key}" case="first-letter"'
        yield f"{start}>{name}</namespace>" if name else f"{start} />"


def _page_xml(page: Page, number: int, lang: str) -> str:
    data = page.text.encode("utf-8")
    redirect = _REDIRECT.match(page.text)
    lines = [
        "  <page>",
        f"    <title>{escape(page.title)}</title>",
        f"    <ns>{namespace(page.title, lang)}</ns>",
        f"    <id>{number}</id>",
        *([f"    <redirect title={quoteattr(redirect[1].strip())} />"] if redirect else []),
        "    <revision>",
        f"      <id>{number + 10_000_000}</id>",
        f"      <timestamp>2024-{number % 12 + 1:02}-{number % 28 + 1:02}T{number % 24:02}:00:00Z</timestamp>",
        "      <contributor>",
        "        <username>kotune sample</username>",
        "        <id>1</id>",
        "      </contributor>",
        "      <model>wikitext</model>",
        "      <format>text/x-wiki</format>",
        f'      <text bytes="{len(data)}" xml:space="preserve">{escape(page.text)}</text>',
        f"      <sha1>{_base36_sha1(data)}</sha1>",
        "    </revision>",
        "  </page>",
    ]
    return "\n".join(lines) + "\n"


def _base36_sha1(data: bytes) -> str:
    """Returns the SHA-1 as MediaWiki writes it: 31 digits of base 36."""
    number, digits = int(hashlib.sha1(data).hexdigest(), 16), ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits.rjust(31, "0")
