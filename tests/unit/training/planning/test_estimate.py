"""The plan of a run's computation: told without weights, data or GPU, and near what a dry run finds."""

import json
import re

import pytest
import yaml

from configs.loader import ConfigError, load
from recipes import cpt
from recipes.training.model.decoder import Architecture, stated_architecture
from recipes.training.planning.dry_run import dry_run
from recipes.training.planning.estimate import bytes_per_parameter, compute_plan, memory
from tests.support import ROOT, run_here, tiny_llama

TINY = {"vocab_size": 512, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 256,
        "intermediate_dim": 768, "max_seq_len": 512}  # fmt: skip
LLAMA_8B, LLAMA_70B = ROOT / "configs/cpt/llama3_8b_ko.yaml", ROOT / "configs/models/llama3_70b.yaml"


@pytest.fixture
def tiny(tmp_path):
    keys = {"output_dir": str(tmp_path / "run"), "model": TINY, "data": "nowhere", "seq_len": 512, "steps": 10}
    keys |= {"global_batch_tokens": 8192, "loss_chunk": 64, "plan": True}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def config(path, *overrides):
    return load(cpt.CptConfig, path, overrides, cpt.check)


def numbers(plan, name):
    (line,) = re.findall(rf"^{re.escape(name)}  .*$", plan, re.M)
    return line.removeprefix(name).split()


def test_llama3_8b_is_told_without_its_weights_and_the_data_are_named_as_missing():
    result = run_here(cpt.main, LLAMA_8B, "weights=nowhere/Llama", "data=nowhere/tokens", "--plan")
    assert result.returncode == 2
    assert "weights: nowhere/Llama does not exist" in result.stderr
    assert result.stdout.startswith("8,030,261,248 parameters: embedding 525,336,576")
    assert "57.91 with attention over the whole square, 51.47 causal; 68.65 computed" in result.stdout
    assert numbers(result.stdout, "GPUs") == ["1", "8", "16", "64"]
    assert numbers(result.stdout, "parameters") == ["29.9", "3.7", "1.9", "0.5"]
    assert numbers(result.stdout, "fits in 80") == ["no", "yes", "yes", "yes"]
    assert numbers(result.stdout, "micro-batches a step") == ["128", "16", "8", "2"]


def test_llama3_70b_fits_on_64_gpus_when_gradients_are_reduced_at_once(tmp_path):
    shape = yaml.safe_load(LLAMA_70B.read_text())["model"]
    overrides = [f"model={json.dumps(shape)}", "weights=nowhere", "plan=true", "estimate.world_sizes=[8,64]"]
    whole = compute_plan(config(LLAMA_8B, *overrides))
    assert whole.startswith("70,553,706,496 parameters")
    assert numbers(whole, "accumulated") == ["262.8", "262.8"]
    assert numbers(whole, "fits in 80") == ["no", "no"]
    reduced = compute_plan(config(LLAMA_8B, *overrides, "layout.reduce_every_micro_batch=true"))
    assert numbers(reduced, "fits in 80") == ["no", "yes"]


def test_ranks_that_share_matrices_divide_the_state_and_get_fewer_sequences(tmp_path):
    shape = yaml.safe_load(LLAMA_70B.read_text())["model"]
    overrides = [f"model={json.dumps(shape)}", "weights=nowhere", "plan=true", "estimate.world_sizes=[8,12,64]"]
    plan = compute_plan(config(LLAMA_8B, *overrides, "layout.tensor_parallel=8"))
    assert numbers(plan, "parameters") == ["32.9", "-", "4.1"]
    assert numbers(plan, "accumulated") == ["32.9", "-", "32.9"]  # 262.8 without
    assert numbers(plan, "fits in 80") == ["no", "-", "yes"]
    assert numbers(plan, "micro-batches a step") == ["128", "-", "16"]
    assert numbers(plan, "GiB sent a step, weights")[0] == "0.0"
    # 402 sums of 16 KiB, of which a ring of eight sends 2 x 7 / 8
    assert "tensor_parallel=8: of each token that its group computes, a GPU sends 10.99 MiB in sums" in plan
    tokens = 1_048_576 * 402 * 16_384 * 1.75 / 2**30
    assert float(numbers(plan, "GiB sent a step, sums")[0].replace(",", "")) == pytest.approx(tokens, rel=1e-3)
    with pytest.raises(
        ConfigError, match=r"3 does not divide num_heads=64, num_kv_heads=8, intermediate_dim=28672; ea"
    ):
        config(LLAMA_8B, *overrides, "layout.tensor_parallel=3")


