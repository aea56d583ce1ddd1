"""The documented command over a change of stage: what it reads, says and writes, its resume, and its refusals."""

import json
import os
import re
import shutil

import pytest
import yaml

from data_prep.lineage import sha256_file
from recipes import cpt
from tests.recipes.conftest import write_cpt_config
from tests.support import losses, metrics, random_shards, run_here, tune_run

STEP = 512
"""Tokens of a step: 8 sequences of 64."""
STAGES = [{"english_replay": 0.25}, {"from_step": 4, "english_replay": 0.75}]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory, base, shards):
    """A mixture file over Korean and English shards, of which the English share rises behind step 4."""
    folder = tmp_path_factory.mktemp("mixture")
    english = random_shards(folder / "en", seed=5, sha256=sha256_file(base / "tokenizer.json"))
    sources = {"ko": {"shards": str(shards), "lang": "ko"}, "en": {"shards": str(english), "lang": "en"}}
    path = folder / "mixture_test.yaml"
    path.write_text(yaml.safe_dump({"sources": sources, "stages": STAGES}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def straight(tmp_path_factory, base, shards, mixture):
    """An undisturbed run on two processes; tests only read it."""
    folder = tmp_path_factory.mktemp("straight")
    result = tune_run(2, "cpt", write_cpt_config(folder, base, shards), f"data={mixture}")
    return folder / "run", result.stdout


def test_a_run_reads_its_stages_and_says_so(straight):
    run, out = straight
    read = [(row["tokens/ko"], row["tokens/en"]) for row in metrics(run)]
    by_step = [(STEP * 3 // 4, STEP // 4)] * 4 + [(STEP // 4, STEP * 3 // 4)] * 2
    assert read == [tuple(map(sum, zip(*by_step[: n + 1], strict=True))) for n in range(6)]
    assert out.count("6 steps x 8 sequences x 64 tokens = 3,072 tokens") == 1
    assert out.count("step 0") == out.count("step 4") == 1
    stages = json.loads((run / "mixture.json").read_text())["stages"]
    assert [stage["tokens"] for stage in stages] == [{"ko": 1536, "en": 512}, {"ko": 256, "en": 768}]
    state = json.loads((run / "checkpoints/step-00000006/state.json").read_text())
    assert {name: value["tokens"] for name, value in state["sources"].items()} == {"ko": 1792, "en": 1280}
    assert state["ledger"]["tokens"] == 6 * STEP


def test_a_run_resumed_before_the_change_goes_on_through_it_at_another_world_size(straight, cpt_config, mixture):
    other = cpt_config.parent / "resumed"
    shutil.copytree(straight[0], other)
    os.rename(other / "checkpoints/step-00000006", other / "checkpoints/step-00000006.tmp")  # as a kill leaves it
    tune_run(1, "cpt", cpt_config, f"data={mixture}", f"output_dir={other}", "micro_batch=4")
    assert losses(other) == pytest.approx(losses(straight[0]), rel=1e-5)
    for name in ("tokens/ko", "tokens/en", "train/targets"):
        assert [row[name] for row in metrics(other)] == [row[name] for row in metrics(straight[0])]


def test_another_mixture_is_refused_naming_both(straight, cpt_config, mixture):
    changed = yaml.safe_load(mixture.read_text())
    changed["stages"][1]["from_step"] = 5
    path = cpt_config.parent / "mixture_changed.yaml"
    path.write_text(yaml.safe_dump(changed, sort_keys=False))
    result = tune_run(1, "cpt", cpt_config, f"data={path}", f"output_dir={straight[0]}", check=False)
    assert result.returncode != 0
    assert "was written with mixture=0.75 + 0.25 from step 0; 0.25 + 0.75 from step 4" in result.stderr
    assert "this run has mixture=0.75 + 0.25 from step 0; 0.25 + 0.75 from step 5" in result.stderr


def test_the_plan_prints_what_would_be_read_and_writes_nothing(cpt_config, mixture):
    result = run_here(cpt.main, cpt_config, f"data={mixture}", "--plan")
    assert result.returncode == 0
    assert re.search(r"^GPUs +1 +8 +16 +64$", result.stdout, re.M)
    assert "6 steps x 8 sequences x 64 tokens" in result.stdout
    assert "ko: the first of its sequences in step 0 has" in result.stdout
    assert not (cpt_config.parent / "run").exists()


def test_too_many_epochs_end_a_run_before_it_starts(cpt_config, mixture):
    limited = yaml.safe_load(mixture.read_text())
    limited["sources"]["en"]["max_epochs"] = 0.01
    path = cpt_config.parent / "mixture_limited.yaml"
    path.write_text(yaml.safe_dump(limited, sort_keys=False))
    result = run_here(cpt.main, cpt_config, f"data={path}")
    assert result.returncode == 2
    assert "en: is read 0.0" in result.stderr
    assert "max_epochs is 0.01; lower its weight, add text, raise max_epochs" in result.stderr
    assert not (cpt_config.parent / "run").exists()


def test_a_typo_in_the_mixture_is_told_with_the_other_problems_of_the_run(cpt_config, mixture):
    wrong = yaml.safe_load(mixture.read_text())
    wrong["stages"][1]["english_reply"] = wrong["stages"][1].pop("english_replay")
    path = cpt_config.parent / "mixture_wrong.yaml"
    path.write_text(yaml.safe_dump(wrong, sort_keys=False))
    result = run_here(cpt.main, cpt_config, f"data={path}", "precision=fp8")
    assert result.returncode == 2
    assert "2 problem(s)" in result.stderr
    assert "stages[1].english_reply: unknown key; did you mean 'english_replay'?" in result.stderr
