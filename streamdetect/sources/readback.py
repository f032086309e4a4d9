"""Reads already published alerts and dead letters back from their sinks.

After a lost checkpoint the sinks are the only record of what was sent. Only committed records count. A record that
this program did not write is passed on unchanged or skipped; nothing here checks it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from streamdetect.errors import SinkError
from streamdetect.model import Record
from streamdetect.sources.kafka_range import KafkaRange

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

_POLL_MS = 500


def alerts_in_topic(settings: KafkaSettings, topic: str, since_ms: int) -> Iterator[bytes]:
    """Bodies of the alerts of this tick and later (an alert's Kafka timestamp is its tick), in order per episode."""
    return (record.value for record in _records(settings, topic, since_ms) if record.value is not None)


def dead_letters_in_topic(settings: KafkaSettings, topic: str, since_ms: int) -> set[tuple[str, int, int]]:
    """Topic, partition and offset of the records whose dead letters were written at this time or later."""
    found = set()
    for record in _records(settings, topic, since_ms):
        headers = {name.removeprefix("streamdetect.origin-"): value for name, value in record.headers}
        origin = _origin(headers.get("topic"), headers.get("partition"), headers.get("offset"))
        if origin is not None:
            found.add(origin)
    return found


def alerts_in_file(path: str | None, since_ms: int) -> Iterator[bytes]:
    """All alerts of an alert file; none of standard output, which cannot be read back."""
    del since_ms
    return _lines(path)


def dead_letters_in_file(path: str | None, since_ms: int) -> set[tuple[str, int, int]]:
    """As `dead_letters_in_topic`, for the whole file."""
    del since_ms
    found = set()
    for line in _lines(path):
        try:
            row = json.loads(line)
            values = [row[f"streamdetect.origin-{name}"] for name in ("topic", "partition", "offset")]
        except (ValueError, KeyError, TypeError):
            continue
        origin = _origin(*(str(value).encode() for value in values))
        if origin is not None:
            found.add(origin)
    return found


def _records(settings: KafkaSettings, topic: str, since_ms: int) -> Iterator[Record]:
    with closing(KafkaRange(settings, [topic], start=max(since_ms, 0))) as source:
        while len(source.at_end()) < len(source.partitions()):
            for batch in source.poll((), _POLL_MS):
                for index in range(len(batch)):
                    yield batch.record(index)


def _lines(path: str | None) -> Iterator[bytes]:
    if path is None or not Path(path).is_file():
        return
    try:
        with Path(path).open("rb") as stream:
            yield from (line.rstrip(b"\n") for line in stream)
    except OSError as error:
        raise SinkError(f"{path} cannot be read back ({error.strerror}). Make it readable.") from None


def _origin(topic: bytes | None, number: bytes | None, offset: bytes | None) -> tuple[str, int, int] | None:
    if topic is None or number is None or offset is None or not (number.isdigit() and offset.isdigit()):
        return None
    return topic.decode(errors="replace"), int(number), int(offset)
