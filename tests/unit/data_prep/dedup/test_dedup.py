import argparse
import json
import re
import resource
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from data_prep.dedup import choice as dedup_choice
from data_prep.dedup import command as dedup
from data_prep.dedup import run as dedup_run
from data_prep.dedup import shards as dedup_shards
from data_prep.document import CorpusError, Document, as_row, read_documents, read_jsonl, write_jsonl
from data_prep.lineage import write_manifest
from tests.support import ROOT, SHARED_DATA


def text(seed: int, num_words: int = 300) -> str:
    random = Random(seed)
    return " ".join(f"낱말{random.randrange(5000)}" for _ in range(num_words))


def edited(original: str, num_words: int) -> str:
    words = original.split()
    return " ".join([*words[:-num_words], *(f"새말{i}" for i in range(num_words))])


def folder(path: Path, documents: Iterable[Document], per_file: int = 1000) -> Path:
    rows = [as_row(document) for document in documents]
    for begin in range(0, len(rows), per_file):
        write_jsonl(path / f"documents-{begin // per_file:05d}.jsonl.zst", rows[begin : begin + per_file])
    write_manifest(path, {}, ledger={"in": len(rows), "out": len(rows), "dropped": {}})
    return path


def texts(**bodies: str) -> list[Document]:
    return [Document(name.replace("_", "-"), body, title=name) for name, body in bodies.items()]


def page(number: int, body: str, timestamp: str, revision: str = "") -> Document:
    return Document(f"kowiki-{number}", body, "kowiki", "ko", f"글 {number}", "", revision, timestamp)


def snapshots(tmp_path: Path, num_pages: int = 40) -> tuple[Path, Path]:
    """Two snapshots of one wiki; the new one lacks the last page, and has one more."""
    old = [page(n, text(n), "2020-01-01T00:00:00Z", str(n)) for n in range(num_pages)]
    new = [page(n, edited(text(n), 5), f"2022-01-{n % 28 + 1:02d}T00:00:00Z", str(n + 100)) for n in range(num_pages)]
    new[-1] = page(num_pages, text(num_pages), "2022-02-02T00:00:00Z", "1000")
    return folder(tmp_path / "old", old, 15), folder(tmp_path / "new", new, 15)


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    dedup.add_parser(parser.add_subparsers())
    args = parser.parse_args(["dedup", *map(str, arguments)])
    return args.run(args)


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text(encoding="utf-8"))


def content(out: Path) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in manifest(out)["files"].items()}


def rejects(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("rejected-*.jsonl.zst")) for row in read_jsonl(path)]


def test_exact_and_near_duplicates_go_with_reason_keeper_and_ledger(tmp_path: Path) -> None:
    first = folder(tmp_path / "a", texts(a1=text(1), a2=text(2)))
    spaced = unicodedata.normalize("NFD", text(2)).replace(" ", "\n ")
    second = folder(tmp_path / "b", texts(b1=edited(text(1), 5), b2=spaced, b3=text(3)))
    out = tmp_path / "out"
    assert run("--documents", first, second, "--out", out) == 0
    assert [d.id for d in read_documents(out)] == ["a1", "a2", "b3"]
    near, exact = rejects(out)
    assert (near["id"], near["reason"], near["duplicate_of"]) == ("b1", "near_duplicate", "a1")
    assert near["text"] == edited(text(1), 5)
    assert 0.8 <= near["similarity"] < 1
    assert (exact["id"], exact["reason"], exact["duplicate_of"]) == ("b2", "exact_duplicate", "a2")
    assert (exact["duplicate_in"], exact["similarity"]) == ("a", 1.0)
    facts = manifest(out)
    assert facts["ledger"] == {"in": 5, "out": 3, "dropped": {"exact_duplicate": 1, "near_duplicate": 1}}
    assert facts["ledger_of_folders"][0] == {"in": 2, "out": 2, "dropped": {}}
    assert facts["counts"]["characters"] == sum(len(d.text) for d in read_documents(out))
    assert not list(tmp_path.glob("*.tmp"))


