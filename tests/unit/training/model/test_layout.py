"""Which layouts cannot be, and that prefetching names the layers it should."""

import pytest
import torch

from recipes.training.model.decoder import Architecture, lay_out
from recipes.training.model.layout import LayoutSettings, device_mesh, layout_problems, world_problems
from recipes.training.model.tensor_parallel import (
    ColumnLinear,
    RowLinear,
    VocabularyEmbedding,
    tensor_parallel_problems,
)
from recipes.training.planning.dry_run import fake_world

SHAPE = Architecture(
    vocab_size=64, num_layers=4, num_heads=4, num_kv_heads=2, embed_dim=32, intermediate_dim=64, max_seq_len=32
)


def test_replicas_divide_the_ranks():
    assert world_problems(LayoutSettings(replicas=2), 8) == []
    (problem,) = world_problems(LayoutSettings(replicas=3), 8)
    assert problem.startswith("layout.replicas: 3 do not divide 8 ranks; every replica needs as many; set one of 1, 2,")
    (problem,) = world_problems(LayoutSettings(tensor_parallel=3), 8)
    assert problem.startswith("layout.tensor_parallel: 3 do not divide 8 ranks; every group needs as many; set one of")
    (problem,) = world_problems(LayoutSettings(tensor_parallel=4, replicas=3), 8)
    assert "3 do not divide the 2 groups of layout.tensor_parallel=4; every replica needs as many; set one" in problem
    with fake_world(8) as world:
        mesh = device_mesh(world, 2)
        assert mesh.mesh.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert device_mesh(world, 1) is world.mesh
    with fake_world(8, tensor_parallel=2) as world:
        mesh = device_mesh(world, 2)
        assert mesh.mesh_dim_names == ("replica", "shard", "tensor")
        assert mesh["tensor"].mesh.tolist() == [0, 1]  # neighbours
        assert device_mesh(world, 1).mesh.shape == (4, 2)


def test_a_replica_holds_the_model_once_and_the_ranks_of_it_a_part_each():
    total = sum(p.numel() for p in lay_out_of(LayoutSettings(), 1).parameters())
    for ranks, replicas, shards in ((4, 1, 4), (4, 2, 2), (4, 4, 1)):
        model = lay_out_of(LayoutSettings(replicas=replicas), ranks)
        assert sum(p.to_local().numel() for p in model.parameters()) * shards == total


def test_matrices_are_shared_and_norms_are_whole_on_each_rank():
    sizes = {}
    for shared in (1, 2):
        parameters = lay_out_of(LayoutSettings(tensor_parallel=shared), 4).named_parameters()
        sizes[shared] = {name: p.to_local().numel() for name, p in parameters}
    for name, size in sizes[1].items():  # over four ranks, then over two groups of two
        assert sizes[2][name] == (2 * size if name.endswith("scale") else size), name


def test_every_matrix_is_shared_also_of_layers_that_are_computed_again():
    with fake_world(4, tensor_parallel=2) as world:
        model = lay_out(SHAPE, world, "bf16", "full", layout=LayoutSettings(tensor_parallel=2))
        assert (world.data_rank, world.data_size) == (0, 2)
    kinds = {type(module) for module in model.modules()}
    assert {ColumnLinear, RowLinear, VocabularyEmbedding} <= kinds
    assert not {torch.nn.Linear, torch.nn.Embedding} & kinds


def test_heads_and_columns_divide_over_the_ranks_that_share_them():
    assert tensor_parallel_problems(2, SHAPE) == []
    (problem,) = tensor_parallel_problems(4, SHAPE)
    expected = (
        "layout.tensor_parallel: 4 does not divide num_kv_heads=2; each rank holds whole heads and as many columns"
    )
    assert problem.startswith(expected)
    assert problem.endswith("set one of 1, 2")


def lay_out_of(layout, ranks):
    with fake_world(ranks, layout.tensor_parallel) as world:
        return lay_out(SHAPE, world, "bf16", "none", layout=layout)


def test_the_next_layers_are_gathered_ahead():
    layers = lay_out_of(LayoutSettings(prefetch_layers=2), 4).layers
    ahead = [len(layer._get_fsdp_state()._states_to_forward_prefetch) for layer in layers]
    assert ahead == [2, 2, 1, 0]
    behind = [layer._get_fsdp_state()._states_to_backward_prefetch for layer in layers]
    assert behind[3] == [layers[2]._get_fsdp_state(), layers[1]._get_fsdp_state()]
    assert [len(states) for states in behind] == [0, 1, 2, 2]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_gradients_reduced_at_once_need_fp32(stored):
    problems = layout_problems(LayoutSettings(reduce_every_micro_batch=True), stored)
    assert bool(problems) == (stored == torch.bfloat16)
