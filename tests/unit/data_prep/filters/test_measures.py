import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.filters import measures
from data_prep.filters.measures import count, language, list_share, repeated_line_share, repeated_share


@given(st.text(st.characters(codec="utf-8")) | st.text("가a1 \n★数ᄒ𠮷😀\ufffd."))
def test_counts_equal_those_of_a_slow_reference(text: str) -> None:
    counts = count(text)
    names = [unicodedata.name(c, "") for c in text]
    categories = [unicodedata.category(c) for c in text]
    bmp = [i for i, c in enumerate(text) if c <= "\uffff"]
    assert counts.visible == sum(not c.isspace() for c in text)
    assert counts.words == len(text.split())
    assert counts.damaged == text.count("\ufffd")
    assert counts.digits == sum(categories[i] == "Nd" for i in bmp)
    assert counts.hangul >= sum(names[i].startswith("HANGUL SYLLABLE") for i in bmp)
    plain = [c for c in text if c.isascii() or c in "가数ᄒ𠮷"]
    assert count("".join(plain)).letters == sum(c.isalpha() for c in plain)
    assert count("".join(plain)).latin == sum(c.isascii() and c.isalpha() for c in plain)
    assert count("".join(plain)).symbols == sum(c in "`" for c in plain)


def test_kinds_of_characters() -> None:
    counts = count("한글 ᄒᆞᆫ ㅋ abc é 漢字 かな 12 ２ ★◆😀 《가》 ㎞ “나” \ufffd")
    assert (counts.hangul, counts.latin, counts.letters) == (2 + 3 + 1 + 2, 4, 8 + 4 + 4)
    assert (counts.digits, counts.symbols, counts.damaged) == (3, 3, 1)


def test_a_text_in_pieces_counts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "서울은 대한민국의 수도이다.  Seoul\n\n★ 12 " * 30
    whole = count(text)
    for size in (1, 7, 64):
        monkeypatch.setattr(measures, "_CHUNK_CHARS", size)
        assert count(text) == whole


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("서울은 대한민국의 수도이다.", "ko"),
        ("Java는 프로그래밍 언어(programming language)이다.", "ko"),
        ("Seoul is the capital of South Korea.", "en"),
        ("東京は日本の首都である。", ""),
        ("Москва — столица России.", ""),
        ("1234 5678", ""),
        ("", ""),
    ],
)
def test_language_by_script(text: str, lang: str) -> None:
    assert language(text) == lang


def words(number: int, seed: int = 0) -> str:
    letters = random.Random(seed)
    return " ".join("".join(letters.choices("가나다라마바사아자차카타파하", k=3)) for _ in range(number))


@pytest.mark.parametrize("number", [50, 2_000, 40_000])
def test_repetition_is_the_share_that_stood_before(number: int) -> None:
    text = words(number)
    assert repeated_share(text) < 0.01
    assert repeated_share(f"{text}\n{text}") == pytest.approx(0.5, abs=0.15 if number == 50 else 0.03)
    assert repeated_share(f"{text}\n{words(3 * number, 1)}\n{text}") == pytest.approx(0.2, abs=0.05)
    assert repeated_share("같은 말을 한다. " * number) > 0.8


def test_repetition_across_chunks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "_CHUNK_CHARS", 1_000)
    text = words(1_000)
    assert repeated_share(text + text) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("text", ["", "가", "가" * 23, "가나다" * 8])
def test_short_texts_repeat_nothing(text: str) -> None:
    assert repeated_share(text) == 0 == repeated_line_share(text)


def test_lines() -> None:
    assert list_share("홍길동\n임꺽정\n장길산\n전우치", 40) == 1
    assert list_share("홍길동이다.\n임꺽정이다.\n그렇다.\n“장길산.”", 40) == 0
    assert list_share("홍길동\n" + "긴 줄에는 문장이 있다 " * 5 + "\n가\n나", 40) == pytest.approx(5 / 70, abs=0.01)
    assert list_share("짧은 글", 40) == 0
    assert repeated_line_share("가나\n다라\n가나\n가나") == pytest.approx(0.5)
