"""`RecordFetcher` by confluent-kafka (librdkafka): `kafka.reader: confluent`.

Only this module and `confluent_buffer.py` import that package. Its threads prefetch into one queue for all partitions,
in which end-of-log events and errors are in order between the records. Three things differ because of that:

* A held partition is not paused at once, because pausing discards what was prefetched: its records are buffered here,
  and it is paused only when too many are.
* After an error the queue continues as if nothing had happened. Here the partition stops at the error.
* librdkafka rejects a seek right after an assignment, so a seek assigns all partitions again at their own offsets.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaException,
    Message,
)
from confluent_kafka import KafkaError as ClientError
from kafka import KafkaConsumer  # type: ignore[import-untyped]  # it has no types at all
from kafka import errors as client_errors

from streamdetect.broker import bootstrap_seconds
from streamdetect.broker.client_settings import client_settings, confluent_settings
from streamdetect.broker.connect import without_secrets
from streamdetect.errors import ConfigError, KafkaError
from streamdetect.model import Batch, Partition
from streamdetect.sources.confluent_buffer import PartitionBuffer, log
from streamdetect.sources.fetcher import BEGINNING, CONSUMER_SETTINGS

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

MAX_BATCH = 5_000
"""Most messages taken from the queue at once, and most records of one batch."""

MAX_HELD_RECORDS, MAX_HELD_BYTES = 20_000, 32 * 1024 * 1024
"""Limits for all held partitions together. A partition that exceeds its share is paused."""

LIBRDKAFKA = {
    # Nothing is committed and no group is joined, but librdkafka requires a group id.
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    # librdkafka's position does not pass transaction markers; the offset of this event does.
    "enable.partition.eof": True,
    "allow.auto.create.topics": False,
    # Room for two responses of a broker, so that one can be processed while the next is in flight.
    "queued.max.messages.kbytes": 32 * 1024,
    # How long fetching pauses when the queue is full. The default of a second is long enough to drain the queue and
    # then wait.
    "fetch.queue.backoff.ms": 10,
    "max.poll.interval.ms": 86_400_000,
}


class ConfluentFetcher:
    """`RecordFetcher` by librdkafka. Raises ConfigError or KafkaError when it cannot start."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._buffers: dict[Partition, PartitionBuffer] = {}
        self._must_assign = False
        self._connection_errors: list[str] = []
        self._consumer = _consumer(settings, self._connection_errors)
        try:
            _check_reachable(self._consumer, settings, self._connection_errors)
        except BaseException:
            self._consumer.close()
            raise

    def assign(self, partitions: Collection[Partition]) -> None:
        self._buffers = {one: self._buffers.get(one) or PartitionBuffer(one) for one in partitions}
        self._must_assign = True

    def seek(self, partition: Partition, offset: int | None) -> None:
        buffer = self._buffers[partition]
        buffer.next, buffer.messages, buffer.buffered_bytes, buffer.failure = offset, [], 0, None
        self._must_assign = True

    def pause(self, partitions: Collection[Partition]) -> None:
        for partition in partitions:
            buffer = self._buffers[partition]
            buffer.held, buffer.buffered_bytes = True, sum(map(len, buffer.messages))

    def resume(self, partitions: Collection[Partition]) -> None:
        released = [self._buffers[partition] for partition in partitions]
        self._resume_fetching([buffer for buffer in released if buffer.paused])
        for buffer in released:
            buffer.held = False

    def poll(self, timeout_ms: int) -> list[Batch]:
        """Returns early and empty when a partition reaches its end."""
        self._raise_failures()
        if self._must_assign:
            self._assign_again()
        deadline = time.monotonic() + timeout_ms / 1000
        while not self._ready():
            left = deadline - time.monotonic()
            self._distribute(self._fetched(max(0.0, left)))
            if left <= 0:
                break
        batches = [batch for buffer in self._ready() if (batch := buffer.take(MAX_BATCH)) is not None]
        if not batches:
            self._raise_failures()
        return batches

    def highwater(self, partition: Partition) -> int | None:
        _, end = self._consumer.get_watermark_offsets(self._buffers[partition].topic_partition(), cached=True)
        return end if end >= 0 else None

    def position(self, partition: Partition) -> int | None:
        return self._buffers[partition].next

    def close(self) -> None:
        self._consumer.close()

    # -- implementation

    def _ready(self) -> list[PartitionBuffer]:
        return [buffer for buffer in self._buffers.values() if buffer.messages and not buffer.held]

    def _raise_failures(self) -> None:
        """Raises what stops a partition; all offsets out of range in one error."""
        out_of_range: dict[Any, int] = {}
        for buffer in self._buffers.values():
            if buffer.failure is None or buffer.held:
                continue
            if isinstance(buffer.failure, client_errors.RetriableError):
                failure, buffer.failure, self._must_assign = buffer.failure, None, True
                raise failure
            if not isinstance(buffer.failure, client_errors.OffsetOutOfRangeError):
                raise buffer.failure
            out_of_range |= buffer.failure.args[0]
        if out_of_range:
            raise client_errors.OffsetOutOfRangeError(out_of_range)

    def _assign_again(self) -> None:
        self._resume_fetching([buffer for buffer in self._buffers.values() if buffer.paused])
        assignment = []
        for buffer in self._buffers.values():
            offset = buffer.fetched_to()
            assignment.append(buffer.topic_partition(OFFSET_BEGINNING if offset is BEGINNING else offset))
        self._consumer.assign(assignment)
        self._must_assign = False

    def _resume_fetching(self, paused: Collection[PartitionBuffer]) -> None:
        if paused:
            self._consumer.resume([buffer.topic_partition() for buffer in paused])
        for buffer in paused:
            buffer.paused = False

    def _fetched(self, seconds: float) -> list[Message]:
        """Messages in the queue. `consume` waits for its whole timeout if there are fewer than requested."""
        messages = self._consumer.consume(MAX_BATCH, 0)
        if messages or not seconds:
            return messages
        messages = self._consumer.consume(1, seconds)
        return messages + self._consumer.consume(MAX_BATCH, 0) if messages else []

    def _distribute(self, messages: Iterable[Message]) -> None:
        for key, run in groupby(messages, _partition_key):
            buffer = self._buffers.get(key)  # type: ignore[call-overload]
            if buffer is None:
                for message in run:
                    log.warning("%s", message.error())
            elif buffer.failure is None:
                before = len(buffer.messages)
                buffer.messages.extend(run)
                if buffer.held:
                    buffer.buffered_bytes += sum(map(len, buffer.messages[before:]))
        self._pause_full_buffers()

    def _pause_full_buffers(self) -> None:
        """Pausing discards what is prefetched and not buffered, so that is fetched again: pause rarely."""
        held = [buffer for buffer in self._buffers.values() if buffer.held]
        full = [
            buffer
            for buffer in held
            if not buffer.paused
            and (
                len(buffer.messages) > MAX_HELD_RECORDS // len(held)
                or buffer.buffered_bytes > MAX_HELD_BYTES // len(held)
            )
        ]
        if full:
            self._consumer.pause([buffer.topic_partition() for buffer in full])
        for buffer in full:
            buffer.paused = True


