"""Llama-3.1-8B, 3.2-1B, 3.2-3B and 70B take one road: the pipelines that differ in kind run it, scaled down."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from recipes.training.loop import open_weights
from tests.llama3_1 import downloaded, scaling
from tests.recipes.scaled import (
    ANSWER,
    Scaled,
    check_chat_vector,
    check_report,
    said_by,
    scale,
    served_dumps,
    weights,
)
from tests.support import metrics
from tests.unit.data_prep.dialogue.loopback import serving

BASES = {"llama3_1_8b_ko": "Llama-3.1-8B", "llama3_2_1b_ko": "Llama-3.2-1B", "llama3_70b_ko": "Meta-Llama-3-70B"}
CHANGES = {
    "llama3_1_8b_ko": {"factor": 8.0},
    "llama3_2_1b_ko": {"factor": 32.0, "tie_word_embeddings": True},
    "llama3_70b_ko": {"max_position_embeddings": 8192},
}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    with served_dumps(tmp_path_factory.mktemp("mirror"), "20240520") as address:
        yield address


@pytest.fixture(scope="module", params=BASES)
def road(request, tmp_path_factory, mirror):
    """The pipeline after its run; tests only read it."""
    name, checkpoints = request.param, tmp_path_factory.mktemp(request.param) / "work/checkpoints"
    with serving() as server:
        tables = {
            "pipelines/llama3_llams_8b.yaml": {"vars.dialogues": 12},
            "data/dialogue_gemini.yaml": {"base_url": server.url, "requests_per_minute": 6000},
        }
        if "70b" in name:
            tables |= {f"{kind}/{name}.yaml": {"layout.tensor_parallel": 2} for kind in ("cpt", "sft")}
        pipeline = scale(name, checkpoints.parent, tables, mirror=mirror)
        downloaded(checkpoints / BASES[name], **CHANGES[name])
        downloaded(checkpoints / f"{BASES[name]}-Instruct", ANSWER, **CHANGES[name])
        pipeline.run(GEMINI_API_KEY="none")
    return pipeline


def config_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_road_ends_in_a_model_that_transformers_loads_and_that_chats(road: Scaled) -> None:
    base, instruct = (f"checkpoints/{BASES[road.name]}{kind}" for kind in ("", "-Instruct"))
    models = f"out/{road.name}/models"
    before, korean = weights(road.folder / base), weights(road.folder / models / "base")
    assert any(not torch.equal(korean[name], tensor.bfloat16()) for name, tensor in before.items())
    check_chat_vector(road, road.folder / models / "chat_vector", f"{models}/base", instruct, base)
    settings, stated = config_of(road.folder / models / "instruct"), config_of(road.folder / base)
    for key in ("rope_scaling", "tie_word_embeddings", "max_position_embeddings", "rope_theta"):
        assert settings[key] == stated[key], key
    assert ("lm_head.weight" in korean) is not stated["tie_word_embeddings"]
    assert sorted(settings["eos_token_id"]) == config_of(road.folder / instruct)["eos_token_id"]
    shapes = [open_weights(str(road.folder / folder))[1] for folder in (base, f"{models}/instruct")]
    assert shapes[0] == shapes[1]
    model = LlamaForCausalLM.from_pretrained(road.folder / models / "instruct")
    if factor := CHANGES[road.name].get("factor"):
        assert scaling(factor).items() <= model.config.rope_parameters.items()
    assert said_by(model, road.folder / models / "instruct") == f"{ANSWER}<|eot_id|>"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_road_reports_scores_and_an_answer(road: Scaled) -> None:
    assert (road.output / "chat/answer.txt").read_text(encoding="utf-8").splitlines()[-1] == ANSWER
    rows = {row["model"]: row for row in json.loads((road.output / "report.json").read_text())["rows"]}
    assert list(rows) == ["base", "instruct", "Korean base", "+ chat vector", "+ SFT"]
    assert all(row["bits_per_byte_ko"] > 0 and row["bits_per_byte_en"] > 0 for row in rows.values())
    assert rows["+ SFT"]["chat_form_ko"] == 1 > rows["base"]["chat_form_ko"]
    scored = [row["step"] for row in metrics(road.output / "cpt") if "validation/ko/bits_per_byte" in row]
    assert scored == [0, 4]
    check_report(road, "Korean base", "+ chat vector", "+ SFT", "tokens-ko", "dialogues")
