"""What several tests need: tiny models, shards, and processes that form a group."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from data_prep.shards import ShardWriter
from data_prep.tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
VOCAB = 512
TEXTS = [
    "Seoul is the capital of South Korea. The Han River flows through it.",
    "서울은 대한민국의 수도이다. 한강이 시내를 가로질러 흐른다.",
    "A river is a natural stream of water. Rivers flow into seas.",
    "강은 자연히 흐르는 물줄기이다. 강은 바다로 흘러든다.",
]


def tiny_llama(folder: Path, seed: int = 0, **changes: object) -> Path:
    """Writes a random two-layer Llama as transformers does, fp32."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
    }
    LlamaForCausalLM(LlamaConfig(**settings | changes)).save_pretrained(folder)
    return folder


def tiny_tokenizer(folder: Path) -> Path:
    """Trains a tokenizer of `VOCAB` pieces, 256 of them special, in the folder."""
    train_tokenizer(TEXTS * 4, VOCAB, folder)
    return folder


def random_shards(folder: Path, documents: int = 120, longest: int = 300, seed: int = 0, sha256: str = "none") -> Path:
    """Writes documents of random ids and lengths."""
    random = np.random.default_rng(seed)
    with ShardWriter(folder) as writer:
        for _ in range(documents):
            ids = random.random(random.integers(2, longest)) ** 4 * VOCAB  # skewed, so that something can be learnt
            writer.add(ids.astype(np.uint32))
        writer.finish({}, tokenizer={"sha256": sha256, "vocab_size": VOCAB})
    return folder


def launch(
    *command: str, timeout: float = 240, env: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs a documented command from the repository root with this environment's programs first on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
    result = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=timeout)
    if check and result.returncode:
        raise AssertionError(f"{' '.join(command)} exited {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result


def tune_run(
    ranks: int, recipe: str, config: Path, *overrides: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs `tune run --nproc_per_node RANKS recipes/RECIPE.py --config CONFIG key=value ...`."""
    command = ["tune", "run", "--nproc_per_node", str(ranks), f"recipes/{recipe}.py", "--config", str(config)]
    return launch(*command, *overrides, check=check)


def metrics(run: Path) -> list[dict[str, float]]:
    """Returns the rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(run: Path) -> list[float]:
    """Returns the losses of a run, a step each."""
    return [row["train/loss"] for row in metrics(run)]
