import bz2
import gzip
import io
import pickle
import re
import sys
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard

from data_prep.document import CorpusError, Document
from data_prep.source import Loss, Rejection
from data_prep.wiki.dump import Dump, open_dump
from data_prep.wiki.pages import Page, parse_page
from tests.unit.data_prep.dump_files import FOOTER, HEADER, article, page_xml, pages, write_multistream

PACK: dict[str, Callable[[bytes], bytes]] = {
    "xml": lambda data: data,
    "bz2": bz2.compress,
    "gz": gzip.compress,
    "zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def records(dump: Dump, folder: Path, part_bytes: int = 1) -> tuple[list[Document | Rejection], list[Loss]]:
    """Returns all that a dump yields, with its parts written to `folder` where that is needed."""
    folder.mkdir(exist_ok=True)
    found: list[Document | Rejection] = []
    losses: list[Loss] = []
    for part in dump.stream(part_bytes, folder, lambda index: None):
        if part is not None:
            reader = dump.read(part)
            found += list(reader)
            losses += reader.losses
    return found, losses + dump.losses


def read(path: Path, part_bytes: int = 1, folder: Path | None = None) -> list[Document | Rejection]:
    found, losses = records(open_dump([path], "ko"), folder or path.with_name("work"), part_bytes)
    assert losses == []
    return found


def ids(found: list[Document | Rejection]) -> list[int]:
    return [int(item.id.rpartition("-")[2]) for item in found]


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    return write_multistream(tmp_path / "ko.xml.bz2", pages(20))


@pytest.fixture
def xml(dump: Path) -> bytes:
    return bz2.decompress(dump.read_bytes())


def test_a_document_has_what_the_export_states(dump: Path) -> None:
    first = read(dump)[0]
    assert isinstance(first, Document)
    assert (first.id, first.title, first.source, first.lang, first.revision) == (
        "kowiki-1",
        "글 1",
        "kowiki",
        "ko",
        "1001",
    )
    assert first.timestamp == "2024-01-02T03:04:05Z"
    assert first.text.startswith("글 1은 시험 문서이다. 1번 문서의")
    assert first.url == "https://ko.wikipedia.org/wiki/%EA%B8%80_1"


@pytest.mark.parametrize("part_bytes", [1, 1500, 10**9])
def test_parts_hold_every_page_once_in_order(dump: Path, tmp_path: Path, part_bytes: int) -> None:
    parts = open_dump([dump], None).parts(max(part_bytes, 1500))
    assert [parts[0].start, parts[-1].end] == [0, dump.stat().st_size]
    assert all(a.end == b.start for a, b in pairwise(parts))
    assert ids(read(dump, part_bytes)) == list(range(1, 29))
    assert (len(parts) > 1) == (part_bytes < 10**9)


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("part_bytes", [1, 997, 5000, 10**9])
def test_any_packing_gives_the_same_pages(dump: Path, xml: bytes, kind: str, part_bytes: int) -> None:
    other = dump.with_name("dump-without-a-suffix")
    other.write_bytes(PACK[kind](xml))
    assert read(other, part_bytes) == read(dump)


@pytest.mark.parametrize("kind", ["bz2", "gz", "zst"])
@pytest.mark.parametrize("part_bytes", [1, 3000])
def test_streams_may_start_anywhere(dump: Path, xml: bytes, kind: str, part_bytes: int) -> None:
    odd = dump.with_name("odd")
    odd.write_bytes(b"".join(PACK[kind](xml[i : i + 997]) for i in range(0, len(xml), 997)))  # as pbzip2 and pzstd do
    assert len(open_dump([odd], None).parts(3000)) > 3
    assert read(odd, part_bytes) == read(dump)


@pytest.mark.parametrize("kind", PACK)
def test_a_pipe_gives_the_same_pages(dump: Path, xml: bytes, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PACK[kind](xml))))
    assert read(Path("-"), 5000, dump.with_name("work")) == read(dump)


