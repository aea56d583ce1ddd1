"""The benchmarks of the trainer run: every variant, on shapes so small that their figures mean nothing."""

import json
import sys

import pytest

from tests.support import ROOT, launch

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

import gpu_report
import gpu_variants

GPU = str(ROOT / "tests" / "benchmarks" / "gpu.py")
STEP = str(ROOT / "tests" / "benchmarks" / "train_step.py")


@pytest.mark.slow
def test_a_training_step_is_compared_and_all_that_see_the_same_have_the_same_losses(tmp_path):
    arguments = ["--model", "tiny", "--seq-len", "64", "--rounds", "1", "--warm-up", "1", "--steps", "1"]
    names = ["ours", "torchtune, as shipped", "torchtune, nothing recomputed"]  # Trainer is not among our dependencies
    out = tmp_path / "work"
    result = launch(
        sys.executable, STEP, *arguments, "--no-install", "--out", str(out), "--variants", *names, "Trainer, packed"
    )
    assert "losses agree" in result.stdout
    rounds = json.loads((out / "results.json").read_text())["rounds"]
    expected = rounds["ours"][0]["losses"]
    assert len(expected) == 2
    for name in names:
        assert rounds[name][0]["losses"] == pytest.approx(expected, abs=0.02), name
        assert rounds[name][0]["seconds"][0] > 0
        assert rounds[name][0]["peak_rss"] > 10_000_000


@pytest.mark.slow
def test_every_variant_of_the_gpu_benchmark_runs_or_says_that_it_needs_one(tmp_path):
    sizes = ["--device", "cpu", "--model", "tiny", "--warm-up", "1", "--steps", "1", "--seconds", "1000"]
    trained = [name for name, variant in gpu_variants.VARIANTS.items() if variant["method"] != "hugging_face"]
    names = [*gpu_variants.PARTS, *trained]
    result = launch(sys.executable, GPU, *sizes, "--out", str(tmp_path), "--only", *names, timeout=290)
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found["variants"]) == trained
    for name, facts in found["variants"].items():
        if gpu_variants.VARIANTS[name].get("needs_gpu"):
            assert facts["error"] == "needs a GPU"
        else:
            assert len(facts["losses"]) == 2, (name, facts)
    # the same weights and tokens in two trainers, whose bf16 differs
    ours, stock = (found["variants"][f"{who}, documents"] for who in ("ours", "torchtune as shipped"))
    assert ours["losses"][0] == pytest.approx(stock["losses"][0], abs=0.05)
    assert list(found["parts"]) == list(gpu_variants.PARTS)
    assert all("ms" in facts for facts in found["parts"]["gemm"].values())
    assert "error" not in found["parts"]["attention"]["17 documents, per_document"]
    assert "needs a GPU" in result.stdout


def test_what_there_was_no_time_for_is_in_the_table_and_rates_are_tokens_over_seconds():
    run = {"seconds": [2.0, 4.0, 2.0], "losses": [2.5, 2.25], "peak_rss": 2**31, "tokens_per_step": 40_000}
    results = {
        "model": "8b", "sizes": {"seq_len": 8192}, "probe": {"gpu": "a GPU"},
        "variants": {"ours": run, "late": {"error": "no time was left"}}, "parts": {},
    }  # fmt: skip
    title, _, ours, late = gpu_report.table(results)
    assert "a GPU" in title
    # 57.91 and 51.47 GFLOP a token, at 20,000 tokens/s of 989 TFLOP/s
    assert ours.split() == ["ours", "20,000", "117.1", "%", "104.1", "%", "2.0", "2.5000", "2.2500"]
    assert late.split(maxsplit=1) == ["late", "no time was left"]
