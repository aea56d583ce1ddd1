"""The download against a server on this machine that misbehaves in every way a mirror does."""

import argparse
import email.utils
import hashlib
import http.server
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.__main__ import main
from data_prep.document import CorpusError
from data_prep.run_folder import locked
from data_prep.wiki import download
from data_prep.wiki.fetch import _seconds
from tests.unit.data_prep.dump_files import pages, write_multistream

NAME = "kowiki-20240520-pages-articles-multistream.xml.bz2"
INDEX = "kowiki-20240520-pages-articles-multistream-index.txt.bz2"
CONTENT = bytes(range(256)) * 4096  # 1 MB


Fault = Callable[[Any, bytes], None]
"""What a handler does with the file's content instead of sending it."""


class Mirror(http.server.ThreadingHTTPServer):
    """Files by path, what was asked for, and for each path what the first answers do instead of sending it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.agents: set[str] = set()
        self.knows_ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/dumps"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is none of the server's business."""

    def add(self, name: str, content: bytes) -> None:
        self.files[f"/dumps/kowiki/20240520/{name}"] = content

    def add_sums(self, algorithm: str = "sha1", **more: str) -> None:
        rows = {
            path.rpartition("/")[2]: hashlib.new(algorithm, data).hexdigest()
            for path, data in self.files.items()
            if path.endswith(".bz2")
        }
        text = "".join(f"{checksum}  {name}\n" for name, checksum in (rows | more).items())
        self.add(f"kowiki-20240520-{algorithm}sums.txt", text.encode())

    def fail(self, name: str, *faults: Fault) -> None:
        self.faults[f"/dumps/kowiki/20240520/{name}"] = list(faults)

    def asked(self, name: str) -> list[str | None]:
        return [requested for path, requested in self.requests if path.endswith(f"/{name}")]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers["Range"]))
        self.server.agents.add(self.headers["User-Agent"])
        data = self.server.files.get(self.path)
        if faults := self.server.faults.get(self.path):
            faults.pop(0)(self, data or b"")
        elif data is None:
            self.send_error(404)
        else:
            self.send(data)

    def send(self, data: bytes, cut: int | None = None) -> None:
        requested = self.headers["Range"] if self.server.knows_ranges else None
        start = int(re.fullmatch(r"bytes=(\d+)-", requested)[1]) if requested else 0  # type: ignore[index]
        if start and start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        self.send_response(206 if requested else 200)
        if requested:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : None if cut is None else start + cut])

    def log_message(self, *args: object) -> None:
        pass


def status(code: int, **headers: str) -> Fault:
    def answer(handler: Handler, data: bytes) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return answer


def cut_after(size: int) -> Fault:
    return lambda handler, data: handler.send(data, size)


def hang_up(handler: Handler, data: bytes) -> None:
    handler.connection.close()


def wrong_range(handler: Handler, data: bytes) -> None:
    status(206, Content_Range=f"bytes 7-{len(data) - 1}/{len(data)}", Content_Length="0")(handler, data)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    yield from started()


@pytest.fixture
def other() -> Iterator[Mirror]:
    yield from started()


def started() -> Iterator[Mirror]:
    server = Mirror()
    server.add(NAME, CONTENT)
    server.add_sums()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def arguments(out: Path, *mirrors: Mirror, more: tuple[str, ...] = ()) -> list[str]:
    addresses = [word for mirror in mirrors for word in ("--mirror", mirror.url)]
    words = ["download", "--wiki", "kowiki", "--date", "20240520", "--out", str(out)]
    return [*words, "--first-wait", "0.01", *addresses, *more]


def run(out: Path, *mirrors: Mirror, more: tuple[str, ...] = ()) -> int:
    parser = argparse.ArgumentParser()
    download.add_parser(parser.add_subparsers())
    args = parser.parse_args(arguments(out, *mirrors, more=more))
    return args.run(args)


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_a_dump_is_fetched_and_named_when_its_checksum_matches(mirror: Mirror, tmp_path: Path) -> None:
    assert main(arguments(tmp_path / "out", mirror)) == 0
    assert names(tmp_path / "out") == [NAME]
    assert (tmp_path / "out" / NAME).read_bytes() == CONTENT
    assert all(agent.startswith("kotune/") for agent in mirror.agents)
    assert run(tmp_path / "out", mirror) == 0
    assert len(mirror.asked(NAME)) == 1, "a complete file is not fetched again"


