"""Checkpoint folders on disk: which are complete, what is wrong with one, which are kept."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.loader import UserError
from data_prep.lineage import sha256_file, sha256_json, whole_file

STATE = "state.json"
DAMAGED = "damaged.txt"
"""What is wrong with a checkpoint that was found damaged; the folder is then never used, counted or deleted."""
STATE_CHECKSUM = "state_sha256"
NAME = re.compile(r"step-\d{8,}")


class CheckpointError(UserError):
    """A checkpoint cannot be written or read, or does not belong to this run."""


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept: the `newest` ones, every `every_steps`-th for ever, of ephemeral ones the newest."""

    newest: int
    every_steps: int | None = None

    def outdated(self, states: dict[Path, dict[str, Any]]) -> list[Path]:
        """Returns the folders that the newest one makes superfluous.

        Args:
            states: the complete checkpoints with their `state.json`, oldest first.
        """
        *older, newest = states
        regular = [path for path, state in states.items() if not state.get("ephemeral")]
        kept = {newest, *regular[-self.newest :]}
        if self.every_steps:
            kept |= {path for path in regular if states[path]["step"] % self.every_steps == 0}
        return [path for path in older if path not in kept]


def step_folders(folder: Path) -> list[Path]:
    """Returns the folders named as checkpoints are, complete or damaged, oldest first."""
    return sorted(p for p in folder.glob("step-*") if NAME.fullmatch(p.name))


def complete_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints whose state parses and that were not found damaged, oldest first."""
    return [path for path in step_folders(folder) if known_problem(path) is None]


def latest_checkpoint(folder: Path) -> Path | None:
    """Returns the newest complete checkpoint, or None; its shards are not read, see `check_files`."""
    return next(reversed(complete_checkpoints(folder)), None)


def known_problem(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint as far as can be told without reading its shards, or None."""
    if (path / DAMAGED).exists():
        return f"marked by {DAMAGED}: {(path / DAMAGED).read_text(encoding='utf-8', errors='replace').strip()}"
    try:
        read_state(path)
    except CheckpointError as error:
        return str(error).removeprefix(f"{path} is no complete checkpoint: ").split("; ")[0]
    return None


def read_state(path: Path) -> dict[str, Any]:
    """Returns a checkpoint's `state.json`.

    Raises:
        CheckpointError: the file is missing, does not parse or is not what was written, so the checkpoint is not
            complete.
    """
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
        state["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{STATE} cannot be used ({type(error).__name__}: {error})"
        raise CheckpointError(f"{path} is no complete checkpoint: {problem}; give another one") from None
    written = state.pop(STATE_CHECKSUM, None)
    if written is not None and written != sha256_json(state):
        problem = f"{STATE} differs from its own checksum {str(written)[:12]}"
        raise CheckpointError(f"{path} is no complete checkpoint: {problem}; give another one")
    return state


def file_problems(path: Path, files: dict[str, Any]) -> Iterator[str]:
    """Yields what is wrong with a checkpoint's files; each is read whole.

    Args:
        path: a checkpoint.
        files: of its `state.json`, or a part of them: name -> {bytes, sha256}.
    """
    for name, written in files.items():
        if Path(name).name != name:
            yield f"{name!r} lies outside the folder"
            continue
        try:
            size = (path / name).stat().st_size
            if size != written["bytes"]:
                yield f"{name} has {size:,} bytes, {written['bytes']:,} were written"
            elif sha256_file(path / name) != written["sha256"]:
                yield f"{name} differs from its checksum {written['sha256'][:12]}"
        except OSError as error:
            yield f"{name} cannot be read ({error.strerror or error})"


def facts(path: Path) -> dict[str, Any]:
    """Returns what `state.json` says of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def check_files(path: Path) -> None:
    """Reads all files of a checkpoint in this process and compares them with their checksums.

    Raises:
        CheckpointError: some differ; the message names them.
    """
    if problems := list(file_problems(path, read_state(path).get("files", {}))):
        raise CheckpointError(
            f"{path} is damaged: {', '.join(problems)}; the files of {STATE} are expected; restore them, or remove the "
            "folder to use the checkpoint before"
        )


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes `state.json` with its own checksum; it is on disk when this returns."""
    with (folder / STATE).open("w", encoding="utf-8") as file:
        json.dump(state | {STATE_CHECKSUM: sha256_json(json.loads(json.dumps(state)))}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def mark_damaged(path: Path, problem: str) -> None:
    """Leaves a note in a damaged checkpoint, so that it is not read again; where nothing can be written, none."""
    try:
        with whole_file(path / DAMAGED) as partial:
            partial.write_text(problem + "\n", encoding="utf-8")
    except OSError:  # a read-only folder: the next start finds the damage again
        return


def put_in_place(partial: Path, final: Path) -> None:
    """Gives a complete checkpoint its name; one of the same step, as after a damaged one, makes way for it."""
    sync(partial)
    if final.exists():
        remove(final)
    partial.rename(final)
    sync(final.parent)


def remove(*folders: Path) -> None:
    """Deletes checkpoints; one whose deletion is cut short has no checkpoint's name any more."""
    for path in folders:
        going = path if path.suffix == ".tmp" else path.rename(path.with_name(path.name + ".old.tmp"))
        shutil.rmtree(going)


def remove_leftovers(folder: Path) -> None:
    """Deletes what a killed run left half-written or half-deleted."""
    for path in folder.glob("step-*.tmp"):
        shutil.rmtree(path)


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Tells of the system's errors in the block as of a folder that cannot be used.

    Raises:
        CheckpointError: the block raised an OSError, as on a read-only or full disk.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written: {type(error).__name__}: {error}; a writable folder with room is expected; "
            "what is complete stays valid; mend the cause and start the same command again"
        ) from None


def sync(path: Path) -> None:
    """Waits until a file's or folder's entries are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
