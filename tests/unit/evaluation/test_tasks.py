"""Small tasks: what is read, what is refused, and the choices against a slow reference."""

import json
import re

import pytest
import torch
import yaml

from data_prep.document import CorpusError
from data_prep.tokens.tokenizer import load_tokenizer
from recipes.evaluation.tasks import KINDS, choice_window, choices_right, read_task
from recipes.training.model.decoder import Architecture, build_model
from tests.support import ROOT, VOCAB, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def write(folder, content):
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


def test_the_shipped_tasks_are_one_of_each_kind():
    tasks = [read_task(path) for path in sorted((ROOT / "configs/evaluate/tasks").glob("*.yaml"))]
    assert {task.kind for task in tasks} == set(KINDS)
    assert all(len(task.examples) >= 5 for task in tasks)


def test_examples_may_stand_in_a_file_of_their_own(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1?", "answers": ["2"]}\n')
    task = read_task(write(tmp_path, {"kind": "exact_match", "ask": "Q: {question}", "examples": "rows.jsonl"}))
    assert task.messages() == [{"messages": [{"role": "user", "content": "Q: 1 + 1?"}]}]
    assert task.is_right(0, "2.")
    assert not task.is_right(0, "It is 2.")


def test_contains_looks_within_the_answer_without_regard_to_case(tmp_path):
    task = read_task(
        write(tmp_path, {"kind": "contains", "examples": [{"question": "?", "answers": ["Seoul", "서울"]}]})
    )
    assert task.is_right(0, "It is SEOUL, I think.")
    assert task.is_right(0, "대한민국의 수도는 서울입니다.")
    assert not task.is_right(0, "부산")


GOOD = {"question": "?", "choices": ["a", "b"], "answer": 0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": "choice", "examples": [GOOD]}, "the kind 'choice' is not known; one of multiple_choice, exact_match"),
        ({"kind": "contains"}, "has kind; kind, examples and, if wanted, ask are expected"),
        ({"kind": "contains", "examples": [], "shots": 3}, "has examples, kind, shots; kind, examples"),
        ([GOOD], "has list; kind, examples"),
        ({"kind": "contains", "examples": []}, "has no examples; at least one is expected"),
        ({"kind": "multiple_choice", "ask": "Q", "examples": [GOOD]}, "ask is 'Q', without {question}; put it"),
        (
            {"kind": "multiple_choice", "examples": [GOOD, {**GOOD, "answer": 2}]},
            "example 2 has the answer 2; the",
        ),
        ({"kind": "multiple_choice", "examples": [{**GOOD, "answer": "a"}]}, "example 1 has the answer 'a'; the"),
        ({"kind": "multiple_choice", "examples": [{**GOOD, "choices": ["a"]}]}, "has choices ['a']; a list of two"),
        ({"kind": "contains", "examples": [GOOD]}, "has answers None; a list of texts is expected"),
        ({"kind": "contains", "examples": [{"question": "?", "answers": [7]}]}, "has answers [7]; a list of texts"),
        ({"kind": "contains", "examples": [{"question": "?", "answers": ["."]}]}, "has answers ['.']; a list of texts"),
        ({"kind": "contains", "examples": [{"answers": ["a"]}]}, "example 1 has no question, which is text"),
    ],
)
def test_what_is_no_task_is_refused_naming_the_example(tmp_path, content, message):
    with pytest.raises(CorpusError, match=re.escape(message)):
        read_task(write(tmp_path, content))


def test_a_file_that_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "task.yaml").write_text("kind: [")
    with pytest.raises(CorpusError, match=r"cannot be read: .*; a YAML file is expected"):
        read_task(tmp_path / "task.yaml")


def test_a_choice_begins_where_its_tokens_part_from_the_questions(tokenizer):
    ids, scored = choice_window(tokenizer, "The river", "flows")
    assert ids == [tokenizer.bos_id, *tokenizer.encode("The river flows")]
    assert tokenizer.decode(ids[-scored:]) == " flows"


def test_the_likeliest_choice_per_character_is_taken(tmp_path, tokenizer):
    """Against logits read one by one from the whole sequence."""
    torch.manual_seed(0)
    shape = Architecture(
        vocab_size=VOCAB, num_layers=1, num_heads=2, num_kv_heads=1, embed_dim=32, intermediate_dim=64, max_seq_len=64
    )
    model = build_model(shape).eval()
    examples = [
        {"question": f"{n} river", "choices": ["Seoul", "서울 한강", "sea " * 3 + "x", "물"], "answer": n % 4}
        for n in range(8)
    ]
    task = read_task(write(tmp_path, {"kind": "multiple_choice", "examples": examples}))
    expected = []
    for one in examples:
        costs = []
        for choice in one["choices"]:
            question = [tokenizer.bos_id, *tokenizer.encode(one["question"])]
            whole = [tokenizer.bos_id, *tokenizer.encode(f"{one['question']} {choice}")]
            assert whole[: len(question)] == question
            with torch.no_grad():
                log_p = model(torch.tensor([whole]))[0].log_softmax(-1)
            costs.append(-sum(float(log_p[i - 1, whole[i]]) for i in range(len(question), len(whole))) / len(choice))
        expected.append(costs.index(min(costs)) == one["answer"])
    assert choices_right(model, tokenizer, task) == expected
    assert 0 < sum(expected) < len(expected)


def test_shipped_json_lines_are_whole():
    for path in (ROOT / "configs/evaluate/tasks").glob("*.jsonl"):
        assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
