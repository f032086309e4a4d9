"""Random draws from `Random.random()` only: other methods of `random` may change between Python versions.

No logarithm, sine or power either: their last bit differs between C libraries.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import TypeVar

T = TypeVar("T")


def stream(seed: int, *path: int) -> Random:
    """A random generator for one part of a scenario, so that parts do not affect each other's draws."""
    return Random("/".join(map(str, (seed, *path))))


def below(rng: Random, limit: int) -> int:
    return int(rng.random() * limit)


def between(rng: Random, low: int, high: int) -> int:
    """`low <= result < high`."""
    return low + int(rng.random() * (high - low))


def pick(rng: Random, choices: Sequence[T]) -> T:
    return choices[int(rng.random() * len(choices))]


def chance(rng: Random, share: float) -> bool:
    return rng.random() < share


def whole(rng: Random, mean: float) -> int:
    """A random whole number with mean `mean`: rounded up with the probability of the fraction."""
    floor = int(mean)
    return floor + (rng.random() < mean - floor)


def hexa(rng: Random, digits: int) -> str:
    return "".join("0123456789abcdef"[int(rng.random() * 16)] for _ in range(digits))


def guid(rng: Random) -> str:
    return "-".join(hexa(rng, digits) for digits in (8, 4, 4, 4, 12))


class Weighted:
    """A weighted distribution: `index(rng.random())` is an index drawn by weight."""

    __slots__ = ("_last", "_steps")

    def __init__(self, weights: Sequence[float]) -> None:
        total = sum(weights)
        self._steps = [step / total for step in accumulate(weights)]
        self._last = len(weights) - 1

    def index(self, roll: float) -> int:
        return min(bisect(self._steps, roll), self._last)
