"""What a model directory says of the end of an answer."""

import json

import pytest

from data_prep.document import CorpusError
from data_prep.generation_settings import end_ids, generation_config


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, None, []),
        ({"eos_token_id": [2, 3]}, {"eos_token_id": 2}, [2, 3]),
        ({"temperature": 0.6}, {"eos_token_id": 2}, [2]),
        ({"eos_token_id": 3}, {"eos_token_id": [2], "text_config": {"eos_token_id": 4}}, [3, 2, 4]),
        (None, {"eos_token_id": None, "text_config": {"eos_token_id": 0}}, [0]),
        (None, {"text_config": "unread"}, []),
    ],
)
def test_the_ends_are_those_of_all_settings_once(tmp_path, generation, config, expected):
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    assert end_ids(tmp_path) == expected
    assert generation_config(tmp_path) == (generation or {})


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(("text", "message"), [("{", "is no JSON"), ("[]", "holds no JSON object")])
def test_damaged_settings_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(CorpusError, match=rf"{name} {message}.* mend or remove it"):
        end_ids(tmp_path)
