import bz2
import re
from itertools import pairwise
from pathlib import Path

import pytest

from data_prep.document import CorpusError
from data_prep.wiki.dump import Page, PageReader, read_site, split
from tests.unit.data_prep.dump_files import FOOTER, HEADER, page_xml, pages, write_multistream


def read(path: Path, part_bytes: int = 1) -> list[Page]:
    site = read_site(path)
    return [page for part in split(path, part_bytes) for page in PageReader(path, part, site)]


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    return write_multistream(tmp_path / "ko.xml.bz2", pages(20))


def test_a_page_has_what_the_export_states(dump: Path) -> None:
    page = read(dump)[0]
    assert (page.id, page.title, page.namespace, page.revision) == ("1", "글 1", "0", "1001")
    assert page.timestamp == "2024-01-02T03:04:05Z"
    assert page.text.startswith("'''글 1'''은")
    assert not page.is_redirect
    site = read_site(dump)
    assert (site.dbname, site.lang) == ("kowiki", "ko")
    assert site.url("서울 역") == "https://ko.wikipedia.org/wiki/%EC%84%9C%EC%9A%B8_%EC%97%AD"


def test_redirects_are_known_by_element_and_by_text(dump: Path) -> None:
    assert [page.title for page in read(dump) if page.is_redirect] == ["가", "나"]


@pytest.mark.parametrize("part_bytes", [1, 1500, 10**9])
def test_parts_hold_every_page_once_in_order(dump: Path, part_bytes: int) -> None:
    parts = split(dump, part_bytes)
    assert [parts[0].start, parts[-1].end] == [0, dump.stat().st_size]
    assert all(a.end == b.start for a, b in pairwise(parts))
    assert [page.id for page in read(dump, part_bytes)] == [str(n) for n in range(1, 29)]
    assert (len(parts) > 1) == (part_bytes < 10**9)


def test_plain_xml_and_one_stream_give_the_same_pages(dump: Path, tmp_path: Path) -> None:
    plain, single, odd = tmp_path / "a.xml", tmp_path / "b.xml.bz2", tmp_path / "c.xml.bz2"
    data = bz2.decompress(dump.read_bytes())
    plain.write_bytes(data)
    single.write_bytes(bz2.compress(data))
    # As pbzip2 writes: streams that start anywhere, within a character too.
    odd.write_bytes(b"".join(bz2.compress(data[i : i + 997]) for i in range(0, len(data), 997)))
    assert len(split(plain, 1)) == 29  # the header, and each page
    assert len(split(single, 1)) == 1
    assert read(plain) == read(single) == read(odd) == read(dump)


def test_the_magic_in_a_file_that_is_no_stream_is_no_cut(tmp_path: Path) -> None:
    path = write_multistream(tmp_path / "x.bz2", [page_xml(1, "가", "BZh91AY&SY")])
    assert [page.text for page in read(path)] == ["BZh91AY&SY"]


def test_no_file_of_the_machine_is_read_through_an_entity(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    doctype = f'<!DOCTYPE mediawiki [<!ENTITY e SYSTEM "{Path(__file__).as_uri()}">]>\n'
    path.write_text(doctype + HEADER + page_xml(1, "가", "나").replace("나<", "나&e;<") + FOOTER, encoding="utf-8")
    with pytest.raises(CorpusError, match=r"page '가' holds an entity or element in its text; plain text is expected"):
        read(path, 10**9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"x\.bz2 does not exist; give a MediaWiki export"),
        (b"", r"is empty; a MediaWiki export is expected; fetch the dump again"),
        (b"\x1f\x8b\x08gzip", r"starts with b'\\x1f.*; bz2 \(BZh\) or XML \(<\) is expected; decompress it first"),
        (
            b"<html><body>404</body></html>",
            r"starts with b'<html>.*a MediaWiki export has <mediawiki>; give a page dump",
        ),
        (b"BZh9" + b"x" * 100, r"the bz2 stream at byte 0 is corrupt"),
        ((HEADER + page_xml(1, "가", "나") + "<page><oops>").encode(), r"broken XML after page '가', near byte \d+: "),
        ((HEADER + "<page></pag>").encode(), r"broken XML before the first page"),
    ],
)
def test_a_file_that_is_no_dump_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.bz2"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        read(path, 10**9)


def test_truncated_and_corrupt_streams_are_named_by_their_offset(dump: Path) -> None:
    data = dump.read_bytes()
    starts = [match.start() for match in re.finditer(rb"BZh9", data)]
    dump.write_bytes(data[: starts[3] + 200])
    with pytest.raises(
        CorpusError, match=rf"stream at byte {starts[3]} is truncated, the file ends at byte {starts[3] + 200}"
    ):
        read(dump)
    damaged = bytearray(data)
    damaged[starts[3] + 60] ^= 0xFF
    dump.write_bytes(damaged)
    with pytest.raises(CorpusError, match=rf"stream at byte {starts[3]} is corrupt; .*; fetch the dump again"):
        read(dump)
