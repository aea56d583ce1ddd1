"""One block of one merged tensor: read, added, measured."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_prep.hf_directory import TensorEntry
from recipes.merging.chat_vector import BITS, Term, add_chat_vectors, term_differences
from recipes.merging.errors import MergeError
from recipes.merging.plan import Source, TensorPlan
from recipes.merging.sparsify import magnitude_threshold, random_kept
from recipes.merging.vocabulary import ABSENT

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CACHED_ELEMENTS = 1 << 16  # in float32 a quarter of a megabyte: what is computed in between stays in the cache
LARGEST = {2: 0x7FFF, 4: 0x7FFF_FFFF, 8: 0x7FFF_FFFF_FFFF_FFFF}  # masks the sign
Handles = Mapping[Path, int]


@dataclass(frozen=True)
class Squares:
    """Sums of squares over a block: the target, all that is added to it, and each vector's plus - minus."""

    target: float
    change: float
    differences: tuple[float, ...]

    def __add__(self, other: "Squares") -> "Squares":
        pairs = zip(self.differences, other.differences, strict=True)
        return Squares(self.target + other.target, self.change + other.change, tuple(a + b for a, b in pairs))


@dataclass(frozen=True)
class Rules:
    """What a block's result depends on beside its elements: the tensor's name, `combine` and the seed."""

    name: str
    combine: str
    seed: int


@contextmanager
def open_handles(files: set[Path]) -> Iterator[Handles]:
    """Yields a descriptor of every file, to be read at any place by any thread."""
    with ExitStack() as stack:
        handles = {}
        for file in sorted(files):
            handles[file] = os.open(file, os.O_RDONLY)
            stack.callback(os.close, handles[file])
        yield handles


def merge_block(
    handles: Handles, plan: TensorPlan, start: int, stop: int, thresholds: Sequence[float], rules: Rules
) -> tuple[np.ndarray, Squares]:
    """Returns the bytes of the merged elements [start, stop), uint8, and their sums of squares.

    Args:
        handles: of every file of the plan.
        plan: the tensor's.
        start: first element, a multiple of `plan.block_elements`.
        stop: end of the block.
        thresholds: of every source, below which TIES leaves differences out.
        rules: what else the result depends on.

    Raises:
        MergeError: a merged value is not finite.
    """
    merged = _read(handles, plan.target, start, stop)
    squares = Squares(0.0, 0.0, (0.0,) * len(plan.sources))
    if not plan.sources:
        return merged, squares
    sides = [_read_source(handles, source, plan.target, start, stop) for source in plan.sources]
    whole = torch.from_numpy(merged).view(DTYPES[plan.target.dtype])
    for low in range(0, stop - start, CACHED_ELEMENTS):
        part = slice(low, min(low + CACHED_ELEMENTS, stop - start))
        terms = [
            _term(source, plus[part], minus[part], threshold, _kept(source, rules, number, start + low, part))
            for number, (source, (plus, minus), threshold) in enumerate(
                zip(plan.sources, sides, thresholds, strict=True)
            )
        ]
        target = whole[part]
        result, change, differences = add_chat_vectors(target, terms, rules.combine)
        if not is_finite(result):
            raise MergeError(_not_finite(plan, rules.name))
        squares += _measure(target, change, differences, terms)
        target.copy_(result)
    return merged, squares


def source_threshold(handles: Handles, plan: TensorPlan, number: int) -> float:
    """Returns the magnitude below which TIES leaves a source's differences out; 0 where all are kept."""
    source, entry = plan.sources[number], plan.target
    if source.density == 1:
        return 0.0
    count = math.prod(entry.shape)
    step = plan.block_elements

    def differences() -> Iterator[Tensor]:
        for start in range(0, count, step):
            plus, minus = _read_source(handles, source, entry, start, min(start + step, count))
            for low in range(0, len(plus), CACHED_ELEMENTS):
                term = Term(plus[low : low + CACHED_ELEMENTS], minus[low : low + CACHED_ELEMENTS], 1.0)
                yield term_differences(term)

    present = count if source.rows is None else count // len(source.rows[0]) * int((source.rows[0] != ABSENT).sum())
    return magnitude_threshold(differences, present, source.density)


