import random
import re
import time

import pytest

from data_prep.filters.pii import replace_pii
from tests.support import SHARED_DATA


@pytest.mark.parametrize(
    ("text", "replaced", "counts"),
    [
        ("문의는 gil.dong+a@mail.example.co.kr으로", "문의는 [EMAIL]으로", {"email": 1}),
        ("<a_b@163.com>, c-d@naver.com.", "<[EMAIL]>, [EMAIL].", {"email": 2}),
        ("전화 02-123-4567, 010-1234-5678번", "전화 [PHONE], [PHONE]번", {"phone": 2}),
        ("휴대전화010-1234-5678로", "휴대전화[PHONE]로", {"phone": 1}),
        ("010.1234.5678 / 010 1234 5678", "[PHONE] / [PHONE]", {"phone": 2}),
        ("01023456789로 연락", "[PHONE]로 연락", {"phone": 1}),
        ("(02) 1234-5678, 031)123-4567, (02-123-4567)", "[PHONE], [PHONE], ([PHONE])", {"phone": 3}),
        ("070-1234-5678, 0505-123-4567, 064-700-1234", "[PHONE], [PHONE], [PHONE]", {"phone": 3}),
        ("+82-10-1234-5678, +82 2 123 4567", "[PHONE], [PHONE]", {"phone": 2}),
        ("+82 (0)10-1234-5678", "[PHONE]", {"phone": 1}),
        ("번호 900101-1234567은", "번호 [RRN]은", {"rrn": 1}),
        ("2000년생 000229-3234567", "2000년생 [RRN]", {"rrn": 1}),
        ("주민번호:900101 - 1234568.", "주민번호:[RRN].", {"rrn": 1}),
        ("외국인 900101–5234567", "외국인 [RRN]", {"rrn": 1}),
        ("번호 9001011234568", "번호 [RRN]", {"rrn": 1}),
    ],
)
def test_personal_data_is_replaced_and_counted(text: str, replaced: str, counts: dict[str, int]) -> None:
    assert replace_pii(text) == (replaced, counts)


@pytest.mark.parametrize(
    "text",
    [
        "1990-01-01 ~ 2001-12-31, 2010-1234-5678",
        "ISBN 978-89-01-12345-6, 89-010-1234-5678-9, 9788901123456, 979-11-0101-1234-5",
        "900231-1234567은 날짜가 아니다",
        "010229-3234567은 윤년이 아니다",
        "991301-1234567",
        "750101-3234567은 2075년이다",
        "900101-9234567은 1890년이다",
        "1900101-12345678",
        "9001011234567은 검사 숫자가 다르다",
        "바코드 8801011000032, 8801011000186",  # dates, and with both check digits
        "기사 2007061900326, article/2007061900326.html, T=1235007315045",
        "트위터 @gildong, @gil@mastodon.social, a@b, logo@2x.png",
        "위도 37-0123-4567, 북위 37.5665 동경 126.9780",
        "0010-1234-5678-9",
        "계좌 110-123-456789, 123-02-123456, 302-1234-5678-91",
        "버전 01.10.1234.5678, 쪽 010-015, 12-34쪽, 1588-1592년",
        "0.01012345678, 3.0102345678, 부품 A010-1234-5678",
        "인구 9,776,305명, 1,234,567,890,123원",
        "일본 03-1234-5678, 미국 1-800-555-1234, +81 3-1234-5678",
        "1588-1234, 119, 110",
    ],
)
def test_dates_isbns_and_other_numbers_stay(text: str) -> None:
    assert replace_pii(text) == (text, {})


def test_thirteen_digits_in_a_row_are_nearly_never_taken_for_a_number_of_a_person() -> None:
    numbers = random.Random(0)
    text = "\n".join(str(numbers.randrange(10**12, 10**13)) for _ in range(20_000))
    assert replace_pii(text)[1]["rrn"] < 20_000 * 0.005


@pytest.mark.parametrize(
    "text", ["a" * 500_000 + "@-" + "0-" * 250_000, "a@" * 300_000, "0" * 600_000, "a.b@c." * 99_999]
)
def test_a_megabyte_of_hostile_text_takes_no_time(text: str) -> None:
    begin = time.perf_counter()
    replace_pii(text)
    assert time.perf_counter() - begin < 5


def test_encyclopedic_text_has_no_false_hits() -> None:
    files = sorted(SHARED_DATA.glob("kowiki-text-2022/*_wiki_*")) + sorted(SHARED_DATA.glob("songys-chatbot/*.csv"))
    if not files:
        pytest.skip("shared data not at hand")
    for file in files:
        text, counts = replace_pii(file.read_text(encoding="utf-8"))
        assert not counts, re.findall(r".{40}\[(?:EMAIL|RRN|PHONE)\]", text)
