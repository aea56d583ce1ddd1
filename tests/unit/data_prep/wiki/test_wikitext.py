import gc
import importlib.util
import json
import random
import re
import time
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.wiki.wikitext import clean

HERE = Path(__file__).parent
SHARED = Path(__file__).resolve().parents[5] / "shared" / "data"


def cases() -> list[tuple[str, str, str, str]]:
    """Returns the golden cases: wikitext, the text wanted, the language and the name of the test."""
    found = []
    for lang in ("ko", "en"):
        groups = yaml.safe_load((HERE / f"cases_{lang}.yaml").read_text(encoding="utf-8"))
        for group, pairs in groups.items():
            for number, (wikitext, text) in enumerate(pairs, start=1):
                found.append((wikitext, text, lang, f"{lang} {group} {number}"))
    return found


@pytest.mark.parametrize(("wikitext", "text", "lang"), [pytest.param(*case, id=name) for *case, name in cases()])
def test_markup_becomes_the_text_a_careful_editor_leaves(wikitext: str, text: str, lang: str) -> None:
    assert clean(wikitext, "문서" if lang == "ko" else "Page", lang=lang) == text


def test_headings_as_in_kowikitext_have_an_equals_sign_for_each_level_on_both_sides() -> None:
    wikitext = "== 역사 ==\n가.\n=== <math>x</math> 시대 ===\n나.\n== 각주 ==\n== 문화 ==\n다."
    text = clean(wikitext, headings="kowikitext")
    assert text == " = = 역사 = = \n\n가.\n\n = = = $x$ 시대 = = = \n\n나.\n\n = = 문화 = = \n\n다."


@pytest.mark.parametrize("depth", [1, 20, 100, 150])
def test_nested_templates_are_resolved_at_any_depth_mediawiki_has(depth: int) -> None:
    assert clean("앞 " + "{{nowrap|" * depth + "가" + "}}" * depth + " 뒤") == "앞 가 뒤"


PLAIN = st.text("가나다라마 abc,.漢字ㄱᄒᆞᆫ《》\"'!?~123\n", max_size=80)


@given(PLAIN)
@settings(max_examples=300, deadline=None)
def test_plain_text_stays_as_it_is(text: str) -> None:
    """Up to NFC, trimmed lines, single spaces between words and single blank lines between paragraphs."""
    text = re.sub("''+", "'", re.sub(r",(?: *,)+", ",", text))
    lines = [
        re.sub(r"(?<=\S) +", " ", line[1:] if line.startswith(" ") else line).rstrip() for line in text.split("\n")
    ]
    wanted = re.sub(r"\n\n\n+", "\n\n", unicodedata.normalize("NFC", "\n".join(lines))).strip()
    assert clean(text) == wanted


PIECES = [
    *"{}[]|<>='*:#\n-!가a&;_ ()/,\u200b\ufdd0\ud800\x00",
    "{{",
    "}}",
    "[[",
    "]]",
    "<ref>",
    "</ref>",
    "\n{|",
    "\n|}",
]
PIECES += ["파일:", "\n== ", " ==\n", "<math>", "</math>", "<nowiki>", "<br>", "<div>", "<!--", "-->", "&amp;", "''"]
PIECES += ["{{{", "}}}", "-{", "}-", "http://a.kr", "{{lang|en|", "{{convert|", "{{#expr:", "{{!}}", "&#64976;", "\n\n"]


def check_laws(wikitext: str, text: str) -> None:
    assert unicodedata.is_normalized("NFC", text)
    assert text == text.strip()
    assert not re.search("[\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff\u200b\x00]", text)
    assert "\n\n\n" not in text
    assert not re.search(r"<\|[^<>\n]{0,200}?\|>", text)
    # A template can be longer than its call ({{KOR}}, {{convert|1|sqmi}}), and NFC than its input, but not by much.
    assert len(text) <= 12 * len(wikitext) + 20
    text.encode("utf-8")


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join) | st.text())
@settings(max_examples=500, deadline=None)
def test_any_text_is_cleaned_to_nfc_without_marks_of_the_cleaner(wikitext: str) -> None:
    check_laws(wikitext, clean(wikitext))
    check_laws(wikitext, clean(wikitext, lang="en", headings="kowikitext").strip())


