"""Llama-3, 3.1 and 3.2 as Meta published them: shapes, scaled positions, tied embeddings, and back to config.json."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from configs.loader import ConfigError
from recipes.training.loop import open_weights
from recipes.training.model import weights
from recipes.training.model.decoder import Architecture, build_model
from tests.llama3_1 import scaling
from tests.support import ROOT, VOCAB, tiny_llama

# What the config.json files of meta-llama's repositories state about the model, in the layout of transformers 4.
COMMON = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "mlp_bias": False,
    "model_type": "llama",
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128256,
}
NAMES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "tie_word_embeddings",
)  # fmt: skip
SIZES = {
    "llama3_8b": (4096, 14336, 32, 32, 8192, False),
    "llama3_70b": (8192, 28672, 80, 64, 8192, False),
    "llama3_1_8b": (4096, 14336, 32, 32, 131072, False),
    "llama3_2_1b": (2048, 8192, 16, 32, 131072, True),
    "llama3_2_3b": (3072, 8192, 28, 24, 131072, True),
}
PARAMETERS = {
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_1_8b": 8_030_261_248,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
}
FACTORS = {"llama3_1_8b": 8.0, "llama3_2_1b": 32.0, "llama3_2_3b": 32.0}
SHARP = {  # weights so large that attention picks single positions, and a wrong angle shows
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 131_072, "initializer_range": 0.3,
}  # fmt: skip


def published(name):
    """Returns a model's config.json."""
    shape = dict(zip(NAMES, SIZES[name], strict=True))
    head_dim = {"head_dim": shape["hidden_size"] // shape["num_attention_heads"]} if "3_2" in name else {}
    return COMMON | shape | head_dim | {"rope_scaling": scaling(FACTORS[name]) if name in FACTORS else None}


@pytest.mark.parametrize("name", SIZES)
def test_the_stated_shape_is_that_of_the_published_config(name):
    stated = yaml.safe_load((ROOT / f"configs/models/{name}.yaml").read_text())["model"]
    found = Architecture.from_hf(published(name), name)
    assert Architecture(**stated) == found
    with torch.device("meta"):
        assert sum(p.numel() for p in build_model(found).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", SIZES)
def test_both_layouts_of_config_json_survive_an_export(name, tmp_path):
    config = published(name)
    shape = Architecture.from_hf(config, name)
    written = shape.to_hf(128000, [128001], "bfloat16")
    assert {key: config[key] for key in written if key in config} == {k: v for k, v in written.items() if k in config}
    assert set(NAMES) | {"rope_scaling", "rope_theta"} <= set(written)
    (tmp_path / "config.json").write_text(json.dumps(written))
    theirs = AutoConfig.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "five")  # the layout of transformers 5: rope_parameters
    resaved = json.loads((tmp_path / "five/config.json").read_text())
    assert "rope_scaling" not in resaved
    assert resaved["rope_parameters"] == LlamaConfig(**config).to_dict()["rope_parameters"]
    assert Architecture.from_hf(resaved, name) == shape


@pytest.mark.parametrize("factor", [8.0, 32.0], ids=["llama3.1", "llama3.2"])
def test_every_position_is_rotated_as_in_transformers(factor):
    """All 131,072 of them, of heads of 128."""
    config = LlamaConfig(**published("llama3_1_8b") | {"rope_scaling": scaling(factor)})
    positions = torch.arange(131_072)
    cosines, sines = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    shape = Architecture(VOCAB, 1, 1, 1, 128, 8, 131_072, rope_scale_factor=int(factor))
    cache = build_model(shape).layers[0].attn.pos_embeddings.cache
    assert cache.shape == (131_072, 64, 2)
    # the angle is a product in fp32: at position 131,072 its last bit is 1/128
    torch.testing.assert_close(cache[..., 0], cosines[0, :, :64], atol=0.01, rtol=0)
    torch.testing.assert_close(cache[..., 1], sines[0, :, :64], atol=0.01, rtol=0)


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {}], ids=["llama3.2", "llama3.1"])
def test_logits_behind_the_original_context_are_those_of_transformers(tmp_path, changes):
    factor = 32.0 if changes else 8.0
    tiny_llama(tmp_path, **SHARP | changes, rope_scaling=scaling(factor))
    directory, shape = open_weights(str(tmp_path))
    assert (shape.rope_scale_factor, shape.tied_embeddings) == (factor, bool(changes))
    model = build_model(shape)
    weights.load(model, directory, shape)
    ids = torch.randint(0, VOCAB, (1, 8192 + 512), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits
        plain = build_model(replace(shape, rope_scale_factor=1))
        plain.load_state_dict(model.state_dict())
        assert (plain(ids) - theirs)[:, 8192:].abs().mean() > 0.1, "the scaling changes nothing"
        torch.testing.assert_close(model(ids), theirs, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("original_max_position_embeddings", 4096, "original_max_position_embeddings is 4096, 8192 is supported"),
        ("high_freq_factor", 2.0, "high_freq_factor is 2.0, 4 is supported"),
        ("rope_type", "yarn", "rope_type is 'yarn', 'llama3' is supported"),
    ],
)
def test_another_scaling_is_refused(key, value, message):
    config = published("llama3_1_8b") | {"rope_scaling": scaling(8.0) | {key: value}}
    with pytest.raises(ConfigError, match=message):
        Architecture.from_hf(config, "config.json")
