"""Kafka as a sink. Both sinks can share one `Outbox`, so that what they write can become one transaction."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kafka import KafkaProducer  # type: ignore[import-untyped]  # it has no types at all
from kafka import errors as client_errors
from kafka.serializer import Serializer  # type: ignore[import-untyped]

from streamdetect.broker import Catalogue, connect, nearest
from streamdetect.broker.quiet import client_unheard
from streamdetect.errors import SinkError
from streamdetect.model import Alert, DeadLetter, Record

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

log = logging.getLogger(__name__)

PRODUCER_SETTINGS: Mapping[str, Any] = {
    "acks": "all",
    "enable_idempotence": True,
    # How long a record may wait for the broker, a restart included, before it counts as failed.
    "delivery_timeout_ms": 60_000,
    "max_block_ms": 30_000,
    # A dead letter may be as large as the source topic allows; what the target takes is for its broker to
    # say.
    "max_request_size": 128 * 1024 * 1024,
}
FLUSH_GRACE_SECONDS = 5.0
"""What a flush waits beyond the delivery time-out, which should end every wait before."""

MAX_UNCHECKED = 10_000
"""Records that may be on their way before `send` looks at those that have arrived."""

_NULL = object()


class _Values(Serializer):  # type: ignore[misc]  # the base class has no types
    """Lets a null value through: the client refuses a record with neither key nor value, though Kafka does
    not.
    """

    def serialize(self, topic: str, headers: Any, data: Any) -> Any:  # noqa: ARG002  # the client's signature
        return None if data is _NULL else data


class Outbox:
    """One producer: sends, and keeps every record in mind until the broker has confirmed it.

    After an error it sends nothing more: a record after a lost one would be out of order.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        connection = connect(KafkaProducer, settings, **PRODUCER_SETTINGS, value_serializer=_Values())
        self._producer = connection.client
        self._catalogue = Catalogue(connection, settings)
        self._timeout = self._producer.config["delivery_timeout_ms"] / 1000 + FLUSH_GRACE_SECONDS
        self._topics: set[str] = set()
        self._sent: list[tuple[str, Any]] = []
        self._failure: SinkError | None = None
        self._closed = False

    def require(self, topic: str) -> None:
        """The topic exists, else SinkError: at the start, and not when the first alert comes."""
        topics = self._catalogue.all_topics()
        if topic not in topics:
            topics = self._catalogue.all_topics()
        if topic not in topics:
            raise SinkError(
                f"Kafka has no topic {topic} to write to{nearest(topic, topics)}. Create it, correct its "
                "name in the configuration, or grant our user DESCRIBE on it."
            )
        self._topics.add(topic)
        self._catalogue.watch(self._topics)

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        headers: Sequence[tuple[str, bytes]],
        timestamp_ms: int | None = None,
    ) -> None:
        """Hand one record to the producer."""
        if self._failure is not None:
            raise self._failure
        if len(self._sent) >= MAX_UNCHECKED:
            self._look_at_arrived()
        try:
            sent = self._producer.send(
                topic,
                value=_NULL if value is None else value,
                key=key,
                headers=list(headers),
                timestamp_ms=timestamp_ms,
            )
        except Exception as error:
            raise self._failed(topic, error) from error
        self._sent.append((topic, sent))

    def flush(self) -> None:
        """Return once the broker has confirmed every record.

        Not by the producer's own `flush`: that raises when a batch had to be split, though all goes well.
        """
        if self._failure is not None:
            raise self._failure
        for topic in self._topics:
            # Told without waiting for the next alert: it may be days away, and the client is busy looking
            # until then.
            if self._catalogue.gone(topic):
                raise self._failed(topic, client_errors.UnknownTopicOrPartitionError("deleted"))
        sent, self._sent = self._sent, []
        deadline = time.monotonic() + self._timeout
        for topic, future in sent:
            self._confirm(topic, future, max(0.0, deadline - time.monotonic()))

    def _look_at_arrived(self) -> None:
        """Forget what has arrived, so that memory does not grow with what is written between two flushes."""
        waiting = []
        for topic, future in self._sent:
            if future.is_done:
                self._confirm(topic, future, 0.0)
            else:
                waiting.append((topic, future))
        self._sent = waiting

    def _confirm(self, topic: str, future: Any, timeout: float) -> None:
        try:
            future.get(timeout=timeout)
        except Exception as error:
            raise self._failed(topic, error) from error

    def _failed(self, topic: str, error: Exception) -> SinkError:
        self._failure = SinkError(f"Kafka did not take a record for topic {topic}: {error}. {_advice(error)}")
        return self._failure

    def close(self) -> None:
        """Flush, and end the producer within bounded time."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._failure is None:
                self.flush()
        finally:
            self._end_producer()

    def _end_producer(self) -> None:
        """Its `close` flushes, so after a failure it may raise and has to be called again."""
        for _ in range(2):
            try:
                with client_unheard():
                    self._producer.close(timeout=1.0)
            except client_errors.KafkaError as error:
                log.debug("closing the producer: %s", error)
            else:
                return


_ADVICE: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    (
        (client_errors.MessageSizeTooLargeError, client_errors.RecordListTooLargeError),
        "Raise max.message.bytes of the topic: it has to be larger than that of the topics we read.",
    ),
    (
        (client_errors.UnknownTopicOrPartitionError,),
        "The topic has gone: create it again, or correct its name in the configuration.",
    ),
    ((client_errors.TopicAuthorizationFailedError,), "Grant our user WRITE and DESCRIBE on the topic."),
    (
        (
            client_errors.ClusterAuthorizationFailedError,
            client_errors.TransactionalIdAuthorizationFailedError,
        ),
        "Grant our user IDEMPOTENT_WRITE on the cluster.",
    ),
    (
        (client_errors.InvalidTimestampError,),
        "The topic does not take this time: see message.timestamp.before.max.ms and .after.max.ms of the "
        "topic.",
    ),
    (
        (client_errors.KafkaTimeoutError,),
        "The brokers did not confirm in time: check that they run and that the topic has its in-sync "
        "replicas.",
    ),
)


def _advice(error: Exception) -> str:
    for kinds, text in _ADVICE:
        if isinstance(error, kinds):
            return text
    return "Check the brokers' log and start again; nothing that was not written is counted as written."


class _KafkaSink:
    """What both sinks have in common: a topic that exists, and an outbox."""

    def __init__(self, outbox: Outbox, topic: str) -> None:
        outbox.require(topic)
        self._outbox = outbox
        self._topic = topic

    def flush(self) -> None:
        self._outbox.flush()

    def close(self) -> None:
        self._outbox.close()


class KafkaAlertSink(_KafkaSink):
    """One record per alert: key the episode, so that its alerts stay in order; timestamp the tick."""

    def write(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            self._outbox.send(
                self._topic,
                value=alert.body,
                key=alert.episode_id.encode(),
                headers=[("streamdetect-action", alert.action.encode())],
                timestamp_ms=alert.tick_ms,
            )


class KafkaDeadLetterSink(_KafkaSink):
    """One record per dead letter: value, key and headers as they came, and headers that say whence and why.

    The Kafka timestamp is now, not the record's: else retention could delete a letter before anybody read it.
    """

    def write(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            record = letter.record
            self._outbox.send(
                self._topic,
                value=record.value,
                key=record.key,
                headers=[*record.headers, *_origin(record, letter)],
            )


def _origin(record: Record, letter: DeadLetter) -> list[tuple[str, bytes]]:
    told = {
        "streamdetect.origin-topic": record.partition.topic,
        "streamdetect.origin-partition": str(record.partition.number),
        "streamdetect.origin-offset": str(record.offset),
        "streamdetect.origin-timestamp": None if record.timestamp_ms is None else str(record.timestamp_ms),
        "streamdetect.reason": letter.reason,
        "streamdetect.detail": letter.detail,
    }
    return [(name, text.encode()) for name, text in told.items() if text is not None]
