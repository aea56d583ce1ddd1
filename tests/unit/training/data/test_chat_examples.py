"""What becomes of each chat example: the ledger adds up, parts are whole turns, and packing changes no loss."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_prep.dialogue.chat_rows import ChatSource
from data_prep.dialogue.chat_template import LLAMA3, ChatTemplate
from data_prep.dialogue.named_templates import KULLM
from data_prep.document import CorpusError
from data_prep.tokens.tokenizer import load_tokenizer
from recipes.training.data.batches import collate
from recipes.training.data.chat_examples import ExampleSet, Policies, encode_examples
from recipes.training.data.packing import ChatExamples
from recipes.training.data.show import draw, faults, histogram
from recipes.training.data.sources import open_template
from recipes.training.model.attention import use_own_attention
from recipes.training.model.decoder import Architecture, build_model
from recipes.training.model.loss import IGNORE
from recipes.training.model.weights import initialise
from tests.support import VOCAB, tiny_tokenizer

SEQ_LEN = 400
DROP = Policies(invalid="drop", empty_answers="drop", special_tokens="drop", over_long="drop")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module", params=[LLAMA3, KULLM], ids=["llama3", "kullm"])
def template(request, tokenizer):
    return ChatTemplate(tokenizer, request.param)


@pytest.fixture(scope="module")
def llama3(tokenizer):
    return ChatTemplate(tokenizer, LLAMA3)


def dialogue(turns, system=None, length=1):
    messages = [] if system is None else [{"role": "system", "content": system}]
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Q{turn}"})
        messages.append({"role": "assistant", "content": f"A{turn}" * length})
    return messages


def write(folder, rows):
    path = folder / "chat.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return ChatSource(str(path))


def learnt(one, tokenizer):
    return tokenizer.decode(one.ids[one.is_learnt].tolist(), skip_special=False)


BAD = [
    {"id": "sound", "messages": dialogue(2)},
    {"id": "long", "messages": dialogue(1, length=200)},
    {"id": "empty", "prompt": "Q", "completion": " "},
    {"id": "special", "prompt": "Q", "completion": "<|eot_id|>"},
    {"id": "order", "messages": dialogue(1)[::-1]},
    {"id": "question", "prompt": "", "completion": "A"},
    "{broken",
    {"id": "fields"},
    {"id": "sound too", "messages": dialogue(1, "S")},
]


def test_what_is_read_is_learnt_or_dropped_for_a_reason_that_is_counted(tmp_path, template):
    found = encode_examples(write(tmp_path, BAD), template, SEQ_LEN, DROP)
    assert [one.name for one in found.examples] == ["sound", "sound too"]
    ledger = found.ledger()
    reasons = {"empty_answer": 1, "empty_question": 1, "malformed": 2, "over_long": 1, "roles": 1, "special_tokens": 1}
    assert (ledger["in"], ledger["out"], ledger["dropped"]) == (9, 2, reasons)
    assert ledger["tokens"] == sum(len(one.ids) for one in found.examples)
    assert ledger["learnt_tokens"] == sum(int(one.is_learnt.sum()) for one in found.examples)
    assert [one.place.rsplit(":", 1)[1] for one in found.dropped] == ["2", "3", "4", "5", "6", "7", "8"]
    told = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
    assert found.describe().endswith(f"9 examples read, 2 to learn from; dropped {told}")


@pytest.mark.parametrize(
    ("key", "line", "message"),
    [
        (
            "over_long",
            2,
            r"example long has \d+ tokens; seq_len is 400; raise it, or set over_long=drop or over_long=split",
        ),
        ("empty_answers", 3, r"message 1 has the content ' '; .*, or set empty_answers=drop"),
        ("special_tokens", 4, r"example special: message 1 holds <\|eot_id\|>; .*, or set special_tokens=drop"),
        ("invalid", 5, r"turn 0 has the role 'assistant'; .*, or set invalid=drop"),
    ],
)
def test_a_policy_of_error_names_the_first_example_and_the_key(tmp_path, llama3, key, line, message):
    policies = Policies(**{**vars(DROP), key: "error"})
    with pytest.raises(CorpusError, match=rf"chat.jsonl:{line}: {message}"):
        encode_examples(write(tmp_path, BAD), llama3, SEQ_LEN, policies)
    found = encode_examples(write(tmp_path, BAD), llama3, SEQ_LEN, policies, strict=False)
    assert found.ledger()["out"] == 2
    stopping, lines = faults(found, policies)
    assert stopping
    assert sum(f"the run would end here, as {key}=error" in told for told in lines) == (3 if key == "invalid" else 1)
    assert not faults(found, DROP)[0]


def test_nothing_to_learn_from_is_an_error(tmp_path, llama3):
    with pytest.raises(CorpusError, match=r"to learn from \(.*: 1 examples read, 0 to learn from; dropped 1 roles"):
        encode_examples(write(tmp_path, [{"messages": []}]), llama3, SEQ_LEN, DROP)


@pytest.mark.parametrize("system", [None, "S."])
def test_a_long_dialogue_is_split_between_turns_into_parts_that_fit(tmp_path, template, system):
    rows = [{"id": "d", "messages": dialogue(9, system)}, {"id": "short", "messages": dialogue(1, system)}]
    source, split = write(tmp_path, rows), Policies(over_long="split")
    limit = len(template.encode(dialogue(4, system))[0])
    found = encode_examples(source, template, limit, split)
    assert [one.name for one in found.examples] == ["d/1", "d/2", "d/3", "short"]
    ledger = found.ledger()
    assert (ledger["in"], ledger["out"], ledger["dropped"]) == (2, 4, {})
    assert ledger["split"] == {"examples": 1, "into": 3, "turns_dropped": 0}
    end = template.tokenizer.decode([template.end_of_turn], skip_special=False)
    parts = "".join(learnt(one, template.tokenizer) for one in found.examples[:3])
    assert parts.split(end) == [*(f"A{turn}" for turn in range(9)), ""]
    for one in found.examples:
        assert len(one.ids) <= limit
        text = template.tokenizer.decode(one.ids.tolist())
        assert (system is None) or text.count("S.") == 1
    whole = encode_examples(source, template, 1000, split).ledger()  # no answer is learnt twice or not at all
    assert whole["learnt_tokens"] == ledger["learnt_tokens"]
    assert "split" not in whole


def test_a_turn_too_long_by_itself_is_left_out_of_its_dialogue_and_counted(tmp_path, llama3):
    messages = dialogue(4)
    messages[3]["content"] *= 200
    rows = [{"id": "d", "messages": messages}, {"id": "hopeless", "messages": dialogue(1, length=200)}]
    limit = len(llama3.encode(dialogue(2))[0])
    found = encode_examples(write(tmp_path, rows), llama3, limit, Policies(over_long="split"))
    assert [learnt(one, llama3.tokenizer) for one in found.examples] == ["A0<|eot_id|>", "A2<|eot_id|>A3<|eot_id|>"]
    ledger = found.ledger()
    assert (ledger["in"], ledger["out"], ledger["dropped"]) == (2, 2, {"over_long": 1})
    assert ledger["split"] == {"examples": 1, "into": 2, "turns_dropped": 1}
    assert found.describe().endswith("dropped 1 over_long; split 1 into 2, without 1 turns too long by themselves")


def test_the_last_answer_alone_is_learnt_if_asked_for(tmp_path, llama3):
    source = write(tmp_path, [{"messages": dialogue(3)}])
    for train_on, text in (("all", "A0<|eot_id|>A1<|eot_id|>A2<|eot_id|>"), ("last", "A2<|eot_id|>")):
        (one,) = encode_examples(source, llama3, SEQ_LEN, Policies(train_on=train_on)).examples
        assert learnt(one, llama3.tokenizer) == text


def test_a_ledger_that_does_not_add_up_is_an_error():
    with pytest.raises(CorpusError, match="x: 3 examples \\+ 0 parts of 0 are not 0 learnt \\+ 0 dropped"):
        ExampleSet("x", num_in=3).ledger()


def test_the_fingerprint_is_of_the_ids_and_of_what_is_learnt(tmp_path, llama3, tokenizer):
    def fingerprint(row, template=llama3, train_on="all"):
        return encode_examples(write(tmp_path, [row]), template, SEQ_LEN, Policies(train_on=train_on)).fingerprint()

    row = {"id": "a", "messages": dialogue(2)}
    assert fingerprint(row) == fingerprint({**row, "id": "renamed"})
    others = [fingerprint(row, train_on="last"), fingerprint(row, ChatTemplate(tokenizer, KULLM))]
    assert len({fingerprint(row), fingerprint({"messages": dialogue(1)}), *others}) == 4


def target_losses(logits, targets):
    """Returns the loss of each position, 0 where nothing is learnt; (seq,)."""
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def test_a_packed_example_has_the_loss_it_has_alone(tmp_path, template):
    rows = [{"id": str(n), "messages": dialogue(1 + n % 2, "S" if n % 2 else None, 1 + n % 4)} for n in range(9)]
    packed = ChatExamples(write(tmp_path, rows), template, 600, 0, Policies())
    shape = Architecture(
        vocab_size=VOCAB, num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=32, intermediate_dim=64, max_seq_len=600
    )
    alone, model = build_model(shape), build_model(shape)  # the first has torchtune's attention: one causal sequence
    initialise(alone, 0)
    initialise(model, 0)
    use_own_attention(model.layers, "per_document")
    wanted = {}
    for one in packed.found.examples:
        ids = torch.from_numpy(one.ids.astype(np.int64))
        with torch.no_grad():
            losses = target_losses(alone(ids[None])[0, :-1], ids[1:])
        wanted[one.name] = losses[torch.from_numpy(one.is_learnt[1:])]
    num_sequences = int(packed.sequences_per_epoch)
    assert num_sequences < len(rows) / 2
    for index in range(num_sequences):
        sample, names = packed.sample(index), packed.documents(index)
        batch = collate([sample])
        with torch.no_grad():
            logits = model(batch.tokens, mask=batch.documents, input_pos=batch.positions)[0]
        losses = target_losses(logits, batch.targets[0])
        for number, name in enumerate(names):
            here = torch.from_numpy((sample.documents == number) & (sample.targets != IGNORE))
            torch.testing.assert_close(losses[here], wanted.pop(name), atol=1e-5, rtol=0)
    assert not wanted


def test_examples_are_drawn_as_pieces_with_what_is_learnt(tmp_path, llama3):
    found = encode_examples(
        write(tmp_path, [{"id": "a", "prompt": "Q", "completion": "A\n강"}]), llama3, 64, Policies()
    )
    plain = draw(llama3.tokenizer, found.examples[0], with_ids=False, coloured=False)
    assert plain == (
        f"example a: {len(found.examples[0].ids)} tokens, 6 learnt\n"
        "masked: [[<|begin_of_text|>]]|[[<|start_header_id|>]]|u|s|e|r|[[<|end_header_id|>]]|\\n\n|\\n\n|Q|"
        "[[<|eot_id|>]]|[[<|start_header_id|>]]|a|s|s|i|s|t|a|n|t|[[<|end_header_id|>]]|\\n\n|\\n\n"
        "learnt: A|\\n\n|<0xEA>|<0xB0>|<0x95>=강|[[<|eot_id|>]]"
    )
    assert "Q(" in draw(llama3.tokenizer, found.examples[0], with_ids=True, coloured=False)
    coloured = draw(llama3.tokenizer, found.examples[0], with_ids=False, coloured=True)
    assert "\x1b[48;5;22mA\x1b[0m" in coloured
    assert "\x1b[48;5;240mQ\x1b[0m" in coloured or "\x1b[48;5;236mQ\x1b[0m" in coloured


def test_lengths_are_counted_in_eight_bins_up_to_the_longest(tmp_path, llama3):
    rows = [{"messages": dialogue(1, length=length)} for length in (1, 1, 1, 100)]
    found = encode_examples(write(tmp_path, rows), llama3, SEQ_LEN, Policies())
    longest = max(len(one.ids) for one in found.examples)
    lines = [line.split() for line in histogram(found)]
    assert len(lines) == 8
    assert lines[0] == ["1", "-", str(longest // 8), "tokens", "3", "#" * 40]
    assert [int(line[4]) for line in lines[1:]] == [0, 0, 0, 0, 0, 0, 1]
    assert lines[-1][2:] == [str(longest), "tokens", "1", "#" * 14]
    assert list(histogram(ExampleSet("none"))) == []


def test_a_template_whose_answers_do_not_end_is_refused(tokenizer, tmp_path):
    file = tmp_path / "endless.jinja"
    file.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    cfg = SimpleNamespace(chat_template=str(file), weights=str(tokenizer.path.parent), template_date="2024-07-26")
    with pytest.raises(CorpusError, match=r"endless.jinja ends an answer without a special token; a model trained so"):
        open_template(cfg)


def test_a_dated_template_writes_the_day_of_the_configuration(tokenizer, tmp_path):
    file = tmp_path / "dated.jinja"
    file.write_text("{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content ~ eos_token }}{% endfor %}")
    cfg = SimpleNamespace(chat_template=str(file), weights=str(tokenizer.path.parent), template_date="2025-03-01")
    text = tokenizer.decode(open_template(cfg).prompt([{"role": "user", "content": "Q"}]))
    assert text == "01 Mar 2025Q"
