"""Folders of plain text, a document a file."""

import functools
import os
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from data_prep.readers.fields import Record
from data_prep.readers.lines import reading_encoding, wrong_encoding
from data_prep.source import Part


def list_files(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Returns the files below a folder whose names end so, hidden ones left out, sorted by path."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if name.lower().endswith(suffixes) and name[0] != "."]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def split_text(root: Path, part_bytes: int) -> list[Part]:
    """Returns ranges of the files' bytes laid end to end; each starts at a file."""
    _, ends = _layout(root)
    cuts = [0]
    for end in ends[:-1]:
        if cuts[-1] + part_bytes <= end < ends[-1]:  # empty files at the end belong to the last part
            cuts.append(end)
    return [Part(root, start, end) for start, end in zip(cuts, [*cuts[1:], ends[-1]], strict=True)]


def read_text_part(part: Part, encoding: str) -> Iterator[Record]:
    """Yields (number of the file, offset read so far, row) with the fields `text`, `id` (its path) and `title`.

    Raises:
        CorpusError: a file is not in that encoding.
    """
    files, ends = _layout(part.path)
    first = bisect_left([0, *ends], part.start)
    for number in range(first, len(files)):
        if (ends[number - 1] if number else 0) >= part.end and part.end != ends[-1]:
            break
        file = files[number]
        try:
            text = file.read_bytes().decode(reading_encoding(encoding))
        except UnicodeDecodeError:
            raise wrong_encoding(file, encoding) from None
        name = file.relative_to(part.path).as_posix() if file != part.path else file.name
        yield number, ends[number], {"text": text, "id": name, "title": file.stem}


@functools.lru_cache(maxsize=4)
def _layout(root: Path) -> tuple[list[Path], list[int]]:
    """Returns the files, and where each ends; the folder is walked once a process."""
    files = [root] if root.is_file() else list_files(root, (".txt",))
    return files, list(accumulate(file.stat().st_size for file in files))
