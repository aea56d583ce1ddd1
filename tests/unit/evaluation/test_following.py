"""Files of a followed run: a checkpoint is scored once, outlives its deletion, and the best one stays."""

import json
import shutil

import pytest
from omegaconf import OmegaConf

from configs.loader import ConfigError
from recipes.evaluation import following
from recipes.evaluation.following import ask_to_end, begin, conclude, pin, recorded, replay_share, waiting
from recipes.evaluation.rule import RuleSettings
from recipes.training.checkpoints.chosen import choice_problems, chosen_checkpoint
from recipes.training.checkpoints.folder import complete_checkpoints, remove, write_state


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.yaml").write_text("weights: base\n")
    return tmp_path


def checkpoint(run, step):
    path = run / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "__0_0.distcp").write_text(f"tensors of {step}")
    write_state(path, {"step": step})
    return path


def settings(run, **rule):
    return OmegaConf.create({"run": str(run), "guard": "en", "max_rise": 0.05, "rule": RuleSettings(**rule)})


def score(run, step, ko, en=2.0, **rule):
    row = {"step": step, "model": f"step {step}", "bits_per_byte_ko": ko, "bits_per_byte_en": en, "scoring": "s"}
    conclude(settings(run, **rule), row, ["an answer"], lambda rise, limit, replay: replay)


def steps(paths):
    return [following.step_of(path) for path in paths]


def test_a_pinned_checkpoint_outlives_its_deletion_and_takes_no_room_until_then(run):
    path = checkpoint(run, 5)
    pinned = pin(run, path)
    assert (pinned / "__0_0.distcp").stat().st_ino == (path / "__0_0.distcp").stat().st_ino
    remove(path)
    assert (pinned / "__0_0.distcp").read_text() == "tensors of 5"
    assert waiting(run, []) == [pinned]  # a killed follower finds it again
    assert pin(run, pinned) == pinned


def test_a_checkpoint_that_is_deleted_meanwhile_is_not_pinned(run, monkeypatch):
    path = checkpoint(run, 5)
    assert pin(run, path.with_name("step-00000004")) is None
    link = following.os.link

    def link_and_delete(source, target):
        link(source, target)
        if path.exists():
            remove(path)

    monkeypatch.setattr(following.os, "link", link_and_delete)
    assert pin(run, path) is None
    assert list((run / following.PINNED).iterdir()) == []


def test_without_hard_links_the_files_are_copied(run, monkeypatch):
    path = checkpoint(run, 5)

    def refuse(source, target):
        raise OSError(following.errno.EPERM, "no links here")

    monkeypatch.setattr(following.os, "link", refuse)
    pinned = pin(run, path)
    assert (pinned / "__0_0.distcp").stat().st_ino != (path / "__0_0.distcp").stat().st_ino
    assert chosen_checkpoint(run, "newest") == path
    assert sorted(p.name for p in pinned.iterdir()) == sorted(p.name for p in path.iterdir())


def test_each_checkpoint_waits_until_it_is_recorded_and_is_recorded_once(run):
    for step in (10, 5, 20):
        checkpoint(run, step)
    assert steps(waiting(run, complete_checkpoints(run / "checkpoints"))) == [5, 10, 20]
    score(run, 0, 3.0)
    score(run, 5, 2.5)
    assert steps(waiting(run, complete_checkpoints(run / "checkpoints"))) == [10, 20]
    score(run, 5, 2.5)  # a second follower was as far
    score(run, 20, 2.4)
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 5, 20]
    assert "answers" not in lines[0]
    assert recorded(run)[0]["answers"] == ["an answer"]
    assert not list(run.rglob("*.tmp"))


def test_the_best_checkpoint_is_kept_and_the_one_before_goes(run):
    score(run, 0, 3.0)
    for step, ko, en, best in ((10, 2.5, 2.0, 10), (20, 2.4, 2.0, 20), (30, 2.3, 2.2, 20), (40, 2.45, 2.0, 20)):
        path = checkpoint(run, step)
        pin(run, path)
        remove(path)  # as the run's retention does
        score(run, step, ko, en)
        kept = chosen_checkpoint(run, "best")
        assert kept == run / "best" / f"step-{best:08d}"
        assert (kept / "__0_0.distcp").read_text() == f"tensors of {best}"
        assert list((run / "best").iterdir()) == [kept]
        assert list((run / following.PINNED).iterdir()) == []
    told = json.loads((run / "best.json").read_text())
    assert (told["step"], told["reason"]) == (20, "ko 2.4000 bits per byte, en +0.0%")
    table = json.loads((run / "retention.json").read_text())
    assert [(row["step"], row["best"], row["alarm"]) for row in table["rows"][2:4]] == [
        (20, True, False),
        (30, False, True),
    ]
    assert "step 20 (best)" in (run / "retention.md").read_text()


