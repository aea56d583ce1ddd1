import base64
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.document import CorpusError
from data_prep.tokens import tokenizer_formats
from data_prep.tokens.tokenizer import load_tokenizer, train_tokenizer
from data_prep.tokens.tokenizer_formats import LLAMA3_SPLIT, encode_windows, llama3_special_tokens, split_long
from data_prep.tokens.tokenizer_json import as_ranks
from tests.unit.data_prep.tokens.small_corpus import sentencepiece_bpe, write_with_all_merges

TEXTS = [
    "대한민국의 수도는 서울이며, 한강이 도시를 가로질러 흐른다.",
    "The capital of Korea is Seoul, and the Han river runs through the city.",
    "ㅋㅋㅋㅋㅋ 그건 정말 재미있네요! Isn't it? 1234567 === ------\n\n    return aaaa  bbbb\n",
] * 3
VOCAB_SIZE = 660
# Runs and repeats stress ties between merges; the rest is any text.
STRESS = st.text(alphabet="ab ='\nㅋ한국.1", max_size=60)
ANY = st.one_of(STRESS, st.text(max_size=40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, VOCAB_SIZE, folder)
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    return load_tokenizer(folder / "tokenizer.model")


@pytest.fixture(scope="module")
def json_(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def llama2(tmp_path_factory):
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    path.write_bytes(sentencepiece_bpe(TEXTS, 420))
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def real():
    """Meta's own file."""
    package = pytest.importorskip("llama_models")
    return load_tokenizer(Path(package.__path__[0]) / "llama3" / "tokenizer.model")


@given(text=ANY)
def test_both_files_of_a_trained_tokenizer_encode_every_text_alike(ranks, json_, text):
    ids = ranks.encode(text)
    assert json_.encode(text) == ids
    assert ranks.decode(ids) == json_.decode(ids) == text


def test_both_files_agree_on_letters_and_spaces_of_all_of_unicode(ranks, json_):
    for block in range(0, 0x30000, 256):
        characters = [chr(code) for code in range(block, block + 256, 5) if not 0xD800 <= code < 0xE000]
        text = "".join(f"a{character} 1{character}\n '{character}" for character in characters)
        assert ranks.encode(text) == json_.encode(text), hex(block)


@given(text=st.text(alphabet="ab <|eot_id>", max_size=20), special=st.sampled_from(llama3_special_tokens()))
def test_special_strings_are_text_in_encode_and_ids_in_encode_with_special(ranks, json_, text, special):
    full = text + special + text
    for tokenizer in (ranks, json_):
        first_special = min(tokenizer.special_tokens.values())
        assert all(id_ < first_special for id_ in tokenizer.encode(full))
        assert tokenizer.decode(tokenizer.encode(full)) == full
        assert tokenizer.special_tokens[special] in tokenizer.encode_with_special(full)
        assert tokenizer.decode(tokenizer.encode_with_special(full), skip_special=False) == full
    assert ranks.encode_with_special(full) == json_.encode_with_special(full)


def test_decode_skips_special_tokens_only_when_asked(ranks, json_, llama2):
    for tokenizer in (ranks, json_, llama2):
        ids = [tokenizer.bos_id, *tokenizer.encode("Seoul 서울"), tokenizer.eos_id]
        names = {id_: text for text, id_ in tokenizer.special_tokens.items()}
        assert tokenizer.decode(ids) == "Seoul 서울"
        whole = names[tokenizer.bos_id] + "Seoul 서울" + names[tokenizer.eos_id]
        assert tokenizer.decode(ids, skip_special=False) == whole


def test_a_trained_tokenizer_has_the_sizes_and_numbers_of_llama3(ranks, json_):
    for tokenizer in (ranks, json_):
        assert tokenizer.vocab_size == VOCAB_SIZE
        assert (tokenizer.bos_id, tokenizer.eos_id) == (VOCAB_SIZE - 256, VOCAB_SIZE - 255)
        assert tokenizer.special_tokens["<|eot_id|>"] == VOCAB_SIZE - 256 + 9
        assert len(tokenizer.special_tokens) == 256
    assert ranks.special_tokens == json_.special_tokens
    assert len(ranks.sha256) == 64
    assert ranks.path.name == "tokenizer.model"


def test_training_twice_gives_the_same_files(folder, tmp_path):
    train_tokenizer(TEXTS, VOCAB_SIZE, tmp_path)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_transformers_loads_the_folder_and_agrees(folder, ranks):
    transformers = pytest.importorskip("transformers")
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert auto(text).input_ids == [ranks.bos_id, *ranks.encode(text)]
        assert auto.decode(ranks.encode(text)) == text
    assert (auto.bos_token_id, auto.eos_token_id, len(auto)) == (ranks.bos_id, ranks.eos_id, VOCAB_SIZE)


def test_the_real_llama3_file_has_its_known_numbers(real):
    assert real.vocab_size == 128_256
    assert (real.bos_id, real.eos_id) == (128_000, 128_001)
    assert real.special_tokens["<|start_header_id|>"] == 128_006
    assert real.special_tokens["<|end_header_id|>"] == 128_007
    assert real.special_tokens["<|eot_id|>"] == 128_009
    assert real.special_tokens["<|reserved_special_token_4|>"] == 128_008
    assert real.special_tokens["<|reserved_special_token_250|>"] == 128_255
    assert real.encode("Hello world!") == [9906, 1917, 0]


def test_the_real_llama3_file_is_read_as_torchtune_reads_it(real):
    torchtune = pytest.importorskip("torchtune.models.llama3")
    theirs = torchtune.llama3_tokenizer(str(real.path))
    for text in [*TEXTS, "a" * 25_000, "b" * 50_001 + " c", " " * 60_000 + "d", "漢字" * 30_000 + "\n" * 25_001]:
        assert real.encode(text) == theirs.encode(text, add_bos=False, add_eos=False)


def test_the_split_pattern_is_metas():
    package = pytest.importorskip("llama_models.llama3.tokenizer")
    assert package.Tokenizer.pat_str == LLAMA3_SPLIT


@given(text=st.text(max_size=200))
def test_the_real_llama3_file_gives_every_text_back(real, text):
    assert real.decode(real.encode(text)) == text


@pytest.fixture(scope="module")
def all_merges(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("all_merges") / "tokenizer.json"
    write_with_all_merges(folder / "tokenizer.json", path)
    return load_tokenizer(path)


@given(text=ANY | st.text(alphabet="ab <|eot_id>\n", max_size=20))
def test_a_tokenizer_json_that_tiktoken_can_read_has_the_same_ids_there(all_merges, text):
    assert all_merges._tiktoken is not None
    for whole in (text, text * 3, text + "<|eot_id|>", text + "x" * 26_000):
        ids = all_merges.encode_array(whole)
        assert ids.dtype == np.uint32
        assert ids.tolist() == all_merges.encode(whole)


def test_a_tokenizer_json_whose_ids_could_differ_is_not_given_to_tiktoken(all_merges):
    content = json.loads(all_merges.path.read_text(encoding="utf-8"))
    assert as_ranks(content) is not None
    merges = content["model"]["merges"]
    changes = (
        {"merges": merges[::-1]},
        {"merges": merges[:-1]},
        {"ignore_merges": False},
        {"dropout": 0.1},
    )
    for change in changes:
        assert as_ranks({**content, "model": {**content["model"], **change}}) is None
    assert as_ranks({**content, "normalizer": {"type": "NFC"}}) is None
    assert as_ranks({**content, "pre_tokenizer": None}) is None


def test_texts_of_windows_have_the_ids_of_whole_ones(llama2, monkeypatch):
    texts = [*TEXTS, "a  b   c\n\n d   " * 40, "서울 " * 200, "x" * 500, " " * 500, "\n" * 300]
    whole = [llama2._model.encode(text) for text in texts]
    monkeypatch.setattr(tokenizer_formats, "MAX_PIECE_CHARS", 50)
    found = [llama2.encode(text) for text in texts]
    assert [llama2.decode(ids) for ids in found] == texts
    assert found[: len(TEXTS) + 2] == whole[: len(TEXTS) + 2]


def test_an_encoder_that_cannot_be_cut_is_given_the_whole_text(monkeypatch):
    monkeypatch.setattr(tokenizer_formats, "MAX_PIECE_CHARS", 4)

    def strip(text):
        return np.frombuffer(text.strip().encode(), dtype=np.uint8).astype(np.uint32)

    def begin_words(text):
        return strip(" ".join(f"_{word}" for word in text.split()))

    assert bytes(encode_windows("ab cd ef", strip).tolist()) == b"ab cd ef"
    assert bytes(encode_windows("abcdefghi", begin_words).tolist()) == b"_abcdefghi"


def test_pieces_are_readable(ranks, json_, llama2):
    for tokenizer in (ranks, json_):
        assert tokenizer.piece(tokenizer.eos_id) == "<|end_of_text|>"
        assert "".join(tokenizer.piece(id_) for id_ in tokenizer.encode("Seoul is")) == "Seoul is"
        assert "".join(tokenizer.piece(id_) for id_ in tokenizer.encode("뷁")).startswith("<0xEB>")
    assert "".join(llama2.piece(id_) for id_ in llama2.encode("Seoul is")) == " Seoul is"
    assert [llama2.piece(id_) for id_ in llama2.encode("뷁")][-3:] == ["<0xEB>", "<0xB7>", "<0x81>"]


@pytest.mark.parametrize("unit", [" ", "a", "!", "\n", "ㅋ", " \n", "가 나\n다"])
def test_a_million_characters_of_one_kind_come_back(ranks, unit):
    text = unit * (1_000_000 // len(unit))
    assert ranks.decode(ranks.encode(text)) == text


def test_a_long_text_with_line_breaks_is_cut_without_changing_a_token(ranks, json_):
    text = "서울은 한국의 수도이다.  \n\n    It is large.\n" * 20_000
    parts = list(split_long(text))
    assert len(parts) > 1
    assert "".join(parts) == text
    assert ranks.encode(text) == json_.encode(text)


@pytest.mark.parametrize("length", [24_999, 25_000, 25_001, 50_000, 50_001])
@pytest.mark.parametrize("unit", [" ", "x"])
def test_runs_are_cut_where_metas_reference_cuts_them(length, unit):
    other = "x" if unit == " " else " "
    text = "ab cd" + other + unit * length + other + "ab"
    full, rest = divmod(length, 25_000)
    parts = [part.count(unit) for part in split_long(text[5:-2])]
    kept = [*[25_000] * full, rest] if rest else [25_000] * full
    assert "".join(split_long(text)) == text
    assert [count for count in parts if count] == kept


def test_a_sentencepiece_model_has_its_own_begin_and_end(llama2):
    assert (llama2.bos_id, llama2.eos_id) == (1, 2)
    assert llama2.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert not {1, 2} & set(llama2.encode("<s>hello</s>"))
    assert llama2.encode_with_special("<s>hello</s>")[0] == 1
    assert llama2.encode_with_special("<s>hello</s>")[-1] == 2
    assert llama2.decode(llama2.encode("hello 안녕")) == "hello 안녕"


def test_the_format_is_recognised_by_content_not_by_name(folder, tmp_path, ranks, json_):
    for name, like in (("tokenizer.model", ranks), ("tokenizer.json", json_)):
        (tmp_path / "some.bin").write_bytes((folder / name).read_bytes())
        assert type(load_tokenizer(tmp_path / "some.bin")) is type(like)


def test_a_directory_is_searched_for_json_then_model_then_original(folder, tmp_path):
    (tmp_path / "original").mkdir()
    data = (folder / "tokenizer.model").read_bytes()
    (tmp_path / "original" / "tokenizer.model").write_bytes(data)
    assert load_tokenizer(tmp_path).path.parent.name == "original"
    (tmp_path / "tokenizer.model").write_bytes(data)
    assert load_tokenizer(tmp_path).path == tmp_path / "tokenizer.model"
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    assert load_tokenizer(tmp_path).path == tmp_path / "tokenizer.json"


def test_the_end_of_a_document_is_not_the_end_of_turn_an_instruct_config_names(folder, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|eot_id|>"}}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_id == tokenizer.special_tokens["<|end_of_text|>"]


def test_padding_and_truncation_stored_in_a_tokenizer_json_are_ignored(folder, tmp_path, ranks):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).encode(TEXTS[0]) == ranks.encode(TEXTS[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a tokenizer", "is no usable tokenizer: a file starting with b'not a tokenizer'"),
        (b"", "is no usable tokenizer"),
        (b'{"model": 1}', "a file JSON, but Cannot instantiate"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"IQ== 0\nnonsense\n", "with b'nonsense' in line 2, where `base64 rank` is expected"),
        (b"IQ== 0\nIg== 7\n", "with 2 ranks that are not 0, 1, ... or lack 254 single bytes"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_an_error(tmp_path, content, message):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=message.replace("(", r"\(")):
        load_tokenizer(path)


def test_a_gap_in_the_ranks_is_an_error(tmp_path):
    lines = [base64.b64encode(bytes([byte])) + f" {byte + (byte > 9)}\n".encode() for byte in range(256)]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    with pytest.raises(CorpusError, match=r"with 256 ranks that are not 0, 1, ... or lack 0 single bytes"):
        load_tokenizer(tmp_path)


def test_a_missing_file_an_empty_directory_and_a_bad_config_are_errors(folder, tmp_path):
    with pytest.raises(CorpusError, match=r"tokenizer.model does not exist"):
        load_tokenizer(tmp_path / "tokenizer.model")
    with pytest.raises(CorpusError, match=r"holds no tokenizer; one of tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CorpusError, match=r"tokenizer_config.json is no JSON"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_a_document_end_is_an_error(folder, tmp_path):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<|end_of_text|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CorpusError, match="without a special token for the end of a document"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_too_small_or_too_large_for_the_text_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="vocab_size 511; 256 bytes and 256 special tokens are needed"):
        train_tokenizer(TEXTS, 511, tmp_path)
    with pytest.raises(CorpusError, match=r"the texts give \d+ tokens; 9000 were asked for"):
        train_tokenizer(TEXTS, 9000, tmp_path)