def test_what_a_killed_run_has_is_not_fetched_again(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:300_000])
    run(tmp_path, mirror)
    assert mirror.asked(NAME) == ["bytes=300000-"]
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_whole_part_file_needs_only_its_name(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    run(tmp_path, mirror)
    assert names(tmp_path) == [NAME]


@pytest.mark.parametrize("left", [CONTENT + b"more", b"x" * 1000])
def test_a_part_file_of_something_else_is_replaced(mirror: Mirror, tmp_path: Path, left: bytes) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(left)
    run(tmp_path, mirror)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_sends_all_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.knows_ranges = False
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:300_000])
    run(tmp_path, mirror)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_server_that_sends_another_range_is_asked_for_all(mirror: Mirror, tmp_path: Path) -> None:
    mirror.fail(NAME, wrong_range)
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:300_000])
    run(tmp_path, mirror)
    assert mirror.asked(NAME) == ["bytes=300000-", None]
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_cut_connections_are_resumed_however_many_there_are(mirror: Mirror, tmp_path: Path) -> None:
    mirror.fail(NAME, *[cut_after(100_000)] * 8, hang_up)
    assert run(tmp_path, mirror, more=("--attempts", "3")) == 0
    assert mirror.asked(NAME)[:3] == [None, "bytes=100000-", "bytes=200000-"]
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_busy_servers_are_tried_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.fail("kowiki-20240520-sha1sums.txt", status(503), hang_up)
    mirror.fail(NAME, status(500), status(502), status(429, Retry_After="0"), hang_up)
    assert run(tmp_path, mirror) == 0
    assert len(mirror.asked(NAME)) == 5


