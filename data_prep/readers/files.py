"""Files of one format as a source of documents."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.lineage import sha256_file, sha256_json, sha256_path
from data_prep.readers.fields import Fields, Record, Records
from data_prep.readers.lines import jsonl_place, read_jsonl_part, read_table_part, split_jsonl
from data_prep.readers.rows import read_parquet_part, read_saved_part, split_parquet, split_saved
from data_prep.readers.text import read_text_part, split_text
from data_prep.source import Part, PartReader

_UNIT = {"parquet": "row", "saved": "row", "text": "file"}
_BIG_BYTES = 1 << 30  # hashing more than this shows its progress


@dataclass
class FileSource:
    """Files of one format below `root`, in the order of their paths; see `Source`."""

    form: str
    root: Path
    files: tuple[Path, ...]
    fields: Fields
    encoding: str
    lang: str | None

    def settings(self) -> dict[str, Any]:
        """See `Source`; the files are known by their names below `root` and their content."""
        return {
            "format": self.form,
            "encoding": self.encoding,
            "fields": asdict(self.fields),
            "files_sha256": self._hash(),
        }

    def parts(self, part_bytes: int) -> list[Part]:
        """See `Source`; a compressed file is one part, whatever its size."""
        splits: dict[str, Callable[[Path, int], list[Part]]] = {
            "jsonl": split_jsonl,
            "parquet": split_parquet,
            "saved": split_saved,
            "text": split_text,
        }
        split = splits.get(self.form) or (lambda file, _: [Part(file, 0, file.stat().st_size)])
        return [part for file in self.files for part in split(file, part_bytes)]

    def read(self, part: Part) -> PartReader:
        """See `Source`."""
        path = part.path
        return Records(
            part, self._records(part), self.fields, lambda key: self._place(path, key), lambda key: self._key(path, key)
        )

    def _records(self, part: Part) -> Iterator[Record]:
        if self.form == "jsonl":
            return read_jsonl_part(part)
        if self.form == "parquet":
            return read_parquet_part(part, self.fields)
        if self.form == "saved":
            return read_saved_part(part, self.fields)
        if self.form == "text":
            return read_text_part(part, self.encoding)
        return read_table_part(part, "\t" if self.form == "tsv" else ",", self.encoding)

    def _place(self, path: Path, key: int) -> str:
        return jsonl_place(path, key) if self.form == "jsonl" else f"{path} {_UNIT.get(self.form, 'line')} {key}"

    def _key(self, path: Path, key: int) -> str:
        """Returns what stands for an id: the file's name below the root, if there are several, and the place in it."""
        name = f"{path.relative_to(self.root).as_posix()}:" if len(self.files) > 1 else ""
        return f"{name}{key}"

    def _hash(self) -> str:
        if self.form in ("saved", "text"):
            return sha256_path(self.files[0])
        sizes = [file.stat().st_size for file in self.files]
        rows = []
        with tqdm(
            total=sum(sizes), unit="B", unit_scale=True, desc="hash", disable=sum(sizes) < _BIG_BYTES, mininterval=1
        ) as bar:
            for file, size in zip(self.files, sizes, strict=True):
                rows.append([file.name if file == self.root else str(file.relative_to(self.root)), sha256_file(file)])
                bar.update(size)
        return sha256_json(rows)
