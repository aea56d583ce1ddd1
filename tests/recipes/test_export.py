"""A run becomes a directory that transformers loads, with the run's weights to the bit; and the refusals."""

import json
import re
import shutil
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from data_prep.dialogue.chat_template import LLAMA3, ChatTemplate
from data_prep.lineage import sha256_file
from data_prep.tokens.tokenizer import load_tokenizer
from recipes import export
from recipes.training.loop import open_weights
from recipes.training.model import weights
from recipes.training.model.decoder import Architecture, build_model
from tests.recipes.conftest import write_cpt_config
from tests.support import VOCAB, run_here, tiny_llama, tune_run, write_run

MESSAGES = [{"role": "system", "content": "짧게."}, {"role": "user", "content": "What is 3 plus one?"}]
OWN = "{% for m in messages %}{{ m.content ~ '<|eot_id|>' }}{% endfor %}"
SCALED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, base, shards):
    """A CPT run on two ranks; tests only read it."""
    folder = tmp_path_factory.mktemp("cpt")
    tune_run(2, "cpt", write_cpt_config(folder, base, shards), "micro_batch=1")
    return folder / "run"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "export.yaml"
    path.write_text("dtype: fp32\ngate: weights\n")  # the other has tests of its own
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory, config, run):
    """The documented command with Llama-3's template in fp32; tests only read the directory."""
    folder = tmp_path_factory.mktemp("models") / "exported"
    result = tune_run(
        1, "export", config, f"run={run}", f"output_dir={folder}", "chat_template=llama3", "gate=transformers"
    )
    assert f"{folder}: F32 weights of step-00000006, read back bit for bit" in result.stdout
    return folder


@pytest.fixture
def export_here(config, tmp_path):
    """Exports into `tmp_path/out` in this process; returns the directory, or the message of the refusal."""

    def run(run, *overrides, code=0):
        folder = tmp_path / "out"
        result = run_here(export.main, config, f"run={run}", f"output_dir={folder}", *overrides)
        assert result.returncode == code, result
        return folder if code == 0 else result.stderr

    return run


def checkpoint_model(run, step, architecture):
    """Returns our model with all tensors of a checkpoint, loaded in one go."""
    model = build_model(architecture)
    state = {"model": model.state_dict()}
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that one process reads alone
        dcp.load(state, checkpoint_id=str(run / "checkpoints" / f"step-{step:08d}"), no_dist=True)
    return model.eval()


