"""Adapters against PEFT over transformers, on the same weights and tokens; and what cannot be trained."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from peft import PeftModel
from transformers import LlamaForCausalLM

from configs.loader import ConfigError
from data_prep.hf_directory import ModelDirectory
from recipes.training.data.batches import collate
from recipes.training.data.packing import Sample
from recipes.training.distributed import process_group
from recipes.training.loop import open_weights
from recipes.training.model import adapter_files, weights
from recipes.training.model.adapters import (
    MODULES,
    AdapterSettings,
    adapter_problems,
    is_adapter,
)
from recipes.training.model.decoder import Architecture, build_model, build_sharded_model, plain_name
from tests.support import VOCAB, tiny_llama

# PEFT asks transformers for a property that it has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PEFT_PARTS = {"lora_a": "lora_A.default.weight", "lora_b": "lora_B.default.weight"}
PEFT_PARTS["magnitude"] = "lora_magnitude_vector.default.weight"
LORA = AdapterSettings(rank=4)
CASES = {
    "lora": LORA,
    "dora": replace(LORA, kind="dora"),
    "some": replace(LORA, modules=["q_proj", "down_proj"]),
    "qlora": replace(LORA, quantize_base="nf4"),
    "qdora": replace(LORA, kind="dora", quantize_base="nf4"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("adapters") / "base", intermediate_size=192)


@pytest.fixture(scope="module")
def world():
    with process_group("cpu") as world:
        yield world


def built(base, world, adapter, precision="fp32", learns=True, checkpointing="full"):
    """Returns the model over its base; with `learns` the adapters have some values, without, those of a new run."""
    directory, architecture = open_weights(str(base))
    stored = torch.bfloat16 if precision == "bf16" else torch.float32
    model = build_sharded_model(architecture, world, precision, checkpointing, stored, adapter=adapter)
    adapter_files.load_base(model, directory, architecture, seed=0)
    random = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if learns and name.endswith("lora_b"):
            parameter.data.normal_(std=0.05, generator=random)
        if learns and name.endswith("magnitude"):
            parameter.data *= 1 + 0.1 * torch.rand(parameter.shape, generator=random)
    return model, directory, architecture


def batch():
    ids = np.random.default_rng(0).integers(0, VOCAB, 80)
    return collate([Sample(row, np.roll(row, -1), np.zeros(40, dtype=np.int64)) for row in ids.reshape(2, 40)])


def logits_of(model, one=None):
    one = one or batch()
    with torch.no_grad():
        return model(one.tokens, mask=one.documents, input_pos=one.positions)


def learnt_by(model):
    return {plain_name(n): p.detach().clone() for n, p in model.named_parameters() if is_adapter(n)}


def quantised_llama(base, adapter, dtype=torch.float32):
    """Returns transformers' model, its matrices as a run of that adapter and dtype has them, in fp32."""
    theirs = LlamaForCausalLM.from_pretrained(base)
    if adapter.quantize_base:
        directory, architecture = open_weights(str(base))
        read = adapter_files.merged(directory, architecture, replace(adapter, modules=[]), dtype, None)
        state = theirs.state_dict()
        for name in adapter_files.parameter_shapes(architecture, adapter)[0]:
            tensor = read(name)
            rows = weights.rotary_rows(name, len(tensor), architecture)
            state[weights.hf_name(name)].copy_(tensor if rows is None else tensor[np.argsort(rows)])
    return theirs


