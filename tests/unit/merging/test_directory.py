"""Merged model directories: the laws on whole models, what is written, and what is refused."""

import collections
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import recipes.merging.directory as directory
from configs.loader import ConfigError, UserError
from data_prep.hf_directory import ModelDirectory, read_header
from data_prep.lineage import ROOT, sha256_file
from recipes.merging import tensors
from recipes.merging.compatibility import MergeError, rope_settings
from recipes.merging.directory import ChatVector, end_token_ids, is_merged, merge
from tests.support import tiny_llama, tiny_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three bf16 models of one base, in one file each; `plus` as Meta's instruct models are laid out."""
    root = tmp_path_factory.mktemp("models")
    found = {}
    for seed, role in enumerate(("minus", "plus", "target")):
        found[role] = tiny_llama(tiny_tokenizer(root / role), seed=seed, dtype="bfloat16")
        weights = {name: tensor.bfloat16() for name, tensor in load_file(found[role] / "model.safetensors").items()}
        save_file(weights, found[role] / "model.safetensors", metadata={"format": "pt"})
    edit(found["plus"] / "config.json", eos_token_id=301)
    (found["plus"] / "generation_config.json").write_text('{"eos_token_id": [300, 301], "temperature": 0.6}')
    (found["plus"] / "chat_template.jinja").write_text("{{ messages }}")
    return found


