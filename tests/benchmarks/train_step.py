"""A training step on CPU cores: ours against stock torchtune and Hugging Face's Trainer, on the same packed tokens.

    python tests/benchmarks/train_step.py [--seq-len 2048] [--dtype fp32] [--rounds 3] [--peers-python FILE]

All train the same weights of a small Llama with 32,000 tokens on the same sequences, packed from short documents, and
are to have the same losses. Each variant is a process of its own; rounds are interleaved, and ours runs twice in each:
the ratio of the two says what the noise is. Trainer lives in an environment of its own, made at the first call.
"""

import argparse
import datetime
import os
import platform
import shutil
import statistics
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from train_common import ROOT, Settings, hf_shape, run_child, write_config, write_json, write_rows, write_shards

WORK = ROOT / "out" / "bench" / "train-step"
PEERS = ROOT / "out" / "bench" / "peers-train"
SHAPES = {
    "small": hf_shape(
        vocab_size=32_000, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=4096,
    ),
    "tiny": hf_shape(
        vocab_size=512, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    ),
}  # fmt: skip
VARIANTS: dict[str, Settings] = {
    "ours": {"method": "ours"},
    "torchtune, as shipped": {"method": "stock", "activation_checkpointing": True},
    "torchtune, nothing recomputed": {"method": "stock"},
    "Trainer, packed": {"method": "hugging_face", "packed": True},
    "Trainer, plain": {"method": "hugging_face", "packed": False},
    "ours again": {"method": "ours"},
}
TOLERANCE = 0.02
"""Largest difference of losses: the last token of a sequence has its target in ours alone."""


def peers_python() -> Path:
    """Returns the interpreter with Trainer, installing it at the first call."""
    if not (PEERS / "complete").is_file():
        venv.create(PEERS, with_pip=True, clear=True)
        pip = [PEERS / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "torch>=2.11,<2.14"], check=True)  # alone and first: a CPU wheel at hand is taken
        subprocess.run([*pip, "transformers>=4.51", "accelerate>=1"], check=True)
        (PEERS / "complete").touch()
    return PEERS / "bin" / "python"