def test_a_follower_killed_between_keeping_and_recording_scores_the_kept_one_again(run, monkeypatch):
    score(run, 0, 3.0)
    path = checkpoint(run, 10)
    pin(run, path)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(following, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            score(run, 10, 2.5)
    remove(path)
    assert waiting(run, []) == [run / "best" / "step-00000010"]
    score(run, 10, 2.5)
    assert waiting(run, []) == []
    assert chosen_checkpoint(run, "10") == run / "best" / "step-00000010"


def test_a_best_checkpoint_that_is_gone_is_told(run):
    score(run, 0, 3.0)
    score(run, 10, 2.5)
    told = json.loads((run / "best.json").read_text())
    assert (told["step"], told["checkpoint"]) == (10, None)
    assert "its checkpoint was deleted before it could be kept" in told["reason"]
    with pytest.raises(ConfigError, match=r"says that the best is step 10, .* give checkpoint=newest"):
        chosen_checkpoint(run, "best")


def test_jobs_that_end_before_the_starts_leave_the_verdict_to_it(run):
    for step, ko in ((10, 2.5), (20, 2.6)):
        path = checkpoint(run, step)
        pin(run, path)
        remove(path)  # as the run's retention does
        score(run, step, ko)
    assert not (run / "best.json").exists()
    assert waiting(run, []) == []
    score(run, 0, 3.0)
    assert chosen_checkpoint(run, "best") == run / "best" / "step-00000010"
    assert list((run / following.PINNED).iterdir()) == []
    assert len(json.loads((run / "retention.json").read_text())["rows"]) == 3


def test_the_rule_asks_the_run_to_end_for_good(run):
    score(run, 0, 3.0)
    score(run, 10, 2.5, patience=1)
    assert not (run / "stop").exists()
    score(run, 20, 2.6, patience=1)
    assert (run / "stop").read_text().startswith("end: no better checkpoint since step 10, in 1 evaluations")


def test_a_run_that_is_over_is_asked_nothing(run):
    (run / "finished.json").write_text('{"step": 20}')
    ask_to_end(run, "why")
    assert not (run / "stop").exists()


def test_rows_of_other_texts_or_settings_are_refused(run):
    score(run, 0, 3.0)
    begin(run, "s", is_alone=True)
    with pytest.raises(ConfigError, match=r"step 0 was scored on other texts or settings \(s\) than .*move the"):
        begin(run, "another", is_alone=True)


def test_what_a_killed_follower_left_half_made_goes(run):
    half = run / following.PINNED / "step-00000010.77.tmp"
    half.mkdir(parents=True)
    begin(run, "s", is_alone=False)
    assert half.exists()
    begin(run, "s", is_alone=True)
    assert not half.exists()


def test_the_share_of_replay_is_that_of_the_runs_tokens(run):
    assert replay_share(run, "en") is None
    sources = {"a": {"lang": "ko", "tokens": 70}, "b": {"lang": "en", "tokens": 20}, "c": {"lang": "en", "tokens": 10}}
    (run / "mixture.json").write_text(json.dumps({"sources": sources}))
    assert replay_share(run, "en") == 0.3
    (run / "mixture.json").write_text(json.dumps({"sources": {"a": {"lang": None, "tokens": 7}}}))
    assert replay_share(run, "en") is None


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("newest", "holds no complete checkpoint; give the output_dir of a training run"),
        ("best", r"best\.json: 1 .*\n  - does not exist; .*; run recipes.evaluate_run with run=.*, or give"),
        ("7", "has no complete checkpoint of step 7; there are: none; give one of them"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_named(run, which, message):
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    with pytest.raises(ConfigError, match=message):
        chosen_checkpoint(run, which)


def test_a_step_names_its_checkpoint(run):
    path = checkpoint(run, 10)
    checkpoint(run, 20)
    assert chosen_checkpoint(run, "10") == path
    assert chosen_checkpoint(run, "newest").name == "step-00000020"
    assert choice_problems("10") == choice_problems("best") == choice_problems("newest") == []
    assert choice_problems("oldest") == [
        "checkpoint: 'oldest' is not known; one of newest, best, or the number of a step"
    ]
