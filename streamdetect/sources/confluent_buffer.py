"""From librdkafka's messages to records: the records, ends and errors of one partition, in the order they came.

No connection, no thread and no clock here: `sources/confluent.py` has those.
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
"""Under the name of the other client: what is done about the log of the one holds for both."""

# How the package names errors of its own.
END = ClientError._PARTITION_EOF  # noqa: SLF001
OUT_OF_RANGE = ClientError._AUTO_OFFSET_RESET  # noqa: SLF001
TRUNCATED = ClientError._LOG_TRUNCATION  # noqa: SLF001
_PASSING = {
    ClientError._UNKNOWN_TOPIC,  # noqa: SLF001
    ClientError._UNKNOWN_PARTITION,  # noqa: SLF001
    ClientError._TRANSPORT,  # noqa: SLF001
    ClientError._TIMED_OUT,  # noqa: SLF001
    ClientError._ALL_BROKERS_DOWN,  # noqa: SLF001
    ClientError._RESOLVE,  # noqa: SLF001
}
"""No record was skipped, and librdkafka tries again. A topic that has gone is seen in the metadata by others."""


@dataclass(slots=True)
class PartitionBuffer:
    """One partition: where we are, and what has been fetched and not handed out yet."""

    partition: Partition
    next: int | None = BEGINNING
    kept: list[Message] = field(default_factory=list)
    kept_bytes: int = 0
    held: bool = False
    paused: bool = False
    failure: Exception | None = None

    def place(self, offset: int = OFFSET_INVALID) -> TopicPartition:
        return TopicPartition(self.partition.topic, self.partition.number, offset)

    def fetched_to(self) -> int | None:
        """Where fetching has to go on. Errors at the end of what is kept are let go: they come again."""
        while self.kept and self.kept[-1].error() is not None:
            self.kept.pop()
        return _offset(self.kept[-1]) + 1 if self.kept else self.next

    def hand_out(self, at_most: int) -> Batch | None:
        """The records that come next, up to the end of what has been fetched or to an error in it."""
        run, self.kept = self.kept[:at_most], self.kept[at_most:]
        if any(map(Message.error, run)):
            run = self._without_events(run)
        if not run:
            return None
        self.next = max(self.next or 0, _offset(run[-1]) + 1)
        return _batch(self.partition, run)

    def _without_events(self, run: Iterable[Message]) -> list[Message]:
        """The records before the first failure. What is behind it is given up: it comes again, or nothing does."""
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
                    self.kept = []
                    break
        return records


def _offset(message: Any) -> int:
    """Of a record or an event of a partition; only a message that was never in a log has none."""
    offset: int = message.offset()
    return offset


def _failure(one: PartitionBuffer, message: Message, error: ClientError) -> Exception | None:
    """What kafka-python would raise, or None where librdkafka tries again by itself.

    A RetriableError: it does not, and an assignment would help.
    """
    where, code, offset = topic_partition(one.partition), error.code(), message.offset()
    failure: Exception | None
    if code == OUT_OF_RANGE and one.next is BEGINNING:
        # The question for it failed, or retention was faster than the fetch: nothing that we know of is lost.
        failure = client_errors.LeaderNotAvailableError(error.str())
    elif code == OUT_OF_RANGE:
        failure = client_errors.OffsetOutOfRangeError({where: one.next if offset is None else offset})
    elif code == TRUNCATED:
        at = None if offset is None else OffsetAndMetadata(offset, "", -1)
        failure = client_errors.LogTruncationError({where: at})
    elif code == ClientError.TOPIC_AUTHORIZATION_FAILED:
        failure = client_errors.TopicAuthorizationFailedError({one.partition.topic})
    elif code in _PASSING or issubclass(client_errors.for_code(code), client_errors.RetriableError):
        failure = None
    elif code > 0:
        failure = client_errors.for_code(code)(error.str())
    else:
        failure = client_errors.CorruptRecordError(error.str())
    return failure


def _batch(partition: Partition, records: Sequence[Message]) -> Batch:
    """Columns, built in one go each by functions written in C: this runs for every record."""
    offsets: list[Any] = list(map(Message.offset, records))
    keys = list(map(Message.key, records))
    headers: list[Any] = list(map(Message.headers, records))
    return Batch(
        partition,
        list(map(Message.value, records)),
        offsets,
        [at if kind and at >= 0 else None for kind, at in map(Message.timestamp, records)],
        keys if keys.count(None) < len(keys) else None,
        [plain_headers(some or ()) for some in headers] if any(headers) else None,
    )
