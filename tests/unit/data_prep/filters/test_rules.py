import pickle
import re
from collections import Counter
from pathlib import Path

import pytest

from configs.loader import ConfigError
from data_prep.corpus.report_page import CHANGES, REASONS
from data_prep.document import Document
from data_prep.filters.rules import FOLDER, Rules, load_rules, prepare

SENTENCE = "서울특별시는 대한민국의 수도로 한반도 중앙에 있으며 한강을 사이에 두고 남북으로 펼쳐져 있는 도시이다. "
OTHERS = [
    "한국어는 교착어이므로 조사와 어미가 문법 관계를 나타낸다. ",
    "세종은 집현전 학자들과 함께 새로운 문자를 만들어 백성에게 널리 알렸다. ",
    "태백산맥은 동해안을 따라 길게 뻗어 있으며 높은 봉우리가 많다. ",
]
PROSE = (
    SENTENCE
    + "".join(OTHERS)
    + "봄에는 벚꽃이 피고 가을에는 단풍이 들어 많은 사람이 찾아온다. 겨울에는 눈이 많이 내린다."
)
ENGLISH = (
    "The river rises in the mountains and flows for nearly four hundred miles to the sea. It is one of the longest in "
    "that part of the country, which has few others. Ships from many ports are seen at its mouth in summer."
)
FRENCH = (
    "Le fleuve prend sa source dans les montagnes et coule sur plus de six cents kilomètres jusqu'à la mer. Il est "
    "l'un des plus longs de cette région, qui en compte peu. Des navires de tous les ports y passent en été."
)
KO, EN = load_rules(None, "ko"), load_rules(None, "en")


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        (PROSE, None, ""),
        ("", "empty", "0 characters"),
        (" \n\u200b", "empty", "0 characters"),
        ("짧은 글이다.", "too_short", "7 characters < 200"),
        ("All of this text is English. " * 10, "low_hangul", "0.000 of the letters < 0.3"),
        ("1234 5678 가나 " * 30, "many_digits", "0.800 of the characters > 0.3"),
        ("가나 ★☆◆ " * 60, "many_symbols", "0.600 of the characters > 0.1"),
        (PROSE + "\ufffd" * 3, "damaged_characters", " > 0.001"),
        (" ".join(PROSE), "short_words", "1.00 characters a word < 1.5"),
        (PROSE.replace(" ", "") * 2, "long_words", " characters a word > 10"),
        ("홍길동\n임꺽정\n장길산\n전우치와 " + "\n".join(OTHERS[0].split() * 9), "mostly_list", " > 0.8"),
        (PROSE + "{{ ]] " * 3, "leftover_markup", "6 pieces > 5, mostly {{"),
        (PROSE + "<div class=a>가</div>&nbsp;" * 3, "leftover_markup", "9 pieces > 5, mostly"),
        (PROSE + " $\\frac{{a}}{{b}}$" * 3, None, ""),
        (PROSE + "\n" + PROSE, "repeated_lines", "0.500 of the characters > 0.3"),
        (PROSE + " " + PROSE + " " + PROSE, "repeated_text", "of the positions > 0.3"),
        ("ᄇᆞᆰ은 뜻이다. ᄒᆞᆫ글 ᄆᆞᅀᆞᆷ이라 ᄡᅳᆯ 일이 만ᄒᆞ니라. " + PROSE, None, ""),
        ("수학(數學)에서 漢字는 뜻글자(表意文字)이다. ㅋㅋㅋ " + PROSE, None, ""),
    ],
)
def test_each_reason_with_the_value_and_its_limit(text: str, reason: str | None, detail: str) -> None:
    verdict = prepare(Document("1", text, lang="ko"), KO)
    assert verdict.reason == reason
    assert reason is None or reason in REASONS
    assert detail in verdict.detail
    assert bool(detail) == bool(verdict.detail)


