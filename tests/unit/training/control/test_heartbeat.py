"""The files that say from outside where a run is."""

import json
import os
import time

from recipes.training.control.heartbeat import Heartbeat, clear_finished, note_finished


def test_a_heartbeat_is_written_at_most_once_a_second_but_at_each_new_phase(tmp_path, monkeypatch):
    monkeypatch.setenv("KOTUNE_ATTEMPT", "17.2")
    path, heartbeat = tmp_path / "heartbeat.json", Heartbeat(tmp_path)
    heartbeat.beat("step", 1, 600.0)
    first = json.loads(path.read_text())
    assert abs(first.pop("time") - time.time()) < 60
    assert first == {"step": 1, "attempt": "17.2", "phase": "step", "limit_seconds": 600.0}
    number = os.stat(path).st_ino
    heartbeat.beat("step", 2, 600.0)
    assert os.stat(path).st_ino == number
    heartbeat.beat("save", 2, None)
    assert json.loads(path.read_text())["phase"] == "save"
    time.sleep(1.1)
    heartbeat.beat("save", 3, None)
    assert json.loads(path.read_text())["step"] == 3


def test_a_run_that_was_asked_to_end_says_why(tmp_path):
    note_finished(tmp_path, 7, "no gain")
    assert json.loads((tmp_path / "finished.json").read_text()) == {"step": 7, "reason": "no gain"}


def test_finished_is_taken_back_when_the_run_goes_on(tmp_path):
    note_finished(tmp_path, 7)
    assert json.loads((tmp_path / "finished.json").read_text()) == {"step": 7}
    clear_finished(tmp_path)
    clear_finished(tmp_path)
    assert not list(tmp_path.iterdir())
