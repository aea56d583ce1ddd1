"""The model here computes what transformers' LlamaForCausalLM computes on the same weights."""

import json

import pytest
import torch
from transformers import LlamaForCausalLM

from configs.loader import ConfigError
from data_prep.hf_directory import ModelDirectory
from recipes.training.loop import open_weights
from recipes.training.model import weights
from recipes.training.model.decoder import Architecture, build_model
from tests.support import VOCAB, tiny_llama

SCALED = {
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
}


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True}, SCALED, SCALED | {"tie_word_embeddings": True}, {"num_key_value_heads": 4}],
    ids=["llama3", "tied", "llama3.1", "llama3.2", "no-gqa"],
)
def test_a_model_written_by_transformers_gives_its_logits(tmp_path, changes):
    tiny_llama(tmp_path, **changes)
    directory, architecture = open_weights(str(tmp_path))
    model = build_model(architecture)
    weights.load(model, directory, architecture)
    ids = torch.randint(0, VOCAB, (2, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits
        torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", [{}, SCALED, {"tie_word_embeddings": True}], ids=["llama3", "llama3.1", "tied"])
def test_a_written_directory_gives_the_same_logits_in_transformers(tmp_path, changes):
    source = tiny_llama(tmp_path / "source", **changes)
    directory, architecture = open_weights(str(source))
    model = build_model(architecture)
    weights.load(model, directory, architecture)
    parameters = {name: p.data for name, p in model.named_parameters()}
    out = tmp_path / "out"
    shapes = {name: p.shape for name, p in parameters.items()}
    weights.write_hf(out, parameters.__getitem__, shapes, architecture, "F32")
    (out / "config.json").write_text(json.dumps(architecture.to_hf(0, [1], "float32")))
    ids = torch.randint(0, VOCAB, (1, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            LlamaForCausalLM.from_pretrained(out)(ids).logits,
            LlamaForCausalLM.from_pretrained(source)(ids).logits,
            atol=0,
            rtol=0,
        )
    assert Architecture.from_hf(architecture.to_hf(0, [1], "float32"), "test") == architecture


def test_initial_weights_depend_on_the_seed_alone():
    shape = Architecture(
        vocab_size=32, num_layers=1, num_heads=2, num_kv_heads=1, embed_dim=16, intermediate_dim=32, max_seq_len=32
    )
    first, second, other = (build_model(shape) for _ in range(3))
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        weights.initialise(model, seed)
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.dim() == 1 or not torch.equal(a, c), name


def test_missing_and_misshapen_tensors_are_named_together(tmp_path):
    tiny_llama(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"num_hidden_layers": 3, "intermediate_size": 96}
    (tmp_path / "config.json").write_text(json.dumps(config))
    directory, architecture = open_weights(str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"mlp.gate_proj.weight has shape \[160, 64\], config.json says \[96, 64\]"
    ) as error:
        weights.load(build_model(architecture), directory, architecture)
    assert "model.layers.2.self_attn.q_proj.weight is missing" in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "gpt2", "model_type is 'gpt2', 'llama' is supported"),
        ("attention_bias", True, "attention_bias is True"),
        ("head_dim", 40, "head_dim is 40, 16 is supported"),
        ("rope_parameters", {"rope_type": "yarn"}, "rope_type is 'yarn', 'llama3' is supported"),
    ],
)
def test_unsupported_architectures_are_refused(tmp_path, key, value, message):
    config = ModelDirectory.open(tiny_llama(tmp_path)).config | {key: value}
    with pytest.raises(ConfigError, match=message):
        Architecture.from_hf(config, "config.json")


def test_a_truncated_safetensors_file_is_named(tmp_path):
    tiny_llama(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ConfigError, match=r"has \d+ bytes where its header says \d+"):
        ModelDirectory.open(tmp_path)
    file.write_bytes(b"short")
    with pytest.raises(ConfigError, match="is no safetensors file"):
        ModelDirectory.open(tmp_path)
    file.unlink()
    with pytest.raises(ConfigError, match=r"model.safetensors is missing"):
        ModelDirectory.open(tmp_path)


def test_a_file_that_is_cut_while_it_is_loaded_is_named(tmp_path):
    directory, architecture = open_weights(str(tiny_llama(tmp_path)))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ConfigError, match=r"ends at byte \d+, \S+ ends at \d+; copy the file again"):
        weights.load(build_model(architecture), directory, architecture)


def test_blocks_smaller_than_a_head_give_the_same_weights(tmp_path, monkeypatch):
    directory, architecture = open_weights(str(tiny_llama(tmp_path)))
    whole, blocks = build_model(architecture), build_model(architecture)
    weights.load(whole, directory, architecture)
    monkeypatch.setattr(weights, "BLOCK_BYTES", 5 * 64 * 4)  # five rows; a head has sixteen
    weights.load(blocks, directory, architecture)
    for (name, a), b in zip(whole.named_parameters(), blocks.parameters(), strict=True):
        assert torch.equal(a, b), name
