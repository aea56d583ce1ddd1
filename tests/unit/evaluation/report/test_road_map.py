"""The road map: who was made from whom, and a drawing in which roads pass between the boxes."""

import re
from pathlib import Path

from recipes.evaluation.report.markdown import write_markdown
from recipes.evaluation.report.road_map import HEIGHT, WIDTH, lay_out, road_map, road_text
from recipes.evaluation.report.sources import read_sources
from tests.unit.evaluation.report.conftest import Make
from tests.unit.evaluation.report.reader import Page


def test_the_road_map_leads_from_what_was_read_to_what_was_made(tmp_path: Path, made: Make, road: list[Path]) -> None:
    found = read_sources(road)
    assert {name: (kind, parents) for name, kind, parents in road_text(found)} == {
        "documents": ("documents 1,083", ""),
        "tokens": ("tokens 129,900", "documents"),
        "base": ("model", ""),
        "cpt": ("run 4,096", "base, tokens"),
        "korean": ("model", "cpt, base"),
        "merged": ("model", "korean, base"),
    }
    depth = {node.path.name: node.depth for node in lay_out(found)}
    assert depth == {"documents": 0, "tokens": 1, "base": 1, "cpt": 2, "korean": 3, "merged": 4}
    page = Page(road_map(found))
    assert len(page.all("rect")) == len(page.all("li")) == 6
    assert len(page.all("path")) == 7
    assert "cpt from base, tokens" in str(page.all("svg")[0]["aria-label"])
    text = made({}, *road).text
    assert "5.00%" in text  # the chat vector's norm
    write_markdown(tmp_path / "report.md", found)
    assert "| layers.0.mlp.up_proj | 0.500  | 10.000 | 5.00% |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "ko 4,096 (100.0%), 0.50 epochs" in text  # the mixture


def test_roads_stay_within_the_drawing_and_cross_no_box(road: list[Path]) -> None:
    page = Page(road_map(read_sources(road)))
    width, height = (float(size) for size in str(page.all("svg")[0]["viewbox"]).split()[2:])
    boxes = [(float(str(box["x"])), float(str(box["y"]))) for box in page.all("rect")]
    assert all(x + WIDTH <= width and y + HEIGHT <= height for x, y in boxes)
    for path in page.all("path"):
        drawn = str(path["d"])
        for start, y, end in re.findall(r" (-?\d+) (-?\d+)H(\d+)", drawn):  # across a column
            assert 0 <= float(y) <= height
            assert all(x != float(start) or not top <= float(y) <= top + HEIGHT for x, top in boxes), drawn
            assert float(end) - float(start) == WIDTH
    assert sum("H" in str(path["d"]) for path in page.all("path")) == 2  # base to korean and to merged