def is_finite(values: Tensor) -> bool:
    """Whether all values are finite: the bits of none are those of an infinity or beyond, the sign left out."""
    size = values.dtype.itemsize
    infinity = torch.tensor(math.inf, dtype=values.dtype).view(BITS[size])
    return not len(values) or bool((values.view(BITS[size]) & LARGEST[size]).amax() < infinity)


def _kept(source: Source, rules: Rules, number: int, start: int, part: slice) -> Tensor | None:
    if not source.drop_rate:
        return None
    return random_kept(rules.seed, number, rules.name, start, part.stop - part.start, source.drop_rate)


def _term(source: Source, plus: Tensor, minus: Tensor, threshold: float, kept: Tensor | None) -> Term:
    return Term(plus, minus, source.scale, threshold, kept, 1 / (1 - source.drop_rate))


def _measure(target: Tensor, change: Tensor, differences: Sequence[Tensor], terms: Sequence[Term]) -> Squares:
    squares = tuple(map(_sum_of_squares, differences))
    if len(terms) == 1:  # the change is a multiple of the one difference
        return Squares(_sum_of_squares(target), squares[0] * (terms[0].scale * terms[0].rescale) ** 2, squares)
    return Squares(_sum_of_squares(target), _sum_of_squares(change), squares)


def _read_source(handles: Handles, source: Source, target: TensorEntry, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Returns the elements of plus and minus that belong to the target's [start, stop)."""
    found = []
    for entry, side in ((source.plus, 0), (source.minus, 1)):
        if source.rows is None:
            data = _read(handles, entry, start, stop)
        else:
            width = math.prod(target.shape[1:])
            data = _read_rows(handles, entry, source.rows[side][start // width : stop // width])
        found.append(torch.from_numpy(data).view(DTYPES[entry.dtype]))
    return found[0], found[1]


def _read(handles: Handles, entry: TensorEntry, start: int, stop: int) -> np.ndarray:
    item = entry.num_bytes // math.prod(entry.shape)
    data = np.empty((stop - start) * item, dtype=np.uint8)
    _read_into(handles[entry.file], data, entry.start + start * item, entry.file)
    return data


def _read_rows(handles: Handles, entry: TensorEntry, rows: np.ndarray) -> np.ndarray:
    """Returns the bytes of the given rows, zeros for those that are absent; neighbours are read at once."""
    row_bytes = entry.num_bytes // entry.shape[0]
    data = np.zeros((len(rows), row_bytes), dtype=np.uint8)
    breaks = np.flatnonzero((np.diff(rows) != 1) | (rows[:-1] == ABSENT)) + 1
    for first, last in zip([0, *breaks], [*breaks, len(rows)], strict=True):
        if last > first and rows[first] != ABSENT:
            place = entry.start + int(rows[first]) * row_bytes
            _read_into(handles[entry.file], data[first:last].reshape(-1), place, entry.file)
    return data.reshape(-1)


def _read_into(handle: int, data: np.ndarray, offset: int, file: Path) -> None:
    view, done = data.data, 0
    while done < len(view):
        count = os.preadv(handle, [view[done:]], offset + done)
        if not count:
            raise MergeError(
                f"{file} ends at byte {offset + done}; more was there at the start; keep the inputs as they are"
            )
        done += count


def _sum_of_squares(values: Tensor) -> float:
    """Returns the sum in float32, which sums a block to six digits, and in float64 where that is too narrow."""
    wide = values if values.dtype == torch.float64 else values.float()
    total = float(torch.linalg.vector_norm(wide)) ** 2
    if (total == 0 or not math.isfinite(total)) and wide.dtype != torch.float64:
        total = float(torch.linalg.vector_norm(wide, dtype=torch.float64)) ** 2
    return total


def _not_finite(plan: TensorPlan, name: str) -> str:
    parts = [f"{s.scale} * ({s.plus.file.parent} - {s.minus.file.parent})" for s in plan.sources]
    return (
        f"{name} of {' + '.join([str(plan.target.file.parent), *parts])} has values that are not finite in "
        f"{plan.target.dtype}; finite ones are needed; check the inputs or lower the scale"
    )
