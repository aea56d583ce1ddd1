"""The best checkpoint, when a run ends early, and what each language has kept."""

import pytest

from recipes.evaluation.retention import as_markdown, retention
from recipes.evaluation.rule import RuleSettings, choose


def rows(*pairs):
    """Returns rows of steps 0, 10, 20, ... with these bits per byte of Korean and English."""
    return [
        {"step": 10 * n, "model": f"step {10 * n}", "bits_per_byte_ko": ko, "bits_per_byte_en": en}
        for n, (ko, en) in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("pairs", "best"),
    [
        ([(3.0, 2.0), (2.5, 2.0), (2.4, 2.05), (2.6, 2.0)], 20),
        ([(3.0, 2.0), (2.5, 2.0), (2.4, 2.11), (2.6, 2.0)], 10),  # the best Korean has forgotten English
        ([(3.0, 2.0), (2.5, 2.2)], None),
        ([(2.0, 2.0), (2.5, 1.0)], 10),  # the start is no candidate
        ([(3.0, 2.0)], None),
        ([(3.0, 2.0), (2.5, 2.0), (2.5, 1.9)], 10),  # the first of equals
    ],
)
def test_the_best_has_the_fewest_korean_bits_among_those_that_keep_english(pairs, best):
    assert choose(rows(*pairs), RuleSettings(), "en", 0.05).step == best


def test_a_rise_of_just_the_limit_is_allowed():
    assert choose(rows((3.0, 2.0), (2.5, 2.5)), RuleSettings(), "en", 0.25).step == 10
    assert choose(rows((3.0, 2.0), (2.5, 2.5)), RuleSettings(), "en", 0.249).step is None


def test_why_it_was_chosen_and_by_which_rule_is_told():
    choice = choose(rows((3.0, 2.0), (2.5, 2.04)), RuleSettings(), "en", 0.05)
    assert choice.reason == "ko 2.5000 bits per byte, en +2.0%"
    assert choice.rule.startswith(
        "of the checkpoints whose en bits per byte are at most 5.0% above the start's, the one"
    )
    choice = choose(rows((3.0, 2.0), (2.5, 2.4), (2.4, 2.5)), RuleSettings(), "en", 0.05)
    assert choice.reason == "none of 2 checkpoints keeps en within 5.0%; the least en rises by is 20.0%"


def test_a_run_without_text_of_the_guard_is_judged_by_the_gain_alone():
    found = [{key: value for key, value in row.items() if not key.endswith("_en")} for row in rows((3, 2), (2, 9))]
    assert choose(found, RuleSettings(), "en", 0.05).step == 10


@pytest.mark.parametrize(
    ("pairs", "end"),
    [
        ([(3.0, 2.0), (2.5, 2.0), (2.6, 2.0)], None),
        (
            [(3.0, 2.0), (2.5, 2.0), (2.6, 2.0), (2.5, 2.0)],
            "no better checkpoint since step 10, in 2 evaluations",
        ),
        ([(3.0, 2.0), (2.5, 2.0), (2.6, 2.0), (2.4, 2.0)], None),
        ([(3.0, 2.0), (2.5, 2.0), (2.6, 2.0), (2.4, 2.0), (2.5, 2.0)], None),  # a better one starts the count anew
        (
            [(3.0, 2.0), (2.5, 2.2), (2.4, 2.3)],
            "no better checkpoint at all, in 2 evaluations, 2 of them with en",
        ),
        ([(3.0, 2.0), (2.5, 2.0), (2.4, 2.2), (2.3, 2.3)], "since step 10, in 2 evaluations, 2 of them with en above"),
        ([(3.0, 2.0)], None),
    ],
)
def test_a_run_ends_after_so_many_evaluations_without_a_better_checkpoint(pairs, end):
    found = choose(rows(*pairs), RuleSettings(patience=2), "en", 0.05).end
    assert (end is None and found is None) or end in found
    assert choose(rows(*pairs), RuleSettings(), "en", 0.05).end is None  # not asked for


def test_retention_is_told_by_language_with_alarm_and_replay():
    table = retention(rows((3.0, 2.0), (2.0, 2.5)), "en", 0.05, lambda rise: 0.25 if rise == 0.25 else None)
    base, after = table["rows"]
    assert (base["alarm"], base["change"]) == (False, {"ko": 0.0, "en": 0.0})
    assert after["retention"] == {"ko": 1.5, "en": 0.8}
    assert after["change"] == {"ko": -1.0, "en": 0.5}
    assert (after["alarm"], after["suggested_replay"]) == (True, 0.25)
    assert (table["base"], table["languages"]) == ("step 0", ["ko", "en"])
    shown = as_markdown(table)
    assert "| step 10 | 2.0000       | 2.5000       | -1.0000   | +0.5000   | 150.0%       | 80.0% " in shown
    assert "yes; replay 25%" in shown
    assert "more than 5.0% more bits per byte than with step 0" in shown


def test_without_a_replay_that_is_known_to_help_the_learning_rate_is_named():
    table = retention(rows((3.0, 2.0), (2.0, 2.5)), "en", 0.05, lambda rise: None)
    assert "yes; lower the learning rate" in as_markdown(table)


def test_one_model_or_no_text_has_no_retention():
    assert retention(rows((3.0, 2.0)), "en", 0.05, lambda rise: None) is None
    assert retention([{"model": "a"}, {"model": "b"}], "en", 0.05, lambda rise: None) is None
    assert retention([], "en", 0.05, lambda rise: None) is None