MARKUP = re.compile(r"\{\{|\}\}|\[\[|\]\]|\||<[^<>\n]{1,40}>|''+|==+|\n+|&\w+;")
PAGE = (HERE / "cases_ko.yaml").read_text(encoding="utf-8").replace("\\n", "\n")


def mutated(text: str, rng: random.Random, num_changes: int) -> str:
    """Returns the text with pieces of its markup deleted, doubled, swapped or cut in two."""
    pieces = [piece for piece in re.split(f"({MARKUP.pattern})", text) if piece]
    for _ in range(num_changes):
        i, j = rng.randrange(len(pieces)), rng.randrange(len(pieces))
        kind = rng.randrange(4)
        if kind == 0:
            pieces[i] = ""
        elif kind == 1:
            pieces[i] *= 2
        elif kind == 2:
            pieces[i], pieces[j] = pieces[j], pieces[i]
        else:
            pieces[i] = pieces[i][: len(pieces[i]) // 2]
    return "".join(pieces)


@pytest.mark.parametrize("seed", range(20))
def test_mutated_pages_are_cleaned_too(seed: int) -> None:
    rng = random.Random(seed)
    real = sorted((SHARED / "kowiki-wikitext-real").glob("*.wikitext"))
    pages = [PAGE, *(path.read_text(encoding="utf-8") for path in real)]
    for _ in range(5):
        wikitext = mutated(rng.choice(pages), rng, rng.choice([1, 5, 50, 500]))
        check_laws(wikitext, clean(wikitext))


def test_damage_stays_in_its_paragraph() -> None:
    """Whatever single token is dropped into the middle paragraph, the first and the last one stay."""
    for token in [
        "{{",
        "}}",
        "[[",
        "]]",
        "{{lang|en|",
        "[[파일:a|",
        "<ref>",
        "</ref>",
        "''",
        "'''",
        "{|",
        "|}",
        "(",
        "<math>",
        "-{",
        "[http://a",
    ]:
        text = clean(f"첫 문단은 온전하다.\n\n둘째 {token} 문단이다.\n\n셋째 [[문단]]은 {{{{lang|en|whole}}}}이다.")
        paragraphs = text.split("\n\n")
        assert paragraphs[0] == "첫 문단은 온전하다.", token
        assert paragraphs[-1] == "셋째 문단은 whole이다.", token
        assert "둘째" in text, token


HOSTILE = [
    *("{{", "}}", "{{a|", "[[", "]]", "[[파일:a|", "[[{{", "{{[[", "{{{a|", "}}}", "{{{", "<ref>", "<ref>a\n\n"),
    *("<ref name=a>b<ref>", "<math>", "<gallery>", "<gallery>\na.jpg", "<nowiki>", "<br ", "<br", "<sup>"),
    *("<sup>a", "<p>", "<div>", "<div>\n", "<table>", "<td>", "<div ", "<ref ", "<", "</", "{|\n", "|}\n"),
    *("{|", ":{|", "<div>{|\n", "<!--", "-->", "'", "''", "'''''a", "=", "==a\n", "\n== a ==\n", "\n="),
    *("[http://a b ", "[http://a ", "[//", "[[a|b", "(", "()", "( , ", ",  ", ", ,", " ", "\t", "\n "),
    *("&amp;", "&", "&#", "&#9", "-{", "-{a:", "-{a|b;", "}-", "<|a", "<|", "|>", "|", "||", "|\n", "*"),
    *("*\n", ":", "::''", "#:", "__", "__목차", "__A__", "{{x|가}}, ", "({{x}}, ", "{{lang|en|", "{{convert|1|"),
    *("{{convert|1|to|", "{{#expr:1+", "{{#switch:a|b=", "{{!}}", "{{=}}", "{{IPA|a}} ", "({{IPA|a}}"),
    *("[[:en:", "[[a:b:", "[[a (", "[[a, ", "\r", "\r\n", "\u2028", "\ufdd0", "\ufdd2", "\ud800", "\x00"),
    *("\u200b", "e\u0301\u0323", "ᄒᆞ"),
]  # fmt: skip


def seconds(wikitext: str) -> float:
    """Without garbage collection, whose time is that of all the tests' objects."""
    gc.disable()
    try:
        begin = time.process_time()
        clean(wikitext)
        return time.process_time() - begin
    finally:
        gc.enable()


@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_markup_takes_linear_time(unit: str) -> None:
    """Four times the markup takes about four times as long; quadratic time would take sixteen."""
    small, large = ((unit * size)[:size] for size in (60_000, 240_000))
    assert seconds(large) < 8 * seconds(small) + 0.2


@pytest.mark.parametrize(
    "wikitext",
    [
        "{{인용문|" * 100_000 + "}}" * 100_000,
        "{|\n" * 150_000 + "|}\n" * 150_000,
        "<" + " " * 1_000_000,
        "-{" + "a" * 1_000_000,
        "[//a" + "\t" * 1_000_000,
        "[//a" + " a" * 500_000,
        "{{a|" + " " * 1_000_000 + "}}",
        "{{convert|" + "1|" * 300_000 + "}}",
        "a<ref>b\n\n" * 100_000 + "</ref>",
        "<ref>a" * 150_000 + "</ref>" * 150_000,
        "=" * 1_000_000 + "\n" + "=" * 500_000,
        "'" * 1_000_000,
        "{{month|" + "1" * 500_000 + "}} {{출생일|" + "1" * 400_000 + "}}",
        "{{#expr:" + "(" * 50 + "1" + ")" * 50 + "}}" + "{{#expr:" + "9" * 60 + "*9}}",
        "&" * 500_000 + "&#x" + "f" * 400_000,
        "가" + "\u0315\u0300" * 500_000,
        "가" + "&#x315;&#x300;" * 100_000,
    ],
    ids=lambda wikitext: repr(wikitext[:12]),
)
def test_deep_or_long_markup_takes_less_than_five_seconds(wikitext: str) -> None:
    assert seconds(wikitext) < 5


def test_characters_no_reader_sees_are_gone_before_markup_is_read() -> None:
    assert (
        clean("==\u3000역사\u3000==\n[[서울\u200b|서울\u00a0시]]는\u200e &#8203;도시&nbsp;이다.")
        == "역사\n\n서울 시는 도시 이다."
    )
    assert clean("\ufeff#넘겨주기 [[나]]") == ""


def test_literal_special_tokens_are_defused() -> None:
    text = clean("<nowiki><|eot_id|></nowiki>와 &lt;s&gt;, [INST]는 표지이다.")
    assert text == "< |eot_id| >와 < s >, [ INST ]는 표지이다."


def test_random_brackets_take_less_than_five_seconds() -> None:
    pick = random.Random(1).choices(PIECES, k=300_000)
    assert seconds("".join(pick)) < 5


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
    path = HERE.parents[2] / "benchmarks" / "bench_wikitext.py"
    spec = importlib.util.spec_from_file_location("bench_wikitext", path)
    assert spec
    assert spec.loader
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    result = bench.measure(SHARED / "kowiki-hybrid", repeats=1)
    assert result["recall"] >= 0.995, json.dumps(result)
    assert result["noise"] <= 0.05, json.dumps(result)


def test_cases_are_many_and_none_is_double() -> None:
    inputs = [wikitext for wikitext, *_ in cases()]
    assert len(inputs) >= 200
    assert not [a for a, b in pairwise(sorted(inputs)) if a == b]
