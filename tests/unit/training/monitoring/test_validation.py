"""Held-out text during training: the number of `recipes/evaluate.py`, each target once, and when it is scored."""

import json
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from configs.loader import ConfigError
from data_prep.document import CorpusError, Document, as_row, write_jsonl
from data_prep.tokens import encode
from data_prep.tokens.shards import Shards
from data_prep.tokens.tokenizer import load_tokenizer
from recipes.evaluation.scoring import bits_per_byte
from recipes.training.data.held_out import Window, open_held_out, pack
from recipes.training.data.order import SampleOrder, Stage
from recipes.training.data.packing import TokenStream
from recipes.training.distributed import process_group
from recipes.training.model import weights
from recipes.training.model.decoder import Architecture, build_model, build_sharded_model
from recipes.training.model.loss import IGNORE
from recipes.training.monitoring.observers import Observers
from recipes.training.monitoring.validation import (
    Validation,
    ValidationSettings,
    batches_of,
    open_validation,
    score,
    share_of,
)
from tests.support import TEXTS, VOCAB, random_shards, tiny_tokenizer
from tests.unit.data_prep.tokens.small_corpus import launch

SEQ_LEN = 16
SHAPE = Architecture(
    vocab_size=VOCAB, num_layers=2, num_heads=2, num_kv_heads=1, embed_dim=16, intermediate_dim=32, max_seq_len=64
)
CFG = OmegaConf.create({"micro_batch": 2, "loss_chunk": 7})
LONG = " ".join(TEXTS) * 2
DOCUMENTS = [Document(str(n), text, "wiki", "ko") for n, text in enumerate([*TEXTS, LONG, "강", LONG[5:300]])]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tokenizer):
    """Makes token shards of `DOCUMENTS` with options of the command."""
    folder = tmp_path_factory.mktemp("corpus")
    write_jsonl(folder / "documents" / "documents-00000.jsonl.zst", map(as_row, DOCUMENTS))

    def make(name, *options):
        out = folder / name
        if not out.exists():
            source = ("--documents", folder / "documents", "--tokenizer", tokenizer.path, "--out", out)
            launch(encode, "tokens", *source, "--workers", 1, *options)
        return Shards.open(out)

    return make


def ids_of(tokenizer, document):
    return [tokenizer.bos_id, *tokenizer.encode(document.text)]


def expected(model, tokenizer, documents):
    pairs = [(ids_of(tokenizer, document), len(document.text.encode())) for document in documents]
    return bits_per_byte(model, pairs, SEQ_LEN, 3)


def plain_model():
    model = build_model(SHAPE).eval()
    weights.initialise(model, 0)
    return model


def bits(text, stop=()):
    """Scores a text with the sharded model on one rank."""
    with process_group("cpu") as world:
        model = build_sharded_model(SHAPE, world, "fp32", "none")
        weights.initialise(model, 0)
        settings = ValidationSettings(data={"ko": "x"})
        values = Validation(settings, 10, [text]).run(model, CFG, world, 0, stop)
    return values and values["validation/ko/bits_per_byte"]


@pytest.mark.parametrize("options", [(), ("--no-eos",), ("--no-bos",), ("--no-bos", "--no-eos")])
def test_it_is_the_number_that_evaluation_gives_for_the_same_text(corpus, tokenizer, options):
    shards = corpus("shards" + "".join(options), *options)
    text = open_held_out("ko", shards, SEQ_LEN, None, None)
    assert bits(text) == pytest.approx(expected(plain_model(), tokenizer, DOCUMENTS), rel=1e-5)


def test_a_part_of_the_text_is_scored_as_whole_documents_with_their_own_bytes(corpus, tokenizer):
    shards = corpus("shards")
    text = open_held_out("ko", shards, SEQ_LEN, 150, tokenizer)
    chosen = sorted({int(name.split()[1]) for i in range(text.num_sequences) for name in text.documents(i)})
    assert 1 < len(chosen) < len(DOCUMENTS)
    assert shards.document_lengths[chosen].sum() <= 150
    assert bits(text) == pytest.approx(expected(plain_model(), tokenizer, [DOCUMENTS[n] for n in chosen]), rel=1e-5)
    again = open_held_out("ko", Shards.open(shards.folder), SEQ_LEN, 150, tokenizer)
    assert again.fingerprint == text.fingerprint


