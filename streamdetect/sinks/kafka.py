"""Kafka as a ledger: results, positions and the note of an owner in one transaction.

Any failure of a transaction is handled as a crash would be: the producer is thrown away, a new one is made under the
same transactional id, and what is committed then says whether the transaction took place.
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
from streamdetect.sinks.broker_errors import advice, hint, is_about_us, is_final, refused_positions
from streamdetect.sinks.kafka_records import KafkaRecord, alert_record, dead_letter_record
from streamdetect.sinks.transactional import CommitMetadata, Committed
from streamdetect.sinks.watchdog import HungError, within

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

log = logging.getLogger(__name__)

PRODUCER_SETTINGS: Mapping[str, Any] = {
    "acks": "all",
    "enable_idempotence": True,
    # How long an attempt may take is for the watchdog to say, which knows how much is on its way. The client's own
    # time-outs are longer, else a large record on a slow line would be begun again for ever.
    "max_block_ms": 10_000,
    # Steps of a transaction that the broker is not ready for are tried again after so long.
    "retry_backoff_ms": 20,
    # A dead letter may be as large as the source topic allows; what the target takes is for its broker to say.
    "max_request_size": 128 * 1024 * 1024,
}
RETRY_SECONDS = 0.5
WARN_EVERY_SECONDS = 30.0
ANSWER_SECONDS = 10.0
"""How long to wait for what a group has committed."""
SECONDS_PER_BYTE = 1e-6
"""What a transaction may take longer for each byte in it."""

_WORTH_ANOTHER_TRY = (client_errors.KafkaError, HungError, KafkaError, RuntimeError)
"""RuntimeError: how the client reports that it lost track of its own requests."""

_NULL = object()


class _Values(Serializer):  # type: ignore[misc]  # the base class has no types
    """Lets a null value through: the client refuses a record with neither key nor value, though Kafka does
    not.
    """

    def serialize(self, topic: str, headers: Any, data: Any) -> Any:  # noqa: ARG002  # the client's signature
        return None if data is _NULL else data


class KafkaTransactionalSink:
    """The ledger of `kafka.group_id`. Alerts and dead letters whose topic is None are somebody else's to write."""

    def __init__(self, settings: KafkaSettings, alerts: str | None, dead_letters: str | None) -> None:
        """Raises KafkaError if the broker cannot be reached, SinkError if a topic to write to does not exist."""
        self._settings = settings
        self._alerts, self._dead_letters = alerts, dead_letters
        self._hang_seconds = settings.takeover_after_ms / 1000 * 2 / 3
        self._turn = threading.RLock()
        self._producer: Any = None
        self._partitions: Collection[Partition] = ()
        self._last: CommitMetadata | None = None
        self._warned = float("-inf")
        self._onlooker = ConsumerGroupOffsets(settings, stable=False)
        try:
            self._catalogue = Catalogue(self._onlooker.connection, settings)
            self._require([topic for topic in (alerts, dead_letters) if topic is not None])
        except BaseException:
            self._onlooker.close()
            raise

    def _require(self, topics: Collection[str]) -> None:
        """They exist, else SinkError: at the start, and not when the first alert comes."""
        known = self._catalogue.all_topics()
        if not known.keys() >= set(topics):
            known = self._catalogue.all_topics()
        for topic in topics:
            if topic not in known:
                raise SinkError(
                    f"Kafka has no topic {topic} to write to{similar_names(topic, known)}. Create it, correct its "
                    "name in the configuration, or grant our user DESCRIBE on it."
                )
        self._catalogue.watch(topics)

    def fetch_committed(self, partitions: Collection[Partition]) -> Committed:
        try:
            return _committed(
                within(self._hang_seconds + ANSWER_SECONDS, lambda: self._read(self._onlooker, partitions))
            )
        except HungError as error:
            raise KafkaError(
                f"Kafka did not tell what the group {self._settings.group_id} has committed: {error}. {advice(error)}"
            ) from None

    def fence(self, partitions: Collection[Partition]) -> Committed:
        with self._turn:
            self._partitions = tuple(partitions)
            try:
                found = self._take_over()
            except HungError as error:
                raise KafkaError(
                    f"Kafka did not answer when we asked for the transactional id {self._settings.group_id}: {error}. "
                    f"{advice(error)}"
                ) from None
            except client_errors.KafkaError as error:
                raise self._refused(error, None) from error
            self._last = found.metadata
            return found

    def commit(
        self,
        outputs: Outputs,
        positions: Mapping[Partition, int],
        metadata: CommitMetadata,
        patience: Callable[[], bool] = lambda: True,
    ) -> None:
        messages = self._messages(outputs)
        with self._turn:
            self._partitions = tuple({*self._partitions, *positions})
            while True:
                try:
                    self._check_topics()
                    if self._producer is None and self._begin_again(metadata):
                        break
                    self._transact(messages, positions, metadata)
                    break
                except _WORTH_ANOTHER_TRY as error:
                    self._after(error, patience)
            self._last = metadata

    # -- one attempt

    def _transact(
        self, messages: list[KafkaRecord], positions: Mapping[Partition, int], metadata: CommitMetadata
    ) -> None:
        size = sum(len(message.value or b"") for message in messages)
        within(
            self._hang_seconds + size * SECONDS_PER_BYTE,
            lambda: self._transaction(messages, positions, metadata),
        )

    def _transaction(
        self, messages: list[KafkaRecord], positions: Mapping[Partition, int], metadata: CommitMetadata
    ) -> None:
        """Runs in a thread of its own. Every record is confirmed before the commit: a commit alone would also succeed
        without one that the client did not even try to send.
        """
        producer = self._producer
        producer.begin_transaction()
        sent: list[tuple[str, Any]] = []
        try:
            for message in messages:
                sent.append((message.topic, self._send(producer, message)))  # noqa: PERF401 - it may raise
        except client_errors.KafkaError:
            _confirm(sent)  # what an earlier record met says more
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
    def _send(producer: Any, message: KafkaRecord) -> Any:
        with _naming(message.topic):
            return producer.send(
                message.topic,
                value=_NULL if message.value is None else message.value,
                key=message.key,
                headers=message.headers,
                timestamp_ms=message.timestamp_ms,
            )

    def _messages(self, outputs: Outputs) -> list[KafkaRecord]:
        alerts, dead_letters = self._alerts, self._dead_letters
        return [
            *([] if alerts is None else [alert_record(alerts, alert) for alert in outputs.alerts]),
            *(
                []
                if dead_letters is None
                else [dead_letter_record(dead_letters, dead_letter) for dead_letter in outputs.dead_letters]
            ),
        ]

    def _check_topics(self) -> None:
        """Told without waiting for the next alert: it may be days away, and the client is busy looking until then."""
        for topic in (self._alerts, self._dead_letters):
            if topic is not None and self._catalogue.deleted(topic):
                raise self._refused(client_errors.UnknownTopicOrPartitionError("it was deleted"), topic)

    # -- after a failure

    def _begin_again(self, metadata: CommitMetadata) -> bool:
        """A new producer after a failure; whether the note was committed after all.

        Before the broker is asked for a new producer, which ends everybody else's: whether somebody newer has come.
        """
        self._check_epoch(self.fetch_committed(self._partitions).metadata, metadata)
        found = self._take_over().metadata
        if found == metadata:
            return True
        if found is None and self._last is not None:
            raise FinalError(
                f"The positions of the group {self._settings.group_id} are gone from Kafka: somebody deleted them, "
                "or the topics they are of. What is to be published is saved in the checkpoint; the next start asks "
                "the topics what was sent."
            )
        if _step(found) != _step(self._last):
            self._check_epoch(found, metadata)
            raise FencedError(
                f"Somebody else has committed for the group {self._settings.group_id} in between (we expected "
                f"{self._last}, found {found}). This instance ends; see that only one has this group, and that nobody "
                "moves its offsets while it runs."
            )
        return False

    def _check_epoch(self, found: CommitMetadata | None, own: CommitMetadata) -> None:
        if found is not None and found.epoch > own.epoch:
            raise FencedError(
                f"Another instance ({found.owner}) has taken over the group {self._settings.group_id}. This one ends; "
                "nothing is lost."
            )

    def _take_over(self) -> Committed:
        self._drop()
        producer = connect(
            KafkaProducer,
            self._settings,
            **PRODUCER_SETTINGS,
            transactional_id=self._settings.group_id,
            value_serializer=_Values(),
        ).client
        try:
            within(self._hang_seconds, producer.init_transactions)
            found = within(self._hang_seconds + ANSWER_SECONDS, self._stable)
        except BaseException:
            abandon(producer)
            raise
        self._producer = producer
        return found

    def _stable(self) -> Committed:
        """A fresh consumer each time: one that met an outage may be hanging in the middle of it."""
        positions = ConsumerGroupOffsets(self._settings, stable=True)
        try:
            return _committed(self._read(positions, self._partitions))
        except FinalError:
            raise
        except KafkaError as error:
            # Without an answer here too it is the broker, and this says more about it.
            self.fetch_committed(self._partitions)
            raise KafkaError(
                f"A transaction with positions of the group {self._settings.group_id} does not end, though nobody is "
                "left to end it: the brokers have forgotten it. Find it with kafka-transactions.sh find-hanging, and "
                "abort it in every topic that it is in."
            ) from error
        finally:
            with client_log_muted():
                positions.close()

    @staticmethod
    def _read(positions: ConsumerGroupOffsets, partitions: Collection[Partition]) -> Mapping[Partition, Any]:
        return positions.read(partitions, int(ANSWER_SECONDS * 1000))

    def _after(self, error: Exception, patience: Callable[[], bool]) -> None:
        """Raise what cannot be mended; else wait a little."""
        self._drop()
        if isinstance(error, FinalError):
            raise error
        if isinstance(error, client_errors.KafkaError) and is_final(error):
            raise self._refused(error, getattr(error, "topic", None)) from error
        if not patience():
            raise KafkaError(
                f"Kafka did not take what is to be published: {_explained(error)} It is saved in the checkpoint, and "
                "goes out at the next start."
            ) from error
        now = time.monotonic()
        if now - self._warned >= WARN_EVERY_SECONDS:
            self._warned = now
            log.warning("Kafka did not take a transaction, trying again until it does: %s", _explained(error))
        time.sleep(RETRY_SECONDS)

    def _refused(self, error: Exception, topic: str | None) -> SinkError | KafkaError:
        if is_about_us(error) or (topic is None and not is_final(error)):
            return KafkaError(f"Kafka refused a transaction: {_text(error)}. {advice(error)}")
        where = topic or " or ".join(one for one in (self._alerts, self._dead_letters) if one is not None)
        return SinkError(f"Kafka did not take a record for topic {where}: {_text(error)}. {advice(error)}")

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            abandon(producer)

    def close(self) -> None:
        self._drop()
        with client_log_muted():
            self._onlooker.close()


