"""Which rank is named when a run hangs."""

import dataclasses
import gc
import sys
import threading
import time

import pytest

from recipes.training.control.whereabouts import Whereabouts, verdict, where


def at(rank, ticks, step=5, collectives=9, phase="step", place="all_reduce, recipes/training/step.py:1 in gather"):
    return Whereabouts(rank, f"node{rank}", 100 + rank, ticks, phase, step, 12.0, place, {"0": collectives})


def by_rank(*found):
    return {one.rank: one for one in found}


def test_a_rank_without_a_sign_of_life_is_named_with_its_host():
    before, after = by_rank(at(0, 7), at(1, 7)), by_rank(at(0, 9), at(1, 7))
    lines = verdict(before, after, 2)
    assert lines[0].startswith("rank 1 (node1, pid 101), step 5 gives no sign of life: its process is stopped, killed")
    assert lines[1:] == ["rank 0 waits in step 5: all_reduce, recipes/training/step.py:1 in gather"]


def test_a_rank_that_never_gave_one_is_named_too():
    lines = verdict(by_rank(at(0, 1)), by_rank(at(0, 3)), 2)
    assert lines[0].startswith("rank 1 gives no sign of life")


def test_a_rank_that_has_dumped_and_left_lives():
    gone = dataclasses.replace(at(1, 7), has_dumped=True)
    lines = verdict(by_rank(at(0, 7), gone), by_rank(at(0, 9), gone), 2)
    assert len(lines) == 2
    assert "no rank is to blame" in lines[1]


def test_a_rank_that_entered_fewer_collectives_is_named_with_its_line():
    late = at(2, 9, collectives=8, place="outside a collective, data_prep/tokens/shards.py:80 in read")
    after = by_rank(at(0, 9), at(1, 9), late)
    before = by_rank(at(0, 8), at(1, 8), at(2, 8))
    lines = verdict(before, after, 3)
    assert lines[0] == (
        "rank 2 (node2, pid 102), step 5 is not where the others wait for it: outside a collective, "
        "data_prep/tokens/shards.py:80 in read"
    )
    assert lines[1].startswith("rank 0, 1 waits in step 5")
    assert len(lines) == 2


def test_nobody_is_blamed_when_all_wait_in_the_same_collective():
    lines = verdict(by_rank(at(0, 1), at(1, 1)), by_rank(at(0, 2), at(1, 2)), 2)
    assert lines[-1] == (
        "all ranks entered the same collectives: the network or a device is stuck, no rank is to blame"
    )


@pytest.mark.parametrize("group", ["replica-0", "shard-1"])
def test_groups_that_not_all_ranks_are_in_count_among_their_members(group):
    one, other = at(0, 2), at(1, 2)
    one.collectives[group], other.collectives["other"] = 3, 50
    lines = verdict(by_rank(at(0, 1), at(1, 1)), by_rank(one, other), 2)
    assert "no rank is to blame" in lines[-1]


def test_a_sign_of_life_survives_the_way_through_the_store():
    assert Whereabouts.from_json(at(3, 4).to_json()) == at(3, 4)


def test_the_place_of_a_thread_is_its_innermost_line_of_this_project():
    stop = threading.Event()

    def waits_here():
        stop.wait()

    thread = threading.Thread(target=waits_here)
    thread.start()
    time.sleep(0.05)
    try:
        assert where(thread.ident).startswith("outside a collective, tests/unit/training/control/test_whereabouts.py:")
        assert where(thread.ident).endswith(" in waits_here")
    finally:
        stop.set()
        thread.join()
    assert where(None) == "outside a collective, outside this project"


@pytest.mark.parametrize("is_enabled", [True, False])
def test_no_garbage_is_collected_inside_the_interpreters_list_of_threads(monkeypatch, is_enabled):
    """Python 3.11 before .9 can stand still there for ever."""
    inside, frames = [], sys._current_frames
    monkeypatch.setattr(sys, "_current_frames", lambda: inside.append(gc.isenabled()) or frames())
    if not is_enabled:
        gc.disable()
    try:
        assert "test_whereabouts.py" in where(threading.get_ident())
        assert inside == [False]
        assert gc.isenabled() is is_enabled
    finally:
        gc.enable()
