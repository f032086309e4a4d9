"""What a live run stands on: the doors to the world outside, made by `cli.run`, faked by `testing`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from streamdetect.checkpoint import CheckpointStore
from streamdetect.model import Partition
from streamdetect.service.live.leader import Lock
from streamdetect.service.live.local_sinks import LocalSinks
from streamdetect.sinks.transactional import TransactionalSink
from streamdetect.sources import LiveSource, Source

Origin = tuple[str, int, int]
"""Topic, partition and offset that a dead letter came from."""


def _none_sent(since_ms: int) -> Iterable[bytes]:
    del since_ms
    return ()


def _no_letters(since_ms: int) -> Collection[Origin]:
    del since_ms
    return ()


@dataclass(frozen=True, slots=True)
class Dependencies:
    """`open_store` and `reset_store` are called once the directory is ours.

    `window(start_ms, ends)` reads the same topics from a Kafka timestamp up to these positions.
    `sent_alerts(since_ms)` are the alerts that were sent since a tick, in order, and `sent_letters` where the dead
    letters came from that were written since a time, as far as a sink can tell (standard output cannot).
    """

    source: LiveSource
    ledger: TransactionalSink
    lock: Lock
    open_store: Callable[[], CheckpointStore]
    reset_store: Callable[[], None]
    window: Callable[[int, Mapping[Partition, int]], Source]
    local: LocalSinks = field(default_factory=LocalSinks)
    sent_alerts: Callable[[int], Iterable[bytes]] = _none_sent
    sent_letters: Callable[[int], Collection[Origin]] = _no_letters
