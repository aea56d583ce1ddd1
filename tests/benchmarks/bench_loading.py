"""Loading a model: seconds, peak memory and bytes read by each rank, ours against torchtune's and a plain load.

    python tests/benchmarks/bench_loading.py [--gib 3] [--rounds 3] [--ranks 1 2]

Writes a Llama of random bf16 weights to out/bench/loading, loads it into fp32 parameters, and deletes it. What counts
as `beside` is the peak of a rank's memory above its own parameters and what the process had before. Files are in the
page cache but for --cold, which asks the kernel to forget them before each load.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data_prep.hf_directory import TensorWriter  # noqa: E402
from recipes.training.distributed import leave, process_group  # noqa: E402
from recipes.training.loop import open_weights  # noqa: E402
from recipes.training.model import weights  # noqa: E402
from recipes.training.model.decoder import Architecture, build_model, build_sharded_model  # noqa: E402

WORK = ROOT / "out" / "bench" / "loading"


def architecture_of(gib: float) -> Architecture:
    """Returns a Llama of 2048 columns and 128,256 tokens with as many layers as make `gib` GiB in bf16."""
    shape = {"vocab_size": 128_256, "num_heads": 32, "num_kv_heads": 8, "embed_dim": 2048, "intermediate_dim": 8192}
    layer = 2 * 2048 * (2048 + 512) + 3 * 2048 * 8192
    return Architecture(**shape, num_layers=max(1, round((gib * 2**29 - 2 * 128_256 * 2048) / layer)))


def write_model(folder: Path, architecture: Architecture) -> int:
    """Writes random weights in files of at most 1 GB; returns the bytes."""
    with torch.device("meta"):
        parameters = dict(build_model(architecture).named_parameters())
    planned = [(weights.hf_name(name), "BF16", tuple(p.shape)) for name, p in parameters.items()]
    random = np.random.default_rng(0)
    some = torch.from_numpy(random.standard_normal(2**22, dtype=np.float32) * 0.02).bfloat16().view(torch.uint8).numpy()
    with TensorWriter(folder, planned, max_shard_bytes=10**9) as writer:
        for name, _, shape in planned:
            writer.write(name, np.resize(some, 2 * int(np.prod(shape))))
        writer.finish()
    (folder / "config.json").write_text(json.dumps(architecture.to_hf(0, [1], "bfloat16")))
    return sum(2 * p.numel() for p in parameters.values())


def ours(folder: Path) -> dict[str, float]:
    """Loads into the sharded model, on any number of ranks."""
    directory, architecture = open_weights(str(folder))
    with process_group("cpu") as world:
        model = build_sharded_model(architecture, world, "fp32", "none")
        before, began = bytes_read(), time.perf_counter()
        weights.load(model, directory, architecture)
        seconds, read = time.perf_counter() - began, bytes_read() - before
        local = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
        return facts(seconds, read, sum(p.numel() * p.element_size() for p in local))


def torchtune(folder: Path) -> dict[str, float]:
    """Loads as full_finetune_distributed does: all tensors of all files, converted, then given to the model."""
    from torchtune.training import FullModelHFCheckpointer, load_from_full_model_state_dict

    _, architecture = open_weights(str(folder))
    with torch.device("meta"):
        model = build_model(architecture)
    for module in model.modules():
        if init := getattr(module, "rope_init", None):
            init()
    before, began = bytes_read(), time.perf_counter()
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    arguments = {"checkpoint_files": files, "model_type": "LLAMA3", "output_dir": tempfile.mkdtemp()}
    state = FullModelHFCheckpointer(checkpoint_dir=str(folder), **arguments).load_checkpoint()["model"]
    load_from_full_model_state_dict(model, state, torch.device("cpu"), strict=True)
    seconds, read = time.perf_counter() - began, bytes_read() - before
    return facts(seconds, read, sum(p.numel() * p.element_size() for p in model.parameters()))


def facts(seconds: float, read: int, own: int) -> dict[str, float]:
    """Returns the figures of this rank; `read` lacks what was mapped and not read."""
    rank = int(os.environ.get("RANK", "0"))
    return {"seconds": seconds, "read": read, "own": own, "peak": memory("VmHWM"), "rank": rank}


def memory(key: str) -> int:
    """Returns VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def bytes_read() -> int:
    """Returns what this process has read by system calls."""
    return int(Path("/proc/self/io").read_text().split()[1])


def forget(folder: Path) -> None:
    """Asks the kernel to drop the files from its cache."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def launch(method: str, ranks: int, folder: Path) -> list[dict[str, float]]:
    """Runs a method in processes of its own; returns the figures of each rank."""
    script = ["--measure", method, "--out", str(folder)]
    program = [sys.executable, __file__]
    if ranks > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        program = [*torchrun, str(ranks), __file__]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*program, *script], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{method} on {ranks} ranks failed:\n{done.stderr[-3000:]}")
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{method}-*.json"))[:ranks]]


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Runs all methods in rounds and prints the table."""
    architecture = architecture_of(args.gib)
    total = write_model(folder, architecture)
    with torch.device("meta"):
        empty = build_model(architecture)
    largest = 4 * max(p.numel() for p in empty.parameters())
    told = f"{total / 2**30:.2f} GiB in bf16, {architecture.num_layers} layers"
    print(f"{told}; the largest tensor is {largest / 2**30:.2f} GiB in fp32", flush=True)
    plans = [(f"ours, {ranks} ranks", "ours", ranks) for ranks in args.ranks] + [("torchtune, 1 rank", "torchtune", 1)]
    found: dict[str, list[list[dict[str, float]]]] = {name: [] for name, _, _ in plans}
    for _ in range(args.rounds):
        for name, method, ranks in plans:
            if args.cold:
                forget(folder)
            found[name].append(launch(method, ranks, folder))
    heads = ("seconds", "least .. most", "peak GiB", "own", "beside", "read")
    print(f"{'':<20}" + "".join(f"{head:>14}" for head in heads) + "   of the fullest rank")
    for name, rounds in found.items():
        times = [max(rank["seconds"] for rank in ranks) for ranks in rounds]
        worst = max((rank for ranks in rounds for rank in ranks), key=lambda rank: rank["peak"])
        peak, own, read, idle = (worst[key] / 2**30 for key in ("peak", "own", "read", "idle"))
        cells = [f"{statistics.median(times):.1f}", f"{min(times):.1f} .. {max(times):.1f}"]
        cells += [f"{value:.2f}" for value in (peak, own, peak - own - idle, read)]
        print(f"{name:<20}" + "".join(f"{cell:>14}" for cell in cells))


def main() -> None:
    """Compares, or with --measure is one rank of one method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=3.0, help="of weights in bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cold", action="store_true", help="from the disk")
    parser.add_argument("--out", type=Path, default=WORK)
    parser.add_argument("--measure", choices=["ours", "torchtune"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.out.resolve()
    if args.measure:
        idle = memory("VmRSS")
        figures = {"ours": ours, "torchtune": torchtune}[args.measure](folder) | {"idle": idle}
        (folder / f"{args.measure}-{figures['rank']}.json").write_text(json.dumps(figures))
        leave(0)
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        compare(folder, args)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
