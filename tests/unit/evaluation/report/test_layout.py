"""What a phone, a dark room and a printer ask of the page, as far as its text tells without a browser."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from recipes.evaluation.report.page import STYLE
from tests.unit.evaluation.report.conftest import Make

LEAST_OF_TEXT, LEAST_OF_GRAPHICS = 4.5, 3.0
"""Contrast ratios of WCAG 2.2, 1.4.3 and 1.4.11."""


def schemes() -> dict[str, dict[str, str]]:
    """Returns scheme -> custom property -> colour."""
    light, dark = re.findall(r":root \{([^}]*)\}", STYLE.read_text(encoding="utf-8"))
    found = [dict(re.findall(r"--(\w+): (#\w+);", block)) for block in (light, dark)]
    return dict(zip(("light", "dark"), found, strict=True))


def luminance(colour: str) -> float:
    """Relative luminance of `#rgb` or `#rrggbb`. Source: WCAG 2.2."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_measured_right() -> None:
    assert contrast("#000", "#fff") == pytest.approx(21.0)
    assert contrast("#777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_can_be_read(scheme: str) -> None:
    colours = schemes()[scheme]
    for text, ground in product(("ink", "soft", "link", "better", "worse"), ("paper", "band")):
        assert contrast(colours[text], colours[ground]) >= LEAST_OF_TEXT, (text, ground)
    for number in range(6):
        assert contrast(colours[f"c{number}"], colours["paper"]) >= LEAST_OF_GRAPHICS, number


def test_both_schemes_have_every_colour_that_is_used() -> None:
    used = set(re.findall(r"var\(--(\w+)\)", STYLE.read_text(encoding="utf-8")))
    assert used == set(schemes()["light"]) == set(schemes()["dark"])
    rules = re.sub(r":root \{[^}]*\}", "", STYLE.read_text(encoding="utf-8"))
    assert not re.search(r"#[0-9a-f]{3,6}\b(?=[;\s])", rules)  # a colour outside the schemes would not follow them


def test_what_is_wide_scrolls_by_itself(made: Make, report: dict[str, Any], run: Path, shards: Path) -> None:
    page = made(report, run, shards)
    wide = [classes for (tag, _), classes in zip(page.elements, page.inside, strict=True) if tag == "table"]
    assert wide
    assert all("scroll" in classes for classes in wide)
    scrolling = [one for _, one in page.elements if one.get("class") == "scroll"]
    assert all(one["tabindex"] == "0" and one["role"] == "region" and one["aria-label"] for one in scrolling)
    style = STYLE.read_text(encoding="utf-8")
    for selector in ("pre", "p.prompt", ".answers dd", "h3", ".legend"):
        rule = next(rule for rule in style.splitlines() if rule.startswith(f"{selector} {{"))
        assert "overflow-wrap: anywhere" in rule, selector
    assert re.search(r":lang\(ko\) \{ word-break: keep-all", style)


def test_a_phone_gets_the_list_and_a_screen_the_drawing() -> None:
    style = STYLE.read_text(encoding="utf-8")
    everywhere, _, phone = style.partition("@media screen and (max-width: 44rem) {")
    phone = phone[: phone.index("\n}")]
    assert re.search(r"^\.narrow \{ display: none; \}", everywhere, re.MULTILINE)
    assert re.search(r"\.wide \{ display: none; \}", phone)
    assert re.search(r"\.narrow \{ display: block; \}", phone)


def test_every_class_has_a_rule(made: Make, report: dict[str, Any], run: Path, shards: Path) -> None:
    style = STYLE.read_text(encoding="utf-8")
    used = {name for _, one in made(report, run, shards).elements for name in (one.get("class") or "").split()}
    assert {name for name in used if not re.search(rf"\.{name}\b", style)} == set()
