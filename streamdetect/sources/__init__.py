"""Where records come from: bytes of one partition, in order.

Belongs here: reading Kafka and files, decompressing, and saying where a partition ends. Does not belong here:
looking into a record, or any decision; a source does not know what time it is for the events that it carries.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from streamdetect.model import Batch, Partition

__all__ = ["Bounds", "LiveSource", "Source"]


class Bounds(NamedTuple):
    """Offsets of the first record that there is, and after the last one that may be read."""

    first: int
    end: int


class Source(Protocol):
    """What the program reads from. One thread calls it, and calls nothing after `close`."""

    def partitions(self) -> tuple[Partition, ...]:
        """All partitions that are known now; there may be more later, never fewer."""
        ...

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        """The next records; nothing of the partitions in `hold`. Empty when `timeout_ms` passed without
        any.
        """
        ...

    def at_end(self) -> frozenset[Partition]:
        """Bounded: partitions read to their end. Live: read up to the broker's end right now."""
        ...

    def close(self) -> None:
        """Give back what is held open."""
        ...


class LiveSource(Source, Protocol):
    """A source without an end, that knows where it is. `partitions()` answers at once, records come after `begin`."""

    def begin(
        self,
        positions: Mapping[Partition, int | None] | None = None,
        topic_ids: Mapping[str, str] | None = None,
    ) -> None:
        """Go on at these positions (None: at the beginning), without any where the settings say.

        `topic_ids` are those of the topics that the positions were in. Raises LostOffsetsError if they are gone.
        """
        ...

    def positions(self) -> dict[Partition, int | None]:
        """Where each partition goes on: after all that `poll` has given."""
        ...

    def topic_ids(self) -> dict[str, str]:
        """What tells a topic from another one of the same name."""
        ...

    def lags(self) -> dict[Partition, int]:
        """Records between where each partition goes on and the end last heard of, without asking anybody."""
        ...

    def bounds(self) -> dict[Partition, Bounds]:
        """What each partition holds now, as far as there is an answer. Another thread may ask."""
        ...
