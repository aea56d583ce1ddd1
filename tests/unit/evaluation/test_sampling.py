"""Each sampling setting does what transformers' logits processors do, alone and together."""

import json
import re

import pytest
import torch
from transformers import LlamaForCausalLM, LogitsProcessorList
from transformers.generation import logits_process as theirs

from data_prep.document import CorpusError
from recipes.evaluation.generate import Generator
from recipes.evaluation.sampling import Sampler, Sampling, changed, own_sampling, sampling_problems
from recipes.training.loop import open_weights
from recipes.training.model import weights
from recipes.training.model.decoder import build_model
from tests.support import VOCAB, tiny_llama

CPU = torch.device("cpu")
CASES = [
    {"temperature": 0.6},
    {"temperature": 1.7, "top_k": 7},
    {"temperature": 1.0, "top_k": 5000},
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 0.9, "repetition_penalty": 0.8},
    {"temperature": 0.0, "no_repeat_ngram_size": 1},
    {"temperature": 0.0, "no_repeat_ngram_size": 2},
    {"temperature": 0.0, "no_repeat_ngram_size": 3, "repetition_penalty": 1.1},
    {
        "temperature": 0.8,
        "top_k": 60,
        "top_p": 0.8,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
    },
]


def reference(settings):
    """Returns transformers' processors of the settings, in the order in which its `generate` puts them."""
    sampling = Sampling(**settings)
    found = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        found.append(theirs.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.no_repeat_ngram_size:
        found.append(theirs.NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram_size))
    if sampling.temperature:
        found.append(theirs.TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            found.append(theirs.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            found.append(theirs.TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            found.append(theirs.MinPLogitsWarper(sampling.min_p))
    return found


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_the_scores_are_those_of_transformers_at_every_step_of_an_answer(settings):
    random = torch.Generator().manual_seed(3)
    history = torch.randint(0, 12, (15,), generator=random).tolist()  # few tokens, so that they repeat
    sampler, processors = Sampler(Sampling(**settings), history, 0, CPU), reference(settings)
    for _ in range(40):
        logits = 3 * torch.randn(1, VOCAB, generator=random)
        logits[:, :12] += 6
        expected = processors(torch.tensor([history]), logits.clone())
        torch.testing.assert_close(sampler.scores(logits), expected, rtol=0, atol=0)
        chosen = sampler(logits)
        assert torch.isfinite(expected[0, chosen])
        history.append(int(chosen))


def test_an_answer_is_drawn_with_the_probabilities_of_its_scores_and_repeats_with_its_seed():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])

    def drawn(seed, count):
        sampler = Sampler(Sampling(temperature=0.7), [], seed, CPU)
        return [int(sampler(logits)) for _ in range(count)]

    shares = torch.bincount(torch.tensor(drawn(1, 20_000)), minlength=4) / 20_000
    torch.testing.assert_close(shares, (logits[0] / 0.7).softmax(-1), rtol=0, atol=0.015)
    assert drawn(2, 50) == drawn(2, 50) != drawn(3, 50)


def test_an_answer_is_the_one_of_transformers_generate(tmp_path):
    settings = {"no_repeat_ngram_size": 2, "repetition_penalty": 1.1}
    folder = tiny_llama(tmp_path / "model", seed=5)
    directory, architecture = open_weights(str(folder))
    model = build_model(architecture)
    weights.load(model, directory, architecture)
    prompt = [5, 9, 5, 9, 200, 5, 9]
    expected = LlamaForCausalLM.from_pretrained(folder).generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), max_new_tokens=40,
        do_sample=False, eos_token_id=None, pad_token_id=0,
        **settings,
    )  # fmt: skip
    sampler = Sampler(Sampling(**settings), prompt, 0, CPU)
    found = [token for (token,) in Generator(model, 1, 128).stream([prompt], [], 40, sampler)]
    assert found == expected[0, len(prompt) :].tolist()
    assert found != Generator(model, 1, 128).answer([prompt], [], 40)[0]  # the settings do something here


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, Sampling()),
        ({"temperature": 0.6, "top_p": 0.9}, Sampling()),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, Sampling(0.6, top_k=50, top_p=0.9)),
        ({"do_sample": True, "top_k": 0, "min_p": None}, Sampling(1.0)),
        ({"do_sample": False, "top_k": 5, "repetition_penalty": 1.1}, Sampling(repetition_penalty=1.1)),
    ],
)
def test_what_a_model_asks_for_is_read_as_transformers_reads_it(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert own_sampling(tmp_path) == expected
    over = changed(expected, {"temperature": 0.0, "top_p": None, "unknown": 3})
    assert (over.temperature, over.top_p) == (0.0, expected.top_p)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"do_sample": true, "top_p": 2}', "top_p: 2 is out of range; use above 0, at most 1; mend it there"),
        ('{"repetition_penalty": "a"}', "repetition_penalty is no number; mend it there"),
        ("[]", "holds no JSON object; settings by name are expected"),
        ("{", "is no JSON"),
    ],
)
def test_a_file_with_wrong_settings_is_refused(tmp_path, content, message):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(CorpusError, match=re.escape(message)):
        own_sampling(tmp_path)


def test_settings_out_of_range_are_named():
    wrong = {"temperature": -1, "top_k": -2, "top_p": 0, "min_p": 1.5, "repetition_penalty": 0.0, "seed": -1}
    wrong |= {"no_repeat_ngram_size": -1}
    assert [line.split(":")[0] for line in sampling_problems(wrong)] == [key for key in wrong if key != "seed"]
    assert sampling_problems({"temperature": float("nan"), "top_p": None}) == [
        "temperature: nan is out of range; use 0 or more"
    ]
