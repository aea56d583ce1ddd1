"""What train_step.py and gpu.py share: the packed tokens, our configuration, and a process a variant."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

CHILD = ROOT / "tests" / "benchmarks" / "peers" / "train.py"
Settings = dict[str, Any]


def hf_shape(**sizes: int) -> Settings:
    """Returns a Llama-3's shape in the terms of its config.json."""
    fixed = {"rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": 0}
    return fixed | {"eos_token_id": 1} | sizes


def our_shape(shape: Settings) -> dict[str, int]:
    """Returns the same in the terms of our `model` key."""
    return {
        "vocab_size": shape["vocab_size"],
        "num_layers": shape["num_hidden_layers"],
        "num_heads": shape["num_attention_heads"],
        "num_kv_heads": shape["num_key_value_heads"],
        "embed_dim": shape["hidden_size"],
        "intermediate_dim": shape["intermediate_size"],
        "max_seq_len": shape["max_position_embeddings"],
    }


def write_shards(folder: Path, lengths: Sequence[int], vocab_size: int) -> None:
    """Writes documents of those lengths: random ids, some much more frequent than others, as in a language."""
    from data_prep.tokens.shards import ShardWriter

    random = np.random.default_rng(0)
    with ShardWriter(folder) as writer:
        for length in lengths:
            writer.add((random.random(length) ** 3 * vocab_size).astype(np.uint32))
        writer.finish({}, tokenizer={"sha256": "none", "vocab_size": vocab_size})


def write_config(path: Path, shards: Path, sizes: Settings, weights: Path | None, shape: Settings) -> None:
    """Writes the configuration of our runs; `sizes` has seq_len, micro_batch, accumulate, steps, lr and device."""
    config = {
        "output_dir": str(path.parent / "ours"), "device": sizes["device"], "data": str(shards),
        "seq_len": sizes["seq_len"], "micro_batch": sizes["micro_batch"], "steps": sizes["steps"],
        "global_batch_tokens": sizes["seq_len"] * sizes["micro_batch"] * sizes["accumulate"],
        "min_lr_ratio": 1.0, "clip_grad_norm": 1.0, "activation_checkpointing": "none", "save_every_steps": 1_000_000,
        "optimizer": {
            "_component_": "torch.optim.AdamW", "lr": sizes["lr"], "betas": [0.9, 0.95], "weight_decay": 0.1,
            "fused": True,
        },
    }  # fmt: skip
    config |= {"weights": str(weights)} if weights else {"model": our_shape(shape)}
    path.write_text(yaml.safe_dump(config))


def write_rows(path: Path, config: Path, steps: int) -> int:
    """Writes the sequences that our run reads, in its order, for the peers; returns how many documents they hold."""
    from configs.loader import load
    from recipes.cpt import CptConfig
    from recipes.training.data.sources import open_data

    plan = open_data(load(CptConfig, config, []))
    samples = [plan.sources[source].sample(index) for step in range(steps) for source, index in plan.order.step(step)]
    np.savez(path, tokens=[s.tokens for s in samples], documents=[s.documents for s in samples])
    return sum(int(s.documents.max()) + 1 for s in samples)


def run_child(python: Path | str, settings: Settings, limit_seconds: float) -> Settings:
    """Runs one variant in a process of its own; returns its figures, or {"error": why there are none}."""
    folder = Path(settings["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    settings |= {"out": str(folder / "figures.json"), "port": str(_free_port())}
    Path(settings["out"]).unlink(missing_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings, indent=2))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [settings.get("path", ""), os.environ.get("PYTHONPATH")]))
    began = time.monotonic()
    with (folder / "log.txt").open("w") as log:
        command = [str(python), str(CHILD), str(folder / "settings.json")]
        # a group of its own: on a timeout the compiler's workers go with it
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            code: int | str = child.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            code = f"took more than {limit_seconds:.0f} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    facts: Settings = {"process_seconds": round(time.monotonic() - began, 1)}
    if Path(settings["out"]).is_file():
        return facts | json.loads(Path(settings["out"]).read_text())
    last = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
    return facts | {"error": f"{code}: {' '.join(last)[:300]}"}


def write_json(path: Path, value: object) -> None:
    """Writes it under its final name when it is complete."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
