import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from data_prep.corpus.report import SAMPLES, length_histogram, write_report
from data_prep.document import CorpusError, Document, as_row, write_jsonl
from data_prep.wiki.unknown import UnknownTemplates

VOID = {"meta", "br"}


class Checker(HTMLParser):
    """Keeps the visible text, and complains about tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def shown(folder: Path) -> str:
    checker = Checker()
    checker.feed((folder / "report.html").read_text(encoding="utf-8"))
    assert not checker.open
    assert not checker.loaded
    return " ".join(" ".join(checker.text).split())


def rejected() -> list[dict[str, Any]]:
    short = [Document(f"w-{n}", f"짧은 글 {n}", title=f"제목 {n}") for n in range(10, 50)]
    rows = [as_row(document, reason="too_short", detail="7 characters < 200") for document in short]
    script = Document("w-9", "<script>alert('나')</script>" * 20, title="<b>&")
    return [*rows, as_row(script, reason="leftover_markup")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "rejected-00000.jsonl.zst", rejected())
    return tmp_path


def facts() -> dict[str, Any]:
    unknown = UnknownTemplates()
    for title in ("서울", "부산"):
        unknown.add("지하철역 정보", "{{지하철역 정보|이름=<시청>}}", title)
    unknown.add("드문 틀", "{{드문 틀}}", "대구")
    return {
        "ledger": {"in": 1045, "out": 4, "dropped": {"redirect": 1000, "too_short": 40, "leftover_markup": 1}},
        "counts": {"documents": 4, "characters": 12750},
        "lengths": [
            {"from": start, "documents": number} for start, number in length_histogram([150, 600, 2400, 9600]).items()
        ],
        "changes": {"pii_email": 3, "odd_spaces": 17},
        "unknown_templates": unknown.as_json(),
        "settings": {"lang": "ko"},
    }


def test_the_numbers_are_those_of_the_folder(folder: Path) -> None:
    write_report(folder, facts())
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["ledger"] == facts()["ledger"]
    assert report["dropped_characters"] == {"too_short": 40 * 7, "leftover_markup": 20 * 27}
    lengths = {row["from"]: row["documents"] for row in report["lengths"] if row["documents"]}
    assert lengths == {100: 1, 500: 1, 2000: 1, 5000: 1}
    assert {reason: len(samples) for reason, samples in report["samples"].items()} == {
        "too_short": SAMPLES,
        "leftover_markup": 1,
    }
    sample = report["samples"]["leftover_markup"][0]
    assert sample == {"id": "w-9", "title": "<b>&", "detail": "", "text": ("<script>alert('나')</script>" * 20)[:200]}


def test_the_page_says_it_all_and_needs_nothing_else(folder: Path) -> None:
    write_report(folder, facts())
    text = shown(folder)
    for part in (
        "4 of 1,045 records stay (0.4 %). They hold 12,750 characters.",
        "redirect 1,000 95.7 % – a redirect",
        "too_short 40 3.8 % 280 fewer characters than min_chars",
        "500 – 999 1 25.0 %",
        "pii_email 3 e-mail addresses replaced",
        "too_short (5 of 40)",
        "7 characters < 200",
        "<script>alert('나')</script>",
        "지하철역 정보 2 {{지하철역 정보|이름=<시청>}} 서울",
        "The 2 most frequent of 2",
    ):
        assert part in text, part
    assert "<script" not in (folder / "report.html").read_text(encoding="utf-8")
    assert not list(folder.glob("*.tmp"))


def test_samples_are_spread_and_the_same_in_any_order(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    write_report(folder, facts())
    titles = [s["title"] for s in json.loads((folder / "report.json").read_text())["samples"]["too_short"]]
    assert titles != [f"제목 {n}" for n in range(10, 15)]
    first = (folder / "report.html").read_bytes(), (folder / "report.json").read_bytes()
    write_jsonl(folder / "rejected-00000.jsonl.zst", reversed(rejected()))
    write_report(folder, facts())
    assert first == ((folder / "report.html").read_bytes(), (folder / "report.json").read_bytes())


def test_a_run_that_dropped_nothing(tmp_path: Path) -> None:
    write_report(tmp_path, {"ledger": {"in": 1, "out": 1, "dropped": {}}})
    text = shown(tmp_path)
    assert "1 of 1 records stay (100.0 %)." in text
    assert "None was." in text
    assert "Samples" not in text


def test_a_damaged_file_is_named(folder: Path) -> None:
    (folder / "rejected-00000.jsonl.zst").write_bytes(b"no zstd")
    with pytest.raises(CorpusError, match=r"rejected-00000\.jsonl\.zst is no zstd file, or damaged"):
        write_report(folder, facts())
    assert not (folder / "report.json").exists()


@pytest.mark.parametrize(("length", "start"), [(0, 0), (49, 0), (50, 50), (199, 100), (200, 200), (10**9, 100_000)])
def test_lengths_are_counted_by_their_bin(length: int, start: int) -> None:
    counts = length_histogram([length, length])
    assert {low: number for low, number in counts.items() if number} == {start: 2}
