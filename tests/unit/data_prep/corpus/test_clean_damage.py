"""What `clean` does when something breaks: the input, the disk, a worker, the run itself."""

import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from data_prep import pool
from data_prep.corpus import assemble, clean
from data_prep.corpus.shard import ShardTask
from data_prep.document import CorpusError, read_documents
from tests.unit.data_prep.corpus.clean_command import arguments, content, manifest, run, start
from tests.unit.data_prep.dump_files import FOOTER, HEADER, article, page_xml, pages, write_multistream

NUM_ARTICLES = 60


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    return write_multistream(tmp_path / "kowiki.xml.bz2", pages(NUM_ARTICLES))


def break_stream(dump: Path, number: int) -> tuple[int, int]:
    """Damages one bz2 stream and returns its range."""
    data = bytearray(dump.read_bytes())
    starts = [match.start() for match in re.finditer(rb"BZh9", data)]
    data[starts[number] + 60] ^= 0xFF
    dump.write_bytes(data)
    return starts[number], starts[number + 1]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_damaged_stream_costs_its_pages_and_the_exit_code_says_so(
    dump: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    start_byte, end_byte = break_stream(dump, 6)
    out = tmp_path / "out"
    assert run(dump, out, "--workers", workers) == 3
    assert [d.id for d in read_documents(out)] == [
        f"kowiki-{n}" for n in range(1, NUM_ARTICLES + 1) if not 26 <= n <= 30
    ]
    loss = {"file": str(dump), "start": start_byte, "end": end_byte, "decompressed": False}
    assert [{k: entry[k] for k in loss} for entry in manifest(out)["losses"]] == [loss]
    told = capsys.readouterr().err
    assert f"1 parts of the input could not be read:\n  {dump}: bytes {start_byte} to {end_byte} of the file" in told
    assert "exit code 3; fetch the input again, or pass --accept-loss" in told
    assert run(dump, out, "--workers", workers) == 3
    told = capsys.readouterr().err
    assert "nothing to do" in told
    assert f"bytes {start_byte} to {end_byte}" in told
    assert run(dump, out, "--workers", workers, "--accept-loss") == 0
    assert "exit code" not in capsys.readouterr().err


def test_a_broken_page_is_in_the_ledger_and_among_the_losses(tmp_path: Path) -> None:
    rows = [page_xml(n, f"글 {n}", article(n)) for n in range(1, 11)]
    rows[4] = rows[4].replace("</text>", "</txt>")
    path = tmp_path / "x.xml"
    path.write_text(HEADER + "".join(rows) + FOOTER, encoding="utf-8")
    assert run(path, tmp_path / "out", "--workers", 2) == 3
    facts = manifest(tmp_path / "out")
    assert facts["ledger"] == {"in": 10, "out": 9, "dropped": {"broken_page": 1}}
    (loss,) = facts["losses"]
    assert path.read_bytes()[loss["start"] : loss["end"]].decode().strip() == rows[4].strip()
    assert loss["cause"].startswith("page '글 5': broken XML: ")


def test_a_truncated_pipe_is_a_loss(dump: Path, tmp_path: Path) -> None:
    command = arguments("-", tmp_path / "out", "--workers", 2)
    with start(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.buffer.write(dump.read_bytes()[:-200])
        told = process.communicate()[1]
    assert process.returncode == 3, told
    assert "standard input: bytes" in told
    assert "the bz2 stream is truncated" in told


def test_a_killed_run_resumes_to_the_files_of_a_straight_one(dump: Path, tmp_path: Path) -> None:
    run(dump, tmp_path / "straight")
    out = tmp_path / "killed"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with start(arguments(dump, out, "--workers", 2), **quiet) as process:
        while process.poll() is None and not list(out.glob("work/summary-*.json")):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert not (out / "manifest.json").exists() or process.returncode == 0
    run(dump, out)
    assert content(out) == content(tmp_path / "straight")


def test_a_killed_run_on_a_single_stream_resumes_without_cleaning_again(dump: Path, tmp_path: Path) -> None:
    data = (HEADER + "".join(pages(NUM_ARTICLES)) + FOOTER).encode()
    (path := tmp_path / "x.xml").write_bytes(data)
    piped = "standard input"
    out = tmp_path / "out"
    done: list[str] = []
    with start(
        arguments("-", out, "--workers", 2, "--shard-mb", 0.02),
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.buffer.write(data[: len(data) * 2 // 3])
        process.stdin.flush()
        while len(done) < 2 and process.poll() is None:
            done = [file.name for file in out.glob("work/summary-*.json")]
            time.sleep(0.01)
        process.kill()
    assert not (out / "manifest.json").exists(), piped
    times = {name: (out / "work" / name).stat().st_mtime_ns for name in done}
    documents = {name: (out / "work" / name.replace("summary", "documents")).with_suffix(".jsonl.zst") for name in done}
    inodes = {name: file.stat().st_ino for name, file in documents.items()}
    with path.open("rb") as file, start(arguments("-", out, "--shard-mb", 0.02), stdin=file) as process:
        assert process.wait() == 0
    assert len(times) >= 2
    assert {name: (out / file.name).stat().st_ino for name, file in documents.items()} == inodes
    run(path, tmp_path / "straight", "--shard-mb", 0.02)
    assert [vars(d) for d in read_documents(out)] == [vars(d) for d in read_documents(tmp_path / "straight")]


def test_a_pipe_that_brings_something_else_after_a_kill_is_refused(dump: Path, tmp_path: Path) -> None:
    data = (HEADER + "".join(pages(NUM_ARTICLES)) + FOOTER).encode()
    out = tmp_path / "out"
    with start(
        arguments("-", out, "--shard-mb", 0.02),
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.buffer.write(data[: len(data) * 2 // 3])
        process.stdin.flush()
        while not list(out.glob("work/summary-*.json")) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    other = data.replace("시험 문서".encode(), "다른 문서".encode())
    command = arguments("-", out, "--shard-mb", 0.02)
    with start(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        with contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None
            process.stdin.buffer.write(other)
        told = process.communicate()[1]
    assert process.returncode == 1
    assert re.search(r"part 0 of the dump has the SHA-256 \w{12}, \w{12} was cleaned before; the same dump is", told)


@pytest.mark.parametrize("stop_at", range(0, 7, 2))
def test_a_run_killed_while_assembling_resumes(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    run(dump, tmp_path / "straight", "--style", "kowikitext")
    out, place, calls = tmp_path / "out", assemble.place, []

    def stops(*args: Any) -> None:
        calls.append(args)
        if len(calls) > stop_at:
            raise KeyboardInterrupt
        place(*args)

    monkeypatch.setattr(assemble, "place", stops)
    with pytest.raises(KeyboardInterrupt):
        run(dump, out, "--style", "kowikitext")
    monkeypatch.setattr(assemble, "place", place)
    assert not (out / "manifest.json").exists()
    run(dump, out, "--style", "kowikitext")
    assert content(out) == content(tmp_path / "straight")


@pytest.mark.parametrize("stops_in", ["write_splits", "write_report", "write_manifest"])
def test_a_run_killed_at_its_end_resumes(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops_in: str
) -> None:
    run(dump, tmp_path / "straight", "--style", "kowikitext")

    def stops(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(clean, stops_in, stops)
        with pytest.raises(KeyboardInterrupt):
            run(dump, tmp_path / "out", "--style", "kowikitext")
    run(dump, tmp_path / "out", "--style", "kowikitext")
    assert content(tmp_path / "out") == content(tmp_path / "straight")


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    with contextlib.suppress(OSError):
        return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]
    return []


def is_worker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def test_a_killed_worker_costs_an_attempt(dump: Path, tmp_path: Path) -> None:
    run(dump, tmp_path / "straight")
    out = tmp_path / "out"
    with start(arguments(dump, out, "--workers", 2), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (workers := [pid for pid in children(process.pid) if is_worker(pid)]):
            time.sleep(0.001)
        os.kill(workers[0], signal.SIGKILL)
    assert process.returncode == 0
    assert content(out) == content(tmp_path / "straight")


def dies_at_shard_3(task: ShardTask, report: pool.Report) -> None:
    if task.index == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    REAL_CLEAN_SHARD(task, report)


REAL_CLEAN_SHARD = clean.clean_shard


def test_a_shard_whose_worker_dies_twice_fails_and_the_others_are_kept(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(dump, tmp_path / "straight")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(clean, "clean_shard", dies_at_shard_3)
        message = (
            r"1 of (\d+) shards failed, \d+ are complete in .*\n  shard 00003: its worker ended 2 times, .* code -9;"
        )
        with pytest.raises(CorpusError, match=message):
            run(dump, out, "--workers", 2)
    assert not (out / "manifest.json").exists()
    num_shards = manifest(tmp_path / "straight")["counts"]["shards"]
    assert len(list((out / "work").glob("summary-*.json"))) == num_shards - 1
    run(dump, out)
    assert content(out) == content(tmp_path / "straight")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_message_and_what_is_complete_is_kept(tmp_path: Path, workers: int) -> None:
    rng = random.Random(0)
    rows = [page_xml(n, f"글 {n}", article(n)) for n in range(1, 41)]
    # Text that does not compress, so that only this shard meets the limit on a file's size.
    noise = "".join(
        f"글 {n}. " + "".join(rng.choice("가나다라마바사아자차카타파하") for _ in range(80)) for n in range(900)
    )
    rows.append(page_xml(99, "긴 글", noise))
    path = write_multistream(tmp_path / "x.bz2", rows)
    out = tmp_path / "out"

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    command = arguments(path, out, "--workers", workers)
    with start(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=limit_files) as process:
        told = process.communicate()[1]
    assert process.returncode == 1
    message = (
        rf"error: {out}/work\S* cannot be written: File too large, [\d,]+ bytes are free; what is complete is kept;"
    )
    assert re.search(message, told), told
    assert "Traceback" not in told
    kept = {file.name for file in (out / "work").glob("summary-*.json")}
    assert kept
    assert run(path, out) == 0
    run(path, tmp_path / "straight")
    assert content(out) == content(tmp_path / "straight")


def test_too_little_room_is_named_before_any_work(dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.disk.free_bytes", lambda path: 1000)
    with pytest.raises(CorpusError, match=r"out: 0 MB are free; the corpus of this input needs about 0 MB; make room"):
        run(dump, tmp_path / "out")
    assert not (tmp_path / "out").exists()