def prepare(work: Path, args: argparse.Namespace) -> Settings:
    """Writes weights, tokens and configuration; returns what all variants share."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = SHAPES[args.model]
    sizes = {
        "seq_len": args.seq_len, "micro_batch": args.micro_batch, "accumulate": args.accumulate, "lr": 1e-3,
        "steps": args.warm_up + args.steps, "warm_up": args.warm_up, "device": "cpu", "dtype": args.dtype,
    }  # fmt: skip
    needed = args.seq_len * args.micro_batch * args.accumulate * sizes["steps"]
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(args.median_tokens), 0.8, 2 * needed // 16), 16, args.seq_len)
    lengths = lengths.astype(int)[: int(np.searchsorted(lengths.cumsum(), 2 * needed)) + 1]
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(work / "weights")
    write_shards(work / "shards", lengths.tolist(), shape["vocab_size"])
    config = work / "ours.yaml"
    write_config(config, work / "shards", sizes, work / "weights", shape)
    documents = write_rows(work / "rows.npz", config, sizes["steps"])
    print(f"{needed:,} tokens in {documents:,} documents, {args.seq_len} a sequence, {args.dtype}", flush=True)
    paths = {"config": str(config), "rows": str(work / "rows.npz"), "weights": str(work / "weights")}
    defaults = {"activation_checkpointing": False, "compile": False, "liger": False, "shape": shape}
    defaults["random_weights"] = False
    return sizes | paths | defaults | {"tokens_per_step": needed // sizes["steps"]}


def measure(work: Path, args: argparse.Namespace, shared: Settings) -> dict[str, list[Settings]]:
    """Runs all variants, a round after the other, and returns the figures of each."""
    trainer = args.peers_python or (sys.executable if args.no_install else peers_python())
    found: dict[str, list[Settings]] = {name: [] for name in VARIANTS if name in args.variants or not args.variants}
    for number in range(args.rounds):
        for name in found:
            folder = work / name.replace(" ", "-").replace(",", "")
            own = {"folder": str(folder), "overrides": [f"precision={args.dtype}", f"output_dir={folder}/run-{number}"]}
            is_trainer = VARIANTS[name]["method"] == "hugging_face"
            facts = run_child(trainer if is_trainer else sys.executable, shared | VARIANTS[name] | own, args.limit)
            found[name].append(facts)
            told = facts.get("error") or f"{shared['tokens_per_step'] / statistics.median(facts['seconds']):,.0f}"
            print(f"round {number + 1} of {args.rounds}: {name}: {told}", file=sys.stderr, flush=True)
            write_json(work / "results.json", {"settings": shared, "machine": machine(), "rounds": found})
    return found


def machine() -> Settings:
    """Returns what a figure depends on beside the code."""
    import torch

    facts = {"date": datetime.date.today().isoformat(), "cores": os.cpu_count(), "torch": torch.__version__}
    return facts | {"threads": torch.get_num_threads(), "load": os.getloadavg()[0], "cpu": platform.processor()}


def table(found: dict[str, list[Settings]], shared: Settings) -> list[str]:
    """Returns the lines of the result; ratios are of medians over all steps of all rounds."""
    tokens = shared["tokens_per_step"]
    lines = [f"{'':<31}{'tokens/s':>10}{'a core-second':>15}{'ours is x':>11}{'peak GiB':>10}{'last loss':>11}"]
    base = _medians(found["ours"]) if "ours" in found else None
    for name, rounds in found.items():
        ok = [facts for facts in rounds if "error" not in facts]
        if not ok:
            lines.append(f"{name:<31}  {rounds[0]['error']}" if rounds else name)
            continue
        wall, core = _medians(ok)
        ratio = f"{core / base[1]:.2f}" if base else ""
        peak = max(facts["peak_rss"] for facts in ok) / 2**30
        rates = f"{tokens / wall:>10,.0f}{tokens / core:>15,.0f}{ratio:>11}"
        lines.append(f"{name:<31}{rates}{peak:>10.2f}{ok[0]['losses'][-1]:>11.4f}")
    return lines


def differences(found: dict[str, list[Settings]]) -> list[str]:
    """Returns a line for each variant that sees the same and has other losses, and one for unequal threads."""
    if "ours" not in found or "error" in found["ours"][0]:
        return ["ours has no losses to compare with"]
    expected, problems = found["ours"][0]["losses"], []
    for name, rounds in found.items():
        if name == "Trainer, plain" or "error" in rounds[0]:
            continue
        worst = max(abs(a - b) for a, b in zip(expected, rounds[0]["losses"], strict=True))
        if worst > TOLERANCE:
            problems.append(f"{name}: a loss differs by {worst:.3f}; at most {TOLERANCE} is expected")
    threads = {name: rounds[0]["threads"] for name, rounds in found.items() if "error" not in rounds[0]}
    if len(set(threads.values())) > 1:
        problems.append(f"not all had as many threads: {threads}")
    return problems


def _medians(rounds: list[Settings]) -> tuple[float, float]:
    return tuple(
        statistics.median(value for facts in rounds for value in facts.get(key, []))
        for key in ("seconds", "core_seconds")
    )  # type: ignore[return-value]


def main() -> int:
    """Measures, writes results.json and prints the table; 1 if losses differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SHAPES), default="small")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--micro-batch", type=int, default=1, help="sequences")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="torchtune: of everything")
    parser.add_argument("--median-tokens", type=float, default=250, help="of a document; lognormal, sigma 0.8")
    parser.add_argument("--warm-up", type=int, default=2, help="steps that do not count")
    parser.add_argument("--steps", type=int, default=6, help="steps that do")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600, help="seconds a process")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=[], help="default: all")
    parser.add_argument("--out", type=Path, default=WORK)
    parser.add_argument("--peers-python", type=Path, help="interpreter with Trainer; default: one is made")
    parser.add_argument("--no-install", action="store_true", help="take Trainer from this interpreter, if it has it")
    args = parser.parse_args()
    work = args.out.resolve()
    shared = prepare(work, args)
    found = measure(work, args, shared)
    print("\n".join(table(found, shared)))
    problems = differences(found)
    print("\n".join(problems) or "losses agree")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
