"""The road of an extended vocabulary: rows for new pieces, a warm-up of them alone, the whole model, export."""

import json
import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

import recipes.chat_vector
import recipes.cpt
import recipes.export
import recipes.extend
from data_prep.document import Document, as_row, write_jsonl
from data_prep.tokens import encode, extend_vocab
from data_prep.tokens.tokenizer import load_tokenizer
from recipes.training.model.freezing import EMBEDDINGS
from recipes.training.model.weights import hf_name
from tests.llama2 import llama2_json, llama2_sentencepiece
from tests.recipes.conftest import write_cpt_config
from tests.support import ROOT, VOCAB, losses, run_here, tiny_llama, tune_run
from tests.unit.data_prep.tokens.small_corpus import launch

CONFIG, EXPORT = ROOT / "configs/extend/llama2_ko_7b.yaml", ROOT / "configs/export/demo.yaml"
KOREAN = "서울은 대한민국의 수도이다. 한강은 서울을 가로질러 서해로 흐르고, 대한민국의 사람들이 그 강가에 산다. "
ENGLISH = "The river flows through the city and into the sea. People live there. "
MATRICES = {hf_name(name) for name in EMBEDDINGS}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    texts = [(KOREAN[start:] * 6, "ko") for start in range(20)] + [(ENGLISH[start:] * 6, "en") for start in range(5)]
    rows = (as_row(Document(str(n), text, "made", lang)) for n, (text, lang) in enumerate(texts))
    write_jsonl(folder / "documents-00000.jsonl.zst", rows)
    return folder


@pytest.fixture(scope="module")
def road(tmp_path_factory, base, documents):
    """Folder with the extended tokenizer, its shards, and the model with rows for it."""
    folder = tmp_path_factory.mktemp("road")
    options = ("--num-pieces", 24, "--out", folder / "tokenizer")
    launch(extend_vocab, "extend-vocab", "--tokenizer", base, "--documents", documents, *options)
    options = ("--tokenizer", folder / "tokenizer", "--out", folder / "tokens", "--workers", 1)
    launch(encode, "tokens", "--documents", documents, *options)
    result = extended(base, folder / "tokenizer", folder / "extended")
    assert result.returncode == 0, result.stderr
    return folder


def extended(weights, tokenizer, folder, *overrides):
    keys = [f"weights={weights}", f"tokenizer={tokenizer}", f"output_dir={folder}"]
    return run_here(recipes.extend.main, CONFIG, *keys, *overrides)


def trained(config, *overrides):
    result = run_here(recipes.cpt.main, config, *overrides)
    assert result.returncode == 0, result.stderr
    return config.parent / "run"


def exported(run, folder):
    result = run_here(recipes.export.main, EXPORT, f"run={run}", f"output_dir={folder}", "dtype=fp32")
    assert result.returncode == 0, result.stderr
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def warm(road):
    """A run that trains the embeddings alone, and its configuration."""
    config = write_cpt_config(road, road / "extended", road / "tokens")
    settings = {"trainable": "embeddings", "optimizer": {"lr": 1e-2}, "output_dir": str(road / "run")}
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | settings))
    return trained(config), config


def test_the_extended_model_is_one_that_transformers_loads(road, base):
    model, tokenizer = (kind.from_pretrained(road / "extended") for kind in (LlamaForCausalLM, AutoTokenizer))
    ours = load_tokenizer(road / "tokenizer")
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 576
    assert tokenizer(KOREAN, add_special_tokens=False).input_ids == ours.encode(KOREAN)
    assert max(ours.encode(KOREAN)) >= VOCAB
    manifest = json.loads((road / "extended/manifest.json").read_text())
    assert manifest["vocabulary"] == {"old": VOCAB, "new": 24, "rows": 576, "head": "mean"}
    assert manifest["kind"] == "extended model"
    again = extended(base, road / "tokenizer", road / "extended")  # its own earlier result may be replaced
    assert "512 tokens and 24 new ones" in again.stdout
    assert "576 rows, 40 of them padding" in again.stdout


