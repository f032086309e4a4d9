"""Offset queries to the brokers: beginnings, ends, bounds, and the offsets at a point in time."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Literal

from kafka import errors as client_errors  # type: ignore[import-untyped]  # it has no types at all

from streamdetect.broker import bootstrap_seconds, reaching
from streamdetect.config import parse_time_ms
from streamdetect.model import Partition
from streamdetect.sources import Bounds
from streamdetect.sources.fetcher import partition_of, topic_partition

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

log = logging.getLogger(__name__)

LogPoint = int | Literal["earliest", "latest"]
"""A point in a log: one of its ends, or a time in milliseconds (the first record at or after it)."""

QUERY_TIMEOUT_MS = 5_000
"""Limit of one offset query while records are being read."""


class BrokerOffsets:
    """Asks the brokers for offsets through a kafka-python consumer."""

    def __init__(self, consumer: Any, settings: KafkaSettings) -> None:
        self._consumer = consumer
        self._settings = settings

    def beginnings(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The offset of the oldest record; empty if the brokers do not answer in time."""
        return self._answers(self._consumer.beginning_offsets, partitions, QUERY_TIMEOUT_MS)

    def ends(
        self, partitions: Iterable[Partition], timeout_ms: int = QUERY_TIMEOUT_MS
    ) -> dict[Partition, int]:
        """The end of the committed records; empty if the brokers do not answer in time."""
        return self._answers(self._consumer.end_offsets, partitions, timeout_ms)

    def bounds(self, partitions: Collection[Partition]) -> dict[Partition, Bounds]:
        """First and end offsets; empty if the brokers do not answer in time. Any thread may call it."""
        try:
            first = _query(self._consumer.beginning_offsets, partitions, QUERY_TIMEOUT_MS)
            ends = _query(self._consumer.end_offsets, partitions, QUERY_TIMEOUT_MS)
        except Exception as error:  # noqa: BLE001 - the reading thread may be replacing the consumer
            log.debug("no bounds: %s", error)
            return {}
        return {partition: Bounds(first[partition], end) for partition, end in ends.items()}

    def at(self, partitions: Collection[Partition], point: LogPoint) -> dict[Partition, int]:
        """The offset of a point in each partition; a time after the last record means the end.

        Waits as long as a start does. Raises KafkaError without an answer.
        """
        timeout_ms = int(bootstrap_seconds(self._settings) * 1000)
        with reaching(self._settings, connected=True):
            if point == "earliest":
                return _query(self._consumer.beginning_offsets, partitions, timeout_ms)
            ends = _query(self._consumer.end_offsets, partitions, timeout_ms)
            if point == "latest":
                return ends
            times = {topic_partition(partition): max(point, 0) for partition in partitions}
            answer = self._consumer.offsets_for_times(times, timeout_ms=timeout_ms)
        found = {partition_of(key): entry.offset for key, entry in answer.items() if entry is not None}
        return {partition: min(found.get(partition, end), end) for partition, end in ends.items()}

    def _answers(self, query: Any, partitions: Iterable[Partition], timeout_ms: int) -> dict[Partition, int]:
        try:
            return _query(query, partitions, timeout_ms)
        except client_errors.KafkaError as error:
            log.debug("no offsets: %s", error)
            return {}


def log_point(text: str) -> LogPoint:
    """The point that a setting such as `kafka.start` names."""
    if text == "latest":
        return "latest"
    return "earliest" if text == "earliest" else parse_time_ms(text)


def _query(query: Any, partitions: Iterable[Partition], timeout_ms: int) -> dict[Partition, int]:
    keys = [topic_partition(partition) for partition in partitions]
    if not keys:
        return {}
    try:
        answer = query(keys, timeout_ms=timeout_ms)
    except KeyError as error:
        # The client raises KeyError for a partition without a leader.
        raise client_errors.LeaderNotAvailableError(f"no leader for {error}") from error
    return {partition_of(key): offset for key, offset in answer.items()}