def _consumer(settings: KafkaSettings, connection_errors: list[str]) -> Consumer:
    """A librdkafka consumer. `connection_errors` gets its last ten connection errors."""
    values = client_settings(KafkaConsumer.DEFAULT_CONFIG, settings, CONSUMER_SETTINGS)
    translated = confluent_settings(settings, values)

    def on_error(error: ClientError) -> None:
        connection_errors[:] = [*connection_errors[-9:], error.str()]

    try:
        return Consumer(
            {**LIBRDKAFKA, **translated, "group.id": settings.group_id, "error_cb": on_error}, logger=log
        )
    except (KafkaException, ValueError, TypeError) as error:
        text = f"confluent-kafka rejects its settings: {_text(error)}. Check kafka: in the configuration."
        raise ConfigError(without_secrets(text, settings)) from None


def _check_reachable(consumer: Consumer, settings: KafkaSettings, connection_errors: list[str]) -> None:
    """Send a request: kafka-python has connected already, but this client may still fail to."""
    consumer.poll(0)
    try:
        consumer.list_topics(
            settings.topics[0] if settings.topics else None, timeout=bootstrap_seconds(settings)
        )
    except KafkaException as error:
        consumer.consume(100, 0.1)
        why = "; ".join(dict.fromkeys([_text(error), *connection_errors]))
        text = (
            f"kafka.reader is confluent, and confluent-kafka cannot use Kafka while kafka-python can: {why}. "
            "Set kafka.reader to kafka-python."
        )
        raise KafkaError(without_secrets(text, settings)) from None


def _text(error: Exception) -> str:
    inner = error.args[0] if error.args else error
    return inner.str() if isinstance(inner, ClientError) else str(error)


def _partition_key(message: Message) -> tuple[str | None, int | None]:
    return message.topic(), message.partition()
