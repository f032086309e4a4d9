"""Outputs that do not go to Kafka: files and standard output, which take no part in a transaction."""

from __future__ import annotations

from typing import Any

from streamdetect.sinks import AlertSink, DeadLetterSink, Outputs, Rewindable

Marks = dict[str, dict[str, Any]]


class LocalSinks:
    """The sinks for alerts and dead letters that are no topic; None for what goes to Kafka.

    A sink that is `Rewindable` gets every output exactly once. One that is not (standard output) may get those of one
    checkpoint again after a crash.
    """

    def __init__(self, alerts: AlertSink | None = None, letters: DeadLetterSink | None = None) -> None:
        self._alerts, self._letters = alerts, letters
        sinks: dict[str, Any] = {"alerts": alerts, "letters": letters}
        self._rewindable: dict[str, Rewindable] = {
            name: sink for name, sink in sinks.items() if hasattr(sink, "cut_back")
        }

    def write(self, outputs: Outputs) -> None:
        """Return once they are safe. Raises SinkError."""
        if self._alerts is not None and outputs.alerts:
            self._alerts.write(outputs.alerts)
            self._alerts.flush()
        if self._letters is not None and outputs.letters:
            self._letters.write(outputs.letters)
            self._letters.flush()

    def marks(self) -> Marks:
        """How far the files have come."""
        return {name: sink.mark() for name, sink in self._rewindable.items()}

    def cut_back(self, marks: Marks) -> None:
        """Take away what was written behind the marks. Raises SinkError."""
        for name, sink in self._rewindable.items():
            if name in marks:
                sink.cut_back(marks[name])
