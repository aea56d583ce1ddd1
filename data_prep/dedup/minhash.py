"""MinHash sketches over word 5-grams: how alike two texts are can be told from 512 bytes of each."""

import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

NUM_PERMUTATIONS = 128
NUM_BANDS = 16
WORDS = 5  # of a shingle
SEED = 42

Sketches = npt.NDArray[np.uint32]
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses no bit


def fold(text: str) -> str:
    """Returns the text in NFC with every run of white space as one space: texts equal so are exact duplicates."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def sketch(folded: Sequence[str]) -> Sketches:
    """Returns the texts' MinHash sketches over their sets of word 5-grams.

    The share of columns in which two rows agree estimates the Jaccard similarity of the two sets
    without bias, with a standard deviation of at most sqrt(J (1 - J) / 128).

    Args:
        folded: texts as `fold` returns them; one of fewer than five words counts as one shingle.

    Returns:
        (texts, 128), uint32; the same on every machine.

    Source: Broder, "On the resemblance and containment of documents", 1997; permutations as in rensa's R-MinHash.
    """
    if not folded:
        return np.zeros((0, NUM_PERMUTATIONS), np.uint32)
    shingles, offsets = _shingles(folded)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, NUM_PERMUTATIONS, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32)


def band_keys(sketches: Sketches, band: int) -> npt.NDArray[np.uint64]:
    """Returns one number per sketch, equal where all 8 columns of the band are: the candidates to compare.

    Two texts of Jaccard similarity J meet in one of the 16 bands with probability 1 - (1 - J^8)^16: .95 at .8.
    """
    rows = NUM_PERMUTATIONS // NUM_BANDS
    columns = sketches[:, band * rows : (band + 1) * rows].astype(np.uint64)  # (texts, 8)
    keys = columns[:, 0]
    for column in range(1, rows):
        keys = _mix(keys, columns[:, column])
    return keys


def num_equal(sketches: Sketches, other: Sketches) -> npt.NDArray[np.int64]:
    """Returns in how many of its 128 columns each sketch agrees with `other`, shape (128,)."""
    return np.count_nonzero(sketches == other, axis=1)


def _shingles(folded: Sequence[str]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Returns the hashes of all texts' shingles, one after the other, and where each text's begin (and the end)."""
    words: list[str] = []
    ends = np.empty(len(folded), np.int64)
    for i, text in enumerate(folded):
        own = text.split()
        words += own if len(own) >= WORDS else own + [""] * (WORDS - len(own))  # no word is empty
        ends[i] = len(words)
    (hashes,) = RMinHash.hash_token_sets([words])
    word = np.array(hashes, dtype=np.uint64)
    num_starts = len(word) - WORDS + 1
    shingles = word[:num_starts]
    for k in range(1, WORDS):
        shingles = _mix(shingles, word[k : k + num_starts])
    is_whole = np.ones(len(word), bool)  # a shingle must not reach into the next text
    is_whole[(ends[:, None] - np.arange(1, WORDS)).ravel()] = False
    offsets = np.concatenate([[0], ends - (WORDS - 1) * np.arange(1, len(folded) + 1)])
    return shingles[is_whole[:num_starts]], offsets.astype(np.uint64)


def _mix(hashes: npt.NDArray[np.uint64], following: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Returns hashes of the ordered pairs, modulo 2^64."""
    mixed = hashes * _MULTIPLIER
    mixed ^= mixed >> np.uint64(29)
    return mixed + following
