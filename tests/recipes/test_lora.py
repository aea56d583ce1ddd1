"""The QLoRA configuration as it stands, with a tiny model: trained, resumed, kept for PEFT, merged, asked."""

import json
import re
import shutil

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import LlamaForCausalLM

from data_prep.dialogue.chat_template import LLAMA3
from recipes import chat, export, sft
from recipes.training.model.adapters import AdapterSettings
from tests.recipes.conftest import write_sft_config
from tests.support import ROOT, VOCAB, losses, metrics, run_here, tiny_llama, tiny_tokenizer, tune_run
from tests.unit.training.model.test_adapters import quantised_llama

# PEFT asks transformers for a property that it has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
CONFIG, EXPORT = ROOT / "configs/sft/waktaverse_llama3_8b_qlora.yaml", ROOT / "configs/export"
EXPORT = EXPORT / "waktaverse_llama3_8b_qlora.yaml"
MESSAGES = "What is 3 plus one?"


@pytest.fixture(scope="module")
def instruct(tmp_path_factory):
    """Stands in for Meta-Llama-3-8B-Instruct."""
    folder = tiny_llama(
        tiny_tokenizer(tmp_path_factory.mktemp("lora") / "instruct"),
        intermediate_size=192,
        max_position_embeddings=1024,
    )
    (folder / "chat_template.jinja").write_text(LLAMA3, encoding="utf-8")
    return folder


def scaled_down(instruct, chat_file, run):
    """Returns what is changed of the configuration: names, and the size of model and run."""
    names = [f"weights={instruct}", f"data={chat_file}", f"output_dir={run}"]
    return [*names, "model=null", "steps=6", "warmup_steps=1", "save_every_steps=3", "optimizer.lr=1e-2", "device=cpu"]


def train(*overrides, code=0):
    """Runs the recipe in this process; returns what it wrote to standard error."""
    result = run_here(sft.main, CONFIG, *overrides)
    assert result.returncode == code, result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory, instruct, chat_file):
    folder = tmp_path_factory.mktemp("lora_run") / "run"
    train(*scaled_down(instruct, chat_file, folder))
    return folder


def cut_back(source, target):
    """Copies a run as it was behind step 3."""
    shutil.copytree(source, target)
    shutil.rmtree(target / "checkpoints/step-00000006")
    return target


def exported(run, folder, *overrides, code=0):
    result = run_here(
        export.main, EXPORT, f"run={run}", f"output_dir={folder}", "dtype=fp32", "gate_min_ended=0", *overrides
    )
    assert result.returncode == code, result.stderr
    return result.stderr if code else folder


@pytest.fixture(scope="module")
def merged(tmp_path_factory, run):
    return exported(run, tmp_path_factory.mktemp("merged") / "model")


