"""The wall clock of a live run, which never goes back.

It is read only to refuse events from the future (semantics.md §4). A machine whose clock was set back would refuse
every event.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_WARN_MS = 60_000


class WallClock:
    """Milliseconds since the epoch: the machine's clock, or the last reading plus the monotonic time since, if later.

    `at_least_ms` is a time that has certainly passed, such as the time of an event that was accepted earlier.
    """

    def __init__(
        self,
        at_least_ms: int | None = None,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall_ms = wall_ms
        self._clock = clock
        self._read_at = clock()
        self._last_ms = wall_ms() if at_least_ms is None else max(wall_ms(), at_least_ms)
        self._warned = False

    def __call__(self) -> int:
        moment, machine_ms = self._clock(), self._wall_ms()
        expected_ms = self._last_ms + int((moment - self._read_at) * 1000)
        self._read_at, self._last_ms = moment, max(expected_ms, machine_ms)
        behind_ms = self._last_ms - machine_ms
        if behind_ms > _WARN_MS and not self._warned:
            log.warning(
                "the clock of this machine was set back: it is %d s behind the time known to have passed. Continuing "
                "with the monotonic clock. Correct the machine's clock, or events may be refused as future_time after "
                "the next start.",
                behind_ms // 1000,
            )
        self._warned = behind_ms > _WARN_MS
        return self._last_ms
