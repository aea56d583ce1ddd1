import importlib.util
import json
import random
import re
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.document import CorpusError
from data_prep.wiki import brackets
from data_prep.wiki.templates import load_table
from data_prep.wiki.wikitext import clean

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"

GOLDEN = [
    # Templates that hold text: names, dates, units, hanja, flags, ruby (pitfall 1).
    ("'''홍길동'''({{llang|en|Hong}}, [[1924년]] ~ )은", "홍길동(Hong, 1924년 ~ )은"),
    ("{{출생일|1924|10|1}}, {{출생일과 나이|1938|1|18}}", "1924년 10월 1일, 1938년 1월 18일"),
    ("{{출생일|1924}}생", "1924년생"),
    ("길이 {{convert|10|km|mi|abbr=on}}, {{convert|5|to|8|kg}}", "길이 10 km, 5–8 kg"),
    ("인구 {{formatnum:12345}}명", "인구 12345명"),
    ("{{한자|數學}} {{ko-hhrm|대한민국|大韓民國}}", "數學 대한민국, 大韓民國"),
    ("{{ko-hhrm|한글=수학|한자=數學}}", "수학, 數學"),
    ("{{국기나라|독일}}의 {{ruby|漢字|한자}}", "독일의 漢字(한자)"),
    ("{{lang-en|Water}} and {{Birth date|1924|10|1}}", "Water and October 1, 1924"),
    ("{{lang|ja|{{ruby|東京|とうきょう}}}}는", "東京(とうきょう)는"),
    # Parentheses after a removal (2).
    ("홍길동({{소리|a.ogg}}, 1924년 ~ )", "홍길동(1924년 ~ )"),
    ("홍길동({{소리|a.ogg}})은", "홍길동은"),
    ("홍길동(, 1924년)과 () 임꺽정( ~ )은", "홍길동(1924년)과 임꺽정은"),
    ("홍길동(洪吉童, {{소리|a}}, 1924년)", "홍길동(洪吉童, 1924년)"),
    ("함수 print()는 f(x)다", "함수 print()는 f(x)다"),
    # Particles behind links and addresses (3).
    ("[[서울특별시|서울]]은 [http://a.kr 누리집]에서", "서울은 누리집에서"),
    ("http://www.korea.kr에서 볼 수 있다", "http://www.korea.kr에서 볼 수 있다"),
    ("[[서울 (영화)|]]과 [[제목: 부제]]", "서울과 제목: 부제"),
    # Quotations (4) and list items that are a template (5).
    ("{{인용문|첫째 문단.\n\n둘째 문단.|누구}}", "첫째 문단.\n\n둘째 문단."),
    ("{{Quote box|quote=말이다.|source=누구}}\n뒤", "말이다.\n뒤"),
    ("* {{범례|#EB001F|[[당]] (21.6%, 38석)}}\n* {{USA}} [[로스앤젤레스]]", "당 (21.6%, 38석)\n미국 로스앤젤레스"),
    ("* {{모르는 틀|#fff|[[가나]] 다라}}", "가나 다라"),
    ("앞 {{모르는 틀|x}} 뒤", "앞 뒤"),
    ("{{모르는 상자|긴 설명}}\n본문", "본문"),
    # References (6).
    ('가.<ref>출처</ref><ref name=a /> 나<ref name="b">{{웹 인용|url=x}}</ref>.', "가. 나."),
    ("가.<ref>열림 <ref>닫힘</ref> 나.", "가. 나."),
    ("가.<ref>열림\n\n나.<ref>x</ref> 다", "가.\n\n나. 다"),
    # Images and what is glued to them (7, 8).
    ("[[파일:a.png|섬네일|[[가]] 설명 <math>x|y</math>]]본문", "본문"),
    ("[[그림:가나다]][[File:a.jpg|b]][[Image:c]]본문 [[분류:가]]", "본문"),
    ("{{앵커|FFN}}[[파일:a.png]]\n본문", "본문"),
    ('"you{{NNBSP|~~}}me"', '"you me"'),
    # Headings and footers (9).
    ("==역사==\n가.\n== 같이 보기 ==\n* 나\n=== 하위 ===\n다\n==문화==\n라.", "역사\n\n가.\n\n문화\n\n라."),
    ("가.\n== 각주 및 참고 문헌 ==\n나", "가."),
    ("A.\n== External links ==\n* [http://a b]", "A."),
    ("가.\n== 사진 ==\n<gallery>\n파일:a.jpg|나\n</gallery>", "가."),
    # Mathematics and code (10).
    ('값 <math display="block">a|b > {c}</math>', "값 $a|b > {c}$"),
    ("가\n<math>\\frac{1}{2}</math>\n나", "가\n$\\frac{1}{2}$\n나"),
    ("<code>a[[1]] = '''x'''</code>", "a[[1]] = '''x'''"),
    ("<nowiki>'''{{가}}'''</nowiki>", "'''{{가}}'''"),
    # Tables (11).
    ("앞\n{| class=x\n! 가 !! 나\n|-\n| rowspan=2 | 1\n{|\n| 2\n|}\n|}뒤", "앞\n뒤"),
    ("{|\n| 가\n\n다음 문단", "다음 문단"),
    ("앞<table><tr><td>1</td></tr></table>뒤", "앞\n\n뒤"),
    ("절댓값은 |x|이다.\n|x|는 크다.", "절댓값은 |x|이다.\n|x|는 크다."),
    # Magic words (12), indents and lists (14), marks that are text (15).
    ("__목차숨김__ __NOTOC__ {{기본정렬:가}} __init__", "__init__"),
    ("; 용어: 뜻\n: 인용\n z_e ← f(x)\n   더", "용어: 뜻\n인용\nz_e ← f(x)\n  더"),
    ("《태백산맥》 〈가〉 「나」 『다』", "《태백산맥》 〈가〉 「나」 『다』"),
    # Unbalanced markup stays in its paragraph (16).
    ("앞 {{가 나 [[다\n\n둘째 [[문단]].\n\n셋째 {{lang|en|x}}.", "앞 가 나 다\n\n둘째 문단.\n\n셋째 x."),
    ("{{인물 정보\n|이름 = 가\n\n'''본문'''이다.", "본문이다."),
    ("가 ]] 나 }} 다 ''라", "가 나 다 라"),
    # Entities, spaces, invisible characters (17), old Hangul and hanja (18), one line (19).
    ("가&amp;nbsp;나\u00a0다\u200b라\u200f &lt;b&gt;", "가 나 다라 <b>"),
    ("ᄇᆞᆰ (數學)", "ᄇᆞᆰ (數學)"),
    ("한 줄이다.", "한 줄이다."),
    # Special tokens (20).
    ("<nowiki><|endoftext|></nowiki>와 <|im_start|>", "< |endoftext| >와 < |im_start| >"),
    ("&lt;|end\u200bof|&gt;", "< |endof| >"),
    # The rest.
    ("가<!-- 숨김 -->나 <!-- 열림\n다", "가나\n다"),
    ("-{zh-hans:简; zh-hant:繁}- [[en:Foo]] [[:en:Foo|푸]]", "简 푸"),
    ("H<sub>2</sub>O 10<sup>6</sup> 줄<br />바꿈 a<b 와 c>d", "H2O 10⁶ 줄\n바꿈 a<b 와 c>d"),
    ("<includeonly>숨김</includeonly>보임 l''''amour''''", "보임 l'amour'"),
    ("{{다른 뜻|가}}\n:''이 문서는 나에 관한 것입니다.''\n가.", "가."),
]


