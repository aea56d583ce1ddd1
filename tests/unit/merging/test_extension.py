"""Rows for new pieces: what they are, and that nothing else changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from data_prep.hf_directory import ModelDirectory
from recipes.merging.errors import MergeError
from recipes.merging.extension import Extension, plan_extension, write_extended
from tests.support import VOCAB, tiny_llama
from tests.unit.merging.small_models import edit, rewrite, weights

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PIECES = {VOCAB: [5, 9, 9], VOCAB + 1: [300], VOCAB + 2: list(range(400))}


def bf16(folder: Path, **changes: object) -> ModelDirectory:
    model = tiny_llama(folder, dtype="bfloat16", **changes)
    rewrite(model, {name: tensor.bfloat16() for name, tensor in weights(model).items()})
    return ModelDirectory.open(model)


def extended(extension: Extension, folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir()
    write_extended(extension, folder)
    return weights(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_new_row_is_the_fp32_mean_rounded_once_and_all_else_is_as_it_was(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = tiny_llama(tmp_path / "model")
    rewrite(folder, {name: tensor.to(dtype) for name, tensor in weights(folder).items()})
    model = ModelDirectory.open(folder)
    old, new = weights(folder), extended(plan_extension(model, PIECES, VOCAB, 64, "mean"), tmp_path / "out")
    assert list(new) == list(old)
    for name, tensor in old.items():
        assert new[name].dtype == dtype
        if name not in (EMBEDDING, HEAD):
            assert torch.equal(new[name], tensor), name
            continue
        assert new[name].shape == (576, 64)
        assert torch.equal(new[name][:VOCAB], tensor), name
        for id_, ids in PIECES.items():
            mean = sum(tensor[one].double() for one in ids) / len(ids)
            assert torch.equal(new[name][id_], torch.stack([tensor[one] for one in ids]).float().mean(0).to(dtype))
            torch.testing.assert_close(new[name][id_].double(), mean, rtol=2**-7, atol=1e-4)
        padding = new[name][VOCAB + len(PIECES) :]
        torch.testing.assert_close(padding[0].double(), tensor.double().mean(0), rtol=2**-7, atol=1e-7)
        assert (padding == padding[0]).all()


def test_the_head_may_begin_as_the_first_pieces_row(tmp_path: Path) -> None:
    model = bf16(tmp_path / "model")
    first = extended(plan_extension(model, PIECES, VOCAB, 1, "first"), tmp_path / "first")
    mean = extended(plan_extension(model, PIECES, VOCAB, 1, "mean"), tmp_path / "mean")
    assert first[HEAD].shape == (VOCAB + 3, 64)
    assert torch.equal(first[HEAD][VOCAB:], weights(model.path)[HEAD][[5, 300, 0]])
    assert torch.equal(first[EMBEDDING], mean[EMBEDDING])
    assert not torch.equal(first[HEAD], mean[HEAD])


def test_old_tokens_get_the_logits_they_had_and_a_new_one_the_mean_of_its_pieces(tmp_path: Path) -> None:
    model = ModelDirectory.open(tiny_llama(tmp_path / "model"))
    extended(plan_extension(model, PIECES, VOCAB, 64, "mean"), tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text((model.path / "config.json").read_text())
    edit(tmp_path / "out" / "config.json", vocab_size=576)
    ids = torch.randint(0, VOCAB, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = (LlamaForCausalLM.from_pretrained(path)(ids).logits for path in (model.path, tmp_path / "out"))
    torch.testing.assert_close(after[..., :VOCAB], before, atol=1e-6, rtol=1e-5)
    for id_, pieces in PIECES.items():
        torch.testing.assert_close(after[..., id_], before[..., pieces].mean(-1), atol=1e-5, rtol=1e-4)


def test_tied_heads_get_rows_once(tmp_path: Path) -> None:
    model = bf16(tmp_path / "model", tie_word_embeddings=True)
    extension = plan_extension(model, PIECES, VOCAB, 8, "mean")
    new = extended(extension, tmp_path / "out")
    assert new.keys() == weights(model.path).keys()
    assert HEAD not in new
    assert new[EMBEDDING].shape == (520, 64)
    written = sum(tensor.nbytes for tensor in new.values())
    assert extension.output_bytes == written
    with pytest.raises(MergeError, match=r"head: first, but .* ties its head to the embedding"):
        plan_extension(model, PIECES, VOCAB, 8, "first")


def test_rows_that_the_model_has_as_padding_become_the_pieces(tmp_path: Path) -> None:
    model = bf16(tmp_path / "model")
    pieces = {id_ - 12: ids for id_, ids in PIECES.items()}
    extension = plan_extension(model, pieces, VOCAB - 12, 1, "mean")
    new, old = extended(extension, tmp_path / "out")[EMBEDDING], weights(model.path)[EMBEDDING]
    assert extension.num_rows == VOCAB
    assert torch.equal(new[: VOCAB - 12], old[: VOCAB - 12])
    assert torch.equal(new[VOCAB - 9 :], old[VOCAB - 9 :])
    assert torch.equal(new[VOCAB - 11], old[300])


def test_a_model_that_cannot_be_extended_is_refused(tmp_path: Path) -> None:
    model = bf16(tmp_path / "model")
    with pytest.raises(MergeError, match=r"embed_tokens.weight is BF16 \[512, 64\]; a matrix of 600 rows or more"):
        plan_extension(model, PIECES, 600, 64, "mean")
    without = {name: entry for name, entry in model.tensors.items() if name != HEAD}
    with pytest.raises(MergeError, match=r"lm_head.weight is missing; a matrix of 512 rows or more in F32, F16, BF16"):
        plan_extension(replace(model, tensors=without), PIECES, VOCAB, 64, "mean")
