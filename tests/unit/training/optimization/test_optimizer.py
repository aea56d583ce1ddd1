"""Parameter groups and learning rates, and the settings that are refused."""

import re

import pytest
import torch

from configs.loader import ConfigError, load
from recipes.cpt import CptConfig, check
from recipes.training.model import weights
from recipes.training.model.decoder import Architecture, build_model
from recipes.training.optimization import optimizer as optimizers
from tests.support import random_shards

KAHAN = "optimizer._component_=recipes.training.optimization.adamw.KahanAdamW"
EIGHT_BIT = "optimizer._component_=torchao.optim.AdamW8bit"
SHAPE = Architecture(
    vocab_size=50, num_layers=1, num_heads=2, num_kv_heads=1, embed_dim=16, intermediate_dim=32, max_seq_len=32
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    shards = random_shards(folder / "shards", documents=5)
    path = folder / "cpt.yaml"
    path.write_text(f"output_dir: {folder}/run\ndata: {shards}\nmodel: {{vocab_size: 512}}\nsteps: 100\n")
    return path


def settings(config, *overrides):
    return load(CptConfig, config, list(overrides), check)


def model_of(cfg):
    model = build_model(SHAPE)
    weights.initialise(model, 0)
    return model.to(optimizers.storage_dtype(cfg.optimizer))


def test_norms_do_not_decay_and_embeddings_have_their_own_rate(config):
    cfg = settings(config, "embedding_lr=2e-6")
    model = model_of(cfg)
    optimizer = optimizers.build_optimizer(cfg, model)
    matrices, norms, embeddings = optimizer.param_groups
    assert (matrices["lr"], norms["lr"], embeddings["lr"]) == (1e-5, 1e-5, 2e-6)
    assert (matrices["weight_decay"], norms["weight_decay"], embeddings["weight_decay"]) == (0.1, 0.0, 0.1)
    assert {id(p) for p in embeddings["params"]} == {id(model.tok_embeddings.weight), id(model.output.weight)}
    assert all(p.dim() == 1 for p in norms["params"])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    peaks = optimizers.peak_learning_rates(optimizer)
    optimizers.set_learning_rates(optimizer, peaks, 0.5)
    optimizers.set_learning_rates(optimizer, peaks, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [2.5e-6, 2.5e-6, 5e-7]


def test_without_an_own_rate_embeddings_are_matrices_and_adamw_is_fused(config):
    cfg = settings(config)
    optimizer = optimizers.build_optimizer(cfg, model_of(cfg))
    assert len(optimizer.param_groups) == 2
    assert optimizer.defaults["fused"] is True
    cfg = settings(config, "optimizer.foreach=true")
    assert not optimizers.build_optimizer(cfg, model_of(cfg)).defaults["fused"]


@pytest.mark.parametrize(
    ("overrides", "dtype", "layout"),
    [
        ([], torch.float32, "torch.optim.AdamW"),
        ([KAHAN], torch.bfloat16, "KahanAdamW (parameters=bfloat16, state_dtype=bf16)"),
        ([KAHAN, "optimizer.state_dtype=fp32", "embedding_lr=1e-6"], torch.bfloat16, "fp32, embedding_lr=own group)"),
        ([EIGHT_BIT], torch.float32, "torchao.optim.AdamW8bit"),
        ([EIGHT_BIT, "optimizer.bf16_stochastic_round=true"], torch.bfloat16, "AdamW8bit (parameters=bfloat16)"),
    ],
)
def test_the_optimizer_decides_how_parameters_are_stored(config, overrides, dtype, layout):
    cfg = settings(config, *overrides)
    assert optimizers.storage_dtype(cfg.optimizer) == dtype
    assert optimizers.optimizer_layout(cfg).endswith(layout)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([KAHAN, "precision=fp32"], "stores the parameters in bf16 with precision=fp32; fp32 computation needs fp32"),
        ([EIGHT_BIT, "optimizer.bf16_stochastic_round=true", "precision=fp32"], "AdamW8bit stores the parameters in"),
        ([KAHAN, "optimizer.state_dtype=fp8"], "optimizer: state_dtype 'fp8' is not known; one of fp32, bf16"),
        ([KAHAN, "optimizer.betas=[0.9, 0.999]"], "betas[1] is 0.999 with state_dtype=bf16"),
        (["embedding_lr=-1"], "embedding_lr: -1.0 is not positive"),
        (["schedule=linear"], "schedule: 'linear' is not known; one of cosine, warmup_stable_decay"),
        (["schedule=warmup_stable_decay"], "decay_steps: 0 with schedule=warmup_stable_decay"),
        (["decay_steps=10"], "decay_steps: 10 with schedule=cosine; warmup_stable_decay needs it above 0 and cosine"),
        (["warmup_steps=-1"], "warmup_steps: -1 is negative; set it to 0 or more"),
        (
            ["warmup_steps=60", "schedule_start_step=50"],
            "60 + 0 are more than the 50 steps from schedule_start_step=50",
        ),
        (["activation_checkpointing=some"], "activation_checkpointing: 'some' is not known; one of none, full"),
        (["activation_checkpointing=true"], "activation_checkpointing: 'true' is not known; one of none, full"),
        (["activation_checkpointing=0.7"], "a memory budget of 0.7 without compile=true; only the compiler can keep"),
        (["z_loss=-1"], "z_loss: -1.0 is negative"),
        (["loss_chunk=-1"], "loss_chunk: -1 is negative"),
        (["guard.max_skips=-1"], "guard.max_skips: -1 is negative"),
        (["guard.spike_sigmas=0"], "guard.spike_sigmas: 0.0 is not positive"),
        (["guard.window=3"], "guard.window (command line): unknown key; did you mean 'window_steps'?"),
    ],
)
def test_settings_that_would_be_ignored_or_wrong_are_refused(config, overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        settings(config, *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compile=true"], "compile: true, and no C++ compiler is found; install g++, or set compile=false"),
        ([EIGHT_BIT], "AdamW8bit compiles its update; no C++ compiler is found; install g++"),
        ([KAHAN, "optimizer.fused=true"], "KahanAdamW compiles its update; no C++ compiler is found"),
    ],
)
def test_without_a_compiler_what_needs_one_is_refused_before_the_run(config, overrides, message, monkeypatch):
    settings(config, *overrides)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=re.escape(message)):
        settings(config, *overrides)
