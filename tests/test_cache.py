"""Caches: the same values as the function, values in use computed once, never more entries than allowed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamdetect.cache import Cache


@given(st.lists(st.integers(0, 30)), st.integers(1, 10))
def test_a_cache_returns_the_values_of_the_function(keys: list[int], size: int) -> None:
    """For any keys in any order; None is cached like any other value."""
    cached: Cache[int, int | None] = Cache(lambda number: None if number % 7 == 0 else number * 2, size)
    for key in keys:
        assert cached[key] == (None if key % 7 == 0 else key * 2)
        assert len(cached) <= size


def test_values_in_use_are_computed_once() -> None:
    """1 is looked up every second time, so it is kept; 2 to 9 are looked up once."""
    computed: list[int] = []

    def compute(number: int) -> int:
        computed.append(number)
        return number

    cached = Cache(compute, 3)
    for number in range(2, 10):
        assert (cached[1], cached[number]) == (1, number)
    assert computed == [1, 2, 3, 4, 5, 6, 7, 8, 9]
