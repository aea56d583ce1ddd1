"""What a GPU sends, against counts by hand."""

import pytest

from recipes.training.model.decoder import Architecture
from recipes.training.planning.communication import bytes_per_step, bytes_per_token
from recipes.training.planning.footprint import parameter_counts

LLAMA_8B = Architecture()
TOTAL = sum(parameter_counts(LLAMA_8B).values())


def test_ranks_that_share_matrices_sum_the_hidden_state_four_times_a_layer():
    assert bytes_per_token(LLAMA_8B, 2, 1, "none") == 0
    # 8 KiB of hidden state, 4 sums in each of 32 layers, one of the embedding, one at the output layer
    assert bytes_per_token(LLAMA_8B, 2, 2, "none") == 8192 * (4 * 32 + 2)
    assert bytes_per_token(LLAMA_8B, 2, 8, "none") == 8192 * (4 * 32 + 2) * 2 * 7 / 8
    assert bytes_per_token(LLAMA_8B, 2, 2, "full") == 8192 * (5 * 32 + 2)


def sent(ranks=1, shards=1, replicas=1, gathers=2, reductions=1):
    counts = {"gathers": gathers, "reductions": reductions}
    return bytes_per_step(LLAMA_8B, 2, ranks=ranks, shards=shards, replicas=replicas, **counts)


def test_weights_are_gathered_and_gradients_scattered():
    assert sent() == 0
    assert sent(shards=8) == pytest.approx(7 / 8 * TOTAL * (2 * 2 + 4))
    assert sent(shards=8, gathers=32, reductions=16) == pytest.approx(16 * sent(shards=8))
    assert sent(ranks=8, shards=8) == pytest.approx(sent(shards=8) / 8)


def test_replicas_sum_their_shards_of_the_gradients():
    assert sent(shards=4, replicas=2) - sent(shards=4) == pytest.approx(TOTAL / 4 * 4)
    assert sent(shards=1, replicas=8) == pytest.approx(2 * 7 / 8 * TOTAL * 4)
