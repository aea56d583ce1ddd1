import argparse
import bz2
import csv
import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_prep.document import CorpusError, Document, as_row, write_jsonl
from data_prep.readers import options as readers
from data_prep.source import Rejection, Source

ROWS = [
    {
        "id": f"{n}",
        "title": f"제목 {n}",
        "url": f"https://example.com/{n}",
        "text": f"{n}번째 문서의 글이다.\n둘째 줄 " + "가" * n,
    }
    for n in range(60)
]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]
JSONL = ("\n".join(LINES) + "\n").encode()
EXPECTED = [Document(f"web-{r['id']}", r["text"], "web", "ko", r["title"], r["url"]) for r in ROWS]


def source(path: object, *options: str, lang: str | None = None) -> Source:
    parser = argparse.ArgumentParser()
    readers.add_arguments(parser)
    parser.add_argument("--lang")
    args = parser.parse_args(["--documents", str(path), *options])
    args.lang = lang
    found = readers.from_arguments(args)
    assert found is not None
    return pickle.loads(pickle.dumps(found))


def read(found: Source, part_bytes: int = 1 << 30) -> list[Any]:
    """Reads all parts, and checks that they lie end to end and that the position moves through each."""
    items: list[Any] = []
    last: dict[Path, int] = {}
    for part in found.parts(part_bytes):
        assert part.start == last.get(part.path, 0)
        last[part.path] = part.end
        reader = found.read(part)
        position = part.start
        for item in reader:
            assert position <= reader.position <= part.end
            position = reader.position
            items.append(item)
        assert reader.position == part.end
        assert reader.facts() == {}
    return items


def write_csv(path: Path, delimiter: str = ",", encoding: str = "utf-8") -> None:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path: Path, rows: list[dict[str, Any]] = ROWS, group: int = 7) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)


def make(folder: Path, name: str) -> Path:
    path = folder / name
    compressors = {".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress}
    if name.endswith(".csv"):
        write_csv(path)
    elif name.endswith(".parquet"):
        write_parquet(path)
    elif name == "saved":
        import datasets

        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    elif name == "hub":
        path.mkdir()
        write_parquet(path / "train-00000-of-00001.parquet", ROWS)
    else:
        path.write_bytes(compressors.get(path.suffix, bytes)(JSONL))
    return path


FORMS = ["a.jsonl", "a.ndjson.gz", "a.jsonl.zst", "a.json.bz2", "nosuffix", "a.csv", "a.parquet", "saved"]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("part_bytes", [1, 600, 1 << 30])
def test_every_format_gives_the_same_documents_in_any_parts(tmp_path: Path, name: str, part_bytes: int) -> None:
    found = source(make(tmp_path, name), "--source-name", "web")
    assert read(found, part_bytes) == EXPECTED
    if part_bytes == 600 and name in ("a.jsonl", "a.parquet", "saved", "nosuffix"):
        assert len(found.parts(part_bytes)) > 3


def test_a_folder_that_datasets_reads_gives_the_same(tmp_path: Path) -> None:
    found = source(make(tmp_path, "hub"), "--source-name", "web", "--split", "train")
    assert read(found) == EXPECTED
    assert len(found.settings()["version"]) == 64
    with pytest.raises(
        CorpusError, match=r"hub cannot be opened: .*test.*; an existing path, or a dataset of the Hugg"
    ):
        source(tmp_path / "hub", "--split", "test")


def test_folders_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.jsonl").write_text("\n".join(LINES[40:]))
    (tmp_path / "a.jsonl").write_text("\n".join(LINES[:30]))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(LINES[30:40]).encode()))
    (tmp_path / ".hidden.jsonl").write_text("{")
    (tmp_path / "README.md").touch()
    assert read(source(tmp_path, "--source-name", "web"), 500) == EXPECTED


def test_a_folder_of_texts_is_a_document_a_file(tmp_path: Path) -> None:
    (tmp_path / "나").mkdir()
    texts = {"가.txt": "첫째 글", "나/1.txt": "", "나/2.TXT": "둘째 글\r\n", "다.txt": "\ufeff셋째 글", "라.txt": ""}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
    expected = [
        ("가.txt", "첫째 글"),
        ("나/1.txt", ""),
        ("나/2.TXT", "둘째 글\r\n"),
        ("다.txt", "셋째 글"),
        ("라.txt", ""),
    ]
    for part_bytes in (1, 12, 1000):
        documents = read(source(tmp_path, "--source-name", "글"), part_bytes)
        assert [(d.id, d.text) for d in documents] == [(f"글-{name}", text) for name, text in expected]
    assert documents[2].title == "2"


