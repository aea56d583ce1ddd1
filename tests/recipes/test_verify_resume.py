"""The check that a killed run is the straight one: it passes where that is so, and fails where it is not."""

import json
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from omegaconf import OmegaConf

from configs.loader import UserError
from recipes.training import verify_resume
from recipes.training.checkpoints.checkpoint import CheckpointStore
from recipes.training.checkpoints.comparison import compare_runs
from recipes.training.checkpoints.folder import Retention
from recipes.training.checkpoints.trials import behind, check_exit, descendants, in_a_save, kill_all, num_rows
from recipes.training.distributed import process_group
from tests.support import launch


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run folder with what is compared: four steps and a checkpoint of the last."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    run.mkdir()
    counts = {"tokens/ko": 512, "train/tokens": 512, "train/targets": 500}
    rows = [{"step": step, "train/loss": 3 / step, **{n: c * step for n, c in counts.items()}} for step in (1, 2, 3, 4)]
    rows.insert(2, {"step": 2, "validation/ko/bits_per_byte": 2.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_checkpoint(run)
    return run


def write_checkpoint(run, change=0.0):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    with torch.no_grad():
        model.weight[0, 0] += change
    optimizer = torch.optim.AdamW(model.parameters())
    with (
        process_group("cpu") as world,
        CheckpointStore(run / "checkpoints", {}, world, Retention(1)) as store,
    ):
        store.save(model, optimizer, {"step": 4})


@pytest.fixture
def run(straight, tmp_path):
    return shutil.copytree(straight, tmp_path / "killed")


def edit_rows(run, change):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in change(rows)))


def changed(rows, step, name, value):
    return [row | ({name: value} if row["step"] == step else {}) for row in rows]


def test_the_same_run_is_the_same(run, straight):
    found = compare_runs(run, straight, 0.0)
    assert (found.steps, found.loss, found.weights, found.problems) == (4, 0.0, 0.0, [])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[:-1], "its metrics have the steps 1, 2, 3, those of the straight run 1 to 4"),
        (lambda rows: [*rows, rows[-1]], "its metrics have the steps 1, 2, 3, 4, 4, those of"),
        (lambda rows: changed(rows, 4, "train/loss", 0.7501), "step 4 has the loss 0.7501, 0.75 in the straight run"),
        (lambda rows: changed(rows, 3, "tokens/ko", 1), "step 3 has read something else: tokens/ko=1, 1536 in the"),
        (lambda rows: changed(rows, 3, "train/targets", 9), "step 3 has read something else: train/targets=9, 1500"),
        (lambda rows: changed(rows, 4, "train/loss", None), "step 4 has the loss None, 0.75"),
    ],
)
def test_what_differs_is_told_with_its_step(run, straight, change, problem):
    edit_rows(run, change)
    assert compare_runs(run, straight, 0.0).problems[0].startswith(problem)


def test_a_tolerance_is_relative(run, straight):
    edit_rows(run, lambda rows: [row | {"train/loss": 3.003 / row["step"]} for row in rows if "train/loss" in row])
    assert compare_runs(run, straight, 1e-2).problems == []
    assert len(compare_runs(run, straight, 1e-4).problems) == 4


def test_one_number_of_the_weights_is_enough(straight, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(straight, other, ignore=shutil.ignore_patterns("checkpoints"))
    write_checkpoint(other, change=1e-5)
    found = compare_runs(other, straight, 0.0)
    assert re.fullmatch(r"tensor model.weight of the last checkpoint differs by .*e-0\d of its norm", found.problems[0])
    assert compare_runs(other, straight, 1e-3).problems == []


def test_a_kill_reaches_processes_in_sessions_of_their_own():
    script = "import subprocess, sys, time; subprocess.Popen(['sleep', '60'], start_new_session=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    while not (children := descendants(process.pid)):
        time.sleep(0.01)
    kill_all(process)
    assert process.returncode == -9
    assert not set(children) & set(descendants(1)) - zombies(children)


def zombies(pids):
    """Those that are dead, though nobody has asked for their exit code yet."""
    states = {}
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as file:
                states[pid] = file.read().rpartition(")")[2].split()[0]
        except OSError:
            states[pid] = "X"
    return {pid for pid, state in states.items() if state in "ZX"}


def test_moments(run):
    assert num_rows(run) == 4
    assert behind(run, 4, 0.0)()
    assert not behind(run, 5, 0.0)()
    assert not behind(run, 4, 60.0)()
    assert not in_a_save(run, 1)()
    (run / "checkpoints/step-00000006.tmp").mkdir()
    assert in_a_save(run, 6)()
    assert not in_a_save(run, 7)()


def test_a_short_run_keeps_what_the_user_overrides():
    cfg = OmegaConf.create({"warmup_steps": 100, "decay_steps": 0})
    short = verify_resume.shortened(cfg, 12, ["steps=30", "validation.every_steps=3"])
    assert "warmup_steps=4" in short
    assert "save_every_steps=2" in short
    assert not [key for key in short if key.startswith(("steps=", "validation="))]


def test_a_run_that_fails_is_told_with_its_message(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    process.wait()
    (tmp_path / "run.log").write_text("starting\nerror: data: no such file\n")
    with pytest.raises(UserError, match="ended with exit code 3: error: data: no such file; 0 is expected; see"):
        check_exit(tmp_path / "run", process)


def test_the_scratch_folder_must_be_empty_and_the_configuration_sound(cpt_config, capsys):
    scratch = cpt_config.parent / "run-verify-resume"
    scratch.mkdir()
    (scratch / "file").touch()
    assert verify_resume.main(["--config", str(cpt_config)]) == 2
    assert "is not empty; the check writes its runs there" in capsys.readouterr().err
    assert verify_resume.main(["--config", str(cpt_config), "precision=fp8"]) == 2
    assert "precision: 'fp8' is not known" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_run_passes(cpt_config):
    command = [sys.executable, "-m", "recipes.training.verify_resume", "--config", str(cpt_config), "--kills", "2"]
    result = launch(*command, "--steps", "8", "micro_batch=1", timeout=1200)
    *_, head, straight, killed, other, verdict = result.stdout.splitlines()
    assert verdict == "PASS: bit for bit with 2 ranks, losses within 0.0001 with 1"
    assert head.split()[:2] == ["run", "ranks"]
    assert killed.split()[-3:] == straight.split()[-3:] == ["8", "0", "0"]
    assert killed.count("step") == 2
    assert other.startswith("other")
    assert not (cpt_config.parent / "run-verify-resume").exists()
