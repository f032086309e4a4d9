"""Functions that remember their answers, within bounds."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

Question = TypeVar("Question", bound=Hashable)
Answer = TypeVar("Answer")


class Cache(dict[Question, Answer]):
    """A function of one argument as a table: `table[question]`, a mere dict's lookup where it was asked before.

    It holds two generations of at most `size` answers: a full one becomes the old one, and what is asked for again
    comes back. Looks like a dict to speed up `[]` alone: use no other method.
    """

    __slots__ = ("_answer", "_old", "_size")

    def __init__(self, answer: Callable[[Question], Answer], size: int) -> None:
        super().__init__()
        self._answer = answer
        self._size = size
        self._old: dict[Question, Answer] = {}

    def __missing__(self, question: Question) -> Answer:
        old = self._old
        answer = old[question] if question in old else self._answer(question)
        if len(self) >= self._size:
            self._old = dict(self)
            self.clear()
        self[question] = answer
        return answer