def test_retry_after_is_waited_for(mirror: Mirror, tmp_path: Path) -> None:
    mirror.fail(NAME, status(429, Retry_After="1"))
    begin = time.monotonic()
    run(tmp_path, mirror)
    assert time.monotonic() - begin >= 1
    assert 50 < _seconds(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60
    assert _seconds("soon") == 0


def test_a_server_that_stays_busy_is_left_for_the_next(mirror: Mirror, other: Mirror, tmp_path: Path) -> None:
    mirror.fail(NAME, *[status(503)] * 3)
    assert run(tmp_path, mirror, other, more=("--attempts", "3")) == 0
    assert len(mirror.asked(NAME)) == 3
    mirror.fail(NAME, *[status(503)] * 3)
    (tmp_path / NAME).unlink()
    with pytest.raises(CorpusError, match=rf"no mirror gave it.*\n.*{NAME}: HTTP 503 .*, 3 times; an answer is exp"):
        run(tmp_path, mirror, more=("--attempts", "3"))


def test_a_wrong_checksum_leads_to_the_next_mirror_and_then_to_an_error(
    mirror: Mirror, other: Mirror, tmp_path: Path
) -> None:
    damaged = CONTENT[:-1] + b"x"
    mirror.files[f"/dumps/kowiki/20240520/{NAME}"] = damaged
    assert run(tmp_path, mirror, other) == 0
    assert (tmp_path / NAME).read_bytes() == CONTENT
    (tmp_path / NAME).unlink()
    right, wrong = (hashlib.sha1(data).hexdigest() for data in (CONTENT, damaged))
    with pytest.raises(CorpusError, match=rf"no mirror gave it; .*\n.*has the sha1 {wrong}; {right} is expected"):
        run(tmp_path, mirror)
    assert names(tmp_path) == []


def test_a_finished_file_that_was_damaged_later_is_named(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"x")
    with pytest.raises(CorpusError, match=r"has the sha1 11f6ad8e\w*; \w{40} is expected; remove it and start again"):
        run(tmp_path, mirror)


def test_md5_sums_do_where_there_are_no_sha1_sums(mirror: Mirror, tmp_path: Path) -> None:
    del mirror.files["/dumps/kowiki/20240520/kowiki-20240520-sha1sums.txt"]
    mirror.add_sums("md5")
    assert run(tmp_path, mirror) == 0


def test_a_date_that_is_not_there_is_answered_with_those_that_are(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["/dumps/kowiki/"] = (
        b'<a href="../">..</a> <a href="20240401/">x</a> <a href="/dumps/kowiki/20240501/">'
    )
    with pytest.raises(CorpusError, match=r"no mirror has .* of 20240601; there are 20240501, 20240401; give another"):
        run(tmp_path, mirror, more=("--date", "20240601"))
    del mirror.files["/dumps/kowiki/"]
    with pytest.raises(CorpusError, match=r"of 20240601; no mirror lists dates of kowiki; .*\n.*HTTP 404 Not Found"):
        run(tmp_path, mirror, more=("--date", "20240601"))


def test_a_mirror_without_the_dump_leaves_it_to_the_next(mirror: Mirror, other: Mirror, tmp_path: Path) -> None:
    mirror.files.clear()
    assert run(tmp_path, mirror, other) == 0


def test_numbered_files_are_fetched_in_order_when_there_is_no_other(mirror: Mirror, tmp_path: Path) -> None:
    del mirror.files[f"/dumps/kowiki/20240520/{NAME}"]
    stem = "kowiki-20240520-pages-articles-multistream"
    parts = [f"{stem}{n}.xml-p{n}00p{n}99.bz2" for n in (1, 2, 10)]
    for name in [*reversed(parts), f"{stem}-index1.txt-p100p199.bz2", "kowiki-20240520-pages-articles1.xml-p1p9.bz2"]:
        mirror.add(name, name.encode())
    mirror.add_sums()
    assert run(tmp_path, mirror) == 0
    assert names(tmp_path) == sorted(parts)
    asked = [path.rpartition("/")[2] for path, _ in mirror.requests if "sums" not in path]
    assert asked == parts
    assert run(tmp_path, mirror, more=("--with-index",)) == 0
    assert f"{stem}-index1.txt-p100p199.bz2" in names(tmp_path)


def test_the_index_is_fetched_when_asked_for(mirror: Mirror, tmp_path: Path) -> None:
    mirror.add(INDEX, b"index")
    mirror.add_sums()
    run(tmp_path, mirror, more=("--with-index",))
    assert names(tmp_path) == [INDEX, NAME]


def test_a_dump_without_the_kind_says_what_it_has(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"has no pages-meta-current file; it has pages-articles-multistream\.xml\.bz2"
    ):
        run(tmp_path, mirror, more=("--kind", "pages-meta-current"))


def test_no_name_of_the_server_leads_out_of_the_folder(mirror: Mirror, tmp_path: Path) -> None:
    checksum = hashlib.sha1(CONTENT).hexdigest()
    evil = ["../../evil-pages-articles.xml.bz2", f"../{NAME}", f"/tmp/{NAME}", f"a/{NAME}", f"{NAME}/../../x", "..", ""]
    lines = "".join(f"{checksum}  {name}\n" for name in evil)
    mirror.add("kowiki-20240520-sha1sums.txt", lines.encode())
    with pytest.raises(CorpusError, match=r"has no pages-articles-multistream file"):
        run(tmp_path / "a" / "out", mirror)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk_is_named_before_the_download(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.disk.free_bytes", lambda path: 1000)
    with pytest.raises(CorpusError, match=r"part: 0 MB are free; the rest of http.* needs about 1 MB; make room"):
        run(tmp_path, mirror)


def test_two_downloads_into_one_folder_are_refused(mirror: Mirror, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(CorpusError, match=r"is being written by another run"):
        run(tmp_path, mirror)


def test_proxies_of_the_environment_are_used(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{mirror.server_address[1]}")
    monkeypatch.setenv("no_proxy", "")
    mirror.files |= {f"http://dumps.example{path}": data for path, data in mirror.files.items()}
    assert run(tmp_path, more=("--mirror", "http://dumps.example/dumps")) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--wiki", "../x"), r"--wiki is '../x'; a database's name is expected; give kowiki or enwiki"),
        (("--date", "latest"), r"--date is 'latest'; YYYYMMDD is expected"),
        (("--mirror", "file:///etc"), r"--mirror is 'file:///etc'; an address is expected"),
        (("--attempts", "0"), r"--attempts is 0 and --first-wait 0\.01; at least 1 and 0 are expected"),
        (("--with-index", "--kind", "pages-articles"), r"--with-index is given with --kind pages-articles; only"),
    ],
)
def test_options_that_cannot_be_used_are_named(tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        run(tmp_path / "out", more=more)
    assert not (tmp_path / "out").exists()


def test_what_was_fetched_can_be_cleaned(mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mirror.add(NAME, write_multistream(tmp_path / "x", pages(3)).read_bytes())
    mirror.add_sums()
    assert main(arguments(tmp_path / "out", mirror)) == 0
    words = capsys.readouterr().out.partition("python -m data_prep ")[2].split()
    words[words.index("FOLDER")] = str(tmp_path / "clean")
    assert main([*words, "--workers", "1"]) == 0
