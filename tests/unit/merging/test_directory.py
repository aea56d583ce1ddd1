"""Merged model directories: the laws on whole models, and what is written beside the weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from configs.loader import ConfigError
from data_prep.hf_directory import ModelDirectory
from data_prep.lineage import ROOT, sha256_file
from recipes.merging import blocks, plan
from recipes.merging.chat_files import end_token_ids, has_chat_template
from recipes.merging.directory import is_merged
from recipes.merging.errors import MergeError
from recipes.merging.in_memory import merged_tensors
from recipes.merging.plan import plan_merge
from recipes.merging.settings import LayerFactor, VectorConfig
from tests.unit.merging.small_models import FILE, edit, rewrite, run, same_bits, settings, weights


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No size of a tensor is a multiple of a block's or a cache's."""
    monkeypatch.setattr(plan, "BLOCK_ELEMENTS", 3000)
    monkeypatch.setattr(blocks, "CACHED_ELEMENTS", 1000)


def test_equal_plus_and_minus_give_the_target_bit_for_bit(originals: dict[str, Path], tmp_path: Path) -> None:
    merged = run(tmp_path / "out", originals | {"minus": originals["plus"]})
    assert same_bits(merged, weights(originals["target"]))


def test_the_base_as_target_becomes_the_instruct_model(originals: dict[str, Path], tmp_path: Path) -> None:
    merged = run(tmp_path / "out", originals | {"target": originals["minus"]})
    assert same_bits(merged, weights(originals["plus"]))


def test_scale_zero_gives_the_target_bit_for_bit(originals: dict[str, Path], tmp_path: Path) -> None:
    assert same_bits(run(tmp_path / "out", originals, scale=0.0), weights(originals["target"]))


@pytest.mark.usefixtures("small_blocks")
def test_every_tensor_is_the_reference_and_its_norms_are_recorded(originals: dict[str, Path], tmp_path: Path) -> None:
    keys = {"scale": 0.7, "embeddings_scale": 0.25, "head_scale": 0.1, "norms_scale": 0.0, "mlp_scale": 2.0}
    merged = run(tmp_path / "out", originals, layers=[LayerFactor(1, 1, 0.5)], **keys)
    t, p, m = (weights(originals[role]) for role in ("target", "plus", "minus"))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    kinds = {"embed_tokens": 0.25, "lm_head": 0.1, "norm.weight": 0.0, ".mlp.": 2.0, "self_attn": 0.7}
    for name in t:
        scale = next(value for part, value in kinds.items() if part in name) * (0.5 if ".layers.1." in name else 1.0)
        assert torch.equal(merged[name], (t[name].float() + scale * (p[name].float() - m[name].float())).bfloat16())
        norms = manifest["norms"]["tensors"][name]
        assert norms["scale"] == [scale]
        difference = (p[name].double() - m[name].double()).norm().item()
        assert norms["difference"] == [pytest.approx(difference, rel=1e-5)]
        assert norms["change"] == pytest.approx(scale * difference, rel=1e-5)
        assert norms["target"] == pytest.approx(t[name].double().norm().item(), rel=1e-5)
    everything = torch.cat([tensor.double().flatten() for tensor in t.values()])
    assert manifest["norms"]["all"]["target"] == pytest.approx(everything.norm().item(), rel=1e-5)


def test_two_vectors_are_their_sum_rounded_once(originals: dict[str, Path], tmp_path: Path) -> None:
    again = VectorConfig(str(originals["target"]), str(originals["minus"]), scale=0.5)
    merged = run(tmp_path / "out", originals, scale=0.25, further=[again])
    t, p, m = (weights(originals[role]) for role in ("target", "plus", "minus"))
    for name in t:
        change = 0.25 * (p[name].float() - m[name].float()) + 0.5 * (t[name].float() - m[name].float())
        assert torch.equal(merged[name], (t[name].float() + change).bfloat16())
    opposite = VectorConfig(str(originals["minus"]), str(originals["plus"]))
    assert same_bits(run(tmp_path / "none", originals, further=[opposite]), t)


@pytest.mark.usefixtures("small_blocks")
def test_number_of_workers_sharding_and_memory_do_not_matter(models: dict[str, Path], tmp_path: Path) -> None:
    keys = {"density": 0.4, "drop_rate": 0.3, "seed": 5}
    whole = run(tmp_path / "whole", models, **keys)
    with merged_tensors(plan_merge(settings(models, **keys))) as read:
        assert same_bits({name: read(name) for name in whole}, whole)
    tensors = weights(models["plus"])
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, models["plus"] / part)
    (models["plus"] / FILE).unlink()
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    (models["plus"] / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = run(tmp_path / "sharded", models, workers=4, shard_bytes=100_000, **keys)
    assert len(list((tmp_path / "sharded").glob("model-*"))) > 2
    assert same_bits(whole, sharded)
    norms = [json.loads((tmp_path / one / "norms.json").read_text()) for one in ("whole", "sharded")]
    assert norms[0] == norms[1]


def test_the_directory_loads_and_carries_what_it_needs_to_chat(originals: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, originals)
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [300, 301]
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [300, 301], "temperature": 0.6}
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (originals["plus"] / name).read_bytes()
    assert has_chat_template(out)
    assert not has_chat_template(originals["target"])
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["inputs"]) == {"target", "plus", "minus"}
    assert manifest["inputs"]["plus"]["files"][FILE] == sha256_file(originals["plus"] / FILE)
    assert set(manifest["files"]) == {p.name for p in out.iterdir()} - {"manifest.json"}
    for name, facts in manifest["files"].items():
        assert facts == {"bytes": (out / name).stat().st_size, "sha256": sha256_file(out / name)}
    model = LlamaForCausalLM.from_pretrained(out)
    assert model.generation_config.eos_token_id == [300, 301]
    assert not list(tmp_path.glob("*.tmp"))


