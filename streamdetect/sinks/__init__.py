"""Where results go: alerts, and the records that were refused.

Belongs here: writing to Kafka, files and stdout, and knowing that it was written. Does not belong here: what
an alert says, or whether a record deserves to be refused. A sink raises SinkError and nothing else once it is
open.

`ledger` is the contract of results that become final in one step with the positions they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from streamdetect.model import Alert, DeadLetter

__all__ = ["AlertSink", "DeadLetterSink", "Outputs", "Rewindable"]


@dataclass(frozen=True, slots=True)
class Outputs:
    """Results in the order in which they were decided."""

    alerts: Sequence[Alert] = ()
    letters: Sequence[DeadLetter] = ()

    def __len__(self) -> int:
        return len(self.alerts) + len(self.letters)


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


class Rewindable(Protocol):
    """A sink that can say how far it has come, and can be cut back to there."""

    def mark(self) -> dict[str, Any]:
        """Where it is now, as plain JSON data."""
        ...

    def cut_back(self, mark: dict[str, Any]) -> None:
        """Take away what was written behind an earlier mark. SinkError if that cannot be done."""
        ...
