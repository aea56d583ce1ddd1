import io
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from data_prep.filters import special_tokens
from data_prep.filters.special_tokens import defuse
from data_prep.tokens.tokenizer import load_tokenizer
from data_prep.tokens.tokenizer_formats import llama3_special_tokens
from tests.support import tiny_tokenizer

OTHERS = [
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "<|im_start|>",
    "<｜User｜>",
    "<0x0A>",
]


@pytest.mark.parametrize(
    ("text", "expected", "number"),
    [
        ("끝은 <|endoftext|>이다", "끝은 < |endoftext| >이다", 1),
        ("<|eot_id|><|eot_id|>", "< |eot_id| >< |eot_id| >", 2),
        ("[INST] <<SYS>> 너는 <</SYS>> [/INST]", "[ INST ] < <SYS> > 너는 < </SYS> > [ /INST ]", 4),
        ("<s>줄</s>", "< s >줄< /s >", 2),
        ("<|begin<|end|>", "<|begin< |end| >", 1),
        ("<｜end▁of▁sentence｜>", "< ｜end▁of▁sentence｜ >", 1),
    ],
)
def test_special_tokens_are_written_apart(text: str, expected: str, number: int) -> None:
    assert defuse(text) == (expected, number)


@pytest.mark.parametrize(
    "text", ["|x| < 3이고 y > |z|", "a[0], [1], [[링크]]", "<span>", "x <- y |> f()", "[주 1] <책>", "if a<b||c>d:"]
)
def test_other_brackets_stay(text: str) -> None:
    assert defuse(text) == (text, 0)


@given(
    st.lists(st.sampled_from([*OTHERS, *llama3_special_tokens()[:3], "<", ">", "|", "[", "]", "가", " "])).map("".join)
)
def test_none_is_left_and_once_is_enough(text: str) -> None:
    once, _ = defuse(text)
    assert defuse(once) == (once, 0)
    assert not [token for token in [*OTHERS, *llama3_special_tokens()] if token in once]


def test_the_llama3_tokenizer_finds_no_special_token() -> None:
    package = pytest.importorskip("llama_models")
    tokenizer = load_tokenizer(Path(package.__path__[0]) / "llama3" / "tokenizer.model")
    check(tokenizer)


def check(tokenizer) -> None:
    text = "모형은 " + " 그리고 ".join([*tokenizer.special_tokens, *OTHERS]) + " 같은 글을 읽는다."
    specials = set(tokenizer.special_tokens.values())
    assert specials & set(tokenizer.encode_with_special(text))
    safe, number = defuse(text)
    assert number >= len(OTHERS)
    assert not specials & set(tokenizer.encode_with_special(safe))
    assert "".join(safe.split()) == "".join(text.split())  # a reader sees the same


def test_a_tokenizer_json_with_chat_tokens_finds_none(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path)
    model = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    model.add_special_tokens(OTHERS)
    model.save(str(tmp_path / "tokenizer.json"))
    check(load_tokenizer(tmp_path))


def test_a_sentencepiece_model_finds_none() -> None:
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["서울은 대한민국의 수도이다", "모형은 글을 읽는다 s INST SYS im_start"] * 50),
        model_writer=file,
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        user_defined_symbols=[token for token in OTHERS if token not in ("<s>", "</s>", "<unk>", "<pad>", "<0x0A>")],
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    text = "모형은 " + " ".join(OTHERS) + " 읽는다"
    defined = {model.piece_to_id(token) for token in OTHERS}
    assert len(defined & set(model.encode(text))) >= 5
    assert not defined & set(model.encode(defuse(text)[0]))


def test_the_wiki_cleaner_writes_them_alike() -> None:
    from data_prep.wiki import wikitext

    text = "이 글은 <nowiki><|eot_id|></nowiki>에서 끝난다."
    assert wikitext.clean(text) == special_tokens.defuse("이 글은 <|eot_id|>에서 끝난다.")[0]
