import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.filters.normalise import normalise


@pytest.mark.parametrize(
    ("text", "expected", "changes"),
    [
        ("한글\u1112\u1161\u11ab", "한글한", {"recomposed": 1}),
        ("\u1100\u1161ㅋㅋㅠ ㈜ ½ ﬁ", "가ㅋㅋㅠ ㈜ ½ ﬁ", {"recomposed": 1}),
        ("서울\u00a0특별시\u3000중구", "서울 특별시 중구", {"odd_spaces": 2}),
        ("빈칸\u3164과 \u2800점자", "빈칸 과  점자", {"odd_spaces": 2}),
        ("폭\u200b없\u200d는\ufeff 글\u202e자", "폭없는 글자", {"invisible_characters": 4}),
        ("제\x00어 \x07문자\x7f", "제어 문자", {"invisible_characters": 3}),
        ("반쪽\ud800 문자\uffff", "반쪽 문자", {"invisible_characters": 2}),
        ("깃발\U000e0067\U000e007f", "깃발", {"invisible_characters": 2}),
        ("한 줄\r\n둘\r셋\u2028넷\x0c다섯", "한 줄\n둘\n셋\n넷\n다섯", {}),
        ("끝 공백 \t \n다음\n\n\n\n문단  ", "끝 공백\n다음\n\n문단", {}),
        ("빈 줄\n \n\t\n\n끝", "빈 줄\n\n끝", {}),
        ("\ufdd0\ufdefa", "a", {"invisible_characters": 2}),
        ("\u034f", "", {"invisible_characters": 1}),
        ("", "", {}),
    ],
)
def test_each_kind_is_changed_and_counted(text: str, expected: str, changes: dict[str, int]) -> None:
    assert normalise(text) == (expected, changes)


@pytest.mark.parametrize(
    "text",
    [
        "수학(數學)은 《산학》 「가」 “인용” ‘작은’ 글이다",
        "훈민정음은 ᄒᆞᆫ글이다, ᄇᆞᆰ, 나랏말〯ᄊᆞ미",
        "ㅋㅋㅋㅠ ㈜회사 ½ № ㎞ ① Ⅳ ﬁ ２０",
        "표\t칸\n\t들여쓰기  두 칸",
        "한 사람 👩🏽 ❤️ 𠮷野家",
        "각주¹ H₂O x² 100℃ ±5 —",
    ],
)
def test_what_has_a_meaning_stays(text: str) -> None:
    assert normalise(text) == (text, {})


@given(
    st.text(st.characters(codec=None)) | st.text("a \t\r\n\x0c\u00a0\u200b\u1100\u1161\u11a8\u0301\u0327가\U000e0001")
)
def test_once_is_enough_and_gives_clean_nfc(text: str) -> None:
    once, _ = normalise(text)
    assert normalise(once) == (once, {})
    assert unicodedata.is_normalized("NFC", once)
    assert once == once.strip()
    assert "\n\n\n" not in once
    assert " \n" not in once
    once.encode("utf-8")
    allowed = {"\n", "\t"}
    assert not [c for c in once if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in allowed]


def test_noise_of_combining_marks_takes_no_time_and_is_cut() -> None:
    begin = time.perf_counter()
    text, changes = normalise("가" + "\u0315\u0300" * 500_000 + "나")
    assert time.perf_counter() - begin < 20  # 50 minutes without the cut
    assert changes == {"recomposed": 1}
    assert (text[0], text[-1], len(text)) == ("가", "나", 32)


def test_hostile_white_space_takes_no_time() -> None:
    begin = time.perf_counter()
    normalise(" " * 500_000 + "a" + " \t" * 500_000 + "b" + "\n" * 500_000 + "c")
    assert time.perf_counter() - begin < 5
