import pytest

from data_prep.corpus.filters import Limits, rejection
from data_prep.document import Document

SENTENCE = "서울특별시는 대한민국의 수도로 한반도 중앙에 있으며 한강을 사이에 두고 남북으로 펼쳐져 있는 도시이다. "


@pytest.mark.parametrize(
    ("text", "lang", "reason"),
    [
        (SENTENCE * 5, "ko", None),
        ("", "ko", "empty"),
        (" \n", "ko", "empty"),
        ("짧은 글이다.", "ko", "too_short"),
        ("All of this text is English. " * 10, "ko", "low_hangul"),
        ("All of this text is English. " * 10, "en", None),
        ("1234 5678 가나 " * 30, "ko", "many_digits"),
        ("가나 ★☆◆ " * 60, "ko", "many_symbols"),
        ("홍길동\n임꺽정\n장길산\n" * 30, "ko", "mostly_list"),
        (SENTENCE * 5 + "{{ ]] " * 3, "ko", "leftover_markup"),
        (SENTENCE * 5 + "$\\frac{{a}}{{b}}$ " * 9, "ko", None),
        ("ᄇᆞᆰ은 뜻이다. " * 30, "ko", None),
    ],
)
def test_reasons(text: str, lang: str, reason: str | None) -> None:
    assert rejection(Document("1", text, lang=lang), Limits()) == reason


def test_limits_are_the_callers() -> None:
    document = Document("1", "짧은 글이다.", lang="ko")
    assert rejection(document, Limits(min_chars=7)) is None
    assert rejection(document, Limits(min_chars=8)) == "too_short"
