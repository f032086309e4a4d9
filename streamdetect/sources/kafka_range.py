"""The bounded Kafka source: records between two points, which are fixed when it starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from streamdetect.model import Batch, Partition
from streamdetect.sources.consumer import PartitionConsumer
from streamdetect.sources.fetcher import BEGINNING
from streamdetect.sources.followed_topics import FollowedTopics
from streamdetect.sources.offsets import LogPoint

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings


class KafkaRange:
    """Bounded: from one point to another. Its ends are fixed when it starts.

    A time means the first record at or after it, by the records' Kafka timestamps; `latest` is the end of the committed
    records now; with offsets each partition ends before its offset, and one without an offset ends at once. A
    partition has ended when its position reaches the end, even if that offset holds no record.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Sequence[str] = (),
        start: LogPoint = "earliest",
        end: LogPoint | Mapping[Partition, int] = "latest",
        exclude: Collection[str] = (),
    ) -> None:
        self._consumer = PartitionConsumer(settings)
        try:
            self._followed = FollowedTopics(
                self._consumer.catalogue, settings, topics or settings.topics, exclude
            )
            partitions = self._followed.partitions
            self._ends = self._end_offsets(partitions, end)
            starts = self._consumer.offsets.at(partitions, start)
            self._ended = frozenset(one for one in partitions if starts[one] >= self._ends[one])
            self._starts = {one: min(starts[one], self._ends[one]) for one in partitions}
            self._read_to = dict(self._starts)
            # The beginning is resolved by the client: retention may delete the record before it is read.
            self._consumer.add(dict.fromkeys(partitions, BEGINNING) if start == "earliest" else dict(starts))
        except BaseException:
            self._consumer.close()
            raise

    def _end_offsets(
        self, partitions: Collection[Partition], end: LogPoint | Mapping[Partition, int]
    ) -> dict[Partition, int]:
        if not isinstance(end, Mapping):
            return self._consumer.offsets.at(partitions, end)
        # Not beyond the end of a log that has become shorter.
        latest = self._consumer.offsets.at(partitions, "latest")
        return {partition: min(end.get(partition, 0), latest[partition]) for partition in partitions}

    def partitions(self) -> tuple[Partition, ...]:
        return self._followed.partitions

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        self._followed.new_partitions(self._consumer.catalogue)
        if len(self._ended) == len(self._ends):
            return []
        self._consumer.hold({*hold, *self._ended})
        batches = [self._truncate(batch) for batch in self._consumer.poll(timeout_ms)]
        # A batch that begins after the end is empty now.
        self._read_to |= {batch.partition: batch.offsets[-1] + 1 for batch in batches if len(batch)}
        self._ended |= self._newly_ended(batches)
        return [batch for batch in batches if len(batch)]

    def _newly_ended(self, batches: Sequence[Batch]) -> frozenset[Partition]:
        """Partitions whose position has reached the end.

        The last offsets may be transaction markers or compacted away, so only the client's position reaches the end.
        Reading it is slow with many partitions, so it is read only after a poll without records.
        """
        if batches:
            positions = {batch.partition: self._consumer.next_offset(batch.partition) for batch in batches}
        else:
            positions = {one: self._consumer.position(one) for one in self._ends.keys() - self._ended}
        return frozenset(
            one for one, position in positions.items() if position is not None and position >= self._ends[one]
        )

    def _truncate(self, batch: Batch) -> Batch:
        """The batch without records at or after the end."""
        end = self._ends[batch.partition]
        if batch.offsets[-1] < end:
            return batch
        count = sum(offset < end for offset in batch.offsets)
        return Batch(
            batch.partition,
            batch.values[:count],
            batch.offsets[:count],
            batch.timestamps_ms and batch.timestamps_ms[:count],
            batch.keys and batch.keys[:count],
            batch.headers and batch.headers[:count],
        )

    def at_end(self) -> frozenset[Partition]:
        return self._ended

    def progress(self) -> tuple[int, int]:
        """Offsets read and offsets in total."""
        ends, starts = self._ends, self._starts
        read_to = [
            ends[one] if one in self._ended else min(offset, ends[one])
            for one, offset in self._read_to.items()
        ]
        return sum(read_to) - sum(starts.values()), sum(ends.values()) - sum(starts.values())

    def close(self) -> None:
        self._consumer.close()
