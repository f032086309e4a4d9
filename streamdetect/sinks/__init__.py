"""Where outputs go: alerts and dead letters.

Belongs here: writing to Kafka, files and standard output, and confirming that the write is durable. Does not belong
here: the content of an alert, or the decision to refuse a record. Once it is open, a sink raises only SinkError.

`transactional` is the contract of a sink that publishes outputs and commits positions atomically.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from streamdetect.model import Alert, DeadLetter

__all__ = ["AlertSink", "DeadLetterSink", "Outputs", "Rewindable"]


@dataclass(frozen=True, slots=True)
class Outputs:
    """Alerts and dead letters, each in the order of their creation."""

    alerts: Sequence[Alert] = ()
    dead_letters: Sequence[DeadLetter] = ()

    def __len__(self) -> int:
        return len(self.alerts) + len(self.dead_letters)


class AlertSink(Protocol):
    """Writes alerts. After `flush` returns they are durable; alerts written since may be lost in a crash."""

    def write(self, alerts: Sequence[Alert]) -> None:
        """Write these alerts, in this order."""
        ...

    def flush(self) -> None:
        """Return when everything written is durable. Raises SinkError when that fails."""
        ...

    def close(self) -> None:
        """Flush and release resources. Idempotent."""
        ...


class DeadLetterSink(Protocol):
    """Writes refused records, unchanged. Gives the same guarantees as AlertSink."""

    def write(self, dead_letters: Sequence[DeadLetter]) -> None:
        """Write these dead letters, in this order."""
        ...

    def flush(self) -> None:
        """Return when everything written is durable. Raises SinkError when that fails."""
        ...

    def close(self) -> None:
        """Flush and release resources. Idempotent."""
        ...


class Rewindable(Protocol):
    """A sink that reports the end of its output and can be truncated to it later."""

    def offset(self) -> dict[str, Any]:
        """The current end of the output, as plain JSON data."""
        ...

    def truncate(self, offset: dict[str, Any]) -> None:
        """Remove what was written after an earlier offset. Raises SinkError when that is impossible."""
        ...
