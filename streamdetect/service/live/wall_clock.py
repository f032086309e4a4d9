"""The wall clock of a live run, which never goes back.

It is asked for one thing only: to refuse events from the future (semantics.md §4). A machine whose clock is set
back would refuse every event as coming from there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_TOLD_MS = 60_000


class WallClock:
    """Milliseconds since the epoch: the machine's clock, or what was known before and the time passed since.

    `at_least_ms` is a time that has certainly passed, such as that of an event that was accepted long ago.
    """

    def __init__(
        self,
        at_least_ms: int | None = None,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall_ms = wall_ms
        self._clock = clock
        self._known_at = clock()
        self._known_ms = wall_ms() if at_least_ms is None else max(wall_ms(), at_least_ms)
        self._told = False

    def __call__(self) -> int:
        moment, said_ms = self._clock(), self._wall_ms()
        expected_ms = self._known_ms + int((moment - self._known_at) * 1000)
        self._known_at, self._known_ms = moment, max(expected_ms, said_ms)
        behind_ms = self._known_ms - said_ms
        if behind_ms > _TOLD_MS and not self._told:
            log.warning(
                "this machine's clock is %d s behind what we know to have passed: it was set back. Going on with our "
                "own; set the clock right, or events from now on may be refused after the next start.",
                behind_ms // 1000,
            )
        self._told = behind_ms > _TOLD_MS
        return self._known_ms