@pytest.mark.parametrize("kind", ["bz2", "gz", "zst"])
def test_a_single_stream_is_cut_for_several_workers(dump: Path, xml: bytes, kind: str, tmp_path: Path) -> None:
    single = tmp_path / "single"
    single.write_bytes(PACK[kind](xml))
    size = single.stat().st_size
    source = open_dump([single], None)
    (tmp_path / "work").mkdir()
    for part_bytes, is_cut in ((size, False), (size - 1, True), (size // 3, True)):
        parts = [part for part in source.stream(part_bytes, tmp_path / "work", lambda index: None) if part]
        assert (len(parts) > 1) == is_cut


def test_padding_behind_a_stream_is_none(dump: Path, xml: bytes) -> None:
    padded = dump.with_name("padded.gz")
    padded.write_bytes(gzip.compress(xml[:5000]) + gzip.compress(xml[5000:]) + bytes(10_000))
    assert read(padded, 10**9) == read(dump)


def test_the_start_of_a_stream_by_chance_is_no_cut(tmp_path: Path) -> None:
    path = write_multistream(tmp_path / "x.bz2", [page_xml(1, "가", "BZh91AY&SY")])
    assert ids(read(path)) == [1]
    # Stored blocks of gzip hold their text as it is, so another stream's first bytes may stand in one.
    compressor = zlib.compressobj(0, wbits=31)
    text = HEADER.encode() + b"\x1f\x8b\x08\x00\0\0\0\0\0\x03" + page_xml(1, "가", "나").encode() + FOOTER.encode()
    path.write_bytes(compressor.compress(text) + compressor.flush())
    assert ids(read(path)) == [1]


def test_several_files_are_one_dump(dump: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.xml.gz"
    text = HEADER + page_xml(900, "나", article(900)) + FOOTER
    second.write_bytes(gzip.compress(text.encode()))
    found, losses = records(open_dump([dump, second], None), tmp_path / "work", 3000)
    assert (ids(found), losses) == ([*range(1, 29), 900], [])


def test_a_source_can_be_sent_to_a_worker(dump: Path) -> None:
    source = pickle.loads(pickle.dumps(open_dump([dump], None)))
    assert next(iter(source.read(source.parts(10**9)[0]))).id == "kowiki-1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("#넘겨주기 [[나]]", "redirect"),
        ("#REDIRECT [[나]]", "redirect"),
        ("#redirect:[[나]]", "redirect"),
        ("#Redirect : [[나]]", "redirect"),
        ("\ufeff\n #넘겨주기[[나]]", "redirect"),
        ("# redirect [[나]]", "redirect"),
        ("# Redirect는 넘겨주기이다.", None),
        ("{{동음이의}}", "disambiguation"),
        ("{{ 틀:동음이의어 | 가 }}", "disambiguation"),
        ("{{disambiguation}}", "disambiguation"),
        ("가는 나이다.", None),
    ],
)
def test_pages_that_are_no_articles_are_rejected(tmp_path: Path, text: str, reason: str | None) -> None:
    path = write_multistream(tmp_path / "x", [page_xml(1, "가", text)])
    assert getattr(read(path)[0], "reason", None) == reason


def test_more_pages_that_are_no_articles(tmp_path: Path) -> None:
    rows = [
        page_xml(1, "가", "나", redirect=True),
        page_xml(2, "틀:가", "나", namespace=10),
        page_xml(3, "가 (동음이의)", "나"),
        page_xml(4, "가.js", "나").replace("<model>wikitext", "<model>javascript"),
    ]
    found = read(write_multistream(tmp_path / "x", rows))
    assert [getattr(item, "reason", None) for item in found] == [
        "redirect",
        "namespace",
        "disambiguation",
        "not_wikitext",
    ]


@pytest.mark.parametrize(("namespace", "redirect", "reason"), [(10, False, "namespace"), (0, True, "redirect")])
def test_what_is_no_article_is_known_by_its_first_elements(
    tmp_path: Path, namespace: int, redirect: bool, reason: str
) -> None:
    """Most pages need no parsing, so nothing is lost where one of them is broken behind these elements."""
    page = page_xml(1, "가 & 나", "다", namespace, redirect)
    path = tmp_path / "x.xml"
    for text in (page, page.replace("다<", "<b>다<")):
        path.write_text(HEADER + text + page_xml(2, "가", "나") + FOOTER, encoding="utf-8")
        found, losses = records(open_dump([path], None), tmp_path / "work")
        assert [getattr(item, "reason", None) for item in found] == [reason, None]
        assert (ids(found), losses) == ([1, 2], [])
    path.write_text(HEADER + page.replace("</page>", "") + page_xml(2, "가", "나") + FOOTER, encoding="utf-8")
    found, losses = records(open_dump([path], None), tmp_path / "work")
    assert [getattr(item, "reason", None) for item in found] == ["broken_page", None]
    assert "</page> is missing" in losses[0].cause


def test_namespaces_come_from_titles_where_pages_do_not_state_them(tmp_path: Path) -> None:
    names = '<namespaces><namespace key="0" case="first-letter"/><namespace key="4">위키백과</namespace></namespaces>'
    header = HEADER.replace("  </siteinfo>", f"{names}<case>first-letter</case>  </siteinfo>")
    titles = ["위키백과:사랑방", "위키백과 : 가", "template:Foo_bar", "File talk:가", "스타 트렉: 보이저", "가"]
    rows = "".join(page_xml(i, title, "나").replace("    <ns>0</ns>\n", "") for i, title in enumerate(titles))
    path = tmp_path / "x.xml"
    path.write_text(header + rows + FOOTER, encoding="utf-8")
    reasons = [getattr(item, "reason", None) for item in read(path)]
    assert reasons == ["namespace", "namespace", "namespace", "namespace", None, None]
    site = open_dump([path], None).site
    assert (site.namespaces, site.case, site.sitename) == (((0, ""), (4, "위키백과")), "first-letter", "위키백과")


def test_of_several_revisions_the_last_counts() -> None:
    revision = "<revision><id>{}</id><timestamp>t</timestamp><text>{}</text></revision>"
    xml = f"<page><title>가</title><ns>0</ns><id>1</id>{revision.format(5, 'old')}{revision.format(6, 'new')}</page>"
    assert parse_page(xml.encode()) == Page("1", "가", 0, "6", "t", "wikitext", "new", False)


def test_a_page_that_is_too_large_is_rejected_and_the_next_one_read(tmp_path: Path) -> None:
    rows = [page_xml(1, "가", "나" * 100), page_xml(2, "큰 글", "나" * 300_000), page_xml(3, "다", "나" * 100)]
    path = write_multistream(tmp_path / "x", rows, pages_per_stream=3)
    for max_bytes in (1000, 600_000, 900_000):  # it ends in the first piece, in another one, and just above the limit
        for part_bytes in (1, 10**9):
            found, losses = records(open_dump([path], None, max_page_bytes=max_bytes), tmp_path / "work", part_bytes)
            assert found[1] == Rejection("kowiki-2", "큰 글", "page_too_large")
            assert (ids(found), losses) == ([1, 2, 3], [])
    assert isinstance(records(open_dump([path], None, max_page_bytes=901_000), tmp_path / "work")[0][1], Document)


def damaged(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def stream_starts(dump: Path) -> list[int]:
    return [match.start() for match in re.finditer(rb"BZh9", dump.read_bytes())]


@pytest.mark.parametrize("part_bytes", [1500, 10**9])
def test_a_corrupt_stream_costs_its_pages_only(dump: Path, tmp_path: Path, part_bytes: int) -> None:
    starts = stream_starts(dump)
    dump.write_bytes(damaged(dump.read_bytes(), starts[3] + 60))
    found, losses = records(open_dump([dump], None), tmp_path / "work", part_bytes)
    assert ids(found) == [*range(1, 11), *range(16, 29)]
    assert [(loss.file, loss.start, loss.end) for loss in losses] == [(str(dump), starts[3], starts[4])]
    assert re.fullmatch(r"the bz2 stream is corrupt \(Invalid data stream\)", losses[0].cause)


@pytest.mark.parametrize("part_bytes", [1500, 10**9])
def test_a_truncated_file_costs_its_last_stream(dump: Path, tmp_path: Path, part_bytes: int) -> None:
    starts = stream_starts(dump)
    dump.write_bytes(dump.read_bytes()[: starts[4] + 200])
    found, losses = records(open_dump([dump], None), tmp_path / "work", part_bytes)
    assert ids(found) == list(range(1, 16))
    assert losses == [Loss(str(dump), starts[4], starts[4] + 200, "the bz2 stream is truncated")]


@pytest.mark.parametrize("part_bytes", [1500, 10**9])
def test_a_file_that_ends_between_two_streams_is_noticed(dump: Path, tmp_path: Path, part_bytes: int) -> None:
    starts = stream_starts(dump)
    dump.write_bytes(dump.read_bytes()[: starts[4]])
    found, losses = records(open_dump([dump], None), tmp_path / "work", part_bytes)
    assert ids(found) == list(range(1, 16))
    assert losses == [Loss(str(dump), starts[4], starts[4], "the export ends without </mediawiki>")]


@pytest.mark.parametrize("kind", ["bz2", "gz", "zst"])
def test_what_comes_before_damage_in_a_single_stream_is_kept(tmp_path: Path, kind: str) -> None:
    rows = [page_xml(n, f"글 {n}", article(n)) for n in range(1, 1500)]
    data = PACK[kind]((HEADER + "".join(rows) + FOOTER).encode())
    path = tmp_path / "x"
    path.write_bytes(damaged(data, len(data) * 3 // 4) if kind == "bz2" else data[: len(data) * 3 // 4])
    found, losses = records(open_dump([path], None), tmp_path / "work", 10_000)
    whole = ids([item for item in found if isinstance(item, Document)])
    assert len(whole) > 700
    assert whole == list(range(1, len(whole) + 1))
    assert (losses[-1].start, losses[-1].end) == (0, path.stat().st_size)
    assert re.match(rf"the {kind} stream is (corrupt|truncated)", losses[-1].cause)


def test_a_damaged_member_of_a_pipe_costs_its_pages(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = stream_starts(dump)
    data = damaged(dump.read_bytes(), starts[3] + 60)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    found, losses = records(open_dump([Path("-")], None), tmp_path / "work", 2000)
    assert ids(found) == [*range(1, 11), *range(16, 29)]
    assert [(loss.file, loss.start, loss.end) for loss in losses] == [("standard input", starts[3], starts[4])]


def test_a_pipe_goes_on_behind_damage_that_comes_late_in_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [page_xml(n, f"글 {n}", article(n)) for n in range(1, 1000)]
    first, second = ("".join(rows[:990]), "".join(rows[990:]))
    stream = bz2.compress((HEADER + first).encode())
    data = damaged(stream, len(stream) - 100) + bz2.compress((second + FOOTER).encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    found, losses = records(open_dump([Path("-")], None), tmp_path / "work", 10**6)
    assert 500 < len(found) < 999
    assert ids(found)[-9:] == list(range(991, 1000))
    assert (0, len(stream)) in [(loss.start, loss.end) for loss in losses]


def test_damage_in_the_middle_of_a_page_makes_no_page_of_two_halves(tmp_path: Path) -> None:
    rows = [page_xml(n, f"글 {n}", article(n)) for n in range(1, 9)]
    data = (HEADER + "".join(rows) + FOOTER).encode()
    size = len(HEADER.encode() + rows[0].encode()) + 100
    streams = [bz2.compress(data[i : i + size]) for i in range(0, len(data), size)]
    place = len(streams[0]) + len(streams[1]) + 60
    (tmp_path / "x").write_bytes(damaged(b"".join(streams), place))
    source = open_dump([tmp_path / "x"], None)
    for part_bytes in (1, 10**9):
        found, losses = records(source, tmp_path / "work", part_bytes)
        assert all(isinstance(item, Document) for item in found)
        assert [item.text.count("번째 문장은") for item in found if isinstance(item, Document)] == [30] * len(found)
        assert 5 <= len(found) <= 6
        assert any(loss.end == place - 60 + len(streams[2]) for loss in losses)


@pytest.mark.parametrize(
    ("broken", "cause"),
    [
        (b"<page><title>x</title><id>7</id><oops></page>", r"broken XML: .*oops"),
        (
            page_xml(7, "x", "가").encode().replace("가".encode(), b"\xb0\xa1"),
            r"broken XML: Invalid bytes in character encoding",
        ),
        (page_xml(7, "x", "y").replace("y<", "y&e;<").encode(), r"broken XML: Entity 'e' not defined"),
        (page_xml(7, "x", "y").replace("y<", "<b>y</b><").encode(), r"its text holds the element or entity 'y'"),
        (page_xml(7, "x", "y").replace("<id>7</id>", "<id>seven</id>").encode(), r"its id is 'seven', a number is exp"),
        (page_xml(7, "x", "y").replace("<ns>0", "<ns>main").encode(), r"its namespace is 'main', a number is expected"),
        (page_xml(7, "x", "y").replace("</page>", "").encode(), r"</page> is missing"),
    ],
)
def test_a_broken_page_costs_itself_only(tmp_path: Path, broken: bytes, cause: str) -> None:
    before, after = page_xml(1, "가", "나").encode(), page_xml(2, "다", "라").encode()
    data = HEADER.encode() + before + broken + after + FOOTER.encode()
    path = tmp_path / "x.xml"
    path.write_bytes(data)
    for part_bytes in (1, 10**9):
        found, losses = records(open_dump([path], None), tmp_path / "work", part_bytes)
        assert [item.id for item in found if isinstance(item, Document)] == ["kowiki-1", "kowiki-2"]
        assert [item.reason for item in found if isinstance(item, Rejection)] == ["broken_page"]
        assert re.search(cause, losses[0].cause)
        (loss,) = losses
        assert data[loss.start : loss.end].strip() == broken.strip()
        assert not loss.decompressed
    path.write_bytes(gzip.compress(data))
    found, losses = records(open_dump([path], None), tmp_path / "work", 1)
    (loss,) = losses
    assert data[loss.start : loss.end].strip() == broken.strip()
    assert (loss.decompressed, loss.file) == (True, str(path))
    assert str(loss).startswith(f"{path}: bytes {loss.start} to {loss.end} of its decompressed content: page 'x'")


def test_a_page_without_an_end_at_the_end_of_the_file_is_a_loss(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    data = (HEADER + page_xml(1, "가", "나")).encode()
    path.write_bytes(data + b"<page><title>broken off</title>")
    found, losses = records(open_dump([path], None), tmp_path / "work", 10**9)
    assert ids(found) == [1]
    assert losses == [Loss(str(path), len(data), len(data) + 31, "page 'broken off' has no </page>")]


def test_no_file_of_the_machine_is_read_through_an_entity(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    doctype = f'<!DOCTYPE mediawiki [<!ENTITY e SYSTEM "{Path(__file__).as_uri()}">]>\n'
    path.write_text(doctype + HEADER + page_xml(1, "가", "나").replace("나<", "나&e;<") + FOOTER, encoding="utf-8")
    found, losses = records(open_dump([path], None), tmp_path / "work", 10**9)
    assert [item.reason for item in found if isinstance(item, Rejection)] == ["broken_page"]
    assert "Entity 'e' not defined" in losses[0].cause


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"x\.bz2 does not exist; give a MediaWiki export"),
        (b"", r"is empty; a MediaWiki export is expected; fetch the dump again"),
        (b"PK\x03\x04zip", r"x\.bz2 is zip; UTF-8 XML \(<\), bz2, gz or zst is expected; give a page dump"),
        (b"\xff\xfe<\0", r"x\.bz2 is UTF-16; UTF-8 XML"),
        (b"title,text", r"x\.bz2 starts with b'title,te'; UTF-8 XML"),
        (
            b"<html><body>404</body></html>",
            r"starts with b'<html>.*a MediaWiki export has <mediawiki>; give a page dump",
        ),
        (b"BZh9" + b"x" * 100, r"the bz2 stream is corrupt .* at byte 0; an export starts with the description"),
        (bz2.compress(HEADER.encode())[:90], r"the bz2 stream is truncated at byte 0; an export starts with"),
        (
            b"<?xml version='1.0' encoding='EUC-KR'?><mediawiki>",
            r"declares the encoding EUC-KR; .* are UTF-8; convert it",
        ),
        (b"<mediawiki><siteinfo><a></siteinfo><page>", r"its <siteinfo> is broken: .*; fetch the dump again"),
        (
            b"<mediawiki><page></page></mediawiki>",
            r"names the wiki '' at ''; kowiki or enwiki is known; pass --lang ko",
        ),
    ],
)
def test_a_file_that_is_no_dump_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.bz2"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        open_dump([path], None)


def test_more_inputs_that_cannot_be_used_are_named(dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CorpusError, match=rf"{tmp_path} is no file; a MediaWiki export is expected; for a pipe give"):
        open_dump([tmp_path], None)
    with pytest.raises(CorpusError, match=r"--dump names .*ko\.xml\.bz2 twice; each file is read once; name it once"):
        open_dump([dump, dump], None)
    other = tmp_path / "en.xml"
    other.write_text(HEADER.replace("kowiki", "enwiki") + FOOTER, encoding="utf-8")
    with pytest.raises(CorpusError, match=r"en\.xml is of the wiki 'enwiki', .*bz2 of 'kowiki'; one wiki per run"):
        open_dump([dump, other], None)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(CorpusError, match=r"standard input is empty; a MediaWiki export is expected; pipe one into"):
        open_dump([Path("-")], None)


def test_a_file_without_permission_is_named(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # the tests may run as root, who may read everything
    with pytest.raises(CorpusError, match=r"cannot be read: Permission denied; permission to read it is needed"):
        open_dump([dump], None)
