"""Examines the nodes of a job before its run: same code and data, network, clocks, disk, GPUs; under a minute.

    torchrun --nproc_per_node 8 -m slurm.preflight --config configs/cpt/llama3_8b_ko.yaml [--bad-nodes FILE] [key=value]

Each rank takes part, started as the run's ranks are. Rank 0 prints a table of what was checked, how long it took, and
what is wrong, with the node and the remedy. FILE gets the nodes to leave out, one a line. Exit code 0: nothing is
wrong; 1: something is.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig

from configs.loader import ConfigError, load
from recipes.cpt import CptConfig
from recipes.sft import SftConfig
from recipes.training.tables import aligned
from slurm import preflight_facts, preflight_network, preflight_node
from slurm.commands import SlurmError, host_names
from slurm.preflight_meeting import Finding, Here, Meeting

JOIN_SECONDS = 60.0
"""Behind rank 0's own start, in which all ranks must have started."""
FEWEST_SHARE = {"cpu": 0.2, "cuda": 0.5}
"""Least part of the median rate; nodes without GPUs are often shared, and vary more."""


@dataclass(frozen=True)
class Check:
    """What each rank measures, and what rank 0 makes of it; who needs longer than `seconds` counts as silent."""

    name: str
    seconds: float
    measure: Callable[[Here], Any]
    judge: Callable[[dict[int, Any], Here], tuple[str, list[Finding]]]


