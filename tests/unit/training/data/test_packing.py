"""Packing loses no token, and the order depends on data, seed and step alone."""

import json
import threading
from collections import Counter

import numpy as np
import pytest
import torch

from data_prep.dialogue.chat_rows import ChatSource
from data_prep.dialogue.chat_template import LLAMA3, ChatTemplate
from data_prep.document import CorpusError
from data_prep.tokens.shards import Shards, ShardWriter
from data_prep.tokens.tokenizer import load_tokenizer
from recipes.training.data.batches import Batches
from recipes.training.data.chat_examples import Policies
from recipes.training.data.order import SampleOrder, Stage, as_shares
from recipes.training.data.packing import PADDING, ChatExamples, TokenStream
from recipes.training.model.loss import IGNORE
from tests.support import random_shards, tiny_tokenizer

SEQ_LEN = 64
CPU = torch.device("cpu")
EVEN = [Stage(0, as_shares([1]))]


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


def numbered_shards(folder, first, documents=60):
    """Writes documents in which every token of the folder is another one."""
    with ShardWriter(folder) as writer:
        for length in np.random.default_rng(first).integers(2, 200, documents):
            writer.add(np.arange(first, first + length, dtype=np.uint32))
            first += int(length)
        writer.finish({})
    return Shards.open(folder)


def test_no_token_is_read_twice_within_an_epoch_whatever_the_stages(tmp_path):
    sources = [TokenStream(numbered_shards(tmp_path / str(n), n * 10**6), SEQ_LEN, seed=0) for n in range(2)]
    stages = [Stage(0, as_shares([0.8, 0.2])), Stage(3, as_shares([0.3, 0.7]), 5), Stage(11, as_shares([0.5, 0.5]))]
    order, batches = SampleOrder(stages, 8, 0), Counter()
    steps = next(s for s in range(1000) if order.counts(s)[0] >= sources[0].sequences_per_epoch)
    assert steps > 11
    reader = Batches(sources, order, 4, 0, 1)
    for step in range(steps):
        for batch in reader.micro_batches(step, CPU):
            batches.update(batch.tokens.flatten().tolist())
    for number, source in enumerate(sources):
        epochs = order.counts(steps)[number] / source.sequences_per_epoch
        counts = [n for token, n in batches.items() if token // 10**6 == number]
        assert sum(counts) == order.counts(steps)[number] * SEQ_LEN
        assert set(counts) <= {int(epochs), int(epochs) + 1}
        assert len(counts) == source.num_tokens or epochs < 1


@pytest.mark.parametrize(("world", "micro_batch"), [(2, 1), (4, 2), (1, 8)])
def test_a_step_has_the_same_sequences_at_any_world_size(shards, world, micro_batch):
    def step(size, micro):
        rows = []
        for rank in range(size):
            batches = Batches([TokenStream(shards, SEQ_LEN, 0)], SampleOrder(EVEN, 8, 0), micro, rank, size)
            rows += [row.tolist() for batch in batches.micro_batches(5, CPU) for row in batch.tokens]
        return sorted(rows)

    assert step(world, micro_batch) == step(1, 1)


def test_attention_and_positions_stay_within_a_document(shards):
    batches = Batches([TokenStream(shards, SEQ_LEN, 0)], SampleOrder(EVEN, 4, 0), 4, 0, 1)
    batch = batches.micro_batches(0, CPU)[0]
    samples = [TokenStream(shards, SEQ_LEN, 0).sample(index) for _, index in SampleOrder(EVEN, 4, 0).step(0)]
    starts = []
    for row, sample in enumerate(samples):
        for i in range(SEQ_LEN):
            start = int(np.flatnonzero(sample.documents == sample.documents[i])[0])
            assert batch.positions[row, i] == i - start
            starts += [row * SEQ_LEN + i] if i == start else []
    assert batch.documents.ends == (*starts[1:], 4 * SEQ_LEN)
    assert batch.num_targets == sum((sample.targets != IGNORE).sum() for sample in samples)


class Noting:
    """A source that notes in which thread it was read, and fails at an index."""

    def __init__(self, stream, fails_at=None):
        self.stream, self.fails_at, self.threads = stream, fails_at, {}

    def sample(self, index):
        self.threads[index] = threading.current_thread()
        if index == self.fails_at:
            raise OSError(f"sequence {index} cannot be read")
        return self.stream.sample(index)


def test_the_next_step_is_made_in_the_background_and_is_what_it_would_be_alone(shards):
    source = Noting(TokenStream(shards, SEQ_LEN, 0))
    batches = Batches([source], SampleOrder(EVEN, 4, 0), 2, 0, 1)
    for step in (0, 1, 2, 7, 7, 3):  # in order, as a resumed run starts, again, and back
        alone = Batches([TokenStream(shards, SEQ_LEN, 0)], SampleOrder(EVEN, 4, 0), 2, 0, 1).micro_batches(step, CPU)
        for mine, wanted in zip(batches.micro_batches(step, CPU), alone, strict=True):
            assert torch.equal(mine.tokens, wanted.tokens)
            assert torch.equal(mine.targets, wanted.targets)
            assert torch.equal(mine.positions, wanted.positions)
            assert mine.documents.ends == wanted.documents.ends
    ahead = {index for index, thread in source.threads.items() if thread is not threading.main_thread()}
    assert {4, 5, 6, 7, 8, 9, 10, 11} <= ahead
    assert not ahead & {0, 1, 2, 3}


def test_what_fails_in_the_background_is_raised_when_its_step_is_asked_for(shards):
    batches = Batches([Noting(TokenStream(shards, SEQ_LEN, 0), fails_at=6)], SampleOrder(EVEN, 4, 0), 2, 0, 1)
    batches.micro_batches(0, CPU)
    with pytest.raises(OSError, match="sequence 6 cannot be read"):
        batches.micro_batches(1, CPU)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return ChatTemplate(load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))), LLAMA3)


