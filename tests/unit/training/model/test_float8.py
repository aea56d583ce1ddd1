"""Float8, as torchao emulates it on a CPU: near bf16, same parameters; and where it cannot be used."""

import pytest
import torch
from omegaconf import OmegaConf

from recipes.training.model import weights
from recipes.training.model.decoder import Architecture, build_model
from recipes.training.model.float8 import float8_problems, use_float8

SHAPE = Architecture(
    vocab_size=64, num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=64, intermediate_dim=160, max_seq_len=32
)


def loss_and_gradients(recipe):
    model = build_model(SHAPE).to(torch.bfloat16)
    for layer in model.layers:
        layer.attn.pos_embeddings.rope_init()
    weights.initialise(model, 0)
    if recipe:
        use_float8(model.layers, recipe, emulate=True)
    random = torch.Generator().manual_seed(0)
    tokens, targets = (torch.randint(0, 64, (2, 32), generator=random) for _ in range(2))
    objective, loss = model(tokens, targets=targets, loss_chunk=16)
    objective.backward()
    return float(loss), {name: p.grad.float().flatten() for name, p in model.named_parameters()}, model


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_loss_and_gradients_are_near_those_of_bf16(recipe):
    loss, gradients, _ = loss_and_gradients(None)
    other, theirs, model = loss_and_gradients(recipe)
    assert other != loss
    assert other == pytest.approx(loss, rel=0.01)
    assert theirs.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.cosine_similarity(gradient, theirs[name], 0) > 0.95, name
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["layers.0.attn.q_proj"] == kinds["layers.1.mlp.w2"] == "Float8Linear"
    assert kinds["output"] == "Linear"


@pytest.mark.parametrize(
    ("changes", "device", "message"),
    [
        ({"float8": "fast"}, "cuda", "float8: 'fast' is not known; one of tensorwise, rowwise, or null"),
        ({}, "cpu", "float8: tensorwise on device=cpu; it needs an H100 or newer; set float8=null"),
        ({"compile": False}, "cuda", "float8: tensorwise without compile=true"),
        ({"precision": "fp32"}, "cuda", "float8: tensorwise with precision=fp32; what is not float8 is bf16"),
    ],
)
def test_where_it_cannot_be_used_it_is_refused(changes, device, message):
    cfg = OmegaConf.create({"float8": "tensorwise", "compile": True, "precision": "bf16"} | changes)
    (problem,) = float8_problems(cfg, device)
    assert problem.startswith(message)
    assert float8_problems(OmegaConf.create({"float8": None}), device) == []
