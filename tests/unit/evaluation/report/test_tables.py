"""Scores side by side: differences, intervals, the headline, harness scores, retention."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.evaluation.report.forgetting import checkpoints, retention
from recipes.evaluation.report.markdown import write_markdown
from recipes.evaluation.report.sources import read_sources
from recipes.evaluation.report.tables import benchmarks, figure, headline, results, wilson
from tests.unit.evaluation.report.conftest import Make
from tests.unit.evaluation.report.reader import Page


def test_differences_from_the_first_row_say_whether_they_are_better(tmp_path: Path) -> None:
    rows = [{"model": "base", "bits_per_byte_ko": 3.0, "chat_form_ko": 0.5, "repetition_ko": 0.5}]
    rows += [{"model": "ours", "bits_per_byte_ko": 2.0, "chat_form_ko": 0.25, "repetition_ko": 0.25}]
    (tmp_path / "report.json").write_text(json.dumps({"rows": rows, "examples": {"chat_form_ko": 20}}))
    found = read_sources([tmp_path / "report.json"])
    text = results(found)
    assert '2.000<small class="better">▼ -1.000</small>' in text
    assert '25 %<small class="worse">▼ -25</small><small>11–47 %</small>' in text
    assert '25 %<small class="better">▼ -25</small></td>' in text  # answers in a loop
    assert "<small>n = 20</small></th>" in text
    assert "base → ours" in headline(found)
    assert '3.000 → 2.000</b><small class="better">▼ -33.3%</small>' in headline(found)


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


@pytest.fixture
def followed(run: Path) -> Path:
    """The run with what `recipes.evaluate_run` writes beside it."""
    steps = {0: (2.2, 1.5), 500: (2.1, 1.5), 1000: (2.0, 1.8)}
    rows = [
        {"step": step, "model": f"step {step}", "bits_per_byte_ko": ko, "bits_per_byte_en": en, "seconds": 1.5}
        for step, (ko, en) in steps.items()
    ]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = [
        {
            "model": "base" if step == 0 else f"step {step}",
            "step": step,
            "bits_per_byte": {"ko": ko, "en": en},
            "change": {"ko": ko - 2.2, "en": en - 1.5},
            "retention": {"ko": 2.2 / ko, "en": 1.5 / en},
            "alarm": step == 1000,
            "suggested_replay": 0.4 if step == 1000 else None,
            "best": step == 500,
        }
        for step, (ko, en) in steps.items()
    ]
    content = {"guard": "en", "max_rise": 0.05, "base": "base", "languages": ["ko", "en"], "rows": table}
    (run / "retention.json").write_text(json.dumps(content))
    return run


def test_retention_shows_what_was_gained_and_forgotten(tmp_path: Path, followed: Path, made: Make) -> None:
    found = read_sources([followed])
    text = retention(found)
    assert "step 500 ★" in text
    assert '2.000<small class="better">▼ -0.200</small></td><td>110.0%</td>' in text
    assert '1.800<small class="worse">▲ +0.300</small><small class="worse">' in text
    assert text.count("alarm") == 2  # of one row and of the limit
    assert "<td>40%</td>" in text
    charts = Page(checkpoints(found.runs))
    assert [line["class"] for line in charts.all("polyline")] == ["curve c0", "curve c1"]
    assert len([line for line in charts.all("line") if line["class"] == "mark"]) == 1
    assert "en 1.500 → 1.800 (+20.0%)" in charts.text
    write_markdown(tmp_path / "report.md", found)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| step 500 (best)   | 2.100        | -0.100    | 104.8%  | 1.500        | +0.000    | 100.0%  |" in text
    assert "| step 1000 (alarm) |" in text
    assert "Retention" in made({}, followed).text


def test_figures() -> None:
    assert figure("bits_per_byte_ko", 2.0) == "2.000"
    assert figure("exact_match", 0.999) == "100 %"
    assert figure("exact_match", None) == figure("exact_match", float("inf")) == "–"
