"""What a run has decided and not published yet: collected, and as plain JSON data for a checkpoint."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any

from streamdetect.model import Alert, DeadLetter, Partition, Record
from streamdetect.sinks import Outputs
from streamdetect.sinks.files import base64_text

Row = dict[str, Any]


class Outbox:
    """Alerts and dead letters of a pipeline until somebody takes them. `size_bytes` is about what they hold."""

    def __init__(self) -> None:
        self._alerts: list[Alert] = []
        self._letters: list[DeadLetter] = []
        self.size_bytes = 0

    def write_alerts(self, alerts: Sequence[Alert]) -> None:
        self._alerts += alerts
        self.size_bytes += sum(len(alert.body) for alert in alerts)

    def write_letters(self, letters: Sequence[DeadLetter]) -> None:
        self._letters += letters
        self.size_bytes += sum(len(letter.record.value or b"") + 500 for letter in letters)

    @property
    def alerts(self) -> int:
        """Alerts that wait."""
        return len(self._alerts)

    def take(self) -> Outputs:
        """All that was collected since the last call."""
        outputs = Outputs(self._alerts, self._letters)
        self._alerts, self._letters, self.size_bytes = [], [], 0
        return outputs


def output_rows(outputs: Outputs) -> list[Row]:
    """Rows that `outputs_of` makes the same outputs from."""
    return [*map(_alert_row, outputs.alerts), *map(_letter_row, outputs.letters)]


def outputs_of(rows: Iterable[Row]) -> Outputs:
    """Raises KeyError or ValueError for rows that are no outputs."""
    alerts, letters = [], []
    for row in rows:
        if row["kind"] == "alert":
            alerts.append(_alert(row))
        elif row["kind"] == "letter":
            letters.append(_letter(row))
        else:
            raise ValueError(f"unknown kind of output: {row['kind']!r}")
    return Outputs(alerts, letters)


def _alert_row(alert: Alert) -> Row:
    return {
        "kind": "alert",
        "id": alert.id,
        "episode": alert.episode_id,
        "rule": alert.rule_id,
        "action": alert.action,
        "tick_ms": alert.tick_ms,
        "body": alert.body.decode(),
    }


def _alert(row: Row) -> Alert:
    return Alert(row["id"], row["episode"], row["rule"], row["action"], row["tick_ms"], row["body"].encode())


def _letter_row(letter: DeadLetter) -> Row:
    record = letter.record
    return {
        "kind": "letter",
        "topic": record.partition.topic,
        "number": record.partition.number,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "key": base64_text(record.key),
        "value": base64_text(record.value),
        "headers": [[name, base64_text(value)] for name, value in record.headers],
        "reason": letter.reason,
        "detail": letter.detail,
    }


def _letter(row: Row) -> DeadLetter:
    record = Record(
        Partition(row["topic"], row["number"]),
        row["offset"],
        row["timestamp_ms"],
        _bytes(row["key"]),
        _bytes(row["value"]),
        tuple((name, _bytes(value) or b"") for name, value in row["headers"]),
    )
    return DeadLetter(record, row["reason"], row["detail"])


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