@contextmanager
def _naming(topic: str) -> Iterator[None]:
    """Notes on a client's error which topic it was about, for the message."""
    try:
        yield
    except Exception as error:
        error.topic = topic  # type: ignore[attr-defined]  # read back in `_after`
        raise


def _confirm(sent: list[tuple[str, Any]]) -> None:
    """Wait for every record. Of several failures the one that says most: a record that the broker refuses takes the
    others of its batch with it, and their errors do not say why.
    """
    failures = []
    for topic, future in sent:
        try:
            with _naming(topic):
                future.get()
        except client_errors.KafkaError as error:
            failures.append(error)
    if failures:
        raise next((error for error in failures if is_final(error)), failures[0])


def abandon(producer: Any) -> None:
    """Close, but do not wait for a producer that may hang: the broker ends its transaction when the next one comes.

    The client's own `close` raises while records are on their way, and leaves its threads at work; its finalizer then
    tries again, and tells of that on standard error. So the sender is stopped first.
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
    notes = [
        metadata
        for position in found.values()
        if (metadata := CommitMetadata.parse(position.metadata)) is not None
    ]
    newest = max(notes, key=CommitMetadata.order, default=None)
    return Committed({partition: position.offset for partition, position in found.items()}, newest)


def _step(metadata: CommitMetadata | None) -> tuple[object, ...] | None:
    """What a note says without its beats, which are on one partition only and go with its topic."""
    return None if metadata is None else (metadata.epoch, metadata.owner, metadata.state, metadata.number)


def _explained(error: Exception) -> str:
    """Whole sentences. What is ours has advice already."""
    more = None if isinstance(error, KafkaError) else hint(error)
    return f"{_text(error)}." if more is None else f"{_text(error)}. {more}"


def _text(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
