from pathlib import Path

import pytest

from data_prep.document import CorpusError
from data_prep.wiki import brackets
from data_prep.wiki.formats import countries
from data_prep.wiki.templates import load_table
from data_prep.wiki.wikitext import clean


def test_own_templates_are_laid_over_the_table(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        'text:\n  "{1}[ ({2})]": [내 틀]\n  "[[{1:date}]]": [내 날짜]\naside:\n  "{1}": [내 소리]\n'
        'drop: [한자]\npatterns:\n  "^(별|달) ": "별"\ndisambiguation: [내 동음이의]\n',
        encoding="utf-8",
    )
    table = load_table("ko", own)
    page = brackets.Page(table)
    assert clean("가 {{내 틀|나|다}} {{내 틀|라}} {{한자|數}}{{별 하나}}", page=page) == "가 나 (다) 라 별"
    assert clean("{{내 날짜|2000|1}} {{내 소리|나}} ({{내 소리|나}}) {{lang|en|a}}", page=page) == "[2000년 1월] 나 a"
    assert table.disambiguation.search("{{내_동음이의}}")
    assert table.disambiguation.search("{{동음이의}}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"own\.yaml does not exist; give a YAML file"),
        ("text: [", r"is not YAML: .*; see templates_ko\.yaml"),
        ("texts: {}", r"holds \['texts'\]; the keys are text, aside"),
        ("text: [a]", r"text is no mapping; write `FORMAT: \[names\]` lines"),
        ("text: {'{1}': a}", r"text: '\{1\}' holds 'a'; a list of template names is expected; write \[a\]"),
        ("drop: a", r"drop holds 'a'; a list of template names is expected; write \[a\]"),
        ("text: {'{1:datum}': [a]}", r"'datum' in '\{1:datum\}' is no change; the changes are convert, country, date"),
        ("patterns: {'(': ''}", r"pattern '\(' is no regular expression"),
    ],
)
def test_a_broken_template_table_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    own = tmp_path / "own.yaml"
    if content is not None:
        own.write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        load_table("ko", own)


def test_names_and_dates_are_in_the_language_of_the_page() -> None:
    wikitext = "* {{USA}} {{flag|KOR}}, {{start date|2000|1|2}}"
    assert clean(wikitext, lang="ko") == "미국 대한민국, 2000년 1월 2일"
    assert clean(wikitext, lang="en") == "United States South Korea, January 2, 2000"


def test_a_country_by_itself_is_a_navigation_box() -> None:
    assert clean("가.\n\n{{대한민국}}\n{{KOR}}") == "가."
    assert clean("* {{대한민국}} 서울") == "대한민국 서울"
    assert clean("가 {{com}} 나", lang="en") == "가 나"  # a code is written in capitals


def test_country_codes_are_unambiguous() -> None:
    assert countries("ko")["kor"] == "대한민국"
    assert countries("en")["kor"] == "South Korea"
    assert len(set(countries("ko").values())) == len(set(countries("en").values())) > 200


def test_what_is_current_is_so_for_the_revision() -> None:
    wikitext = "{{CURRENTYEAR}}년 {{CURRENTMONTH1}}월 {{CURRENTDAY}}일의 {{PAGENAME}} {{CURRENTMONTH}}"
    page = brackets.Page(load_table("ko"), "서울", timestamp="2021-08-07T23:49:40Z")
    assert clean(wikitext, page=page) == "2021년 8월 7일의 서울 08"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("{{#switch:b|a|b=나|다}}", "나"),
        ("{{#switch:a|a|b=나|다}}", "나"),
        ("{{#switch:x|a=가|#default=나}}", "나"),
        ("{{#switch:x|a=가}}", ""),
        ("{{#ifeq:1|2|가}}", ""),
        ("{{#if: |가| 나 }}", "나"),
        ("{{#expr: -(2+4)/3}}", "-2"),
        ("{{#expr: 2**9}}", ""),
        ("{{#expr: __import__('os')}}", ""),
        ("{{#expr: 1/0}}{{#expr: 09}}{{#expr: (}}", ""),
        ("{{LC: ABC}}{{ucfirst:abc}}{{lcfirst:ABC}}", "abcAbcaBC"),
    ],
)
def test_parser_functions(call: str, text: str) -> None:
    assert clean(call) == text
