"""A run and its follower side by side, as the documented commands; the follower is killed and goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from data_prep.document import Document, as_row, write_jsonl
from recipes import evaluate_run, export
from recipes.training.checkpoints.chosen import chosen_checkpoint
from tests.recipes.conftest import write_cpt_config
from tests.support import ROOT, TEXTS, launch, losses, run_here


def follow(config, *overrides):
    return [sys.executable, "-m", "recipes.evaluate_run", "--config", str(config), *overrides]


@pytest.fixture
def start():
    """Starts a command beside the test, which does not outlive it."""
    started = []

    def begin(command):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.returncode is None:
            process.kill()
            process.communicate()


def configure(folder, **changes):
    """Writes documents and a configuration of the follower of `folder/run`."""
    for lang, texts in {"en": TEXTS[::2], "ko": TEXTS[1::2]}.items():
        rows = [as_row(Document(id=str(n), text=text, lang=lang)) for n, text in enumerate(texts)]
        write_jsonl(folder / lang / "documents-00000.jsonl.zst", rows)
    settings = {
        "run": str(folder / "run"),
        "documents": {"ko": str(folder / "ko"), "en": str(folder / "en")},
        "seq_len": 64,
        "poll_seconds": 0.2,
        "device": "cpu",
        "max_rise": 10.0,
    }
    path = folder / "follow.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def rows(run):
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()]


def wait_for(condition, process, seconds=400):
    """Waits until the condition holds; a process that ends before is an error."""
    end = time.monotonic() + seconds
    while not condition():
        assert not process.poll(), process.communicate()[0]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base, shards):
    """A run of 6 steps with checkpoints behind 3 and 6, and a follower's configuration; tests work on copies."""
    folder = tmp_path_factory.mktemp("finished")
    launch(sys.executable, "-m", "recipes.cpt", "--config", str(write_cpt_config(folder, base, shards)))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_checkpoint_of_a_run_is_scored_once_though_the_follower_is_killed_and_the_run_deletes(
    tmp_path, base, shards, start
):
    """The run keeps one checkpoint. It stops behind each step, so that the follower, killed once, sees them all."""
    run, config = tmp_path / "run", configure(tmp_path)
    cpt = [sys.executable, "-m", "recipes.cpt", "--config", str(write_cpt_config(tmp_path, base, shards))]
    cpt += ["keep_checkpoints=1", "steps=4"]
    watcher = start(follow(config, "--watch"))
    for step in range(1, 5):
        if step < 4:
            run.mkdir(exist_ok=True)
            (run / "stop").touch()
        assert launch(*cpt, check=False).returncode == (85 if step < 4 else 0)
        wait_for(lambda step=step: (run / f"evaluations/step-{step:08d}.json").exists(), watcher)
        if step == 2:
            watcher.send_signal(signal.SIGKILL)
            watcher.communicate()
            watcher = start(follow(config, "--watch"))
    told = watcher.communicate(timeout=300)[0]
    assert watcher.returncode == 0, told
    assert [row["step"] for row in rows(run)] == list(range(5))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]
    best = min(rows(run)[1:], key=lambda row: row["bits_per_byte_ko"])["step"]
    assert chosen_checkpoint(run, "best").name == f"step-{best:08d}"
    assert not list((run / "evaluations/pinned").iterdir())
    assert "| step 4" in (run / "retention.md").read_text(encoding="utf-8")


def test_what_is_there_is_scored_and_not_again(run, tmp_path):
    config = configure(tmp_path)
    first = run_here(evaluate_run.main, config)
    assert first.returncode == 0, first.stderr
    assert [row["step"] for row in rows(run)] == [0, 3, 6]
    assert "retention ko" in first.stdout
    before = (run / "evaluations/step-00000003.json").stat().st_mtime_ns
    assert run_here(evaluate_run.main, config, "watch=true").stdout == ""  # the run is finished
    assert (run / "evaluations/step-00000003.json").stat().st_mtime_ns == before
    start_row = rows(run)[0]
    assert all(start_row[f"bits_per_byte_{lang}"] > 0 for lang in ("ko", "en"))
    assert rows(run)[2]["bits_per_byte_en"] != start_row["bits_per_byte_en"]


@pytest.mark.slow
def test_two_ranks_score_as_one(run, tmp_path):
    config = configure(tmp_path, batch=1)
    run_here(evaluate_run.main, config)
    shutil.move(run / "evaluations", run / "evaluations-of-one")
    command = ("tune", "run", "--nproc_per_node", "2", "recipes/evaluate_run.py", "--config", str(config))
    launch(*command)
    one, two = (
        [
            {key: value for key, value in json.loads(file.read_text()).items() if key != "seconds"}
            for file in sorted((run / folder).glob("*.json"))
        ]
        for folder in ("evaluations-of-one", "evaluations")
    )
    assert one == two


