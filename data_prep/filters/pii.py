"""Replaces personal data: e-mail addresses, Korean resident registration numbers, Korean telephone numbers.

Running text holds few of them, so a pattern that also hit dates, ISBNs or page ranges would do more harm than good:
what is ambiguous stays.
"""

import re
from collections import Counter
from datetime import date

EMAIL, RRN, PHONE = "[EMAIL]", "[RRN]", "[PHONE]"

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+\-@])[A-Za-z0-9._%+\-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,62})\.){1,5}"
    r"(?!(?:png|jpe?g|gif|svg|webp|css|js|html?|pdf|mp[34])\b)[A-Za-z]{2,24}(?![A-Za-z0-9@])"  # no file `logo@2x.png`
)
# The first digit comes before the look-behind: a search for it is much faster than one for a position.
_RRN = re.compile(
    r"[0-9](?<![A-Za-z0-9.,\-–−/=_&?%#][0-9])[0-9]{5}(?: ?[-–−] ?)?[0-9]{7}(?![A-Za-z0-9_/&]|[.,\-–−][0-9])"
)
_SEVEN_DIGITS = re.compile(r"[0-9][0-9]{6}")  # a plain class first lets `re` skip to the next digit
_RRN_WEIGHTS = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
_FIRST_CENTURY = {1: 1900, 2: 1900, 5: 1900, 6: 1900, 3: 2000, 4: 2000, 7: 2000, 8: 2000, 9: 1800, 0: 1800}
_LAST_BIRTH_YEAR = 2040  # a later one is no birth; fixed, so that the same text always gives the same result

_AREA = r"(?:2|3[1-3]|4[1-4]|5[1-5]|6[1-4]|70|80|50[2-8])"  # Seoul, provinces, internet, toll-free, personal numbers
_MOBILE = r"1[016789]"
_NO_MORE = r"(?![0-9]|[-.][0-9])"
_IN_BRACKETS = re.compile(rf"\(0(?:{_AREA}|{_MOBILE})\) ?[1-9][0-9]{{2,3}}-[0-9]{{4}}{_NO_MORE}")  # (02) 1234-5678
_PHONE = re.compile(
    rf"0(?<![A-Za-z0-9._/+\-]0)(?:{_AREA}(?:-|\) ?)[1-9][0-9]{{2,3}}-[0-9]{{4}}"
    rf"|{_MOBILE}(?:([-. ])[0-9]{{3,4}}\1[0-9]{{4}}|\) ?[0-9]{{3,4}}-[0-9]{{4}})|10[2-9][0-9]{{7}}){_NO_MORE}"
)
_PHONE_ABROAD = re.compile(
    rf"\+82[-. ]?(?:\(0\)|0)?[-. ]?(?:{_AREA}|{_MOBILE})[-. ]?[0-9]{{3,4}}[-. ]?[0-9]{{4}}{_NO_MORE}"
)


def replace_pii(text: str) -> tuple[str, Counter[str]]:
    """Returns the text with placeholders, and how often each kind (`email`, `rrn`, `phone`) was replaced."""
    counts: Counter[str] = Counter()
    if "@" in text:
        text, counts["email"] = _EMAIL.subn(EMAIL, text)
    if _SEVEN_DIGITS.search(text):  # rare, and much faster to find
        text = _RRN.sub(lambda match: _rrn(match, counts), text)
    for pattern in (_PHONE_ABROAD, _IN_BRACKETS, _PHONE):
        text, found = pattern.subn(PHONE, text)
        counts["phone"] += found
    return text, +counts


def _rrn(match: re.Match[str], counts: Counter[str]) -> str:
    digits = [int(character) for character in match[0] if character.isdecimal()]
    # Numbers given out since October 2020 have no check digit, so with a hyphen the date must do; 13 digits in a row
    # are mostly something else and must pass it. Nobody alive was born in the 1800s.
    is_hyphenated = len(match[0]) > 13
    is_checked = digits[12] == _check_digit(digits) and not _is_barcode(digits) and not _is_dated(match[0])
    if not _is_birth(digits) or not (is_checked or (is_hyphenated and digits[6] in range(1, 9))):
        return match[0]
    counts["rrn"] += 1
    return RRN


def _is_birth(digits: list[int]) -> bool:
    """Whether the first six digits are a date of the century that the seventh tells."""
    year, month, day = (10 * digits[i] + digits[i + 1] for i in (0, 2, 4))
    year += _FIRST_CENTURY[digits[6]]
    try:
        date(year, month, day)
    except ValueError:
        return False
    return year <= _LAST_BIRTH_YEAR


def _check_digit(digits: list[int]) -> int:
    """Source: Enforcement Rule of the Resident Registration Act; foreigners' numbers (5-8) add 2."""
    rest = sum(weight * digit for weight, digit in zip(_RRN_WEIGHTS, digits, strict=False)) % 11
    return ((13 if digits[6] in range(5, 9) else 11) - rest) % 10


def _is_barcode(digits: list[int]) -> bool:
    """Whether the digits are a product's EAN-13; Korean ones start with 880, which looks like 1988."""
    total = sum(digits[0:12:2]) + 3 * sum(digits[1:12:2])
    return digits[:3] == [8, 8, 0] and digits[12] == -total % 10


def _is_dated(number: str) -> bool:
    """Whether the digits begin with a date such as 20070619: numbers of newspaper articles do."""
    return number[:2] in ("19", "20") and "01" <= number[4:6] <= "12" and "01" <= number[6:8] <= "31"
