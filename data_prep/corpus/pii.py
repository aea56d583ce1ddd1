"""Replaces personal data: e-mail addresses, Korean resident registration numbers, telephone numbers.

Encyclopedic text holds few of them, so a pattern that also hit dates or ISBNs would do more harm than good.
"""

import re
from collections import Counter
from datetime import date

EMAIL, RRN, PHONE = "[EMAIL]", "[RRN]", "[PHONE]"

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+\-])[A-Za-z0-9._%+\-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,62})\.){1,5}[A-Za-z]{2,24}(?![A-Za-z0-9@])"
)
_RRN = re.compile(r"(?<![\d\-])(\d{2})(\d{2})(\d{2})-([0-9])\d{6}(?![\d\-])")
_PHONE = re.compile(r"(?<![\d\-.])0\d{1,2}-\d{3,4}-\d{4}(?!\d|-\d)")


def replace_pii(text: str) -> tuple[str, Counter[str]]:
    """Returns the text with placeholders, and how often each kind was replaced."""
    counts: Counter[str] = Counter()
    if "@" in text:
        text, counts["email"] = _EMAIL.subn(EMAIL, text)
    if "-" in text:
        text = _RRN.sub(lambda match: _rrn(match, counts), text)
        text, counts["phone"] = _PHONE.subn(PHONE, text)
    return text, +counts


def _rrn(match: re.Match[str], counts: Counter[str]) -> str:
    """A number whose first half is no date of the century its seventh digit tells is something else."""
    year, month, day, century = (int(match[i]) for i in range(1, 5))
    # 1, 2, 5, 6: born in 19xx; 3, 4, 7, 8: 20xx; 9, 0: 18xx.
    base = {1: 1900, 2: 1900, 5: 1900, 6: 1900, 3: 2000, 4: 2000, 7: 2000, 8: 2000}.get(century, 1800)
    try:
        date(base + year, month, day)
    except ValueError:
        return match[0]
    counts["rrn"] += 1
    return RRN
