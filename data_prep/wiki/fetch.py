"""One file over HTTP: resumed where it stopped, tried again when the server is busy or the connection is cut."""

import contextlib
import email.utils
import http.client
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.disk import check_free, disk_full
from data_prep.document import CorpusError

USER_AGENT = "kotune/0.1 (corpus preparation; resumes, backs off)"
BLOCK_BYTES = 256 * 1024
TIMEOUT_SECONDS = 60
MAX_WAIT_SECONDS = 300.0
MAX_PAGE_BYTES = 32 * 1024 * 1024  # of a listing or a list of checksums

_BUSY = (408, 425, 429, 500, 502, 503, 504)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_CUT = (http.client.HTTPException, ConnectionError, TimeoutError)


class FetchError(CorpusError):
    """A mirror could not give the file; another one may. `status` is HTTP's, 0 without an answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Patience:
    """How often a request is tried, and how long is waited: `first_wait` seconds, then twice as long each time."""

    attempts: int = 6
    first_wait: float = 2.0

    def wait(self, attempt: int, retry_after: str | None) -> None:
        """Waits after the failed attempt number `attempt`, 0 being the first; at least as long as the server asks."""
        asked = _seconds(retry_after) if retry_after else 0.0
        time.sleep(min(MAX_WAIT_SECONDS, max(asked, self.first_wait * 2**attempt)))


def read_page(url: str, patience: Patience) -> str:
    """Returns a small text.

    Raises:
        FetchError: it could not be had.
    """
    attempt = 0
    while True:
        try:
            with _open(url, 0) as answer:
                data = answer.read(MAX_PAGE_BYTES)
                if answer.length:
                    raise http.client.IncompleteRead(data, answer.length)
                return data.decode("utf-8", "replace")
        except (urllib.error.URLError, *_CUT) as error:
            attempt = _after_failure(url, error, attempt, patience)


def fetch(url: str, part: Path, patience: Patience) -> None:
    """Downloads `url` to the file `part`, going on behind what it holds already.

    An attempt that brought something forward does not count. The content is not checked here.

    Raises:
        FetchError: the server has no such file, refuses, or failed too often.
        CorpusError: there is no room for the file.
    """
    attempt = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _fetch_once(url, part, before):
                return
        except (urllib.error.URLError, *_CUT) as error:
            has_grown = part.exists() and part.stat().st_size > before
            attempt = _after_failure(url, error, 0 if has_grown else attempt, patience)


def _fetch_once(url: str, part: Path, start: int) -> bool:
    """Asks once for what comes after byte `start`; False if the file has to be asked for from its start."""
    try:
        answer = _open(url, start)
    except urllib.error.HTTPError as error:
        with error:
            size = re.search(r"/(\d+)$", error.headers.get("Content-Range", ""))
        if error.code != 416 or not start:
            raise
        if size and int(size[1]) == start:
            return True  # all of it was there
        part.unlink()
        return False
    with answer:
        first, total = _range(answer, start)
        if first not in (0, start):
            if not start:
                raise FetchError(f"{url}: byte {first} comes first, though byte 0 was asked for; give another --mirror")
            part.unlink()
            return False
        if total is not None:
            check_free(part, total - first, f"the rest of {url}")
        _copy(answer, part, first, total)
    size_now = part.stat().st_size
    if total is not None and size_now < total:
        raise http.client.IncompleteRead(b"", total - size_now)
    return True


def _open(url: str, start: int) -> Any:
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    opener = urllib.request.build_opener()  # with the proxies of the environment
    return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)


def _range(answer: Any, start: int) -> tuple[int, int | None]:
    """Returns the first byte that the answer holds, and the file's size if it is known.

    A server that does not know ranges answers 200 and sends all of it.
    """
    length = int(answer.headers["Content-Length"]) if answer.headers.get("Content-Length", "").isdecimal() else None
    if answer.status != 206:
        return 0, length
    found = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
    if not found:
        return -1, None
    first = int(found[1])
    return first, int(found[2]) if found[2] != "*" else (None if length is None else first + length)


def _copy(answer: Any, part: Path, first: int, total: int | None) -> None:
    with (
        disk_full(part),
        part.open("r+b" if first else "wb") as file,
        tqdm(total=total, initial=first, unit="B", unit_scale=True, desc=part.stem, mininterval=1) as bar,
    ):
        file.seek(first)
        while block := answer.read(BLOCK_BYTES):
            file.write(block)
            bar.update(len(block))


def _after_failure(url: str, error: Exception, attempt: int, patience: Patience) -> int:
    """Waits and returns the number of the next attempt.

    Raises:
        FetchError: it makes no sense to try again.
    """
    status, retry_after = 0, None
    if isinstance(error, urllib.error.HTTPError):
        with contextlib.closing(error):
            status, retry_after = error.code, error.headers.get("Retry-After")
    what = f"HTTP {status} {error.reason}" if isinstance(error, urllib.error.HTTPError) else str(error) or repr(error)
    if status and status not in _BUSY:
        raise FetchError(f"{url}: {what}; 200 or 206 is expected; give another --mirror", status) from None
    if attempt + 1 >= patience.attempts:
        raise FetchError(
            f"{url}: {what}, {patience.attempts} times; an answer is expected; start again later or give another "
            "--mirror",
            status,
        ) from None
    patience.wait(attempt, retry_after)
    return attempt + 1


def _seconds(retry_after: str) -> float:
    """Returns the value of a Retry-After header, seconds or a date, as seconds from now."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    with contextlib.suppress(ValueError, TypeError):
        return email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
    return 0.0
