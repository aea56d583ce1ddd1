"""Which scale the rule of a sweep recommends."""

from typing import Any

import pytest

from recipes.evaluation.sweep import chat_share, recommend, rises


def row(scale: float, ko: float, en: float, form: float, korean: float | None = None) -> dict[str, Any]:
    figures = {"bits_per_byte_ko": ko, "bits_per_byte_en": en, "chat_form_ko": form, "answered_in_korean": korean}
    return {"scale": scale, **{key: value for key, value in figures.items() if value is not None}}


TARGET = row(0.0, 2.0, 3.0, 0.0, 0.5)


def test_rises_and_shares() -> None:
    assert rises(row(1, 2.2, 2.7, 0), TARGET) == {"ko": pytest.approx(0.1), "en": pytest.approx(-0.1)}
    assert chat_share(row(1, 1, 1, 0.5, 1.0)) == 0.75
    assert chat_share(row(1, 1, 1, 0.5)) == 0.5
    assert chat_share({"scale": 1}) == 0.0


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(0.5, 2.1, 3.1, 0.5, 1.0), row(1.0, 2.15, 3.2, 0.9, 1.0)], 1.0),
        ([row(0.5, 2.1, 3.1, 0.5, 1.0), row(1.0, 2.15, 3.4, 0.9, 1.0)], 0.5),  # English rises too far
        ([row(0.5, 2.2, 3.1, 0.9, 0.9), row(0.75, 2.1, 3.1, 0.9, 0.9)], 0.75),  # equal shares: fewer bits
        ([row(0.5, 2.1, 3.1, 0.9, 0.9), row(0.75, 2.1, 3.1, 0.9, 0.9)], 0.5),  # equal in all: the smaller
        ([row(0.5, 2.1, 3.1, 0.0, 0.5)], None),  # no better than the target
        ([row(0.5, 2.5, 3.1, 1.0, 1.0)], None),
    ],
)
def test_the_rule(rows: list[dict[str, Any]], expected: float | None) -> None:
    choice = recommend([TARGET, *rows], 0.1)
    assert choice["scale"] == expected
    assert "at most 10% in every language" in choice["rule"]
    assert choice["reason"]