@pytest.mark.parametrize(("wikitext", "text"), GOLDEN)
def test_markup_becomes_the_text_a_reader_sees(wikitext: str, text: str) -> None:
    assert clean(wikitext) == text


def test_page_name_is_the_title() -> None:
    assert clean("{{PAGENAME}}은 {{문서이름}}이다", "서울") == "서울은 서울이다"


def test_country_names_are_korean_in_korean_only() -> None:
    assert clean("* {{USA}} Boston", lang="en") == "Boston"


def test_templates_below_level_12_are_resolved() -> None:
    assert clean("{{nowrap|" * 30 + "가" + "}}" * 30) == "가"


def test_unknown_templates_are_counted_with_an_example() -> None:
    page = brackets.Page(load_table("ko"))
    clean("가 {{없는 틀|1}} 나 {{없는_틀|2}}", page=page)
    assert page.unknown == {"없는 틀": [2, "{{없는 틀|1}}"]}


PIECES = [*"{}[]|<>='*:#\n-!가a&;_ ()", "{{", "}}", "[[", "]]", "<ref>", "</ref>", "\n{|", "\n|}", "파일:"]


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join) | st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_is_cleaned_to_nfc_without_placeholders(wikitext: str) -> None:
    text = clean(wikitext)
    assert unicodedata.is_normalized("NFC", text)
    assert not any("\ufdd0" <= c <= "\ufdef" for c in text)