def test_the_special_tokens_rows_are_reported(originals: dict[str, Path], tmp_path: Path) -> None:
    merged = run(tmp_path / "out", originals)
    rows = json.loads((tmp_path / "out" / "norms.json").read_text())["special_rows"]
    assert len(rows) == 2 * 256
    row = next(one for one in rows if one["token"] == "<|eot_id|>" and one["tensor"] == "lm_head.weight")
    p, m = (weights(originals[role])["lm_head.weight"].double() for role in ("plus", "minus"))
    assert row["difference"] == [pytest.approx((p[row["id"]] - m[row["id"]]).norm().item())]
    assert row["merged"] == pytest.approx(merged["lm_head.weight"][row["id"]].double().norm().item())


def test_the_card_names_models_hashes_and_method(models: dict[str, Path], tmp_path: Path) -> None:
    (models["plus"] / "LICENSE").write_text("terms")
    run(tmp_path / "out", models, scale=0.5, drop_rate=0.1)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for role, entry in manifest["inputs"].items():
        assert f"| {role} | `{models[role]}` | `{entry['sha256'][:16]}` |" in card
    for part in ("arXiv 2310.04799", "arXiv 2311.03099", "`scale` 0.5", "`drop_rate` 0.1", "| lm_head.weight |"):
        assert part in card
    assert "Built with" not in card
    assert not (tmp_path / "out" / "NOTICE").exists()
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"
    for role in models:  # the vocabulary's size is in the configuration alone here
        edit(models[role] / "config.json", vocab_size=128256)
    run(tmp_path / "llama3", models)
    assert "Built with Meta Llama 3\n" in (tmp_path / "llama3" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "llama3" / "NOTICE").read_text(encoding="utf-8").startswith("Meta Llama 3 is licensed under")


def test_the_end_tokens_are_those_of_both_files(models: dict[str, Path]) -> None:
    (models["plus"] / "generation_config.json").unlink()
    assert end_token_ids(ModelDirectory.open(models["plus"])) == [301]
    (models["plus"] / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert end_token_ids(ModelDirectory.open(models["plus"])) == [9, 301]
    edit(models["plus"] / "config.json", eos_token_id=None)
    (models["plus"] / "generation_config.json").write_text("{}")
    with pytest.raises(MergeError, match=r"has no eos_token_id .*; one is needed to end an answer; add it there"):
        end_token_ids(ModelDirectory.open(models["plus"]))


def test_a_finished_merge_is_recognised_and_another_one_refused(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = plan_merge(settings(models))
    assert not is_merged(out, asked)
    run(out, models)
    assert is_merged(out, asked)
    with pytest.raises(MergeError, match=r"holds another merge \(vectors .*1.0.* there, .*0.5.* here\); give an empty"):
        is_merged(out, plan_merge(settings(models, scale=0.5)))
    edit(models["plus"] / "config.json", note="changed")
    with pytest.raises(MergeError, match=r"holds another merge \(plus \w+ there, \w+ here\)"):
        is_merged(out, asked)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("x")
    with pytest.raises(MergeError, match="exists and holds no manifest"):
        is_merged(tmp_path / "other", asked)
    with pytest.raises(MergeError, match=r"output_dir .* overlaps plus"):
        is_merged(models["plus"], asked)
    (out / "manifest.json").write_text("{")
    with pytest.raises(MergeError, match="is no JSON"):
        is_merged(out, asked)


def test_a_value_that_is_not_finite_ends_the_merge(models: dict[str, Path], tmp_path: Path) -> None:
    tensors = weights(models["plus"])
    tensors["model.norm.weight"][3] = float("nan")
    rewrite(models["plus"], tensors)
    with pytest.raises(MergeError, match=r"model.norm.weight of .* not finite in BF16; finite ones are needed; check"):
        run(tmp_path / "out", models)
    assert not (tmp_path / "out").exists()


def test_a_damaged_directory_is_a_configuration_error(models: dict[str, Path], tmp_path: Path) -> None:
    file = models["minus"] / FILE
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="copy it again"):
        run(tmp_path / "out", models)


MEMORY = """
import pathlib, sys
from recipes.merging.directory import merge
from recipes.merging.plan import plan_merge
from recipes.merging.settings import MergeConfig

def anonymous():
    return int(pathlib.Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1e3

used = []
plan = plan_merge(MergeConfig(**dict(zip(("target", "plus", "minus"), sys.argv[2:]))))
merge(pathlib.Path(sys.argv[1]), plan, 2, lambda n: used.append(anonymous()))
print(plan.peak_bytes(2) / 1e6, *used)
"""


def test_memory_holds_a_few_blocks_not_a_model(tmp_path: Path) -> None:
    """Merges 3 x 128 MB in two tensors of 64 MB; memory that is not file cache grows by less than one of them."""
    paths = [tmp_path / role for role in ("target", "plus", "minus")]
    for path in paths:
        path.mkdir()
        save_file({f"layer.{n}.weight": torch.zeros(4096, 8192, dtype=torch.bfloat16) for n in range(2)}, path / FILE)
        (path / "config.json").write_text('{"eos_token_id": 1}')
        (path / "tokenizer.model").write_bytes(b"x")
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "out"), *map(str, paths)],
        cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    planned, *used = (float(megabytes) for megabytes in result.stdout.split())
    assert max(used) - used[0] < 60, used
    assert max(used) < planned
