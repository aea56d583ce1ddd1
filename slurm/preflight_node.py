"""What each node must bring by itself: room and speed of the run's disk, sound GPUs."""

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from recipes.training.model.decoder import stated_architecture
from recipes.training.planning.estimate import bytes_per_parameter
from recipes.training.planning.footprint import parameter_counts
from slurm.preflight_meeting import Finding, Here
from slurm.preflight_share import slow_nodes

PROBE_BYTES = 32 * 2**20
"""Written to the run folder by each node."""
SEEN_SECONDS = 5.0
"""In which a file of one node must be seen by the others; network file systems remember for some seconds."""
HOTTEST_CELSIUS = 85.0
OTHERS_MIB = 1024.0
"""Memory that a GPU may hold before this run has touched it."""
QUERY = (
    "name",
    "temperature.gpu",
    "memory.used",
    "ecc.errors.uncorrected.volatile.total",
    "clocks_throttle_reasons.hw_slowdown",
)


def probe(here: Here, rank: int) -> Path:
    """Returns the file that a node's first rank writes."""
    assert here.cfg is not None
    return Path(here.cfg.output_dir) / f".preflight-{rank}"


def measure_disk(here: Here) -> dict[str, Any]:
    """Writes a file to the run folder; returns bytes a second and the room that is left and needed."""
    if not here.is_leader or here.cfg is None:
        return {}
    path = probe(here, here.rank)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = os.urandom(2**20)
        started = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(PROBE_BYTES // len(content)):
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - started
        free = shutil.disk_usage(path.parent).free + PROBE_BYTES
        return {"rate": PROBE_BYTES / seconds, "free": free, "needed": needed_bytes(here.cfg)}
    except OSError as error:
        return {"error": f"cannot write to {path.parent}: {error.strerror}"}


def needed_bytes(cfg: DictConfig) -> int:
    """Returns the room that the checkpoints still to come need, one more than are kept; 0 where it is not known.

    An adapter's checkpoints are small, and are left out.
    """
    if cfg.adapter is not None:
        return 0
    precision = bytes_per_parameter(cfg)
    one = sum(parameter_counts(stated_architecture(cfg.weights, cfg.model)).values())
    folder = Path(cfg.output_dir) / "checkpoints"
    there = sum(1 for path in folder.glob("step-*") if path.suffix != ".tmp")
    return round(one * (precision.stored + precision.optimizer)) * max(1, cfg.keep_checkpoints + 1 - there)


def judge_disk(rows: dict[int, dict[str, Any]], here: Here, share: float) -> tuple[str, list[Finding]]:
    """Finds nodes that cannot write or write slowly, and too little room for the checkpoints."""
    rows = {rank: row for rank, row in rows.items() if row}
    wrong = {here.nodes[rank]: row["error"] for rank, row in rows.items() if "error" in row}
    remedy = "make room or give the right to write, or set another output_dir"
    if wrong and len(wrong) == len(rows):
        return "failed", [Finding(None, f"no node can write: {next(iter(wrong.values()))}", remedy)]
    findings = [Finding(node, problem, remedy) for node, problem in wrong.items()]
    good = {here.nodes[rank]: row for rank, row in rows.items() if "rate" in row}
    if not good:
        return "not checked: no configuration", findings
    free, needed = min(row["free"] for row in good.values()), max(row["needed"] for row in good.values())
    if free < needed:
        told = (
            f"{free / 1e9:,.3f} GB are free for checkpoints, {needed / 1e9:,.3f} GB are needed (keep_checkpoints + 1)"
        )
        findings.append(Finding(None, told, "make room, lower keep_checkpoints, or set another output_dir"))
    rates = {node: row["rate"] / 1e6 for node, row in good.items()}
    findings += slow_nodes(rates, share, "MB/s written to output_dir", "look at its mount and its network")
    told = f"{min(rates.values()):,.0f} to {max(rates.values()):,.0f} MB/s a node; {free / 1e9:,.1f} GB free"
    return f"{told}, {needed / 1e9:,.1f} needed", findings


def measure_sharing(here: Here) -> dict[str, Any]:
    """Returns whose files this node does not see in the run folder, after a while."""
    if not here.is_leader or here.cfg is None:
        return {}
    ends, unseen = time.monotonic() + SEEN_SECONDS, list(here.leaders)
    while unseen and time.monotonic() < ends:
        os.listdir(probe(here, 0).parent)  # has a network file system look again
        unseen = [rank for rank in unseen if not probe(here, rank).exists()]
        time.sleep(0.1 if unseen else 0)
    return {"unseen": unseen}


def judge_sharing(rows: dict[int, dict[str, Any]], here: Here) -> tuple[str, list[Finding]]:
    """Finds nodes whose run folder is another one than the others'."""
    unseen = {rank: set(row["unseen"]) for rank, row in rows.items() if row}
    remedy = "put output_dir on a disk that all nodes share"
    blind = {rank: sum(rank in others for others in unseen.values()) for rank in unseen}
    alone = [rank for rank in unseen if 2 * blind[rank] > len(unseen)]
    findings = []
    if 2 * len(alone) < len(unseen):  # otherwise no folder is the right one
        told = "what it writes to output_dir, {} nodes do not see"
        findings = [Finding(here.nodes[rank], told.format(blind[rank]), remedy) for rank in alone]
    if not findings and any(unseen.values()):
        told = ", ".join(sorted({here.nodes[rank] for others in unseen.values() for rank in others}))
        findings.append(Finding(None, f"not all nodes see what {told} write to output_dir", remedy))
    return (f"{len(unseen)} nodes see one another's files" if not findings else "not shared"), findings


def remove_probe(here: Here) -> None:
    """Removes what this node wrote."""
    if here.cfg is not None:
        probe(here, here.rank).unlink(missing_ok=True)


def measure_gpu(here: Here) -> dict[str, Any]:
    """Returns what nvidia-smi says of this rank's GPU, before anything of this process is on it, and its rate."""
    if not torch.cuda.is_available():
        return {}
    facts: dict[str, Any] = {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    index = visible.split(",")[here.local_rank] if visible else str(here.local_rank)
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=8, check=False)
        if result.returncode:
            facts["error"] = f"nvidia-smi failed: {' '.join((result.stdout + result.stderr).split())}"
        else:
            facts |= parse_gpu(result.stdout)
        facts["tflops"] = matmul_tflops(torch.device("cuda", here.local_rank))
    except (OSError, subprocess.TimeoutExpired, RuntimeError) as error:
        facts["error"] = f"the GPU of local rank {here.local_rank} fails: {' '.join(str(error).split())[:200]}"
    return facts


def parse_gpu(text: str) -> dict[str, Any]:
    """Returns the fields of one line of nvidia-smi; what the GPU does not know is left out."""
    values = dict(zip(QUERY, (field.strip() for field in text.strip().splitlines()[0].split(",")), strict=True))
    found: dict[str, Any] = {"name": values["name"], "slowed": values[QUERY[4]] == "Active"}
    for key, field in (("celsius", QUERY[1]), ("mib", QUERY[2]), ("ecc", QUERY[3])):
        if values[field].replace(".", "").isdigit():
            found[key] = float(values[field])
    return found


def matmul_tflops(device: torch.device, size: int = 8192, repeats: int = 10) -> float:
    """Returns the rate of a bf16 matrix product in TFLOP/s, the best of three."""
    a = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    best = 0.0
    for _ in range(4):  # the first warms up
        started = time.perf_counter()
        for _ in range(repeats):
            product = a @ a
        product[0, 0].item()  # waits for the device
        best = max(best, repeats * 2 * size**3 / (time.perf_counter() - started) / 1e12)
    return best


def judge_gpu(rows: dict[int, dict[str, Any]], here: Here, share: float) -> tuple[str, list[Finding]]:
    """Finds GPUs with memory errors, too hot, slowed down, in use by others, or slower than the median."""
    rows = {rank: row for rank, row in rows.items() if row}
    if not rows:
        return "not checked: no GPU", []
    findings, rates = [], dict[str, float]()
    drain = "have the node drained and looked at"
    for rank, row in rows.items():
        node, gpu = here.nodes[rank], f"the GPU of rank {rank}"
        if "error" in row:
            findings.append(Finding(node, row["error"], drain))
        if row.get("ecc"):
            findings.append(Finding(node, f"{gpu} has {row['ecc']:.0f} uncorrected memory errors", drain))
        if row.get("celsius", 0.0) > HOTTEST_CELSIUS:
            findings.append(
                Finding(node, f"{gpu} has {row['celsius']:.0f} C, {HOTTEST_CELSIUS:.0f} are allowed", drain)
            )
        if row.get("slowed"):
            findings.append(Finding(node, f"{gpu} is slowed down by its hardware (heat or power)", drain))
        if row.get("mib", 0.0) > OTHERS_MIB:
            told = f"{gpu} holds {row['mib']:,.0f} MiB of other processes"
            findings.append(Finding(node, told, "end them; job epilogs should"))
        if "tflops" in row:
            rates[node] = min(row["tflops"], rates.get(node, row["tflops"]))
    findings += slow_nodes(rates, share, "TFLOP/s in bf16 of its slowest GPU", drain)
    told = f"{min(rates.values()):,.0f} to {max(rates.values()):,.0f} TFLOP/s in bf16" if rates else "failed"
    return f"{len(rows)} GPUs, {told}", findings
