"""Parquet files by row groups, and datasets saved with `save_to_disk` by rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.document import CorpusError
from data_prep.readers.fields import Fields, Record
from data_prep.source import Part

_BATCH_ROWS = 200


def split_parquet(path: Path, part_bytes: int) -> list[Part]:
    """Returns byte ranges of whole row groups.

    Raises:
        CorpusError: the file is no Parquet, or cut short.
    """
    cuts = [0]
    for start in _row_group_starts(_open_parquet(path).metadata)[1:]:
        if start - cuts[-1] >= part_bytes:
            cuts.append(start)
    ends = [*cuts[1:], path.stat().st_size]
    return [Part(path, start, end) for start, end in zip(cuts, ends, strict=True)]


def read_parquet_part(part: Part, fields: Fields | None) -> Iterator[Record]:
    """Yields (number of the row in the file, offset read so far, row) of the row groups that start in the part.

    Args:
        part: whole row groups.
        fields: says which columns are read; None reads them all.

    Raises:
        CorpusError: a row group is damaged.
    """
    from pyarrow import ArrowException

    file = _open_parquet(part.path)
    starts = _row_group_starts(file.metadata)
    columns = fields.columns(file.schema_arrow.names) if fields else None
    number = 0
    for group, start in enumerate(starts):
        num_rows = file.metadata.row_group(group).num_rows
        if not part.start <= start < part.end:
            number += num_rows
            continue
        end = starts[group + 1] if group + 1 < len(starts) else part.end
        first = number
        try:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns or None):
                for row in batch.to_pylist():
                    number += 1
                    yield number, start + (end - start) * (number - first) // num_rows, row
        except (ArrowException, OSError) as error:
            raise CorpusError(
                f"{part.path} is damaged in row group {group} after row {number}: {one_line(error)}; "
                "a whole Parquet file is expected; copy it anew"
            ) from None


def _open_parquet(path: Path) -> Any:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)  # pages, not whole columns, in memory
    except (ArrowException, OSError) as error:
        raise CorpusError(
            f"{path} is no Parquet file, or damaged: {one_line(error)}; copy it anew, or give its --format"
        ) from None


def _row_group_starts(metadata: Any) -> list[int]:
    """Returns the offset at which each row group begins; the first one is taken to begin the file."""
    starts = []
    for group in range(metadata.num_row_groups):
        columns = [metadata.row_group(group).column(i) for i in range(metadata.num_columns)]
        starts.append(min(c.dictionary_page_offset or c.data_page_offset for c in columns))
    return [0, *starts[1:]]


def split_saved(path: Path, part_bytes: int) -> list[Part]:
    """Returns ranges of a saved dataset; a row's offset is its share of the files' bytes.

    Raises:
        CorpusError: the folder is no saved dataset, or lacks a file.
    """
    num_rows, num_bytes = _saved_size(path)
    rows_a_part = max(1, num_rows * part_bytes // max(num_bytes, 1))
    cuts = [row * num_bytes // num_rows for row in range(0, num_rows, rows_a_part)] or [0]
    return [Part(path, start, end) for start, end in zip(cuts, [*cuts[1:], num_bytes], strict=True)]


def read_saved_part(part: Part, fields: Fields) -> Iterator[Record]:
    """Yields (number of the row, offset read so far, row).

    Raises:
        CorpusError: the dataset is damaged.
    """
    num_rows, num_bytes = _saved_size(part.path)
    # Exact, as rows * bytes // rows was rounded down and there are at least as many bytes as rows.
    first, last = (-(-offset * num_rows // num_bytes) for offset in (part.start, part.end))
    dataset = _open_saved(part.path)
    dataset = dataset.select_columns(fields.columns(dataset.column_names) or dataset.column_names)
    number = first
    try:
        for batch in dataset.select(range(first, last)).iter(_BATCH_ROWS):
            for values in zip(*batch.values(), strict=True):
                number += 1
                yield number, number * num_bytes // num_rows, dict(zip(batch, values, strict=True))
    except (OSError, ValueError) as error:
        raise CorpusError(f"{part.path} is damaged after row {number}: {one_line(error)}; save it anew") from None


def _saved_size(path: Path) -> tuple[int, int]:
    num_rows = len(_open_saved(path))
    return num_rows, max(num_rows, sum(file.stat().st_size for file in path.glob("*.arrow")))


def _open_saved(path: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise CorpusError(
            f"{path} is no dataset that `save_to_disk` wrote, or damaged: {one_line(error)}; save it anew"
        ) from None


def saved_splits(path: Path) -> list[str]:
    """Returns the splits of a saved `DatasetDict`; none for a single dataset."""
    return sorted(folder.name for folder in path.iterdir() if (folder / "state.json").is_file())


def one_line(error: BaseException) -> str:
    """Returns what a library's error says, as a part of a message."""
    return " ".join(str(error).split())[:300]
