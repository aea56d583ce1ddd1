import json

import pytest

from data_prep.wiki import unknown
from data_prep.wiki.brackets import Page
from data_prep.wiki.templates import load_table
from data_prep.wiki.unknown import UnknownTemplates
from data_prep.wiki.wikitext import clean


def test_counts_and_first_three_calls_are_kept() -> None:
    counts = UnknownTemplates()
    for number in range(5):
        counts.add("가", "{{가|" + str(number) * 200 + "}}", f"문서 {number}")
    assert counts.as_json() == {
        "가": {
            "count": 5,
            "examples": [{"title": f"문서 {n}", "call": ("{{가|" + str(n) * 200)[:120]} for n in range(3)],
        }
    }


def test_most_frequent_come_first_then_by_name() -> None:
    counts = UnknownTemplates()
    for name in ["나", "다", "가", "다", "라"]:
        counts.add(name, name, "")
    assert list(counts.as_json()) == ["다", "가", "나", "라"]
    assert list(counts.as_json(top=2)) == ["다", "가"]


def test_merged_parts_equal_the_whole() -> None:
    calls = [("가", "1", "a"), ("나", "2", "b"), ("가", "3", "c"), ("가", "4", "d"), ("가", "5", "e"), ("나", "6", "f")]
    whole, merged = UnknownTemplates(), UnknownTemplates()
    for call in calls:
        whole.add(*call)
    for part in (calls[:2], calls[2:3], [], calls[3:]):
        counts = UnknownTemplates()
        for call in part:
            counts.add(*call)
        merged.merge(counts)
    assert merged.as_json() == whole.as_json()


def test_counts_survive_json() -> None:
    counts = UnknownTemplates()
    counts.add("가", "{{가}}", "문서")
    again = UnknownTemplates.from_json(json.loads(json.dumps(counts.as_json())))
    again.add("가", "{{가|2}}", "문서")
    assert again.as_json()["가"]["count"] == 2
    assert len(counts) == 1
    assert counts.as_json()["가"]["count"] == 1


def test_memory_is_bounded_and_frequent_names_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unknown, "MAX_NAMES", 10)
    counts = UnknownTemplates()
    for number in range(100):
        counts.add("흔한 틀", "{{흔한 틀}}", "")
        counts.add(f"틀 {number}", "", "")
        assert len(counts) <= 10
    assert counts.as_json()["흔한 틀"]["count"] == 100
    merged = UnknownTemplates()
    for _ in range(3):
        merged.merge(counts)
        assert len(merged) <= 10
    assert merged.as_json()["흔한 틀"]["count"] == 300


def test_cleaning_a_page_counts_its_unknown_templates() -> None:
    page = Page(load_table("ko"), "문서")
    clean("가 {{없는 틀|1}} 나 {{없는_틀|2}} {{lang|en|a}} {{인물 정보|가}}", page=page)
    examples = [{"title": "문서", "call": "{{없는 틀|1}}"}, {"title": "문서", "call": "{{없는_틀|2}}"}]
    assert page.unknown.as_json() == {"없는 틀": {"count": 2, "examples": examples}}
