"""`RecordFetcher` by kafka-python: `kafka.reader: kafka-python`, the default."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from streamdetect.model import Batch, Partition
from streamdetect.sources.fetcher import BEGINNING, partition_of, plain_headers, topic_partition


class KafkaPythonFetcher:
    """`RecordFetcher` over a kafka-python consumer, which may answer offset queries at the same time."""

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
        return [_batch(partition_of(key), records) for key, records in fetched.items() if records]

    def highwater(self, partition: Partition) -> int | None:
        end: int | None = self._consumer.highwater(topic_partition(partition))
        return end

    def position(self, partition: Partition) -> int | None:
        offset: int | None = self._consumer.position(topic_partition(partition), timeout_ms=0)
        return offset

    def close(self) -> None:
        """Does nothing: the owner of the consumer closes it."""


def _batch(partition: Partition, records: Sequence[Any]) -> Batch:
    """Build each column in one pass: this runs for every record."""
    timestamps: list[int | None] = [record.timestamp for record in records]
    if any(time_ms is None or time_ms < 0 for time_ms in timestamps):
        timestamps = [time_ms if time_ms is not None and time_ms >= 0 else None for time_ms in timestamps]
    keys = [record.key for record in records]
    headers = [record.headers for record in records]
    return Batch(
        partition,
        [record.value for record in records],
        [record.offset for record in records],
        timestamps,
        keys if any(key is not None for key in keys) else None,
        [plain_headers(pairs) for pairs in headers] if any(headers) else None,
    )
