"""A run, shards and scores, some of it hostile, and the page made of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.evaluation.report.page import write_page
from recipes.evaluation.report.sources import read_sources
from tests.unit.evaluation.report.reader import Page

HOSTILE = "\"><script>alert('x')</script>&amp;<img src=x onerror=y>"
Make = Callable[..., Page]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    speed = {"speed/tokens_per_second": 1234.5, "speed/tokens_per_second_per_rank": 617.25, "speed/mfu_causal": 0.41}
    speed |= {"time/step": 0.5, "time/data_wait": 0.005, "memory/peak_rss_gib": 1.25}
    rows: list[dict[str, Any]] = [
        {"step": n, "train/loss": 8 / n, "train/lr": 1e-4, "train/tokens": 512 * n} | speed for n in range(1, 1001)
    ]
    for step, ko, en in ((0, 2.2, 1.5), (1000, 2.0, 1.6)):
        rows.append({"step": step, "validation/ko/bits_per_byte": ko, "validation/en/bits_per_byte": en})
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 1001, "tr'
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    (folder / "command.txt").write_text(f"/code/recipes/cpt.py --config {HOSTILE}\n", encoding="utf-8")
    (folder / "versions.json").write_text('{"torch": "2.13.0"}', encoding="utf-8")
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    sources = [{"source": name, "lang": "ko", "tokens": tokens} for name, tokens in (("wiki", 300), ("web", 100))]
    ledger = {"in": 1234567, "out": 1234564, "dropped": {"short": 3}, "ok": True}
    (folder / "manifest.json").write_text(json.dumps({"ledger": ledger, "sources": sources}))
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


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """Writes the page of a report and folders, and reads it."""

    def make(report: dict[str, Any], *folders: Path) -> Page:
        (tmp_path / "report.json").write_text(json.dumps({"rows": [], **report}), encoding="utf-8")
        write_page(tmp_path / "page" / "report.html", read_sources([tmp_path / "report.json", *folders]))
        return Page((tmp_path / "page" / "report.html").read_text(encoding="utf-8"))

    return make


def artifact(folder: Path, inputs: dict[str, Path], **facts: object) -> Path:
    folder.mkdir()
    manifest = {"inputs": {key: {"path": str(path)} for key, path in inputs.items()}, **facts}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def road(tmp_path: Path) -> list[Path]:
    """Documents -> tokens -> a run from a base -> a model, with a chat vector beside it, and something unconnected."""
    documents = artifact(tmp_path / "documents", {"dump": tmp_path / "x.bz2"}, counts={"documents": 1083})
    tokens = artifact(tmp_path / "tokens", {"documents": documents}, num_tokens=129900)
    base = artifact(tmp_path / "base", {}, kind="model")
    heldout = artifact(tmp_path / "heldout", {}, counts={"documents": 36})
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
    tensors = {"model.layers.0.mlp.up_proj.weight": norms, "model.norm.weight": norms}
    (merged / "norms.json").write_text(json.dumps({"all": norms, "tensors": tensors}))
    return [merged, korean, cpt, base, tokens, documents, heldout]
