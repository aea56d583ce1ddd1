"""Generation with a cache and padding gives what transformers' greedy search gives."""

import pytest
import torch
from transformers import LlamaForCausalLM

from recipes.evaluation.generate import Generator
from recipes.training.loop import open_weights
from recipes.training.model import weights
from recipes.training.model.decoder import build_model
from tests.support import VOCAB, tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model"), seed=5)


def model_of(folder):
    directory, architecture = open_weights(str(folder))
    model = build_model(architecture)
    weights.load(model, directory, architecture)
    return model


def prompts():
    random = torch.Generator().manual_seed(2)
    return [torch.randint(0, VOCAB, (n,), generator=random).tolist() for n in (3, 17, 9, 30, 1)]


def test_batches_of_unequal_prompts_continue_as_transformers_does(folder):
    reference = LlamaForCausalLM.from_pretrained(folder).eval()
    expected = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        out = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        expected.append(out[0, len(prompt) :].tolist())
    for batch in (1, 2, 5):
        assert Generator(model_of(folder), batch, 64).answer(prompts(), [], 12) == expected


def test_an_answer_ends_with_its_stop_id_and_the_others_go_on(folder):
    free = Generator(model_of(folder), 5, 64).answer(prompts(), [], 12)
    stop = free[1][4]
    stopped = Generator(model_of(folder), 5, 64).answer(prompts(), [stop], 12)
    for whole, ended in zip(free, stopped, strict=True):
        cut = whole.index(stop) + 1 if stop in whole else len(whole)
        assert ended == whole[:cut]


def test_a_prompt_that_fills_the_cache_is_refused(folder):
    with pytest.raises(ValueError, match="a prompt has 30 tokens; prompt and answer may have 30; shorten it"):
        Generator(model_of(folder), 5, 30).answer(prompts(), [], 12)
    assert [len(a) for a in Generator(model_of(folder), 5, 32).answer(prompts(), [], 12)] == [2] * 5
