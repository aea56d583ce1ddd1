"""Published forms of chat data, in every kind of file: the messages they stand for, and what is wrong with a row."""

import bz2
import csv
import gzip
import json

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_prep.dialogue.chat_rows import ChatSource
from data_prep.dialogue.examples import ChatExample, Unusable, read_chat_examples, read_examples
from data_prep.dialogue.formats import as_messages
from data_prep.dialogue.messages import UnusableExample
from data_prep.document import CorpusError
from tests.support import SHARED_DATA

CHATBOT = SHARED_DATA / "songys-chatbot" / "ChatbotData.csv"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ASKED = [{"role": "user", "content": "질문?"}, {"role": "assistant", "content": "답."}]
ROWS = [{"id": f"k-{n}", "instruction": f"질문 {n}", "input": "글" * (n % 2), "output": f"답 {n}"} for n in range(5)]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": ASKED, "id": 3},
        {"messages": [{"role": "User", "content": "질문?", "weight": 0}, {"role": "ASSISTANT", "content": "답."}]},
        {"conversations": [{"from": "human", "value": "질문?"}, {"from": "gpt", "value": "답."}]},
        {"conversations": [{"from": "user", "value": "질문?"}, {"from": "assistant", "value": "답."}]},
        {"conversation": ASKED},
        {"instruction": "질문?", "input": "", "output": "답."},
        {"instruction": "질문?", "input": None, "response": "답."},
        {"prompt": "질문?", "completion": "답."},
        {"prompt": ASKED[:1], "completion": ASKED[1:]},
    ],
    ids=["messages", "roles", "sharegpt", "sharegpt-roles", "conversation", "alpaca", "dolly", "prompt", "trl"],
)
def test_each_form_is_recognised_by_its_fields(row):
    assert as_messages(row) == ASKED


def test_an_input_is_kept_apart_and_a_system_text_comes_first():
    row = {"instruction": "번역", "input": "Seoul", "output": "서울", "system": "짧게."}
    assert as_messages(row) == [
        {"role": "system", "content": "짧게."},
        {"role": "user", "content": "번역", "input": "Seoul"},
        {"role": "assistant", "content": "서울"},
    ]
    spoken = {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}], "system": "other"}
    assert [message["content"] for message in as_messages(spoken)] == ["S", "Q"]


@pytest.mark.parametrize(
    ("row", "form", "message"),
    [
        ({"text": "a"}, None, r"has the fields text; messages: \[\{role, content\}\] or conversations"),
        ({"instruction": "a"}, None, "has the fields instruction; "),
        ({"instruction": "a"}, "alpaca", "has the fields instruction; text as output is expected"),
        ({"instruction": 3, "output": "b"}, None, "text as instruction is expected"),
        ({"conversations": "a"}, None, r"a list of \{from, value\} is expected"),
        ({"conversations": [{"value": "a"}]}, None, r"a list of \{from, value\} is expected"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, None, "text as the content of each turn is expected"),
        ({"prompt": "a", "completion": "b"}, "sharegpt", r"a list of \{from, value\} is expected"),
    ],
)
def test_a_row_of_no_form_names_its_fields(row, form, message):
    with pytest.raises(UnusableExample, match=message) as error:
        as_messages(row, form)
    assert error.value.reason == "malformed"


def written(folder, kind):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    path = folder / f"kullm-v2.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif kind in ("csv", "tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(ROWS[0]), delimiter={"csv": ",", "tsv": "\t"}[kind])
            table.writeheader()
            table.writerows(ROWS)
    elif kind == "json":
        path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.bz2": bz2.compress, "jsonl.zst": zstandard.compress}
        path.write_bytes(pack[kind](lines))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.bz2", "jsonl.zst", "json", "parquet", "csv", "tsv"])
def test_every_kind_of_file_gives_the_same_examples(tmp_path, kind):
    examples = read_chat_examples(written(tmp_path, kind))
    assert examples == [ChatExample(row["id"], as_messages(row)) for row in ROWS]
    assert [one.messages[0].get("input") for one in examples] == [None, "글", None, "글", None]


def test_a_dataset_is_read_from_a_folder_of_either_kind_and_needs_its_split_named(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "plain").mkdir()
    written(tmp_path / "plain", "jsonl")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    parts = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "parts")
    for name, split in (("plain", None), ("saved", None), ("parts", "train")):
        found = [one for _, one in read_examples(ChatSource(str(tmp_path / name), hub=True, split=split))]
        assert found == [ChatExample(row["id"], as_messages(row)) for row in ROWS]
    with pytest.raises(CorpusError, match="has the splits train, test; split is None; one of them is read; set split"):
        next(read_examples(ChatSource(str(tmp_path / "parts"), hub=True)))
    with pytest.raises(CorpusError, match="has the splits train, test; split is dev"):
        next(read_examples(ChatSource(str(tmp_path / "parts"), hub=True, split="dev")))
    with pytest.raises(CorpusError, match=r"absent cannot be opened: .* a dataset of the Hugging Face Hub, or one"):
        next(read_examples(ChatSource(str(tmp_path / "absent"), hub=True)))


