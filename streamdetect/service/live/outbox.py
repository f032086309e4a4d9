"""Outputs that are decided and not yet published: collected for the next cut, and as JSON rows for a checkpoint."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

from streamdetect.checkpoint import Row
from streamdetect.model import Alert, DeadLetter, Partition, Record
from streamdetect.sinks import Outputs
from streamdetect.sinks.files import base64_text


class Outbox:
    """Collects alerts and dead letters until `drain`. `size_bytes` is the approximate size of what it holds."""

    def __init__(self) -> None:
        self._alerts: list[Alert] = []
        self._dead_letters: list[DeadLetter] = []
        self.size_bytes = 0

    def write_alerts(self, alerts: Sequence[Alert]) -> None:
        self._alerts += alerts
        self.size_bytes += sum(len(alert.body) for alert in alerts)

    def write_dead_letters(self, dead_letters: Sequence[DeadLetter]) -> None:
        self._dead_letters += dead_letters
        self.size_bytes += sum(len(dead_letter.record.value or b"") + 500 for dead_letter in dead_letters)

    @property
    def alerts(self) -> int:
        """The number of alerts held."""
        return len(self._alerts)

    def drain(self) -> Outputs:
        """Everything collected since the last call."""
        outputs = Outputs(self._alerts, self._dead_letters)
        self._alerts, self._dead_letters, self.size_bytes = [], [], 0
        return outputs


def output_rows(outputs: Outputs) -> list[Row]:
    """The rows that `outputs_of` turns back into the same outputs."""
    return [*map(_alert_row, outputs.alerts), *map(_dead_letter_row, outputs.dead_letters)]


def outputs_of(rows: Iterable[Row]) -> Outputs:
    """Raises KeyError or ValueError for rows that are no outputs."""
    alerts, dead_letters = [], []
    for row in rows:
        if row["kind"] == "alert":
            alerts.append(_alert(row))
        elif row["kind"] == "letter":
            dead_letters.append(_dead_letter(row))
        else:
            raise ValueError(f"unknown kind of output: {row['kind']!r}")
    return Outputs(alerts, dead_letters)


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


def _dead_letter_row(dead_letter: DeadLetter) -> Row:
    record = dead_letter.record
    return {
        "kind": "letter",
        "topic": record.partition.topic,
        "number": record.partition.number,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "key": base64_text(record.key),
        "value": base64_text(record.value),
        "headers": [[name, base64_text(value)] for name, value in record.headers],
        "reason": dead_letter.reason,
        "detail": dead_letter.detail,
    }


def _dead_letter(row: Row) -> DeadLetter:
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
