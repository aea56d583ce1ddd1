"""Which layouts cannot be, and that prefetching names the layers it should."""

import pytest
import torch

from recipes.training.model.decoder import Architecture, lay_out
from recipes.training.model.layout import LayoutSettings, device_mesh, layout_problems, world_problems
from recipes.training.planning.dry_run import fake_world

SHAPE = Architecture(
    vocab_size=64, num_layers=4, num_heads=2, num_kv_heads=1, embed_dim=32, intermediate_dim=64, max_seq_len=32
)


def test_replicas_divide_the_ranks():
    assert world_problems(LayoutSettings(replicas=2), 8) == []
    (problem,) = world_problems(LayoutSettings(replicas=3), 8)
    assert problem.startswith("layout.replicas: 3 do not divide 8 ranks; every replica needs as many; set one of 1, 2,")
    with fake_world(8) as world:
        mesh = device_mesh(world, 2)
        assert mesh.mesh.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert device_mesh(world, 1) is world.mesh


def test_a_replica_holds_the_model_once_and_the_ranks_of_it_a_part_each():
    total = sum(p.numel() for p in lay_out_of(LayoutSettings(), 1).parameters())
    for ranks, replicas, shards in ((4, 1, 4), (4, 2, 2), (4, 4, 1)):
        model = lay_out_of(LayoutSettings(replicas=replicas), ranks)
        assert sum(p.to_local().numel() for p in model.parameters()) * shards == total


def lay_out_of(layout, ranks):
    with fake_world(ranks) as world:
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
