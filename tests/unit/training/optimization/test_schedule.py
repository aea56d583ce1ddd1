"""The learning rate's laws: where it starts, peaks and ends, and what warming up again does."""

import math

import pytest

from recipes.training.optimization.schedule import Schedule


def test_cosine_rises_linearly_falls_by_a_cosine_and_ends_at_the_floor():
    schedule = Schedule("cosine", steps=110, warmup_steps=10, floor=0.1)
    assert [schedule.factor(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert schedule.factor(10) == 1
    assert schedule.factor(60) == pytest.approx(0.55)
    assert schedule.factor(35) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert schedule.factor(110) == pytest.approx(0.1)
    falling = [schedule.factor(step) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


def test_warmup_stable_decay_is_flat_until_its_last_steps():
    schedule = Schedule("warmup_stable_decay", steps=100, warmup_steps=10, floor=0.2, decay_steps=16)
    assert schedule.factor(4) == pytest.approx(0.5)
    assert {schedule.factor(step) for step in range(10, 85)} == {1.0}
    assert schedule.factor(88) == pytest.approx(0.2 + 0.8 * (1 - math.sqrt(4 / 16)))
    assert schedule.factor(100) == pytest.approx(0.2)


@pytest.mark.parametrize(("kind", "decay"), [("cosine", 0), ("warmup_stable_decay", 20)])
def test_warming_up_again_goes_from_the_floor_to_the_peak_and_down_once_more(kind, decay):
    first = Schedule(kind, steps=100, warmup_steps=10, floor=0.1, decay_steps=decay)
    again = Schedule(kind, steps=200, warmup_steps=10, floor=0.1, decay_steps=decay, start_step=100)
    assert again.factor(100) == pytest.approx(first.factor(100) + 0.09)  # a tenth of the way up
    assert again.factor(109) == pytest.approx(1)
    assert [again.factor(110 + n) for n in range(91)] == pytest.approx([first.factor(10 + n) for n in range(91)])


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert Schedule("cosine", steps=10).factor(0) == 1
    assert Schedule("warmup_stable_decay", steps=10, decay_steps=5).factor(0) == 1