def test_clusters_tell_what_went_for_each_document_that_stays(tmp_path: Path) -> None:
    old, new = snapshots(tmp_path, 3)
    run("--documents", old, new, "--out", tmp_path / "out")
    clusters = list(read_jsonl(tmp_path / "out" / "clusters.jsonl.zst"))
    assert [cluster["kept"] for cluster in clusters] == ["kowiki-0", "kowiki-1"]
    assert clusters[0] == {
        "kept": "kowiki-0",
        "folder": "new",
        "title": "글 0",
        "timestamp": "2022-01-01T00:00:00Z",
        "members": [
            {
                "folder": "old",
                "id": "kowiki-0",
                "title": "글 0",
                "timestamp": "2020-01-01T00:00:00Z",
                "similarity": clusters[0]["members"][0]["similarity"],
                "kind": "near",
            }
        ],
    }
    assert clusters[0]["members"][0]["similarity"] >= 0.8


def test_folders_of_one_name_are_told_by_their_paths(tmp_path: Path) -> None:
    folders = [folder(tmp_path / place / "ko", texts(**{place: text(1)})) for place in ("a", "b")]
    run("--documents", *folders, "--out", tmp_path / "out")
    assert [row["duplicate_in"] for row in rejects(tmp_path / "out")] == [str(folders[0])]


def test_of_two_snapshots_the_newest_version_stays_in_whatever_order_they_are_given(tmp_path: Path) -> None:
    old, new = snapshots(tmp_path)
    for name, order in {"one": (old, new), "other": (new, old)}.items():
        run("--documents", *order, "--out", tmp_path / name)
        kept = {d.id: d.timestamp[:4] for d in read_documents(tmp_path / name)}
        assert kept == {f"kowiki-{n}": "2020" if n == 39 else "2022" for n in range(41)}
    assert manifest(tmp_path / "one")["settings"]["keep_order"].startswith("newest timestamp, then highest revision")


@pytest.mark.parametrize(
    ("keep", "kept"),
    [("newest", ["b", "c", "e", "g"]), ("first", ["a", "c", "d", "f"]), ("longest", ["a", "c", "d", "f"])],
)
def test_who_stays_is_what_keep_says(tmp_path: Path, keep: str, kept: list[str]) -> None:
    documents = [
        Document("a", text(1) + " 끝", timestamp="2020-01-01T00:00:00Z"),
        Document("b", text(1), timestamp="2021-01-01T00:00:00Z"),
        Document("c", text(2)),
        Document("d", text(3), timestamp="2021-01-01T00:00:00Z", revision="9"),
        Document("e", text(3), timestamp="2021-01-01T09:00:00+09:00", revision="10"),  # the same moment
        Document("f", text(4), timestamp="2021-01-01T00:00:00Z", revision="99"),
        Document("g", text(4), timestamp="2021-01-01T00:00:01Z", revision="1"),
    ]
    run("--documents", folder(tmp_path / "in", documents), "--out", tmp_path / "out", "--keep", keep)
    assert [d.id for d in read_documents(tmp_path / "out")] == kept


def test_a_document_without_timestamp_is_older_than_any_and_ties_go_by_place(tmp_path: Path) -> None:
    documents = [
        Document("a", text(1)),
        Document("b", text(1), timestamp="1969-01-01"),
        Document("c", text(2)),
        Document("d", text(2)),
    ]
    run("--documents", folder(tmp_path / "in", documents), "--out", tmp_path / "out")
    assert [d.id for d in read_documents(tmp_path / "out")] == ["b", "c"]


def test_a_page_rewritten_between_snapshots_stays_once(tmp_path: Path) -> None:
    old = folder(tmp_path / "old", [page(1, text(1), "2020-01-01T00:00:00Z", "1"), Document("x", text(7), "web")])
    new = folder(tmp_path / "new", [page(1, text(2), "2022-01-01T00:00:00Z", "2"), Document("x", text(8), "web")])
    run("--documents", old, new, "--out", tmp_path / "out")
    assert [d.text for d in read_documents(tmp_path / "out")] == [text(7), text(2), text(8)]  # "x" names no version
    assert [(r["reason"], r["duplicate_of"], r["similarity"]) for r in rejects(tmp_path / "out")] == [
        ("same_id", "kowiki-1", 0.0)
    ]
    run("--documents", old, new, "--out", tmp_path / "both", "--same-id", "keep")
    assert manifest(tmp_path / "both")["ledger"] == {"in": 4, "out": 4, "dropped": {}}