@pytest.mark.parametrize("options", [(), ("--no-bos", "--no-eos")])
def test_every_token_of_the_text_is_a_target_once_and_sees_its_window_alone(corpus, tokenizer, options):
    text = open_held_out("ko", corpus("shards" + "".join(options), *options), SEQ_LEN, None, None)
    found = []
    for index in range(text.num_sequences):
        sample = text.sample(index)
        for number in range(len(text.documents(index))):
            own = sample.documents == number
            assert np.all(np.diff(np.flatnonzero(own)) == 1)
            found.append((sample.tokens[own].tolist(), sample.targets[own].tolist()))
        assert np.all(sample.targets[sample.documents < 0] == IGNORE)
    windows = []
    for ids in (ids_of(tokenizer, document) for document in DOCUMENTS):
        windows += [(ids[i : i + SEQ_LEN], ids[i + 1 : i + SEQ_LEN + 1]) for i in range(0, len(ids) - 1, SEQ_LEN)]
    assert sorted(found) == sorted((tokens[: len(targets)], targets) for tokens, targets in windows)
    assert text.num_tokens == sum(len(targets) for _, targets in windows)
    empty = text.sample(text.num_sequences)
    assert set(empty.targets) == {IGNORE}


@given(st.lists(st.integers(1, 16), max_size=60))
def test_packing_keeps_each_window_once_and_within_a_sequence(sizes):
    windows = [Window(number, 0, size + 1) for number, size in enumerate(sizes)]
    packed = pack(windows, 16)
    assert sorted(w.document for sequence in packed for w in sequence) == list(range(len(sizes)))
    assert all(sum(w.stop - 1 for w in sequence) <= 16 for sequence in packed)
    assert len(packed) <= 2 * math.ceil(sum(sizes) / 16) + 1


def test_it_changes_nothing_and_ends_at_once_when_asked_to_stop(corpus):
    text = open_held_out("ko", corpus("shards"), SEQ_LEN, None, None)
    assert bits(text, stop=[15]) is None
    with process_group("cpu") as world:
        model = build_sharded_model(SHAPE, world, "fp32", "full")
        weights.initialise(model, 0)
        state, random = {n: p.clone() for n, p in model.state_dict().items()}, torch.get_rng_state()
        validation = Validation(ValidationSettings(data={}), 10, [text])
        first = validation.run(model, CFG, world, 0, [])
        assert validation.run(model, CFG, world, 5, [])["validation/ko/loss"] == first["validation/ko/loss"]
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(p, state[n]) for n, p in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)


def test_a_baseline_that_is_not_of_the_start_is_told(corpus, caplog):
    text = open_held_out("en", corpus("shards"), SEQ_LEN, None, None)
    with process_group("cpu") as world:
        model = build_sharded_model(SHAPE, world, "fp32", "none")
        weights.initialise(model, 0)
        for first, told in ((0, False), (5, True)):
            validation = Validation(ValidationSettings(data={}, every_steps=1), 10, [text])
            observers = Observers(CFG, plan([0.9, 0.1]), world, None, None, validation, None)
            for step in (first, first + 1):
                assert observers.validate(SimpleNamespace(step=step, model=model), [])
            assert validation.baseline_step == first
            assert ("step 5: rises are told over this step and not over the start" in caplog.text) is told
            assert caplog.text.count("rises are told") == told


class Text:
    """What `Validation` asks of a text before it is scored."""

    def __init__(self, name="en", fingerprint="a"):
        self.name, self.fingerprint = name, fingerprint


def test_it_is_due_at_the_start_regularly_and_at_the_end_and_once_each():
    validation = Validation(ValidationSettings(every_steps=4), 10, [Text()])
    due = []
    for step in range(11):
        if validation.is_due(step):
            due.append(step)
            validation.restore(validation.state | {"step": step, "baseline": {"en": 2.0}})
            assert not validation.is_due(step)
    assert due == [0, 4, 8, 10]


def test_its_state_survives_json_and_other_texts_have_another_baseline():
    validation = Validation(ValidationSettings(every_steps=4), 10, [Text()])
    state = json.loads(json.dumps(validation.state | {"step": 4, "baseline": {"en": 2.0}, "baseline_step": 0}))
    validation.restore(state)
    assert validation.state == state
    changed = Validation(ValidationSettings(every_steps=4), 10, [Text(fingerprint="b")])
    changed.restore(state)
    assert changed.is_due(5)
    assert changed.state["baseline"] == {}
    unchanged = Validation(ValidationSettings(every_steps=4), 10, [Text()])
    unchanged.restore(None)  # a checkpoint of a run without validation
    assert unchanged.is_due(5)


