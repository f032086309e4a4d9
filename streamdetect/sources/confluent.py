"""confluent-kafka (librdkafka) fetches the records: `kafka.reader: confluent`.

With `sources/messages.py` the only door of that package.

Its threads fetch ahead of us into one queue for all partitions, in which ends of logs and errors stand among the
records, each in its place. Three things are done differently because of it:

* A partition that is held is not paused at once, which would throw away what has been fetched: its records are kept
  here, and it is paused only when too many are.
* Behind an error the queue goes on, as if nothing had been there. Here the partition stops at it.
* A seek is refused right after an assignment, so to seek is to assign all partitions anew, at their own places.
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
from streamdetect.broker.connect import scrubbed
from streamdetect.broker.settings import client_settings, confluent_settings
from streamdetect.errors import ConfigError, KafkaError
from streamdetect.model import Batch, Partition
from streamdetect.sources.confluent_buffer import PartitionBuffer, log
from streamdetect.sources.fetcher import BEGINNING, CONSUMER_SETTINGS

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

AT_ONCE = 5_000
"""Records taken from the queue in one go, and at most in one batch."""

KEPT_RECORDS, KEPT_BYTES = 20_000, 32 * 1024 * 1024
"""Of all held partitions together: one that has more than its share is paused."""

LIBRDKAFKA = {
    # Nothing is ever committed, and nobody joins the group; but librdkafka wants a name, and this one we may use.
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    # Its position does not pass markers of transactions; the offset of this event does.
    "enable.partition.eof": True,
    "allow.auto.create.topics": False,
    # Two replies of a broker, and enough to go on with while the next is on its way.
    "queued.max.messages.kbytes": 32 * 1024,
    # How long fetching rests when the queue is full; a second by default, in which we read it empty and wait.
    "fetch.queue.backoff.ms": 10,
    "max.poll.interval.ms": 86_400_000,
}


class ConfluentFetcher:
    """`RecordFetcher` by librdkafka. Raises ConfigError or KafkaError where it cannot begin."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._logs: dict[Partition, PartitionBuffer] = {}
        self._moved = False
        self._told: list[str] = []
        self._consumer = _consumer(settings, self._told)
        try:
            _reach(self._consumer, settings, self._told)
        except BaseException:
            self._consumer.close()
            raise

    def assign(self, partitions: Collection[Partition]) -> None:
        self._logs = {one: self._logs.get(one) or PartitionBuffer(one) for one in partitions}
        self._moved = True

    def seek(self, partition: Partition, offset: int | None) -> None:
        moved = self._logs[partition]
        moved.next, moved.kept, moved.kept_bytes, moved.failure = offset, [], 0, None
        self._moved = True

    def pause(self, partitions: Collection[Partition]) -> None:
        for partition in partitions:
            held = self._logs[partition]
            held.held, held.kept_bytes = True, sum(map(len, held.kept))

    def resume(self, partitions: Collection[Partition]) -> None:
        released = [self._logs[partition] for partition in partitions]
        self._really_resume([one for one in released if one.paused])
        for one in released:
            one.held = False

    def poll(self, timeout_ms: int) -> list[Batch]:
        """Comes back early, with nothing, where a log has come to its end."""
        self._raise_failures()
        if self._moved:
            self._assign_anew()
        deadline = time.monotonic() + timeout_ms / 1000
        while not self._ready():
            left = deadline - time.monotonic()
            self._sort_in(self._fetched(max(0.0, left)))
            if left <= 0:
                break
        batches = [batch for one in self._ready() if (batch := one.hand_out(AT_ONCE)) is not None]
        if not batches:
            self._raise_failures()
        return batches

    def highwater(self, partition: Partition) -> int | None:
        _, end = self._consumer.get_watermark_offsets(self._logs[partition].place(), cached=True)
        return end if end >= 0 else None

    def position(self, partition: Partition) -> int | None:
        return self._logs[partition].next

    def close(self) -> None:
        self._consumer.close()

    # -- how it is done

    def _ready(self) -> list[PartitionBuffer]:
        return [one for one in self._logs.values() if one.kept and not one.held]

    def _raise_failures(self) -> None:
        """What keeps a partition from going on; all that is out of range at once."""
        out_of_range: dict[Any, int] = {}
        for one in self._logs.values():
            if one.failure is None or one.held:
                continue
            if isinstance(one.failure, client_errors.RetriableError):
                failure, one.failure, self._moved = one.failure, None, True
                raise failure
            if not isinstance(one.failure, client_errors.OffsetOutOfRangeError):
                raise one.failure
            out_of_range |= one.failure.args[0]
        if out_of_range:
            raise client_errors.OffsetOutOfRangeError(out_of_range)

    def _assign_anew(self) -> None:
        self._really_resume([one for one in self._logs.values() if one.paused])
        places = []
        for one in self._logs.values():
            offset = one.fetched_to()
            places.append(one.place(OFFSET_BEGINNING if offset is BEGINNING else offset))
        self._consumer.assign(places)
        self._moved = False

    def _really_resume(self, paused: Collection[PartitionBuffer]) -> None:
        if paused:
            self._consumer.resume([one.place() for one in paused])
        for one in paused:
            one.paused = False

    def _fetched(self, seconds: float) -> list[Message]:
        """What is in the queue. Asked for more than there is, `consume` waits for all of its time."""
        messages = self._consumer.consume(AT_ONCE, 0)
        if messages or not seconds:
            return messages
        messages = self._consumer.consume(1, seconds)
        return messages + self._consumer.consume(AT_ONCE, 0) if messages else []

    def _sort_in(self, messages: Iterable[Message]) -> None:
        for where, run in groupby(messages, _where):
            of = self._logs.get(where)  # type: ignore[call-overload]
            if of is None:
                for message in run:
                    log.warning("%s", message.error())
            elif of.failure is None:
                before = len(of.kept)
                of.kept.extend(run)
                if of.held:
                    of.kept_bytes += sum(map(len, of.kept[before:]))
        self._pause_where_too_much_is_kept()

    def _pause_where_too_much_is_kept(self) -> None:
        """Throws away what has been fetched and is not kept, so it is fetched again: better seldom."""
        held = [one for one in self._logs.values() if one.held]
        wanted = [
            one
            for one in held
            if not one.paused
            and (len(one.kept) > KEPT_RECORDS // len(held) or one.kept_bytes > KEPT_BYTES // len(held))
        ]
        if wanted:
            self._consumer.pause([one.place() for one in wanted])
        for one in wanted:
            one.paused = True


def _consumer(settings: KafkaSettings, told: list[str]) -> Consumer:
    """`told` gets what librdkafka says of its connections."""
    values = client_settings(KafkaConsumer.DEFAULT_CONFIG, settings, CONSUMER_SETTINGS)
    theirs = confluent_settings(settings, values)

    def tell(error: ClientError) -> None:
        told[:] = [*told[-9:], error.str()]

    try:
        return Consumer({**LIBRDKAFKA, **theirs, "group.id": settings.group_id, "error_cb": tell}, logger=log)
    except (KafkaException, ValueError, TypeError) as error:
        text = f"confluent-kafka refuses its settings: {_said(error)}. Check kafka: in the configuration."
        raise ConfigError(scrubbed(text, settings)) from None


def _reach(consumer: Consumer, settings: KafkaSettings, told: list[str]) -> None:
    """Ask the broker something: kafka-python has reached it, but another client may still not."""
    consumer.poll(0)
    try:
        consumer.list_topics(
            settings.topics[0] if settings.topics else None, timeout=bootstrap_seconds(settings)
        )
    except KafkaException as error:
        consumer.consume(100, 0.1)
        why = "; ".join(dict.fromkeys([_said(error), *told]))
        text = (
            f"kafka.reader is confluent, and confluent-kafka cannot use Kafka as kafka-python can: {why}. "
            "Set kafka.reader to kafka-python."
        )
        raise KafkaError(scrubbed(text, settings)) from None


def _said(error: Exception) -> str:
    inner = error.args[0] if error.args else error
    return inner.str() if isinstance(inner, ClientError) else str(error)


def _where(message: Message) -> tuple[str | None, int | None]:
    return message.topic(), message.partition()