@pytest.mark.parametrize(
    ("text", "lang", "reason"),
    [
        (ENGLISH, "en", None),
        (FRENCH, "en", "few_function_words"),
        (PROSE, "en", "low_latin"),
        (PROSE, "ko", "other_language"),
        ("Москва — столица России, город федерального значения. " * 5, "", "low_latin"),
        (", ".join(f"Village{n} Lake{n} Hill{n}" for n in "abcdefghijklmnopqrs"), "en", "few_function_words"),
    ],
)
def test_english_rules(text: str, lang: str, reason: str | None) -> None:
    assert prepare(Document("1", text, lang=lang), EN).reason == reason


def test_text_is_normalised_defused_and_freed_of_personal_data_before_it_is_checked() -> None:
    text = f"글\u200b\u00a0쓴이 gil\u200b@mail.kr, 010-1234-5678, 900101-1234567 <|eot_id|> {PROSE}"
    assert set(CHANGES) >= {"invisible_characters", "odd_spaces", "special_tokens", "pii_email", "pii_rrn", "pii_phone"}
    document = Document("7", text, lang="ko", title="제목", url="u")
    verdict = prepare(document, KO)
    assert verdict.document == Document(
        "7", f"글 쓴이 [EMAIL], [PHONE], [RRN] < |eot_id| > {PROSE}", lang="ko", title="제목", url="u"
    )
    assert verdict.changes == Counter(
        invisible_characters=2, odd_spaces=1, special_tokens=1, pii_email=1, pii_phone=1, pii_rrn=1
    )
    assert document.text == text
    again = prepare(verdict.document, KO)
    assert again == type(again)(verdict.document, None)


def test_personal_data_and_entities_are_a_choice() -> None:
    rules = load_rules(None, "ko", ["replace_pii=false", "unescape_html=true"])
    text = f"a@b.kr &lt;책&gt; &amp;amp; {PROSE}"
    assert prepare(Document("1", text), rules).document.text == f"a@b.kr <책> &amp; {PROSE}"
    assert prepare(Document("1", text), KO).document.text == text.replace("a@b.kr", "[EMAIL]")


def test_limits_are_the_files(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"base: {FOLDER / 'filters_ko.yaml'}\nmin_chars: 7\n")
    document = Document("1", "짧은 글이다.", lang="ko")
    assert prepare(document, load_rules(own, "ko")).reason is None
    assert prepare(document, load_rules(own, "ko", ["min_chars=8"])).reason == "too_short"


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_the_shipped_rules_load_and_travel_to_workers(lang: str) -> None:
    rules = load_rules(None, lang)
    assert isinstance(rules, Rules)
    assert pickle.loads(pickle.dumps(rules)) == rules
    assert hash(rules)
    text = (FOLDER / f"filters_{lang}.yaml").read_text()
    assert all(re.search(rf"^{key}: .*#" if key != "lang" else key, text, re.M) for key in vars(rules)), "no comment"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("min_char: 5", r"min_char \(.*own.yaml\): unknown key; did you mean 'min_chars'\?"),
        ("min_chars: many", r"min_chars \(.*\): Value 'many' .*Integer"),
        ("max_digit_share: 30", r"max_digit_share: 30.0 is no share; give a number from 0 to 1"),
        ("min_chars: -1", r"min_chars: -1 is negative; 0 or more is expected"),
        ("min_word_chars: 20", r"min_word_chars: 20.0 is above max_word_chars 10.0; swap them"),
        ("lang: fr", r"lang: 'fr' is not known; one of ko, en"),
        ("lang: en", r"lang: the rules are for 'en', the documents are 'ko'; give other rules"),
    ],
)
def test_rules_that_cannot_be_meant_are_named(tmp_path: Path, lines: str, message: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"base: {FOLDER / 'filters_ko.yaml'}\n{lines}\n")
    with pytest.raises(ConfigError, match=message):
        load_rules(own, "ko")


def test_a_file_without_base_must_set_every_key(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("lang: ko\nmin_chars: 5\n")
    with pytest.raises(ConfigError, match="max_digit_share: no value; set it in the file") as caught:
        load_rules(own, "ko")
    assert len(caught.value.problems) == len(vars(KO)) - 2
