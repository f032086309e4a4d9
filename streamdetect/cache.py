"""Functions with cached results, within bounds."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

Argument = TypeVar("Argument", bound=Hashable)
Result = TypeVar("Result")


class Cache(dict[Argument, Result]):
    """A function of one argument as a table: `cache[argument]`, a plain dict lookup on a hit.

    Holds two generations of at most `size` results: a full one becomes the old one, and a hit in the old one is copied
    to the new one. Subclasses dict only to make `[]` fast; use no other method.
    """

    __slots__ = ("_function", "_old", "_size")

    def __init__(self, function: Callable[[Argument], Result], size: int) -> None:
        super().__init__()
        self._function = function
        self._size = size
        self._old: dict[Argument, Result] = {}

    def __missing__(self, argument: Argument) -> Result:
        old = self._old
        result = old[argument] if argument in old else self._function(argument)
        if len(self) >= self._size:
            self._old = dict(self)
            self.clear()
        self[argument] = result
        return result
