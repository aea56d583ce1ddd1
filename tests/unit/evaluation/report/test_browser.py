"""The page in a real browser, where there is one."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.evaluation.report.browser import CHROMIUM, browser
from tests.unit.evaluation.report.conftest import Make

TOO_WIDE = """
[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll') && !one.closest('svg')
  && one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.outerHTML.slice(0, 200))
"""
HIDDEN_WORDS = """
[...document.querySelectorAll('.word')].filter(one => getComputedStyle(one).display == 'none')
  .map(one => one.getAttribute('lang'))
"""
SHOWN = "['svg.road', 'ol.road'].map(one => document.querySelector(one).getClientRects().length > 0)"


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on PATH")
def test_no_width_needs_sideways_scrolling_and_nothing_is_fetched(
    tmp_path: Path, made: Make, report: dict[str, Any], run: Path, shards: Path, road: list[Path]
) -> None:
    made(report, run.rename(run.with_name("a_run_with_a_name_that_no_phone_has_room_for" * 3)), shards, *road)
    page = tmp_path / "page" / "report.html"
    with browser(tmp_path / "profile") as tab:
        for width in (320, 360, 390, 768, 1280):
            tab.open(page, width, dark=width == 390, language="ko" if width < 700 else "en")
            assert tab.run("document.documentElement.scrollWidth") <= width
            assert tab.run(TOO_WIDE) == []
            assert tab.run(SHOWN) == [width >= 704, width < 704]  # the drawing, or the list
            hidden = tab.run(HIDDEN_WORDS)
            assert set(hidden) == {"en" if width < 700 else "ko"}
        assert set(tab.requests) == {page.as_uri()}
        assert tab.complaints == []
