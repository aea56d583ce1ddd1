"""Scores against hand-made values and a slow reference."""

import math

import pytest
import torch
import torch.nn.functional as F

from recipes.evaluation.scoring import bits_per_byte, exactly_matches, hangul_share, in_chat_form, is_korean
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


def test_exact_match_folds_form_but_not_content():
    assert exactly_matches(" Paris. ", ["paris"])
    assert exactly_matches("파리입니다", ["파리입니다."])
    assert not exactly_matches("Paris is big.", ["Paris"])
    assert not exactly_matches("", ["Paris"])
