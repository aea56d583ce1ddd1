"""The documented command with held-out text: same losses as without, exact resume, stop and go on, the alarm."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from configs.loader import ConfigError, load
from data_prep.document import Document, as_row, write_jsonl
from data_prep.tokens import encode
from recipes.cpt import CptConfig, check, main
from tests.recipes.conftest import write_cpt_config
from tests.support import ROOT, TEXTS, launch, metrics, run_here
from tests.unit.data_prep.tokens.small_corpus import launch as command

VALIDATION = {"every_steps": 2, "max_rise": 1e-6}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory, base):
    """Makes shards of text by language, that many times as long."""
    folder = tmp_path_factory.mktemp("held-out")

    def make(lang, times=1):
        out = folder / f"{lang}-{times}"
        if not out.exists():
            chosen = TEXTS[1::2] if lang == "ko" else TEXTS[::2]
            rows = [as_row(Document(str(n), text, "wiki", lang)) for n, text in enumerate(chosen * times)]
            write_jsonl(folder / f"documents-{out.name}" / "documents-00000.jsonl.zst", rows)
            source = ("--documents", folder / f"documents-{out.name}", "--tokenizer", base / "tokenizer.json")
            command(encode, "tokens", *source, "--out", out, "--workers", 1)
        return str(out)

    return make


def configure(folder, base, shards, held_out, **changes):
    path = write_cpt_config(folder, base, shards)
    config = yaml.safe_load(path.read_text())
    data = {"ko": held_out("ko"), "en": held_out("en")}
    config |= {"data": [{"shards": str(shards), "lang": "ko"}], "validation": VALIDATION | {"data": data}} | changes
    path.write_text(yaml.safe_dump(config))
    return path


def cpt(config, *overrides, ranks=0, check=True):
    if ranks:
        command = ["tune", "run", "--nproc_per_node", str(ranks), "recipes/cpt.py"]
    else:
        command = [sys.executable, "-m", "recipes.cpt"]
    return launch(*command, "--config", str(config), *overrides, check=check)


def split(run):
    """Returns the losses of the steps, and the validations without their times, by step."""
    rows = metrics(run)
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    scores = [row for row in rows if "train/loss" not in row]
    return losses, {row["step"]: {k: v for k, v in row.items() if k != "time/validation"} for row in scores}


@pytest.fixture(scope="module")
def straight(tmp_path_factory, base, shards, held_out):
    """An undisturbed run on one process, with what it printed; tests only read it."""
    folder = tmp_path_factory.mktemp("straight")
    result = cpt(configure(folder, base, shards, held_out))
    return folder / "run", result


@pytest.fixture
def config(tmp_path, base, shards, held_out):
    return configure(tmp_path, base, shards, held_out)


def test_it_is_scored_before_during_and_after_and_the_losses_are_those_without(straight, config):
    run, result = straight
    losses, scores = split(run)
    assert list(scores) == [0, 2, 4, 6]
    assert scores[0]["validation/ko/rise"] == scores[0]["validation/en/rise"] == 0
    first, last = (scores[step]["validation/en/bits_per_byte"] for step in (0, 6))
    assert scores[6]["validation/en/rise"] == pytest.approx(last / first - 1)
    assert "step 0: held-out en " in result.stderr
    other = config.parent / "without"
    cpt(config, "validation=null", f"output_dir={other}")
    assert split(other) == (losses, {})


def test_a_resumed_run_repeats_losses_and_validations_bit_for_bit(straight, config):
    other = config.parent / "resumed"
    shutil.copytree(straight[0], other)
    os.rename(other / "checkpoints/step-00000006", other / "checkpoints/step-00000006.tmp")
    cpt(config, f"output_dir={other}")
    assert split(other) == split(straight[0])
    assert json.loads((other / "checkpoints/step-00000006/state.json").read_text())["validation"]["step"] == 6


def test_what_the_model_forgets_is_told_once_and_with_a_remedy(straight):
    run, result = straight
    scores = split(run)[1]
    above = [step for step, row in scores.items() if row["validation/forgetting"]]
    assert above
    assert all(scores[step]["validation/en/rise"] > 1e-6 for step in above)
    rises = [step for step in above if step - 2 not in above]
    assert result.stderr.count("the model is forgetting") == len(rises)
    assert f"warning: step {rises[0]}: held-out en is at " in result.stderr
    assert "it now reads 0% en; suggested replay: 25%" in result.stderr
    assert scores[rises[0]]["validation/suggested_replay"] == 0.25
    assert "the model is forgetting" in (run / "logs/rank-0.log").read_text()


def test_a_signal_ends_a_validation_and_the_run_goes_on_with_it_at_two_ranks(straight, config, held_out):
    other = config.parent / "signalled"
    command = ["-m", "recipes.cpt", "--config", str(config), f"output_dir={other}"]
    slow = f"validation.data.ko={held_out('ko', 4000)}"
    process = subprocess.Popen([sys.executable, *command, slow], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (other / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 85
    assert metrics(other) == []
    cpt(config, f"output_dir={other}", "steps=2", "micro_batch=1", ranks=2)
    expected, scores = split(straight[0])[1], split(other)[1]
    assert list(scores) == [0, 2]  # the schedule's warm-up, so that the length of the run makes no difference
    for step, row in scores.items():
        assert row == pytest.approx(expected[step], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["validation.every_steps=0"], "validation.every_steps: 0 is not positive"),
        (["validation.max_tokens=-1"], "validation.max_tokens: -1 is not positive"),
        (["validation.max_rise=0"], "validation.max_rise: 0.0 is not positive"),
        (["validation.data.ko=/does/not/exist"], "validation.data.ko: /does/not/exist does not exist"),
        (["validation.evry_steps=2"], "did you mean 'every_steps'?"),
        (["peak_tflops=0"], "peak_tflops: 0.0 is not positive"),
        (["profile.first_step=7"], "profile.first_step: 7 is behind the last of 6 steps"),
        (["wandb.id=x"], "wandb.id: is set by the run itself"),
    ],
)
def test_bad_settings_are_refused_by_name(config, overrides, message):
    with pytest.raises(ConfigError) as caught:
        load(CptConfig, config, overrides, check)
    assert message in str(caught.value)


def test_a_plan_needs_no_held_out_text(config):
    cfg = load(CptConfig, config, ["validation.data.ko=/does/not/exist", "plan=true"], check)
    assert cfg.validation.data.ko == "/does/not/exist"


def test_text_that_is_trained_on_ends_the_run_before_it_starts(config, shards):
    result = run_here(main, config, f"validation.data.ko={shards}")
    assert result.returncode == 2
    assert f"ko: {shards} holds the same tokens as shards, which the run trains on" in result.stderr
    assert not (config.parent / "run").exists()
