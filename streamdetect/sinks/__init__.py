"""Where results go: alerts, and the records that were refused.

Belongs here: writing to Kafka, files and stdout, and knowing that it was written. Does not belong here: what
an alert says, or whether a record deserves to be refused. A sink raises SinkError and nothing else once it is
open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from streamdetect.model import Alert, DeadLetter

__all__ = ["AlertSink", "DeadLetterSink"]


class AlertSink(Protocol):
    """Takes alerts. What `flush` has returned for is safe; what was written since may be lost in a crash."""

    def write(self, alerts: Sequence[Alert]) -> None:
        """Take these alerts, in this order."""
        ...

    def flush(self) -> None:
        """Return once everything written is where it belongs, else raise SinkError."""
        ...

    def close(self) -> None:
        """Flush and give back what is held open; a second call does nothing."""
        ...


class DeadLetterSink(Protocol):
    """Takes records that were refused, untouched. The same promises as AlertSink."""

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Take these dead letters, in this order."""
        ...

    def flush(self) -> None:
        """Return once everything written is where it belongs, else raise SinkError."""
        ...

    def close(self) -> None:
        """Flush and give back what is held open; a second call does nothing."""
        ...