HOSTILE = [
    "{{",
    "{{a|",
    "[[",
    "[[파일:a|",
    "[[{{",
    "<ref>",
    "<ref>a\n\n",
    "<math>",
    "<gallery>",
    "{|\n",
    "|}\n",
    "<!--",
    "'",
    "=",
]
HOSTILE += [
    "\n== a ==\n",
    "[http://a b ",
    "(",
    "( , ",
    ",  ",
    " ",
    "&amp;",
    "{{{a|",
    "-{a:",
    "<|a",
    "<br ",
    "<table>",
    "{{x|가}}, ",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_megabyte_of_broken_markup_takes_less_than_five_seconds(unit: str) -> None:
    begin = time.perf_counter()
    clean((unit * 1_000_000)[:1_000_000])
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize(
    "wikitext",
    [
        "{{인용문|" * 100_000 + "}}" * 100_000,
        "{|\n" * 150_000 + "|}\n" * 150_000,
        "<" + " " * 1_000_000,
        "-{" + "a" * 1_000_000,
        "[//a" + "\t" * 1_000_000,
        "{{a|" + " " * 1_000_000 + "}}",
        "a<ref>b\n\n" * 100_000 + "</ref>",
    ],
    ids=["templates", "tables", "tag", "conversion", "link", "argument", "references"],
)
def test_deep_or_long_markup_takes_less_than_five_seconds(wikitext: str) -> None:
    begin = time.perf_counter()
    clean(wikitext)
    assert time.perf_counter() - begin < 5


def test_random_brackets_take_less_than_five_seconds() -> None:
    pick = random.Random(1).choices(
        ["{{", "}}", "[[", "]]", "|", "\n", "<ref>", "</ref>", "가", "{|", "|}", "\n\n"], k=300_000
    )
    begin = time.perf_counter()
    clean("".join(pick))
    assert time.perf_counter() - begin < 5


def test_own_templates_are_laid_over_the_table(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text('text:\n  "{1}[ ({2})]": [내 틀]\ndrop: [한자]\npatterns:\n  "^별 ": "별"\n', encoding="utf-8")
    page = brackets.Page(load_table("ko", own))
    assert clean("가 {{내 틀|나|다}} {{내 틀|라}} {{한자|數}}{{별 하나}}", page=page) == "가 나 (다) 라 별"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"own\.yaml does not exist; give a YAML file"),
        ("text: [", r"is not YAML: .*; see templates_ko\.yaml"),
        ("texts: {}", r"holds \['texts'\]; the keys are text, korean"),
        ("text: [a]", r"text is no mapping; write `FORMAT: \[names\]` lines"),
        ("patterns: {'(': ''}", r"pattern '\(' is no regular expression"),
    ],
)
def test_a_broken_template_table_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    own = tmp_path / "own.yaml"
    if content is not None:
        own.write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        load_table("ko", own)


@pytest.mark.skipif(not (SHARED / "kowiki-wikitext-real").is_dir(), reason="shared data not at hand")
def test_real_korean_pages_leave_no_markup() -> None:
    for path in (SHARED / "kowiki-wikitext-real").glob("*.wikitext"):
        text = clean(path.read_text(encoding="utf-8"))
        assert text
        prose = re.sub(r"\$[^$\n]*\$", "", text)  # TeX has double braces of its own
        marks = ("{{", "}}", "[[", "]]", "{|", "<ref", "섬네일", "분류:", "'''", "()", "(,")
        assert [mark for mark in marks if mark in prose] == []


@pytest.mark.skipif(not (SHARED / "kowiki-hybrid").is_dir(), reason="shared data not at hand")
def test_recall_and_noise_on_text_whose_truth_is_known() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "bench_wikitext.py"
    spec = importlib.util.spec_from_file_location("bench_wikitext", path)
    assert spec
    assert spec.loader
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    result = bench.measure(SHARED / "kowiki-hybrid", repeats=1)
    assert result["recall"] >= 0.995, json.dumps(result)
    assert result["noise"] <= 0.05, json.dumps(result)
