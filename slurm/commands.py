"""Slurm's own commands, and their words when they refuse."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from configs.loader import UserError
from data_prep.lineage import ROOT

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")


class SlurmError(UserError):
    """Slurm is not there, or refuses; the message has its words."""


def slurm(*words: str, timeout_s: float = 60, tries: int = 3) -> str:
    """Runs one of Slurm's commands and returns what it prints; a silent controller is asked again.

    Raises:
        SlurmError: the command is not on PATH, failed, or did not answer.
    """
    if shutil.which(words[0]) is None:
        raise SlurmError(f"{words[0]} is not on PATH; Slurm's commands are expected; go to a login node of the cluster")
    said = ""
    for number in range(tries):
        try:
            result = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            said = f"no answer within {timeout_s:g} s"
            continue
        if result.returncode == 0:
            return result.stdout
        said = " ".join(result.stderr.split()) or f"exit code {result.returncode}"
        if "Unable to contact" not in said and "Socket timed out" not in said:
            break
        time.sleep(5 * number)
    raise SlurmError(f"{words[0]} refused: {said}; it was asked: {' '.join(words)}; mend the request or ask the site")


def job_states() -> dict[str, tuple[str, str]]:
    """Returns state and reason (or nodes) of the user's jobs that Slurm still knows, by id; array tasks as `12_3`."""
    words = ("squeue", "--noheader", "--all", "--array", "--states=all", "--me", "--format=%i|%T|%R")
    rows = [line.split("|", 2) for line in slurm(*words).splitlines() if line.count("|") >= 2]
    return {row[0].strip(): (row[1], row[2]) for row in rows}


def job_end_time(job_id: str) -> float | None:
    """Returns when Slurm will end a running job, as unix seconds; None without a limit."""
    text = slurm("squeue", "--noheader", "--jobs", job_id, "--format=%e").strip()
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # N/A, NONE
        return None


def host_names(node_list: str) -> list[str]:
    """Returns the nodes of an allocation in Slurm's order, which is the order of the ranks."""
    return slurm("scontrol", "show", "hostnames", node_list).split()


def excluded_nodes(job_id: str) -> list[str]:
    """Returns the nodes that a job must not get."""
    match = re.search(r"\bExcNodeList=(\S+)", slurm("scontrol", "show", "job", "--oneliner", job_id))
    return [] if match is None or match[1] == "(null)" else host_names(match[1])


def partition_nodes(job_id: str) -> set[str]:
    """Returns all nodes of a job's partition, or of its partitions, up or down."""
    partition = slurm("squeue", "--noheader", "--jobs", job_id, "--format=%P").strip()
    return set(slurm("sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N").split())


def node_address(node: str) -> str:
    """Returns the address by which Slurm reaches a node: its name need not resolve on the others."""
    match = re.search(r"\bNodeAddr=(\S+)", slurm("scontrol", "show", "node", "--oneliner", node))
    return match[1] if match else node


def refuse_other_folder() -> None:
    """Checks that a command that submits was started in the repository's root, where its jobs start.

    Raises:
        UserError: it was not.
    """
    if Path.cwd().resolve() != ROOT:
        raise UserError(f"the current folder is {Path.cwd()}; {ROOT} is expected; change to it: jobs start there")


def submit_job(options: Sequence[str], environment: dict[str, str]) -> str:
    """Submits a job and returns its id.

    Raises:
        SlurmError: sbatch refuses; the message has its words.
    """
    if shutil.which("sbatch") is None:
        raise SlurmError("sbatch is not on PATH; Slurm's commands are expected; go to a login node of the cluster")
    words = ["sbatch", "--parsable", *options]
    result = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if result.returncode:
        said = " ".join(result.stderr.split())
        raise SlurmError(f"sbatch refused: {said}; it was asked: {' '.join(words)}; lower the stage's resources")
    return result.stdout.strip().split(";")[0]
