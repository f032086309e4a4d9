"""Tables: the same answers as the function, few questions asked twice, never more remembered than allowed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamdetect.cache import Cache


@given(st.lists(st.integers(0, 30)), st.integers(1, 10))
def test_a_table_answers_as_the_function_does(questions: list[int], size: int) -> None:
    """Whatever is asked, in whatever order: None is an answer, too."""
    table: Cache[int, int | None] = Cache(lambda number: None if number % 7 == 0 else number * 2, size)
    for question in questions:
        assert table[question] == (None if question % 7 == 0 else question * 2)
        assert len(table) <= size


def test_what_is_in_use_is_worked_out_once() -> None:
    """1 is asked for again within every 3 questions, so it comes back each time; 2 to 9 are asked once."""
    asked: list[int] = []

    def answer(number: int) -> int:
        asked.append(number)
        return number

    table = Cache(answer, 3)
    for number in range(2, 10):
        assert (table[1], table[number]) == (1, number)
    assert asked == [1, 2, 3, 4, 5, 6, 7, 8, 9]
