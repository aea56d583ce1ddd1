"""How often ranks give signs of life."""

import time

import pytest

from recipes.training.control.hang import Place, tick_seconds


@pytest.mark.parametrize(
    ("world_size", "limit", "expected"), [(1, None, 1.0), (2, 600.0, 1.0), (2, 2.0, 0.5), (2000, 600.0, 10.0)]
)
def test_a_thousand_ranks_do_not_flood_the_store_and_a_short_limit_is_kept(world_size, limit, expected):
    place = Place("step", 1, time.monotonic(), limit) if limit else None
    assert tick_seconds(world_size, place) == expected
