"""The laws of the order: exact shares at every step, no history, each sequence once."""

import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.training.data.order import SampleOrder, Stage, as_shares

WEIGHTS = st.floats(0, 1).map(lambda w: round(w**3, 4))  # cubed, so that small shares stand beside large ones


@st.composite
def mixtures(draw, most_sources):
    """Draws up to four stages, with and without ramps, and sources that may come and go."""
    num_sources = draw(st.integers(1, most_sources))
    stages, start = [], 0
    for number in range(draw(st.integers(1, 4))):
        length = draw(st.integers(1, 60))
        weights = draw(st.lists(WEIGHTS, min_size=num_sources, max_size=num_sources).filter(any))
        ramp = draw(st.integers(0, length)) if number else 0
        stages.append(Stage(start, as_shares(weights), ramp))
        start += length
    return stages


def share_at(stages, step):
    """The share of each source at a step, straight from its definition: the slow reference."""
    before = stages[0].shares
    for number, stage in enumerate(stages):
        following = stages[number + 1].from_step if number + 1 < len(stages) else step + 1
        if step < following:
            if step - stage.from_step >= stage.ramp_steps:
                return stage.shares
            middle = (step - stage.from_step + Fraction(1, 2)) / stage.ramp_steps
            return [a + (b - a) * middle for a, b in zip(before, stage.shares, strict=True)]
        before = stage.shares
    raise AssertionError("the last stage has no end")


def farthest(stages, sequences_per_step, steps):
    """Returns how far the counts ever are from the shares, after checking that they rise and add up."""
    order, worst = SampleOrder(stages, sequences_per_step, 0), Fraction(0)
    before = [0] * len(stages[0].shares)
    for step in range(1, steps + 1):
        counts = order.counts(step)
        assert sum(counts) == step * sequences_per_step
        assert all(a <= b for a, b in zip(before, counts, strict=True))
        worst = max(worst, *(abs(w - c) for w, c in zip(order.exact(step), counts, strict=True)))
        before = counts
    return worst


@given(mixtures(5), st.integers(1, 16))
@settings(max_examples=40, deadline=None)
def test_the_closed_form_of_the_shares_is_their_sum_over_the_steps(stages, sequences_per_step):
    order, sums = SampleOrder(stages, sequences_per_step, 0), [Fraction(0)] * len(stages[0].shares)
    for step in range(120):
        assert order.exact(step) == sums
        sums = [a + sequences_per_step * b for a, b in zip(sums, share_at(stages, step), strict=True)]


@given(mixtures(4), st.integers(1, 16))
@settings(max_examples=60, deadline=None)
def test_every_source_is_within_one_sequence_of_its_share_at_every_step_and_across_stages(stages, sequences_per_step):
    assert farthest(stages, sequences_per_step, 150) <= 1


@given(mixtures(12), st.integers(1, 16))
@settings(max_examples=20, deadline=None)
def test_more_than_four_sources_stay_within_one_and_a_half(stages, sequences_per_step):
    assert farthest(stages, sequences_per_step, 150) <= 1.5


@given(mixtures(5), st.integers(1, 8), st.permutations(range(24)))
@settings(max_examples=40, deadline=None)
def test_the_order_needs_no_history_and_gives_each_sequence_once(stages, sequences_per_step, visited):
    straight = SampleOrder(stages, sequences_per_step, seed=1)
    rows = [straight.step(step) for step in range(24)]
    jumping = SampleOrder(stages, sequences_per_step, seed=1)
    assert {step: jumping.step(step) for step in visited} == dict(enumerate(rows))
    for source in range(len(stages[0].shares)):
        indices = sorted(index for row in rows for picked, index in row if picked == source)
        assert indices == list(range(len(indices)))


def test_shares_are_taken_as_written():
    assert as_shares([0.7, 0.3]) == (Fraction(7, 10), Fraction(3, 10)) == as_shares([7, 3])
    order = SampleOrder([Stage(0, as_shares([0.7, 0.3]))], 512, 0)
    assert order.counts(10**9) == [512 * 7 * 10**8, 512 * 3 * 10**8]


def test_a_ramp_moves_the_shares_linearly():
    stages = [Stage(0, as_shares([1, 0])), Stage(10, as_shares([0, 1]), ramp_steps=10)]
    order = SampleOrder(stages, 100, 0)
    given_by_step = np.diff([order.counts(step)[1] for step in range(25)])
    assert given_by_step[:10].tolist() == [0] * 10
    assert given_by_step[10:20].tolist() == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]
    assert given_by_step[20:].tolist() == [100] * 4


def test_the_places_within_a_batch_are_shuffled_anew_each_step_and_by_seed():
    def sources(seed, step):
        return [source for source, _ in SampleOrder([Stage(0, as_shares([1, 1]))], 64, seed).step(step)]

    assert sources(0, 3) == sources(0, 3)
    assert len({tuple(sources(seed, step)) for seed in range(3) for step in range(3)}) == 9


def test_a_step_far_away_costs_no_walk_through_those_before():
    stages = [Stage(0, as_shares([0.61, 0.2, 0.19])), Stage(5000, as_shares([0.9, 0.05, 0.05]), ramp_steps=90_001)]
    order = SampleOrder(stages, 512, 0)
    started = time.perf_counter()
    counts = order.counts(1_000_000)
    assert time.perf_counter() - started < 0.5  # one addition a step would take as long
    assert counts == pytest.approx([float(x) for x in order.exact(1_000_000)], abs=1)
    assert len(order.step(1_000_000)) == 512
