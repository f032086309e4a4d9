"""Looks beside the loop whether records that are there arrive, and what retention has left.

The loop cannot tell: a client that has lost a partition says that there is nothing. So the brokers are asked from
another thread. Without an answer nothing is concluded; an outage is no stall.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from streamdetect.model import Partition
from streamdetect.service.status.state import PartitionStatus, RunStatus, names
from streamdetect.sources import Bounds

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
STALLED_SECONDS = 60.0
"""Long enough for the source to have tried a fresh consumer, and for a broker to have come back."""


class StallMonitor:
    """`look` is called every few seconds; it sets the `bounds` and `stalled` of the vitals."""

    def __init__(self, vitals: RunStatus, clock: Callable[[], float] = time.monotonic) -> None:
        self._vitals = vitals
        self._clock = clock
        self._stuck: dict[Partition, tuple[int, float]] = {}

    def look(self) -> None:
        run, picture = self._vitals.run, self._vitals.picture
        if run is None or picture is None or self._vitals.stage != "running":
            return
        bounds = run.source.bounds()
        if not bounds:
            self._stuck = {}
            return
        self._vitals.bounds = bounds
        self._note(picture.partitions, bounds)
        now = self._clock()
        stalled = frozenset(p for p, (_, since) in self._stuck.items() if now - since >= STALLED_SECONDS)
        before, self._vitals.stalled = self._vitals.stalled, stalled
        self._tell(stalled, before)

    def _note(
        self, partitions: Mapping[Partition, PartitionStatus], bounds: Mapping[Partition, Bounds]
    ) -> None:
        """Since when each partition that holds more than was read stands where it stands."""
        now = self._clock()
        before, self._stuck = self._stuck, {}
        for partition, one in partitions.items():
            if one.position is not None and _waits(one, bounds.get(partition)):
                position, since = before.get(partition, (one.position, now))
                self._stuck[partition] = (one.position, since if position == one.position else now)

    @staticmethod
    def _tell(stalled: frozenset[Partition], before: frozenset[Partition]) -> None:
        if stalled - before:
            log.error(
                "no records have arrived for %g s from %s, though there are some. The client is tried anew by itself; "
                "if this goes on, restart this instance (nothing is lost) and look at that partition's leader",
                STALLED_SECONDS,
                names(stalled - before),
            )
        if before - stalled:
            log.info("records arrive again from %s", names(before - stalled))


def _waits(one: PartitionStatus, bounds: Bounds | None) -> bool:
    return bounds is not None and not one.held and one.position is not None and one.position < bounds.end


@contextmanager
def stall_monitor(vitals: RunStatus) -> Iterator[None]:
    """Look every few seconds in a thread of its own."""
    watch, done = StallMonitor(vitals), threading.Event()

    def work() -> None:
        while not done.wait(LOOK_SECONDS):
            watch.look()

    thread = threading.Thread(target=work, name="streamdetect-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5.0)
