"""Invented events into a topic: plain records with a key and a time, without the ledger's transactions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

from kafka import KafkaProducer  # type: ignore[import-untyped]  # it has no types at all
from kafka import errors as client_errors

from streamdetect.broker import Catalogue, connect, similar_names
from streamdetect.errors import SinkError
from streamdetect.sinks.broker_errors import hint
from streamdetect.sinks.kafka import abandon

if TYPE_CHECKING:
    from types import TracebackType

    from streamdetect.config import KafkaSettings

CONFIRM_SECONDS = 60.0
"""How long to wait for the broker to take a record."""

_ON_THE_WAY = 20_000
"""Records that may wait for their confirmation: the first refusal is told soon, and memory is bounded."""


class Publisher:
    """`with Publisher(settings, topic) as publisher:`; when the block ends without error, everything is in Kafka."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        """Raises KafkaError if the broker cannot be reached, SinkError if it has no such topic."""
        self._topic = topic
        self._sent: deque[Any] = deque()
        connection = connect(
            KafkaProducer, settings, acks="all", enable_idempotence=True, linger_ms=20, compression_type="lz4"
        )
        self._producer = connection.client
        try:
            self._require(Catalogue(connection, settings))
        except BaseException:
            abandon(self._producer)
            raise

    def _require(self, catalogue: Catalogue) -> None:
        known = catalogue.all_topics()
        if self._topic not in known:  # the first answer may be to an older question
            known = catalogue.all_topics()
        if self._topic not in known:
            raise SinkError(
                f"Kafka has no topic {self._topic} to write to{similar_names(self._topic, known)}. Create it, "
                "correct its name, or grant our user DESCRIBE on it."
            )

    def send_all(self, records: Iterable[tuple[str, int, bytes]]) -> Iterator[None]:
        """Hand on each (key, time in ms, value), and pause after each. A SinkError may be about an earlier one."""
        for key, time_ms, value in records:
            self._send(key.encode(), time_ms, value)
            yield

    def _send(self, key: bytes, time_ms: int, value: bytes) -> None:
        try:
            self._sent.append(self._producer.send(self._topic, value=value, key=key, timestamp_ms=time_ms))
        except client_errors.KafkaError as error:
            raise self._refused(error) from error
        if len(self._sent) > _ON_THE_WAY:
            self._confirm(self._sent.popleft())

    def _confirm(self, future: Any) -> None:
        try:
            future.get(timeout=CONFIRM_SECONDS)
        except client_errors.KafkaError as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> SinkError:
        advice = hint(error) or "See the brokers' log; what was sent before stays in the topic."
        return SinkError(f"Kafka did not take a record for {self._topic}: {str(error).rstrip('.')}. {advice}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is on the way, unless something failed already."""
        try:
            if error is None:
                while self._sent:
                    self._confirm(self._sent.popleft())
        finally:
            abandon(self._producer)  # nothing of it is wanted any more
