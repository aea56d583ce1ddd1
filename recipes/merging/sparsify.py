"""Which differences of a vector are kept: the largest (TIES), or some at random (DARE)."""

import hashlib
import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

HALF = 1 << 16


def magnitude_threshold(chunks: Callable[[], Iterable[Tensor]], count: int, density: float) -> float:
    """Returns the smallest magnitude among the `density * count` largest differences of a tensor.

    The float32 magnitudes are ordered as their bits are, so that two histograms of 16 bits each find the exact
    value in constant memory. Keeping what is not below it keeps a few more than asked for where magnitudes are equal.

    Args:
        chunks: returns the tensor's differences, piece by piece and each time the same; called twice.
        count: number of differences.
        density: share to keep, (0, 1].

    Source: Yadav et al., "TIES-Merging", arXiv 2306.01708, section 3, step 1 (there over the whole model, here a
    tensor at a time, as is common).
    """
    wanted = math.ceil(density * count)
    if wanted >= count:
        return 0.0
    bits = 0
    for shift in (HALF, 1):
        histogram = np.zeros(HALF, dtype=np.int64)
        for chunk in chunks():
            magnitudes = chunk.float().abs().numpy().view(np.uint32).reshape(-1)
            within = magnitudes if shift == HALF else magnitudes[magnitudes // HALF * HALF == bits]
            histogram += np.bincount(within // shift % HALF, minlength=HALF)
        above = np.cumsum(histogram[::-1])[::-1]  # [i]: how many have at least i in these 16 bits
        chosen = int(np.flatnonzero(above >= wanted)[-1])
        wanted -= int(above[chosen + 1]) if chosen + 1 < HALF else 0
        bits += chosen * shift
    return float(np.array([bits], dtype=np.uint32).view(np.float32)[0])


def random_kept(seed: int, vector: int, name: str, start: int, count: int, drop_rate: float) -> Tensor:
    """Returns which of `count` elements from `start` are kept; bool, (count,).

    An element's fate is a function of seed, vector, tensor and its place alone: of no other element, chunk or worker.

    Args:
        seed: of the merge.
        vector: index of the vector.
        name: of the tensor.
        start: first element, a multiple of 8.
        count: number of elements.
        drop_rate: probability of being dropped, to within 2^-32.

    Source: Yu et al., "Language Models are Super Mario" (DARE), arXiv 2311.03099, section 3.
    """
    assert start % 8 == 0, f"start {start} is within a block of random numbers"
    key = hashlib.blake2b(f"{seed}\0{vector}\0{name}".encode(), digest_size=16).digest()
    philox = np.random.Philox(key=np.frombuffer(key, dtype=np.uint64))
    philox.advance(start // 8)  # one step gives 4 numbers of 64 bits, an element takes 32
    numbers = philox.random_raw((count + 1) // 2).astype("<u8", copy=False).view("<u4")[:count]
    return torch.from_numpy(numbers >= np.uint32(min(round(drop_rate * 2**32), 2**32 - 1)))