@pytest.mark.parametrize("mode", ["full", "none"])
def test_a_dry_run_finds_what_shared_matrices_need(tiny, mode):
    overrides = [f"activation_checkpointing={mode}", "micro_batch=2", "layout.tensor_parallel=2"]
    cfg = config(tiny, *overrides)
    parts = memory(cfg, Architecture(**TINY), bytes_per_parameter(cfg), 8, 2)
    formula = sum(parts.values()) - parts["optimizer"] - parts["reserved"]
    assert dry_run(cfg, Architecture(**TINY), 8)["Total"] == pytest.approx(formula, rel=0.25)


def test_speed_is_the_rate_over_what_is_computed(tiny):
    plan = compute_plan(config(tiny, "estimate.tflops=10", "estimate.world_sizes=[1,3,4]", "layout.replicas=4"))
    assert numbers(plan, "micro-batches a step") == ["-", "-", "4"]
    plan = compute_plan(config(tiny, "estimate.tflops=10", "estimate.world_sizes=[1,3]"))
    assert numbers(plan, "micro-batches a step")[:2] == ["16", "does"]
    executed = float(re.search(r"([\d.]+) computed with", plan)[1]) * 1e9
    assert float(numbers(plan, "tokens/s/GPU")[0].replace(",", "")) == pytest.approx(10e12 / executed, rel=0.2)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("torch.optim.AdamW", (4, 4, 8.0)),
        ("recipes.training.optimization.adamw.KahanAdamW", (2, 2, 6.0)),
        ("torch.optim.SGD", (4, 4, 0.0)),
    ],
)
def test_what_a_parameter_takes_is_measured(tiny, optimizer, expected):
    found = bytes_per_parameter(config(tiny, f"optimizer={{_component_: {optimizer}, lr: 0.1}}"))
    assert (found.stored, found.gradient, found.optimizer) == expected


@pytest.mark.parametrize("mode", ["full", "none"])
def test_a_dry_run_finds_what_the_formula_says(tiny, mode):
    cfg = config(tiny, f"activation_checkpointing={mode}", "micro_batch=2")
    parts = memory(cfg, Architecture(**TINY), bytes_per_parameter(cfg), 4, 2)
    formula = sum(parts.values()) - parts["optimizer"] - parts["reserved"]
    assert dry_run(cfg, Architecture(**TINY), 4)["Total"] == pytest.approx(formula, rel=0.25)
    plan = compute_plan(config(tiny, f"activation_checkpointing={mode}", "estimate.dry_run_ranks=2"))
    assert re.search(r"dry run of rank 0 of 2, .*: 0\.\d GiB at the peak, 0\.\d by the formula", plan)


def test_a_stated_shape_is_compared_with_the_weights(tmp_path):
    weights = str(tiny_llama(tmp_path / "tiny"))
    found = stated_architecture(weights, None)
    assert stated_architecture(weights, vars(found)) == stated_architecture("nowhere", vars(found)) == found
    with pytest.raises(ConfigError, match=r"model.num_layers: 3; the weights' config.json says 2; set it so"):
        stated_architecture(weights, vars(found) | {"num_layers": 3})
    with pytest.raises(ConfigError, match=r"nowhere does not exist, nor does `model` state a shape; give one"):
        stated_architecture("nowhere", None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("estimate.tflops=0", "estimate.tflops: 0.0 is not positive; set it above 0"),
        ("estimate.world_sizes=[0]", r"estimate.world_sizes: \[0\]; numbers of GPUs from 1 on"),
        ("estimate.dry_run_ranks=-1", "estimate.dry_run_ranks: -1 is negative; set it to 0 or more"),
        ("layout.replicas=0", "layout.replicas: 0 is below 1"),
        ("layout.tensor_parallel=0", "layout.tensor_parallel: 0 is below 1; 1 shares no matrix"),
        ("layout.tensor_parallel=4", "layout.tensor_parallel: 4 does not divide num_kv_heads=2; .*; set one of 1, 2$"),
        ("layout.tensor_parallel=2 compile=true", "full with compile=true and layout.tensor_parallel=2; torch 2.13"),
        ("layout.tensor_parallel=2 float8=rowwise compile=true", "float8: rowwise with layout.tensor_parallel=2; only"),
        ("layout.prefetch_layers=-1", "layout.prefetch_layers: -1 is negative"),
        ("attention=flash", "attention: 'flash' is not known; one of auto, varlen, per_document, mask"),
        ("attention=varlen device=cpu", "attention: varlen on device=cpu; its kernel needs cuda"),
        ("float8=tensorwise device=cpu compile=true", "float8: tensorwise on device=cpu"),
        ("attention=per_document compile=true", "per_document with compile=true would compile every batch anew"),
        (
            "layout.reduce_every_micro_batch=true optimizer._component_=recipes.training.optimization.adamw.KahanAdamW",
            "layout.reduce_every_micro_batch: true with an optimizer that stores bf16",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny, override, message):
    with pytest.raises(ConfigError, match=message):
        config(tiny, *override.split())
