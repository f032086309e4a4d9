"""The contract of clients that fetch records of Kafka (`RecordFetcher`), and what its implementations share.

Implementations: `kafka_python.py` and `confluent.py`; `fetcher_factory.py` chooses. Offset queries are not part of the
contract: kafka-python answers them for every fetcher (`offsets.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from kafka import TopicPartition  # type: ignore[import-untyped]  # it has no types at all

from streamdetect.model import Batch, Partition

BEGINNING = None
"""A position that is not resolved yet: the oldest record that exists when the client gets there."""

CONSUMER_SETTINGS: Mapping[str, Any] = {
    "group_id": None,
    "isolation_level": "read_committed",
    # Any other value skips deleted records silently.
    "auto_offset_reset": "none",
    "enable_auto_commit": False,
    "check_crcs": True,
    # All fetched records in one poll: kafka-python 3.0.12 never returns records of a partition that was paused while
    # it held some of them, once a batch that a limit cut short has been used up (fetcher.fetched_records).
    "max_poll_records": 1_000_000_000,
    "fetch_max_bytes": 16 * 1024 * 1024,
    # A low limit makes every poll small.
    "max_partition_fetch_bytes": 4 * 1024 * 1024,
    "metadata_max_age_ms": 5_000,
    # A broker answers the requests of a connection one after the other, so each query waits for the fetch before it.
    "fetch_max_wait_ms": 200,
}
"""Settings of kafka-python's consumer. `kafka.client` overrides them; librdkafka gets the settings that it also has."""


class RecordFetcher(Protocol):
    """A client that fetches committed records of the partitions assigned to it, each in offset order.

    Raises the errors of kafka-python: OffsetOutOfRangeError at each poll until a seek, LogTruncationError,
    TopicAuthorizationFailedError, and RetriableError when the next poll may succeed. After any other error the client
    is damaged and may only be closed.
    """

    def assign(self, partitions: Collection[Partition]) -> None:
        """Fetch exactly these partitions; a new one needs a `seek` before the next call."""
        ...

    def seek(self, partition: Partition, offset: int | None) -> None:
        """Continue at this offset, or at BEGINNING."""
        ...

    def pause(self, partitions: Collection[Partition]) -> None:
        """Return no records of these until `resume`. No record is lost by it."""
        ...

    def resume(self, partitions: Collection[Partition]) -> None: ...

    def poll(self, timeout_ms: int) -> list[Batch]:
        """Fetched records, at most one batch for each partition."""
        ...

    def highwater(self, partition: Partition) -> int | None:
        """The end of the log in the last fetch response, uncommitted records included; None before the first."""
        ...

    def position(self, partition: Partition) -> int | None:
        """The next offset to return, after the transaction markers passed so far; None while it is being resolved."""
        ...

    def close(self) -> None: ...


def topic_partition(partition: Partition) -> Any:
    """The partition as kafka-python names it."""
    return TopicPartition(partition.topic, partition.number)


def partition_of(topic_partition: Any) -> Partition:
    """The inverse of `topic_partition`."""
    return Partition(topic_partition.topic, topic_partition.partition)


def plain_headers(headers: Sequence[tuple[str, bytes | None]]) -> tuple[tuple[str, bytes], ...]:
    """Headers with `b""` for a missing value: the client cannot write a header without a value back."""
    return tuple((name, value or b"") for name, value in headers)
