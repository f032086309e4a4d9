"""The messages of librdkafka for one partition (records, ends of the log, errors in arrival order), made into batches.

No connection, thread or clock here; `confluent.py` has those.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import OFFSET_INVALID, Message, TopicPartition
from confluent_kafka import KafkaError as ClientError
from kafka import errors as client_errors  # type: ignore[import-untyped]  # it has no types at all
from kafka.structs import OffsetAndMetadata  # type: ignore[import-untyped]

from streamdetect.model import Batch, Partition
from streamdetect.sources.fetcher import BEGINNING, plain_headers, topic_partition

log = logging.getLogger("kafka.confluent")
"""A child of kafka-python's logger, so that its filters and capture apply to both clients."""

# Error codes of the package itself.
END = ClientError._PARTITION_EOF  # noqa: SLF001
OUT_OF_RANGE = ClientError._AUTO_OFFSET_RESET  # noqa: SLF001
TRUNCATED = ClientError._LOG_TRUNCATION  # noqa: SLF001
_TRANSIENT = {
    ClientError._UNKNOWN_TOPIC,  # noqa: SLF001
    ClientError._UNKNOWN_PARTITION,  # noqa: SLF001
    ClientError._TRANSPORT,  # noqa: SLF001
    ClientError._TIMED_OUT,  # noqa: SLF001
    ClientError._ALL_BROKERS_DOWN,  # noqa: SLF001
    ClientError._RESOLVE,  # noqa: SLF001
}
"""No record was skipped, and librdkafka retries. A deleted topic is found in kafka-python's metadata."""


@dataclass(slots=True)
class PartitionBuffer:
    """One partition: `next` is the next offset to return, `messages` are fetched and not returned yet."""

    partition: Partition
    next: int | None = BEGINNING
    messages: list[Message] = field(default_factory=list)
    buffered_bytes: int = 0
    held: bool = False
    paused: bool = False
    failure: Exception | None = None

    def topic_partition(self, offset: int = OFFSET_INVALID) -> TopicPartition:
        return TopicPartition(self.partition.topic, self.partition.number, offset)

    def fetched_to(self) -> int | None:
        """Where fetching has to continue. Drops errors at the end of the buffer: they come again."""
        while self.messages and self.messages[-1].error() is not None:
            self.messages.pop()
        return _offset(self.messages[-1]) + 1 if self.messages else self.next

    def take(self, at_most: int) -> Batch | None:
        """The next records, up to the end of the buffer or the first error in it."""
        run, self.messages = self.messages[:at_most], self.messages[at_most:]
        if any(map(Message.error, run)):
            run = self._records_of(run)
        if not run:
            return None
        self.next = max(self.next or 0, _offset(run[-1]) + 1)
        return _batch(self.partition, run)

    def _records_of(self, run: Iterable[Message]) -> list[Message]:
        """The records before the first failure. The messages after a failure are dropped and fetched again later."""
        records: list[Message] = []
        for message in run:
            error = message.error()
            if error is None:
                records.append(message)
            elif error.code() == END:
                self.next = max(self.next or 0, _offset(message))
            else:
                log.debug("%s partition %d: %s", *self.partition, error)
                self.failure = _failure(self, message, error)
                if self.failure is not None:
                    self.messages = []
                    break
        return records


def _offset(message: Any) -> int:
    """The offset of a record or an event of a partition; only a message that was never in a log has none."""
    offset: int = message.offset()
    return offset


def _failure(buffer: PartitionBuffer, message: Message, error: ClientError) -> Exception | None:
    """The error that kafka-python would raise, or None where librdkafka retries by itself.

    A RetriableError means that librdkafka does not retry, but a new assignment would help.
    """
    key, code, offset = topic_partition(buffer.partition), error.code(), message.offset()
    failure: Exception | None
    if code == OUT_OF_RANGE and buffer.next is BEGINNING:
        # The query for the beginning failed, or retention was faster than the fetch: no known record is lost.
        failure = client_errors.LeaderNotAvailableError(error.str())
    elif code == OUT_OF_RANGE:
        failure = client_errors.OffsetOutOfRangeError({key: buffer.next if offset is None else offset})
    elif code == TRUNCATED:
        unchanged = None if offset is None else OffsetAndMetadata(offset, "", -1)
        failure = client_errors.LogTruncationError({key: unchanged})
    elif code == ClientError.TOPIC_AUTHORIZATION_FAILED:
        failure = client_errors.TopicAuthorizationFailedError({buffer.partition.topic})
    elif code in _TRANSIENT or issubclass(client_errors.for_code(code), client_errors.RetriableError):
        failure = None
    elif code > 0:
        failure = client_errors.for_code(code)(error.str())
    else:
        failure = client_errors.CorruptRecordError(error.str())
    return failure


def _batch(partition: Partition, records: Sequence[Message]) -> Batch:
    """Build each column in one pass by functions written in C: this runs for every record."""
    offsets: list[Any] = list(map(Message.offset, records))
    keys = list(map(Message.key, records))
    headers: list[Any] = list(map(Message.headers, records))
    return Batch(
        partition,
        list(map(Message.value, records)),
        offsets,
        [time_ms if kind and time_ms >= 0 else None for kind, time_ms in map(Message.timestamp, records)],
        keys if keys.count(None) < len(keys) else None,
        [plain_headers(pairs or ()) for pairs in headers] if any(headers) else None,
    )
