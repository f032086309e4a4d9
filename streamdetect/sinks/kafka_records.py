"""Alerts and dead letters as Kafka records (docs/reference.md, "Alert" and "Dead letter")."""

from __future__ import annotations

from typing import NamedTuple

from streamdetect.model import Alert, DeadLetter, Record


class KafkaRecord(NamedTuple):
    """A record to write. Without a timestamp, Kafka assigns the time of writing."""

    topic: str
    value: bytes | None
    key: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp_ms: int | None = None


def alert_record(topic: str, alert: Alert) -> KafkaRecord:
    """The key is the episode, which keeps its alerts in order. The timestamp is the tick."""
    return KafkaRecord(
        topic,
        value=alert.body,
        key=alert.episode_id.encode(),
        headers=[("streamdetect-action", alert.action.encode())],
        timestamp_ms=alert.tick_ms,
    )


def dead_letter_record(topic: str, dead_letter: DeadLetter) -> KafkaRecord:
    """The record's value, key and headers, unchanged, and added headers with its origin and the reason.

    The timestamp is the time of writing, not the record's: otherwise retention could delete the dead letter at once.
    """
    record = dead_letter.record
    return KafkaRecord(topic, record.value, record.key, [*record.headers, *_origin(record, dead_letter)])


def _origin(record: Record, dead_letter: DeadLetter) -> list[tuple[str, bytes]]:
    added = {
        "streamdetect.origin-topic": record.partition.topic,
        "streamdetect.origin-partition": str(record.partition.number),
        "streamdetect.origin-offset": str(record.offset),
        "streamdetect.origin-timestamp": None if record.timestamp_ms is None else str(record.timestamp_ms),
        "streamdetect.reason": dead_letter.reason,
        "streamdetect.detail": dead_letter.detail,
    }
    # The detail may contain a lone surrogate, which JSON allows and UTF-8 does not.
    return [
        (name, text.encode("utf-8", "backslashreplace")) for name, text in added.items() if text is not None
    ]