def logits_of(model):
    ids = torch.randint(0, VOCAB, (2, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model(ids)
    return out if isinstance(out, torch.Tensor) else out.logits


def json_of(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_transformers_computes_the_logits_of_the_checkpoint(run, exported, base):
    theirs, loading = LlamaForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert theirs.dtype == torch.float32
    ours = checkpoint_model(run, 6, open_weights(str(base))[1])
    torch.testing.assert_close(logits_of(ours), logits_of(theirs), atol=1e-4, rtol=0)
    before = logits_of(LlamaForCausalLM.from_pretrained(base))
    assert (logits_of(theirs) - before).abs().max() > 0.01, "training moved nothing"


@pytest.mark.parametrize(
    "changes", [{"tie_word_embeddings": True}, {"rope_scaling": SCALED}], ids=["llama3.2", "llama3.1"]
)
def test_tied_embeddings_and_scaled_positions_survive(tmp_path, base, export_here, changes):
    source = tiny_llama(tmp_path / "source", seed=4, **changes)
    directory, architecture = open_weights(str(source))
    model = build_model(architecture)
    weights.load(model, directory, architecture)
    run = write_run(tmp_path / "run", dict(model.named_parameters()), weights=str(source))
    folder = export_here(run, f"tokenizer={base}")
    theirs = LlamaForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits_of(theirs), logits_of(LlamaForCausalLM.from_pretrained(source)), atol=0, rtol=0)
    assert open_weights(str(folder))[1] == architecture


def test_the_tokenizer_loads_in_transformers_and_chats_as_ours(exported, base):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    ours = load_tokenizer(exported)
    text = "한강은 흐른다. The river flows."
    assert tokenizer.encode(text, add_special_tokens=False) == ours.encode(text) == load_tokenizer(base).encode(text)
    theirs = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert theirs == ChatTemplate.from_directory(ours, exported).prompt(MESSAGES)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert sha256_file(exported / name) == sha256_file(base / name)
    assert sha256_file(exported / "original/tokenizer.model") == sha256_file(base / "tokenizer.model")
    assert not (exported / "tokenizer.model").exists()  # llama.cpp's converter would take it for sentencepiece's


def test_the_chat_template_adds_the_end_of_turn_to_what_ends_an_answer(exported):
    tokenizer = load_tokenizer(exported)
    ends = [tokenizer.special_tokens["<|end_of_text|>"], tokenizer.special_tokens["<|eot_id|>"]]
    assert (exported / "chat_template.jinja").read_text(encoding="utf-8") == LLAMA3
    for name in ("config.json", "generation_config.json"):
        assert json_of(exported, name)["eos_token_id"] == ends
        assert json_of(exported, name)["bos_token_id"] == tokenizer.bos_id
    assert LlamaForCausalLM.from_pretrained(exported).generation_config.eos_token_id == ends


def test_keep_gives_a_base_no_template_and_one_end(run, export_here):
    folder = export_here(run)
    assert not (folder / "chat_template.jinja").exists()
    assert AutoTokenizer.from_pretrained(folder).chat_template is None
    end = load_tokenizer(folder).special_tokens["<|end_of_text|>"]
    assert {json_of(folder, name)["eos_token_id"] for name in ("config.json", "generation_config.json")} == {end}


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_keep_keeps_the_template_wherever_it_stands(tmp_path, run, base, export_here, place):
    tokenizer = shutil.copytree(base, tmp_path / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
    if place.endswith(".jinja"):
        (tokenizer / place).write_text(OWN)
    else:
        settings = json_of(tokenizer, place) | {"chat_template": OWN}
        (tokenizer / place).write_text(json.dumps(settings))
    folder = export_here(run, f"tokenizer={tokenizer}")
    assert AutoTokenizer.from_pretrained(folder).chat_template == OWN
    special = load_tokenizer(folder).special_tokens
    ends = [special["<|end_of_text|>"], special["<|eot_id|>"]]
    assert json_of(folder, "config.json")["eos_token_id"] == ends


def test_bf16_is_fp32_rounded_once(run, exported, export_here):
    rounded = load_file(export_here(run, "dtype=bf16") / "model.safetensors")
    whole = load_file(exported / "model.safetensors")
    assert rounded.keys() == whole.keys()
    assert all(torch.equal(tensor.bfloat16(), rounded[name]) for name, tensor in whole.items())
    assert all(tensor.dtype == torch.bfloat16 for tensor in rounded.values())


def test_the_export_of_two_ranks_equals_the_checkpoint_of_one(tmp_path, base, shards, exported):
    tune_run(1, "cpt", write_cpt_config(tmp_path, base, shards))
    architecture = open_weights(str(base))[1]
    alone = checkpoint_model(tmp_path / "run", 6, architecture)
    model = build_model(architecture)
    weights.load(model, *open_weights(str(exported)))
    for (name, one), two in zip(alone.named_parameters(), model.parameters(), strict=True):
        # AdamW makes a whole step of 1e-3 of a gradient that is nothing but rounding
        torch.testing.assert_close(two, one, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_the_manifest_is_the_last_file_and_holds_the_hashes_of_all_others(run, exported, base):
    manifest = json_of(exported, "manifest.json")
    files = {str(path.relative_to(exported)): path for path in exported.rglob("*")}
    files = {name: path for name, path in files.items() if path.is_file() and name != "manifest.json"}
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == {
        name: sha256_file(path) for name, path in files.items()
    }
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= files.keys()
    assert (exported / "manifest.json").stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in files.values())
    state = run / "checkpoints/step-00000006/state.json"
    assert manifest["inputs"]["checkpoint"] == {"path": str(state), "sha256": sha256_file(state)}
    assert manifest["inputs"]["weights"]["path"] == str(base)
    assert (manifest["kind"], manifest["step"], manifest["ledger"]["tokens"]) == ("model", 6, 6 * 512)


def test_a_second_export_leaves_nothing_of_the_first(run, export_here):
    first = export_here(run, "chat_template=llama3")
    (first / "model.safetensors.index.json").write_text("{}")
    folder = export_here(run)
    assert not (folder / "chat_template.jinja").exists()
    assert isinstance(json_of(folder, "config.json")["eos_token_id"], int)
    LlamaForCausalLM.from_pretrained(folder)
    assert not list(folder.parent.glob("*.tmp"))


def test_an_export_that_fails_leaves_the_former_one_whole(tmp_path, run, export_here):
    folder = export_here(run, "chat_template=llama3")
    before = sha256_file(folder / "manifest.json")
    damaged = shutil.copytree(run, tmp_path / "damaged")
    for part in (damaged / "checkpoints/step-00000006").glob("*.distcp"):
        part.unlink()
    told = export_here(damaged, code=1)
    assert re.search(r"step-00000006 is damaged: .*distcp.*; the files of state.json are expected; restore them", told)
    assert sha256_file(folder / "manifest.json") == before
    assert (folder / "chat_template.jinja").is_file()


def test_a_folder_that_is_no_export_is_left_alone(tmp_path, run, base, export_here):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.txt").write_text("x")
    for manifest in (None, '{"kind": "shards"}', "{"):
        if manifest:
            (folder / "manifest.json").write_text(manifest)
        message = export_here(run, code=2)
        assert f"output_dir: {folder} holds files that are no export; give an empty or absent folder" in message
    assert (folder / "thesis.txt").is_file()
    assert f"output_dir: {base} holds files that are no export" in export_here(run, f"output_dir={base}", code=2)


def test_an_export_does_not_replace_the_weights_it_came_from(tmp_path, run, export_here):
    folder = export_here(run)
    second = shutil.copytree(run, tmp_path / "second")
    settings = yaml.safe_load((second / "config.yaml").read_text())
    (second / "config.yaml").write_text(yaml.safe_dump(settings | {"weights": str(folder)}))
    assert f"{folder} is the export's own input; give a folder of its own" in export_here(second, code=2)


def test_the_newest_checkpoint_that_is_complete_is_taken(tmp_path, run, exported, export_here):
    other = shutil.copytree(run, tmp_path / "run")
    (other / "checkpoints/step-00000006/state.json").write_text('{"step": 6, "led')
    shutil.copytree(run / "checkpoints/step-00000006", other / "checkpoints/step-00000009.tmp")
    folder = export_here(other)
    assert json_of(folder, "manifest.json")["step"] == 3
    theirs = LlamaForCausalLM.from_pretrained(folder)
    ours = checkpoint_model(run, 3, open_weights(str(exported))[1])
    torch.testing.assert_close(logits_of(ours), logits_of(theirs), atol=1e-4, rtol=0)


def test_a_run_without_a_complete_checkpoint_is_refused(tmp_path, run, export_here):
    other = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("state.json"))
    text = "holds no complete checkpoint; give the output_dir of a training run"
    for folder in (other, tmp_path):
        assert f"error: {folder}: 1 problem(s)\n  - {text}" in export_here(folder, code=2)
    shutil.copytree(run / "checkpoints", other / "checkpoints", dirs_exist_ok=True)
    (other / "config.yaml").unlink()
    assert "has no config.yaml; the run folder of" in export_here(other, code=2)
    assert not (tmp_path / "out").exists()


def test_a_run_from_a_new_models_shape_needs_a_tokenizer(tmp_path, base, export_here):
    shape = {"vocab_size": VOCAB, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "embed_dim": 32}
    shape |= {"intermediate_dim": 64, "max_seq_len": 128}
    architecture = Architecture(**shape)
    model = build_model(architecture)
    weights.initialise(model, 0)
    run = write_run(tmp_path / "run", dict(model.named_parameters()), model=shape)
    assert "started from no weights; name the tokenizer's directory as tokenizer=..." in export_here(run, code=2)
    assert not (tmp_path / "out").exists()
    folder = export_here(run, f"tokenizer={base}", "chat_template=llama3")
    torch.testing.assert_close(logits_of(LlamaForCausalLM.from_pretrained(folder)), logits_of(model), atol=1e-4, rtol=0)
    assert json_of(folder, "manifest.json")["inputs"].keys() == {"checkpoint"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dtype=fp8"], "dtype: 'fp8' is not known; one of bf16, fp32"),
        (["chat_template=vicuna"], "chat_template: 'vicuna' is not known; one of weights, weights:NAME, llama3"),
        (["tokenizer=/does/not/exist"], "tokenizer: /does/not/exist does not exist; give an existing path"),
        (["run=/does/not/exist"], "run: /does/not/exist does not exist; give an existing path as run=..."),
    ],
)
def test_bad_settings_are_refused_by_name(run, export_here, overrides, message):
    assert message in export_here(run, *overrides, code=2)


def test_a_tokenizer_that_is_none_is_refused(tmp_path, run, export_here):
    (tmp_path / "empty").mkdir()
    message = export_here(run, f"tokenizer={tmp_path / 'empty'}", code=1)
    assert f"{tmp_path / 'empty'} holds no tokenizer; one of tokenizer.json, tokenizer.model," in message


def test_a_tensor_that_reads_back_otherwise_is_an_error(run, export_here, monkeypatch):
    def forgetful(parameters, directory, architecture):
        weights_fill(parameters, directory, architecture)
        for name, parameter in parameters.items():
            if name == "norm.scale":
                parameter.data[0] += 1

    weights_fill = weights.fill
    monkeypatch.setattr(weights, "fill", forgetful)
    assert "tensor norm.scale read back differs from the checkpoint; export again" in export_here(run, code=2)
