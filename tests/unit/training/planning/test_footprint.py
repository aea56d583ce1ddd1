"""Counts of parameters, operations and bytes, against the model itself and published figures of Llama-3."""

import pytest
import torch

from recipes.training.model.decoder import Architecture, build_model
from recipes.training.planning.footprint import (
    GIB,
    Precision,
    executed_flops_per_token,
    flops_per_token,
    memory_by_part,
    parameter_counts,
    saved_bytes_per_token,
)

LLAMA_8B = Architecture()
LLAMA_70B = Architecture(num_layers=80, num_heads=64, embed_dim=8192, intermediate_dim=28_672)
TIED = Architecture(vocab_size=512, num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=2, tied_embeddings=True)
ADAMW = Precision(stored=4, gradient=4, optimizer=8, compute=2)
KAHAN = Precision(stored=2, gradient=2, optimizer=6, compute=2)


@pytest.mark.parametrize("shape", [LLAMA_8B, LLAMA_70B, TIED], ids=["8B", "70B", "tied"])
def test_the_parts_are_the_parameters_of_the_model(shape):
    with torch.device("meta"):
        built = sum(p.numel() for p in build_model(shape).parameters())
    assert sum(parameter_counts(shape).values()) == built


def test_llama3_8b_has_its_published_size_and_operations():
    assert sum(parameter_counts(LLAMA_8B).values()) == 8_030_261_248
    assert sum(parameter_counts(LLAMA_70B).values()) == 70_553_706_496
    giga = {key: round(value / 1e9, 2) for key, value in flops_per_token(LLAMA_8B, 8192).items()}
    assert giga == {"full": 57.91, "causal": 51.47}
    assert round(flops_per_token(LLAMA_8B, 4096)["causal"] / 1e9, 2) == 48.25
    executed = [executed_flops_per_token(LLAMA_8B, 8192, mode) / 1e9 for mode in ("none", "full")]
    assert executed == pytest.approx([52.55, 68.65], abs=0.01)
    assert executed_flops_per_token(LLAMA_8B, 8192, "0.7") == executed_flops_per_token(LLAMA_8B, 8192, "selective")


def test_what_a_layer_keeps_of_a_token_is_what_was_counted():
    kib = {mode: saved_bytes_per_token(LLAMA_8B, mode, False) / 1024 for mode in ("none", "selective", "full")}
    # 224 was counted with keys and values expanded from 8 to 32 heads: 2 x (8 - 2) KiB that our attention does not keep
    assert kib == {"none": 224 - 12, "selective": 100, "full": 8}
    assert saved_bytes_per_token(LLAMA_8B, "none", True) / 1024 == 148
    assert saved_bytes_per_token(LLAMA_8B, "0.7", True) / 1024 == 92
    assert saved_bytes_per_token(LLAMA_8B, "0", True) / 1024 == 8


def parts(precision, shards, accumulates=False, activations="full", **changes):
    settings = {"tokens": 8192, "compiled": False, "loss_chunk": 2048} | changes
    return memory_by_part(
        LLAMA_8B, precision, shards=shards, accumulates=accumulates, activations=activations, **settings
    )


def test_state_is_divided_by_the_shards_and_whole_gradients_are_not():
    alone, eight = parts(ADAMW, 1), parts(ADAMW, 8, accumulates=True)
    state = ("parameters", "gradients", "optimizer")
    assert sum(alone[name] for name in state) / GIB == pytest.approx(119.7, abs=0.1)
    assert sum(eight[name] for name in state) * 8 == pytest.approx(sum(alone[name] for name in state))
    assert alone["accumulated"] == 0
    assert eight["accumulated"] / GIB == pytest.approx(29.9, abs=0.1)
    assert parts(KAHAN, 1, accumulates=True)["accumulated"] == eight["accumulated"]


def test_weights_in_the_compute_dtype_are_no_copies_on_one_gpu_and_kept_ones_are_all_of_them():
    assert parts(KAHAN, 1)["gathered"] == 0
    assert parts(ADAMW, 1, activations="none")["gathered"] / GIB == pytest.approx(8_030_261_248 * 2 / GIB, rel=1e-3)
    kept, shared = parts(ADAMW, 8, keeps_gathered=True)["gathered"], parts(ADAMW, 8)["gathered"]
    assert kept / GIB == pytest.approx(8_030_261_248 * 2 / GIB, rel=1e-3)
    assert shared < kept / 4
