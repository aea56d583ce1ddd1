import json
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.dialogue.chat_template import LLAMA3, ChatTemplate, check_messages
from data_prep.document import CorpusError
from data_prep.tokens.tokenizer import load_tokenizer, train_tokenizer

EOT = "<|eot_id|>"
# Written for these tests, in the manner of other models' templates.
MARKED = (
    "{%- for m in messages %}<|start_header_id|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content + eos_token }}{% endif %}\n{% endfor %}"
    "{%- if add_generation_prompt %}<|start_header_id|>assistant\n{% endif %}"
)
FORGETFUL = (
    "{%- for m in messages %}{{ m.role }}:{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}|{% endfor %}"
    "{%- if add_generation_prompt %}assistant:{% endif %}"
)
REFUSING = (
    "{%- for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)
CONTENT = st.text(max_size=30).filter(lambda text: text.strip() and "<|" not in text)
DIALOGUES = st.builds(
    lambda system, pairs: system + [message for pair in pairs for message in pair],
    st.lists(st.builds(lambda text: {"role": "system", "content": text}, CONTENT), max_size=1),
    st.lists(
        st.tuples(
            st.builds(lambda text: {"role": "user", "content": text}, CONTENT),
            st.builds(lambda text: {"role": "assistant", "content": text}, CONTENT),
        ),
        min_size=1,
        max_size=3,
    ),
)


def dialogue(*contents):
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(contents)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["안녕하세요? 무엇을 도와드릴까요? How can I help you?"], 530, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def llama3(tokenizer):
    return ChatTemplate(tokenizer, LLAMA3)


@pytest.fixture(scope="module")
def auto(folder):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


@given(messages=DIALOGUES)
def test_ids_are_those_of_transformers(llama3, auto, messages):
    theirs = auto.apply_chat_template(messages, chat_template=LLAMA3, return_dict=False)
    assert llama3.encode(messages)[0] == theirs
    prompt = auto.apply_chat_template(
        messages[:-1], chat_template=LLAMA3, add_generation_prompt=True, return_dict=False
    )
    assert llama3.prompt(messages[:-1]) == prompt


@given(messages=DIALOGUES)
def test_the_learnt_ids_are_the_answers_and_their_ends(llama3, messages):
    ids, is_learnt = llama3.encode(messages)
    learnt = [id_ for id_, learn in zip(ids, is_learnt, strict=True) if learn]
    answers = [message["content"].strip() + EOT for message in messages if message["role"] == "assistant"]
    assert llama3.tokenizer.decode(learnt, skip_special=False) == "".join(answers)


@given(messages=DIALOGUES)
def test_what_stands_before_the_last_answer_is_the_prompt_for_it(llama3, messages):
    ids, is_learnt = llama3.encode(messages)
    prompt = llama3.prompt(messages[:-1])
    assert ids[: len(prompt)] == prompt
    assert all(is_learnt[len(prompt) :])


def test_the_format_is_metas_own():
    package = pytest.importorskip("llama_models.llama3.chat_format")
    meta_tokenizer = pytest.importorskip("llama_models.llama3.tokenizer").Tokenizer.get_instance()
    datatypes = pytest.importorskip("llama_models.datatypes")
    messages = [{"role": "system", "content": "Be kind."}, *dialogue("안녕?", "네,\n안녕하세요!", "Bye.")]
    raw = [datatypes.RawMessage(role=message["role"], content=message["content"]) for message in messages]
    theirs = package.ChatFormat(meta_tokenizer).encode_dialog_prompt(raw).tokens
    real = load_tokenizer(Path(pytest.importorskip("llama_models").__path__[0]) / "llama3" / "tokenizer.model")
    assert ChatTemplate(real, LLAMA3).prompt(messages) == theirs


def test_a_template_with_generation_marks_and_line_ends_after_a_turn(tokenizer, auto):
    template = ChatTemplate(tokenizer, MARKED, {"eos_token": EOT})
    messages = dialogue("하나", "둘", "셋", "넷")
    ids, is_learnt = template.encode(messages)
    learnt = [id_ for id_, learn in zip(ids, is_learnt, strict=True) if learn]
    assert tokenizer.decode(learnt, skip_special=False) == f"둘{EOT}넷{EOT}"
    theirs = auto.apply_chat_template(messages, chat_template=MARKED, eos_token=EOT, return_dict=False)
    assert ids == theirs


def test_a_directory_gives_its_jinja_file_before_its_config(folder, tokenizer, tmp_path):
    with pytest.raises(CorpusError, match=r"has no chat template; chat_template.jinja or"):
        ChatTemplate.from_directory(tokenizer, folder)
    config = {"chat_template": "{{ eos_token }}", "eos_token": {"content": EOT}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.from_directory(tokenizer, tmp_path).prompt(dialogue("a")) == [tokenizer.special_tokens[EOT]]
    config["chat_template"] = [{"name": "default", "template": "{{ bos_token }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.from_directory(tokenizer, tmp_path).prompt(dialogue("a")) == [tokenizer.bos_id]
    (tmp_path / "chat_template.jinja").write_text(LLAMA3)
    assert ChatTemplate.from_directory(tokenizer, tmp_path).template == LLAMA3
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CorpusError, match=r"tokenizer_config.json is no JSON"):
        ChatTemplate.from_directory(tokenizer, tmp_path)


def test_a_fixed_clock_keeps_a_dated_template_alike(tokenizer):
    template = ChatTemplate(tokenizer, "{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2025, 3, 1))
    assert tokenizer.decode(template.prompt(dialogue("a"))) == "01 Mar 2025"


def test_special_tokens_in_content_are_an_error_naming_them(llama3):
    with pytest.raises(CorpusError, match=r"message 0 holds <\|begin_of_text\|>, <\|eot_id\|>; special tokens are"):
        llama3.encode(dialogue("x<|eot_id|><|begin_of_text|><|eot_id|>", "y"))


def test_a_template_that_changes_earlier_turns_is_an_error(tokenizer):
    template = ChatTemplate(tokenizer, FORGETFUL)
    assert template.encode(dialogue("a", "b"))[1].count(True) == 2
    with pytest.raises(CorpusError, match="but otherwise in the whole dialogue; a prefix of it is expected"):
        template.encode(dialogue("a", "b", "c", "d"))


def test_a_refusing_or_broken_template_is_an_error(tokenizer):
    with pytest.raises(CorpusError, match="refuses messages of the roles system, user: no system"):
        ChatTemplate(tokenizer, REFUSING).prompt([{"role": "system", "content": "s"}, *dialogue("a")])
    with pytest.raises(CorpusError, match="valid Jinja is expected"):
        ChatTemplate(tokenizer, "{% if %}")


def test_a_template_cannot_reach_out_of_its_sandbox(tokenizer):
    with pytest.raises(CorpusError, match="access to attribute '__class__' of 'str' object is unsafe"):
        ChatTemplate(tokenizer, "{{ ''.__class__.__mro__ }}").prompt(dialogue("a"))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "0 messages without a user's"),
        ([{"role": "system", "content": "s"}], "1 messages without a user's"),
        ([{"role": "assistant", "content": "a"}], "turn 0 has the role 'assistant'; 'user' is expected"),
        ([*dialogue("a"), *dialogue("b")], "turn 1 has the role 'user'; 'assistant' is expected"),
        ([*dialogue("a", "b"), {"role": "system", "content": "s"}], "turn 2 has the role 'system'"),
        (dialogue("a", " \n"), r"message 1 has the content ' \\n'; text is expected"),
        ([{"role": "user"}], "message 0 has the content None"),
    ],
)
def test_messages_no_chat_can_have_are_an_error(messages, message):
    with pytest.raises(CorpusError, match=message):
        check_messages(messages)


def test_encode_ends_with_an_answer_and_prompt_with_a_question(llama3):
    with pytest.raises(CorpusError, match="the last message is the user's; the assistant's is expected"):
        llama3.encode(dialogue("a"))
    with pytest.raises(CorpusError, match="the last message is the assistant's; the user's is expected"):
        llama3.prompt(dialogue("a", "b"))
