"""Llama-2-Ko-Chat, scaled down: its pipeline on KULLM rows, from data to a model that answers in KULLM's prompt."""

import json
import re

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from configs.loader import load
from data_prep.dialogue.named_templates import KULLM, open_template
from data_prep.tokens.tokenizer import load_tokenizer
from recipes import sft
from tests.llama2 import llama2_sentencepiece
from tests.recipes.scaled import check_report, scale
from tests.support import ROOT, losses, tiny_llama

NAME = "llama2_ko_chat_7b"
ANSWER = "한강이 흐른다."


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """The pipeline after its run, on a model of Llama-2's shape with a sentencepiece tokenizer; tests only read it."""
    folder = tmp_path_factory.mktemp("llama2_ko_chat") / "work"
    base = llama2_sentencepiece(folder / "checkpoints/llama-2-ko-7b")
    size = load_tokenizer(base).vocab_size
    shape = {"vocab_size": size, "num_key_value_heads": 4, "rope_theta": 10_000.0, "max_position_embeddings": 4096}
    tiny_llama(base, **shape, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2)
    asked = [{"id": f"k_{n}", "instruction": f"강은 {n}?", "input": "서울" * (n % 2)} for n in range(24)]
    rows = [row | {"output": ANSWER} for row in asked]
    rows.append({"id": "empty", "instruction": "강은?", "input": "", "output": ""})
    (data := folder / "nlpai-lab/kullm-v2").mkdir(parents=True)  # found before the Hub is asked
    (data / "train.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    learning = {"seq_len": 512, "global_batch_tokens": 2048, "steps": 40, "warmup_steps": 2, "optimizer.lr": 1e-2}
    tables = {
        f"sft/{NAME}.yaml": learning,
        "models/llama2_ko_7b.yaml": {"model.vocab_size": size, "model.num_kv_heads": 4},
    }
    pipeline = scale(NAME, folder, tables)
    pipeline.run(HF_DATASETS_CACHE=str(folder.parent / "cache"), HF_HUB_OFFLINE="1")
    return pipeline


def test_the_whole_configuration_loads_against_its_model():
    cfg = load(sft.SftConfig, ROOT / f"configs/sft/{NAME}.yaml", ["plan=true"], sft.check)
    assert (cfg.chat_template, cfg.model.vocab_size, cfg.model.rope_base) == ("kullm", 46_336, 10_000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_learns_the_answers_and_drops_the_empty_one(road):
    assert losses(road.output / "sft")[-1] < 0.1 < 2 < losses(road.output / "sft")[0]
    (source,) = json.loads((road.output / "sft/mixture.json").read_text())["sources"].values()
    ledger = source["examples"]
    assert (ledger["in"], ledger["out"], ledger["dropped"]) == (25, 24, {"empty_answer": 1})
    tokenizer = load_tokenizer(road.folder / "checkpoints/llama-2-ko-7b")
    assert ledger["learnt_tokens"] / 24 == len(tokenizer.encode("\n" + ANSWER)) - 1


@pytest.mark.slow
def test_the_export_carries_the_prompt_and_transformers_writes_it_alike(road):
    exported = road.output / "models/instruct"
    tokenizer = load_tokenizer(exported)
    messages = [{"role": "user", "content": "강은 3?"}]
    template = open_template("weights", tokenizer, exported)
    assert template.template == KULLM
    theirs = AutoTokenizer.from_pretrained(exported)
    assert template.prompt(messages) == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert json.loads((exported / "config.json").read_text())["eos_token_id"] == tokenizer.eos_id == 2


@pytest.mark.slow
def test_chat_and_report_tell_the_answer_and_it_ends(road):
    assert (road.output / "chat/answer.txt").read_text(encoding="utf-8").splitlines()[-1] == ANSWER
    before, after = json.loads((road.output / "report.json").read_text())["rows"]
    assert after["chat_form_ko"] > before["chat_form_ko"]
    check_report(road, "Llama-2-Ko", "+ SFT")


@pytest.mark.slow
def test_transformers_gives_the_answer_too(road):
    exported = road.output / "models/instruct"
    model, tokenizer = LlamaForCausalLM.from_pretrained(exported, dtype=torch.float32), load_tokenizer(exported)
    prompt = open_template("weights", tokenizer, exported).prompt([{"role": "user", "content": "강은 3?"}])
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=32, do_sample=False)[0, len(prompt) :].tolist()
    assert tokenizer.decode(ids, skip_special=False) == f"{ANSWER}</s>"


@pytest.mark.slow
def test_show_needs_no_weights(road):
    bare = road.folder / "bare"
    bare.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (bare / name).write_bytes((road.folder / "checkpoints/llama-2-ko-7b" / name).read_bytes())
    command = ["python", "-m", "recipes.sft", "--config", f"configs/sft/{NAME}.yaml", "--show", "2", "weights=bare"]
    environment = {"HF_DATASETS_CACHE": str(road.folder.parent / "cache"), "HF_HUB_OFFLINE": "1"}
    result = road.launch(*command, **environment)
    assert result.returncode == 0, result
    assert result.stdout.count("learnt: ") == 2
    assert re.search(r"learnt: .*한.*\|\[\[</s>\]\]\n", result.stdout)
    assert "25 examples read, 24 to learn from; dropped 1 empty_answer" in result.stdout