@pytest.fixture
def models(originals: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies that a test may spoil."""
    return {role: Path(shutil.copytree(path, tmp_path / role)) for role, path in originals.items()}


def edit(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def run(folder: Path, models: dict[str, Path], **scales: float) -> dict[str, torch.Tensor]:
    merge(folder, ChatVector(**models, **scales), CPU, lambda written, count: None)
    return load_file(folder / "model.safetensors")


def refused(models: dict[str, Path], tmp_path: Path) -> pytest.ExceptionInfo[MergeError]:
    with pytest.raises(MergeError) as error:
        run(tmp_path / "out", models)
    assert not (tmp_path / "out").exists()
    return error


def test_equal_plus_and_minus_give_the_target_bit_for_bit(originals: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "same").mkdir()
    models = originals | {"minus": originals["plus"]}
    run(tmp_path / "out", models)
    names = ["model.safetensors"]
    hashes = [
        [entry.name for entry in read_header(folder / names[0])] for folder in (tmp_path / "out", models["target"])
    ]
    assert sorted(hashes[0]) == sorted(hashes[1])
    merged, target = (load_file(folder / names[0]) for folder in (tmp_path / "out", models["target"]))
    assert all(torch.equal(merged[name].view(torch.int16), target[name].view(torch.int16)) for name in target)


def test_the_base_as_target_becomes_the_instruct_model(originals: dict[str, Path], tmp_path: Path) -> None:
    merged = run(tmp_path / "out", originals | {"target": originals["minus"]})
    plus = load_file(originals["plus"] / "model.safetensors")
    assert all(torch.equal(merged[name].view(torch.int16), plus[name].view(torch.int16)) for name in plus)


def test_every_tensor_is_the_reference_and_its_norms_are_recorded(
    originals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "CHUNK_ELEMENTS", 1000)  # no size of a tensor is a multiple of it
    merged = run(tmp_path / "out", originals, scale=0.7, embeddings_scale=0.25)
    t, p, m = (load_file(originals[role] / "model.safetensors") for role in ("target", "plus", "minus"))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    for name in t:
        scale = 0.25 if "embed_tokens" in name or "lm_head" in name else 0.7
        assert torch.equal(merged[name], (t[name].float() + scale * (p[name].float() - m[name].float())).bfloat16())
        norms = manifest["norms"]["tensors"][name]
        assert norms["scale"] == scale
        assert norms["difference"] == pytest.approx((p[name].double() - m[name].double()).norm().item())
        assert norms["target"] == pytest.approx(t[name].double().norm().item())
    everything = torch.cat([tensor.double().flatten() for tensor in t.values()])
    assert manifest["norms"]["all"]["target"] == pytest.approx(everything.norm().item())


def test_the_directory_loads_and_carries_what_it_needs_to_chat(originals: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, originals)
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [300, 301]
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [300, 301], "temperature": 0.6}
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (originals["plus"] / name).read_bytes()
    assert directory.has_chat_template(out)
    assert not directory.has_chat_template(originals["target"])
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["inputs"]) == {"target", "plus", "minus"}
    assert manifest["files"]["model.safetensors"]["sha256"] == sha256_file(out / "model.safetensors")
    model = LlamaForCausalLM.from_pretrained(out)
    assert model.generation_config.eos_token_id == [300, 301]
    assert not list(tmp_path.glob("*.tmp"))


def test_the_end_tokens_are_those_of_both_files(models: dict[str, Path]) -> None:
    (models["plus"] / "generation_config.json").unlink()
    assert end_token_ids(ModelDirectory.open(models["plus"])) == [301]
    (models["plus"] / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert end_token_ids(ModelDirectory.open(models["plus"])) == [9, 301]


def test_a_sharded_model_is_merged_like_a_single_file(models: dict[str, Path], tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", models)
    file = models["plus"] / "model.safetensors"
    weights = load_file(file)
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for part, held in parts.items():
        save_file({name: weights[name] for name in held}, models["plus"] / part)
    file.unlink()
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    (models["plus"] / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = run(tmp_path / "sharded", models)
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_a_finished_merge_is_recognised_and_another_one_refused(models: dict[str, Path], tmp_path: Path) -> None:
    out, vector = tmp_path / "out", ChatVector(**models)
    assert not is_merged(out, vector)
    run(out, models)
    assert is_merged(out, vector)
    with pytest.raises(MergeError, match=r"holds another merge \(scale 1.0 there, 0.5 here\); give an empty"):
        is_merged(out, ChatVector(**models, scale=0.5))
    edit(models["plus"] / "config.json", note="changed")
    with pytest.raises(MergeError, match=r"holds another merge \(plus \w+ there, \w+ here\)"):
        is_merged(out, vector)
    with pytest.raises(MergeError, match="exists and holds no manifest"):
        is_merged(tmp_path, ChatVector(Path("/a"), Path("/b"), Path("/c")))
    with pytest.raises(MergeError, match=r"output_dir .* overlaps plus"):
        is_merged(models["plus"], vector)
    (out / "manifest.json").write_text("{")
    with pytest.raises(MergeError, match="is no JSON"):
        is_merged(out, vector)


def test_a_killed_merge_starts_again(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "model-00001-of-00009.safetensors.tmp").write_text("half")
    run(tmp_path / "out", models)
    assert not list((tmp_path / "out").glob("*-of-*"))
    assert not (tmp_path / "out.tmp").exists()


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
    file = models["minus"] / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()
    weights["extra.weight"] = weights.pop("lm_head.weight")
    save_file(weights, file)
    error = refused(models, tmp_path)
    error.match("tensors lm_head.weight are in .*target but not in .*minus; give models of one base")
    error.match("tensors extra.weight are in .*minus but not in .*target")
    error.match(r"model.norm.weight has shape \[64\] in .*target but \[63\] in .*minus")
    assert isinstance(error.value, UserError)


def test_quantized_tensors_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    file = models["plus"] / "model.safetensors"
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(file).items()}, file)
    refused(models, tmp_path).match("in .*plus is I8; one of F64, F32, F16, BF16; give the unquantized model")


def test_other_tokenizers_are_refused_and_other_templates_are_not(models: dict[str, Path], tmp_path: Path) -> None:
    file = models["plus"] / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    (models["plus"] / "tokenizer_config.json").write_text('{"chat_template": "other"}')
    content["model"]["merges"] = [" ".join(p) if isinstance(p, list) else p for p in content["model"]["merges"]]
    content["post_processor"] = None
    file.write_text(json.dumps(content))
    run(tmp_path / "fine", models)
    content["model"]["merges"].append("a b")
    content["added_tokens"][0]["id"] += 1
    file.write_text(json.dumps(content))
    error = refused(models, tmp_path)
    error.match("the merges of tokenizer.json differs in .*target and .*plus; give models of one tokenizer")
    error.match(r"the added token .* has id \d+ in .*target but \d+ in .*plus")
    file.write_text("[]")
    with pytest.raises(MergeError, match=r"tokenizer.json is no tokenizer file: .*copy it again"):
        run(tmp_path / "out", models)


def test_tokenizers_without_tokenizer_json_are_compared_by_their_model(models: dict[str, Path], tmp_path: Path) -> None:
    for path in models.values():
        (path / "tokenizer.json").unlink()
        (path / "tokenizer.model").write_bytes(b"pieces")
    run(tmp_path / "fine", models)
    (models["minus"] / "tokenizer.model").write_bytes(b"others")
    refused(models, tmp_path).match("tokenizer.model differs in .*target and .*minus")
    (models["minus"] / "tokenizer.model").unlink()
    refused(models, tmp_path).match("the tokenizers of .*target and .*minus cannot be compared")


def test_a_model_that_would_never_stop_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    (models["plus"] / "generation_config.json").unlink()
    edit(models["plus"] / "config.json", eos_token_id=None)
    refused(models, tmp_path).match("plus has no eos_token_id in config.json or generation_config.json")
    (models["plus"] / "generation_config.json").write_text("{")
    refused(models, tmp_path).match("generation_config.json holds no JSON object")


def test_values_that_are_not_finite_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    file = models["plus"] / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, file)
    refused(models, tmp_path).match("model.norm.weight of .* has values that are not finite in BF16")


def test_a_full_disk_is_found_before_anything_is_written(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(directory.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    refused(models, tmp_path).match(r"has 0.00 GB free; merging .*target needs 0.10 GB; free some")
    assert not (tmp_path / "out.tmp").exists()


def test_a_damaged_directory_is_a_configuration_error(models: dict[str, Path], tmp_path: Path) -> None:
    file = models["minus"] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="copy it again"):
        run(tmp_path / "out", models)


def test_memory_holds_a_few_tensors_not_a_model(tmp_path: Path) -> None:
    """Merges 3 x 200 MB in 24 tensors of 8 MB; memory that is not file cache does not grow with them."""
    shape, count = (2048, 2048), 24
    paths = {role: tmp_path / role for role in ("target", "plus", "minus")}
    for path in paths.values():
        path.mkdir()
        weights = {f"layer.{n}.weight": torch.zeros(shape, dtype=torch.bfloat16) for n in range(count)}
        save_file(weights, path / "model.safetensors")
        (path / "config.json").write_text('{"eos_token_id": 1}')
        (path / "tokenizer.model").write_bytes(b"x")
    del weights
    program = (
        "import sys, torch, pathlib\n"
        "from recipes.merging.directory import ChatVector, merge\n"
        "a = [pathlib.Path(x) for x in sys.argv[1:]]\n"
        "def anonymous():\n"
        "    return int(pathlib.Path('/proc/self/status').read_text().split('RssAnon:')[1].split()[0]) / 1e3\n"
        "used = []\n"
        "merge(a[0], ChatVector(*a[1:]), torch.device('cpu'), lambda *_: used.append(anonymous()))\n"
        "print(*used)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out"), *map(str, paths.values())],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    used = [float(megabytes) for megabytes in result.stdout.split()]
    assert max(used) - used[0] < 80, used
