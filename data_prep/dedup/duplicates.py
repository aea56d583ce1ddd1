"""Which documents go: a greedy choice in the order of their worth, on arrays alone."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_prep.dedup import minhash

KEPT, EXACT, NEAR, SAME_ID = range(4)
KINDS = ("kept", "exact", "near", "same_id")
BLOCK = 4096  # sketches compared at once

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Verdicts:
    """What happens to each document, by position; all three arrays have the shape (documents,)."""

    kind: npt.NDArray[np.uint8]
    """Index into `KINDS`."""
    keeper: Ints
    """Position of the document that stays for it; -1 for one that stays."""
    num_equal: npt.NDArray[np.uint8]
    """Columns of 128 in which its sketch agrees with its keeper's; 128 for an exact duplicate."""


class _Kept:
    """The documents that stay so far, by group: those that share a band of their sketches."""

    def __init__(self, groups: npt.NDArray[np.int32]) -> None:
        members = groups[groups >= 0]
        sizes = np.bincount(members) if members.size else np.zeros(0, np.int64)
        self.start = np.concatenate([[0], np.cumsum(sizes)])
        self.count = np.zeros(len(sizes), np.int64)
        self.store = np.empty(int(self.start[-1]), np.int32)

    def of(self, row: Ints) -> Ints:
        """Returns the positions of those in one of the groups `row`, ascending, each once."""
        starts, counts = self.start[row].tolist(), self.count[row].tolist()
        found = [self.store[a : a + n] for a, n in zip(starts, counts, strict=True) if n]
        if not found:
            return np.zeros(0, np.int64)
        return np.unique(np.concatenate(found)).astype(np.int64)

    def add(self, position: int, row: Ints) -> None:
        self.store[self.start[row] + self.count[row]] = position
        self.count[row] += 1


def find_duplicates(
    sketches: minhash.Sketches,
    texts: npt.NDArray[np.uint64],
    names: npt.NDArray[np.uint64],
    order: Ints,
    threshold: float,
) -> Verdicts:
    """Decides which documents stay.

    In the order of their worth, a document goes if one that stays already has the same text, is at least
    `threshold` like it, or bears the same name; else it stays. So whatever goes is like something that
    stays: along a chain of small changes nothing is dropped that is unlike all that stay. It goes for the
    likest one, of equally like ones for that of the greatest worth. Bands only propose whom to compare.

    Args:
        sketches: (documents, 128), as `minhash.sketch` returns.
        texts: (documents, 2), 128 bits of the hash of the folded text.
        names: (documents, 2), 128 bits of the hash of what names the document across snapshots; 0 if nothing does.
        order: (documents,), positions, the worthiest first.
        threshold: least share of equal columns.

    Memory: about 200 bytes a document beside the arguments.
    """
    verdicts = Verdicts(
        np.zeros(len(order), np.uint8), np.full(len(order), -1, np.int64), np.zeros(len(order), np.uint8)
    )
    groups = _band_groups(sketches)
    kept = _Kept(groups)
    of_text, of_name = _groups(texts), _groups(names, ignore_zero=True)
    keeper_of_text = np.full(of_text.max(initial=-1) + 1, -1, np.int64)
    keeper_of_name = np.full(of_name.max(initial=-1) + 1, -1, np.int64)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    least = math.ceil(threshold * minhash.NUM_PERMUTATIONS - 1e-9)
    is_candidate = (of_text >= 0) | (of_name >= 0) | (groups >= 0).any(axis=1)
    for position in _progress(order[is_candidate[order]]):
        text, name, row = int(of_text[position]), int(of_name[position]), groups[position]
        row = row[row >= 0].astype(np.int64)
        if text >= 0 and (twin := int(keeper_of_text[text])) >= 0:
            kind, keeper, equal = EXACT, twin, minhash.NUM_PERMUTATIONS
        else:
            kind, (keeper, equal) = NEAR, _likest(sketches, position, kept.of(row), rank)
            if equal < least:
                namesake = int(keeper_of_name[name]) if name >= 0 else -1
                kind, keeper, equal = _by_name(sketches, position, namesake)
        verdicts.kind[position], verdicts.keeper[position], verdicts.num_equal[position] = kind, keeper, equal
        if kind == KEPT:
            kept.add(position, row)
            if text >= 0:
                keeper_of_text[text] = position
            if name >= 0:
                keeper_of_name[name] = position
    return verdicts


def _by_name(sketches: minhash.Sketches, position: int, namesake: int) -> tuple[int, int, int]:
    """Returns kind, keeper and equal columns of a document that is like none; `namesake` is -1 without one."""
    if namesake < 0:
        return KEPT, -1, 0
    return SAME_ID, namesake, int(minhash.num_equal(sketches[[namesake]], sketches[position])[0])


def _likest(sketches: minhash.Sketches, position: int, candidates: Ints, rank: Ints) -> tuple[int, int]:
    """Returns the candidate whose sketch agrees most, and in how many columns; (-1, -1) without candidates."""
    best = (-1, 0, -1)  # (equal columns, minus the rank, position)
    for begin in range(0, len(candidates), BLOCK):
        block = candidates[begin : begin + BLOCK]
        equal = minhash.num_equal(sketches[block], sketches[position])
        ties = block[equal == equal.max()]
        first = int(ties[rank[ties].argmin()])
        best = max(best, (int(equal.max()), -int(rank[first]), first))
    return best[2], best[0]


def _band_groups(sketches: minhash.Sketches) -> npt.NDArray[np.int32]:
    """Returns, for each document and band, the number of the group that shares the band; -1 where it is alone."""
    groups = np.empty((len(sketches), minhash.NUM_BANDS), np.int32)
    num_groups = 0
    for band in range(minhash.NUM_BANDS):
        found = _groups(minhash.band_keys(sketches, band)[:, None])
        groups[:, band] = np.where(found >= 0, found + num_groups, -1)
        num_groups += int(found.max(initial=-1)) + 1
    return groups


def _groups(keys: npt.NDArray[np.uint64], ignore_zero: bool = False) -> npt.NDArray[np.int32]:
    """Numbers the groups of two or more equal rows of `keys`, shape (documents, columns); -1 for the others."""
    order = np.lexsort(keys.T)
    is_first = np.ones(len(order), bool)
    is_first[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    begins = np.flatnonzero(is_first)
    sizes = np.diff(np.append(begins, len(order)))
    is_group = sizes >= 2
    if ignore_zero:
        is_group &= keys[order[begins]].any(axis=1)
    numbers = np.where(is_group, np.cumsum(is_group) - 1, -1).astype(np.int32)
    groups = np.empty(len(order), np.int32)
    groups[order] = np.repeat(numbers, sizes)
    return groups


def _progress(positions: Ints) -> Iterator[int]:
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=len(positions), unit=" documents", desc="compare", mininterval=interval) as bar:
        for begin in range(0, len(positions), BLOCK):
            block = positions[begin : begin + BLOCK].tolist()
            yield from block
            bar.update(len(block))
