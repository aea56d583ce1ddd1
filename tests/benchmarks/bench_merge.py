"""The chat vector against mergekit's task_arithmetic on one model of some gigabytes: time, cores, memory, exactness.

    python tests/benchmarks/bench_merge.py [--layers 16] [--rounds 3] [--keep]

Writes three random Llamas (hidden size 2048, bfloat16, files of 1 GB), merges them by both in turn, and compares every
element with `target + (plus - minus)` in float32, rounded once. Ours also hashes all inputs and outputs, which mergekit
does not. mergekit (LGPL-3.0) is run from an environment of its own and is no dependency of kotune. Peak memory is the
resident set, and what of it is no mapped file. The files are removed at the end.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data_prep.hf_directory import ModelDirectory, TensorWriter  # noqa: E402
from data_prep.tokens.tokenizer import train_tokenizer  # noqa: E402

WORK = ROOT / "out" / "bench" / "merge"
PEERS = ROOT / "out" / "bench" / "peers-merge"
ROLES = ("target", "plus", "minus")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 256,
    "eos_token_id": 257,
}


@dataclass(frozen=True)
class Cost:
    """What a process took: seconds, core-seconds, and gigabytes at its peak, in all and without mapped files."""

    wall: float
    cores: float
    resident: float
    anonymous: float


def peers_python() -> Path:
    """Returns the peer's interpreter, installing it at the first call."""
    python = PEERS / "bin" / "python"
    if not (PEERS / "bin" / "mergekit-yaml").is_file():
        venv.create(PEERS, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "torch>=2.11,<2.14"], check=True)  # a CPU wheel
        subprocess.run([python, "-m", "pip", "install", "--quiet", "mergekit==0.1.5"], check=True)
    return python


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields name and shape of the tensors of a Llama."""
    hidden, wide, kv, vocabulary = 2048, 8192, 512, 32000
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }.items():
            yield f"{at}{name}.weight", shape
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def write_models(layers: int) -> int:
    """Writes a base and two models tuned from it, so that differences are small beside the weights; returns bytes."""
    total = 0
    planned = [(name, "BF16", shape) for name, shape in shapes(layers)]
    for role in ROLES:
        train_tokenizer(["Seoul is the capital of South Korea. 서울은 대한민국의 수도이다."] * 4, 520, WORK / role)
        (WORK / role / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    writers = {role: TensorWriter(WORK / role, planned, 10**9) for role in ROLES}
    for name, _, shape in planned:
        base = torch.randn(shape) * 0.02
        for role in ROLES:
            tensor = (base if role == "minus" else base + torch.randn(shape) * 0.002).bfloat16()
            data = tensor.view(torch.uint8).numpy().reshape(-1)
            writers[role].write(name, data)
            total += len(data)
    for writer in writers.values():
        writer.finish()
    return total


def run(command: Sequence[str | Path], log: Path) -> Cost:
    """Runs a command and returns what it took; its memory is looked at every 20 ms."""
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, env=environment, stdout=out, stderr=out)
        peak = [0.0, 0.0]
        watcher = threading.Thread(target=_watch, args=(process.pid, peak))
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    cores = usage.ru_utime + usage.ru_stime
    return Cost(time.monotonic() - started, cores, peak[0], peak[1])


def _watch(pid: int, peak: list[float]) -> None:
    while True:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return
        if "RssAnon:" not in status:  # it has ended
            return
        for index, key in enumerate(
            ("VmHWM:", "RssAnon:")
        ):  # rusage would count this process, which it was forked from
            peak[index] = max(peak[index], int(status.split(key)[1].split()[0]) * 1024 / 1e9)
        time.sleep(0.02)


def commands() -> dict[str, list[str | Path]]:
    """Returns the commands that merge the models, by method; both use all cores."""
    models = {role: str(WORK / role) for role in ROLES}
    ours = WORK / "kotune.yaml"
    ours.write_text(yaml.safe_dump({**models, "output_dir": str(WORK / "out-kotune"), "shard_gb": 1.0}))
    theirs = WORK / "mergekit.yaml"
    arithmetic = {
        "merge_method": "task_arithmetic",
        "base_model": models["minus"],
        "models": [{"model": models[role], "parameters": {"weight": 1.0}} for role in ("target", "plus")],
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    theirs.write_text(yaml.safe_dump(arithmetic))
    return {
        "kotune": [sys.executable, "-m", "recipes.chat_vector", "--config", ours],
        "mergekit": [peers_python().parent / "mergekit-yaml", theirs, WORK / "out-mergekit", "--out-shard-size", "1B"],
    }


def differing(folder: Path) -> tuple[int, int]:
    """Returns how many elements are not those of the float32 arithmetic, and how many there are."""
    models = [ModelDirectory.open(WORK / role) for role in ROLES]
    merged = ModelDirectory.open(folder)
    wrong = total = 0
    for name in models[0].tensors:
        t, p, m = (torch.from_numpy(model.read(name).copy()).view(torch.bfloat16) for model in models)
        expected = (t.float() + (p.float() - m.float())).bfloat16()
        found = torch.from_numpy(merged.read(name).copy()).view(torch.bfloat16)
        wrong += int((expected != found).sum())
        total += len(expected)
    return wrong, total


def main() -> None:
    """Writes the models, merges them by both in turn, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keeps the models and the results")
    args = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    try:
        total = write_models(args.layers)
        print(f"three models of {total / 3e9:.2f} GB", flush=True)
        methods = commands()
        costs: dict[str, list[Cost]] = {name: [] for name in methods}
        for number in range(args.rounds):
            for name, command in methods.items():
                shutil.rmtree(WORK / f"out-{name}", ignore_errors=True)
                costs[name].append(run(command, WORK / f"{name}.log"))
                print(f"round {number + 1}, {name}: {costs[name][-1]}", flush=True)
        print("| method | seconds | core-seconds | peak RSS, GB | of it no file, GB | elements not exact |")
        print("|---|---|---|---|---|---|")
        for name, taken in costs.items():
            columns = [statistics.median(getattr(cost, key) for cost in taken) for key in Cost.__annotations__]
            wrong, count = differing(WORK / f"out-{name}")
            print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in columns) + f" | {wrong:,} of {count:,} |")
    finally:
        if not args.keep:
            shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
