"""What ends a text after an export: nothing that ended one before is lost, and no ordinary token begins to."""

import json

import pytest

from data_prep.dialogue.chat_template import LLAMA3
from data_prep.dialogue.tokenizer_files import write_tokenizer
from data_prep.document import CorpusError
from data_prep.tokens.tokenizer import load_tokenizer
from tests.llama3_1 import llama3_1_tokenizer


@pytest.fixture(scope="module")
def instruct(tmp_path_factory):
    """The tokenizer of Llama-3.1-Instruct, small: `<|eom_id|>` ends a message that calls a tool."""
    return llama3_1_tokenizer(tmp_path_factory.mktemp("llama3.1"), LLAMA3)


def ends(folder, tmp_path, template="weights"):
    (tmp_path / "out").mkdir()
    return write_tokenizer(folder, tmp_path / "out", template)


def test_llama_3_1_keeps_its_three_ends(instruct, tmp_path):
    tokenizer = load_tokenizer(instruct)
    names = ["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"]
    assert ends(instruct, tmp_path) == (tokenizer.bos_id, [tokenizer.special_tokens[name] for name in names])
    assert load_tokenizer(tmp_path / "out").special_tokens == tokenizer.special_tokens


def test_an_ordinary_token_in_the_list_is_left_out(instruct, tmp_path):
    config = {"eos_token_id": 2}  # transformers' default, which a model with another vocabulary may carry along
    base = llama3_1_tokenizer(tmp_path / "base")
    (base / "generation_config.json").unlink()
    (base / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(base)
    assert ends(base, tmp_path) == (tokenizer.bos_id, [tokenizer.special_tokens["<|end_of_text|>"]])


def test_damaged_settings_are_named(tmp_path):
    base = llama3_1_tokenizer(tmp_path / "base")
    (base / "generation_config.json").write_text("{")
    with pytest.raises(CorpusError, match=r"generation_config.json is no JSON \(.*\); a JSON object is expected"):
        ends(base, tmp_path)
