import gzip
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_prep import __main__
from data_prep.corpus import clean
from data_prep.corpus.shard import clean_shard
from data_prep.document import CorpusError, read_documents, read_jsonl, write_jsonl
from data_prep.lineage import ROOT
from data_prep.run_folder import locked
from tests.unit.data_prep.corpus.clean_command import arguments, content, manifest, parsed, run
from tests.unit.data_prep.dump_files import FOOTER, HEADER, article, page_xml, pages, write_multistream

NUM_ARTICLES = 60


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    return write_multistream(tmp_path / "kowiki.xml.bz2", pages(NUM_ARTICLES))


def rejects(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("rejected-*")) for row in read_jsonl(path)]


def test_every_page_is_a_document_or_dropped_with_its_reason(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(dump, out) == 0
    documents = list(read_documents(out))
    assert [d.id for d in documents] == [f"kowiki-{n}" for n in range(1, NUM_ARTICLES + 1)]
    first = documents[0]
    assert first.text.startswith("글 1은 시험 문서이다. 1번 문서의 0번째 문장은 낱말갇에 관한")
    assert (first.source, first.lang, first.title, first.revision) == ("kowiki", "ko", "글 1", "1001")
    assert first.url == "https://ko.wikipedia.org/wiki/%EA%B8%80_1"
    facts = manifest(out)
    dropped = {"namespace": 1, "redirect": 2, "disambiguation": 1, "too_short": 1, "duplicate": 1, "low_hangul": 1}
    assert facts["ledger"] == {"in": NUM_ARTICLES + 8, "out": NUM_ARTICLES, "dropped": {**dropped, "empty": 1}}
    reasons = Counter(row["reason"] for row in rejects(out))
    assert reasons == {"too_short": 1, "duplicate": 1, "low_hangul": 1, "empty": 1}
    short = next(row for row in rejects(out) if row["reason"] == "too_short")
    assert (short["text"], short["title"]) == ("짧다.", "라")
    assert facts["counts"] == {
        "documents": NUM_ARTICLES,
        "characters": sum(len(d.text) for d in documents),
        "shards": len(list(out.glob("documents-*"))),
    }
    assert facts["counts"]["shards"] > 3
    assert sum(row["documents"] for row in facts["lengths"] if row["from"] <= len(first.text)) >= NUM_ARTICLES // 2
    assert sum(row["documents"] for row in facts["lengths"]) == NUM_ARTICLES
    assert facts["inputs"]["dump"]["path"] == str(dump)
    assert facts["site"]["dbname"] == "kowiki"
    assert not (out / "work").exists()
    unknown = json.loads((out / "unknown_templates.json").read_text(encoding="utf-8"))
    assert unknown["없는 틀"]["count"] == NUM_ARTICLES + 1
    assert unknown["없는 틀"]["examples"][0] == {"title": "글 1", "call": "{{없는 틀|1}}"}
    assert list(facts["unknown_templates"]) == ["없는 틀"]
    shown = capsys.readouterr().out
    assert f"{NUM_ARTICLES} documents of {NUM_ARTICLES + 8} records; dropped: " in shown
    assert "      61 없는 틀: {{없는 틀|1}} (글 1)" in shown
    assert (out / "report.html").is_file()


def test_three_workers_give_the_documents_of_one(dump: Path, tmp_path: Path) -> None:
    run(dump, tmp_path / "one")
    run(dump, tmp_path / "three", "--workers", 3)
    assert content(tmp_path / "one") == content(tmp_path / "three")


def test_a_dump_that_is_one_stream_gives_the_same_to_all_workers(dump: Path, tmp_path: Path) -> None:
    single = tmp_path / "single"
    run(dump, tmp_path / "straight")
    rows = pages(NUM_ARTICLES)
    single.write_bytes(gzip.compress((HEADER + "".join(rows) + FOOTER).encode()))
    run(single, tmp_path / "one")
    run(single, tmp_path / "two", "--workers", 2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert manifest(tmp_path / "one")["counts"]["shards"] > 10
    texts = [[vars(d) for d in read_documents(tmp_path / name)] for name in ("straight", "one")]
    assert texts[0] == texts[1]


def test_a_pipe_is_cleaned_and_known_by_its_content(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pipe(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    out = tmp_path / "out"
    pipe(dump.read_bytes())
    assert run("-", out) == 0
    run(dump, tmp_path / "straight")
    assert [vars(d) for d in read_documents(out)] == [vars(d) for d in read_documents(tmp_path / "straight")]
    pipe(dump.read_bytes())
    assert run("-", out) == 0
    assert "is complete with the same input" in capsys.readouterr().err
    pipe(write_multistream(tmp_path / "other", pages(3)).read_bytes())
    with pytest.raises(CorpusError, match=r"is complete with a standard input of SHA-256 \w{12}, this one has \w{12};"):
        run("-", out)


def test_a_pipe_is_cleaned_from_the_command_line(dump: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep", *arguments("-", tmp_path / "out", "--workers", 2)]
    with subprocess.Popen(["bzcat", dump], stdout=subprocess.PIPE) as bzcat:
        result = subprocess.run(command, cwd=ROOT, stdin=bzcat.stdout, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert manifest(tmp_path / "out")["ledger"]["out"] == NUM_ARTICLES


def test_a_complete_run_is_skipped_and_other_settings_are_refused(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(dump, out)
    before = (out / "manifest.json").stat().st_mtime_ns
    assert run(dump, out) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (out / "manifest.json").stat().st_mtime_ns == before
    message = (
        r"was begun with fingerprint \w{12}, this run has \w{12} \(rules\.ko\.min_chars was 200, is 10\); the same"
    )
    with pytest.raises(CorpusError, match=message):
        run(dump, out, "--min-chars", 10)
    write_multistream(dump, pages(3))
    message = r"\(source\.dump\.0\.sha256 was '\w{64}', is '\w{64}'\); .*; give another --out or remove it"
    with pytest.raises(CorpusError, match=message):
        run(dump, out)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", 0], r"--workers is 0; at least 1 is needed; give the number of cores"),
        (["--min-chars", -1], r"--min-chars is -1; 0 or more is expected"),
        (["--shard-mb", 0], r"--shard-mb is 0\.0; more than 0 is expected; 16 is the default"),
        (["--max-page-mb", 0], r"--max-page-mb is 0\.0; more than 0 is expected; 8 is the default"),
        (["--dev-share", 0.6, "--test-share", 0.4], r"--dev-share is 0\.6 and --test-share 0\.4; 0 or more each and"),
        (["--templates", "none.yaml"], r"none\.yaml does not exist"),
        (
            ["--documents", "x.jsonl"],
            r"--dump and --documents: both are given; one of them is expected; choose what to",
        ),
    ],
)
def test_options_that_cannot_be_used_are_named(dump: Path, tmp_path: Path, more: list[object], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        run(dump, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_a_source_is_needed(tmp_path: Path) -> None:
    options = parsed(["clean", "--out", str(tmp_path / "out")])
    with pytest.raises(CorpusError, match=r"--dump and --documents: neither is given; one of them is expected"):
        options.run(options)
    options = parsed(["clean", "--out", str(tmp_path), "--documents", "x", "--templates", "t.yaml"])
    with pytest.raises(CorpusError, match=r"--templates t\.yaml is given with --documents; only a dump has templates"):
        options.run(options)


def test_rules_are_read_from_a_file(dump: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    base = ROOT / "configs/data/filters_ko.yaml"
    rules.write_text(f"base: {base}\nmin_chars: 100000\n", encoding="utf-8")
    run(dump, tmp_path / "out", "--rules", rules)
    assert manifest(tmp_path / "out")["ledger"]["out"] == 0
    rules.write_text(f"base: {base}\nmin_char: 3\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"min_char\b.*min_chars"):
        run(dump, tmp_path / "other", "--rules", rules)


def test_other_documents_go_through_the_same_rules(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": f"{n}번 글이다. " + f"낱말 {n}에 관한 글의 문장이다. " * 20} for n in range(30)]
    rows += [{"id": "7", "text": "같은 번호를 가진 다른 글이다. 이 글은 다른 이야기를 한다. " * 20}]
    rows += [{"id": "40", "text": rows[3]["text"]}, {"id": "41", "text": "짧다."}]
    rows += [{"id": "42", "text": "This is English text that says nothing of the kind and has words. " * 10}]
    path = tmp_path / "web.jsonl"
    write_jsonl(path, rows)
    words = ["clean", "--documents", str(path), "--out", str(tmp_path / "out"), "--workers", "1", "--min-chars", "50"]
    rules = tmp_path / "rules.yaml"
    base = ROOT / "configs/data/filters_ko.yaml"
    text = f"base: {base}\nmax_repeated_share: 1.0\nmax_repeated_line_share: 1.0\nmax_per_skeleton: 0\n"
    rules.write_text(text, encoding="utf-8")
    options = parsed([*words, "--lang", "ko", "--rules", str(rules)])
    assert options.run(options) == 0
    found = list(read_documents(tmp_path / "out"))
    assert [d.id for d in found] == [f"web-{n}" for n in range(30)]
    dropped = manifest(tmp_path / "out")["ledger"]["dropped"]
    assert (dropped["duplicate_id"], dropped["duplicate"], dropped["too_short"]) == (1, 1, 1)
    assert sum(dropped.values()) == 4


def test_without_lang_each_document_meets_the_rules_of_its_language(tmp_path: Path) -> None:
    korean = "서울은 대한민국의 수도이자 가장 큰 도시이다. 한강이 도시를 가로질러 흐르며 조선의 수도였다. " * 5
    english = (
        "The quick brown fox jumps over the lazy dog, and that is what this sentence was about from the start. " * 3
    )
    path = tmp_path / "web.jsonl"
    write_jsonl(path, [{"text": korean}, {"text": english}])
    rules = ["--min-chars", "50", "--workers", "1"]
    options = parsed(["clean", "--documents", str(path), "--out", str(tmp_path / "out"), *rules])
    assert options.run(options) == 0
    kept = {d.lang for d in read_documents(tmp_path / "out")}
    assert all(row["reason"] != "other_language" for row in rejects(tmp_path / "out"))
    settings = manifest(tmp_path / "out")["settings"]
    assert set(settings["rules"]) == {"ko", "en"}
    assert kept <= {"ko", "en"}


def test_a_wiki_of_another_language_needs_lang(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    header = HEADER.replace("kowiki", "frwiki").replace("ko.wikipedia", "fr.wikipedia")
    text = (
        "Water is a substance that is found in all of the oceans, and in the cells of everything alive. It has no "
        "colour and no taste. The people of this town took theirs from a well, which they had dug with bare hands."
    )
    path.write_text(header + page_xml(1, "Eau", text) + FOOTER, encoding="utf-8")
    with pytest.raises(CorpusError, match=r"names the wiki 'frwiki' at .*; kowiki or enwiki is known; pass --lang"):
        run(path, tmp_path / "out")
    assert run(path, tmp_path / "out", "--lang", "en") == 0
    assert next(read_documents(tmp_path / "out")).lang == "en"


def test_the_first_of_two_pages_with_one_id_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [page_xml(1 + n // 2, f"글 {n}", article(n)) for n in range(10)]
    run(write_multistream(tmp_path / "x", rows), tmp_path / "out")
    assert [d.title for d in read_documents(tmp_path / "out")] == [f"글 {n}" for n in range(0, 10, 2)]
    assert manifest(tmp_path / "out")["ledger"]["dropped"] == {"duplicate_id": 5}
    shown = capsys.readouterr().out
    assert shown.count("the id of an earlier document: kowiki-") == 3
    assert "the id of an earlier document: kowiki-1 '글 1'" in shown


def test_the_surplus_of_a_stub_family_goes(tmp_path: Path) -> None:
    def stub(n: int) -> str:
        return page_xml(n, f"갸{n}리", f"갸{n}리는 미국 몬태나주에 있는 인구 {n * 37}명의 마을이다. 작은 강이 흐른다.")

    rows = [stub(n) for n in range(1, 31)]
    rules = tmp_path / "rules.yaml"
    rules.write_text(f"base: {ROOT / 'configs/data/filters_ko.yaml'}\nmin_chars: 10\nmax_per_skeleton: 4\n")
    run(write_multistream(tmp_path / "x", rows), tmp_path / "out", "--rules", rules)
    assert [d.id for d in read_documents(tmp_path / "out")] == [f"kowiki-{n}" for n in range(1, 5)]
    assert manifest(tmp_path / "out")["ledger"]["dropped"] == {"stub_family": 26}


def test_two_runs_at_once_are_refused(dump: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    message = r"out is being written by another run; one at a time is possible"
    with locked(tmp_path / "out"), pytest.raises(CorpusError, match=message):
        run(dump, tmp_path / "out")


def test_a_folder_of_something_else_is_refused(dump: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(CorpusError, match=r"out exists and holds no run\.json; a new or empty folder is expected"):
        run(dump, tmp_path / "out")


def test_finished_shards_are_not_made_again(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = clean.plan(parsed(arguments(dump, out)))
    clean.open_run(out, plan.settings)
    plan.work.mkdir()
    shards: list[Any] = []
    with clean.CleanBar(None) as bar:
        first = next(task for task in clean._unfinished(plan, shards, [], bar) if task)
    clean_shard(first, lambda records, num_bytes: None)
    before = first.file("documents").stat().st_ino
    run(dump, out)
    assert (out / "documents-00000.jsonl.zst").stat().st_ino == before


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
