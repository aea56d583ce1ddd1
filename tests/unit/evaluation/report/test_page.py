"""The HTML page: complete, well formed, self-contained, and unmoved by hostile text."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.lineage import ROOT
from recipes.evaluation.report.html import language, table
from recipes.evaluation.report.markdown import write_markdown
from recipes.evaluation.report.page import write_page
from recipes.evaluation.report.picture import fonts
from recipes.evaluation.report.sources import ReportError, Sources, read_sources, short_names
from tests.unit.evaluation.report.conftest import HOSTILE, Make
from tests.unit.evaluation.report.reader import Page


def test_the_page_has_results_curves_ledger_answers_commands_and_versions(
    made: Make, report: dict[str, Any], run: Path, shards: Path
) -> None:
    page = made(report, run, shards)
    for text in ("2.548", "98 %", "–", "1,234,567 in", "short 3", "torch=2.13.0", "wiki (ko) 300 (75.0%)"):
        assert text in page.text
    assert "tune run --nproc_per_node 2 recipes/cpt.py --config" in page.text
    assert "ko 2.200 → 2.000 (-9.1%)" in page.text
    assert "MFU, causal" in page.text
    assert "41.0%" in page.text
    assert len(page.all("polyline")) == 6  # held-out Korean and English; loss and tokens/s, each with its running mean
    assert all(300 < len(str(line["points"]).split()) <= 402 for line in page.all("polyline")[2:])
    assert page.all("polyline")[2]["points"] != page.all("polyline")[3]["points"]
    assert {"lang": "ko"} in page.all("dd")
    assert {"lang": "ko", "class": "prompt"} in page.all("p")
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    assert page.all("html") == [{"lang": "en"}]


def test_the_page_speaks_both_languages_and_shows_one(
    tmp_path: Path, made: Make, report: dict[str, Any], run: Path
) -> None:
    page = made(report, run)
    assert "Training loss학습 손실" in page.text
    assert [attributes["id"] for attributes in page.all("input") if "checked" in attributes] == ["en"]
    write_page(tmp_path / "ko.html", Sources(), "ko")
    page = Page((tmp_path / "ko.html").read_text(encoding="utf-8"))
    assert [attributes["id"] for attributes in page.all("input") if "checked" in attributes] == ["ko"]
    assert page.all("html") == [{"lang": "ko"}]


def test_a_name_that_somebody_gave_is_not_translated(made: Make, run: Path, shards: Path) -> None:
    # run and tokens are words of the page, too
    page = made({}, run, shards.rename(shards.with_name("tokens")))
    headings = [text for text in re.findall(r"<h3>(.*?)</h3>", page.source) if "span" not in text]
    assert headings.count("run") >= 3
    assert headings.count("tokens") == 2
    assert '<th scope="row">run</th>' in page.source


def test_a_comparison_stands_with_the_answers(tmp_path: Path, made: Make) -> None:
    answer = {"text": "서울입니다.", "tokens": 7, "seconds": 0.5, "reason": "length", "sampling": {}}
    turns = [{"role": "system", "content": "짧게."}, {"role": "user", "content": "수도는?"}]
    rows = [{"messages": turns[1:], "answers": {"ours": answer}}, {"messages": turns, "answers": {"ours": answer}}]
    (tmp_path / "comparison.json").write_text(json.dumps({"rows": rows, "config": {}}))
    page = made({}, tmp_path / "comparison.json")
    assert "수도는?\nours 7 tokens, cut off서울입니다." in page.text
    assert "system: 짧게.\nuser: 수도는?" in page.text
    assert "Results" not in page.text


def test_every_link_of_the_contents_leads_to_a_section(made: Make, report: dict[str, Any], run: Path) -> None:
    page = made(report, run)
    links = [str(link["href"]).removeprefix("#") for link in page.all("a")]
    assert links == [section["id"] for section in page.all("section")]
    assert len(set(links)) == len(links) >= 6


def test_markdown_and_its_picture(tmp_path: Path, report: dict[str, Any], run: Path, shards: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    write_markdown(tmp_path / "report.md", read_sources([tmp_path / "report.json", run, shards]))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for shown in (
        "| base ",
        "2.548",
        "1,234,567 in",
        "short 3",
        "| run | 1,000 |",
        "(report.png)",
        "run: torch=2.13.0",
    ):
        assert shown in text
    assert "**수도는?<br>" in text
    answers = text[text.index("**수도는?") : text.index("## Composition")]
    assert "| 서울입니다." in answers
    assert "<script" not in answers
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_letters_for_a_korean_name(tmp_path: Path, run: Path) -> None:
    if len(fonts()) == 1:
        pytest.skip("no Korean font on this machine")
    # a letter without a glyph is a warning, which the settings of the tests make an error
    write_markdown(tmp_path / "report.md", read_sources([run.rename(run.with_name("한국어"))]))


def test_hostile_text_stays_text(made: Make, report: dict[str, Any], run: Path) -> None:
    page = made(report, run.rename(run.with_name(HOSTILE.replace("/", "-"))))
    assert page.all("script") == []
    assert page.all("img") == []
    assert page.text.count(HOSTILE) >= 6
    allowed = {"aria-label", "class", "lang", "role", "scope", "tabindex", "charset", "name", "content", "style"}
    switch = {"type", "id", "checked", "href", "rel"}
    drawing = {"viewbox", "points", "x", "y", "x1", "x2", "y1", "y2", "text-anchor", "d", "rx", "width", "height"}
    drawing |= {"cx", "cy", "r"}
    assert {key for _, attributes in page.elements for key in attributes} <= allowed | switch | drawing
    assert all(str(link["href"]).startswith("#") for link in page.all("a"))


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path, made: Make, report: dict[str, Any], run: Path) -> None:
    page = made({**report, "generations": [], "settings": {}}, run)
    text = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert not any(sign in text for sign in ("https:", "@import", "url(", "<script>"))
    assert text.count("http:") == text.count("xmlns='http://www.w3.org/2000/svg'") == 1
    assert [str(link["href"])[:18] for link in page.all("link")] == [
        "data:image/svg+xml"
    ]  # or browsers ask for an icon


def test_an_empty_report_is_a_page(made: Make) -> None:
    page = made({})
    assert page.all("section") == page.all("nav") == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", "{\n{}\n", r"metrics.jsonl line 1 is no JSON object: .*; mend or remove it"),
        ("versions.json", "[1]", r"versions.json holds no JSON object: .*; mend or remove it"),
    ],
)
def test_a_damaged_file_is_named(made: Make, run: Path, name: str, text: str, message: str) -> None:
    (run / name).write_text(text)
    with pytest.raises(ReportError, match=message):
        made({}, run)


def test_names_are_as_short_as_they_can_be() -> None:
    paths = [Path("out/runs/base"), Path("out/models/base"), Path("out/runs/cpt"), Path("out/runs/cpt")]
    assert short_names(paths) == ["runs/base", "models/base", "cpt", "cpt"]


def test_long_names_break_at_their_joints_only() -> None:
    text = table("t", ["Tensor"], [("model.layers.0.self_attn", []), ("1.5", []), (HOSTILE, [])])
    assert "model.<wbr>layers.<wbr>0.<wbr>self_<wbr>attn" in text
    assert Page(text).text.endswith(HOSTILE + "\n\n")


def test_languages() -> None:
    assert language("The capital is 서울.") == "ko"
    assert language("日本 Tokyo") == "en"


def test_the_command_writes_the_page_and_names_what_is_missing(
    tmp_path: Path, run: Path, report: dict[str, Any]
) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    command = [sys.executable, "-m", "recipes.evaluation.report", "--out", str(tmp_path / "report.html")]
    result = subprocess.run(
        [*command, str(tmp_path / "report.json"), str(run)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "<title>kotune: report</title>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    result = subprocess.run([*command, "nowhere"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("error: nowhere does not exist; give a report.json")
