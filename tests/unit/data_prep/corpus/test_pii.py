import time

import pytest

from data_prep.corpus.pii import replace_pii


@pytest.mark.parametrize(
    ("text", "replaced", "counts"),
    [
        ("문의는 gil.dong+a@mail.example.co.kr으로", "문의는 [EMAIL]으로", {"email": 1}),
        ("전화 02-123-4567, 010-1234-5678번", "전화 [PHONE], [PHONE]번", {"phone": 2}),
        ("번호 900101-1234567은", "번호 [RRN]은", {"rrn": 1}),
        ("2000년생 000229-3234567", "2000년생 [RRN]", {"rrn": 1}),
    ],
)
def test_personal_data_is_replaced_and_counted(text: str, replaced: str, counts: dict[str, int]) -> None:
    assert replace_pii(text) == (replaced, counts)


@pytest.mark.parametrize(
    "text",
    [
        "1990-01-01 ~ 2001-12-31",
        "ISBN 978-89-01-12345-6, 89-010-1234-5678-9",
        "900231-1234567은 날짜가 아니다",
        "010229-3234567은 윤년이 아니다",
        "991301-1234567",
        "1900101-12345678",
        "트위터 @gildong, a@b",
        "위도 37-0123-4567",
        "0010-1234-5678-9",
    ],
)
def test_dates_isbns_and_other_numbers_stay(text: str) -> None:
    assert replace_pii(text) == (text, {})


def test_a_megabyte_without_a_match_takes_no_time() -> None:
    begin = time.perf_counter()
    replace_pii("a" * 500_000 + "@-" + "0-" * 250_000)
    assert time.perf_counter() - begin < 2
