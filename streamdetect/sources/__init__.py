"""Where records come from: bytes of one partition, in order.

Belongs here: reading Kafka and files, decompressing, and saying where a partition ends. Does not belong here:
looking into a record, or any decision; a source does not know what time it is for the events that it carries.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from streamdetect.model import Batch, Partition

__all__ = ["Source"]


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
