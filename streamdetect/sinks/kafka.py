"""Kafka as a transactional sink: outputs, positions and commit metadata in one transaction.

Any failure of a transaction is handled like a crash: discard the producer, initialise a new one with the same
transactional id, and read the committed metadata to find out whether the transaction took place.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kafka import (  # type: ignore[import-untyped]  # it has no types at all
    ConsumerGroupMetadata,
    KafkaProducer,
    OffsetAndMetadata,
    TopicPartition,
)
from kafka import errors as client_errors
from kafka.serializer import Serializer  # type: ignore[import-untyped]

from streamdetect.broker import Catalogue, connect, similar_names
from streamdetect.broker.client_log import client_log_muted
from streamdetect.broker.groups import ConsumerGroupOffsets, FinalError
from streamdetect.errors import FencedError, KafkaError, SinkError
from streamdetect.model import Partition
from streamdetect.sinks import Outputs
from streamdetect.sinks.broker_errors import advice, hint, is_about_producer, is_final, refused_positions
from streamdetect.sinks.kafka_records import KafkaRecord, alert_record, dead_letter_record
from streamdetect.sinks.transactional import CommitMetadata, Committed
from streamdetect.sinks.watchdog import HungError, within

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

log = logging.getLogger(__name__)

PRODUCER_SETTINGS: Mapping[str, Any] = {
    "acks": "all",
    "enable_idempotence": True,
    # The watchdog limits the duration of an attempt, because its timeout grows with the size of the transaction. The
    # client's own timeouts are longer; otherwise a large record over a slow connection would be restarted for ever.
    "max_block_ms": 10_000,
    # The delay before a transaction step that the broker is not ready for is retried.
    "retry_backoff_ms": 20,
    # A dead letter may be as large as the source topic allows; the broker enforces the limit of the target topic.
    "max_request_size": 128 * 1024 * 1024,
}
RETRY_SECONDS = 0.5
WARN_EVERY_SECONDS = 30.0
RESPONSE_SECONDS = 10.0
"""Timeout of a request for the committed offsets."""
SECONDS_PER_BYTE = 1e-6
"""Added to the timeout of a transaction for each byte in it."""

_RETRIABLE = (client_errors.KafkaError, HungError, KafkaError, RuntimeError)
"""The client raises RuntimeError when it has lost track of its own requests."""

_NULL = object()


class _Values(Serializer):  # type: ignore[misc]  # the base class has no types
    """Serializes the marker `_NULL` to None.

    kafka-python refuses a record whose key and value are both None, which Kafka accepts.
    """

    def serialize(self, topic: str, headers: Any, data: Any) -> Any:  # noqa: ARG002  # the client's signature
        return None if data is _NULL else data


class KafkaTransactionalSink:
    """The transactional sink of `kafka.group_id`. Skips alerts and dead letters whose topic is None."""

    def __init__(self, settings: KafkaSettings, alerts: str | None, dead_letters: str | None) -> None:
        """Raises KafkaError if the broker cannot be reached, SinkError if a topic to write to does not exist."""
        self._settings = settings
        self._alerts, self._dead_letters = alerts, dead_letters
        self._hang_seconds = settings.takeover_after_ms / 1000 * 2 / 3
        self._commit_lock = threading.RLock()
        self._producer: Any = None
        self._partitions: Collection[Partition] = ()
        self._last_committed: CommitMetadata | None = None
        self._warned_at = float("-inf")
        self._unstable_offsets = ConsumerGroupOffsets(settings, stable=False)
        try:
            self._catalogue = Catalogue(self._unstable_offsets.connection, settings)
            topics = [topic for topic in (alerts, dead_letters) if topic is not None]
            require_topics(self._catalogue, topics)
            self._catalogue.watch(topics)
        except BaseException:
            self._unstable_offsets.close()
            raise

    def fetch_committed(self, partitions: Collection[Partition]) -> Committed:
        try:
            return _committed(
                within(
                    self._hang_seconds + RESPONSE_SECONDS,
                    lambda: self._read(self._unstable_offsets, partitions),
                )
            )
        except HungError as error:
            raise KafkaError(
                f"Kafka did not return the committed offsets of {self._settings.group_id}: {error}. {advice(error)}"
            ) from None

    def fence(self, partitions: Collection[Partition]) -> Committed:
        with self._commit_lock:
            self._partitions = tuple(partitions)
            try:
                found = self._new_producer()
            except HungError as error:
                raise KafkaError(
                    f"Kafka did not initialise the transactional id {self._settings.group_id}: {error}. "
                    f"{advice(error)}"
                ) from None
            except client_errors.KafkaError as error:
                raise self._permanent_error(error, None) from error
            self._last_committed = found.metadata
            return found

    def commit(
        self,
        outputs: Outputs,
        positions: Mapping[Partition, int],
        metadata: CommitMetadata,
        patience: Callable[[], bool] = lambda: True,
    ) -> None:
        records = self._records(outputs)
        with self._commit_lock:
            self._partitions = tuple({*self._partitions, *positions})
            while True:
                try:
                    self._check_topics()
                    if self._producer is None and self._recover(metadata):
                        break
                    self._transact(records, positions, metadata)
                    break
                except _RETRIABLE as error:
                    self._handle_failure(error, patience)
            self._last_committed = metadata

    # -- one attempt

    def _transact(
        self, records: list[KafkaRecord], positions: Mapping[Partition, int], metadata: CommitMetadata
    ) -> None:
        size = sum(len(record.value or b"") for record in records)
        within(
            self._hang_seconds + size * SECONDS_PER_BYTE,
            lambda: self._transaction(records, positions, metadata),
        )

    def _transaction(
        self, records: list[KafkaRecord], positions: Mapping[Partition, int], metadata: CommitMetadata
    ) -> None:
        """Run one transaction, in the watchdog's thread. Waits for the confirmation of every record before the commit:
        a commit also succeeds without a record that the client never tried to send.
        """
        producer = self._producer
        producer.begin_transaction()
        sent: list[tuple[str, Any]] = []
        try:
            for record in records:
                sent.append((record.topic, self._send(producer, record)))  # noqa: PERF401 - it may raise
        except client_errors.KafkaError:
            _confirm(sent)  # the error of an earlier record is more specific
            raise
        _confirm(sent)
        self._send_positions(producer, positions, metadata.text())
        producer.commit_transaction()

    def _send_positions(self, producer: Any, positions: Mapping[Partition, int], text: str) -> None:
        offsets = {
            TopicPartition(partition.topic, partition.number): OffsetAndMetadata(offset, text, -1)
            for partition, offset in positions.items()
        }
        try:
            producer.send_offsets_to_transaction(offsets, ConsumerGroupMetadata(self._settings.group_id))
        except client_errors.KafkaError as error:
            refusal = refused_positions(error, sorted({partition.topic for partition in positions}))
            if refusal is not None:
                raise FinalError(refusal) from error
            raise

    @staticmethod
    def _send(producer: Any, record: KafkaRecord) -> Any:
        with _attach_topic(record.topic):
            return producer.send(
                record.topic,
                value=_NULL if record.value is None else record.value,
                key=record.key,
                headers=record.headers,
                timestamp_ms=record.timestamp_ms,
            )

    def _records(self, outputs: Outputs) -> list[KafkaRecord]:
        records: list[KafkaRecord] = []
        if self._alerts is not None:
            records += [alert_record(self._alerts, alert) for alert in outputs.alerts]
        if self._dead_letters is not None:
            records += [dead_letter_record(self._dead_letters, refused) for refused in outputs.dead_letters]
        return records

    def _check_topics(self) -> None:
        """Raise when a topic was deleted. The next alert, which would fail too, may be days away, and until then the
        client keeps requesting the topic's metadata.
        """
        for topic in (self._alerts, self._dead_letters):
            if topic is not None and self._catalogue.deleted(topic):
                raise self._permanent_error(
                    client_errors.UnknownTopicOrPartitionError("it was deleted"), topic
                )

    # -- after a failure

    def _recover(self, metadata: CommitMetadata) -> bool:
        """Initialise a new producer after a failure. Returns whether the failed transaction was committed after all.

        First checks for a newer owner, because a new producer would fence it.
        """
        self._check_epoch(self.fetch_committed(self._partitions).metadata, metadata)
        found = self._new_producer().metadata
        if found == metadata:
            return True
        if found is None and self._last_committed is not None:
            raise FinalError(
                f"The committed offsets of the group {self._settings.group_id} are gone from Kafka: they or their "
                "topics were deleted. Pending outputs are saved in the checkpoint; the next start reads back from the "
                "output topics what was published."
            )
        if _without_heartbeats(found) != _without_heartbeats(self._last_committed):
            self._check_epoch(found, metadata)
            raise FencedError(
                f"Another program has committed for the group {self._settings.group_id} (expected "
                f"{self._last_committed}, found {found}). This instance ends. Run one program per group, and do not "
                "change the group's offsets while it runs."
            )
        return False

    def _check_epoch(self, found: CommitMetadata | None, own: CommitMetadata) -> None:
        if found is not None and found.epoch > own.epoch:
            raise FencedError(
                f"Another instance ({found.owner}) has taken over the group {self._settings.group_id}. This "
                "instance ends; nothing is lost."
            )

    def _new_producer(self) -> Committed:
        self._drop_producer()
        producer = connect(
            KafkaProducer,
            self._settings,
            **PRODUCER_SETTINGS,
            transactional_id=self._settings.group_id,
            value_serializer=_Values(),
        ).client
        try:
            within(self._hang_seconds, producer.init_transactions)
            found = within(self._hang_seconds + RESPONSE_SECONDS, self._stable_committed)
        except BaseException:
            abandon(producer)
            raise
        self._producer = producer
        return found

    def _stable_committed(self) -> Committed:
        """Read with a new consumer each time, because one that was in use during an outage may hang."""
        positions = ConsumerGroupOffsets(self._settings, stable=True)
        try:
            return _committed(self._read(positions, self._partitions))
        except FinalError:
            raise
        except KafkaError as error:
            # If this read fails too, the broker is unavailable, and this error is more specific.
            self.fetch_committed(self._partitions)
            raise KafkaError(
                f"A transaction with positions of the group {self._settings.group_id} does not end, and no producer "
                "can end it: the brokers have lost track of it. Find it with kafka-transactions.sh find-hanging, and "
                "abort it in every topic that it contains."
            ) from error
        finally:
            with client_log_muted():
                positions.close()

    @staticmethod
    def _read(positions: ConsumerGroupOffsets, partitions: Collection[Partition]) -> Mapping[Partition, Any]:
        return positions.read(partitions, int(RESPONSE_SECONDS * 1000))

    def _handle_failure(self, error: Exception, patience: Callable[[], bool]) -> None:
        """Raise a permanent error, or any error when patience has run out. Otherwise wait before the retry."""
        self._drop_producer()
        if isinstance(error, FinalError):
            raise error
        if isinstance(error, client_errors.KafkaError) and is_final(error):
            raise self._permanent_error(error, getattr(error, "topic", None)) from error
        if not patience():
            raise KafkaError(
                f"Kafka did not accept the pending outputs: {_error_text(error)} They are saved in the checkpoint and "
                "will be published at the next start."
            ) from error
        now = time.monotonic()
        if now - self._warned_at >= WARN_EVERY_SECONDS:
            self._warned_at = now
            log.warning("Kafka did not accept a transaction; retrying until it does: %s", _error_text(error))
        time.sleep(RETRY_SECONDS)

    def _permanent_error(self, error: Exception, topic: str | None) -> SinkError | KafkaError:
        if is_about_producer(error) or (topic is None and not is_final(error)):
            return KafkaError(f"Kafka refused a transaction: {_text(error)}. {advice(error)}")
        where = topic or " or ".join(one for one in (self._alerts, self._dead_letters) if one is not None)
        return SinkError(f"Kafka did not accept a record for topic {where}: {_text(error)}. {advice(error)}")

    def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            abandon(producer)

    def close(self) -> None:
        self._drop_producer()
        with client_log_muted():
            self._unstable_offsets.close()


def require_topics(catalogue: Catalogue, topics: Collection[str]) -> None:
    """Raise SinkError for a topic that does not exist: at the start, not at the first alert."""
    existing = catalogue.all_topics()
    if not existing.keys() >= set(topics):  # the response may answer an older request
        existing = catalogue.all_topics()
    for topic in topics:
        if topic not in existing:
            raise SinkError(
                f"Kafka has no topic {topic} to write to{similar_names(topic, existing)}. Create it, correct its name, "
                "or grant the configured user DESCRIBE on it."
            )


@contextmanager
def _attach_topic(topic: str) -> Iterator[None]:
    """Attach the topic to an exception of the client, for the error message."""
    try:
        yield
    except Exception as error:
        error.topic = topic  # type: ignore[attr-defined]  # read in `_handle_failure`
        raise


def _confirm(sent: list[tuple[str, Any]]) -> None:
    """Wait for every record. Of several errors raise the most specific: a record that the broker refuses fails its
    whole batch, and the errors of the other records do not give the reason.
    """
    failures = []
    for topic, future in sent:
        try:
            with _attach_topic(topic):
                future.get()
        except client_errors.KafkaError as error:
            failures.append(error)
    if failures:
        raise next((error for error in failures if is_final(error)), failures[0])


def abandon(producer: Any) -> None:
    """Close a producer that may hang, without waiting for it. The broker aborts its transaction when the next producer
    with its transactional id is initialised.

    The client's own `close` raises while records are in flight, and leaves its threads running; its finalizer then
    tries again and prints to standard error. So this stops the sender first.
    """

    def close() -> None:
        producer._sender.force_close()  # noqa: SLF001 - see above
        try:
            producer.close(timeout=0.5)
        finally:
            producer._closed = True  # noqa: SLF001 - see above

    try:
        with client_log_muted():
            within(2.0, close)
    except (HungError, client_errors.KafkaError) as error:
        log.debug("closing a producer: %s", error)


def _committed(found: Mapping[Partition, Any]) -> Committed:
    parsed = (CommitMetadata.parse(committed.metadata) for committed in found.values())
    newest = max(filter(None, parsed), key=CommitMetadata.order, default=None)
    return Committed({partition: committed.offset for partition, committed in found.items()}, newest)


def _without_heartbeats(metadata: CommitMetadata | None) -> tuple[object, ...] | None:
    """Omits the heartbeat, which is committed for one partition only and is lost with its topic."""
    return None if metadata is None else (metadata.epoch, metadata.owner, metadata.state, metadata.number)


def _error_text(error: Exception) -> str:
    """Whole sentences. A KafkaError of this program contains advice already."""
    more = None if isinstance(error, KafkaError) else hint(error)
    return f"{_text(error)}." if more is None else f"{_text(error)}. {more}"


def _text(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
