"""How fast the nodes talk to one another, and whether their clocks agree."""

import statistics
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from slurm.preflight_meeting import Finding, Here, Meeting
from slurm.preflight_share import slow_nodes

SMALL_BYTES = 1024
LARGE_BYTES = {"cpu": 2**20, "cuda": 128 * 2**20}
REPEATS = {SMALL_BYTES: 10, 2**20: 3, 128 * 2**20: 3}
"""Messages there and back, beside the first."""
ALL_PAIRS = 16
"""Nodes up to which each pair is measured; of more, each node with those 1, 2, 4, ... places away."""
OPERATION_SECONDS = 20.0
"""After which a message counts as lost."""
MOST_SKEW_SECONDS = 1.0
ROUND_TRIPS = 20


def rounds(num_nodes: int) -> list[list[tuple[int, int]]]:
    """Returns pairs of nodes in rounds; no node comes twice in a round.

    Up to `ALL_PAIRS` nodes every pair comes once, beyond that every node meets those 1, 2, 4, ... places away.
    """
    if num_nodes <= ALL_PAIRS:
        seats = [*range(num_nodes), *([-1] if num_nodes % 2 else [])]
        found = []
        for _ in range(len(seats) - 1):  # the circle method: one seat stays, the others move on
            pairs = zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True)
            found.append([(min(pair), max(pair)) for pair in pairs if -1 not in pair])
            seats = [seats[0], seats[-1], *seats[1:-1]]
        return found
    found, distance = [], 1
    while distance < num_nodes:
        waiting = [(node, (node + distance) % num_nodes) for node in range(num_nodes)]
        while waiting:
            taken: set[int] = set()
            now = []
            for pair in waiting:
                if not taken & set(pair):
                    taken |= set(pair)
                    now.append(pair)
            found.append(now)
            waiting = [pair for pair in waiting if pair not in now]
        distance *= 2
    return found


def join_group(here: Here, meeting: Meeting) -> None:
    """Makes the process group of all ranks, with a timeout that one lost message does not outlast.

    Raises:
        RuntimeError: not all ranks come.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(here.local_rank)
    store = dist.PrefixStore("group", meeting.store)
    timeout = timedelta(seconds=OPERATION_SECONDS)
    dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size, timeout=timeout)


def device_of(here: Here) -> torch.device:
    """Returns where messages lie: on the rank's GPU where there is one."""
    return torch.device("cuda", here.local_rank) if torch.cuda.is_available() else torch.device("cpu")


def measure_network(here: Here) -> dict[str, Any]:
    """Returns the pairs' latencies in seconds and rates in bytes a second, and the rate of an all-reduce.

    All ranks take part in the all-reduce, the first of each node in the pairs.
    """
    facts: dict[str, Any] = {"pairs": []}
    if here.size == 1:
        return facts
    device, leaders = device_of(here), here.leaders
    partner = -1
    try:
        if here.is_leader:
            mine = leaders.index(here.rank)
            for pair in (pair for pairs in rounds(len(leaders)) for pair in pairs if mine in pair):
                other = pair[1] if pair[0] == mine else pair[0]
                partner = leaders[other]
                small = ping_pong(partner, SMALL_BYTES, here.rank < partner, device) / 2
                large = ping_pong(partner, LARGE_BYTES[device.type], here.rank < partner, device)
                facts["pairs"].append([partner, small, 2 * LARGE_BYTES[device.type] / large])
        partner = -1
        facts["all_reduce"] = all_reduce_rate(here.size, LARGE_BYTES[device.type], device)
    except RuntimeError as error:
        facts |= {"error": " ".join(str(error).split())[:160], "partner": partner}
    return facts