def test_a_step_is_a_job_of_its_own_and_the_start_settles_the_verdict(run, tmp_path):
    config = configure(tmp_path)
    assert run_here(evaluate_run.main, config, "step=6").returncode == 0
    assert [row["step"] for row in rows(run)] == [6]
    assert not (run / "best.json").exists()
    assert run_here(evaluate_run.main, config, "step=0").returncode == 0
    assert json.loads((run / "best.json").read_text())["step"] == 6
    missing = run_here(evaluate_run.main, config, "step=4")
    assert missing.returncode == 1
    assert "has no complete checkpoint of step 4; give one that is there as step=..." in missing.stderr


def test_ephemeral_checkpoints_are_left_out(run, tmp_path):
    state = run / "checkpoints/step-00000003/state.json"
    content = json.loads(state.read_text())
    content.pop("state_sha256", None)
    state.write_text(json.dumps(content | {"ephemeral": True}))
    run_here(evaluate_run.main, configure(tmp_path))
    assert [row["step"] for row in rows(run)] == [0, 6]


def test_the_best_checkpoint_is_what_an_export_takes(run, tmp_path):
    run_here(evaluate_run.main, configure(tmp_path))
    best = json.loads((run / "best.json").read_text())["step"]
    shutil.rmtree(run / "checkpoints" / f"step-{best:08d}")
    (tmp_path / "export.yaml").write_text("gate: weights\n")
    overrides = (f"run={run}", f"output_dir={tmp_path / 'model'}", "checkpoint=best")
    result = run_here(export.main, tmp_path / "export.yaml", *overrides)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "model/manifest.json").read_text())["step"] == best


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_rule_ends_a_run_for_good(tmp_path, base, shards, start):
    """No rise of English is allowed: the first evaluation in which it rises ends the run with exit code 0."""
    run, config = tmp_path / "run", configure(tmp_path, guard="ko", max_rise=0.0, rule={"patience": 1})
    cpt = [sys.executable, "-m", "recipes.cpt", "--config", str(write_cpt_config(tmp_path, base, shards))]
    cpt += ["steps=4000", "optimizer.lr=0.05", "limits.run_minutes=4", "save_every_steps=20", "keep_checkpoints=3"]
    training, watcher = start(cpt), start(follow(config, "--watch"))
    told = watcher.communicate(timeout=500)[0]
    printed = training.communicate(timeout=200)[0]
    assert watcher.returncode == 0, told
    assert training.returncode == 0, printed
    end = json.loads((run / "finished.json").read_text())
    assert end["step"] < 4000
    assert "no better checkpoint" in end["reason"]
    assert f"ended behind step {end['step']}: {end['reason']}" in printed
    assert not (run / "stop").exists()
    assert len(losses(run)) == end["step"]
    assert rows(run)[-1]["step"] == end["step"]  # the last checkpoint is scored as well


def test_a_run_that_shows_no_sign_of_life_is_given_up(run, tmp_path):
    config = configure(tmp_path)
    run_here(evaluate_run.main, config)
    (run / "finished.json").unlink()
    os.utime(run / "heartbeat.json", (0, 0))
    result = run_here(evaluate_run.main, config, "watch=true", "give_up_minutes=0.001")
    assert result.returncode == 1
    assert "shows no sign of life since 0.001 minutes; start it again" in result.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run=/gone", "run: /gone holds no config.yaml; give a run folder, or set watch=true to wait for it"),
        ("rule.gain=fr", "rule.gain: 'fr' is none of documents; checkpoints are chosen by it; add its text"),
        ("rule.patience=0", "rule.patience: 0 is not positive"),
        ("seq_len=512", "seq_len: 512 tokens, "),
    ],
)
def test_what_cannot_be_followed_is_named(run, tmp_path, override, message):
    result = run_here(evaluate_run.main, configure(tmp_path), override)
    assert result.returncode == 2
    assert message in result.stderr


def test_other_settings_than_those_of_the_rows_are_refused(run, tmp_path):
    config = configure(tmp_path)
    run_here(evaluate_run.main, config, "step=0")
    result = run_here(evaluate_run.main, config, "seq_len=32")
    assert result.returncode == 2
    assert "rows would not compare; restore them, or move the folder away" in result.stderr
