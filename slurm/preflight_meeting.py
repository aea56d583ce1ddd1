"""How the ranks of a preflight hear of each other: through a store, so that one that stands still is named."""

import json
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from omegaconf import DictConfig

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Finding:
    """Something that would go wrong; `node` is the one to leave out, None where it is not one node's fault."""

    node: str | None
    problem: str
    remedy: str
    is_rate: bool = False
    """A rate is low, which a busy moment of the node can cause too: it counts if it is low again."""

    def line(self) -> str:
        """Returns it for the table."""
        return f"{self.node + ': ' if self.node else ''}{self.problem}; {self.remedy}"


@dataclass
class Here:
    """This rank among the others; `nodes` is the node of each rank, known once all have joined."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    node: str
    nodes: list[str]
    cfg: DictConfig | None = None

    @classmethod
    def from_environment(cls) -> "Here":
        """Reads the variables that torchrun, `tune run` and slurm/rank.sh set; without them it is one rank alone."""
        node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, size, local_rank, local_size = (int(os.environ.get(k, d)) for k, d in zip(keys, "0101", strict=True))
        return cls(rank, size, local_rank, local_size, node, [node] * size)

    @property
    def leaders(self) -> list[int]:
        """Returns the first rank of each node, in order."""
        return sorted({node: rank for rank, node in reversed(list(enumerate(self.nodes)))}.values())

    @property
    def is_leader(self) -> bool:
        """Whether this rank speaks for its node."""
        return self.rank in self.leaders


class Meeting:
    """Exchanges facts by name; who does not answer in time is left behind, and nobody waits for ever."""

    def __init__(self, here: Here, seconds: float) -> None:
        """Opens or joins the store of the step.

        Raises:
            RuntimeError: the store's host does not answer within `seconds`.
        """
        self._here = here
        if here.size == 1:
            self.store: dist.Store = dist.HashStore()
            return
        is_host = here.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        timeout = timedelta(seconds=seconds)
        store = dist.TCPStore(address, port, is_master=is_host, timeout=timeout, wait_for_workers=False)
        self.store = dist.PrefixStore("preflight", store)

    def exchange(self, name: str, facts: Any, seconds: float, answers: Iterable[int]) -> dict[int, Any]:
        """Gives this rank's facts; rank 0 gets those of all ranks in `answers` that come within `seconds`."""
        self.store.set(f"{name}/{self._here.rank}", json.dumps(facts))
        if self._here.rank != 0:
            return {}
        waiting, found, ends = set(answers), {}, time.monotonic() + seconds
        while waiting and time.monotonic() < ends:
            for rank in sorted(waiting):
                if self.store.check([f"{name}/{rank}"]):
                    found[rank] = json.loads(self.store.get(f"{name}/{rank}"))
                    waiting.remove(rank)
            if waiting:
                time.sleep(POLL_SECONDS)
        return found

    def say(self, name: str, value: Any) -> None:
        """Tells all others; for rank 0."""
        self.store.set(name, json.dumps(value))

    def hear(self, name: str, seconds: float) -> Any:
        """Returns what rank 0 says.

        Raises:
            TimeoutError: it says nothing.
        """
        ends = time.monotonic() + seconds
        while not self.store.check([name]):
            if time.monotonic() > ends:
                raise TimeoutError(f"rank 0 says nothing on {name} for {seconds:g} s")
            time.sleep(POLL_SECONDS)
        return json.loads(self.store.get(name))

    def leave(self, seconds: float) -> None:
        """Waits, on the store's host, until the others have heard the last word."""
        self.store.set(f"left/{self._here.rank}", "")
        ends, others = time.monotonic() + seconds, set(range(self._here.size))
        while self._here.rank == 0 and others and time.monotonic() < ends:
            others = {rank for rank in others if not self.store.check([f"left/{rank}"])}
            time.sleep(POLL_SECONDS)


def majority(values: dict[str, str]) -> str | None:
    """Returns the value that more than half of the nodes have, None if there is none."""
    for value in values.values():
        if 2 * sum(other == value for other in values.values()) > len(values):
            return value
    return None