def test_workers_change_no_byte(tmp_path: Path) -> None:
    folders = snapshots(tmp_path)
    run("--documents", *folders, "--out", tmp_path / "one", "--workers", 1)
    run("--documents", *folders, "--out", tmp_path / "three", "--workers", 3)
    assert content(tmp_path / "one") == content(tmp_path / "three")
    assert len(content(tmp_path / "one")) == 6 * 2 + 2


def test_a_killed_run_goes_on_with_its_finished_sketches(tmp_path: Path) -> None:
    folders = snapshots(tmp_path)
    run("--documents", *folders, "--out", tmp_path / "straight", "--workers", 1)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "data_prep", "dedup", "--documents", *map(str, folders), "--out", str(out)]
    with subprocess.Popen([*command, "--workers", "1"], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(tmp_path.glob("killed.tmp/work/sketches-*.bin")):
            pass
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("killed.tmp/work/sketches-*.bin")}
    assert before
    seen: dict[Path, int] = {}
    choose = dedup_choice.choose

    def looks(task: dedup_run.Dedup) -> None:
        seen.update({path: path.stat().st_mtime_ns for path in before})
        choose(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "choose", looks)
        run("--documents", *folders, "--out", out)
    assert seen == before
    assert content(out) == content(tmp_path / "straight")


@pytest.mark.parametrize("stage", ["choose", "write_shard", "finish", "write_manifest"])
def test_a_run_stopped_at_any_stage_goes_on_to_the_same_files(tmp_path: Path, stage: str) -> None:
    folders = snapshots(tmp_path)
    run("--documents", *folders, "--out", tmp_path / "straight", "--workers", 1)
    place = dedup_run if stage == "write_manifest" else dedup

    def stops(*args: Any, **facts: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, stage, stops)
        with pytest.raises(KeyboardInterrupt):
            run("--documents", *folders, "--out", tmp_path / "out", "--workers", 1)
    assert not (tmp_path / "out").exists()
    run("--documents", *folders, "--out", tmp_path / "out", "--workers", 1)
    assert content(tmp_path / "out") == content(tmp_path / "straight")


def test_an_unfinished_run_of_other_settings_starts_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = snapshots(tmp_path)
    dedup_run.begin(dedup_run.Dedup(folders, tmp_path / "out", 0.5))
    run("--documents", *folders, "--out", tmp_path / "out")
    assert "out.tmp: begun with other documents, settings or code; starting anew" in capsys.readouterr().err
    assert manifest(tmp_path / "out")["settings"]["threshold"] == 0.8


def test_a_finished_folder_is_skipped_and_another_run_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = folder(tmp_path / "a", texts(a=text(1)))
    assert run("--documents", one, "--out", tmp_path / "out") == 0
    assert run("--documents", one, "--out", tmp_path / "out") == 0
    assert "nothing to do" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(CorpusError, match=r"out holds another run or other files; an empty folder is expected"):
        run("--documents", one, "--out", tmp_path / "out", "--threshold", 0.5)


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    one = folder(tmp_path / "a", texts(a=text(1)))
    message = r"out\.tmp is being written by another run; one at a time is possible"
    with dedup._locked(tmp_path / "out.tmp"), pytest.raises(CorpusError, match=message):
        run("--documents", one, "--out", tmp_path / "out")


