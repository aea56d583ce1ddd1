"""Charts: round ticks, what is left out, running means, parts of a whole."""

import pytest

from recipes.evaluation.report.charts import COLOURS, bar, line_chart, smoothed, ticks
from tests.unit.evaluation.report.reader import Page


def test_ticks_are_round_and_enclose_the_values() -> None:
    assert ticks([0.13, 9.7]) == [0, 2, 4, 6, 8, 10]
    for values in ([0.0], [-1.0, 1.0], [1e-9, 3e-9], [1, 1_000_000], [5.0, 5.0]):
        found = ticks(values)
        assert found[0] <= min(values)
        assert found[-1] >= max(values)
        assert 2 <= len(found) <= 8


def test_a_chart_leaves_out_what_is_not_finite() -> None:
    svg = line_chart("t", "step", {"a": [(1, 1.0), (2, float("nan")), (3, 2.0)]})
    assert len(str(Page(svg).all("polyline")[0]["points"]).split()) == 2
    assert "No finite values" in line_chart("t", "step", {"a": [(1, float("inf"))]})


def test_lines_have_a_colour_each_and_the_mark_stands_at_its_value() -> None:
    page = Page(line_chart("t", "step", {"ko": [(0, 1.0), (10, 3.0)], "en": [(0, 2.0), (10, 2.0)]}, mark=10))
    assert [line["class"] for line in page.all("polyline")] == ["curve c0", "curve c1"]
    mark = next(line for line in page.all("line") if line["class"] == "mark")
    assert mark["x1"] == mark["x2"] == page.all("circle")[0]["cx"]  # where the lines end


def test_a_running_mean_keeps_a_straight_line_but_at_its_ends() -> None:
    points = [(float(n), 3.0 * n) for n in range(200)]
    assert [y for _, y in smoothed(points)][5:-5] == pytest.approx([y for _, y in points][5:-5])
    assert smoothed(points)[0] == (0.0, pytest.approx(3.0 * 2.5))  # of 0 to 5
    assert smoothed(points[:5]) == points[:5]
    assert smoothed([]) == []


def test_the_parts_of_a_bar_fill_it() -> None:
    parts = Page(bar("t", [6, 3, 1])).all("rect")
    assert [part["width"] for part in parts] == ["60.000%", "30.000%", "10.000%"]
    assert [part["x"] for part in parts] == ["0.000%", "60.000%", "90.000%"]
    many = Page(bar("t", [1] * (COLOURS + 2))).all("rect")
    assert [part["class"] for part in many[-3:]] == ["c5", "c5", "c5"]
    assert bar("t", []) == bar("t", [0]) == ""