@pytest.mark.parametrize("case", CASES)
def test_peft_loads_the_files_and_gives_the_same_logits_loss_and_gradients(tmp_path, base, world, case):
    adapter, one = CASES[case], batch()
    model, _, architecture = built(base, world, adapter)
    adapter_files.write_peft(tmp_path, learnt_by(model), architecture, adapter, str(base))
    theirs = PeftModel.from_pretrained(quantised_llama(base, adapter), tmp_path, is_trainable=True)
    logits = theirs(one.tokens).logits
    torch.testing.assert_close(logits_of(model), logits, atol=1e-5, rtol=0)
    loss = model(one.tokens, targets=one.targets, loss_chunk=16, mask=one.documents, input_pos=one.positions)[0]
    loss.backward()
    F.cross_entropy(logits.flatten(0, 1), one.targets.flatten(), reduction="sum").backward()
    reference = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    ours = {plain_name(name): p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert len(ours) == len(reference) == 2 * len(adapter.modules) * (3 if adapter.kind == "dora" else 2)
    for name, gradient in ours.items():
        module, _, part = name.rpartition(".")
        hf = weights.hf_name(f"{module}.weight").removesuffix(".weight")
        expected = reference[f"base_model.model.{hf}.{PEFT_PARTS[part]}"]
        rows = weights.rotary_rows(name, len(gradient), architecture) if part != "lora_a" else None
        expected = expected if rows is None else expected[torch.from_numpy(rows)]
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: name + text)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("case", CASES)
def test_merged_weights_give_the_logits_of_the_adapters_and_of_peft(tmp_path, base, world, case):
    adapter = CASES[case]
    model, directory, architecture = built(base, world, adapter)
    learnt = learnt_by(model)
    read = adapter_files.merged(directory, architecture, adapter, torch.float32, learnt.__getitem__)
    whole = build_model(architecture)
    for name, parameter in whole.named_parameters():
        parameter.data.copy_(read(name))
    tokens = batch().tokens
    with torch.no_grad():
        merged = whole(tokens)
    torch.testing.assert_close(logits_of(model), merged, atol=1e-5, rtol=0)
    adapter_files.write_peft(tmp_path, learnt, architecture, adapter, str(base))
    theirs = PeftModel.from_pretrained(quantised_llama(base, adapter), tmp_path).merge_and_unload()
    torch.testing.assert_close(merged, theirs(tokens).logits, atol=1e-5, rtol=0)
    plain = LlamaForCausalLM.from_pretrained(base)(tokens).logits
    assert (merged - plain).abs().max() > 0.01, "the adapters do nothing"


def test_a_new_run_starts_as_its_base(base, world):
    directory, architecture = open_weights(str(base))
    plain = build_sharded_model(architecture, world, "fp32", "none")
    weights.load(plain, directory, architecture)
    expected = logits_of(plain)
    assert torch.equal(logits_of(built(base, world, LORA, learns=False)[0]), expected)
    dora = built(base, world, CASES["dora"], learns=False)[0]
    torch.testing.assert_close(logits_of(dora), expected, atol=1e-6, rtol=0)
    assert not torch.allclose(logits_of(built(base, world, CASES["qlora"], learns=False)[0]), expected, atol=1e-3)


@pytest.mark.parametrize("case", ["lora", "qlora", "qdora"])
def test_in_bf16_the_base_is_bf16_or_nf4_and_what_learns_is_fp32(base, world, case):
    model, *_ = built(base, world, CASES[case], precision="bf16")
    dtypes = {True: set(), False: set()}
    for _, parameter in model.named_parameters():
        dtypes[parameter.requires_grad].add(parameter.dtype)
    packed = {torch.uint8, torch.int8, torch.int32} if CASES[case].quantize_base else set()
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16, *packed}}
    exact = logits_of(built(base, world, CASES[case])[0])
    torch.testing.assert_close(logits_of(model).float(), exact, atol=0.05, rtol=0.05)


