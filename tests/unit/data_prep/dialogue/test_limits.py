import asyncio

import pytest

from data_prep.dialogue.limits import Budget, RateLimit


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds


def admissions(requests, tokens, wanted, settle=None):
    """Returns (time, tokens) of each admission when all ask at once."""

    async def all_at_once():
        limit = RateLimit(requests, tokens, clock, clock.sleep)
        found = []
        for amount in wanted:
            admission = await limit.admit(amount)
            if settle is not None:
                limit.settle(admission, settle)
            found.append((admission.at, admission.tokens))
        return found

    clock = Clock()
    return asyncio.run(all_at_once())


def most_in_a_minute(found, number):
    return max(sum(entry[number] if number else 1 for entry in found if at <= entry[0] < at + 60) for at, _ in found)


@pytest.mark.parametrize(("requests", "tokens"), [(7, None), (None, 500), (7, 400), (1000, 100), (None, None)])
def test_no_minute_holds_more_than_allowed_and_none_is_much_emptier(requests, tokens):
    found = admissions(requests, tokens, [20 + 13 * (i % 6) for i in range(60)])
    assert len(found) == 60
    if requests:
        assert most_in_a_minute(found, 0) <= requests
    if tokens:
        assert most_in_a_minute(found, 1) <= tokens
    took = found[-1][0] - found[0][0]
    fastest = 60 * max(60 / requests if requests else 0, sum(t for _, t in found) / tokens if tokens else 0)
    assert took <= 1.6 * fastest


def test_settled_tokens_make_room():
    assert admissions(None, 100, [60] * 10)[-1][0] >= 1000 + 9 * 60
    assert admissions(None, 100, [60] * 10, settle=4)[-1][0] == 1000


def test_a_request_larger_than_the_limit_goes_alone():
    assert [at for at, _ in admissions(None, 100, [500, 500])] == [1000, pytest.approx(1060, abs=1)]


def test_a_pause_holds_back_all():
    async def paused():
        limit = RateLimit(None, None, clock, clock.sleep)
        limit.pause(30)
        limit.pause(5)
        return await limit.admit(1)

    clock = Clock()
    assert asyncio.run(paused()).at == 1030


def test_a_budget_is_never_passed_and_what_is_given_back_can_be_spent():
    async def spend(budget, most, actual):
        if not await budget.reserve(most):
            return False
        await asyncio.sleep(0)
        budget.settle(most, actual)
        assert budget.spent <= 100
        return True

    async def all_at_once(limit, most, actual):
        budget = Budget(limit, spent=10)
        spent = await asyncio.gather(*(spend(budget, most, actual) for _ in range(20)))
        return sum(spent), budget.spent

    assert asyncio.run(all_at_once(100, 60, 7)) == (5, 45)  # 45 + 60 is above 100
    assert asyncio.run(all_at_once(100, 30, 30)) == (3, 100)
    assert asyncio.run(all_at_once(100, 91, 0)) == (0, 10)
    assert asyncio.run(all_at_once(None, 10**9, 1)) == (20, 30)
