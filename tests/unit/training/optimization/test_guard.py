"""Which steps are skipped, what later steps are held to, and when the run gives up."""

import json
import math
import random

import pytest

from recipes.training.optimization.guard import Guard, GuardSettings


def calm(guard, steps, seed=0):
    """Feeds losses and norms that vary by some percent; returns the verdicts."""
    numbers = random.Random(seed)
    return [guard.judge(2 + numbers.gauss(0, 0.05), 0.5 + numbers.gauss(0, 0.03)) for _ in range(steps)]


def test_calm_steps_all_pass():
    assert not any(calm(Guard(GuardSettings()), 2000))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_skipped_from_the_first_step_on(value):
    guard = Guard(GuardSettings())
    assert guard.judge(value, 1.0) == f"loss is {value}"
    assert guard.judge(2.0, value) == f"gradient norm is {value}"
    assert guard.judge(value, value) == f"loss is {value}; gradient norm is {value}"
    assert guard.num_skips == 3
    assert not any(calm(guard, 500))


def test_spikes_of_either_number_are_skipped_once_half_the_window_is_known():
    guard = Guard(GuardSettings(window_steps=40))
    calm(guard, 19)
    assert not guard.judge(9.0, 0.5)
    guard = Guard(GuardSettings(window_steps=40))
    calm(guard, 20)
    assert guard.judge(9.0, 0.5).startswith("loss is 9, above 2.6")
    assert guard.judge(2.0, 3.0).startswith("gradient norm is 3, above 0.6")
    assert not guard.judge(2.0, 0.5)
    assert not guard.judge(0.1, 0.0)  # falling is no spike


def test_a_quiet_run_is_not_held_to_its_own_noise():
    guard = Guard(GuardSettings())
    for _ in range(128):
        assert not guard.judge(2.0, 0.5)
    assert not guard.judge(2.5, 0.6)
    assert guard.judge(2.7, 0.5)


def test_a_lasting_change_of_level_skips_a_few_steps_and_not_all():
    guard = Guard(GuardSettings(window_steps=64))
    calm(guard, 64)
    verdicts = [guard.judge(4.0, 0.5) for _ in range(64)]
    assert 1 <= sum(map(bool, verdicts)) <= 4
    assert not any(verdicts[4:])


def test_without_sigmas_any_finite_value_passes():
    guard = Guard(GuardSettings(spike_sigmas=None))
    calm(guard, 128)
    assert not guard.judge(1e9, 1e9)
    assert guard.judge(math.nan, 1.0)


def test_it_gives_up_after_more_skips_than_allowed_within_the_window():
    guard = Guard(GuardSettings(window_steps=16, max_skips=2))
    for _ in range(4):  # a skip every twelve steps never adds up
        guard.judge(math.nan, 1.0)
        assert not any(calm(guard, 11))
        assert not guard.gives_up
    guard.judge(math.nan, 1.0)
    guard.judge(math.nan, 1.0)
    assert guard.num_skips == 3
    assert guard.gives_up


def test_its_state_survives_json_and_judges_on_alike():
    straight, first = Guard(GuardSettings(window_steps=32)), Guard(GuardSettings(window_steps=32))
    for guard in (straight, first):
        calm(guard, 40)
        guard.judge(math.inf, 0.5)
    resumed = Guard(GuardSettings(window_steps=32), json.loads(json.dumps(first.state)))
    for loss in (2.0, 2.31, 2.9, 2.0, 2.4, math.nan):
        assert resumed.judge(loss, 0.5) == straight.judge(loss, 0.5)
    assert resumed.state == straight.state
