"""What an attempt is granted, when it is ended from outside, and what follows it."""

import json
import os
import re
from pathlib import Path

import pytest

from configs.loader import ConfigError
from slurm.attempt import Fence, Limits, Outcome, Record, Signs, fault, heartbeat, newest_step, verdict

LIMITS = Limits()


def signs(**changes: object) -> Signs:
    return Signs(**{"now": 10_000.0, "started": 9_000.0, "heartbeat": 9_999.0, "granted": 600.0} | changes)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"heartbeat": 8_700.0}, "no heartbeat for 1300 s, 1200 s are granted"),
        ({"heartbeat": 8_700.0, "granted": 900.0}, None),  # a load or a first step that may compile
        ({"heartbeat": 100.0, "granted": None}, None),  # hang detection is off
        ({"heartbeat": 0.0}, None),
        ({"heartbeat": 0.0, "started": 8_000.0}, "no heartbeat for 2000 s, 1800 s are granted"),
        ({"first_failure": 9_980.0}, None),
        ({"first_failure": 9_960.0}, "a rank failed 30 s ago and others still run"),
        ({"stop_asked": 9_800.0}, None),
        ({"stop_asked": 9_700.0}, "no checkpoint within 240 s after it was asked for"),
        ({"is_fenced": True}, "another attempt owns the run folder now"),
    ],
)
def test_the_watchdog_ends_what_will_not_end_by_itself(changes, why):
    assert fault(signs(**changes), LIMITS, expects_heartbeat=True) == why


def test_what_is_no_training_has_no_heartbeat():
    assert fault(signs(heartbeat=0.0, started=0.0), LIMITS, expects_heartbeat=False) is None


@pytest.mark.parametrize(
    ("outcome", "what", "why"),
    [
        (Outcome(0, 0, 0), "done", "finished"),
        (Outcome(0, 0, 0, is_terminated=True), "done", "finished"),  # it was faster than the signal
        (Outcome(85, 0, 0), "requeue", "checkpoint written"),
        (Outcome(85, 0, 0, is_terminated=True), "left", "scancel"),
        (Outcome(1, 0, 2), "requeue", "exit code 1"),
        (Outcome(86, 0, 1), "requeue", "exit code 86"),
        (Outcome(1, 0, 3), "failed", "3 attempts in a row without a new checkpoint"),
        (Outcome(85, 0, 3), "failed", "3 attempts in a row without a new checkpoint"),
        (Outcome(85, 50, 0), "failed", "requeued 50 times, KOTUNE_MAX_REQUEUES"),
        (Outcome(2, 0, 1), "failed", "the configuration cannot be used"),
        (Outcome(1, 0, 1, is_fenced=True), "left", "another attempt owns the run folder"),
    ],
)
def test_what_follows_an_attempt(outcome, what, why):
    said = verdict(outcome, LIMITS)
    assert said.what == what
    assert why in said.why


def test_limits_come_from_the_environment_and_wrong_ones_are_named_together():
    assert Limits.from_environment({"KOTUNE_MAX_STALLED": "5", "KOTUNE_FAIL_GRACE": "0.5"}) == Limits(
        max_stalled=5, fail_grace=0.5
    )
    with pytest.raises(ConfigError, match=r"KOTUNE_FAIL_GRACE: 'soon' is no positive number; unset it") as caught:
        Limits.from_environment({"KOTUNE_FAIL_GRACE": "soon", "KOTUNE_MAX_STALLED": "0"})
    assert len(caught.value.problems) == 2


def write_checkpoint(run: Path, step: int) -> None:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")


def test_only_complete_checkpoints_count_as_progress(tmp_path):
    assert newest_step(tmp_path) == newest_step(None) == 0
    write_checkpoint(tmp_path, 20)
    (tmp_path / "checkpoints/step-00000040.tmp").mkdir()
    (tmp_path / "checkpoints/step-00000060").mkdir()
    assert newest_step(tmp_path) == 20


def test_attempts_without_a_checkpoint_are_counted_over_requeues_and_lost_nodes(tmp_path):
    record = Record(tmp_path, is_new=True)
    record.start("7.0", ["n1"], 0)
    assert record.end(0, 1) == 1
    record = Record(tmp_path, is_new=False)
    record.start("7.1", ["n1"], 0)  # and its node dies: no end on record
    record = Record(tmp_path, is_new=False)
    record.start("7.2", ["n1"], 0)
    assert record.end(0, 1) == 3
    record.start("7.3", ["n1"], 0)
    assert record.end(5, 85) == 0
    record.start("7.4", ["n1"], 5)
    assert record.end(5, 1) == 1
    assert [one["attempt"] for one in json.loads((tmp_path / "attempts.json").read_text())] == [
        "7.0", "7.1", "7.2", "7.3", "7.4",
    ]  # fmt: skip
    assert Record(tmp_path, is_new=True).attempts == []  # another job that got the same number


def test_an_attempt_that_its_node_took_down_counts_only_without_progress(tmp_path):
    record = Record(tmp_path, is_new=True)
    record.start("7.0", ["n1"], 0)
    record.start("7.1", ["n1"], 20)
    assert record.end(20, 1) == 1


def test_the_fence_names_the_owner_and_forgets_an_older_stop_request(tmp_path):
    run = tmp_path / "run"
    old, new = Fence(run, "7.0"), Fence(run, "7.1")
    old.take()
    (run / "stop").touch()
    assert not old.is_lost()
    new.take()
    assert old.is_lost()
    assert not old.is_lost_to_another_job()
    assert Fence(run, "8.0").is_lost_to_another_job()
    assert not new.is_lost()
    assert not (run / "stop").exists()
    assert (run / "attempt").read_text() == "7.1\n"
    assert os.listdir(run) == ["attempt"]
    assert not Fence(None, "7.0").is_lost()


def test_the_heartbeat_of_an_older_attempt_is_no_sign_of_life(tmp_path):
    assert heartbeat(tmp_path, "7.1") == (0.0, None)
    (tmp_path / "heartbeat.json").write_text('{"attempt": "7.0", "limit_seconds": 600.0}')
    assert heartbeat(tmp_path, "7.1") == (0.0, None)
    seen, granted = heartbeat(tmp_path, "7.0")
    assert seen > 0
    assert granted == 600.0
    (tmp_path / "heartbeat.json").write_text("{")
    assert heartbeat(tmp_path, "7.0") == (0.0, None)


def test_the_settings_in_the_readme_are_those_of_the_code():
    text = (Path(__file__).parents[3] / "slurm/README.md").read_text(encoding="utf-8")
    for name, field in Limits.__dataclass_fields__.items():
        assert re.search(rf"`KOTUNE_{name.upper()}`[^\n]*\b{field.default}\b", text), name
