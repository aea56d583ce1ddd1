"""What several tests need: tiny models, shards, and processes that form a group."""

import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from data_prep.dialogue.chat_template import LLAMA3
from data_prep.tokens.shards import ShardWriter
from data_prep.tokens.tokenizer import load_tokenizer, train_tokenizer

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


def answering_llama(folder: Path, answer: str) -> Path:
    """Writes a chat model that answers every Llama-3 prompt with `answer`, then ends its turn.

    Its layers add nothing, so that each token alone decides the next one; no byte of `answer` may come twice.
    """
    tokenizer = load_tokenizer(tiny_tokenizer(folder))
    end_of_turn = tokenizer.special_tokens["<|eot_id|>"]
    chain = [*tokenizer.encode("\n" + answer), end_of_turn]
    assert len(set(chain)) == len(chain), f"{answer!r} repeats a token"
    tiny_llama(folder, bos_token_id=tokenizer.bos_id, eos_token_id=[tokenizer.eos_id, end_of_turn])
    model = LlamaForCausalLM.from_pretrained(folder)
    tensors = model.state_dict()
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight", "lm_head.weight")):
            tensor.zero_()
    for dimension, (token, following) in enumerate(itertools.pairwise(chain)):
        tensors["model.embed_tokens.weight"][token, dimension] = 1.0
        tensors["lm_head.weight"][following, dimension] = 1.0
    model.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(LLAMA3, encoding="utf-8")
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


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a copy of the tensor that the ranks hold parts of, or that one rank holds."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def launch(
    *command: str,
    timeout: float = 240,
    env: dict[str, str] | None = None,
    check: bool = True,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a documented command from the repository root with this environment's programs first on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
    result = subprocess.run(
        command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=timeout, input=stdin
    )
    if check and result.returncode:
        raise AssertionError(f"{' '.join(command)} exited {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result


def tune_run(
    ranks: int, recipe: str, config: Path, *overrides: str, check: bool = True, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `tune run --nproc_per_node RANKS recipes/RECIPE.py --config CONFIG key=value ...`."""
    command = ["tune", "run", "--nproc_per_node", str(ranks), f"recipes/{recipe}.py", "--config", str(config)]
    return launch(*command, *overrides, check=check, stdin=stdin)


def run_here(
    main: Callable[[], None], config: Path, *overrides: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs a recipe's entry point in this process, for what needs no process group; the launch takes no seconds."""
    arguments = ["recipe", "--config", str(config), *overrides]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(sys, argv=arguments, stdin=io.StringIO(stdin), stdout=out, stderr=err))
        code: object = None
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    return subprocess.CompletedProcess(arguments, int(str(code or 0)), out.getvalue(), err.getvalue())


def write_run(folder: Path, parameters: dict[str, torch.Tensor], **config: object) -> Path:
    """Writes a run folder with what an export reads of one: a checkpoint of one step, and `config.yaml`."""
    checkpoint = folder / "checkpoints" / "step-00000001"
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that one process writes alone
        dcp.save({"model": parameters}, checkpoint_id=str(checkpoint), no_dist=True)
    (checkpoint / "state.json").write_text('{"step": 1, "ledger": {}}')
    (folder / "config.yaml").write_text(yaml.safe_dump({"weights": None, "model": None, **config}))
    return folder


def metrics(run: Path) -> list[dict[str, float]]:
    """Returns the rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(run: Path) -> list[float]:
    """Returns the losses of a run, a step each."""
    return [row["train/loss"] for row in metrics(run)]
