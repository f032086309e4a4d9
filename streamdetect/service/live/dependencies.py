"""The external dependencies of a live run. `cli.run` creates the real ones, `testing` has fakes."""

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
"""Topic, partition and offset of the record in a dead letter."""


def _no_alerts(since_ms: int) -> Iterable[bytes]:
    del since_ms
    return ()


def _no_dead_letters(since_ms: int) -> Collection[Origin]:
    del since_ms
    return ()


@dataclass(frozen=True, slots=True)
class Dependencies:
    """`reset_store` deletes the store; it is called only by the owner of the consumer group.

    `open_window(start_ms, ends)` reads the same topics from a Kafka timestamp up to the positions `ends`.
    `published_alerts(since_ms)` are the alerts published since a tick, in any order; `published_dead_letters(since_ms)`
    are the origins of the dead letters written since a time. Both are empty for a sink that cannot be read back
    (standard output).
    """

    source: LiveSource
    sink: TransactionalSink
    lock: Lock
    open_store: Callable[[], CheckpointStore]
    reset_store: Callable[[], None]
    open_window: Callable[[int, Mapping[Partition, int]], Source]
    local_sinks: LocalSinks = field(default_factory=LocalSinks)
    published_alerts: Callable[[int], Iterable[bytes]] = _no_alerts
    published_dead_letters: Callable[[int], Collection[Origin]] = _no_dead_letters
