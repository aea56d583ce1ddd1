"""What is refused before anything is written, each message naming both sides."""

import json
import struct
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from configs.loader import UserError
from recipes.merging import plan
from recipes.merging.compatibility import rope_settings
from recipes.merging.errors import MergeError
from recipes.merging.plan import plan_merge
from recipes.merging.settings import LayerFactor, MergeConfig, problems
from tests.unit.merging.small_models import edit, rewrite, run, settings, weights


def refused(models: dict[str, Path], tmp_path: Path, **keys: object) -> pytest.ExceptionInfo[MergeError]:
    with pytest.raises(MergeError) as error:
        run(tmp_path / "out", models, **keys)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.tmp").exists()
    return error


@pytest.mark.parametrize(
    ("role", "changes", "message"),
    [
        ("plus", {"hidden_size": 128}, "hidden_size is 64 in .*target but 128 in .*plus; a merge needs"),
        (
            "minus",
            {"rope_theta": 1e4, "rope_parameters": None},
            "RoPE is .*500000.* in .*target but .*10000.* in .*minus",
        ),
        ("plus", {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0}}, "RoPE is .*llama3"),
        ("minus", {"tie_word_embeddings": True}, "tie_word_embeddings is False in .*target but True in .*minus"),
        ("plus", {"num_key_value_heads": 4}, "num_key_value_heads is 2 in .* but 4 in"),
        ("plus", {"vocab_size": 520}, "vocab_size is 512 in .* but 520 in .*plus; .* state with vocabulary="),
    ],
)
def test_other_architectures_are_refused(
    models: dict[str, Path], tmp_path: Path, role: str, changes: dict[str, object], message: str
) -> None:
    edit(models[role] / "config.json", **changes)
    refused(models, tmp_path).match(message)


def test_both_layouts_of_rope_settings_are_the_same() -> None:
    scaling = {"factor": 8.0, "original_max_position_embeddings": 8192}
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **scaling}}
    assert rope_settings(old) == rope_settings(
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **scaling}}
    )
    assert rope_settings({"rope_theta": 1e4, "rope_scaling": None}) == rope_settings({})


def test_other_tensors_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    tensors = weights(models["minus"])
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    tensors["extra.weight"] = tensors.pop("lm_head.weight")
    rewrite(models["minus"], tensors)
    error = refused(models, tmp_path)
    error.match("tensors lm_head.weight are in .*target but not in .*minus; give models of one base")
    error.match("tensors extra.weight are in .*minus but not in .*target")
    error.match(r"model.norm.weight has shape \[64\] in .*target but \[63\] in .*minus")
    assert isinstance(error.value, UserError)


def test_quantized_tensors_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    rewrite(models["plus"], {name: tensor.to(torch.int8) for name, tensor in weights(models["plus"]).items()})
    refused(models, tmp_path).match("in .*plus is I8; one of F64, F32, F16, BF16; give the unquantized model")


def test_other_tokenizers_are_refused_and_other_templates_are_not(models: dict[str, Path], tmp_path: Path) -> None:
    file = models["plus"] / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    (models["plus"] / "tokenizer_config.json").write_text('{"chat_template": "other"}')
    content["model"]["merges"] = [" ".join(p) if isinstance(p, list) else p for p in content["model"]["merges"]]
    content["post_processor"] = None
    file.write_text(json.dumps(content))
    plan_merge(settings(models))
    content["model"]["merges"].append("a b")
    content["added_tokens"][0]["id"] += 1
    file.write_text(json.dumps(content))
    error = refused(models, tmp_path)
    error.match("the merges of tokenizer.json differs in .*target and .*plus; give models of one tokenizer")
    error.match("the added token .* has id 256 in .*target but 257 in .*plus")
    file.write_text("[]")
    refused(models, tmp_path).match("tokenizer.json is no tokenizer file: .*; copy it again")


def test_tokenizers_that_cannot_be_compared_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    (models["plus"] / "tokenizer.json").unlink()
    (models["plus"] / "tokenizer.model").unlink()
    refused(models, tmp_path).match("tokenizers of .*target and .*plus cannot be compared: .*; add the one")


def test_layers_that_do_not_exist_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    factors = [LayerFactor(1, 5, 0.5)]
    refused(models, tmp_path, layers=factors).match("layers 1 to 5 have a factor; .*target has the layers 0 to 1; mend")


def test_a_full_disk_is_noticed_first(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: usage(10**8))
    refused(models, tmp_path).match(r"has 0.10 GB free; the merge writes 0.10 GB; free some or give an output_dir")


def test_every_problem_of_the_settings_is_named_at_once(models: dict[str, Path]) -> None:
    keys = {role: str(path) for role, path in models.items()} | {
        "minus": "nowhere",
        "scale": float("inf"),
        "density": 0.0,
        "drop_rate": 1.0,
        "combine": "mean",
        "vocabulary": "any",
        "chat_from": "minus",
        "layers": [
            {"first": 2, "last": 1, "factor": 1.0},
            {"first": 0, "last": 3, "factor": 1.0},
            {"first": 3, "last": 4, "factor": 1.0},
        ],
        "further": [{"plus": "away", "minus": str(models["minus"]), "mlp_scale": float("nan")}],
    }
    found = "\n".join(problems(OmegaConf.merge(OmegaConf.structured(MergeConfig), keys)))
    for text in (
        "minus: nowhere does not exist",
        "scale: inf is no finite number; set one",
        "density: 0.0 is outside (0, 1]",
        "drop_rate: 1.0 is outside [0, 1)",
        "combine: 'mean' is not known; one of sum, ties",
        "vocabulary: 'any' is not known; one of same, keep_target_rows, by_token, exclude_embeddings",
        "chat_from: 'minus' is not known",
        "layers[0]: first 2 and last 1 are no range",
        "layers[2]: layer 3 is in layers[1] too; a layer has one factor; part the ranges",
        "further[0].plus: away does not exist",
        "further[0].mlp_scale: nan is no finite number",
    ):
        assert text in found


def test_a_model_of_70b_is_planned_from_its_headers(tmp_path: Path, models: dict[str, Path]) -> None:
    """Sparse files with the headers of 80 layers; no tensor is read, and little memory is planned."""
    hidden, wide, vocabulary, count = 8192, 28672, 128256, 80
    shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (1024, hidden), "mlp.up_proj": (wide, hidden)}
    shapes |= {
        "self_attn.v_proj": (1024, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden),
    }
    shapes |= {"mlp.down_proj": (hidden, wide)}
    tensors = {f"model.layers.{n}.{name}.weight": shape for n in range(count) for name, shape in shapes.items()}
    tensors |= {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    header, offset = {}, 0
    for name, shape in tensors.items():
        end = offset + 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    for folder in models.values():
        with (folder / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + offset)
    planned = plan_merge(settings(models))
    assert planned.output_bytes > 137e9
    assert len(planned.shards) > 20
    assert planned.peak_bytes(64) < 6e9
    assert planned.peak_bytes(8) < 2.5e9
