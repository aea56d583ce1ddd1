"""Runs tasks in processes that report progress; a dead parent or worker ends the other side."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from configs.loader import UserError
from data_prep.document import CorpusError

Report = Callable[[int, int], None]
Function = Callable[[Any, Report], None]


def run_tasks(function: Function, tasks: Sequence[Any], num_workers: int, report: Report) -> dict[int, str]:
    """Runs `function(task, report)` for every task and returns the messages of those that failed.

    Args:
        function: a module's function; it may raise `UserError` or `OSError`, and the others go on.
        tasks: picklable values.
        num_workers: 1 runs the tasks in this process.
        report: called here with the arguments (pages, bytes) that the tasks report.

    Raises:
        CorpusError: a worker process died.
    """
    if min(num_workers, len(tasks)) > 1:
        return _run_processes(function, tasks, min(num_workers, len(tasks)), report)
    failures = {}
    for index, task in enumerate(tasks):
        if message := _attempt(function, task, report):
            failures[index] = message
    return failures


def _attempt(function: Function, task: Any, report: Report) -> str:
    try:
        function(task, report)
    except (UserError, OSError) as error:
        return str(error)
    return ""


def _run_processes(function: Function, tasks: Sequence[Any], num_workers: int, report: Report) -> dict[int, str]:
    context = multiprocessing.get_context("spawn")
    failures: dict[int, str] = {}
    waiting = list(enumerate(tasks))[::-1]
    running: dict[Any, tuple[Any, int]] = {}  # pipe -> (process, task's index)
    try:
        for _ in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(function, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the worker's death is the end of the pipe
            running[ours] = (process, _give(ours, waiting))
        while running:
            for ready in wait(list(running)):
                pipe: Any = ready
                process, index = running[pipe]
                try:
                    message = pipe.recv()
                except EOFError:
                    process.join()
                    raise CorpusError(
                        f"the worker of shard {index} ended with exit code {process.exitcode}; 0 is expected "
                        "(-9: out of memory); see above, or use fewer --workers; finished shards are kept"
                    ) from None
                if isinstance(message, tuple):
                    report(*message)
                    continue
                if message:
                    failures[index] = message
                if waiting:
                    running[pipe] = (process, _give(pipe, waiting))
                else:
                    del running[pipe]
                    pipe.send(None)
                    process.join()
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()
    return failures


def _give(pipe: Any, waiting: list[tuple[int, Any]]) -> int:
    index, task = waiting.pop()
    with contextlib.suppress(BrokenPipeError):  # the next recv finds the worker dead and says so
        pipe.send(task)
    return index


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
            pipe.send(_attempt(function, task, lambda *counts: pipe.send(counts)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone; unfinished files keep their .tmp name
