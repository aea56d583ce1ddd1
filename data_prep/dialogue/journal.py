"""The journal of a generation: every answer on disk before the next step, so that a kill loses none."""

import fcntl
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from data_prep.document import CorpusError


class Journal:
    """An append-only JSON-lines file that one process writes; use it in `with`.

    Lines are of the kinds `session` (what is asked, and of whom), `answer` (a seed's number, the raw
    text and its tokens) and `failure` (a request without an answer). A last line without its end, as a
    kill leaves it, is cut off.

    Args:
        path: made when there is none; read when there is one.

    Raises:
        CorpusError: another process writes it, or a line but the last is no journal's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[int, list[dict[str, Any]]] = {}
        self.failures: Counter[str] = Counter()
        self.sessions: list[dict[str, Any]] = []
        self.tokens: Counter[str] = Counter()  # in, out, uncertain: of requests that failed after they were sent
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock()
            self._size = self._read()
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def add_session(self, **facts: Any) -> None:
        """Notes that a session begins."""
        self._add({"kind": "session", **facts})

    def add_answer(self, number: int, **facts: Any) -> None:
        """Notes an answer for a seed; when this returns it is on disk."""
        self._add({"kind": "answer", "seed": number, **facts})

    def add_failure(self, why: str, tokens: int) -> None:
        """Notes a request without an answer and the tokens it may have cost."""
        self._add({"kind": "failure", "why": why, "tokens": tokens}, is_durable=False)

    @property
    def tokens_spent(self) -> int:
        """Tokens of all sessions, those included that a lost answer may have cost."""
        return sum(self.tokens.values())

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CorpusError(
                f"{self.path} is in use by another process; one at a time is expected; wait, or give another output_dir"
            ) from None

    def _read(self) -> int:
        """Takes in the lines and returns the length of the file without an unfinished last line."""
        size = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    self._take(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError):
                    raise CorpusError(
                        f"{self.path}:{number}: {line[:40]!r}; a line of this journal is expected; "
                        "remove the line, or give another output_dir"
                    ) from None
                size += len(line)
        return size

    def _take(self, row: dict[str, Any]) -> None:
        if row["kind"] == "answer":
            self.tokens["in"] += row["tokens_in"]
            self.tokens["out"] += row["tokens_out"]
            self.answers.setdefault(row["seed"], []).append(row)
        elif row["kind"] == "failure":
            self.failures[row["why"]] += 1
            self.tokens["uncertain"] += row["tokens"]
        elif row["kind"] == "session":
            self.sessions.append(row)
        else:
            raise KeyError(row["kind"])

    def _add(self, row: dict[str, Any], is_durable: bool = True) -> None:
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", errors="replace")
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
            if is_durable:
                os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise CorpusError(
                f"{self.path} cannot be written: {error.strerror}; room for its lines is expected; "
                "make room, then start the same command again"
            ) from None
        self._size += len(line)
        self._take(row)