def test_bad_options_and_folders_are_named(tmp_path: Path) -> None:
    one, out = folder(tmp_path / "a", texts(a=text(1))), tmp_path / "out"
    with pytest.raises(CorpusError, match=r"--threshold is 1\.5; above 0 and at most 1 is expected"):
        run("--documents", one, "--out", out, "--threshold", 1.5)
    with pytest.raises(CorpusError, match=r"--workers is 0; at least 1 is needed"):
        run("--documents", one, "--out", out, "--workers", 0)
    with pytest.raises(CorpusError, match=r"b does not exist; a folder with documents"):
        run("--documents", one, tmp_path / "b", "--out", out)
    with pytest.raises(CorpusError, match=r"a is given twice in --documents; each folder once is expected"):
        run("--documents", one, one, "--out", out)
    write_manifest(tmp_path / "none", {}) if (tmp_path / "none").mkdir() is None else None
    with pytest.raises(CorpusError, match=r"none holds no documents-\*\.jsonl\.zst; an output folder of"):
        run("--documents", tmp_path / "none", "--out", out)
    (one / "manifest.json").unlink()
    with pytest.raises(CorpusError, match=r"a has no manifest\.json, so it is unfinished; a complete folder"):
        run("--documents", one, "--out", out)
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "mine.txt").touch()
    with pytest.raises(CorpusError, match=r"out\.tmp holds no run\.json; an unfinished run is expected"):
        run("--documents", folder(tmp_path / "c", texts(a="")), "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a"}, r"the field text is 'None'; Unicode text is expected"),
        ({"id": 7, "text": "가"}, r"the field id is '7'; Unicode text is expected"),
        ({"id": "a", "text": "가\ud800"}, r"the field text is '가.ud800'; Unicode text is expected"),
        ({"id": "a", "text": "가", "timestamp": "yesterday"}, r"document 'a' has the timestamp 'yesterday'; ISO 8601"),
    ],
)
def test_a_bad_document_costs_its_file_and_the_others_are_kept(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    place = folder(tmp_path / "in", texts(a=text(1), b=text(2)), 1)
    (place / "documents-00001.jsonl.zst").unlink()
    (place / "documents-00001.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (place / "documents-00001.jsonl").rename(place / "documents-00001.jsonl.zst")
    compress(place / "documents-00001.jsonl.zst")
    with pytest.raises(CorpusError, match=r"1 of 2 files failed, 1 are complete in .*out\.tmp; (.|\n)*" + message):
        run("--documents", place, "--out", tmp_path / "out", "--workers", 2)
    assert [p.name for p in tmp_path.glob("out.tmp/work/sketches-*.bin")] == ["sketches-00000.bin"]


def test_a_full_disk_is_named_and_what_is_complete_is_kept(tmp_path: Path) -> None:
    places = [folder(tmp_path / f"{n}", [Document(str(i), text(i)) for i in range(n)]) for n in (5, 20)]
    options = ["--documents", *map(str, places), "--out", str(tmp_path / "out"), "--workers", "1"]
    result = subprocess.run(
        [sys.executable, "-m", "data_prep", "dedup", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000)),
    )
    assert result.returncode == 1
    assert re.search(
        r"error: .*out\.tmp cannot be written: File too large, .*; what is complete is kept", result.stderr
    )
    assert [p.name for p in (tmp_path / "out.tmp").glob("work/sketches-*.bin")] == ["sketches-00000.bin"]
    assert "Traceback" not in result.stderr


def compress(path: Path) -> None:
    import zstandard

    path.write_bytes(zstandard.ZstdCompressor().compress(path.read_bytes()))


def test_a_file_that_shrinks_while_dedup_runs_is_noticed(tmp_path: Path) -> None:
    place = folder(tmp_path / "in", texts(a=text(1), b=text(2), c=text(1)))
    task = dedup_run.Dedup((place,), tmp_path / "out")
    dedup_run.begin(task)
    (shard,) = task.shards()
    dedup_shards.sketch_shard(shard, lambda documents, num_bytes: None)
    dedup_choice.choose(task)
    write_jsonl(shard.documents, map(as_row, texts(a=text(1))))
    with pytest.raises(CorpusError, match=r"has 1 documents; one at position 2 is expected, as when it was compared"):
        dedup_shards.write_shard(shard, lambda documents, num_bytes: None)


def test_real_articles_and_their_edited_copies_are_found(tmp_path: Path) -> None:
    place = SHARED_DATA / "kowiki-text-2022"
    if not place.is_dir():
        pytest.skip("shared data not at hand")
    raw = (place / "AA_wiki_00").read_text(encoding="utf-8")
    bodies = [body for body in re.findall(r"<doc [^>]*>\n(.*?)</doc>", raw, re.DOTALL) if len(body.split()) > 100]
    new = [page(n, body, "2022-01-01T00:00:00Z") for n, body in enumerate(bodies)]
    old = [page(n, body.replace("이다.", "였다.", 2), "2020-01-01T00:00:00Z") for n, body in enumerate(bodies)]
    run("--documents", folder(tmp_path / "old", old), folder(tmp_path / "new", new), "--out", tmp_path / "out")
    assert [d.text for d in read_documents(tmp_path / "out")] == bodies
    reasons = manifest(tmp_path / "out")["ledger"]["dropped"]
    assert len(bodies) > 10
    assert reasons["near_duplicate"] + reasons.get("exact_duplicate", 0) >= 0.98 * len(bodies)
