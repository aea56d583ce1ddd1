"""Rows of chat data: out of a file of JSON lines, a JSON array, Parquet or a table, or a dataset of `datasets`."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.document import CorpusError
from data_prep.readers.lines import read_array, read_numbered, read_table_part, starts_array
from data_prep.readers.rows import one_line, read_parquet_part, saved_splits
from data_prep.source import Part

COMMIT = re.compile(r"[0-9a-f]{40}")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
Row = Mapping[str, Any]


@dataclass(frozen=True)
class ChatSource:
    """Where chat examples come from."""

    path: str
    """A file; or with `hub`, OWNER/NAME on the Hugging Face Hub or a folder that `datasets` reads."""
    hub: bool = False
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    """Commit of a dataset of the Hub, 40 hexadecimal digits."""
    form: str | None = None
    """A key of `formats.FORMS`; None: by the fields of each row."""
    fields: tuple[tuple[str, str], ...] = ()
    """(name that the form expects, column that has it)."""

    def rows(self) -> Iterator[tuple[str, Row | str]]:
        """Yields (file and line, row), or in place of the row what is wrong with the line.

        Raises:
            CorpusError: there is no such file or dataset, or it is damaged.
        """
        for place, row in _hub_rows(self) if self.hub else _file_rows(Path(self.path)):
            yield place, row if isinstance(row, str) else self._named(row, place)

    def _named(self, row: Row, place: str) -> Row | str:
        if lacking := [column for _, column in self.fields if column not in row]:
            return f"has no {', '.join(lacking)}; its fields are {', '.join(row)}; correct `fields`"
        try:
            json.dumps(row, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            return f"holds half of a surrogate pair, which is no character: {error.reason}; mend or remove the line"
        return {**row, **{name: row[column] for name, column in self.fields}}


def _file_rows(path: Path) -> Iterator[tuple[str, Row | str]]:
    if not path.is_file():
        raise CorpusError(f"{path} does not exist; a file of chat examples is expected; give its path")
    part = Part(path, 0, path.stat().st_size)
    with path.open("rb") as file:
        is_parquet = path.suffix == ".parquet" or file.read(4) == b"PAR1"
    if is_parquet:
        for number, _, row in read_parquet_part(part, None):
            yield f"{path} row {number}", row
    elif path.suffix in DELIMITERS:
        for number, _, row in read_table_part(part, DELIMITERS[path.suffix], "utf-8"):
            yield f"{path}:{number}", row
    elif starts_array(path):
        for number, item in read_array(path):
            yield f"{path} item {number}", item
    else:
        for number, item in read_numbered(path):
            yield f"{path}:{number}", item


def _hub_rows(source: ChatSource) -> Iterator[tuple[str, Row | str]]:
    import datasets

    folder, name = Path(source.path), f"{source.path}{f' ({source.subset})' if source.subset else ''}"
    is_saved = (folder / "state.json").is_file() or (folder.is_dir() and bool(saved_splits(folder)))
    try:
        if is_saved:
            found = datasets.load_from_disk(source.path)
        else:
            found = datasets.load_dataset(source.path, source.subset, revision=source.revision)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CorpusError(
            f"{name} cannot be opened: {one_line(error)}; a dataset of the Hugging Face Hub, or one in its cache, is "
            "expected; correct hub, subset or revision, or give a file as `chat`"
        ) from None
    if source.revision and not is_saved:
        _check_commit(name, source.revision, found)
    if isinstance(found, dict):
        if (split := source.split or (next(iter(found)) if len(found) == 1 else None)) not in found:
            raise CorpusError(
                f"{name} has the splits {', '.join(found)}; split is {source.split}; one of them is read; set split"
            )
        found, name = found[split], f"{name} {split}"
    for number, row in enumerate(found, start=1):
        yield f"{name} row {number}", row


def _check_commit(name: str, revision: str, found: Any) -> None:
    """Checks that a dataset is of the commit asked for: without access to the Hub, `datasets` takes any it has.

    Raises:
        CorpusError: it is of another one.
    """
    files = [file for part in found.values() for file in part.cache_files] if isinstance(found, dict) else []
    folders = {Path(file["filename"]).parent.name for file in files}
    if other := {folder for folder in folders if COMMIT.fullmatch(folder)} - {revision}:
        raise CorpusError(
            f"{name} was found at the commit {', '.join(sorted(other))}; revision is {revision}; download that one "
            "where there is access to the Hub, or correct revision"
        )
