"""Waktaverse-Llama-3-KO-8B-Instruct, scaled down: its pipeline from rows to adapters that PEFT loads, and a model."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from tests.llama3_1 import downloaded
from tests.recipes.scaled import ANSWER, check_report, said_by, scale, weights
from tests.support import metrics

# PEFT asks transformers for a property that it has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
NAME = "waktaverse_llama3_8b_qlora"
INSTRUCT = "checkpoints/Meta-Llama-3-8B-Instruct"


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """The pipeline after its run; tests only read it."""
    folder = tmp_path_factory.mktemp("waktaverse") / "work"
    downloaded(folder / INSTRUCT, ANSWER, max_position_embeddings=8192, intermediate_size=192)
    rows = [{"instruction": f"{n} 더하기 1은?", "input": "", "output": f"{n + 1}이다."} for n in range(60)]
    (data := folder / "MarkrAI/KoCommercial-Dataset").mkdir(parents=True)  # found before the Hub is asked
    (data / "train.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    tables = {
        f"sft/{NAME}.yaml": {"seq_len": 1024, "global_batch_tokens": 1024},
        "models/llama3_8b_instruct.yaml": {"model.intermediate_dim": 192},
    }
    pipeline = scale(NAME, folder, tables)
    pipeline.run(HF_DATASETS_CACHE=str(folder.parent / "cache"), HF_HUB_OFFLINE="1")
    return pipeline


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_examples_are_packed_and_the_adapters_alone_learn(road):
    rows = metrics(road.output / "sft")
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]
    (source,) = json.loads((road.output / "sft/mixture.json").read_text())["sources"].values()
    assert source["examples"]["out"] == 60 > len(rows)
    tensors = load_file(road.output / "models/adapters/adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 7  # A and B of seven matrices in two layers
    assert all(8 in tensor.shape for tensor in tensors.values())
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)
    settings = json.loads((road.output / "models/adapters/adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (8, 16, 0.05)


@pytest.mark.slow
def test_peft_loads_the_adapters_and_the_merged_model_answers(road):
    base = LlamaForCausalLM.from_pretrained(road.folder / INSTRUCT)
    adapted = PeftModel.from_pretrained(base, str(road.output / "models/adapters"))
    merged = LlamaForCausalLM.from_pretrained(road.output / "models/instruct", dtype=torch.float32)
    ids = torch.randint(0, 512, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # the merged model's matrices have gone through NF4 and bf16, the adapted one's have not
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=0.1, rtol=0.05)
    assert said_by(merged, road.output / "models/instruct") == f"{ANSWER}<|eot_id|>"
    before, after = weights(road.folder / INSTRUCT), weights(road.output / "models/instruct")
    changed = {name for name in before if not torch.equal(before[name].bfloat16(), after[name])}
    assert changed, "nothing was merged"
    assert {name.split(".")[-2].removesuffix("_proj") for name in changed} <= {"q", "k", "v", "o", "gate", "up", "down"}


@pytest.mark.slow
def test_chat_and_report_tell_the_answer(road):
    assert (road.output / "chat/answer.txt").read_text(encoding="utf-8").splitlines()[-1] == ANSWER
    check_report(road, "instruct", "+ QLoRA")
