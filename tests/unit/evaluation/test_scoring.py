"""Scores against hand-made values and a slow reference."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from recipes.evaluation.scoring import (
    bits_per_byte,
    exactly_matches,
    hangul_share,
    in_chat_form,
    is_korean,
    repeats,
    windows,
)
from recipes.training.model.decoder import Architecture, build_model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    shape = Architecture(
        vocab_size=64, num_layers=2, num_heads=2, num_kv_heads=1, embed_dim=32, intermediate_dim=64, max_seq_len=64
    )
    return build_model(shape).eval()


def test_bits_per_byte_equals_the_sum_over_windows_at_any_batch(model):
    random = torch.Generator().manual_seed(1)
    documents = [(torch.randint(0, 64, (n,), generator=random).tolist(), 3 * n) for n in (2, 16, 17, 40, 5)]
    nats = 0.0
    for ids, _ in documents:
        for start in range(0, len(ids) - 1, 16):
            window = torch.tensor(ids[start : start + 17])
            with torch.no_grad():
                logits = model(window[None, :-1])[0]
            nats += float(F.cross_entropy(logits, window[1:], reduction="sum"))
    expected = nats / math.log(2) / sum(size for _, size in documents)
    for batch in (1, 2, 8):
        assert bits_per_byte(model, documents, 16, batch) == pytest.approx(expected, rel=1e-5)


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_windows_score_each_token_but_the_first_once_and_show_it_what_the_stride_promises(length, seq_len, data):
    stride = data.draw(st.integers(1, seq_len))
    ids = list(range(length))
    scored, most = [], 0
    for tokens, count in windows(ids, seq_len, stride):
        assert len(tokens) <= seq_len + 1
        assert tokens == ids[tokens[0] : tokens[0] + len(tokens)]
        for token in tokens[len(tokens) - count :]:
            assert token - tokens[0] >= min(token, seq_len - stride + (stride == seq_len))
        scored += tokens[len(tokens) - count :]
        most = max(most, len(tokens) - 1)
    assert scored == ids[1:]
    assert most == min(seq_len, length - 1)


def test_a_window_as_long_as_the_document_is_the_document_at_any_stride(model):
    random = torch.Generator().manual_seed(2)
    document = [(torch.randint(0, 64, (41,), generator=random).tolist(), 100)]
    whole = bits_per_byte(model, document, 40, 1)
    for stride in (1, 7, 40):
        assert bits_per_byte(model, document, 40, 1, stride) == whole


def test_each_token_of_a_sliding_window_sees_exactly_its_window(model):
    """Stride 1: every token behind the first window is scored with the `seq_len` tokens before it."""
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 64, (30,), generator=random)
    nats = 0.0
    for position in range(1, 30):
        seen = ids[max(0, position - 8) : position]
        with torch.no_grad():
            logits = model(seen[None])[0, -1]
        nats += float(F.cross_entropy(logits, ids[position]))
    expected = nats / math.log(2) / 50
    assert bits_per_byte(model, [(ids.tolist(), 50)], 8, 4, stride=1) == pytest.approx(expected, rel=1e-5)
    assert bits_per_byte(model, [(ids.tolist(), 50)], 8, 4) != pytest.approx(expected, rel=1e-3)


def test_bits_per_byte_of_a_uniform_model_is_the_tokens_entropy(model):
    for parameter in model.output.parameters():
        parameter.data.zero_()
    assert bits_per_byte(model, [([1, 2, 3, 4, 5], 8)], 64, 1) == pytest.approx(4 * 6 / 8)  # 4 targets of log2(64)


def test_bits_per_byte_without_text_is_refused(model):
    with pytest.raises(ValueError, match="held-out documents have no text"):
        bits_per_byte(model, [], 16, 1)


@pytest.mark.parametrize(
    ("answer", "ended", "expected"),
    [
        ("서울입니다.", True, True),
        ("서울입니다.", False, False),
        ("  ", True, False),
        ("<|start_header_id|>user<|end_header_id|>\n\n네", True, False),
        ("네<|reserved_special_token_7|>", True, False),
    ],
)
def test_chat_form(answer, ended, expected):
    assert in_chat_form(answer, ended) is expected


def test_language_of_an_answer():
    assert hangul_share("가나 ab") == 0.5
    assert is_korean("서울은 Seoul 이다입니다")
    assert not is_korean("The capital is 서울.")
    assert not is_korean("123 !")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("서울은 대한민국의 수도이다. " * 3, True),
        ("네, 서울은 수도 서울은 수도 서울은 수도 서울은 수도 서울은 수도", True),
        ("아" * 24, True),
        ("아" * 23, False),
        ("서울은 대한민국의 수도이다. " * 2, False),
        ("하하하하 정말요? 네, 네, 네.", False),
        ("---------------------------------", False),
        ("one  two\nthree four " * 3, True),
        ("", False),
    ],
)
def test_an_answer_that_loops_is_found(answer, expected):
    assert repeats(answer) is expected


def test_exact_match_folds_form_but_not_content():
    assert exactly_matches(" Paris. ", ["paris"])
    assert exactly_matches("파리입니다", ["파리입니다."])
    assert not exactly_matches("Paris is big.", ["Paris"])
    assert not exactly_matches("", ["Paris"])
