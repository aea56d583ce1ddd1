"""When a run stops by itself: laws of the lead time, which deadline counts, and who may ask."""

import os
import signal
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.training.control.stopping import StopRequests, Timings, deadline_of, slow_quantile, stop_signals

SECONDS = st.floats(0, 1e5, allow_nan=False)


def timings(steps, save=0.0, load=0.0, validation=0.0):
    found = Timings(save=save, load=load, validation=validation)
    found.steps.extend(steps)
    return found


def requests(folder, received=(), *, deadline=None, margin=10.0, rank=0, known=None):
    return StopRequests(folder, list(received), known or Timings(), deadline=deadline, margin=margin, rank=rank)


@given(st.lists(SECONDS, min_size=1, max_size=100))
def test_the_slow_quantile_is_one_of_the_steps_and_few_are_slower(steps):
    slow = slow_quantile(steps)
    assert slow in steps
    assert sum(one > slow for one in steps) <= 0.05 * len(steps)


@given(st.lists(SECONDS, max_size=50), SECONDS, SECONDS, SECONDS, SECONDS)
def test_the_lead_covers_a_step_the_saves_and_what_is_due(steps, save, load, validation, margin):
    known = timings(steps, save, load, validation)
    lead = known.lead(margin, validation_is_due=False)
    assert lead >= margin + slow_quantile(steps) + 2 * save
    assert known.lead(margin, validation_is_due=True) == pytest.approx(lead + validation)
    if save:
        assert lead == timings(steps, save, 0.0, validation).lead(margin, validation_is_due=False)
    else:
        assert lead == pytest.approx(margin + slow_quantile(steps) + 2 * load)


def test_one_outlier_among_many_steps_does_not_set_the_lead_but_slow_steps_do():
    assert timings([1.0] * 60 + [100.0]).lead(0.0, False) == 1.0
    assert timings([1.0] * 54 + [100.0] * 6).lead(0.0, False) == 100.0


def test_the_first_step_which_may_compile_counts_until_there_is_another():
    known = Timings()
    known.step_took(300.0)
    assert known.lead(0.0, False) == 300.0
    known.step_took(2.0)
    known.step_took(3.0)
    assert list(known.steps) == [2.0, 3.0]


@pytest.mark.parametrize(
    ("environment", "minutes", "expected"),
    [
        ({}, None, None),
        ({"KOTUNE_DEADLINE": "500"}, None, 500.0),
        ({"SLURM_JOB_END_TIME": "700"}, None, 700.0),
        ({"KOTUNE_DEADLINE": "500", "SLURM_JOB_END_TIME": "400"}, None, 500.0),
        ({"KOTUNE_DEADLINE": ""}, 2.0, 220.0),
        ({"KOTUNE_DEADLINE": "150"}, 2.0, 150.0),
        ({"KOTUNE_DEADLINE": "500"}, 2.0, 220.0),
    ],
)
def test_the_earlier_end_counts(environment, minutes, expected):
    assert deadline_of(environment, minutes, started=100.0) == expected


def test_a_deadline_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="KOTUNE_DEADLINE='12:00' is no number; Unix seconds are expected; mend it"):
        deadline_of({"KOTUNE_DEADLINE": "12:00"}, None, 0.0)


def test_the_run_stops_when_less_is_left_than_the_lead(tmp_path):
    known = timings([2.0], save=3.0, validation=100.0)
    far = requests(tmp_path, deadline=time.time() + 60, known=known)
    assert not far
    far.validation_is_due = True
    assert far
    near = requests(tmp_path, deadline=time.time() + 17, known=known)
    assert near
    assert near.reason == "17 s are left, and 18 s are kept for a step, the checkpoint and a margin"
    assert not requests(tmp_path, deadline=time.time() + 17, known=known, rank=1)  # rank 0's clock counts


def test_the_stop_file_is_seen_by_rank_zero_and_taken_back(tmp_path):
    (tmp_path / "stop").touch()
    assert not requests(tmp_path, rank=1)
    asked = requests(tmp_path)
    assert asked
    asked.take_back()
    assert asked, "a request once seen stays"
    assert not requests(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"), [("", ""), ("pause", ""), ("end: no gain\n", "no gain"), ("end:", "asked to")]
)
def test_a_stop_file_may_say_that_the_run_shall_not_go_on(tmp_path, content, reason):
    (tmp_path / "stop").write_text(content)
    asked = requests(tmp_path)
    assert asked
    assert asked.take_back() == reason
    assert asked.take_back() == ""  # it is gone
    assert not (tmp_path / "stop").exists()


def test_signals_are_noted_and_the_first_is_told(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as received:
        for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        asked = requests(tmp_path, received, rank=3)
        assert asked
        assert asked.reason == "SIGUSR1"
        assert len(received) == 5
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_nohup_ignores_stays_ignored_but_a_job_scripts_usr1_is_heard():
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGUSR1)}
    try:
        with stop_signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)
        assert received == [signal.SIGUSR1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
