"""Where records come from: bytes of one partition, in order.

Belongs here: reading Kafka and files, decompression, and detecting the end of a partition. Does not belong here:
parsing a record, any decision, and event time: a source does not know the times of the events in its records.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from streamdetect.model import Batch, Partition

__all__ = ["Bounds", "LiveSource", "Source"]


class Bounds(NamedTuple):
    """Offset of the first record of a partition, and the offset after the last one that may be read."""

    first: int
    end: int


class Source(Protocol):
    """What the program reads from. One thread calls it, and makes no call after `close`."""

    def partitions(self) -> tuple[Partition, ...]:
        """All partitions known now. More may be added later, none is removed."""
        ...

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        """The next records, none of the partitions in `hold`. Empty when none arrived within `timeout_ms`."""
        ...

    def at_end(self) -> frozenset[Partition]:
        """Bounded: partitions read to their end. Live: partitions read up to the broker's current end."""
        ...

    def close(self) -> None:
        """Release connections and files."""
        ...


class LiveSource(Source, Protocol):
    """A source without an end that tracks its positions. `partitions()` works at once, records come after `begin`."""

    def begin(
        self,
        positions: Mapping[Partition, int | None] | None = None,
        topic_ids: Mapping[str, str] | None = None,
    ) -> None:
        """Start at these positions (None: at the beginning); without positions at the start that the settings name.

        `topic_ids` are the ids of the topics at the time of the positions. Raises LostOffsetsError if the records to
        continue from no longer exist.
        """
        ...

    def positions(self) -> dict[Partition, int | None]:
        """The offset at which each partition continues, after all records that `poll` has returned."""
        ...

    def topic_ids(self) -> dict[str, str]:
        """The id of each topic. It differs between topics that had the same name one after the other."""
        ...

    def lags(self) -> dict[Partition, int]:
        """Records between the position and the last known end of each partition. Sends no request."""
        ...

    def bounds(self) -> dict[Partition, Bounds]:
        """What each partition holds now; without partitions whose broker does not answer. Any thread may call it."""
        ...