def chat(path):
    return ChatSource(str(path))


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
    source = ChatExamples(chat(write_examples(tmp_path / "chat.jsonl")), template, 160, 0, Policies())
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
        CorpusError,
        match=r"example \d+ has \d+ tokens; seq_len is 70; raise it, or set over_long=drop or over_long=",
    ):
        ChatExamples(chat(path), template, 70, 0, Policies())
    found = ChatExamples(chat(path), template, 70, 0, Policies(over_long="drop")).found.ledger()
    assert found["in"] == 30 == found["out"] + found["dropped"]["over_long"]
    with pytest.raises(CorpusError, match="holds no example of at most 4 tokens"):
        ChatExamples(chat(path), template, 4, 0, Policies(over_long="drop"))


def test_sources_tell_their_size_and_name_their_documents(shards, tmp_path, template):
    stream = TokenStream(shards, SEQ_LEN, seed=0)
    assert stream.num_tokens == shards.num_tokens == stream.sequences_per_epoch * SEQ_LEN
    for index in (0, 7, 1000):
        sample, names = stream.sample(index), stream.documents(index)
        assert len(names) == sample.documents.max() + 1
        for place, name in enumerate(names):
            ids = sample.tokens[sample.documents == place].tolist()
            whole = shards.read(int(name.split()[1]), 0, int(shards.document_lengths[int(name.split()[1])])).tolist()
            assert any(whole[i : i + len(ids)] == ids for i in range(len(whole)))
    examples = ChatExamples(chat(write_examples(tmp_path / "chat.jsonl")), template, 160, 0, Policies())
    epoch = [name for index in range(int(examples.sequences_per_epoch)) for name in examples.documents(index)]
    assert sorted(epoch, key=int) == [str(n) for n in range(30)]
    assert len(examples.documents(1)) == examples.sample(1).documents.max() + 1