def test_texts_and_tables_in_the_encoding_of_windows(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.txt").write_bytes("한글 똠방각하".encode("cp949"))
    assert read(source(tmp_path / "t", "--encoding", "cp949"))[0].text == "한글 똠방각하"
    write_csv(tmp_path / "a.csv", encoding="cp949")
    assert read(source(tmp_path / "a.csv", "--encoding", "cp949", "--source-name", "web")) == EXPECTED


def test_tab_separated_values_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('id\tdocument\tlabel\n1\t"따옴표로 시작\t0\n2\t둘째 "인용"\t1\n', encoding="utf-8")
    documents = read(source(tmp_path / "a.tsv", "--text-field", "document"))
    assert [(d.id, d.text, d.source) for d in documents] == [
        ("a-1", '"따옴표로 시작', "a"),
        ("a-2", '둘째 "인용"', "a"),
    ]


def test_our_own_folders_keep_what_they_know(tmp_path: Path) -> None:
    documents = [Document(f"kowiki-{n}", "글", "kowiki", "en", "제목", "u", "7", "2024-01-01") for n in range(3)]
    write_jsonl(tmp_path / "documents-00000.jsonl.zst", map(as_row, documents))
    write_jsonl(tmp_path / "rejected-00000.jsonl.zst", [as_row(documents[0], reason="empty")])
    (tmp_path / "manifest.json").write_text("{}")
    assert read(source(tmp_path)) == documents
    assert read(source(tmp_path, lang="ko"))[0].lang == "ko"
    renamed = read(source(tmp_path, "--source-name", "mine"))[0]
    assert (renamed.id, renamed.source, renamed.lang) == ("mine-kowiki-0", "mine", "ko")


def test_fields_ids_and_languages(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    rows = [
        {"key": 7, "body": "한국어 글", "name": None, "url": 5},
        {"key": 8, "body": "Plain English text", "name": "n"},
        {"key": 9, "body": None, "name": "empty"},
        {"key": 10, "body": "", "name": ""},
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n \n", encoding="utf-8-sig")
    found = source(path, "--text-field", "body", "--id-field", "key", "--title-field", "name")
    assert read(found) == [
        Document("corpus-7", "한국어 글", "corpus", "ko", "", "5"),
        Document("corpus-8", "Plain English text", "corpus", "en", "n"),
        Rejection("corpus-9", "empty", "no_text"),
        Document("corpus-10", "", "corpus", "", ""),
    ]
    assert found.lang is None
    (tmp_path / "corpus.gz").write_bytes(gzip.compress(path.read_bytes()))
    options = ("--format", "jsonl", "--text-field", "body", "--id-field", "key", "--title-field", "name")
    assert read(source(tmp_path / "corpus.gz", *options)) == read(found)
    offsets = [item.id for item in read(source(path, "--text-field", "body"))]
    assert len(set(offsets)) == 4
    assert offsets == [item.id for item in read(source(path, "--text-field", "body"), 10)]


def test_settings_know_the_content_and_not_the_place(tmp_path: Path) -> None:
    first = source(make(tmp_path, "a.jsonl"), "--source-name", "web").settings()
    (tmp_path / "other").mkdir()
    assert source(make(tmp_path / "other", "a.jsonl"), "--source-name", "web").settings() == first
    (tmp_path / "a.jsonl").write_bytes(JSONL + b'{"text": "x"}\n')
    assert source(tmp_path / "a.jsonl", "--source-name", "web").settings() != first
    json.dumps(first)


BAD = {
    "line.jsonl": (JSONL + b"{broken\n", r"line\.jsonl line 61 is no JSON: .*; mend or remove the line"),
    "list.jsonl": (JSONL + b'["a"]\n', r"list\.jsonl line 61 holds '\[\"a\"\]"),
    "number.jsonl": (JSONL + b"5\n\n", r"line 61 holds '5.*'; a JSON object is expected; mend or remove the line"),
    "utf.jsonl": (JSONL + b'{"text": "\xff"}\n', r"line 61 is no UTF-8 at its byte 10: .*; convert the file"),
    "type.jsonl": (
        JSONL + b'{"text": ["a"]}\n',
        r"line 61: field 'text' holds list \"\['a'\]\"; text is expected; name",
    ),
    "lacks.jsonl": (
        JSONL + b'{"txt": "a"}\n',
        r"line 61 has no field 'text'; its fields are txt; name one of them with",
    ),
    "cut.jsonl.gz": (gzip.compress(JSONL)[:-90], r"cut\.jsonl\.gz: .*the gz stream is truncated; a whole gz file is"),
    "bad.jsonl.gz": (gzip.compress(JSONL)[:200] + b"\0" * 99, r"bad\.jsonl\.gz: .*(?:corrupt|truncated).*; copy"),
    "cut.jsonl.zst": (zstandard.compress(JSONL)[:-9], r"cut\.jsonl\.zst: .*truncated; a whole zst file is expected"),
    "row.csv": (b"id,text\n1,a\n2,b,c\n", r"row\.csv line 3 has 3 columns; the first line names 2 \(id, text\); mend"),
    "enc.csv": (
        b"id,text\n1," + "한".encode("cp949"),
        r"enc\.csv is no utf-8 at byte 10 \(b'\\xc7\\xd1'\); text in",
    ),
    "enc.txt": (b"a" * 70_000 + "한".encode("cp949") + b"b", r"enc\.txt is no utf-8 at byte 70000 .*--encoding cp949"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_records_are_named_with_their_place(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    for part_bytes in (400, 1 << 30):
        with pytest.raises(CorpusError, match=message):
            read(source(tmp_path / name), part_bytes)


def test_damaged_parquet_files_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-20])
    with pytest.raises(
        CorpusError, match=r"cut\.parquet is no Parquet file, or damaged: .*; copy it anew, or give its"
    ):
        source(tmp_path / "cut.parquet")
    (tmp_path / "hole.parquet").write_bytes(data[:4000] + b"\xff" * 900 + data[4900:])
    with pytest.raises(
        CorpusError, match=r"hole\.parquet is damaged in row group [1-9] after row \d+: .*; copy it anew"
    ):
        read(source(tmp_path / "hole.parquet"))


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).write_bytes(JSONL)
    return tmp_path


def test_what_cannot_be_read_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(message: str, path: object, *options: str) -> None:
        with pytest.raises(CorpusError, match=message):
            source(path, *options)

    refuses(r"--documents .*none\.jsonl does not exist; give an existing file or folder", tmp_path / "none.jsonl")
    refuses(r"holds files of these formats: none that can be read; one of jsonl, parquet", tmp_path)
    (tmp_path / "x").write_bytes(b"hello world")
    refuses(r"x: neither its name nor its beginning b'hello world' tells the format; give it as", tmp_path / "x")
    a = make(tmp_path, "a.jsonl")
    refuses(
        r"line 1 has no field 'body'; its fields are id, title, url, text; name .* --text-field",
        a,
        "--text-field",
        "body",
    )
    refuses(r"line 1 has no field 'key'; .* --id-field", a, "--id-field", "key")
    refuses(r"--encoding is 'utf8000'; the name of a text encoding is expected", a, "--encoding", "utf8000")
    refuses(r"a\.jsonl is a file; --format datasets takes a folder", a, "--split", "train")
    refuses(r"holds no parquet files \(\.parquet\); give another folder or format", tmp_path, "--format", "parquet")
    write_csv(tmp_path / "b.csv")
    refuses(r"holds files of these formats: 1 jsonl, 1 csv; .*; name it with --format", tmp_path)
    (tmp_path / "array.json").write_text("[1, 2]")
    refuses(
        r"line 1 holds .*; a JSON object is expected; write one object a line, not one array: `jq",
        tmp_path / "array.json",
    )


def test_splits_of_a_saved_dataset(tmp_path: Path) -> None:
    import datasets

    parts = {"train": datasets.Dataset.from_list(ROWS[:40]), "test": datasets.Dataset.from_list(ROWS[40:])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    assert read(source(tmp_path / "d", "--split", "test", "--source-name", "web")) == EXPECTED[40:]
    with pytest.raises(CorpusError, match=r"d has the splits test, train, --split is None; .*; give it as --split"):
        source(tmp_path / "d")
    with pytest.raises(CorpusError, match=r"d has the splits test, train, --split is dev"):
        source(tmp_path / "d", "--split", "dev")


def test_a_name_of_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = (
        r"owner/no-such-dataset \(20231101\.ko\) cannot be opened: .*; an existing path, or a dataset of the Hugging"
    )
    with pytest.raises(CorpusError, match=message):
        source("owner/no-such-dataset", "--subset", "20231101.ko")


def test_no_option_is_no_source() -> None:
    parser = argparse.ArgumentParser()
    readers.add_arguments(parser)
    assert readers.from_arguments(parser.parse_args([])) is None
