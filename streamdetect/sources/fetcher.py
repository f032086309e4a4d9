"""Fetching records of Kafka: the contract that every client fulfils (`RecordFetcher`), and kafka-python's way to do it.

Questions (which topics, where a log begins and ends) are not asked here: kafka-python answers those, whoever fetches.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from kafka import TopicPartition  # type: ignore[import-untyped]  # it has no types at all

from streamdetect.errors import ConfigError
from streamdetect.model import Batch, Partition

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

BEGINNING = None
"""A position not yet looked up: the oldest record there is when the client gets there."""

CONSUMER_SETTINGS: Mapping[str, Any] = {
    "group_id": None,
    "isolation_level": "read_committed",
    # Any other value jumps silently over what is gone.
    "auto_offset_reset": "none",
    "enable_auto_commit": False,
    "check_crcs": True,
    # All that was fetched, in one poll: kafka-python 3.0.12 never gives back records of a partition that was paused
    # with them in hand, while a batch that a limit cut short has been used up since (fetcher.fetched_records).
    "max_poll_records": 1_000_000_000,
    "fetch_max_bytes": 16 * 1024 * 1024,
    # A low limit makes every poll small.
    "max_partition_fetch_bytes": 4 * 1024 * 1024,
    "metadata_max_age_ms": 5_000,
    # A broker answers one question of a connection after the other, so each question waits for the fetch
    # before it.
    "fetch_max_wait_ms": 200,
}
"""Of kafka-python. `kafka.client` may say otherwise; the other client gets what it knows of the outcome."""


class RecordFetcher(Protocol):
    """A client that fetches committed records of the partitions assigned to it, each in offset order.

    Errors are those of kafka-python: OffsetOutOfRangeError at each poll until one seeks, LogTruncationError,
    TopicAuthorizationFailedError, RetriableError if the next poll may do better. After any other the client is
    damaged, and closing it is all that may be done.
    """

    def assign(self, partitions: Collection[Partition]) -> None:
        """Fetch these and no others; a new one wants a `seek` before the next call."""
        ...

    def seek(self, partition: Partition, offset: int | None) -> None:
        """Go on at this offset, or at BEGINNING."""
        ...

    def pause(self, partitions: Collection[Partition]) -> None:
        """Hand out nothing of these until `resume`. Nothing is lost by it."""
        ...

    def resume(self, partitions: Collection[Partition]) -> None: ...

    def poll(self, timeout_ms: int) -> list[Batch]:
        """What has been fetched, at most one batch for each partition."""
        ...

    def highwater(self, partition: Partition) -> int | None:
        """The end of the log that the last answer told of, committed or not; None before the first one."""
        ...

    def position(self, partition: Partition) -> int | None:
        """The offset handed out next, behind markers of transactions as far as they have been passed; None while
        it is being looked up.
        """
        ...

    def close(self) -> None: ...


class KafkaPythonFetcher:
    """kafka-python's consumer, which may answer questions beside it."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def assign(self, partitions: Collection[Partition]) -> None:
        self._consumer.assign([topic_partition(partition) for partition in partitions])

    def seek(self, partition: Partition, offset: int | None) -> None:
        if offset is BEGINNING:
            self._consumer.seek_to_beginning(topic_partition(partition))
        else:
            self._consumer.seek(topic_partition(partition), offset)

    def pause(self, partitions: Collection[Partition]) -> None:
        self._consumer.pause(*map(topic_partition, partitions))

    def resume(self, partitions: Collection[Partition]) -> None:
        self._consumer.resume(*map(topic_partition, partitions))

    def poll(self, timeout_ms: int) -> list[Batch]:
        fetched = self._consumer.poll(timeout_ms=timeout_ms)
        return [_batch(named(where), records) for where, records in fetched.items() if records]

    def highwater(self, partition: Partition) -> int | None:
        end: int | None = self._consumer.highwater(topic_partition(partition))
        return end

    def position(self, partition: Partition) -> int | None:
        at: int | None = self._consumer.position(topic_partition(partition), timeout_ms=0)
        return at

    def close(self) -> None:
        """Nothing: the consumer is closed by whom it belongs to."""


def fetcher_for(settings: KafkaSettings, consumer: Any) -> RecordFetcher:
    """Who fetches, by `kafka.reader`; `consumer` is kafka-python's. Raises ConfigError or KafkaError, as that does."""
    if settings.reader == "kafka-python":
        return KafkaPythonFetcher(consumer)
    check_reader(settings)
    from streamdetect.sources.confluent import ConfluentFetcher  # noqa: PLC0415 - an optional package

    return ConfluentFetcher(settings)


def check_reader(settings: KafkaSettings) -> None:
    """ConfigError if the package that `kafka.reader` needs is not there."""
    if settings.reader != "confluent":
        return
    try:
        import confluent_kafka  # noqa: F401, PLC0415
    except ImportError as error:
        raise ConfigError(
            f"kafka.reader is confluent, but confluent-kafka cannot be loaded ({error}). Install it with "
            "pip install 'streamdetect[confluent]', or set kafka.reader to kafka-python."
        ) from None


def topic_partition(partition: Partition) -> Any:
    """As kafka-python names it."""
    return TopicPartition(partition.topic, partition.number)


def named(where: Any) -> Partition:
    """As we name it."""
    return Partition(where.topic, where.partition)


def _batch(partition: Partition, records: Sequence[Any]) -> Batch:
    """Columns, built in one go each: this runs for every record."""
    timestamps: list[int | None] = [record.timestamp for record in records]
    if any(at is None or at < 0 for at in timestamps):
        timestamps = [at if at is not None and at >= 0 else None for at in timestamps]
    keys = [record.key for record in records]
    headers = [record.headers for record in records]
    return Batch(
        partition,
        [record.value for record in records],
        [record.offset for record in records],
        timestamps,
        keys if any(key is not None for key in keys) else None,
        [plain_headers(some) for some in headers] if any(headers) else None,
    )


def plain_headers(headers: Sequence[tuple[str, bytes | None]]) -> tuple[tuple[str, bytes], ...]:
    """A header may have no value at all; the client cannot write that again, so it is kept as an empty
    one.
    """
    return tuple((name, value or b"") for name, value in headers)
