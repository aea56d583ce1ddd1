import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.disk import DiskFullError
from data_prep.document import CorpusError
from data_prep.pool import AHEAD, run_tasks


def silent(records: int, num_bytes: int) -> None:
    pass


def note(task: Path, report: Any) -> None:
    report(1, 10)
    task.touch()


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_are_drawn_as_workers_become_free(tmp_path: Path, workers: int) -> None:
    drawn_early = []
    reports = []

    def tasks() -> Iterator[Path | None]:
        for number in range(20):
            yield None
            finished = len(list(tmp_path.iterdir()))
            drawn_early.append(number - finished)
            yield tmp_path / str(number)

    assert run_tasks(note, tasks(), workers, lambda *counts: reports.append(counts)) == {}
    assert len(list(tmp_path.iterdir())) == 20
    assert max(drawn_early) <= workers + AHEAD
    assert reports == [(1, 10)] * 20


def fail_on_odd(task: int, report: Any) -> None:
    if task == 3:
        raise CorpusError("three is bad")
    if task == 5:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_messages_of_failures_are_returned_by_the_tasks_number(workers: int) -> None:
    tasks = [None, 0, 3, None, 2, 5]
    assert run_tasks(fail_on_odd, tasks, workers, silent) == {1: "three is bad", 3: "[Errno 5] Input/output error"}


def dies(task: int, report: Any) -> None:
    sys.exit(7)


def test_a_worker_that_dies_twice_fails_its_task() -> None:
    failures = run_tasks(dies, [0, 1], 2, silent)
    assert sorted(failures) == [0, 1]
    assert "its worker ended 2 times, at last with exit code 7; 0 is expected" in failures[0]


def dies_once(task: Path, report: Any) -> None:
    report(3, 30)
    if not task.exists():
        task.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    report(1, 10)


def test_a_worker_that_dies_costs_an_attempt_and_what_it_reported_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    totals = [0, 0]

    def add(records: int, num_bytes: int) -> None:
        totals[0] += records
        totals[1] += num_bytes

    assert run_tasks(dies_once, [tmp_path / "a", tmp_path / "b"], 2, add) == {}
    assert totals == [8, 80]


def fills(task: Path, report: Any) -> None:
    if task.name == "2":
        raise OSError(28, "No space left on device")
    task.touch()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_ends_all_tasks(tmp_path: Path, workers: int) -> None:
    with pytest.raises(DiskFullError, match=r"No space left on device; room to write is needed; make some and start"):
        run_tasks(fills, [tmp_path / str(n) for n in range(50)], workers, silent)
    assert len(list(tmp_path.iterdir())) < 10


def waits(task: Path, report: Any) -> None:
    task.write_text(str(os.getpid()))
    time.sleep(60)


def test_an_interrupt_ends_the_workers(tmp_path: Path) -> None:
    tasks = [tmp_path / "a", tmp_path / "b"]

    def interrupted() -> Iterator[Path | None]:
        yield from tasks
        while not all(task.exists() and task.read_text() for task in tasks):
            yield None
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks(waits, interrupted(), 2, silent)
    for task in tasks:
        with pytest.raises(ProcessLookupError):
            os.kill(int(task.read_text()), 0)
