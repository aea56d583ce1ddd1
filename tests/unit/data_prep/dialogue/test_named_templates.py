"""The named templates: as published, and the ids that transformers gives, over tokenizers of both Llamas."""

import itertools
import json
import random

import pytest
import tokenizers

from data_prep.dialogue.messages import UnusableExample
from data_prep.dialogue.named_templates import TEMPLATES, name_problems, open_template
from data_prep.document import CorpusError
from data_prep.tokens.tokenizer import load_tokenizer, train_tokenizer
from tests.llama2 import WORDS, llama2_json, llama2_sentencepiece
from tests.support import TEXTS

CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]
CONTENTS = [
    "안녕하세요?",
    "It is 3.",
    "  spaces before and behind  ",
    "\n\nlines\n\n\tand tabs\n",
    "국\u0301 é 😀👩‍👩‍👧 \u200b漢字",
    "<s> is none here <|eot|> [/INST] ### 응답:",
    ")", "//", "'s", "123 456", "a", "   b",
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tokenizer of each kind, by name; Llama-3's has ChatML's tokens as well."""
    root = tmp_path_factory.mktemp("tokenizers")
    train_tokenizer((TEXTS + WORDS) * 4, 600, root / "llama3")
    content = tokenizers.Tokenizer.from_file(str(root / "llama3/tokenizer.json"))
    content.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in CHATML_TOKENS])
    content.save(str(root / "llama3/tokenizer.json"))
    llama2_sentencepiece(root / "sentencepiece")
    llama2_json(root / "llama2", root / "sentencepiece")
    return {name: root / name for name in ("llama3", "llama2", "sentencepiece")}


@pytest.fixture(scope="module")
def auto(folders):
    transformers = pytest.importorskip("transformers")
    return {name: transformers.AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}


def opened(folders, name, kind):
    return open_template(name, load_tokenizer(folders[kind]), folders[kind])


def fits(name, kind):
    return kind == "llama3" or name not in ("llama3", "chatml")


PAIRS = [(name, kind) for name in TEMPLATES for kind in ("llama3", "llama2", "sentencepiece") if fits(name, kind)]


def dialogues(specials):
    """Returns dialogues of all lengths, with and without a system message; the contents are drawn with a fixed seed."""
    drawn = random.Random(0)
    contents = [text for text in CONTENTS if not any(special in text for special in specials)]
    found = []
    for number, (pairs, system) in enumerate(itertools.product((1, 2, 3), (None, "", "  짧게.  ") * 8)):
        messages = [] if system is None else [{"role": "system", "content": system}]
        for turn in range(2 * pairs):
            content = contents[number % len(contents)] if turn < 2 else drawn.choice(contents)
            messages.append({"role": ("user", "assistant")[turn % 2], "content": content})
        found.append(messages)
    return found


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_prompts_and_dialogues_have_the_ids_of_transformers(folders, auto, name, kind):
    template = opened(folders, name, kind)
    for messages in dialogues(template.tokenizer.special_tokens):
        theirs = auto[kind].apply_chat_template(
            messages[:-1], chat_template=TEMPLATES[name], add_generation_prompt=True, return_dict=False
        )
        prompt = template.prompt(messages[:-1])
        assert prompt == theirs
        theirs = auto[kind].apply_chat_template(messages, chat_template=TEMPLATES[name], return_dict=False)
        ids, is_learnt = template.encode(messages)
        # the law: a chat asks with the ids that stood before the answer, and all behind them is learnt
        assert ids[: len(prompt)] == prompt
        stop = len(ids) - (name == "chatml")  # ChatML has a line break behind the end of a turn
        assert all(is_learnt[len(prompt) : stop])
        assert ids[stop - 1] == template.end_of_turn
        if theirs[: len(prompt)] == prompt:
            assert ids == theirs
        else:  # transformers' own prompt does not begin its own dialogue
            assert (name, kind) == ("alpaca", "llama3")
            assert template.tokenizer.decode(ids, False) == template.tokenizer.decode(theirs, False)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_learnt_text_is_the_answers_and_their_ends_and_bos_stands_once(folders, name, kind):
    template = opened(folders, name, kind)
    tokenizer = template.tokenizer
    end = tokenizer.decode([template.end_of_turn], skip_special=False)
    for messages in dialogues(tokenizer.special_tokens):
        ids, is_learnt = template.encode(messages)
        answers = [message["content"].strip() for message in messages if message["role"] == "assistant"]
        learnt = tokenizer.decode([i for i, learn in zip(ids, is_learnt, strict=True) if learn], skip_special=False)
        assert [text.strip() for text in learnt.split(end)] == [*answers, ""]
        last = template.encode(messages, train_on="last")[1]
        assert sum(last) == len(ids) - (name == "chatml") - len(template.prompt(messages[:-1]))
        starts = [i for i, id_ in enumerate(ids) if id_ == tokenizer.bos_id]
        assert len(starts) == {"chatml": 0, "llama2": len(answers)}.get(name, 1)


def rendered(folders, name, messages):
    template = opened(folders, name, "llama3")
    return template.tokenizer.decode(template.encode(messages)[0], skip_special=False)


def question(content, **more):
    return [{"role": "user", "content": content, **more}, {"role": "assistant", "content": "답"}]


def test_the_formats_are_the_published_ones(folders):
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    request = "요청을 적절히 완료하는 응답을 작성하세요."
    kullm = f"아래는 작업을 설명하는 명령어입니다. {request}\n\n### 명령어:\n무엇?\n\n### 응답:\n"
    assert rendered(folders, "kullm", question("무엇?")) == f"{begin}{kullm}답{end}"
    with_input = (
        f"아래는 작업을 설명하는 명령어와 추가 컨텍스트를 제공하는 입력이 짝을 이루는 예제입니다. {request}\n\n"
        "### 명령어:\n번역\n\n### 입력:\nSeoul\n\n### 응답:\n"
    )
    assert rendered(folders, "kullm", question("번역", input="Seoul")) == f"{begin}{with_input}답{end}"
    alpaca = (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nA\n\n### Input:\nB\n\n### Response:"
    )
    assert rendered(folders, "alpaca", question("A", input="B")) == f"{begin}{alpaca}답{end}"
    alpaca = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nA\n\n### Response:"
    )
    assert rendered(folders, "alpaca", question("A")) == f"{begin}{alpaca}답{end}"
    system = [{"role": "system", "content": "S"}]
    turn = alpaca[alpaca.index("\n\n###") :]
    assert rendered(folders, "alpaca", system + question("A")) == f"{begin}S{turn}답{end}"
    llama2 = f"{begin}[INST] <<SYS>>\nS\n<</SYS>>\n\nA [/INST] 답 {end}{begin}[INST] B [/INST] 답 {end}"
    assert rendered(folders, "llama2", [*system, *question("A"), *question("B")]) == llama2
    chatml = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n답<|im_end|>\n"
    assert rendered(folders, "chatml", system + question("A")) == chatml


def test_a_template_without_an_input_has_it_behind_the_instruction(folders):
    text = rendered(folders, "llama3", question("번역", input="Seoul"))
    assert "<|end_header_id|>\n\n번역\n\nSeoul<|eot_id|>" in text
    with pytest.raises(UnusableExample, match=r"message 0 holds <\|eot_id\|>") as error:
        opened(folders, "kullm", "llama3").encode(question("번역", input="<|eot_id|>"))
    assert error.value.reason == "special_tokens"


def test_named_templates_of_a_directory_and_files(folders, tmp_path):
    tokenizer = load_tokenizer(folders["llama3"])
    stored = [{"name": "default", "template": "{{ bos_token }}"}, {"name": "rag", "template": "{{ pad_token }}"}]
    config = {"chat_template": stored, "pad_token": {"content": "<|eot_id|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    prompt = [{"role": "user", "content": "a"}]
    assert open_template("weights", tokenizer, tmp_path).prompt(prompt) == [tokenizer.bos_id]
    eot = tokenizer.special_tokens["<|eot_id|>"]
    assert open_template("weights:rag", tokenizer, tmp_path).prompt(prompt) == [eot]
    with pytest.raises(CorpusError, match="has only the chat templates default, rag, not tool_use; "):
        open_template("weights:tool_use", tokenizer, tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/tool_use.jinja").write_text("{{ eos_token }}")
    assert open_template("weights:tool_use", tokenizer, tmp_path).prompt(prompt) == [tokenizer.eos_id]
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0].content }}")
    assert open_template(str(file), tokenizer, tmp_path).prompt(prompt) == tokenizer.encode("a")


def test_what_cannot_be_a_template_is_refused(folders, tmp_path):
    with pytest.raises(
        CorpusError, match=r"chatml writes <\|im_end\|>, <\|im_start\|>, which are no special tokens of"
    ):
        opened(folders, "chatml", "llama2")
    assert name_problems("chatlm") == [
        "'chatlm' is not known; one of weights, weights:NAME, llama3, llama2, kullm, alpaca, chatml, or the path of a "
        ".jinja file"
    ]
    with pytest.raises(CorpusError, match=r"gone.jinja does not exist; give an existing .jinja file"):
        open_template(str(tmp_path / "gone.jinja"), load_tokenizer(folders["llama2"]), tmp_path)


def test_an_answer_that_sentencepiece_joins_with_its_prompt_is_an_error(folders, tmp_path):
    file = tmp_path / "joined.jinja"
    file.write_text("{% for m in messages %}{{ m.content ~ (eos_token if m.role == 'assistant' else '') }}{% endfor %}")
    template = open_template(str(file), load_tokenizer(folders["llama2"]), folders["llama2"])
    messages = [{"role": "user", "content": "Riv"}, {"role": "assistant", "content": "er"}]
    with pytest.raises(UnusableExample, match="the tokenizer joins 'Riv' with the beginning of the answer 'er</s>'"):
        template.encode(messages)


def test_errors_within_a_template_are_told(folders, tmp_path):
    file = tmp_path / "broken.jinja"
    file.write_text("{{ 1 + messages[0].content }}")
    with pytest.raises(
        UnusableExample, match="the chat template refuses messages of the roles user: unsupported operand"
    ):
        open_template(str(file), load_tokenizer(folders["llama2"]), tmp_path).prompt([{"role": "user", "content": "a"}])
