"""Alerts and dead letters as Kafka records (interface.md, "Alert" and "Dead letter")."""

from __future__ import annotations

from typing import NamedTuple

from streamdetect.model import Alert, DeadLetter, Record


class KafkaRecord(NamedTuple):
    """A record to be written. Without a timestamp it gets the time of writing."""

    topic: str
    value: bytes | None
    key: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp_ms: int | None = None


def alert_record(topic: str, alert: Alert) -> KafkaRecord:
    """Key the episode, so that its alerts stay in order; timestamp the tick."""
    return KafkaRecord(
        topic,
        value=alert.body,
        key=alert.episode_id.encode(),
        headers=[("streamdetect-action", alert.action.encode())],
        timestamp_ms=alert.tick_ms,
    )


def dead_letter_record(topic: str, dead_letter: DeadLetter) -> KafkaRecord:
    """Value, key and headers as they came, and headers that say whence and why.

    The Kafka timestamp is now, not the record's: else retention could delete a letter before anybody read it.
    """
    record = dead_letter.record
    return KafkaRecord(topic, record.value, record.key, [*record.headers, *_origin(record, dead_letter)])


def _origin(record: Record, dead_letter: DeadLetter) -> list[tuple[str, bytes]]:
    told = {
        "streamdetect.origin-topic": record.partition.topic,
        "streamdetect.origin-partition": str(record.partition.number),
        "streamdetect.origin-offset": str(record.offset),
        "streamdetect.origin-timestamp": None if record.timestamp_ms is None else str(record.timestamp_ms),
        "streamdetect.reason": dead_letter.reason,
        "streamdetect.detail": dead_letter.detail,
    }
    # What is told of a record may hold half a character, which JSON allows and UTF-8 does not.
    return [
        (name, text.encode("utf-8", "backslashreplace")) for name, text in told.items() if text is not None
    ]
