"""Packing loses no token, and the order depends on data, seed and step alone."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from configs.loader import ConfigError
from data_prep.dialogue.chat_template import LLAMA3, ChatTemplate
from data_prep.document import CorpusError
from data_prep.tokens.shards import Shards
from data_prep.tokens.tokenizer import load_tokenizer
from recipes.training.data import PADDING, Batches, ChatExamples, SampleOrder, TokenStream, data_entries
from recipes.training.loss import IGNORE
from tests.support import random_shards, tiny_tokenizer

SEQ_LEN = 64
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return Shards.open(random_shards(tmp_path_factory.mktemp("data") / "shards"))


def test_an_epoch_trains_every_token_but_document_starts_exactly_once(shards):
    stream = TokenStream(shards, SEQ_LEN, seed=0)
    documents = [shards.read(d, 0, int(n)) for d, n in enumerate(shards.document_lengths)]
    expected = Counter(int(t) for ids in documents for t in ids[1:])
    trained, read = Counter(), 0
    whole = shards.num_tokens // SEQ_LEN
    for index in range(whole + 1):
        sample = stream.sample(index)
        keep = SEQ_LEN if index < whole else shards.num_tokens - whole * SEQ_LEN  # then the second epoch begins
        targets = sample.targets[:keep]
        trained.update(targets[targets != IGNORE].tolist())
        read += keep
    assert read == shards.num_tokens
    assert trained == expected


def test_targets_are_the_next_tokens_and_never_cross_a_document(shards):
    stream = TokenStream(shards, SEQ_LEN, seed=3)
    for index in range(40):
        sample = stream.sample(index)
        for i in range(SEQ_LEN - 1):
            if sample.documents[i] == sample.documents[i + 1]:
                assert sample.targets[i] == sample.tokens[i + 1]
            else:
                assert sample.targets[i] == IGNORE


def test_epochs_have_different_orders_and_seeds_too(shards):
    def first(seed, start):
        return TokenStream(shards, SEQ_LEN, seed).sample(start).tokens.tolist()

    assert first(0, 0) == first(0, 0)
    assert first(0, 0) != first(1, 0)
    assert first(0, 0) != first(0, shards.num_tokens // SEQ_LEN + 1)


@pytest.mark.parametrize("weights", [[1.0], [0.7, 0.3], [5, 1, 1], [0.97, 0.03]])
def test_every_source_has_its_share_after_every_step(weights):
    order, drawn = SampleOrder(weights, 8, seed=0), Counter()
    for step in range(200):
        picks = order.step(step)
        assert len(picks) == 8
        drawn.update(source for source, _ in picks)
        for source, weight in enumerate(weights):
            assert abs(drawn[source] - weight / sum(weights) * 8 * (step + 1)) <= 1
    for source in range(len(weights)):
        indices = sorted(i for step in range(200) for s, i in order.step(step) if s == source)
        assert indices == list(range(len(indices)))


def test_order_needs_no_history():
    straight = SampleOrder([0.6, 0.4], 6, seed=1)
    rows = [straight.step(step) for step in range(30)]
    assert [SampleOrder([0.6, 0.4], 6, seed=1).step(step) for step in (29, 7, 12)] == [rows[29], rows[7], rows[12]]
    assert straight.step(3) == rows[3]


@pytest.mark.parametrize(("world", "micro_batch"), [(2, 1), (4, 2), (1, 8)])
def test_a_step_has_the_same_sequences_at_any_world_size(shards, world, micro_batch):
    def step(size, micro):
        rows = []
        for rank in range(size):
            batches = Batches([TokenStream(shards, SEQ_LEN, 0)], SampleOrder([1], 8, 0), micro, rank, size)
            rows += [row.tolist() for batch in batches.micro_batches(5, CPU) for row in batch.tokens]
        return sorted(rows)

    assert step(world, micro_batch) == step(1, 1)


def test_attention_and_positions_stay_within_a_document(shards):
    batches = Batches([TokenStream(shards, SEQ_LEN, 0)], SampleOrder([1], 4, 0), 4, 0, 1)
    batch = batches.micro_batches(0, CPU)[0]
    samples = [TokenStream(shards, SEQ_LEN, 0).sample(index) for _, index in SampleOrder([1], 4, 0).step(0)]
    for row, sample in enumerate(samples):
        for i in range(SEQ_LEN):
            start = int(np.flatnonzero(sample.documents == sample.documents[i])[0])
            assert batch.positions[row, i] == i - start
            assert batch.mask[row, i].nonzero().flatten().tolist() == list(range(start, i + 1))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return ChatTemplate(load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))), LLAMA3)


def write_examples(path, count=30):
    rows = []
    for number in range(count):
        messages = [
            {"role": "user", "content": f"What is {number}?"},
            {"role": "assistant", "content": f"It is {number}." * (1 + number % 4)},
        ]
        rows.append(json.dumps({"id": str(number), "messages": messages}))
    path.write_text("\n".join(rows) + "\n")
    return path


def test_each_chat_example_is_packed_whole_once_an_epoch_with_loss_on_answers(tmp_path, template):
    source = ChatExamples(write_examples(tmp_path / "chat.jsonl"), template, 160, seed=0, over_long="error")
    seen, index = Counter(), 0
    while sum(seen.values()) < 30:
        sample = source.sample(index)
        for number in range(sample.documents.max() + 1):
            here = sample.documents == number
            targets = sample.targets[here]
            seen[template.tokenizer.decode(targets[targets != IGNORE].tolist(), skip_special=False)] += 1
        assert (sample.targets[sample.documents == PADDING] == IGNORE).all()
        index += 1
    assert seen == Counter(f"It is {n}." * (1 + n % 4) + "<|eot_id|>" for n in range(30))


def test_over_long_examples_are_an_error_or_dropped_and_counted(tmp_path, template):
    path = write_examples(tmp_path / "chat.jsonl")
    with pytest.raises(
        CorpusError, match=r"example \d+ has \d+ tokens; seq_len is 70; raise it, or set over_long=drop"
    ):
        ChatExamples(path, template, 70, seed=0, over_long="error")
    assert ChatExamples(path, template, 70, seed=0, over_long="drop").dropped > 0
    with pytest.raises(CorpusError, match="holds no example of at most 4 tokens"):
        ChatExamples(path, template, 4, seed=0, over_long="drop")


def test_data_takes_a_path_or_weighted_entries(tmp_path):
    folder, file = tmp_path / "shards", tmp_path / "chat.jsonl"
    folder.mkdir()
    file.touch()
    assert data_entries(str(folder)) == [{"shards": folder, "weight": 1.0}]
    assert data_entries([{"chat": str(file), "weight": 2}, str(folder)]) == [
        {"chat": file, "weight": 2},
        {"shards": folder, "weight": 1.0},
    ]


def test_bad_data_entries_are_reported_together(tmp_path):
    bad = [{"shard": "x"}, {"shards": str(tmp_path / "absent")}, {"shards": str(tmp_path), "weight": 0}]
    with pytest.raises(ConfigError, match="3 problem") as error:
        data_entries(bad)
    for expected in (
        "data[0]: has keys shard",
        "data[1]: ",
        "does not exist",
        "data[2]: weight 0 is not a number above 0",
    ):
        assert expected in str(error.value)
    with pytest.raises(ConfigError, match="data: is empty"):
        data_entries([])
