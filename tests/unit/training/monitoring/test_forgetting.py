"""When the alarm is raised, and which share of replay it suggests."""

import json

import pytest

from recipes.training.monitoring.forgetting import ForgettingAlarm, suggest_replay


@pytest.mark.parametrize(
    ("rise", "replay", "suggested"),
    [
        (0.06, 0.0, 0.05),  # a weak shift: the next rung
        (0.06, None, 0.05),
        (0.06, 0.05, 0.1),
        (0.06, 0.3, 0.5),
        (0.11, 0.0, 0.25),  # more than twice the limit: a strong one
        (0.11, 0.25, 0.5),
        (0.5, 0.5, None),
        (0.06, 0.7, None),
    ],
)
def test_the_next_share_above_the_present_one_is_suggested_and_a_quarter_at_least_for_a_strong_rise(
    rise, replay, suggested
):
    assert suggest_replay(rise, 0.05, replay) == suggested


def test_it_is_raised_once_per_rise_and_suggests_for_the_worst_of_it():
    alarm = ForgettingAlarm(0.05)
    raised, figures = [], []
    for rise in (0.0, 0.05, 0.06, 0.12, 0.07, 0.04, -0.1, 0.06):
        raised.append(alarm.look(rise))
        figures.append(alarm.figures(0.0))
    assert raised == [False, False, True, False, False, False, False, True]
    assert [row["validation/forgetting"] for row in figures] == [0, 0, 1, 1, 1, 0, 0, 1]
    suggested = [row.get("validation/suggested_replay") for row in figures]
    assert suggested == [None, None, 0.05, 0.25, 0.25, None, None, 0.05]


def test_a_resumed_alarm_is_not_raised_again_for_the_same_rise():
    alarm = ForgettingAlarm(0.05)
    assert alarm.look(0.2)
    resumed = ForgettingAlarm(0.05, json.loads(json.dumps(alarm.state)))
    assert not resumed.look(0.06)
    assert resumed.figures(0.0)["validation/suggested_replay"] == 0.25
    assert not resumed.look(0.01)
    assert resumed.look(0.06)


def test_the_warning_names_values_limit_and_what_to_change():
    alarm = ForgettingAlarm(0.05)
    text = alarm.message("en", 0.636, (0.6, 40), 0.1)
    assert "held-out en is at 0.6360 bits per byte, 6.0% above the 0.6000 of step 40" in text
    assert "validation.max_rise is 5.0%" in text
    assert "it now reads 10% en; suggested replay: 25% (english_replay: 0.25 in a mixture)" in text
    assert "an unknown share of en; name each source's lang" in alarm.message("en", 0.636, (0.6, 40), None)
    assert "lower optimizer.lr" in alarm.message("en", 0.636, (0.6, 40), 0.5)
