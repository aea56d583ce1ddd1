"""The HTML page: complete, well formed, self-contained, and unmoved by hostile text."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from data_prep.lineage import ROOT
from recipes.evaluation.report.charts import line_chart, ticks
from recipes.evaluation.report.html import language
from recipes.evaluation.report.markdown import write_markdown
from recipes.evaluation.report.page import write_page
from recipes.evaluation.report.road_map import lay_out, road_map, road_text
from recipes.evaluation.report.sources import ReportError, Sources, read_sources
from recipes.evaluation.report.tables import benchmarks, figure, results, wilson

HOSTILE = "\"><script>alert('x')</script>&amp;<img src=x onerror=y>"
VOID = {"meta", "line", "polyline", "br", "input"}


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
    speed = {"speed/tokens_per_second": 1234.5, "speed/mfu_causal": 0.41}
    rows: list[dict[str, Any]] = [
        {"step": n, "train/loss": 8 / n, "train/lr": 1e-4, "train/tokens": 512 * n} | speed for n in range(1, 1001)
    ]
    rows += [{"step": step, "validation/ko/bits_per_byte": bits} for step, bits in ((0, 2.2), (1000, 2.0))]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 1001, "tr'
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    (folder / "command.txt").write_text(f"recipes/cpt.py --config {HOSTILE}\n", encoding="utf-8")
    (folder / "versions.json").write_text('{"torch": "2.13.0"}', encoding="utf-8")
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"ledger": {"in": 1234567, "dropped": {"short": 3}, "ok": true}}')
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


def made(tmp_path: Path, report: dict[str, Any], *folders: Path) -> Page:
    (tmp_path / "report.json").write_text(json.dumps({"rows": [], **report}), encoding="utf-8")
    write_page(tmp_path / "page" / "report.html", read_sources([tmp_path / "report.json", *folders]))
    return Page((tmp_path / "page" / "report.html").read_text(encoding="utf-8"))


def test_the_page_has_results_curves_ledger_answers_commands_and_versions(
    tmp_path: Path, report: dict[str, Any], run: Path, shards: Path
) -> None:
    page = made(tmp_path, report, run, shards)
    for text in ("2.548", "98 %", "–", "shards: in", "1,234,567", "dropped.short", "torch=2.13.0", "recipes/cpt.py"):
        assert text in page.text
    assert "At the end: step 1000, loss 0.008, 512,000 tokens, 1,234 tokens/s, lr 1.00e-04" in page.text
    assert "2.2000 → 2.0000 (-9.1%)" in page.text
    assert "MFU, causal" in page.text
    assert "median 41.0%" in page.text
    assert "shards: ok" not in page.text
    assert len(page.all("polyline")) == 4  # held-out Korean, loss, tokens/s, MFU
    points = str(page.all("polyline")[1]["points"]).split()
    assert 300 < len(points) <= 402
    assert {"lang": "ko", "class": "text"} in page.all("td")
    assert {"lang": "ko", "class": "prompt"} in page.all("p")
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    assert page.all("html") == [{"lang": "en"}]


def test_the_page_speaks_both_languages_and_shows_one(tmp_path: Path, report: dict[str, Any], run: Path) -> None:
    page = made(tmp_path, report, run)
    assert "Training loss학습 손실" in page.text
    assert [attributes["id"] for attributes in page.all("input") if "checked" in attributes] == ["en"]
    write_page(tmp_path / "ko.html", Sources(), "ko")
    page = Page((tmp_path / "ko.html").read_text(encoding="utf-8"))
    assert [attributes["id"] for attributes in page.all("input") if "checked" in attributes] == ["ko"]
    assert page.all("html") == [{"lang": "ko"}]


def test_differences_from_the_first_row_say_whether_they_are_better(tmp_path: Path) -> None:
    rows = [{"model": "base", "bits_per_byte_ko": 3.0, "chat_form_ko": 0.5}]
    rows += [{"model": "ours", "bits_per_byte_ko": 2.0, "chat_form_ko": 0.25}]
    (tmp_path / "report.json").write_text(json.dumps({"rows": rows, "examples": {"chat_form_ko": 20}}))
    text = results(read_sources([tmp_path / "report.json"]))
    assert '2.000<small class="better">▼ -1.000</small>' in text
    assert '25 %<small class="worse">▼ -25</small><small>11–47 %, n = 20</small>' in text


def test_the_interval_is_wilsons() -> None:
    # its ends solve (p - share)^2 = z^2 p (1 - p) / n
    for share, count in ((0.25, 20), (0.5, 7), (0.9, 100)):
        for p in wilson(share, count):
            assert (p - share) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / count)
    assert wilson(0.0, 10)[0] == pytest.approx(0.0, abs=1e-12)
    assert wilson(1.0, 10)[1] == pytest.approx(1.0)


def test_harness_scores_stand_side_by_side(tmp_path: Path) -> None:
    one: dict[str, Any] = {"label": "KMMLU", "metric": "acc", "shots": 5, "macro": 0.41, "macro_stderr": 0.01}
    one |= {"micro": 0.4, "subjects": {"a": 0.3, "b": 0.52}}
    scores = {"base": [one], "ours": [{**one, "macro": 0.46}], "new": []}
    (tmp_path / "harness.json").write_text(json.dumps({"harness": scores}))
    found = read_sources([tmp_path / "harness.json"])
    text = Page(benchmarks(found.harness)).text
    for shown in ("KMMLU (5-shot acc)", "41.0 ± 2.0, micro 40.0", "▲ +5.0", "–"):
        assert shown in text
    write_markdown(tmp_path / "report.md", found)
    assert "| KMMLU | 41.0 | 46.0 | –   |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def artifact(folder: Path, inputs: dict[str, Path], **facts: object) -> Path:
    folder.mkdir()
    manifest = {"inputs": {key: {"path": str(path)} for key, path in inputs.items()}, **facts}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def road(tmp_path: Path) -> list[Path]:
    """Documents -> tokens -> a run from a base -> a model, with a chat vector beside it."""
    documents = artifact(tmp_path / "documents", {"dump": tmp_path / "x.bz2"}, counts={"documents": 1083})
    tokens = artifact(tmp_path / "tokens", {"documents": documents}, num_tokens=129900)
    base = artifact(tmp_path / "base", {}, kind="model")
    cpt = tmp_path / "cpt"
    cpt.mkdir()
    (cpt / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0, "train/tokens": 4096}\n')
    (cpt / "config.yaml").write_text(f"weights: {base}\n")
    mixture = {"sources": {"ko": {"shards": str(tokens), "tokens": 4096, "epochs": 0.5}}}
    (cpt / "mixture.json").write_text(json.dumps(mixture))
    inputs = {"checkpoint": cpt / "checkpoints/step-1/state.json", "weights": base}
    korean = artifact(tmp_path / "korean", inputs, kind="model")
    merged = artifact(tmp_path / "merged", {"target": korean, "plus": base})
    norms = {"change": 0.5, "target": 10.0, "ratio": 0.05}
    (merged / "norms.json").write_text(json.dumps({"all": norms, "tensors": {"model.norm.weight": norms}}))
    return [merged, korean, cpt, base, tokens, documents]


def test_the_road_map_leads_from_what_was_read_to_what_was_made(tmp_path: Path, road: list[Path]) -> None:
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
    assert depth == {"documents": 0, "base": 0, "tokens": 1, "cpt": 2, "korean": 3, "merged": 4}
    page = Page(road_map(found))
    assert len(page.all("rect")) == 6
    assert len(page.all("path")) == 7
    assert "cpt from base, tokens" in str(page.all("svg")[0]["aria-label"])
    text = made(tmp_path, {}, *road).text
    assert "5.00%" in text  # the chat vector's norm
    assert "0.50" in text  # epochs of the mixture


def test_markdown_and_its_picture(tmp_path: Path, report: dict[str, Any], run: Path, shards: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    write_markdown(tmp_path / "report.md", read_sources([tmp_path / "report.json", run, shards]))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for shown in ("| base ", "2.548", "1,234,567", "(report.png)"):
        assert shown in text
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_hostile_text_stays_text(tmp_path: Path, report: dict[str, Any], run: Path) -> None:
    page = made(tmp_path, report, run.rename(run.with_name(HOSTILE.replace("/", "-"))))
    assert page.all("script") == []
    assert page.all("img") == []
    assert page.text.count(HOSTILE) >= 6
    allowed = {"aria-label", "class", "lang", "role", "scope", "tabindex", "charset", "name", "content", "style"}
    switch = {"type", "id", "checked"}
    drawing = {"viewbox", "points", "x", "y", "x1", "x2", "y1", "y2", "text-anchor", "d", "rx", "width", "height"}
    assert {key for _, attributes in page.elements for key in attributes} <= allowed | switch | drawing


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path, report: dict[str, Any], run: Path) -> None:
    made(tmp_path, {**report, "generations": [], "settings": {}}, run)
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
        made(tmp_path, {}, run)


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
