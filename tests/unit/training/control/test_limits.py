"""The limits of phases, and which of them are refused."""

import re

import pytest
from omegaconf import OmegaConf

from recipes.training.control.limits import LimitSettings, limit_problems


def problems(**changes):
    return limit_problems(OmegaConf.create({"limits": OmegaConf.structured(LimitSettings(**changes))}))


def test_the_defaults_are_right():
    assert problems() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step_seconds": 0.0}, "limits.step_seconds: 0.0 is not positive; set it above 0"),
        ({"run_minutes": -1.0}, "limits.run_minutes: -1.0 is not positive"),
        ({"margin_seconds": -1.0}, "limits.margin_seconds: -1.0 is negative; set it to 0 or more"),
        (
            {"collective_seconds": 3600.0},
            "limits.collective_seconds: 3600 is not above load_seconds=3600; the process groups would end the run "
            "before the watchdog can tell which rank hangs; set it to 7200",
        ),
    ],
)
def test_wrong_limits_are_refused(changes, message):
    assert re.search(re.escape(message), "\n".join(problems(**changes)))


def test_only_the_first_of_a_phase_that_computes_may_take_longer():
    limits = LimitSettings()
    assert limits.of("step", is_first=True) == limits.of("validation", is_first=True) == limits.first_step_seconds
    assert limits.of("step", is_first=False) == limits.of("validation", is_first=False) == limits.step_seconds
    assert limits.of("load", is_first=True) == limits.load_seconds
    assert limits.of("save", is_first=True) == limits.of("end", is_first=False) == limits.save_seconds
