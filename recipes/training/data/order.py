"""Which sequence of which source stands where: a function of the shares, the seed and the step alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from data_prep.lineage import sha256_json

HORIZON = 2**32
"""Steps that the order is defined for; a power of two, so that halving it meets every step."""


@dataclass(frozen=True)
class Stage:
    """Shares that hold from a step on.

    Attributes:
        from_step: first step, counted from 0.
        shares: of the sequences, (sources,), adding up to 1.
        ramp_steps: steps over which the shares move to these from the stage before, linearly.
    """

    from_step: int
    shares: tuple[Fraction, ...]
    ramp_steps: int = 0


def as_shares(weights: Sequence[float | Fraction]) -> tuple[Fraction, ...]:
    """Returns weights of any scale as exact shares; 0.7 counts as 7/10, not as its binary neighbour."""
    exact = [Fraction(str(weight)) for weight in weights]
    return tuple(weight / sum(exact) for weight in exact)


class SampleOrder:
    """The sequences of every global batch.

    The counts after a step are found by halving: those in the middle of an interval of steps are the whole
    numbers nearest to the exact shares that lie between the counts at its two ends. So no step has a history,
    no source ever gives a sequence back, and the counts stay within one sequence of the shares for up to four
    sources (`tests/unit/training/data/test_order.py` has the bound for more).
    """

    def __init__(self, stages: Sequence[Stage], sequences_per_step: int, seed: int) -> None:
        """Takes the shares of the whole run.

        Args:
            stages: by rising `from_step`, the first from 0; a ramp ends before the next stage starts.
            sequences_per_step: of the global batch.
            seed: of the places within a batch.
        """
        self._per_step, self._seed = sequences_per_step, seed
        # Whole numbers of parts of a sequence: exact, and ten times faster than fractions.
        shares = math.lcm(*(share.denominator for stage in stages for share in stage.shares))
        self._parts = shares * math.lcm(*(2 * max(1, stage.ramp_steps) for stage in stages))
        per_step = self._parts * sequences_per_step
        self._rates = [[int(share * per_step) for share in stage.shares] for stage in stages]
        self._stages = tuple(stages)
        self._last = (0, [0] * len(stages[0].shares))  # a run asks for the counts step by step

    def exact(self, step: int) -> list[Fraction]:
        """Returns the sequences that each source's shares add up to before `step`: (sources,)."""
        return [Fraction(parts, self._parts) for parts in self._exact_parts(step)]

    def counts(self, step: int) -> list[int]:
        """Returns the sequences that each source has given before `step`: (sources,)."""
        last = self._last  # read once: another thread may ask for another step meanwhile
        if step == last[0]:
            return last[1]
        low, high = 0, HORIZON
        at_low = [0] * len(self._rates[0])
        at_high = self._nearest(high, at_low, [high * self._per_step] * len(at_low))
        while low != step:
            middle = (low + high) // 2
            at_middle = self._nearest(middle, at_low, at_high)
            if middle <= step:
                low, at_low = middle, at_middle
            else:
                high, at_high = middle, at_middle
        self._last = (step, at_low)
        return at_low

    def step(self, step: int) -> list[tuple[int, int]]:
        """Returns (source, index within the source) of every sequence of the step's global batch."""
        before, after = self.counts(step), self.counts(step + 1)
        picks = [(s, i) for s, (a, b) in enumerate(zip(before, after, strict=True)) for i in range(a, b)]
        return [picks[i] for i in generator(self._seed, step, "order").permutation(len(picks))]

    def _exact_parts(self, step: int) -> list[int]:
        """Returns `exact` in parts; a ramp of R steps from a to b adds a r + (b - a) r^2 / 2R over its first r."""
        sums, before = [0] * len(self._rates[0]), self._rates[0]
        ends = [*(stage.from_step for stage in self._stages[1:]), step]
        for stage, rates, end in zip(self._stages, self._rates, ends, strict=True):
            steps = min(step, end) - stage.from_step
            if steps <= 0:
                break
            ramped, ramp = min(steps, stage.ramp_steps), max(1, stage.ramp_steps)
            for source, (old, new) in enumerate(zip(before, rates, strict=True)):
                sums[source] += new * steps - (new - old) * (2 * ramp - ramped) * ramped // (2 * ramp)
            before = rates
        return sums

    def _nearest(self, step: int, at_least: list[int], at_most: list[int]) -> list[int]:
        """Returns counts nearest to the shares after `step`, within bounds and adding up to all sequences."""
        exact = self._exact_parts(step)
        counts = [max(a, min(b, x // self._parts)) for x, a, b in zip(exact, at_least, at_most, strict=True)]
        missing = step * self._per_step - sum(counts)
        limit, sign = (at_most, 1) if missing > 0 else (at_least, -1)
        for _ in range(abs(missing)):
            free = (source for source in range(len(counts)) if counts[source] != limit[source])
            counts[max(free, key=lambda source: sign * (exact[source] - counts[source] * self._parts))] += sign
        return counts


def generator(seed: int, number: int, salt: str) -> np.random.Generator:
    """Returns a random generator that depends on its arguments alone, on any machine."""
    return np.random.default_rng([seed, number, int(sha256_json(salt)[:16], 16)])
