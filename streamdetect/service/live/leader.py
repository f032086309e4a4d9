"""One owner: who of several instances of a group works, and who stands by.

An owner renews its note every few seconds. Whoever comes later watches the notes: while they change somebody lives.
Time is counted by our own clock only, and only while Kafka answers, so neither a wrong clock nor an outage makes
anybody dead. The watch decides who tries; what keeps two from working at once is the ledger's claim, which ends
whoever was before.
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

BEATS = 5
"""Beats in the time after which an owner counts as gone."""


class Lock(Protocol):
    """Who gets it knows that whoever had it is dead; who does not get it knows nothing."""

    def acquire(self) -> bool:
        """Take it if it is free."""
        ...


@dataclass(frozen=True, slots=True)
class Ownership:
    """The ledger is ours. `stood_by`: somebody was seen at work before."""

    committed: Committed
    stood_by: bool


class HeartbeatMonitor:
    """Since when a note has not changed, by our own clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._note: CommitMetadata | None = None
        self._since: float | None = None
        self.seen_alive = False

    def saw(self, note: CommitMetadata | None) -> float:
        """For how long the note has been this one."""
        now = self._clock()
        if self._since is None or note != self._note:
            self.seen_alive |= self._since is not None and note is not None
            self._note, self._since = note, now
        return now - self._since

    def saw_nothing(self) -> None:
        """Kafka gave no answer: silence says nothing about the other."""
        self._since = self._clock() if self._since is not None else None


def become_owner(  # noqa: PLR0913 - all that it depends on
    *,
    ledger: TransactionalSink,
    lock: Lock,
    own_state: Callable[[], str],
    partitions: Collection[Partition],
    refuse: str | None,
    takeover_seconds: float,
    stop: Callable[[], bool],
    clock: Callable[[], float],
    wait: Callable[[float], None],
) -> Ownership | None:
    """Claim the ledger, once nobody else is at work; None if `stop` came first.

    `own_state` names the state in our checkpoint directory and is asked once its lock is ours. `refuse` says why we
    would not stand by: then FencedError is raised if somebody is at work, KafkaError if Kafka does not answer at first.
    """
    watch = HeartbeatMonitor(clock)
    locked = lock.acquire()
    note = ledger.look(partitions).note
    silent, told, seen = watch.saw(note), False, False
    while not _is_free(note, locked, own_state) and silent < takeover_seconds:
        if watch.seen_alive and not seen:
            seen = True
            log.info("another instance is at work")
        if seen and refuse is not None:
            raise FencedError(
                f"Another instance of this group is at work, and {refuse}. End the other, or give this one another "
                "kafka.group_id and checkpoint.path."
            )
        if not told:
            told = True
            log.info(
                "standing by: the last owner of this group may be at work; taking over when nothing was heard of "
                "it for %g s (kafka.takeover_after)",
                takeover_seconds,
            )
        wait(takeover_seconds / BEATS / 2)
        if stop():
            return None
        locked = locked or lock.acquire()
        try:
            note = ledger.look(partitions).note
        except KafkaError as error:
            log.debug("no answer while standing by: %s", error)
            watch.saw_nothing()
        else:
            silent = watch.saw(note)
    if stop():
        return None
    if told:
        log.warning(
            "taking over: %s",
            "the last owner has ended" if note and note.released else "nothing was heard of the last owner",
        )
    return Ownership(ledger.claim(partitions), watch.seen_alive)


def _is_free(note: CommitMetadata | None, locked: bool, own_state: Callable[[], str]) -> bool:
    """Nobody is at work for certain: nobody ever was, the last one ended, or it was a process on our own directory."""
    if not locked:
        return False
    return note is None or note.released or note.state == own_state()