def test_dropout_is_drawn_for_the_adapter_alone_and_only_in_training(base, world):
    adapter = replace(LORA, dropout=0.5)
    model, *_ = built(base, world, adapter)
    expected = logits_of(built(base, world, LORA)[0])
    assert torch.equal(logits_of(model), expected), "dropout without gradients, as a validation computes"
    one = batch()
    inputs = {"mask": one.documents, "input_pos": one.positions}
    assert torch.equal(model.eval()(one.tokens, **inputs), expected)
    model.train()
    torch.manual_seed(0)
    first = model(one.tokens, **inputs)
    assert not torch.equal(first, expected)
    assert not torch.equal(first, model(one.tokens, **inputs))
    torch.manual_seed(0)
    assert torch.equal(first, model(one.tokens, **inputs))
    unlearnt = built(base, world, adapter, learns=False)[0]
    torch.testing.assert_close(unlearnt(one.tokens, **inputs), logits_of(built(base, world, LORA, learns=False)[0]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of what torch does
@pytest.mark.timeout(900)  # on a busy machine
@pytest.mark.parametrize("case", ["lora", "qdora"])
def test_compiled_layers_compute_the_same(base, world, case):
    directory, architecture = open_weights(str(base))
    keys = {"attention": "mask", "adapter": CASES[case]}
    model = build_sharded_model(architecture, world, "fp32", "full", torch.float32, True, **keys)
    adapter_files.load_base(model, directory, architecture, seed=0)
    plain = built(base, world, CASES[case], learns=False)[0]
    gradients = []
    for one in (model, plain):
        part = batch()
        loss = one(part.tokens, targets=part.targets, loss_chunk=16, mask=part.documents, input_pos=part.positions)[0]
        loss.backward()
        gradients.append({plain_name(n).replace("_orig_mod.", ""): p.grad for n, p in one.named_parameters()})
    for name, gradient in gradients[1].items():
        if gradient is not None:
            torch.testing.assert_close(gradients[0][name], gradient, atol=1e-5, rtol=1e-4)


def test_the_fingerprint_is_of_the_contents(tmp_path, base):
    known = adapter_files.fingerprint(ModelDirectory.open(base))
    assert known == adapter_files.fingerprint(ModelDirectory.open(base))
    other = tiny_llama(tmp_path / "other", seed=1, intermediate_size=192)
    assert known != adapter_files.fingerprint(ModelDirectory.open(other))


def test_a_base_of_another_shape_is_refused_by_tensor(tmp_path, base, world):
    other = tiny_llama(tmp_path / "other", intermediate_size=128)
    config = json.loads((other / "config.json").read_text()) | {"intermediate_size": 192}
    (other / "config.json").write_text(json.dumps(config))
    message = r"mlp.down_proj.weight has shape \[64, 128\], config.json says \[64, 192\]"
    for case in ("lora", "qlora"):
        with pytest.raises(ConfigError, match=message):
            built(other, world, CASES[case])


SHAPE = Architecture(vocab_size=512, num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=64, intermediate_dim=160)


@pytest.mark.parametrize(
    ("adapter", "run", "message"),
    [
        ({"kind": "ia3"}, {}, "adapter.kind: 'ia3' is not known; one of lora, dora"),
        ({"quantize_base": "int4"}, {}, "adapter.quantize_base: 'int4' is not known; nf4, or null"),
        ({"modules": ["q_proj", "lm_head"]}, {}, "adapter.modules: 'lm_head' is not known; some of q_proj, k_proj"),
        ({"modules": []}, {}, "adapter.modules: is empty; name each that is to learn once"),
        ({"modules": ["q_proj", "q_proj"]}, {}, "adapter.modules: names one twice: q_proj, q_proj; name each"),
        ({"rank": 0}, {}, "adapter.rank: 0 is not positive; set it above 0"),
        ({"alpha": -1.0}, {}, r"adapter.alpha: -1.0 is not positive; set it above 0"),
        ({"dropout": 1.0}, {}, "adapter.dropout: 1.0 is no share from 0 to below 1; set it to 0.05, say"),
        ({"kind": "dora", "dropout": 0.1}, {}, "adapter.dropout: 0.1 with kind=dora; it is there for lora alone; set"),
        ({"rank": 40}, {}, "adapter.rank: 40 is more than the 32 rows of k_proj; .* set it to 32 or less"),
        ({"quantize_base": "nf4"}, {}, "nf4 with rows of 160 weights; they are quantised in blocks of 64; set it to"),
        ({}, {"weights": None}, "adapter: without weights; .* set weights"),
        ({}, {"embedding_lr": 1e-4}, "embedding_lr: 0.0001 with an adapter; embeddings do not learn then; set it to"),
        ({}, {"float8": "rowwise"}, "float8: rowwise with an adapter; adapters are not computed in float8; set"),
        ({}, {"estimate": {"dry_run_ranks": 1}}, "estimate.dry_run_ranks: 1 with an adapter; .*; set it to 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_by_name(adapter, run, message):
    stated = {"weights": "w", "embedding_lr": None, "float8": None, "estimate": {"dry_run_ranks": 0}}
    cfg = OmegaConf.create({**stated, **run})
    cfg.adapter = OmegaConf.structured(AdapterSettings(**adapter))
    (problem,) = adapter_problems(cfg, torch.float32, SHAPE)
    with pytest.raises(ConfigError, match=message):
        raise ConfigError("x", [problem])


def test_an_optimizer_that_stores_bf16_is_refused():
    estimate = {"dry_run_ranks": 0}
    cfg = OmegaConf.create({"weights": "w", "embedding_lr": None, "float8": None, "estimate": estimate})
    cfg.adapter = OmegaConf.structured(AdapterSettings())
    assert adapter_problems(cfg, torch.float32, None) == []
    (problem,) = adapter_problems(cfg, torch.bfloat16, None)
    assert problem.startswith("adapter: with an optimizer that stores bf16; adapters are stored in fp32")
    cfg.adapter = None
    assert adapter_problems(cfg, torch.bfloat16, None) == []


def test_every_matrix_of_a_layer_has_a_name():
    with torch.device("meta"):
        layer = build_model(SHAPE).layers[0]
    matrices = {name for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(MODULES.values()) == matrices
