"""JSON-lines files of documents, and what is said when they are damaged."""

import pytest

from data_prep.document import CorpusError, Document, as_row, read_documents, read_jsonl, write_jsonl


@pytest.mark.parametrize("name", ["documents-00000.jsonl.zst", "documents-00000.jsonl"])
def test_rows_come_back_as_written(tmp_path, name):
    rows = [{"id": "1", "text": "한글\n둘째 줄"}, {"id": "2", "text": ""}]
    assert write_jsonl(tmp_path / name, rows) == 2
    assert list(read_jsonl(tmp_path / name)) == rows
    assert not list(tmp_path.glob("*.tmp"))


def test_documents_keep_their_fields_and_ignore_others(tmp_path):
    document = Document(id="1", text="글", lang="ko", title="제목")
    write_jsonl(tmp_path / "documents-00000.jsonl.zst", [as_row(document, reason="kept")])
    assert list(read_documents(tmp_path)) == [document]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": 1}\n{broken\n', r"line 2 is no JSON: .*; mend or remove the line"),
        (b"\n[1]\n", r"line 2 holds '\[1\]'; a JSON object is expected"),
        (b'{"id": 1}\n\xff\xfe\n', "line 2 is no UTF-8: .*utf-8"),
        (None, "does not exist; give an existing .jsonl or .jsonl.zst file"),
    ],
)
def test_damaged_files_are_named_with_their_line(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(read_jsonl(path))


def test_a_truncated_or_foreign_zstd_file_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(b"not zstd at all")
    with pytest.raises(CorpusError, match="is no zstd file, or damaged"):
        list(read_jsonl(path))
    write_jsonl(path, ({"id": str(n), "text": "가나다라" * 50} for n in range(2000)))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CorpusError, match="is cut short"):
        list(read_jsonl(path))


def test_a_folder_without_documents_and_rows_without_text(tmp_path):
    with pytest.raises(CorpusError, match=r"holds no documents-\*.jsonl.zst"):
        list(read_documents(tmp_path))
    write_jsonl(tmp_path / "documents-00000.jsonl.zst", [{"id": "1"}])
    with pytest.raises(CorpusError, match="lacks `id` or `text`"):
        list(read_documents(tmp_path))
