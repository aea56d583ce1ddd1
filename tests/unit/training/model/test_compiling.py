"""CUDA graphs are refused where they cannot work; compiled layers train as plain ones do."""

import pytest
import torch

from configs.loader import ConfigError, load
from recipes.cpt import CptConfig
from recipes.training.data.batches import collate
from recipes.training.data.packing import Sample
from recipes.training.model import weights
from recipes.training.model.attention import use_own_attention
from recipes.training.model.compiling import compile_layers, cuda_graph_problems
from recipes.training.model.decoder import Architecture, build_model
from recipes.training.settings import check_settings, check_world
from recipes.training.step import losses_of

SHAPE = {"vocab_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 32, "intermediate_dim": 64}


@pytest.fixture
def config(tmp_path):
    """Makes the settings of a run with CUDA graphs, from overrides."""
    path = tmp_path / "cpt.yaml"
    path.write_text(
        f"output_dir: {tmp_path}/run\ndata: {tmp_path}/none\nmodel: {SHAPE | {'max_seq_len': 64}}\nsteps: 1\n"
        "seq_len: 64\nglobal_batch_tokens: 64\ncompile: true\ncuda_graphs: true\n"
    )
    return lambda *overrides: load(CptConfig, path, list(overrides))


def test_cuda_graphs_are_refused_where_they_cannot_work(config):
    assert cuda_graph_problems(config(), "cuda", torch.float32) == []
    assert cuda_graph_problems(config("cuda_graphs=false", "compile=false"), "cpu", torch.float32) == []
    (problem,) = cuda_graph_problems(config(), "cpu", torch.float32)
    assert problem == "cuda_graphs: true on device=cpu; they are recorded from a GPU; set cuda_graphs=false"
    (problem,) = cuda_graph_problems(config("compile=false"), "cuda", torch.float32)
    assert problem.endswith("without compile=true; compiled layers are recorded; set compile=true")


def test_cuda_graphs_are_refused_where_gradients_would_add_up_in_their_memory(config):
    two = config("global_batch_tokens=128")
    (problem,) = cuda_graph_problems(two, "cuda", torch.float32)
    assert "2 micro-batches a step and gradients kept in float32; such gradients are overwritten" in problem
    assert "global_batch_tokens=64" in problem
    assert cuda_graph_problems(two, "cuda", torch.bfloat16) == []  # which `GradientSums` takes away at once


def test_the_settings_know_of_it(config):
    assert any(
        problem.startswith("cuda_graphs: true on device=cpu") for problem in check_settings(config("device=cpu"))
    )
    check_world(config(), 1)
    with pytest.raises(ConfigError, match=r"cuda_graphs: true with 2 ranks; a graph reads weights where they were"):
        check_world(config("global_batch_tokens=128"), 2)


@pytest.mark.slow
@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # the compiler's own
def test_compiled_layers_have_the_loss_and_gradients_of_plain_ones(cuda_graphs):
    batch = collate([Sample.empty(64)])
    batch.tokens.copy_(torch.arange(64))
    batch.targets.copy_(torch.arange(64).flip(0))
    found = []
    for is_compiled in (False, True):
        model = build_model(Architecture(**SHAPE, max_seq_len=64))
        weights.initialise(model, 0)
        use_own_attention(model.layers, "mask", takes_rows=True)
        if is_compiled:
            compile_layers(model, cuda_graphs)
        loss, _ = losses_of(model, batch, 16)
        loss.backward()
        found.append({"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters()})
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-4, atol=1e-5, msg=name)
