"""Llama-2-Ko-Chat, scaled down: its own configuration on KULLM rows, exported, and asked with KULLM's prompt."""

import json
import re

import datasets
import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaForCausalLM

from configs.loader import load
from data_prep.dialogue.named_templates import KULLM, open_template
from data_prep.tokens.tokenizer import load_tokenizer
from recipes import chat, export, sft
from tests.llama2 import llama2_sentencepiece
from tests.support import ROOT, launch, losses, run_here, tiny_llama

CONFIG = ROOT / "configs/sft/llama2_ko_chat_7b.yaml"
ANSWER = "한강이 흐른다."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of Llama-2's shape: a head of keys for each of queries, RoPE base 10,000, a sentencepiece tokenizer."""
    folder = llama2_sentencepiece(tmp_path_factory.mktemp("llama2") / "base")
    size = load_tokenizer(folder).vocab_size
    changes = {"vocab_size": size, "num_key_value_heads": 4, "rope_theta": 10_000.0, "max_position_embeddings": 512}
    return tiny_llama(folder, **changes, bos_token_id=1, eos_token_id=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base):
    """The run folder of the configuration as it is, but for where things are, the model's shape and how long."""
    folder = tmp_path_factory.mktemp("chat")
    asked = [{"id": f"k_{n}", "instruction": f"강은 {n}?", "input": "서울" * (n % 2)} for n in range(24)]
    rows = [row | {"output": ANSWER} for row in asked]
    rows.append({"id": "empty", "instruction": "강은?", "input": "", "output": ""})
    data = folder / "kullm-v2"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    settings = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    assert settings.pop("base") == "../models/llama2_ko_7b.yaml"
    settings["data"][0]["hub"] = str(data)
    scaled = {"seq_len": 512, "global_batch_tokens": 2048, "steps": 40, "warmup_steps": 2}
    tried = {"weights": str(base), "device": "cpu", "precision": "fp32", "output_dir": str(folder / "run")}
    settings["optimizer"] |= {"lr": 1e-2}
    (folder / "sft.yaml").write_text(yaml.safe_dump(settings | scaled | tried))
    command = ["tune", "run", "--nproc_per_node", "1", "recipes/sft.py", "--config", str(folder / "sft.yaml")]
    launch(*command, env={"HF_DATASETS_CACHE": str(folder / "cache")})
    return folder / "run"


@pytest.fixture(scope="module")
def exported(trained):
    (trained.parent / "export.yaml").write_text("dtype: fp32\n")
    overrides = (f"run={trained}", f"output_dir={trained.parent / 'model'}")
    result = run_here(export.main, trained.parent / "export.yaml", *overrides)
    assert result.returncode == 0, result
    return trained.parent / "model"


def test_the_whole_configuration_loads_against_its_model(tmp_path):
    cfg = load(sft.SftConfig, CONFIG, ["plan=true"], sft.check)
    assert (cfg.chat_template, cfg.model.vocab_size, cfg.model.rope_base) == ("kullm", 46_336, 10_000)


def test_it_learns_the_answers_and_drops_the_empty_one(trained, base):
    assert losses(trained)[-1] < 0.1 < 2 < losses(trained)[0]
    (source,) = json.loads((trained / "mixture.json").read_text())["sources"].values()
    ledger = source["examples"]
    assert (ledger["in"], ledger["out"], ledger["dropped"]) == (25, 24, {"empty_answer": 1})
    assert ledger["learnt_tokens"] / 24 == len(load_tokenizer(base).encode("\n" + ANSWER)) - 1


def test_the_export_carries_the_prompt_and_transformers_writes_it_alike(exported):
    tokenizer = load_tokenizer(exported)
    messages = [{"role": "user", "content": "강은 3?"}]
    template = open_template("weights", tokenizer, exported)
    assert template.template == KULLM
    theirs = AutoTokenizer.from_pretrained(exported)
    assert template.prompt(messages) == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert json.loads((exported / "config.json").read_text())["eos_token_id"] == tokenizer.eos_id == 2


def test_chat_asks_with_the_prompt_and_stops_at_its_end(exported, tmp_path):
    config = tmp_path / "chat.yaml"
    config.write_text("max_new_tokens: 32\ndevice: cpu\n")
    result = run_here(chat.main, config, f"model={exported}", "prompt=강은 3?")
    assert (result.returncode, result.stdout) == (0, f"{ANSWER}\n")


def test_transformers_gives_the_answer_too(exported):
    model, tokenizer = LlamaForCausalLM.from_pretrained(exported), load_tokenizer(exported)
    prompt = open_template("weights", tokenizer, exported).prompt([{"role": "user", "content": "강은 3?"}])
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=32, do_sample=False)[0, len(prompt) :].tolist()
    assert tokenizer.decode(ids, skip_special=False) == f"{ANSWER}</s>"


def test_show_needs_no_weights(trained, base, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (bare / name).write_bytes((base / name).read_bytes())
    result = run_here(sft.main, trained.parent / "sft.yaml", "--show", "2", f"weights={bare}")
    assert result.returncode == 0, result
    assert result.stdout.count("learnt: ") == 2
    assert re.search(r"learnt: .*한.*\|\[\[</s>\]\]\n", result.stdout)
    assert "25 examples read, 24 to learn from; dropped 1 empty_answer" in result.stdout
