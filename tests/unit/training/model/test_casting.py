"""One rank without FSDP computes what the bf16 model does, and adds its gradients up in fp32."""

import numpy as np
import pytest
import torch

from recipes.training.data.batches import collate
from recipes.training.data.packing import Sample
from recipes.training.distributed import process_group
from recipes.training.model import weights
from recipes.training.model.attention import use_own_attention
from recipes.training.model.decoder import Architecture, build_model, build_sharded_model

SHAPES = {
    tied: Architecture(
        vocab_size=64, num_layers=2, num_heads=2, num_kv_heads=1, embed_dim=32, intermediate_dim=64, max_seq_len=32,
        tied_embeddings=tied,
    )
    for tied in (False, True)
}  # fmt: skip


def batch(seed):
    ids = np.random.default_rng(seed).integers(0, 64, 33)
    return collate([Sample(ids[:32], ids[1:], np.repeat([0, 1], [12, 20]))])


def backward(model, one):
    inputs = {"mask": one.documents, "input_pos": one.positions}
    objective, loss = model(one.tokens, targets=one.targets, loss_chunk=8, **inputs)
    objective.backward()
    return float(loss)


def bf16_model(shape):
    """The model in bf16 throughout, as FSDP2 computes it."""
    model = build_model(shape).to(torch.bfloat16)
    for layer in model.layers:
        layer.attn.pos_embeddings.rope_init()
    use_own_attention(model.layers, "per_document")
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_fp32_weights_compute_as_bf16_weights_do(tied):
    reference = bf16_model(SHAPES[tied])
    with process_group("cpu") as world:
        model = build_sharded_model(SHAPES[tied], world, "bf16", "full")
        weights.initialise(model, 0)
        weights.initialise(reference, 0)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not any(hasattr(p, "device_mesh") for p in model.parameters())
        model.set_requires_gradient_sync(True)
        assert backward(model, batch(0)) == pytest.approx(backward(reference, batch(0)), rel=2e-3)
        wanted = {name: p.grad.float() for name, p in reference.named_parameters()}
        for (_, parameter), name in zip(model.named_parameters(), wanted, strict=True):
            assert parameter.grad.dtype == torch.float32
            assert torch.cosine_similarity(parameter.grad.flatten(), wanted[name].flatten(), 0) > 0.999, name
            assert parameter.grad.norm() == pytest.approx(float(wanted[name].norm()), rel=2e-2), name


def test_gradients_of_bf16_weights_add_up_in_fp32_over_micro_batches():
    singles = []
    for seed in range(4):
        reference = bf16_model(SHAPES[False])
        weights.initialise(reference, 0)
        backward(reference, batch(seed))
        singles.append([p.grad.float() for p in reference.parameters()])
    with process_group("cpu") as world:
        model = build_sharded_model(SHAPES[False], world, "bf16", "none", torch.bfloat16)
        weights.initialise(model, 0)
        for step in range(2):  # nothing is left of the first
            for seed in range(4):
                model.set_requires_gradient_sync(seed == 3)
                backward(model, batch(seed))
                assert (seed == 3) == all(p.grad is not None for p in model.parameters())
            for index, parameter in enumerate(model.parameters()):
                exact = sum(single[index] for single in singles).bfloat16()
                assert torch.equal(parameter.grad, exact), f"step {step}, parameter {index}"
                parameter.grad = None
