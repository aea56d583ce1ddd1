"""What learns with `trainable: embeddings`, and that the plan counts just that."""

from dataclasses import replace

import pytest
import torch

from configs.loader import load
from recipes import cpt
from recipes.training.model.decoder import Architecture, build_model, stated_architecture
from recipes.training.model.freezing import EMBEDDINGS, freeze, keeps_base
from recipes.training.optimization.optimizer import build_optimizer
from recipes.training.planning.estimate import bytes_per_parameter, memory
from recipes.training.planning.footprint import executed_flops_per_token, flops_per_token, parameter_counts
from tests.support import ROOT, run_here

WARM_UP = ROOT / "configs/cpt/llama2_ko_7b_warm_up.yaml"


def configured(*overrides):
    return load(cpt.CptConfig, WARM_UP, ["plan=true", *overrides], cpt.check)


def frozen_model(shape, storage=torch.float32):
    with torch.device("meta"):
        model = build_model(shape).to(storage)
    freeze(model, "bf16", "embeddings", None)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_embedding_and_head_learn_and_the_rest_is_stored_in_the_compute_dtype(tied):
    model = frozen_model(replace(Architecture(num_layers=2), tied_embeddings=tied))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (name in EMBEDDINGS)
        assert parameter.dtype == (torch.float32 if name in EMBEDDINGS else torch.bfloat16)
    cfg = configured("embedding_lr=3e-4")
    groups = build_optimizer(cfg, model).param_groups
    assert [len(group["params"]) for group in groups] == [1 if tied else 2]
    assert groups[0]["lr"] == 3e-4


def test_the_plan_counts_state_for_what_learns_alone():
    cfg = configured()
    shape, precision = stated_architecture(cfg.weights, cfg.model), bytes_per_parameter(cfg)
    parts = memory(cfg, shape, precision, 1, 1)
    learnt = 2 * 46_336 * 4096
    assert parts["parameters"] == sum(p.nbytes for p in frozen_model(shape).parameters())
    assert (parts["gradients"], parts["optimizer"]) == (4 * learnt, 8 * learnt)
    assert parts["gathered"] == 2 * learnt  # the copies in bf16 of what is stored in fp32
    assert sum(parts.values()) / 2**30 < 26
    assert sum(memory(configured("trainable=all"), shape, precision, 1, 1).values()) / 2**30 > 105
    accumulated = [
        memory(configured(f"trainable={what}"), shape, precision, 8, 1)["accumulated"] for what in ("all", "embeddings")
    ]
    assert accumulated == [4 * sum(parameter_counts(shape).values()), 4 * learnt]


def test_frozen_layers_save_a_third_of_their_operations_and_the_head_does_not():
    shape = Architecture()
    all_learns, layers_stay, none_learns = (
        [flops_per_token(shape, 4096, *frozen)["causal"], executed_flops_per_token(shape, 4096, "none", *frozen)]
        for frozen in ((False, False), (True, False), (True, True))
    )
    counts = parameter_counts(shape)
    for one, two, three in zip(all_learns, layers_stay, none_learns, strict=True):
        assert one - two == 2 * (counts["attention"] + counts["mlp"])
        assert two - three == 2 * counts["output"]


def test_the_plan_says_what_learns():
    result = run_here(cpt.main, WARM_UP, "--plan", "weights=nowhere")
    assert "embedding and output learn, 379,584,512 or 5.54%; the layers in bf16" in result.stdout
    assert "bytes of each that learns: 4 stored, 4 gradient, 8 optimizer" in result.stdout


def test_a_run_keeps_its_base_unless_all_learns():
    assert [keeps_base(settings) for settings in ({}, {"trainable": "all", "adapter": None})] == [False, False]
    assert [keeps_base(settings) for settings in ({"trainable": "embeddings"}, {"adapter": {}})] == [True, True]
