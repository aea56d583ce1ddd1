"""The output folder of a run that can be killed: one run at a time, and the same settings when it goes on."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.document import CorpusError
from data_prep.lineage import sha256_json, write_json
from data_prep.shard_files import read_json

RUN = "run.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; the lock ends with it.

    Raises:
        CorpusError: another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CorpusError(
                f"{folder} is being written by another run; one at a time is possible; wait or give another --out"
            ) from None
        yield
    finally:
        os.close(handle)


def open_run(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the state of the run in `out`, which is begun if the folder is new or empty.

    Raises:
        CorpusError: the folder holds something else, or a run with other settings.
    """
    run_file = out / RUN
    if not run_file.is_file():
        if out.exists() and (not out.is_dir() or any(p.name != f"{RUN}.tmp" for p in out.iterdir())):
            raise CorpusError(f"{out} exists and holds no {RUN}; a new or empty folder is expected; give another --out")
        state: dict[str, Any] = {"fingerprint": sha256_json(settings), "settings": settings, "facts": None}
        write_json(run_file, state)
        return state
    state = read_json(run_file)
    if state["fingerprint"] != sha256_json(settings):
        changes = _changes(state["settings"], settings)
        raise CorpusError(
            f"{out} was begun with fingerprint {state['fingerprint'][:12]}, this run has {sha256_json(settings)[:12]} "
            f"({'; '.join(changes)}); the same input, settings and code are expected; give another --out or remove it"
        )
    return state


def _changes(old: Any, new: Any, name: str = "") -> list[str]:
    """Returns what differs between two JSON values, as `key.key was A, is B`."""
    if old == new:
        return []
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = ({str(i): value for i, value in enumerate(values)} for values in (old, new))
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [f"{name} was {old!r}, is {new!r}"]
    keys = [*old, *(key for key in new if key not in old)]
    return [line for key in keys for line in _changes(old.get(key), new.get(key), f"{name}.{key}" if name else key)]
