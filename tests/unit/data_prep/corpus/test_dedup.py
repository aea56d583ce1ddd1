import argparse
import json
from pathlib import Path
from random import Random

import pytest

from data_prep.corpus import dedup
from data_prep.document import CorpusError, Document, as_row, read_documents, read_jsonl, write_jsonl
from data_prep.lineage import write_manifest


def text(seed: int, num_words: int = 300) -> str:
    random = Random(seed)
    return " ".join(f"낱말{random.randrange(5000)}" for _ in range(num_words))


def edited(original: str, num_words: int) -> str:
    words = original.split()
    return " ".join([*words[:-num_words], *(f"새말{i}" for i in range(num_words))])


def folder(path: Path, texts: dict[str, str]) -> Path:
    rows = (as_row(Document(name, body, title=name)) for name, body in texts.items())
    write_jsonl(path / "documents-00000.jsonl.zst", rows)
    write_manifest(path, {})
    return path


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    dedup.add_parser(parser.add_subparsers())
    args = parser.parse_args(["dedup", *map(str, arguments)])
    return args.run(args)


def test_near_duplicates_go_and_the_first_stays() -> None:
    a, b = text(1), text(2)
    texts = [a, b, edited(a, 8), a, edited(b, 150), "", ""]
    documents = [Document(str(i), body) for i, body in enumerate(texts)]
    assert dedup.near_duplicates(documents) == {2: 0, 3: 0, 6: 5}


def test_a_chain_of_edits_keeps_what_is_unlike_all_that_stay() -> None:
    chain = [text(1)]
    for _ in range(6):
        chain.append(edited(chain[-1][: -len(chain[-1]) // 12], 5))
    dropped = dedup.near_duplicates(Document(str(i), body) for i, body in enumerate(chain))
    assert dropped
    assert not set(dropped.values()) & set(dropped)


def test_nfd_text_is_the_same_text() -> None:
    assert dedup.shingles("가 나 다 라 마 바") == dedup.shingles("\u1100\u1161 나 다 라 마 바")
    assert dedup.shingles("가 나") == ["가 나"]


def test_the_earlier_folder_wins_and_the_ledger_adds_up(tmp_path: Path) -> None:
    first = folder(tmp_path / "new", {"new-1": text(1), "new-2": text(2)})
    second = folder(tmp_path / "old", {"old-1": edited(text(1), 5), "old-3": text(3)})
    assert run("--documents", first, second, "--out", tmp_path / "out") == 0
    assert [d.id for d in read_documents(tmp_path / "out")] == ["new-1", "new-2", "old-3"]
    (reject,) = read_jsonl(tmp_path / "out" / "rejected-00000.jsonl.zst")
    assert (reject["id"], reject["reason"], reject["duplicate_of"]) == ("old-1", "near_duplicate", "new-1")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["ledger"] == {"in": 4, "out": 3, "dropped": {"near_duplicate": 1}}
    assert run("--documents", second, first, "--out", tmp_path / "other") == 0
    assert [d.id for d in read_documents(tmp_path / "other")] == ["old-1", "old-3", "new-2"]


def test_a_finished_folder_is_skipped_and_another_run_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = folder(tmp_path / "a", {"1": text(1)})
    assert run("--documents", one, "--out", tmp_path / "out") == 0
    assert run("--documents", one, "--out", tmp_path / "out") == 0
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(CorpusError, match=r"out holds another run or other files; an empty folder is expected"):
        run("--documents", one, "--out", tmp_path / "out", "--threshold", 0.5)


def test_bad_input_is_named(tmp_path: Path) -> None:
    one = folder(tmp_path / "a", {"1": text(1)})
    with pytest.raises(CorpusError, match=r"--threshold is 1\.5; above 0 and at most 1 is expected"):
        run("--documents", one, "--out", tmp_path / "out", "--threshold", 1.5)
    with pytest.raises(CorpusError, match=r"b does not exist; a folder with documents"):
        run("--documents", one, tmp_path / "b", "--out", tmp_path / "out")
    (one / "manifest.json").unlink()
    with pytest.raises(CorpusError, match=r"a has no manifest\.json, so it is unfinished"):
        run("--documents", one, "--out", tmp_path / "out")
