"""Writes synthetic events to a topic: plain records with a key and a timestamp, without transactions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

from kafka import KafkaProducer  # type: ignore[import-untyped]  # it has no types at all
from kafka import errors as client_errors

from streamdetect.broker import Catalogue, connect
from streamdetect.errors import SinkError
from streamdetect.sinks.broker_errors import hint
from streamdetect.sinks.kafka import abandon, require_topics

if TYPE_CHECKING:
    from types import TracebackType

    from streamdetect.config import KafkaSettings

CONFIRM_SECONDS = 60.0
"""Timeout of the broker's confirmation of a record."""

_MAX_IN_FLIGHT = 20_000
"""Records in flight at most. Bounds the memory and the delay until the first refusal is raised."""


class Publisher:
    """Use it as a context manager: when the block ends without an error, every record is in Kafka."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        """Raises KafkaError if the broker cannot be reached, SinkError if the topic does not exist."""
        self._topic = topic
        self._in_flight: deque[Any] = deque()
        connection = connect(
            KafkaProducer, settings, acks="all", enable_idempotence=True, linger_ms=20, compression_type="lz4"
        )
        self._producer = connection.client
        try:
            require_topics(Catalogue(connection, settings), [topic])
        except BaseException:
            abandon(self._producer)
            raise

    def send_all(self, records: Iterable[tuple[str, int, bytes]]) -> Iterator[None]:
        """Send each (key, time in ms, value), and yield after each. A SinkError may be about an earlier record."""
        for key, time_ms, value in records:
            self._send(key.encode(), time_ms, value)
            yield

    def _send(self, key: bytes, time_ms: int, value: bytes) -> None:
        try:
            self._in_flight.append(
                self._producer.send(self._topic, value=value, key=key, timestamp_ms=time_ms)
            )
        except client_errors.KafkaError as error:
            raise self._sink_error(error) from error
        if len(self._in_flight) > _MAX_IN_FLIGHT:
            self._confirm(self._in_flight.popleft())

    def _confirm(self, future: Any) -> None:
        try:
            future.get(timeout=CONFIRM_SECONDS)
        except client_errors.KafkaError as error:
            raise self._sink_error(error) from error

    def _sink_error(self, error: Exception) -> SinkError:
        advice = hint(error) or "See the brokers' log; the records sent before stay in the topic."
        return SinkError(
            f"Kafka did not accept a record for {self._topic}: {str(error).rstrip('.')}. {advice}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the records in flight, unless the block failed."""
        try:
            if error is None:
                while self._in_flight:
                    self._confirm(self._in_flight.popleft())
        finally:
            abandon(self._producer)