@dataclass
class Report:
    """Rows of the table and what is wrong."""

    rows: list[list[str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, name: str, seconds: float, told: str, findings: Sequence[Finding]) -> None:
        """Adds a check that took so many seconds."""
        self.rows.append([name, "wrong" if findings else "ok", f"{seconds:.1f} s", told])
        self.seconds += seconds
        self.findings += findings

    @property
    def bad_nodes(self) -> list[str]:
        """Returns the nodes to leave out."""
        return sorted({finding.node for finding in self.findings if finding.node})

    def print(self, num_nodes: int, num_ranks: int) -> None:
        """Prints the table, then what is wrong."""
        print(f"preflight of {num_ranks} ranks on {num_nodes} nodes: {self.seconds:.1f} s")
        print("\n".join(aligned(self.rows, 4)))
        for finding in self.findings:
            print(f"error: {finding.line()}")
        if self.bad_nodes:
            print(f"leave out: {' '.join(self.bad_nodes)}")
        sys.stdout.flush()


def checks(share: float, meeting: Meeting) -> list[Check]:
    """Returns the checks in order; those behind `group` need all ranks to talk to one another."""

    def join(here: Here) -> dict[str, str]:
        preflight_network.join_group(here, meeting)
        return {}

    return [
        Check("same everywhere", 20, preflight_facts.measure_facts, preflight_facts.judge_facts),
        Check("disk", 20, preflight_node.measure_disk, partial(preflight_node.judge_disk, share=share / 2)),
        Check("shared folder", 15, preflight_node.measure_sharing, preflight_node.judge_sharing),
        Check("GPUs", 20, preflight_node.measure_gpu, partial(preflight_node.judge_gpu, share=max(share, 0.8))),
        Check("group", 25, join, lambda rows, here: (f"{len(rows)} ranks connected", [])),
        Check("clocks", 25, preflight_network.measure_clock, preflight_network.judge_clock),
        Check("network", 40, preflight_network.measure_network, partial(preflight_network.judge_network, share=share)),
    ]


def main() -> int:
    """Runs the preflight on this rank; returns the exit code, which all ranks share."""
    parser = argparse.ArgumentParser(description="Examines the nodes of a job before its run.")
    parser.add_argument("--config", required=True, help="the run's YAML file, of CPT or SFT")
    parser.add_argument("--bad-nodes", type=Path, help="file that gets the nodes to leave out, one a line")
    parser.add_argument("--min-share", type=float, help="least part of the median rate; 0.5 with GPUs, otherwise 0.2")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    if args.bad_nodes and os.environ.get("RANK", "0") == "0":
        args.bad_nodes.unlink(missing_ok=True)
    share = args.min_share or FEWEST_SHARE["cuda" if torch.cuda.is_available() else "cpu"]
    here, report = Here.from_environment(), Report()
    problem = read_config(here, args.config, args.overrides)
    try:
        meeting = Meeting(here, JOIN_SECONDS)
        exit_code = examine(here, meeting, share, problem, report)
    except (RuntimeError, TimeoutError) as error:  # rank 0, which hosts the store, is not there
        return without_rank_zero(error, args.bad_nodes, here)
    finally:
        preflight_node.remove_probe(here)
    if here.rank == 0:
        report.print(len(here.leaders), here.size)
        write_bad_nodes(args.bad_nodes, report.bad_nodes)
    meeting.leave(5.0)
    return exit_code


def examine(here: Here, meeting: Meeting, share: float, problem: str, report: Report) -> int:
    """Runs the checks in order, until one that a rank does not answer to; returns the exit code."""
    silent = gather_nodes(here, meeting, problem, report)
    for number, check in enumerate([] if silent else checks(share, meeting)):
        started = time.monotonic()
        told, findings, silent = take(check, f"check-{number}", here, meeting)
        if here.rank == 0:
            meeting.say(f"again-{number}", bool(findings) and all(finding.is_rate for finding in findings))
        if meeting.hear(f"again-{number}", check.seconds + 5):
            slow = {finding.node for finding in findings}
            told, findings, silent = take(check, f"check-{number}-again", here, meeting)
            findings = [finding for finding in findings if not finding.is_rate or finding.node in slow]
        if here.rank == 0:
            report.add(check.name, time.monotonic() - started, told, findings)
            meeting.say(f"go-{number}", not silent and not (check.name == "group" and findings))
        if not meeting.hear(f"go-{number}", check.seconds + 5):
            break
    if here.rank == 0:
        meeting.say("exit code", int(bool(report.findings)))
    return int(meeting.hear("exit code", 30))


def take(check: Check, name: str, here: Here, meeting: Meeting) -> tuple[str, list[Finding], list[int]]:
    """Measures; returns on rank 0 what was found in words, what is wrong, and the ranks that gave no answer."""
    try:
        facts = check.measure(here)
    except (RuntimeError, OSError) as error:
        facts = {"error": " ".join(str(error).split())[:200]}
    rows = meeting.exchange(name, facts, check.seconds, range(here.size))
    if here.rank != 0:
        return "", [], []
    told, findings = check.judge(rows, here) if rows else ("", [])
    silent = [rank for rank in range(here.size) if rank not in rows]
    findings = [*findings, *silent_nodes(silent, here, f"{check.name} within {check.seconds:g} s")]
    if check.name == "group" and (errors := [row["error"] for row in rows.values() if "error" in row]):
        findings.append(Finding(None, f"the ranks cannot connect: {errors[0]}", "open the ports between nodes"))
    return told, findings, silent


def gather_nodes(here: Here, meeting: Meeting, problem: str, report: Report) -> list[int]:
    """Lets all ranks know the node of each; returns the ranks that did not come, as rank 0 says."""
    started = time.monotonic()
    rows = meeting.exchange("join", {"node": here.node, "problem": problem}, JOIN_SECONDS, range(here.size))
    if here.rank == 0:
        silent = [rank for rank in range(here.size) if rank not in rows]
        here.nodes = [rows[rank]["node"] if rank in rows else allocated_node(rank, here) for rank in range(here.size)]
        findings = silent_nodes(silent, here, f"started within {JOIN_SECONDS:g} s")
        wrong = {here.nodes[rank]: row["problem"] for rank, row in rows.items() if row["problem"]}
        everywhere = len(wrong) == len(set(here.nodes))
        remedy = "mend the file, or let the node see the same files as the others"
        findings += [
            Finding(None if everywhere else node, told, remedy)
            for node, told in (list(wrong.items())[:1] if everywhere else wrong.items())
        ]
        report.add("ranks", time.monotonic() - started, f"{len(rows)} of {here.size}", findings)
        meeting.say("nodes", [here.nodes, silent])
    here.nodes, silent = meeting.hear("nodes", JOIN_SECONDS + 5)
    return list(silent)


def silent_nodes(silent: Sequence[int], here: Here, what: str) -> list[Finding]:
    """Returns a finding for each node of the ranks that gave no answer."""
    by_node: dict[str, list[int]] = {}
    for rank in silent:
        by_node.setdefault(here.nodes[rank], []).append(rank)
    remedy = "leave its node out, and have it looked at"
    return [
        Finding(node or None, f"no answer of rank {ranks[0]}: {what} was expected", remedy)
        for node, ranks in by_node.items()
    ]


def allocated_node(rank: int, here: Here) -> str:
    """Returns the node that Slurm gave to a rank that never spoke, empty where that cannot be told."""
    try:
        return host_names(os.environ["SLURM_JOB_NODELIST"])[rank // here.local_size]
    except (KeyError, IndexError, SlurmError):
        return ""


def without_rank_zero(error: Exception, bad_nodes: Path | None, here: Here) -> int:
    """Names the node of rank 0 where that can be told; returns the exit code."""
    node = allocated_node(0, here)
    finding = Finding(node or None, f"rank 0 does not answer: {error}", "leave its node out, and have it looked at")
    print(f"error: {finding.line()}", flush=True)
    write_bad_nodes(bad_nodes, [node] if node else [])
    return 1


def read_config(here: Here, path: str, overrides: Sequence[str]) -> str:
    """Reads the run's configuration, of CPT or else of SFT; returns what is wrong with it."""
    try:
        here.cfg = read_either(path, overrides)
    except ConfigError as error:
        return f"the configuration cannot be read: {'; '.join(error.problems)}"
    return ""


def read_either(path: str, overrides: Sequence[str]) -> DictConfig:
    """Returns a configuration of CPT or of SFT.

    Raises:
        ConfigError: it is neither; the problems are those of the schema that fits better.
    """
    try:
        return load(CptConfig, path, overrides)
    except ConfigError as as_cpt:
        try:
            return load(SftConfig, path, overrides)
        except ConfigError as as_sft:
            raise min((as_cpt, as_sft), key=lambda error: len(error.problems)) from None


def write_bad_nodes(path: Path | None, nodes: Sequence[str]) -> None:
    """Writes the nodes one a line; no file where there is none to leave out."""
    if path is None or not nodes:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(f".{path.name}.{os.getpid()}")
    partial_path.write_text("".join(f"{node}\n" for node in nodes), encoding="utf-8")
    partial_path.replace(path)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    if dist.is_initialized():
        os._exit(code)  # gloo's threads may wait for a rank that is gone
    sys.exit(code)
