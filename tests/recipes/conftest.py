"""A tiny base model with its tokenizer, shards made with it, and a CPT configuration."""

import json

import pytest
import yaml

from data_prep.lineage import sha256_file
from tests.support import random_shards, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A Hugging Face directory as it would be found: transformers' weights, Llama-3 style tokenizer."""
    folder = tiny_tokenizer(tmp_path_factory.mktemp("base") / "model")
    return tiny_llama(folder)


@pytest.fixture(scope="session")
def shards(tmp_path_factory, base):
    folder = tmp_path_factory.mktemp("shards") / "shards"
    return random_shards(folder, sha256=sha256_file(base / "tokenizer.json"))


def write_cpt_config(folder, base, shards):
    """Writes a CPT configuration of 6 steps with 8 sequences of 64 tokens each."""
    config = {
        "output_dir": str(folder / "run"),
        "weights": str(base),
        "data": str(shards),
        "seq_len": 64,
        "global_batch_tokens": 512,
        "micro_batch": 2,
        "steps": 6,
        "warmup_steps": 2,
        "precision": "fp32",
        "device": "cpu",
        "save_every_steps": 3,
        "optimizer": {"lr": 1e-3},
    }
    path = folder / "cpt.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def cpt_config(tmp_path, base, shards):
    return write_cpt_config(tmp_path, base, shards)


def write_sft_config(folder, base, chat_file):
    """Writes an SFT configuration of 6 steps with 8 sequences of 128 tokens each."""
    config = {
        "output_dir": str(folder / "run"),
        "weights": str(base),
        "chat_template": "llama3",
        "data": str(chat_file),
        "seq_len": 128,
        "global_batch_tokens": 1024,
        "micro_batch": 2,
        "steps": 6,
        "precision": "fp32",
        "device": "cpu",
        "optimizer": {"lr": 1e-3},
    }
    path = folder / "sft.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def sft_config(tmp_path, base, chat_file):
    return write_sft_config(tmp_path, base, chat_file)


@pytest.fixture(scope="session")
def chat_file(tmp_path_factory):
    rows = []
    for number in range(24):
        messages = [
            {"role": "user", "content": f"What is {number} plus one?"},
            {"role": "assistant", "content": f"It is {number + 1}."},
        ]
        rows.append(json.dumps({"id": f"ex-{number}", "messages": messages}))
    path = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