def test_the_alarm_compares_with_the_start_and_knows_what_is_replayed():
    validation = Validation(ValidationSettings(max_rise=0.05), 10, [Text()])
    validation.restore(validation.state | {"step": 4, "baseline": {"en": 2.0}})
    values = {"validation/en/rise": 0.06, "validation/en/bits_per_byte": 2.12}
    figures, warning = validation.judge(values, plan([0.9, 0.1]))
    assert figures == {"validation/forgetting": 1, "validation/suggested_replay": 0.25}
    assert "2.1200 bits per byte, 6.0% above the 2.0000 of step 0" in warning
    assert validation.judge(values, plan([0.9, 0.1])) == (figures, "")
    without = Validation(ValidationSettings(max_rise=None), 10, [Text()])
    assert without.judge(values, plan([0.9, 0.1])) == ({}, "")


def plan(shares, langs=("ko", "en"), stages=()):
    exact = [Stage(0, tuple(Fraction(str(share)) for share in shares)), *stages]
    entries = tuple(SimpleNamespace(lang=lang) for lang in langs)
    return SimpleNamespace(
        order=SampleOrder(exact, 8, 0), mixture=SimpleNamespace(sources=entries), sequences_per_step=8
    )


def test_the_share_of_a_language_is_that_of_the_step_before():
    later = Stage(4, (Fraction(1, 2), Fraction(1, 2)), ramp_steps=2)
    assert share_of("en", plan([0.9, 0.1], stages=[later]), 0) == pytest.approx(0.1)
    assert share_of("en", plan([0.9, 0.1], stages=[later]), 4) == pytest.approx(0.1)
    assert share_of("en", plan([0.9, 0.1], stages=[later]), 5) == pytest.approx(0.2)
    assert share_of("en", plan([0.9, 0.1], stages=[later]), 7) == pytest.approx(0.5)
    assert share_of("en", plan([0.9, 0.1], langs=("en", "en")), 3) == pytest.approx(1)
    assert share_of("en", plan([0.9, 0.1], langs=("ko", None)), 3) is None


def test_what_cannot_be_scored_is_refused(corpus, tokenizer, tmp_path):
    shards = corpus("shards")
    with pytest.raises(CorpusError, match=r"max_tokens: 2, and the shortest document of ko has \d tokens"):
        open_held_out("ko", shards, SEQ_LEN, 2, tokenizer)
    with pytest.raises(CorpusError, match=r"the tokenizer that made .* is not found; it is needed to count the bytes"):
        open_held_out("ko", shards, SEQ_LEN, 50, None)
    unknown = Shards.open(random_shards(tmp_path / "unknown", documents=3))
    with pytest.raises(CorpusError, match="does not say how many bytes its text has; bits per byte need `utf8_bytes`"):
        open_held_out("ko", unknown, SEQ_LEN, None, None)


def test_text_that_is_trained_on_is_refused(corpus):
    shards = corpus("shards")
    model = {"vocab_size": VOCAB}
    validation = {"data": {"ko": str(shards.folder)}, "max_tokens": None}
    cfg = OmegaConf.create({"validation": validation, "weights": None, "model": model, "seq_len": 16, "seed": 0})
    trained = SimpleNamespace(
        mixture=SimpleNamespace(sources=[SimpleNamespace(name="wiki")]), sources=[TokenStream(shards, 16, 0)]
    )
    with pytest.raises(ConfigError, match=r"ko: .* holds the same tokens as wiki, which the run trains on; held-out"):
        open_validation(cfg, trained)
    assert open_validation(OmegaConf.create({"validation": None}), trained) is None


def test_the_sums_of_a_text_are_those_of_its_batches(corpus):
    text = open_held_out("ko", corpus("shards"), SEQ_LEN, None, None)
    with process_group("cpu") as world:
        model = build_sharded_model(SHAPE, world, "fp32", "none")
        weights.initialise(model, 0)
        nats = {}
        for micro_batch in (1, 2, 5):
            cfg = OmegaConf.create({"micro_batch": micro_batch, "loss_chunk": 0})
            nats[micro_batch], targets = score(model, text, batches_of(text, micro_batch, world), cfg, world, [])
            assert targets == text.num_tokens
    assert nats[2] == pytest.approx(nats[1], rel=1e-6)
    assert nats[5] == pytest.approx(nats[1], rel=1e-6)