def ping_pong(partner: int, num_bytes: int, is_first: bool, device: torch.device) -> float:
    """Returns the seconds in which a message goes to the partner and back, the least of several times."""
    message, seconds = torch.zeros(num_bytes, dtype=torch.uint8, device=device), list[float]()
    for _ in range(REPEATS[num_bytes] + 1):  # the first connects and waits for the partner
        started = time.perf_counter()
        for is_my_turn in (is_first, not is_first):
            if is_my_turn:
                dist.send(message, partner)
            else:
                dist.recv(message, partner)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def all_reduce_rate(size: int, num_bytes: int, device: torch.device) -> float:
    """Returns the bytes a second that each rank's link carries in an all-reduce of all, the best of several.

    Source: nccl-tests, doc/PERFORMANCE.md: bus bandwidth, 2 (n - 1) / n of the bytes.
    """
    values, best = torch.zeros(num_bytes // 4, device=device), float("inf")
    for _ in range(REPEATS[num_bytes] + 1):
        started = time.perf_counter()
        dist.all_reduce(values)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * (size - 1) / size * num_bytes / best


def judge_network(rows: dict[int, dict[str, Any]], here: Here, share: float) -> tuple[str, list[Finding]]:
    """Finds nodes that are lost to others, and nodes whose best rate or latency is far from the others' best."""
    remedy = "have its link looked at (cable, switch port, driver), and leave it out meanwhile"
    lost = [here.nodes[row["partner"]] for row in rows.values() if row.get("partner", -1) >= 0]
    findings = [
        Finding(node, f"{lost.count(node)} nodes get no answer from it", remedy)
        for node in dict.fromkeys(lost)
        if 2 * lost.count(node) >= len(lost)
    ]
    if not findings and (errors := [row["error"] for row in rows.values() if "error" in row]):
        findings.append(Finding(None, f"the network fails: {errors[0]}", remedy))
    best, quickest = dict[str, float](), dict[str, float]()
    for rank, row in rows.items():
        for _, latency, rate in row["pairs"]:
            node = here.nodes[rank]
            best[node] = max(rate / 1e9, best.get(node, 0.0))
            quickest[node] = max(1e-6 / latency, quickest.get(node, 0.0))
    if not best:
        return ("failed" if findings else "not checked: one node"), findings
    findings += slow_nodes(best, share, "GB/s to the fastest of its partners", remedy)
    found = {finding.node for finding in findings}
    for one in slow_nodes(quickest, share / 2, "messages a microsecond at best", remedy):
        findings += [one] if one.node not in found else []
    rates = [rate / 1e9 for row in rows.values() for _, _, rate in row["pairs"]]
    reduced = [row["all_reduce"] / 1e9 for row in rows.values() if "all_reduce" in row]
    latency = statistics.median(latency for row in rows.values() for _, latency, _ in row["pairs"])
    told = f"{len(rates) // 2} pairs: {min(rates):.2f} to {max(rates):.2f} GB/s, {latency * 1e6:.0f} us"
    return f"{told}; all-reduce of {len(rows)} ranks: {min(reduced, default=0.0):.2f} GB/s", findings


def measure_clock(here: Here) -> dict[str, Any]:
    """Returns by how many seconds each node's clock is ahead of rank 0's, and how sure that is; on rank 0."""
    others = [rank for rank in here.leaders if rank != 0]
    number = torch.zeros(1, dtype=torch.float64)
    try:
        if here.rank == 0:
            found = {}
            for rank in others:
                samples = []
                for _ in range(ROUND_TRIPS):
                    sent = time.time()
                    dist.send(number, rank)
                    dist.recv(number, rank)
                    samples.append((sent, float(number), time.time()))
                found[str(rank)] = offset(samples)
            return {"offsets": found}
        if here.rank in others:
            for _ in range(ROUND_TRIPS):
                dist.recv(number, 0)
                dist.send(torch.tensor([time.time()], dtype=torch.float64), 0)
    except RuntimeError as error:
        return {"error": " ".join(str(error).split())[:160]}
    return {}


def offset(samples: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Returns how far the other clock is ahead, and the most by which that may be wrong, both in seconds.

    The round trip with the least delay counts: what it says is wrong by half of its delay at most.

    Args:
        samples: (sent, the other's time, received) of round trips, by the own clock.

    Source: RFC 5905 (NTP), sections 8 and 10.
    """
    sent, other, received = min(samples, key=lambda sample: sample[2] - sample[0])
    return other - (sent + received) / 2, (received - sent) / 2


def judge_clock(rows: dict[int, dict[str, Any]], here: Here) -> tuple[str, list[Finding]]:
    """Finds nodes whose clock is surely off from most nodes' by more than `MOST_SKEW_SECONDS`."""
    remedy = "have its time service (chrony) mended"
    if errors := [row["error"] for row in rows.values() if "error" in row]:
        return "failed", [Finding(None, f"clocks could not be compared: {errors[0]}", remedy)]
    offsets = {int(rank): tuple(value) for rank, value in rows.get(0, {}).get("offsets", {}).items()}
    if not offsets:
        return "not checked: one node", []
    ahead = {here.nodes[0]: (0.0, 0.0), **{here.nodes[rank]: value for rank, value in offsets.items()}}
    usual = statistics.median(seconds for seconds, _ in ahead.values())
    wrong = {node: seconds - usual for node, (seconds, sure) in ahead.items() if is_off(seconds - usual, sure)}
    if len(ahead) == 2 and wrong:
        node, (seconds, _) = list(ahead.items())[1]
        told = f"the clocks of {here.nodes[0]} and {node} differ by {abs(seconds):.2f} s"
        return "differ", [Finding(None, f"{told}, {MOST_SKEW_SECONDS:g} are allowed", remedy)]
    findings = [
        Finding(node, f"its clock is off by {seconds:+.2f} s, {MOST_SKEW_SECONDS:g} are allowed", remedy)
        for node, seconds in wrong.items()
    ]
    most = max(abs(seconds - usual) for seconds, _ in ahead.values())
    return f"{len(ahead)} nodes within {most * 1000:.1f} ms", findings


def is_off(seconds: float, unsure: float) -> bool:
    """Whether a clock is off by too much even if the measurement errs in its favour."""
    return abs(seconds) - unsure > MOST_SKEW_SECONDS