def test_the_warm_up_moves_the_embeddings_and_leaves_the_layers_bit_for_bit(road, warm, tmp_path):
    run, _ = warm
    assert losses(run)[-1] < losses(run)[0] - 0.5
    old, new = load_file(road / "extended/model.safetensors"), exported(run, tmp_path / "model")
    assert new.keys() == old.keys()
    for name, tensor in old.items():
        moved = (new[name] != tensor).any(-1)
        assert bool(moved.any()) is (name in MATRICES), name
        if name in MATRICES:
            assert moved[VOCAB : VOCAB + 24].sum() > 12
    learnt = 2 * 576 * 64
    size = sum(path.stat().st_size for path in (run / "checkpoints/step-00000006").glob("*.distcp"))
    assert 0 < size - 3 * 4 * learnt < 30_000  # the weights that learn and two moments; the layers are 73,000 more


def test_a_resumed_warm_up_repeats_the_losses_bit_for_bit(road, warm, tmp_path):
    run, config = warm
    resumed = shutil.copytree(run, tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints/step-00000006")
    trained(config, f"output_dir={resumed}")
    assert losses(resumed) == losses(run)
    one, other = (exported(path, tmp_path / name) for path, name in ((run, "one"), (resumed, "other")))
    assert all(torch.equal(one[name], other[name]) for name in one)
    result = run_here(recipes.cpt.main, config, f"output_dir={resumed}", "trainable=all", "steps=7")
    assert result.returncode == 1
    assert "was written with trainable=embeddings, this run has trainable=None" in result.stderr


@pytest.mark.slow
def test_two_ranks_go_on_where_one_stopped_with_kahan_sums(road, warm, tmp_path):
    _, config = warm
    kahan = ["optimizer._component_=recipes.training.optimization.adamw.KahanAdamW", "optimizer.lr=1e-2"]
    kahan.append("precision=bf16")
    straight = tmp_path / "straight"
    trained(config, f"output_dir={straight}", *kahan)
    wider = shutil.copytree(straight, tmp_path / "wider")
    shutil.rmtree(wider / "checkpoints/step-00000006")
    tune_run(2, "cpt", config, f"output_dir={wider}", *kahan)
    assert losses(wider)[:3] == losses(straight)[:3]
    assert losses(wider) == pytest.approx(losses(straight), rel=2e-3)
    assert losses(straight)[-1] < losses(straight)[0] - 0.5


def test_the_whole_model_goes_on_from_the_warm_one_and_takes_a_chat_vector(road, warm, base, tmp_path):
    run, config = warm
    exported(run, tmp_path / "warm")
    full = tmp_path / "full"
    trained(config, f"output_dir={full}", f"weights={tmp_path / 'warm'}", "trainable=all", "optimizer.lr=1e-3")
    assert losses(full)[0] < losses(run)[0] - 0.5
    target = exported(full, tmp_path / "korean")
    instruct = shutil.copytree(base, tmp_path / "instruct")
    tiny_llama(instruct, seed=7)
    roles = [f"target={tmp_path / 'korean'}", f"plus={instruct}", f"minus={base}"]
    rule = ["vocabulary=keep_target_rows", f"output_dir={tmp_path / 'chat'}"]
    result = run_here(recipes.chat_vector.main, ROOT / "configs/chat_vector/llama2_ko_chat_7b.yaml", *roles, *rule)
    assert result.returncode == 0, result.stderr
    chat, plus, minus = (load_file(path / "model.safetensors") for path in (tmp_path / "chat", instruct, base))
    for name, tensor in target.items():
        change = plus[name] - minus[name]
        expected = tensor.clone()
        expected[: len(change)] += change
        torch.testing.assert_close(chat[name], expected, atol=1e-6, rtol=1e-5)
    ids = AutoTokenizer.from_pretrained(tmp_path / "chat")(KOREAN, return_tensors="pt", add_special_tokens=False)
    assert ids.input_ids[0].tolist() == load_tokenizer(road / "tokenizer").encode(KOREAN)
    with torch.no_grad():
        assert LlamaForCausalLM.from_pretrained(tmp_path / "chat")(**ids).logits.shape[-1] == 576


@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizer.json"])
def test_llama_2s_formats_get_rows_too(tmp_path, documents, kind):
    base = llama2_sentencepiece(tmp_path / "base")
    if kind == "tokenizer.json":
        base = llama2_json(tmp_path / "json", base)
    old = load_tokenizer(base)
    tiny_llama(base, vocab_size=old.vocab_size)
    options = ("--num-pieces", 24, "--character-coverage", 1, "--out", tmp_path / "tokenizer")
    launch(extend_vocab, "extend-vocab", "--tokenizer", base, "--documents", documents, *options)
    result = extended(base, tmp_path / "tokenizer", tmp_path / "model", "pad_to_multiple_of=1", "head=first")
    assert result.returncode == 0, result.stderr
    rows = load_file(tmp_path / "model/model.safetensors")["lm_head.weight"]
    assert len(rows) == old.vocab_size + 24
    new, before = load_tokenizer(tmp_path / "model"), load_file(base / "model.safetensors")["lm_head.weight"]
    for id_ in range(old.vocab_size, new.vocab_size):
        assert torch.equal(rows[id_], before[old.split(new.raw(id_))[0]])
    settings = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    assert settings["eos_token"] == "</s>"  # not in the tokenizer's folder, so the weights' own
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert theirs(KOREAN, add_special_tokens=False).input_ids == new.encode(KOREAN)


def test_what_does_not_belong_together_is_refused_before_anything_is_written(road, base, tmp_path):
    def message(*keys, code=2):
        result = extended(*keys)
        assert result.returncode == code, result.stdout
        return result.stderr

    out = tmp_path / "out"
    assert "tokenizer.json has the 512 tokens of" in message(base, base, out, code=1)
    assert re.search(r"token 512 is None, in .* it is", message(road / "extended", base, out, code=1))
    assert "tokenizer.json is a file; the folder is expected" in message(base, road / "tokenizer/tokenizer.json", out)
    assert "holds files that are no extended model; give an empty" in message(base, road / "tokenizer", base)
    bad = message(base, road / "tokenizer", out, "head=zero", "pad_to_multiple_of=0")
    assert "head: 'zero' is not known; one of mean, first" in bad
    assert "pad_to_multiple_of: 0 is not positive" in bad
    assert not out.exists()
    assert not tmp_path.joinpath("out.tmp").exists()


def test_shards_of_the_old_tokenizer_are_refused_with_the_extended_model(road, base, documents, tmp_path):
    options = ("--tokenizer", base, "--out", tmp_path / "old", "--workers", 1)
    launch(encode, "tokens", "--documents", documents, *options)
    config = write_cpt_config(tmp_path, road / "extended", tmp_path / "old")
    result = run_here(recipes.cpt.main, config)
    assert result.returncode == 2
    assert "was made with the tokenizer" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_train_its_embeddings_alone_is_refused(tmp_path, base, shards):
    config = write_cpt_config(tmp_path, base, shards)
    problems = {
        ("trainable=head",): "trainable: 'head' is not known; one of all, embeddings",
        ("weights=null", "model={vocab_size: 512}"): "trainable: embeddings without weights; what does not learn must",
        ("adapter={rank: 4}",): "adapter: is set with trainable=embeddings; adapters learn in the layers",
        ("float8=rowwise",): "float8: is set with trainable=embeddings; layers that stay",
        ("estimate.dry_run_ranks=2", "plan=true"): "estimate.dry_run_ranks: is set with trainable=embeddings; torch",
    }
    for overrides, told in problems.items():
        result = run_here(recipes.cpt.main, config, "trainable=embeddings", *overrides)
        assert result.returncode == 2
        assert told in result.stderr
    assert not (tmp_path / "run").exists()
