"""An answer's pieces are its text, whatever the tokenizer; stop strings, log probabilities, full contexts."""

import random
import re

import pytest
import torch

from data_prep.dialogue.chat_template import LLAMA3, ChatTemplate
from data_prep.tokens.tokenizer import load_tokenizer
from recipes.evaluation.compare import cell
from recipes.evaluation.generate import Generator
from recipes.evaluation.sampling import Sampling
from recipes.evaluation.talking import PartialText, PromptError, Talker, Wish, fitting, speak
from recipes.training.loop import open_weights
from recipes.training.model import weights
from recipes.training.model.decoder import build_model
from tests.llama2 import llama2_json, llama2_sentencepiece
from tests.support import tiny_llama, tiny_tokenizer

TEXT = "대한민국의 수도는 서울이다.\n\n  River 🌊 flows,  강은 흐른다! 값·뷁 "


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    llama3, llama2 = tiny_tokenizer(root / "llama3"), llama2_sentencepiece(root / "llama2")
    (root / "json").mkdir()
    paths = [llama3, llama3 / "tokenizer.model", llama2, llama2_json(root / "json", llama2)]
    return [load_tokenizer(path) for path in paths]


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A random model, which goes on for ever."""
    folder = tiny_llama(tiny_tokenizer(tmp_path_factory.mktemp("talker") / "model"), seed=3)
    directory, architecture = open_weights(str(folder))
    model = build_model(architecture)
    weights.load(model, directory, architecture)
    tokenizer = load_tokenizer(folder)
    template = ChatTemplate(tokenizer, LLAMA3)
    return Talker("model", Generator(model, 1, 256), tokenizer, template, (), Sampling(), 256, 512)


def test_pieces_are_the_text_in_whole_characters(tokenizers):
    for tokenizer in tokenizers:
        ids, text = tokenizer.encode(TEXT), PartialText(tokenizer)
        pieces = [text.add(id_) for id_ in ids]
        assert "".join(pieces) == tokenizer.decode(ids)
        assert not any("�" in piece for piece in pieces)
        assert len([piece for piece in pieces if piece]) > 10


def test_pieces_of_any_ids_are_their_text_but_for_an_unfinished_end(tokenizers):
    drawn = random.Random(1)
    for tokenizer in tokenizers[:2]:
        for _ in range(50):
            ids = [drawn.randrange(256) for _ in range(30)]
            text = PartialText(tokenizer)
            found, whole = "".join(text.add(id_) for id_ in ids), tokenizer.decode(ids)
            assert whole.startswith(found)
            assert set(whole[len(found) :]) <= {"�"} or "�" in whole[len(found) :]


def told(talker, prompt, **wish):
    pieces = list(speak(talker, prompt, Wish(**{"max_new_tokens": 30} | wish)))
    return "".join(piece.text for piece in pieces), pieces


@pytest.mark.parametrize(("share", "length"), [(0, 1), (0.5, 3), (1, 2)])
def test_an_answer_ends_right_before_a_stop_string_wherever_it_stands(talker, share, length):
    wish = {"sampling": Sampling(temperature=1.0), "max_new_tokens": 14, "seed": 1}
    free, _ = told(talker, [256, 70], **wish)
    start = int(share * (len(free) - length))
    stop = free[start : start + length]
    assert len(stop) == length
    stopped, pieces = told(talker, [256, 70], **wish, stop=["never there", stop])
    assert stopped == free[: free.index(stop)]
    assert pieces[-1].reason == "stop"
    assert told(talker, [256, 70], **wish, stop=[stop + "never there"])[0] == free


def test_a_special_token_as_stop_ends_the_answer_with_it(talker):
    ids = [piece.scored.id for piece in told(talker, [256, 70], logprobs=1)[1] if piece.scored]
    name = talker.tokenizer.piece(ids[7])
    specials = {**talker.tokenizer.special_tokens, name: ids[7]}
    own = type("Tokenizer", (), {"special_tokens": specials, "decode": talker.tokenizer.decode})()
    changed = Talker(**{**vars(talker), "tokenizer": own})
    pieces = told(changed, [256, 70], stop=[name])[1]
    assert (pieces[-1].reason, pieces[-1].tokens) == ("stop", 1 + ids.index(ids[7]))


def test_log_probabilities_are_those_before_the_sampling_settings(talker):
    prompt = [256, 70, 81]
    pieces = told(talker, prompt, logprobs=3, sampling=Sampling(temperature=2.0, top_k=5, repetition_penalty=1.5))[1]
    scored = [piece.scored for piece in pieces if piece.scored]
    ids = [one.id for one in scored]
    expected = list(talker.generator.log_probabilities([*prompt, *ids], 3))[len(prompt) - 1 :]
    for one, (value, best) in zip(scored, expected, strict=True):
        assert one.logprob == pytest.approx(value, abs=1e-4)
        assert one.best == pytest.approx(best, abs=1e-4)


def test_the_reason_is_length_at_the_limit_of_tokens_and_of_the_model(talker):
    assert told(talker, [256])[1][-1].tokens == 30
    pieces = told(talker, [256] * 250)[1]
    assert (pieces[-1].tokens, pieces[-1].reason) == (6, "length")
    with pytest.raises(PromptError, match="the prompt has 256 tokens; 256 are the limit of prompt and answer; shorten"):
        told(talker, [256] * 256)


def test_as_few_of_the_oldest_turns_go_as_must(talker):
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"turn {n}"} for n in range(9)]
    system = {"role": "system", "content": "Be short."}
    for asked in (1, 30, 64, 5000):
        kept, dropped = fitting(talker, [system, *turns], asked)
        room = min(asked, 64)
        assert kept == [system, *turns[2 * dropped :]]
        assert dropped == 4 or len(talker.template.prompt(kept)) + room <= 256
        if dropped:
            assert len(talker.template.prompt([system, *turns[2 * dropped - 2 :]])) + room > 256
    with pytest.raises(PromptError, match=r"the prompt has \d+ tokens; 256 are the limit; shorten it"):
        fitting(talker, [{"role": "user", "content": "가" * 100}], 1)


def test_a_generator_leaves_the_model_as_it_is_and_batches_answer_as_single_prompts_do(talker):
    model = talker.generator._model
    ids = torch.tensor([[256, 9, 30, 77]])
    before = model(ids)
    answers = [Generator(model, batch, 64).answer([[256, 9], [256, 30, 77], [5]], [], 6) for batch in (1, 3)]
    assert answers[0] == answers[1]
    torch.testing.assert_close(model(ids), before, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own code
def test_a_compiled_generator_answers_alike(talker):
    prompts = [[256, 9], [256, 30, 77], [5]]
    model = talker.generator._model
    expected = Generator(model, 3, 64).answer(prompts, [], 20)
    assert Generator(model, 3, 64, compiled=True).answer(prompts, [], 20) == expected
    assert Generator(model, 1, 64, compiled=True).answer(prompts, [], 20) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb", "a<br>b"),
        ("1. x\n   - y", "1. x<br>&nbsp;&nbsp;&nbsp;- y"),
        ("a | b", r"a \| b"),
        ("<script>&", "&lt;script&gt;&amp;"),
        ("![x](http://a)", r"!\[x\](http://a)"),
        ("`a` \\", r"\`a\` \\"),
        (" \n", ""),
    ],
)
def test_a_cell_is_one_line_that_shows_the_text(text, expected):
    assert cell(text) == expected
    assert not re.search(r"[\n<>](?!br>)", expected.replace("<br>", ""))
