"""Outputs that do not go to Kafka: files and standard output, which are not part of the transaction."""

from __future__ import annotations

from typing import Any

from streamdetect.sinks import AlertSink, DeadLetterSink, Outputs, Rewindable

FileOffsets = dict[str, dict[str, Any]]


class LocalSinks:
    """The sinks of alerts and dead letters that do not go to a topic; None for those that go to Kafka.

    A `Rewindable` sink gets each output exactly once. Any other (standard output) may get the outputs of one checkpoint
    again after a crash.
    """

    def __init__(self, alerts: AlertSink | None = None, dead_letters: DeadLetterSink | None = None) -> None:
        self._alerts, self._dead_letters = alerts, dead_letters
        sinks: dict[str, Any] = {"alerts": alerts, "letters": dead_letters}  # names in checkpoints
        self._rewindable: dict[str, Rewindable] = {
            name: sink for name, sink in sinks.items() if hasattr(sink, "truncate")
        }

    def write(self, outputs: Outputs) -> None:
        """Write and flush. Raises SinkError."""
        if self._alerts is not None and outputs.alerts:
            self._alerts.write(outputs.alerts)
            self._alerts.flush()
        if self._dead_letters is not None and outputs.dead_letters:
            self._dead_letters.write(outputs.dead_letters)
            self._dead_letters.flush()

    def file_offsets(self) -> FileOffsets:
        """The current end of each file."""
        return {name: sink.offset() for name, sink in self._rewindable.items()}

    def truncate(self, offsets: FileOffsets) -> None:
        """Remove what was written behind these offsets. Raises SinkError."""
        for name, sink in self._rewindable.items():
            if name in offsets:
                sink.truncate(offsets[name])
