"""Ownership of a consumer group: one instance is the owner, the others are standbys.

The owner commits a heartbeat every few seconds. A later instance watches the commit metadata: while it changes, the
owner is alive. Silence is measured with the local monotonic clock, and only while Kafka answers, so neither a wrong
clock nor an outage makes an owner count as dead. Silence only decides which instance tries to take over; the
transactional sink fences the previous owner, so two instances never work at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from streamdetect.errors import FencedError, KafkaError
from streamdetect.model import Partition
from streamdetect.sinks.transactional import CommitMetadata, Committed, TransactionalSink

log = logging.getLogger(__name__)

HEARTBEATS_PER_TAKEOVER = 5
"""An owner that has sent no heartbeat for this many heartbeat intervals counts as dead."""


class Lock(Protocol):
    """Exclusive OS lock on the checkpoint directory.

    Acquiring it proves that the previous holder has exited; failing to acquire it proves nothing.
    """

    def acquire(self) -> bool:
        """Take the lock if it is free; returns whether this process holds it."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """The previous owner is fenced. `saw_live_owner`: its heartbeat changed while this instance stood by."""

    committed: Committed
    saw_live_owner: bool


class HeartbeatMonitor:
    """Measures with the local clock for how long the commit metadata has not changed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._metadata: CommitMetadata | None = None
        self._since: float | None = None
        self.saw_live_owner = False

    def observe(self, metadata: CommitMetadata | None) -> float:
        """Returns for how many seconds the metadata has been the same."""
        now = self._clock()
        if self._since is None or metadata != self._metadata:
            self.saw_live_owner |= self._since is not None and metadata is not None
            self._metadata, self._since = metadata, now
        return now - self._since

    def restart(self) -> None:
        """Measure from now on: while Kafka does not answer, silence says nothing about the owner."""
        self._since = self._clock() if self._since is not None else None


def become_owner(  # noqa: PLR0913 - its dependencies
    *,
    sink: TransactionalSink,
    lock: Lock,
    own_state: Callable[[], str],
    partitions: Collection[Partition],
    refuse_reason: str | None,
    takeover_seconds: float,
    stop: Callable[[], bool],
    clock: Callable[[], float],
    wait: Callable[[float], None],
) -> Ownership | None:
    """Fence the previous owner once no other instance is alive. Returns None if `stop` came first.

    `own_state` returns the name of the state in the checkpoint directory; it is called while its lock is held.
    `refuse_reason` says why this instance must not become a standby: then FencedError is raised if another instance
    is alive. Raises KafkaError if Kafka does not answer the first request.
    """
    monitor = HeartbeatMonitor(clock)
    locked = lock.acquire()
    metadata = sink.fetch_committed(partitions).metadata
    silent, standing_by, alive_logged = monitor.observe(metadata), False, False
    while not _is_free(metadata, locked, own_state) and silent < takeover_seconds:
        if monitor.saw_live_owner and not alive_logged:
            alive_logged = True
            log.info("another instance of this consumer group is alive: its heartbeat changes")
        if alive_logged and refuse_reason is not None:
            raise FencedError(
                f"Another instance of this consumer group is alive, and {refuse_reason}. Stop the other instance, or "
                "give this one another kafka.group_id and checkpoint.path."
            )
        if not standing_by:
            standing_by = True
            log.info(
                "standing by: another instance may own this consumer group; taking over after %g s without a "
                "heartbeat (kafka.takeover_after)",
                takeover_seconds,
            )
        wait(takeover_seconds / HEARTBEATS_PER_TAKEOVER / 2)
        if stop():
            return None
        locked = locked or lock.acquire()
        try:
            metadata = sink.fetch_committed(partitions).metadata
        except KafkaError as error:
            log.debug("Kafka did not answer while standing by: %s", error)
            monitor.restart()
        else:
            silent = monitor.observe(metadata)
    if stop():
        return None
    if standing_by:
        log.warning("taking over: %s", _takeover_reason(metadata, silent, takeover_seconds))
    return Ownership(sink.fence(partitions), monitor.saw_live_owner)


def _takeover_reason(metadata: CommitMetadata | None, silent: float, takeover_seconds: float) -> str:
    if metadata is not None and metadata.released:
        return "the last owner has shut down"
    if silent < takeover_seconds:
        return "the process of the last owner has exited"
    return f"no heartbeat from the last owner for {silent:.0f} s"


def _is_free(metadata: CommitMetadata | None, locked: bool, own_state: Callable[[], str]) -> bool:
    """Whether certainly no other instance is alive.

    There never was one, the last owner has released the group, or it was a process on this checkpoint directory, whose
    lock is now held here.
    """
    if not locked:
        return False
    return metadata is None or metadata.released or metadata.state == own_state()
