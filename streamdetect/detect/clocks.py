"""The clock of one partition: the newest accepted event time, and leaps that are not believed yet (semantics.md §4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

RUN_BELIEVED = 100  # records in a row that make a leap believed, from any host


@dataclass(slots=True)
class LeapRun:
    """Records in a row that are too far ahead of the clock: their number, smallest time, and their one host.

    A second host makes the leap believed at once, so one host is enough.
    """

    records: int
    min_ms: int
    host: str | None


class PartitionClock:
    """C_p. Never goes back."""

    __slots__ = ("_jump_ms", "now_ms", "run")

    def __init__(self, max_future_jump_ms: int) -> None:
        self._jump_ms = max_future_jump_ms
        self.now_ms: int | None = None
        self.run: LeapRun | None = None

    def observe(self, time_ms: int, host: Callable[[], str | None]) -> None:
        """Observe a record's time. `host` is called only for a record too far ahead."""
        now_ms = self.now_ms
        if now_ms is None:
            self.now_ms = time_ms  # a partition's first record sets its clock
        elif time_ms > now_ms + self._jump_ms:
            self._leap(time_ms, host())
        else:
            self.run = None
            if time_ms > now_ms:
                self.now_ms = time_ms

    def _leap(self, time_ms: int, host: str | None) -> None:
        """Add to the run. Once the leap is believed, move to its smallest time and re-apply the rule to the record."""
        run = self.run
        if run is None:
            self.run = LeapRun(1, time_ms, host)
            return
        run.records += 1
        run.min_ms = min(run.min_ms, time_ms)
        if host == run.host and run.records < RUN_BELIEVED:
            return
        self.now_ms = run.min_ms
        self.run = None
        if time_ms > run.min_ms + self._jump_ms:
            self.run = LeapRun(1, time_ms, host)
        else:
            self.now_ms = max(run.min_ms, time_ms)
