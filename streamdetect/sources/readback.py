"""What was sent already, read back from where it was sent to: after a checkpoint was lost, that is who knows.

Only what is committed counts. A record that is nothing of ours is handed on as it is, or left out; nothing here
judges it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from streamdetect.errors import SinkError
from streamdetect.model import Record
from streamdetect.sources.kafka import KafkaRange

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

_POLL_MS = 500


def alerts_in_topic(settings: KafkaSettings, topic: str, since_ms: int) -> Iterator[bytes]:
    """Bodies of the alerts of a tick or later (an alert's Kafka timestamp is its tick), in order for each episode."""
    return (record.value for record in _records(settings, topic, since_ms) if record.value is not None)


def letters_in_topic(settings: KafkaSettings, topic: str, since_ms: int) -> set[tuple[str, int, int]]:
    """Topic, partition and offset that the dead letters came from which were written at a time or later."""
    found = set()
    for record in _records(settings, topic, since_ms):
        told = {name.removeprefix("streamdetect.origin-"): value for name, value in record.headers}
        origin = _origin(told.get("topic"), told.get("partition"), told.get("offset"))
        if origin is not None:
            found.add(origin)
    return found


def alerts_in_file(path: str | None, since_ms: int) -> Iterator[bytes]:
    """All alerts of an alert file; none of standard output, which cannot be read back."""
    del since_ms
    return _lines(path)


def letters_in_file(path: str | None, since_ms: int) -> set[tuple[str, int, int]]:
    """As `letters_in_topic`, for the whole file."""
    del since_ms
    found = set()
    for line in _lines(path):
        try:
            told = json.loads(line)
            parts = [told[f"streamdetect.origin-{name}"] for name in ("topic", "partition", "offset")]
        except (ValueError, KeyError, TypeError):
            continue
        origin = _origin(*(str(part).encode() for part in parts))
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