def test_a_dataset_in_the_cache_needs_no_network_and_is_of_the_commit_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "kullm-v2"
    made.mkdir()
    datasets.load_dataset(str(written(made, "jsonl").parent))
    (folder,) = (tmp_path / "cache/kullm-v2/default/0.0.0").glob("*/")
    folder.rename(folder.with_name(COMMIT))  # as a download of that commit leaves it
    (tmp_path / "cache/kullm-v2").rename(tmp_path / "cache/nlpai-lab___kullm-v2")
    for revision in (None, COMMIT):
        source = ChatSource("nlpai-lab/kullm-v2", hub=True, revision=revision)
        assert [one.id for _, one in read_examples(source)] == [row["id"] for row in ROWS]
    with pytest.raises(CorpusError, match=rf"kullm-v2 was found at the commit {COMMIT}; revision is {'0' * 40}; "):
        next(read_examples(ChatSource("nlpai-lab/kullm-v2", hub=True, revision="0" * 40)))


def test_bad_rows_are_named_by_their_line_and_do_not_hide_the_others(tmp_path):
    lines = [
        json.dumps({"messages": ASKED}),
        "",
        "{broken",
        json.dumps({"messages": ASKED[:1] + ASKED[:1]}),
        '{"prompt": "a", "completion": "\\ud800"}',
        json.dumps({"id": True, "prompt": " ", "completion": "b"}),
        json.dumps({"id": "last", "prompt": "a", "completion": ""}),
        json.dumps({"id": 7, "prompt": "a", "completion": "b"}),
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(lines))
    found = list(read_examples(ChatSource(str(path))))
    assert [place for place, _ in found] == [f"{path}:{number}" for number in (1, 3, 4, 5, 6, 7, 8)]
    reasons = [one.reason if isinstance(one, Unusable) else one.id for _, one in found]
    assert reasons == [f"{path}:1", "malformed", "roles", "malformed", "empty_question", "empty_answer", "7"]
    told = [one.message for _, one in found if isinstance(one, Unusable)]
    assert "chat.jsonl:3: is no JSON: Expecting property name" in told[0]
    assert "chat.jsonl:4: turn 1 has the role 'user'; 'assistant' is expected" in told[1]
    assert "chat.jsonl:5: holds half of a surrogate pair" in told[2]


def test_items_of_an_array_and_rows_of_a_table_are_counted_from_one(tmp_path):
    array = tmp_path / "chat.json"
    array.write_text(json.dumps([{"messages": ASKED}, 3, {"messages": ASKED}]))
    found = list(read_examples(ChatSource(str(array))))
    assert [place for place, _ in found] == [f"{array} item {number}" for number in (1, 2, 3)]
    assert found[1][1].message == f"{array} item 2: holds '3'; a JSON object is expected; mend or remove the item"
    for kind, end in (("parquet", " row 1"), ("csv", ".csv:2")):  # a table's first line names the columns
        assert next(read_examples(ChatSource(str(written(tmp_path, kind)))))[0].endswith(end)
    array.write_text("[{")
    with pytest.raises(CorpusError, match=r"chat.json is no JSON array: Expecting property name"):
        list(read_examples(ChatSource(str(array))))


def test_columns_of_other_names_are_given_as_fields(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("Q,A,label\n질문?,답.,0\n", encoding="utf-8")
    source = ChatSource(str(path), form="prompt", fields=(("prompt", "Q"), ("completion", "A")))
    assert [one.messages for _, one in read_examples(source)] == [ASKED]
    (unusable,) = (one for _, one in read_examples(ChatSource(str(path), fields=(("prompt", "question"),))))
    assert unusable.message == f"{path}:2: has no question; its fields are Q, A, label; correct `fields`"


def test_a_real_table_of_questions_and_answers_is_read_whole():
    if not CHATBOT.is_file():
        pytest.skip(f"{CHATBOT} is not here")
    source = ChatSource(str(CHATBOT), form="prompt", fields=(("prompt", "Q"), ("completion", "A")))
    found = [one for _, one in read_examples(source)]
    assert len(found) > 11_000
    assert not [one for one in found if isinstance(one, Unusable)]
