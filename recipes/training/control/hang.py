"""Ends a run that hangs: a thread of each rank measures phases, dumps stacks, and names the rank that did not come."""

import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, TextIO

import torch.distributed as dist

from recipes.training.control.whereabouts import Whereabouts, flight_recorder, lives, num_collectives, verdict, where
from recipes.training.distributed import World

HANG_EXIT_CODE = 86
"""The run hung and said where: start the same command again, without the node it named."""
TICK_SECONDS = 1.0
"""Between two looks at the clock and two signs of life."""
ANSWER_SECONDS = 10.0
"""In which a rank that lives, also on a busy node, gives a further sign of life once a hang is known."""
STORE_SECONDS = 5.0
"""After which the store counts as gone."""
BACKSTOP_SECONDS = 60.0
"""Behind a limit, until faulthandler ends a process whose threads cannot run, with exit code 1."""


@dataclass(frozen=True)
class Place:
    """Where the run of this rank is, and since when (`time.monotonic`)."""

    phase: str
    step: int
    since: float
    limit: float


class Watchdog:
    """A rank's thread that ends the process with `HANG_EXIT_CODE` when a phase takes longer than its limit.

    Ranks give signs of life through a store of their own, a client of the one that torchrun keeps, so that the
    thread waits for no other and no collective is needed. Whoever sees a hang first tells the others, which then
    dump and leave as well.
    """

    def __init__(self, world: World, logs: Path) -> None:
        """Takes over where to write; `start` starts the thread.

        Args:
            world: the ranks.
            logs: folder for `rank-N.stacks.txt`.
        """
        self._world, self._logs = world, logs
        self._place: Place | None = None
        self._thread = threading.Thread(target=self._run, name="kotune-watchdog", daemon=True)
        self._stopped, self._ticks, self._has_dumped = threading.Event(), 0, False
        self._main = threading.main_thread().ident
        self._store: dist.Store | None = None
        self._stacks: TextIO | None = None

    def start(self) -> None:
        """Connects to the others and starts to look."""
        self._logs.mkdir(parents=True, exist_ok=True)
        self._stacks = open(self._logs / f"rank-{self._world.rank}.stacks.txt", "a", encoding="utf-8")  # noqa: SIM115
        self._store = own_store(self._world.size)
        self._tell()  # so that a rank that stops at once is known by host and process
        self._thread.start()

    def enter(self, phase: str, step: int, limit: float) -> None:
        """Starts the clock of a phase."""
        self._place = Place(phase, step, time.monotonic(), limit)
        if self._stacks:  # C code that keeps the interpreter's lock would stop the thread too
            faulthandler.dump_traceback_later(limit + BACKSTOP_SECONDS, exit=True, file=self._stacks)

    def stop(self) -> None:
        """Ends the thread."""
        faulthandler.cancel_dump_traceback_later()
        self._stopped.set()
        self._thread.join(timeout=STORE_SECONDS)
        if self._stacks:
            self._stacks.close()
            if not os.path.getsize(self._stacks.name):
                os.unlink(self._stacks.name)

    def _run(self) -> None:
        while not self._stopped.wait(tick_seconds(self._world.size, self._place)):
            place = self._place
            if place and time.monotonic() - place.since > place.limit:
                self._trip(f"{place.phase} {place.step} takes longer than {place.limit:g} s")
            if caller := self._tell():
                self._trip(f"rank {caller} hangs")

    def _tell(self) -> str | None:
        """Gives a sign of life; returns the rank that said that the run hangs, if one did."""
        self._ticks += 1
        here = self._whereabouts()

        def exchange(store: dist.Store) -> str | None:
            store.set(f"rank-{self._world.rank}", here.to_json())
            return store.get("hang").decode() if store.check(["hang"]) else None

        return self._with_store(exchange)

    def _whereabouts(self) -> Whereabouts:
        place = self._place or Place("start", 0, time.monotonic(), 0.0)
        return Whereabouts(
            self._world.rank, socket.gethostname(), os.getpid(), self._ticks, place.phase, place.step,
            time.monotonic() - place.since, where(self._main), num_collectives(), self._has_dumped,
        )  # fmt: skip

    def _with_store(self, action: Callable[[dist.Store], str | None]) -> str | None:
        """Returns what `action` does with the store; None when it is gone, which its host's end may well cause."""
        if self._store is None:
            return None
        try:
            return action(self._store)
        except RuntimeError:
            return None

    def _all(self) -> dict[int, Whereabouts]:
        """Returns the last sign of life of each rank that gave one; only this rank's when the store is gone."""
        names = [f"rank-{rank}" for rank in range(self._world.size)]

        def read(store: dist.Store) -> str:
            return json.dumps([store.get(name).decode() for name in names if store.check([name])])

        found = [Whereabouts.from_json(text) for text in json.loads(self._with_store(read) or "[]")]
        return {one.rank: one for one in found or [self._whereabouts()]}

    def _all_then_and_now(self) -> tuple[dict[int, Whereabouts], dict[int, Whereabouts]]:
        """Returns two signs of life of each rank, the second as soon as all have given a further one, or too late."""
        before = after = self._all()
        until = time.monotonic() + max(ANSWER_SECONDS, 3 * tick_seconds(self._world.size, None))
        ranks = range(self._world.size)
        while time.monotonic() < until and not all(lives(before.get(rank), after.get(rank)) for rank in ranks):
            self._stopped.wait(TICK_SECONDS)
            self._tell()
            after = self._all()
        return before, after

    def _trip(self, reason: str) -> NoReturn:
        """Dumps this rank's stacks, tells and hears who is where, and ends the process."""
        rank, log = self._world.rank, logging.getLogger("kotune")
        self._with_store(lambda store: store.set("hang", str(rank)) if not store.check(["hang"]) else None)
        assert self._stacks is not None
        self._stacks.write(f"\n{time.strftime('%F %T')} rank {rank}: {reason}\n")
        self._stacks.flush()
        faulthandler.dump_traceback(file=self._stacks, all_threads=True)
        flight_recorder(self._logs / f"rank-{rank}.nccl.json")
        self._has_dumped = True
        self._tell()
        before, after = self._all_then_and_now()
        lines = [f"the run hangs: {reason}", *verdict(before, after, self._world.size)]
        for line in lines:
            log.error(line)
        living = [one.rank for one in after.values() if lives(before.get(one.rank), one)]
        if rank == min(living, default=rank):
            told = [*lines, f"stacks: {self._logs}/rank-*.stacks.txt; exit code {HANG_EXIT_CODE}: start again"]
            print("\n".join(f"error: {line}" for line in told), file=sys.stderr, flush=True)
        if rank == 0:  # without torchrun this process hosts the store that the others still read
            time.sleep(2 * TICK_SECONDS)
        logging.shutdown()
        os._exit(HANG_EXIT_CODE)


def tick_seconds(world_size: int, place: Place | None) -> float:
    """Returns the pause between two signs of life: a thousand ranks share one store, and a short limit is kept."""
    pause = max(TICK_SECONDS, world_size / 200)
    return min(pause, place.limit / 4) if place else pause


def own_store(world_size: int) -> dist.Store | None:
    """Returns a client of the run's store that only the caller uses; None for a process alone."""
    if world_size == 1 or "MASTER_PORT" not in os.environ:
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    client = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=STORE_SECONDS))
    return dist.PrefixStore(f"kotune-hang/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", client)
