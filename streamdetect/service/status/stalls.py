"""Stall monitor: checks beside the loop whether unread records arrive, and which offsets Kafka still has.

The loop cannot detect a stall: a client that has lost a partition reports that there are no records. So a thread of its
own asks the brokers. Without an answer it concludes nothing; an outage is not a stall.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from streamdetect.model import Partition
from streamdetect.service.status.state import PartitionStatus, RunStatus, partition_names
from streamdetect.sources import Bounds

log = logging.getLogger(__name__)

CHECK_SECONDS = 10.0
STALLED_SECONDS = 60.0
"""Long enough for the source to have tried a new consumer, and for a broker to have restarted."""


class StallMonitor:
    """Sets `bounds` and `stalled` of the run status; call `check` every few seconds."""

    def __init__(self, status: RunStatus, clock: Callable[[], float] = time.monotonic) -> None:
        self._status = status
        self._clock = clock
        self._stuck: dict[Partition, tuple[int, float]] = {}

    def check(self) -> None:
        status, parts, snapshot = self._status, self._status.parts, self._status.snapshot
        if parts is None or snapshot is None or status.stage != "running":
            return
        bounds = parts.source.bounds()
        if not bounds:
            self._stuck = {}
            return
        status.bounds = bounds
        self._update_stuck(snapshot.partitions, bounds)
        now = self._clock()
        stalled = frozenset(p for p, (_, since) in self._stuck.items() if now - since >= STALLED_SECONDS)
        before, status.stalled = status.stalled, stalled
        self._log_changes(stalled, before)

    def _update_stuck(
        self, partitions: Mapping[Partition, PartitionStatus], bounds: Mapping[Partition, Bounds]
    ) -> None:
        """For each partition with unread records: its position, and since when it has not changed."""
        now = self._clock()
        before, self._stuck = self._stuck, {}
        for partition, one in partitions.items():
            if one.position is not None and _has_unread(one, bounds.get(partition)):
                position, since = before.get(partition, (one.position, now))
                self._stuck[partition] = (one.position, since if position == one.position else now)

    @staticmethod
    def _log_changes(stalled: frozenset[Partition], before: frozenset[Partition]) -> None:
        if stalled - before:
            log.error(
                "no records have arrived for %g s from %s, although there are unread ones. The client is replaced "
                "automatically; if this continues, restart this instance (nothing is lost) and check that partition's "
                "leader",
                STALLED_SECONDS,
                partition_names(stalled - before),
            )
        if before - stalled:
            log.info("records arrive again from %s", partition_names(before - stalled))


def _has_unread(one: PartitionStatus, bounds: Bounds | None) -> bool:
    return bounds is not None and not one.held and one.position is not None and one.position < bounds.end


@contextmanager
def stall_monitor(status: RunStatus) -> Iterator[None]:
    """Run a stall monitor in a thread of its own within the block."""
    monitor, done = StallMonitor(status), threading.Event()

    def work() -> None:
        while not done.wait(CHECK_SECONDS):
            monitor.check()

    thread = threading.Thread(target=work, name="streamdetect-stalls", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5.0)
