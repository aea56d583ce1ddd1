"""The documented command: same losses at any world size, exact resume, the run folder, and its errors."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from configs.loader import ConfigError, load
from recipes.cpt import CptConfig, check
from tests.recipes.conftest import write_cpt_config
from tests.support import ROOT, launch, losses, metrics, random_shards, tune_run


@pytest.fixture(scope="module")
def straight(tmp_path_factory, base, shards):
    """An undisturbed run on one process; tests only read it."""
    folder = tmp_path_factory.mktemp("straight")
    tune_run(1, "cpt", write_cpt_config(folder, base, shards))
    return folder / "run"


def test_two_ranks_give_the_losses_of_one_and_loss_falls(cpt_config, straight):
    other = cpt_config.parent / "two"
    tune_run(2, "cpt", cpt_config, f"output_dir={other}", "micro_batch=1")
    assert losses(other) == pytest.approx(losses(straight), rel=1e-5)
    assert losses(straight)[-1] < losses(straight)[0]
    assert [row["train/targets"] for row in metrics(other)] == [row["train/targets"] for row in metrics(straight)]


def test_accumulation_and_activation_checkpointing_do_not_change_the_losses(cpt_config, straight):
    other = cpt_config.parent / "other"
    tune_run(1, "cpt", cpt_config, f"output_dir={other}", "micro_batch=8", "activation_checkpointing=none")
    assert losses(other) == pytest.approx(losses(straight), rel=1e-5)


def test_a_run_resumed_from_a_checkpoint_repeats_the_straight_runs_losses_bit_for_bit(cpt_config, straight):
    other = cpt_config.parent / "resumed"
    shutil.copytree(straight, other)
    os.rename(other / "checkpoints/step-00000006", other / "checkpoints/step-00000006.tmp")  # as a kill leaves it
    tune_run(1, "cpt", cpt_config, f"output_dir={other}")
    assert losses(other) == losses(straight)
    assert len(metrics(other)) == 6


def test_a_killed_run_goes_on_at_another_world_size(cpt_config, straight):
    other = cpt_config.parent / "killed"
    command = ["-m", "recipes.cpt", "--config", str(cpt_config), f"output_dir={other}", "save_every_steps=1"]
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list((other / "checkpoints").glob("step-0000000[2-5]")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(metrics(other))
    tune_run(2, "cpt", cpt_config, f"output_dir={other}", "micro_batch=1")
    assert before > 0
    assert losses(other) == pytest.approx(losses(straight), rel=1e-5)


def test_a_signal_saves_a_checkpoint_and_asks_for_a_requeue(cpt_config):
    other = cpt_config.parent / "signalled"
    command = ["-m", "recipes.cpt", "--config", str(cpt_config), f"output_dir={other}", "steps=5000"]
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (other / "metrics.jsonl").exists() or not metrics_so_far(other):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(240) == 85
    steps = len(metrics(other))
    assert (other / f"checkpoints/step-{steps:08d}/state.json").exists()


def metrics_so_far(run: Path) -> bool:
    return (run / "metrics.jsonl").read_text().count("\n") > 1


def test_the_run_folder_says_how_it_was_made_and_the_ledger_adds_up(straight, cpt_config):
    assert yaml.safe_load((straight / "config.yaml").read_text())["seq_len"] == 64
    assert "recipes/cpt.py" in (straight / "command.txt").read_text()
    assert {"torch", "python", "commit"} <= json.loads((straight / "versions.json").read_text()).keys()
    assert "starts behind step 0 of 6" in (straight / "logs/rank-0.log").read_text()
    assert list((straight / "tensorboard").iterdir())
    state = json.loads((straight / "checkpoints/step-00000006/state.json").read_text())
    ledger = state["ledger"]
    assert ledger["tokens"] == 6 * 512 == ledger["trained"] + ledger["masked"] + ledger["padded"]
    result = launch(sys.executable, "-m", "recipes.cpt", "--config", str(cpt_config), f"output_dir={straight}")
    assert "all 6 steps are done already" in result.stdout
    assert len(metrics(straight)) == 6


def test_a_checkpoint_of_another_run_is_refused_naming_both_values(cpt_config, straight):
    result = tune_run(1, "cpt", cpt_config, "seq_len=32", f"output_dir={straight}", check=False)
    assert result.returncode != 0
    assert "was written with seq_len=64, this run has seq_len=32" in result.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stepz=3", "precision=fp8"], "stepz (command line): unknown key; did you mean 'steps'?"),
        (["device=gpu", "precision=fp8"], "device: 'gpu' is not known; one of auto, cpu, cuda"),
        (["device=gpu", "precision=fp8"], "precision: 'fp8' is not known; one of bf16, fp32"),
        (["data=/does/not/exist"], "/does/not/exist does not exist; give token shards"),
        (["weights=/does/not/exist"], "weights: /does/not/exist does not exist"),
        (["weights=null"], "neither is given; name the weights to start from, or a new model's shape"),
        (["global_batch_tokens=500"], "500 is no multiple of seq_len=64; use 448"),
        (["min_lr_ratio=2"], "min_lr_ratio: 2.0 is not between 0 and 1"),
        (["optimizer._component_=torch.optim.AdamX"], "'torch.optim.AdamX' cannot be imported"),
    ],
)
def test_bad_settings_are_refused_by_name(cpt_config, overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(CptConfig, cpt_config, overrides, check)


def test_a_chat_file_is_refused_by_cpt(cpt_config, chat_file):
    with pytest.raises(ConfigError, match="names a chat-example file, CPT reads token shards"):
        load(CptConfig, cpt_config, [f"data={chat_file}"], check)


def test_a_wrong_world_size_ends_in_one_error_and_nothing_written(cpt_config):
    result = tune_run(3, "cpt", cpt_config, check=False)
    assert result.returncode != 0
    assert "8 sequences of 64, not divisible by 3 ranks x micro_batch=2; start 1 or 2 or 4 ranks" in result.stderr
    assert result.stderr.count("error: ") == 1
    assert not (cpt_config.parent / "run").exists()


def test_a_typo_ends_with_exit_code_2_from_the_command_itself(cpt_config):
    result = launch(sys.executable, "-m", "recipes.cpt", "--config", str(cpt_config), "stepz=3", check=False)
    assert result.returncode == 2
    assert "did you mean 'steps'?" in result.stderr
    assert "Traceback" not in result.stderr


def test_shards_of_another_tokenizer_are_refused(cpt_config, tmp_path):
    foreign = random_shards(tmp_path / "foreign", sha256="0" * 64)
    result = launch(sys.executable, "-m", "recipes.cpt", "--config", str(cpt_config), f"data={foreign}", check=False)
    assert result.returncode == 2
    assert "was made with the tokenizer 000000000000" in result.stderr
