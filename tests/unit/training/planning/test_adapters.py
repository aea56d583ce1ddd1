"""The plan of a run with adapters: its counts are those of the model as it is built, at full size, without weights."""

from math import prod

import pytest
import torch
import yaml

from configs.loader import load
from recipes import sft
from recipes.training.model.adapters import AdapterSettings, add_adapters, is_adapter
from recipes.training.model.decoder import Architecture, build_model, stated_architecture
from recipes.training.planning.adapters import base_bytes, learnt_parameters, matrix_shapes
from recipes.training.planning.estimate import bytes_per_parameter, compute_plan, memory
from tests.support import ROOT, run_here

QLORA, LORA = (ROOT / f"configs/sft/{name}.yaml" for name in ("waktaverse_llama3_8b_qlora", "llama3_8b_ko_lora"))
LLAMA_70B = yaml.safe_load((ROOT / "configs/models/llama3_70b.yaml").read_text())["model"]


@pytest.mark.parametrize("shape", [Architecture(), Architecture(**LLAMA_70B)], ids=["8b", "70b"])
@pytest.mark.parametrize(
    "adapter",
    [
        AdapterSettings(),
        AdapterSettings(quantize_base="nf4", modules=["q_proj", "v_proj"]),
        AdapterSettings(kind="dora", rank=64, quantize_base="nf4"),
    ],
    ids=["lora", "qlora", "qdora"],
)
def test_the_counts_are_those_of_the_model(shape, adapter):
    with torch.device("meta"):
        model = build_model(shape).to(torch.bfloat16)
    add_adapters(model, adapter)
    learnt = {n: p for n, p in model.named_parameters() if is_adapter(n)}
    assert learnt_parameters(shape, adapter) == sum(p.numel() for p in learnt.values())
    layer, outer = base_bytes(shape, adapter, 2)
    frozen = sum(p.nbytes for n, p in model.named_parameters() if n not in learnt)
    assert shape.num_layers * layer + outer + 2 * shape.embed_dim == frozen
    assert sum(map(prod, matrix_shapes(shape).values())) * shape.num_layers == sum(
        module.in_features * module.out_features
        for name, module in build_on_meta(shape).named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("layers.")
    )


def build_on_meta(shape):
    with torch.device("meta"):
        return build_model(shape)


def test_qlora_of_8b_at_a_sequence_of_1024_fits_where_it_was_trained():
    result = run_here(sft.main, QLORA, "weights=nowhere", "data=nowhere", "--plan")
    assert "20,971,520 parameters learn, 0.26%" in result.stdout  # as the model card says
    assert "in nf4, 4.13 bits a weight" in result.stdout
    cfg = load(sft.SftConfig, QLORA, ["weights=nowhere", "plan=true"], sft.check)
    parts = memory(cfg, stated_architecture(cfg.weights, cfg.model), bytes_per_parameter(cfg), 1, 1)
    assert sum(parts.values()) <= 12.8e9
    assert parts["base"] == pytest.approx(5.7e9, rel=0.01)


def test_lora_of_8b_is_sharded_and_needs_a_sixth_at_most():
    cfg = load(sft.SftConfig, LORA, ["weights=nowhere", f"model={yaml.safe_dump(EIGHT_B)}", "plan=true"], sft.check)
    shape, precision = stated_architecture(cfg.weights, cfg.model), bytes_per_parameter(cfg)
    alone, sharded = (memory(cfg, shape, precision, ranks, 1) for ranks in (1, 8))
    assert alone["base"] == pytest.approx(2 * 8.03e9, rel=0.001)
    assert sharded["base"] == pytest.approx(alone["base"] / 8, rel=0.001)
    assert alone["optimizer"] == 2 * alone["adapters"] == 8 * learnt_parameters(shape, cfg.adapter)
    assert sharded["gathered"] > 0 == alone["gathered"]
    full = load(sft.SftConfig, LORA, ["weights=nowhere", f"model={yaml.safe_dump(EIGHT_B)}", "plan=true",
                                      "adapter=null"], sft.check)  # fmt: skip
    whole = memory(full, shape, bytes_per_parameter(full), 1, 1)
    states = ("parameters", "gradients", "optimizer")
    needed = sum(alone[part] for part in ("base", "adapters", "gradients", "optimizer"))
    assert needed < sum(whole[part] for part in states) / 6
    assert "gathered" in compute_plan(cfg)


EIGHT_B = yaml.safe_load((ROOT / "configs/models/llama3_8b.yaml").read_text())["model"]
