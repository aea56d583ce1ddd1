"""The chat vector's size by layer, and the sweep of its scales."""

import json
from pathlib import Path

import pytest

from recipes.evaluation.report.markdown import write_markdown
from recipes.evaluation.report.sources import read_sources
from recipes.evaluation.report.vectors import by_layer, sweeps
from tests.unit.evaluation.report.reader import Page


def test_matrices_of_a_layer_are_joined_by_their_squares() -> None:
    def norms(change: float, target: float) -> dict[str, float]:
        return {"change": change, "target": target}

    tensors = {
        "model.layers.10.mlp.up_proj.weight": norms(3.0, 30.0),
        "model.layers.10.mlp.down_proj.weight": norms(4.0, 40.0),
        "language_model.model.layers.2.mlp.up_proj.weight": norms(1.0, 4.0),
        "model.layers.2.self_attn.q_proj.weight": norms(1.0, 2.0),
        "model.layers.2.input_layernorm.weight": norms(9.0, 1.0),
        "lm_head.weight": norms(9.0, 1.0),
    }
    found = {kind: dict(points) for kind, points in by_layer(tensors).items()}
    assert found == {"MLP": {2: pytest.approx(25.0), 10: pytest.approx(10.0)}, "attention": {2: pytest.approx(50.0)}}


def test_a_sweep_shows_its_scores_and_marks_the_recommended_scale(tmp_path: Path) -> None:
    rows = [
        {"model": f"scale {scale}", "scale": scale, "bits_per_byte_ko": 2 + scale, "chat_form_ko": scale}
        for scale in (0.0, 0.5, 1.0)
    ]
    choice = {"scale": 0.5, "rule": "the best", "reason": "it is"}
    (tmp_path / "sweep.json").write_text(json.dumps({"rows": rows, "scored": {}, "recommendation": choice}))
    found = read_sources([tmp_path / "sweep.json"])
    page = Page(sweeps(found))
    assert "Recommended scale추천 배율: 0.5 (it is). Rule기준: the best." in page.text
    assert "2.500" in page.text
    assert len(page.all("svg")) == 2  # bits per byte; shares
    assert len([line for line in page.all("line") if line["class"] == "mark"]) == 2
    write_markdown(tmp_path / "report.md", found)
    assert "Recommended: 0.5 (it is)." in (tmp_path / "report.md").read_text(encoding="utf-8")
