"""A sweep over scales on a chat vector whose effect is known, from the documented command."""

import json
from pathlib import Path

import pytest
import yaml

import recipes.sweep
from data_prep.document import Document, as_row, write_jsonl
from tests.support import TEXTS, answering_llama, run_here, tiny_llama, tiny_tokenizer

ANSWER = "부산."


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base itself is the target, so that scale 1 is the instruct model, which always answers in Korean."""
    root = tmp_path_factory.mktemp("sweep")
    base = tiny_llama(tiny_tokenizer(root / "base"))
    for lang, texts in {"en": TEXTS[::2], "ko": TEXTS[1::2]}.items():
        rows = [as_row(Document(id=str(n), text=text, lang=lang)) for n, text in enumerate(texts)]
        write_jsonl(root / lang / "documents-00000.jsonl.zst", rows)
    asked = {"ko": "인사해 주세요.", "en": "Say hello."}
    rows = [{"id": lang, "lang": lang, "messages": [{"role": "user", "content": t}]} for lang, t in asked.items()]
    write_jsonl(root / "prompts.jsonl", rows)
    settings = {
        "output_dir": str(root / "out"),
        "target": str(base),
        "minus": str(base),
        "plus": str(answering_llama(root / "plus", ANSWER)),
        "scales": [1.0, 0.01],
        "documents": {lang: str(root / lang) for lang in ("ko", "en")},
        "prompts": str(root / "prompts.jsonl"),
        "seq_len": 64,
        "max_new_tokens": 12,
        "max_rise": 100.0,
    }
    (root / "sweep.yaml").write_text(yaml.safe_dump(settings))
    return root / "sweep.yaml"


def test_the_scale_that_chats_is_recommended_and_no_model_is_written(config: Path) -> None:
    result = run_here(recipes.sweep.main, config)
    assert result.returncode == 0, result.stderr
    assert "Recommended: scale 1 (100% in chat form and language" in result.stdout
    out = config.parent / "out"
    assert {file.name for file in out.iterdir()} == {"sweep.json", "sweep.md", "sweep.png"}
    assert (out / "sweep.md").read_text(encoding="utf-8") == result.stdout
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    assert [row["scale"] for row in report["rows"]] == [0.0, 0.01, 1.0]
    assert report["generations"][0]["answers"]["scale 1"] == ANSWER
    assert report["rows"][2]["chat_form_ko"] == report["rows"][2]["answered_in_korean"] == 1.0
    assert report["rows"][0]["chat_form_ko"] == 0.0
    assert report["rows"][0]["bits_per_byte_ko"] != report["rows"][1]["bits_per_byte_ko"]


def test_scored_scales_are_kept_and_no_scale_may_do(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_here(recipes.sweep.main, config).returncode == 0
    monkeypatch.delattr("recipes.sweep.score")  # nothing is to be scored again
    result = run_here(recipes.sweep.main, config, "max_rise=0.0", "scales=[1.0]")
    assert result.returncode == 0, result.stderr
    assert "Recommended: no scale (bits per byte rise by" in result.stdout
    assert "0% are allowed" in result.stdout


def test_problems_are_named_together(config: Path) -> None:
    wrong = ["scales=[0, 1]", "max_rise=-1", "documents.ko=nowhere", "prompts=null", "combine=some"]
    result = run_here(recipes.sweep.main, config, *wrong)
    assert result.returncode == 2
    for text in ("scales: 0.0 is no positive", "max_rise: -1.0 is below 0", "documents.ko: nowhere does not exist"):
        assert text in result.stderr
    assert "documents, prompts: one is missing" in result.stderr
    assert "combine: 'some' is not known" in result.stderr
    long = run_here(recipes.sweep.main, config, "seq_len=1000", "max_new_tokens=300")
    assert "seq_len: 1000 tokens, the model reads 256; take fewer" in long.stderr
    assert "max_new_tokens: prompt and answer: " in long.stderr
