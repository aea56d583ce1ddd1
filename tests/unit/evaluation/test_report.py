"""The HTML page: complete, well formed, self-contained, and unmoved by hostile text."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from data_prep.lineage import ROOT
from recipes.evaluation.charts import line_chart, ticks
from recipes.evaluation.report import ReportError, figure, language, write_html

HOSTILE = "\"><script>alert('x')</script>&amp;<img src=x onerror=y>"
VOID = {"meta", "line", "polyline", "br"}


class Page(HTMLParser):
    """Collects elements and text, and fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [
        {"step": n, "train/loss": 8 / n, "train/lr": 1e-4, "train/tokens": 512 * n, "speed/tokens_per_second": 1234.5}
        for n in range(1, 1001)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 1001, "tr'
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    (folder / "command.txt").write_text(f"recipes/cpt.py --config {HOSTILE}\n", encoding="utf-8")
    (folder / "versions.json").write_text('{"torch": "2.13.0"}', encoding="utf-8")
    return folder


@pytest.fixture
def report() -> dict[str, Any]:
    return {
        "rows": [
            {"model": "base", "bits_per_byte_ko": 2.5484, "chat_form_ko": 0.0, "exact_match": None},
            {"model": HOSTILE, "bits_per_byte_ko": float("nan"), "chat_form_ko": 0.985, "exact_match": 1.0, "new": 0.5},
        ],
        "generations": [
            {"prompt": "수도는?\n" + HOSTILE, "lang": "ko", "answers": {"base": "서울입니다.", HOSTILE: HOSTILE}}
        ],
        "settings": {"decoding": HOSTILE},
    }


def made(tmp_path: Path, report: dict[str, Any], **runs: Path) -> Page:
    write_html(tmp_path / "page" / "report.html", report, runs)
    return Page((tmp_path / "page" / "report.html").read_text(encoding="utf-8"))


def test_the_page_has_results_curves_ledger_answers_commands_and_versions(
    tmp_path: Path, report: dict[str, Any], run: Path
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "manifest.json").write_text('{"ledger": {"in": 1234567, "dropped": {"short": 3}, "ok": true}}')
    page = made(tmp_path, report, cpt=run, shards=shards)
    for text in (
        "2.548",
        "98 %",
        "–",
        "shards: in",
        "1,234,567",
        "shards: dropped.short",
        "torch=2.13.0",
        "recipes/cpt.py",
    ):
        assert text in page.text
    assert "At the end: step 1000, loss 0.008, 512,000 tokens, 1,234 tokens/s, lr 1.00e-04" in page.text
    assert "shards: ok" not in page.text
    assert len(page.all("svg")) == 1
    points = str(page.all("polyline")[0]["points"]).split()
    assert 300 < len(points) <= 402
    assert {"lang": "ko", "class": "text"} in page.all("td")
    assert {"lang": "ko", "class": "prompt"} in page.all("p")
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    assert page.all("html") == [{"lang": "en"}]


def test_hostile_text_stays_text(tmp_path: Path, report: dict[str, Any], run: Path) -> None:
    page = made(tmp_path, report, **{HOSTILE: run})
    assert page.all("script") == []
    assert page.all("img") == []
    assert page.text.count(HOSTILE) >= 6
    allowed = {"aria-label", "class", "lang", "role", "scope", "tabindex", "charset", "name", "content"}
    drawing = {"viewbox", "points", "x", "y", "x1", "x2", "y1", "y2", "text-anchor"}
    assert {key for _, attributes in page.elements for key in attributes} <= allowed | drawing


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path, report: dict[str, Any], run: Path) -> None:
    made(tmp_path, {**report, "generations": [], "settings": {}}, cpt=run)
    text = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert not any(sign in text for sign in ("http:", "https:", "@import", "url(", "<link", "<script>"))
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_an_empty_report_is_a_page(tmp_path: Path) -> None:
    assert made(tmp_path, {}).all("section") == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", "{\n{}\n", r"metrics.jsonl line 1 is no JSON object: .*; mend or remove it"),
        ("versions.json", "[1]", r"versions.json holds no JSON object: .*; mend or remove it"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, run: Path, name: str, text: str, message: str) -> None:
    (run / name).write_text(text)
    with pytest.raises(ReportError, match=message):
        made(tmp_path, {}, run=run)


def test_figures_and_languages() -> None:
    assert figure("bits_per_byte_ko", 2.0) == "2.000"
    assert figure("exact_match", 0.999) == "100 %"
    assert figure("exact_match", None) == figure("exact_match", float("inf")) == "–"
    assert language("The capital is 서울.") == "ko"
    assert language("日本 Tokyo") == "en"


def test_ticks_are_round_and_enclose_the_values() -> None:
    assert ticks([0.13, 9.7]) == [0, 2, 4, 6, 8, 10]
    for values in ([0.0], [-1.0, 1.0], [1e-9, 3e-9], [1, 1_000_000], [5.0, 5.0]):
        found = ticks(values)
        assert found[0] <= min(values)
        assert found[-1] >= max(values)
        assert 2 <= len(found) <= 8


def test_a_chart_leaves_out_what_is_not_finite() -> None:
    svg = line_chart("t", "step", [(1, 1.0), (2, float("nan")), (3, 2.0)])
    assert len(Page(svg).all("polyline")[0]["points"].split()) == 2
    assert "No finite values" in line_chart("t", "step", [(1, float("inf"))])


def test_the_command_writes_the_page_and_names_what_is_missing(
    tmp_path: Path, run: Path, report: dict[str, Any]
) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    command = [sys.executable, "-m", "recipes.evaluation.report", "--out", str(tmp_path / "report.html")]
    result = subprocess.run(
        [*command, str(tmp_path / "report.json"), str(run)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "2 models, 1 training runs" in (tmp_path / "report.html").read_text(encoding="utf-8")
    result = subprocess.run([*command, "nowhere"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("error: nowhere does not exist; give a report.json")
