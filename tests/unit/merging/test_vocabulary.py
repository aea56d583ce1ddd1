"""Models of different vocabularies, and language models within vision models."""

import json
from pathlib import Path

import pytest
import torch

from recipes.merging.errors import MergeError
from recipes.merging.names import kind_of, language_name
from recipes.merging.plan import plan_merge
from tests.unit.merging.small_models import edit, rewrite, run, same_bits, settings, weights

VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
ADDED = ("가나", "다라", "마바")


def extend(folder: Path, tokens: tuple[str, ...], padding: int = 0) -> None:
    """Gives a model more tokens behind its own, and padding rows without a token."""
    torch.manual_seed(9)
    tensors = weights(folder)
    rows = tensors["lm_head.weight"].shape[0]
    for name in VOCABULARY:
        more = torch.randn(len(tokens) + padding, tensors[name].shape[1])
        tensors[name] = torch.cat([tensors[name], more.to(tensors[name].dtype)])
    rewrite(folder, tensors)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"] += [{"id": rows + n, "content": token, "special": False} for n, token in enumerate(tokens)]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    edit(folder / "config.json", vocab_size=rows + len(tokens) + padding)


def swap(folder: Path, one: int, other: int) -> None:
    """Exchanges two tokens of the vocabulary and their rows."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    names = {id_: token for token, id_ in vocab.items()}
    vocab[names[one]], vocab[names[other]] = other, one
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tensors = weights(folder)
    for name in VOCABULARY:
        tensors[name][[one, other]] = tensors[name][[other, one]]
    rewrite(folder, tensors)


def reference(models: dict[str, Path], name: str) -> torch.Tensor:
    t, p, m = (weights(models[role])[name].float() for role in ("target", "plus", "minus"))
    return (t + (p - m)).bfloat16()


def test_another_number_of_rows_needs_a_rule(models: dict[str, Path], tmp_path: Path) -> None:
    extend(models["target"], ADDED)
    with pytest.raises(MergeError, match="state with vocabulary=") as error:
        run(tmp_path / "out", models)
    error.match(r"lm_head.weight has shape \[515, 64\] in .*target but \[512, 64\] in .*plus")


def test_keep_target_rows_adds_to_the_shared_rows_alone(models: dict[str, Path], tmp_path: Path) -> None:
    plain = {name: reference(models, name) for name in weights(models["target"])}
    extend(models["target"], ADDED, padding=2)
    target = weights(models["target"])
    merged = run(tmp_path / "out", models, vocabulary="keep_target_rows")
    for name, tensor in merged.items():
        assert torch.equal(tensor[:512], plain[name][:512])
        if name in VOCABULARY:
            assert torch.equal(tensor[512:], target[name][512:])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["vocabulary"] == {"rule": "keep_target_rows", "rows": 517, "rows_added_to": [512], "rows_kept": [5]}
    out = tmp_path / "out"
    assert (out / "tokenizer.json").read_bytes() == (models["target"] / "tokenizer.json").read_bytes()
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [300, 301]
    assert "of 517 rows 5 stay the target's" in (out / "README.md").read_text()


def test_the_laws_hold_under_a_rule(models: dict[str, Path], tmp_path: Path) -> None:
    extend(models["plus"], ("<a>",), padding=7)
    base = models | {"target": models["minus"]}
    merged, plus = run(tmp_path / "out", base, vocabulary="keep_target_rows"), weights(models["plus"])
    assert same_bits(merged, {name: tensor[: len(merged[name])] for name, tensor in plus.items()})
    alike = models | {"minus": models["plus"]}
    assert same_bits(run(tmp_path / "same", alike, vocabulary="by_token"), weights(models["target"]))


def test_by_token_follows_the_strings(models: dict[str, Path], tmp_path: Path) -> None:
    expected = reference(models, "lm_head.weight")
    swap(models["plus"], 65, 70)
    swap(models["minus"], 80, 81)
    extend(models["target"], ADDED)
    merged = run(tmp_path / "out", models, vocabulary="by_token")
    assert torch.equal(merged["lm_head.weight"][:512], expected)
    assert torch.equal(merged["lm_head.weight"][512:], weights(models["target"])["lm_head.weight"][512:])
    with pytest.raises(MergeError, match=r"token 65 is '.' in .*target but '.' in .*plus \(2 such ids\); keep_target"):
        plan_merge(settings(models, vocabulary="keep_target_rows"))


def test_excluded_embeddings_stay_the_target_s(models: dict[str, Path], tmp_path: Path) -> None:
    extend(models["target"], ADDED)
    swap(models["target"], 65, 70)
    target, norm = weights(models["target"]), reference(models, "model.norm.weight")
    merged = run(tmp_path / "out", models, vocabulary="exclude_embeddings")
    assert all(torch.equal(merged[name], target[name]) for name in VOCABULARY)
    assert torch.equal(merged["model.norm.weight"], norm)


def test_a_chat_that_the_target_cannot_write_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    extend(models["plus"], ("<|im_end|>",))
    (models["plus"] / "chat_template.jinja").write_text("{{ messages }}<|im_end|>")
    with pytest.raises(MergeError, match=r"chats of .*plus need <\|im_end\|>, which the tokenizer of .*target lacks"):
        run(tmp_path / "out", models, vocabulary="keep_target_rows")
    edit(models["target"] / "config.json", eos_token_id=7)
    run(tmp_path / "out", models, vocabulary="keep_target_rows", chat_from="target")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"][-1] == 7
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


@pytest.mark.parametrize(
    ("prefix", "head"),
    [("language_model.model.", "language_model.lm_head."), ("model.language_model.", "lm_head.")],
    ids=["transformers below 4.52", "from 4.52"],
)
def test_the_language_model_of_a_vision_model_gets_the_vector(
    models: dict[str, Path], tmp_path: Path, prefix: str, head: str
) -> None:
    plain = {name: reference(models, name) for name in weights(models["target"])}

    def stored(name: str) -> str:
        return head + "weight" if name == "lm_head.weight" else prefix + name.removeprefix("model.")

    vision = {
        "vision_tower.embed.weight": torch.randn(7, 5, dtype=torch.float16),
        "multi_modal_projector.linear_1.bias": torch.tensor([-0.0, float("inf")]),
        "vision_tower.position_ids": torch.arange(5),
    }
    rewrite(models["target"], vision | {stored(name): tensor for name, tensor in weights(models["target"]).items()})
    config = json.loads((models["target"] / "config.json").read_text())
    (models["target"] / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": config}))
    (models["target"] / "preprocessor_config.json").write_text("{}")
    merged = run(tmp_path / "out", models, mlp_scale=1.0)
    assert same_bits({name: merged.pop(name) for name in vision}, vision)
    assert merged.keys() == {stored(name) for name in plain}
    assert all(torch.equal(merged[stored(name)], tensor) for name, tensor in plain.items())
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {"model_type": "llava", "text_config": config | {"eos_token_id": [300, 301]}}
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_a_head_that_is_tied_but_stored_is_the_embedding(models: dict[str, Path], tmp_path: Path) -> None:
    for role in models:
        edit(models[role] / "config.json", tie_word_embeddings=True)
    tensors = weights(models["target"])
    del tensors["lm_head.weight"]
    rewrite(models["target"], tensors)
    merged = run(tmp_path / "out", models, embeddings_scale=0.0)
    assert "lm_head.weight" not in merged
    assert torch.equal(merged["model.embed_tokens.weight"], tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "attention"),
        ("model.layers.3.mlp.up_proj.weight", "mlp"),
        ("model.layers.3.post_attention_layernorm.weight", "norms"),
        ("model.norm.weight", "norms"),
        ("model.embed_tokens.weight", "embeddings"),
        ("lm_head.weight", "head"),
        ("model.rope.weight", "other"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_buffers_are_no_weights() -> None:
    assert language_name("model.layers.0.self_attn.rotary_emb.inv_freq", wraps=False) is None


def test_a_row_behind_an_absent_one_may_be_the_first(models: dict[str, Path], tmp_path: Path) -> None:
    """Row 5 of the target has a token of its own, row 6 is the others' row 0: ids -1 and 0 are no run of neighbours."""
    expected = reference(models, "lm_head.weight")[0]
    swap(models["target"], 0, 6)
    content = json.loads((models["target"] / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    vocab["\u25c7"] = vocab.pop(next(token for token, id_ in vocab.items() if id_ == 5))
    (models["target"] / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    target = weights(models["target"])["lm_head.weight"]
    merged = run(tmp_path / "out", models, vocabulary="by_token")["lm_head.weight"]
    assert torch.equal(merged[6], expected)
    assert torch.equal(merged[5], target[5])
