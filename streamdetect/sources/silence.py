"""Notices partitions that deliver no records although the broker has some."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from streamdetect.model import Partition

STALL_SECONDS = 10.0
"""A partition with unread records that delivers none for this long is read with a new consumer."""


class SilenceTimer:
    """Times since when partitions have delivered no record."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._progress_at: dict[Partition, float] = {}
        self._checked_at = clock()

    def restart(self, partitions: Iterable[Partition]) -> None:
        """These have delivered records, were resumed, or turned out to have none."""
        self._progress_at |= dict.fromkeys(partitions, self._clock())

    def silent(self, partitions: Iterable[Partition]) -> list[Partition]:
        """Those silent for STALL_SECONDS; empty if the last check is less than a fifth of that ago."""
        now = self._clock()
        if now - self._checked_at < STALL_SECONDS / 5:
            return []
        self._checked_at = now
        return [one for one in partitions if now - self._progress_at.setdefault(one, now) >= STALL_SECONDS]
