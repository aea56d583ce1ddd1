"""Runs tasks in processes that report progress; a dead parent or worker ends the other side."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from typing import Any

from configs.loader import UserError
from data_prep.disk import FULL, DiskFullError

ATTEMPTS = 2  # of a task whose worker dies; the second in a fresh process
AHEAD = 2  # tasks drawn before a worker is free, so that drawing and working overlap

Report = Callable[[int, int], None]
Function = Callable[[Any, Report], None]

_END = object()


@dataclass
class _Job:
    index: int
    task: Any
    attempts: int = 0
    reported: list[int] = field(default_factory=lambda: [0, 0])


@dataclass
class _Worker:
    process: Any
    pipe: Any
    job: _Job | None = None


def run_tasks(function: Function, tasks: Iterable[Any], num_workers: int, report: Report) -> dict[int, str]:
    """Runs `function(task, report)` for every task and returns the messages of those that failed.

    A worker process that dies costs its task one attempt; the task is tried once more in a fresh process.

    Args:
        function: a module's function; it may raise `UserError` or `OSError`, and the others go on.
        tasks: picklable values; an iterator is drawn from as workers become free. It may yield None to say that the
            next task is still being made, so that workers are looked after meanwhile.
        num_workers: 1 runs the tasks in this process, as does a single task.
        report: called here with the arguments (records, bytes) that the tasks report; negative ones take back what
            a dead worker had reported.

    Returns:
        Index of the task (None not counted) -> message.

    Raises:
        DiskFullError: a task found the disk full; no other is begun.
    """
    made: Iterator[Any] = iter(tasks)
    if num_workers > 1:
        first = list(islice((task for task in made if task is not None), 2))
        made = chain(first, made)
        if len(first) > 1:
            return _run_processes(function, made, num_workers, report)
    failures = {}
    for index, task in enumerate(task for task in made if task is not None):
        if message := _attempt(function, task, report):
            failures[index] = message
    return failures


def _attempt(function: Function, task: Any, report: Report) -> str:
    try:
        function(task, report)
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno in FULL:
            raise DiskFullError(f"{error}; room to write is needed; make some and start again") from None
        return str(error)
    except UserError as error:
        return str(error)
    return ""


def _run_processes(function: Function, tasks: Iterator[Any], num_workers: int, report: Report) -> dict[int, str]:
    failures: dict[int, str] = {}
    ready: deque[_Job] = deque()
    workers: list[_Worker] = []
    count, exhausted = 0, False
    try:
        while not exhausted or ready or any(worker.job for worker in workers):
            _hand_out(function, ready, workers, num_workers)
            draws = not exhausted and len(ready) < AHEAD
            busy = [worker for worker in workers if worker.job]
            for pipe in wait([worker.pipe for worker in busy], 0 if draws else None):
                worker = next(worker for worker in busy if worker.pipe is pipe)
                _receive(worker, workers, ready, failures, report)
            if draws:
                task = next(tasks, _END)
                exhausted = task is _END
                if task is not None and not exhausted:
                    ready.append(_Job(count, task))
                    count += 1
        for worker in workers:
            with contextlib.suppress(BrokenPipeError):
                worker.pipe.send(None)
            worker.process.join()
    finally:
        for worker in workers:
            worker.process.terminate()
            worker.process.join()
    return failures


def _hand_out(function: Function, ready: deque[_Job], workers: list[_Worker], num_workers: int) -> None:
    """Gives tasks to free workers, starting workers while there are fewer than `num_workers`."""
    while ready:
        free = next((worker for worker in workers if worker.job is None), None)
        if free is None:
            if len(workers) >= num_workers:
                return
            workers.append(free := _start(function))
        free.job = ready.popleft()
        free.job.attempts += 1
        with contextlib.suppress(BrokenPipeError):  # the next recv finds the worker dead and says so
            free.pipe.send(free.job.task)


def _start(function: Function) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(function, theirs), daemon=True)
    process.start()
    theirs.close()  # so that the worker's death is the end of the pipe
    return _Worker(process, ours)


def _receive(
    worker: _Worker, workers: list[_Worker], ready: deque[_Job], failures: dict[int, str], report: Report
) -> None:
    """Takes one message of a worker: progress, the end of its task, or its death."""
    job = worker.job
    assert job is not None
    try:
        message = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        workers.remove(worker)
        report(-job.reported[0], -job.reported[1])
        job.reported = [0, 0]
        if job.attempts < ATTEMPTS:
            ready.appendleft(job)
        else:
            failures[job.index] = (
                f"its worker ended {job.attempts} times, at last with exit code {worker.process.exitcode}; "
                "0 is expected (-9: killed, mostly for want of memory); see above, or use fewer --workers"
            )
        return
    if isinstance(message, tuple):
        job.reported = [job.reported[0] + message[0], job.reported[1] + message[1]]
        report(*message)
        return
    if isinstance(message, DiskFullError):
        raise message
    if message:
        failures[job.index] = message
    worker.job = None


def _end_with_parent() -> None:
    """Ends this process when the parent is killed, so that it does not write beside a resumed run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _serve(function: Function, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while (task := pipe.recv()) is not None:
            try:
                pipe.send(_attempt(function, task, lambda *counts: pipe.send(counts)))
            except DiskFullError as error:
                pipe.send(error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone; unfinished files keep their .tmp name