def logits(model):
    ids = torch.randint(0, VOCAB, (2, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids).logits


def test_the_loss_falls_and_a_checkpoint_holds_the_adapters_alone(run):
    assert losses(run)[-1] < losses(run)[0] - 0.3
    checkpoint = run / "checkpoints/step-00000006"
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["identity"]["adapter"]["rank"] == 8
    sides = 64 + 64, 64 + 32, 64 + 32, 64 + 64, 64 + 192, 64 + 192, 192 + 64  # of the seven matrices
    learnt = 2 * 8 * sum(sides)
    size = sum(path.stat().st_size for path in checkpoint.glob("*.distcp"))
    assert 0 < size - 3 * 4 * learnt < 300_000  # weights and two moments, and what tells them apart


def test_a_resumed_run_repeats_the_losses_bit_for_bit_dropout_included(tmp_path, run, instruct, chat_file):
    resumed = cut_back(run, tmp_path / "resumed")
    train(*scaled_down(instruct, chat_file, resumed))
    assert losses(resumed) == losses(run)
    assert [row["step"] for row in metrics(resumed)] == [1, 2, 3, 4, 5, 6]
    assert yaml.safe_load((run / "config.yaml").read_text())["adapter"]["dropout"] == 0.05


@pytest.mark.slow
def test_two_ranks_go_on_where_one_stopped(tmp_path, run, instruct, chat_file):
    changes = ["adapter.dropout=0", "global_batch_tokens=2048"]
    straight = tmp_path / "straight"
    train(*scaled_down(instruct, chat_file, straight), *changes)
    wider = cut_back(straight, tmp_path / "wider")
    tune_run(2, "sft", CONFIG, *scaled_down(instruct, chat_file, wider), *changes)
    assert losses(wider)[:3] == losses(straight)[:3]
    assert losses(wider) == pytest.approx(losses(straight), rel=2e-3)  # sums of bf16 products in another order
    assert (wider / "logs/rank-1.log").is_file()


def test_peft_gives_the_logits_of_the_merged_model_over_the_base_as_it_was_trained(tmp_path, run, merged, instruct):
    kept = exported(run, tmp_path / "adapters", "adapter=keep")
    settings = json.loads((kept / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (8, 16, 0.05)
    assert settings["base_model_name_or_path"] == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert json.loads((kept / "manifest.json").read_text())["kind"] == "adapter"
    base = quantised_llama(instruct, AdapterSettings(quantize_base="nf4"), torch.bfloat16)
    theirs = logits(PeftModel.from_pretrained(base, kept))
    torch.testing.assert_close(logits(LlamaForCausalLM.from_pretrained(merged)), theirs, atol=1e-5, rtol=0)
    assert (theirs - logits(LlamaForCausalLM.from_pretrained(instruct))).abs().max() > 0.1


def test_the_merged_model_answers(merged):
    keys = [f"model={merged}", f"prompt={MESSAGES}", "device=cpu"]
    result = run_here(chat.main, ROOT / "configs/chat.yaml", *keys)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_another_base_or_other_adapters_are_refused(tmp_path, run, instruct, chat_file):
    other = cut_back(run, tmp_path / "other")
    message = train(*scaled_down(instruct, chat_file, other), "adapter.rank=4", code=1)
    assert re.search(r"was written with adapter=\{.*'rank': 8.*\}, this run has adapter=\{.*'rank': 4", message)
    kept = (instruct / "model.safetensors").read_bytes()
    try:
        tiny_llama(instruct, seed=5, intermediate_size=192, max_position_embeddings=1024)
        message = train(*scaled_down(instruct, chat_file, other), code=1)
        assert re.search(r"was written with base=[0-9a-f]{64}, this run has base=[0-9a-f]{64}", message)
        message = exported(run, tmp_path / "out", code=2)
        assert f"{instruct} holds other tensors than when the run trained" in message
    finally:
        (instruct / "model.safetensors").write_bytes(kept)


def test_a_whole_model_has_no_adapters_to_keep(tmp_path, run):
    whole = shutil.copytree(run, tmp_path / "whole")
    settings = yaml.safe_load((whole / "config.yaml").read_text()) | {"adapter": None}
    (whole / "config.yaml").write_text(yaml.safe_dump(settings))
    message = exported(whole, tmp_path / "out", "adapter=keep", code=2)
    assert f"keep, but {whole} trained the whole model; export it with adapter=merge" in message
    assert "adapter: 'both' is not known; one of merge, keep" in exported(run, tmp_path / "out", "adapter=both", code=2)


def test_bad_adapters_end_the_run_before_it_starts(tmp_path, base, chat_file):
    config = write_sft_config(tmp_path, base, chat_file)
    result = run_here(sft.main, config, "adapter.rank=99", "adapter.modules=[q_proj,v_proj]")
    assert result.returncode == 2
    assert "adapter.rank: 99 is more than the 32 rows of v_proj" in result.stderr
    result = run_here(sft.main, config, "adapter.quantize_base=nf4", "optimizer._component_=torch.optim.SGD")
    assert "adapter.quantize_base: nf4 with rows of 160 weights; they are quantised in blocks of 64" in result.stderr
    assert not (tmp_path / "run").exists()
