"""Runs of the documented command under each optimizer and mode: resumed at another world size, skipped steps."""

import json
import os
import shutil
import sys

import pytest
from transformers import LlamaForCausalLM

from data_prep.lineage import sha256_file
from recipes.training import which_documents
from recipes.training.checkpoints.folder import check_files
from tests.recipes.conftest import write_cpt_config
from tests.support import launch, losses, metrics, random_shards, tiny_llama, tiny_tokenizer, tune_run

KAHAN = ["precision=bf16", "optimizer._component_=recipes.training.optimization.adamw.KahanAdamW", "optimizer.lr=1e-3"]
SPIKES = ["guard.window_steps=4", "guard.spike_sigmas=1e-9"]
"""Under these, any loss or norm above the mean of the window is a spike."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modes")
    base = tiny_llama(tiny_tokenizer(folder / "base"))
    shards = random_shards(folder / "shards", sha256=sha256_file(base / "tokenizer.json"))
    return write_cpt_config(folder, base, shards)


def cpt(config, out, *overrides, check=True):
    """Runs one process without torchrun; returns the run folder and the process."""
    run = config.parent / out
    command = [sys.executable, "-m", "recipes.cpt", "--config", str(config), f"output_dir={run}", *overrides]
    return run, launch(*command, check=check)


def cut_back(source, out):
    """Copies a run as it was behind step 3."""
    run = source.parent / out
    shutil.copytree(source, run)
    os.rename(run / "checkpoints/step-00000006", run / "checkpoints/step-00000006.tmp")
    return run


def test_a_kahan_run_resumes_bit_for_bit_and_at_another_world_size(config):
    straight, _ = cpt(config, "kahan", *KAHAN)
    resumed = cut_back(straight, "kahan-resumed")
    cpt(config, resumed.name, *KAHAN)
    assert losses(resumed) == losses(straight)
    wider = cut_back(straight, "kahan-wider")
    tune_run(2, "cpt", config, f"output_dir={wider}", "micro_batch=1", *KAHAN)
    assert losses(wider) == pytest.approx(losses(straight), rel=1e-4)
    assert losses(straight)[-1] < losses(straight)[0] - 0.2
    result = cpt(config, "kahan", check=False)[1]
    assert result.returncode == 1
    assert (
        "was written with optimizer=recipes.training.optimization.adamw.KahanAdamW (parameters=bfloat16"
        in result.stderr
    )


def test_modes_do_not_change_what_is_computed(config):
    common = ["z_loss=1e-3", "schedule=warmup_stable_decay", "decay_steps=2", "embedding_lr=5e-4"]
    plain, _ = cpt(config, "plain", "loss_chunk=0", "activation_checkpointing=none", *common)
    spared = config.parent / "spared"
    modes = ["loss_chunk=50", "activation_checkpointing=selective", "micro_batch=1"]
    tune_run(2, "cpt", config, f"output_dir={spared}", *modes, *common)
    for name in ("train/loss", "train/z_loss", "train/grad_norm"):
        values = [[row[name] for row in metrics(run)] for run in (plain, spared)]
        assert values[1] == pytest.approx(values[0], rel=1e-4)
    assert metrics(plain)[0]["train/z_loss"] == pytest.approx(1e-3 * 6.24**2, rel=0.1)  # log(512) squared
    rates = [row["train/lr"] for row in metrics(plain)]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3 * (0.1 + 0.9 * (1 - 0.5**0.5))])


@pytest.fixture(scope="module")
def skipping(config):
    return cpt(config, "skipping", *SPIKES)[0]


def test_a_spike_is_skipped_written_down_and_the_run_goes_on(config, skipping, capsys):
    counts = [row["train/skipped_steps"] for row in metrics(skipping)]
    files = sorted(path.name for path in (skipping / "skipped").iterdir())
    assert len(metrics(skipping)) == 6
    assert counts[-1] == len(files) >= 1
    assert counts[:2] == [0, 0]
    facts, *documents = map(json.loads, (skipping / "skipped" / files[0]).read_text(encoding="utf-8").splitlines())
    assert files[0] == f"step-{facts['step']:08d}.jsonl"
    assert ", above " in facts["reason"]
    assert sum(row["num_tokens"] for row in documents) == 512
    assert documents[0]["text"]
    ledger = json.loads((skipping / "checkpoints/step-00000006/state.json").read_text())["ledger"]
    assert ledger["skipped"] == 512 * len(files)
    assert ledger["tokens"] == sum(ledger[name] for name in ("trained", "masked", "padded", "skipped"))
    assert f"step {facts['step']} skipped: " in (skipping / "logs/rank-0.log").read_text()

    assert which_documents.main(["--run", str(skipping), "--step", str(facts["step"]), "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == documents
    assert which_documents.main(["--run", str(skipping), "--step", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("shards sequence ") for line in lines)
    assert len({line.split(",")[0] for line in lines}) == 8


def test_all_ranks_skip_the_same_steps_and_a_resumed_run_does_too(config, skipping):
    resumed = cut_back(skipping, "skipping-resumed")
    cpt(config, resumed.name, *SPIKES)
    assert losses(resumed) == losses(skipping)
    assert [row["train/skipped_steps"] for row in metrics(resumed)] == [
        row["train/skipped_steps"] for row in metrics(skipping)
    ]
    wider = config.parent / "skipping-wider"
    tune_run(2, "cpt", config, f"output_dir={wider}", "micro_batch=1", *SPIKES)
    assert losses(wider) == pytest.approx(losses(skipping), rel=1e-5)
    for path in (skipping / "skipped").iterdir():
        ours, theirs = (file.read_text().splitlines()[1:] for file in (path, wider / "skipped" / path.name))
        assert ours == theirs


def test_more_skips_than_allowed_end_the_run_with_the_weights_as_they_were(config):
    base = config.parent / "base-nan"
    model = LlamaForCausalLM.from_pretrained(config.parent / "base")
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    model.save_pretrained(base)
    shutil.copy(config.parent / "base/tokenizer.json", base)
    run, result = cpt(config, "nan", f"weights={base}", "guard.max_skips=2", check=False)
    assert result.returncode == 1
    assert "3 of the last 128 steps were skipped, step 3 because loss is nan; gradient norm is nan" in result.stderr
    assert "guard.max_skips=2 are allowed; look at" in result.stderr
    assert "Traceback" not in result.stderr
    assert losses(run) == [None, None, None]
    assert len(list((run / "skipped").iterdir())) == 3
    assert f"the last checkpoint is {run}/checkpoints/step-00000003" in result.stderr
    check_files(run / "checkpoints/step-00000003")


def test_a_finished_run_is_warmed_up_again(config):
    run, _ = cpt(config, "again", "steps=3")
    result = cpt(config, "again", "steps=9", "schedule_start_step=4", check=False)[1]
    assert result.returncode == 2
    assert "schedule_start_step: 1 problem(s)\n  - 4 lies ahead of step 3, where the run is" in result.stderr
    cpt(config, "again", "steps=9", "schedule_start_step=3")
    rates = [row["train/lr"] for row in metrics(run)]
    assert rates[:5] == pytest.approx([5e-4, 1e-3, 1e-3, 5.5e-4, 1e-3])  # warm-up of 2 steps from 0, then from 0.1
    assert rates[5] == pytest.approx(1e-3)
    assert rates[6:] == sorted(rates[6:], reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "{run}", "--step", "7"], "--step 7; the run has steps 1 to 6; give one of them"),
        (["--run", "{run}/logs", "--step", "1"], "has no config.yaml; a run folder is expected"),
        (["--run", "{changed}", "--step", "1"], "now; the run read other; restore the data"),
    ],
)
def test_which_documents_says_what_it_cannot_do(skipping, tmp_path, capsys, arguments, message):
    changed = tmp_path / "changed"
    shutil.copytree(skipping, changed)
    for path in changed.glob("checkpoints/*/state.json"):
        state = json.loads(path.read_text())
        del state["state_sha256"]
        path.write_text(json.dumps(state | {"identity": state["identity"] | {"data": "other"}}))
    assert which_documents.main([a.format(run=skipping, changed=changed) for a in arguments]) == 2
    assert message in capsys.readouterr().err
