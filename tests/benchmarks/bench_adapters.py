"""Seconds a training step: all of a model, LoRA, DoRA, QLoRA, side by side in one process on the CPU.

    python tests/benchmarks/bench_adapters.py [--rounds 5] [--tokens 512] [--precision bf16]

Writes a Llama of 60 million random weights (out/bench/adapters), loads it once for each, and takes turns. Layers are
computed again in the backward pass, as in the 8B configurations.
"""

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from recipes.training.data.batches import collate  # noqa: E402
from recipes.training.data.packing import Sample  # noqa: E402
from recipes.training.distributed import World, process_group  # noqa: E402
from recipes.training.loop import open_weights  # noqa: E402
from recipes.training.model import weights  # noqa: E402
from recipes.training.model.adapter_files import load_base  # noqa: E402
from recipes.training.model.adapters import AdapterSettings  # noqa: E402
from recipes.training.model.decoder import Architecture, build_sharded_model  # noqa: E402
from recipes.training.step import losses_of  # noqa: E402
from tests.benchmarks.bench_loading import write_model  # noqa: E402

WORK = ROOT / "out" / "bench" / "adapters"
SHAPE = Architecture(vocab_size=8000, num_layers=8, num_heads=12, num_kv_heads=4, embed_dim=768, intermediate_dim=2048)
VARIANTS = {
    "full": None,
    "LoRA": AdapterSettings(),
    "DoRA": AdapterSettings(kind="dora"),
    "QLoRA": AdapterSettings(quantize_base="nf4"),
    "QLoRA, dropout 0.05": AdapterSettings(quantize_base="nf4", dropout=0.05),
}


def step_of(adapter: AdapterSettings | None, world: World, precision: str, tokens: int) -> Callable[[], None]:
    """Returns what computes one step: forward, backward, AdamW."""
    directory, architecture = open_weights(str(WORK))
    stored = torch.bfloat16 if adapter and precision == "bf16" else torch.float32
    model = build_sharded_model(architecture, world, precision, "full", stored, adapter=adapter)
    if adapter:
        load_base(model, directory, architecture, seed=0)
    else:
        weights.load(model, directory, architecture)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    row = np.random.default_rng(0).integers(0, SHAPE.vocab_size, tokens)
    batch = collate([Sample(row, np.roll(row, -1), np.zeros(tokens, dtype=np.int64))])

    def step() -> None:
        losses_of(model, batch, 1024)[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=512, help="of a step")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    args = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    try:
        write_model(WORK, SHAPE)
        with process_group("cpu") as world:
            steps = {name: step_of(adapter, world, args.precision, args.tokens) for name, adapter in VARIANTS.items()}
            for step in steps.values():
                step()
            seconds: dict[str, list[float]] = {name: [] for name in steps}
            for _ in range(args.rounds):
                for name, step in steps.items():
                    began = time.perf_counter()
                    step()
                    seconds[name].append(time.perf_counter() - began)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    print(f"{'':<20}{'seconds':>9}{'least .. most':>17}{'tokens/s':>10}{'of full':>9}")
    for name, values in seconds.items():
        median = statistics.median(values)
        ratio = statistics.median(a / b for a, b in zip(values, seconds["full"], strict=True))
        spread = f"{min(values):.3f} .. {max(values):.3f}"
        print(f"{name:<20}{median:>9.3f}{spread:>17}{args.tokens / median:>10.0f}{ratio:>9.2f}")


if __name__ == "__main__":
    main()
