import argparse
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_prep import __main__
from data_prep.corpus import clean
from data_prep.corpus.clean_shard import check_ledger, clean_shard
from data_prep.document import CorpusError, read_documents, read_jsonl
from data_prep.lineage import ROOT
from data_prep.pool import run_tasks
from tests.unit.data_prep.dump_files import FOOTER, HEADER, page_xml, pages, write_multistream

NUM_ARTICLES = 60


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    return write_multistream(tmp_path / "kowiki.xml.bz2", pages(NUM_ARTICLES))


def arguments(dump: Path, out: Path, *more: object) -> list[str]:
    return ["clean", "--dump", str(dump), "--out", str(out), "--shard-mb", "0.002", *map(str, more)]


def parsed(*args: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    clean.add_parser(parser.add_subparsers())
    return parser.parse_args(arguments(*args))


def run(*args: Any) -> int:
    options = parsed(*args)
    return options.run(options)


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text(encoding="utf-8"))


def content(out: Path) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in manifest(out)["files"].items()}


def test_every_page_is_a_document_or_dropped_with_its_reason(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(dump, out, "--workers", 1) == 0
    documents = list(read_documents(out))
    assert [d.id for d in documents] == [f"kowiki-{n}" for n in range(1, NUM_ARTICLES + 1)]
    first = documents[0]
    assert first.text.startswith("글 1은 시험 문서이다. 1번 문서의 0번째 문장은 낱말7에 관한")
    assert (first.source, first.lang, first.title, first.revision) == ("kowiki", "ko", "글 1", "1001")
    assert first.url == "https://ko.wikipedia.org/wiki/%EA%B8%80_1"
    facts = manifest(out)
    dropped = {"namespace": 1, "redirect": 2, "disambiguation": 1, "too_short": 1, "duplicate": 1, "low_hangul": 1}
    assert facts["ledger"] == {"in": NUM_ARTICLES + 8, "out": NUM_ARTICLES, "dropped": {**dropped, "empty": 1}}
    assert facts["unknown_templates"] == [{"name": "없는 틀", "count": NUM_ARTICLES + 1, "example": "{{없는 틀|1}}"}]
    rejects = [row for path in sorted(out.glob("rejected-*")) for row in read_jsonl(path)]
    assert Counter(r["reason"] for r in rejects) == {"too_short": 1, "duplicate": 1, "low_hangul": 1, "empty": 1}
    assert next(r for r in rejects if r["reason"] == "too_short")["text"] == "짧다."
    assert facts["counts"] == {
        "documents": NUM_ARTICLES,
        "characters": sum(len(d.text) for d in documents),
        "shards": len(list(out.glob("documents-*"))),
    }
    assert facts["counts"]["shards"] > 3
    assert not (out / "work").exists()


def test_three_workers_give_the_documents_of_one(dump: Path, tmp_path: Path) -> None:
    run(dump, tmp_path / "one", "--workers", 1)
    run(dump, tmp_path / "three", "--workers", 3)
    assert content(tmp_path / "one") == content(tmp_path / "three")


def test_a_killed_run_resumes_to_the_files_of_a_straight_one(dump: Path, tmp_path: Path) -> None:
    run(dump, tmp_path / "straight", "--workers", 1)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "data_prep", *arguments(dump, out, "--workers", 2)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(out.glob("work/summary-*.json")):
            pass
        process.send_signal(signal.SIGKILL)
    assert not (out / "manifest.json").exists() or process.returncode == 0
    run(dump, out, "--workers", 1)
    assert content(out) == content(tmp_path / "straight")


@pytest.mark.parametrize("stop_at", range(0, 7, 2))
def test_a_run_killed_while_assembling_resumes(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    run(dump, tmp_path / "straight", "--workers", 1)
    out, place, calls = tmp_path / "out", clean._place, []

    def stops(*args: Any) -> int:
        calls.append(args)
        if len(calls) > stop_at:
            raise KeyboardInterrupt
        return place(*args)

    monkeypatch.setattr(clean, "_place", stops)
    with pytest.raises(KeyboardInterrupt):
        run(dump, out, "--workers", 1)
    monkeypatch.setattr(clean, "_place", place)
    assert not (out / "manifest.json").exists()
    run(dump, out, "--workers", 1)
    assert content(out) == content(tmp_path / "straight")


def test_finished_shards_are_not_made_again(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tasks, settings = clean._plan(parsed(dump, out))
    clean._open_run(out, settings)
    (out / "work").mkdir()
    assert run_tasks(clean_shard, tasks[:2], 1, lambda pages, num_bytes: None) == {}
    before = tasks[0].file("documents").stat().st_ino
    run(dump, out, "--workers", 1)
    assert (out / "documents-00000.jsonl.zst").stat().st_ino == before


def test_a_complete_run_is_skipped_and_other_settings_are_refused(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(dump, out)
    before = (out / "manifest.json").stat().st_mtime_ns
    assert run(dump, out) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (out / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(
        CorpusError, match=r"was begun with fingerprint \w{12}, this run has \w{12} \(limits was .*'min_chars': 200"
    ):
        run(dump, out, "--min-chars", 10)
    write_multistream(dump, pages(3))
    with pytest.raises(CorpusError, match=r"dump_sha256 was '\w{64}', is '\w{64}'.*; give another --out or remove it"):
        run(dump, out)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_damaged_dump_costs_its_shard_and_nothing_looks_finished(dump: Path, tmp_path: Path, workers: int) -> None:
    data = bytearray(dump.read_bytes())
    start = [match.start() for match in re.finditer(rb"BZh9", data)][6]
    data[start + 60] ^= 0xFF
    dump.write_bytes(data)
    out = tmp_path / "out"
    with pytest.raises(
        CorpusError, match=rf"1 of (\d+) shards failed, \d+ are complete in .*\n  shard \d+: .*byte {start} is"
    ):
        run(dump, out, "--workers", workers)
    assert not (out / "manifest.json").exists()
    num_shards = len(clean._plan(parsed(dump, out))[0])
    assert len(list((out / "work").glob("summary-*.json"))) == num_shards - 1
    assert list(out.glob("documents-*")) == []


def test_a_truncated_dump_is_an_error(dump: Path, tmp_path: Path) -> None:
    dump.write_bytes(dump.read_bytes()[:-20])
    with pytest.raises(CorpusError, match=r"shards failed.*\n.*is truncated, the file ends at byte \d+"):
        run(dump, tmp_path / "out", "--workers", 1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", 0], r"--workers is 0; at least 1 is needed; give the number of cores"),
        (["--min-chars", -1], r"--min-chars is -1; 0 or more is expected"),
        (["--shard-mb", 0], r"--shard-mb is 0\.0; more than 0 is expected"),
        (["--templates", "none.yaml"], r"none\.yaml does not exist"),
    ],
)
def test_options_that_cannot_be_used_are_named(dump: Path, tmp_path: Path, more: list[object], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        run(dump, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_a_wiki_of_another_language_needs_lang(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    header = HEADER.replace("kowiki", "frwiki").replace("ko.wikipedia", "fr.wikipedia")
    path.write_text(header + page_xml(1, "Eau", "Leau est une substance chimique. " * 20) + FOOTER, encoding="utf-8")
    with pytest.raises(CorpusError, match=r"names the wiki 'frwiki' at .*; kowiki or enwiki is expected; pass --lang"):
        run(path, tmp_path / "out")
    assert run(path, tmp_path / "out", "--lang", "en") == 0
    assert next(read_documents(tmp_path / "out")).lang == "en"


def test_two_runs_at_once_are_refused(dump: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    message = r"out is being written by another run; one at a time is possible"
    with clean._locked(tmp_path / "out"), pytest.raises(CorpusError, match=message):
        run(dump, tmp_path / "out")


def test_a_folder_of_something_else_is_refused(dump: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(CorpusError, match=r"out exists and holds no run\.json; a new or empty folder is expected"):
        run(dump, tmp_path / "out")


def test_a_ledger_that_does_not_add_up_is_an_error(tmp_path: Path) -> None:
    check_ledger(tmp_path, {"in": 3, "out": 1, "dropped": {"a": 2}})
    with pytest.raises(CorpusError, match=r"the ledger accounts for 2 of 3 inputs .*; in = out \+ dropped is expected"):
        check_ledger(tmp_path, {"in": 3, "out": 1, "dropped": {"a": 1}})


def dies(task: int, report: Any) -> None:
    sys.exit(7)


def test_a_dead_worker_is_an_error() -> None:
    with pytest.raises(CorpusError, match=r"the worker of shard \d ended with exit code 7; 0 is expected"):
        run_tasks(dies, [0, 1], 2, lambda pages, num_bytes: None)


def test_the_command_line_reports_errors_on_stderr(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep", *arguments(tmp_path / "no.bz2", tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {tmp_path}/no.bz2 does not exist; give")
    assert "Traceback" not in result.stderr


def test_an_interrupt_is_exit_code_130(dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(clean, "_clean_all", interrupted)
    assert __main__.main(arguments(dump, tmp_path / "out")) == 130


SHARED = ROOT.parent / "shared" / "data"
REAL = [
    "kowiki-wikitext-real/kowiki-real-sample.xml",
    "dbpedia-minidumps/ko-wiki.xml.bz2",
    "dbpedia-minidumps/en-wiki.xml.bz2",
    "enwiki-dump/enwiki-table-markup.xml.bz2",
]


@pytest.mark.parametrize("name", REAL)
def test_real_dumps_are_cleaned(name: str, tmp_path: Path) -> None:
    if not (SHARED / name).is_file():
        pytest.skip("shared data not at hand")
    assert run(SHARED / name, tmp_path / "out", "--lang", "en" if "en" in name[:-7] else "ko", "--shard-mb", 1) == 0
    assert all(len(d.text) >= 200 for d in read_documents(tmp_path / "out"))
