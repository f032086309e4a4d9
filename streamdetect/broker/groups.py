"""Committed offsets of a consumer group, with their commit metadata."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # it has no types at all
from kafka import errors as client_errors

from streamdetect.broker.connect import Connection, connect, reaching
from streamdetect.errors import KafkaError
from streamdetect.model import Partition

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

METADATA_MS = 5_000
"""Maximum age of the client's topic metadata. Several updates decide whether a topic was deleted."""


class FinalError(KafkaError):
    """Not retryable: another attempt would fail in the same way."""


class CommittedOffset(NamedTuple):
    """`metadata` is the text stored with the offset, empty if there is none."""

    offset: int
    metadata: str


class ConsumerGroupOffsets:
    """Reads the committed offsets of `kafka.group_id` without joining the group.

    With `stable` a read waits until no offset commit is pending in an open transaction; right after this program's
    producer was initialised only that is correct. Without it a read never waits, but may return outdated offsets.
    """

    def __init__(self, settings: KafkaSettings, *, stable: bool) -> None:
        """Raises KafkaError if the broker cannot be reached."""
        self._settings = settings
        self._connection = connect(
            KafkaConsumer,
            settings,
            group_id=settings.group_id,
            isolation_level="read_committed" if stable else "read_uncommitted",
            enable_auto_commit=False,
            metadata_max_age_ms=METADATA_MS,
            auto_offset_reset="none",
        )

    @property
    def connection(self) -> Connection:
        return self._connection

    def read(self, partitions: Collection[Partition], timeout_ms: int) -> dict[Partition, CommittedOffset]:
        """The partitions that have a committed offset.

        Raises KafkaError without an answer in time, FinalError if access is denied.
        """
        wanted = [TopicPartition(*partition) for partition in partitions]
        # The client's `committed()` requests one partition at a time: seconds for many of them over a slow connection.
        coordinator: Any = self._connection.client._coordinator  # noqa: SLF001 - see above
        with reaching(self._settings, connected=True):
            try:
                found = coordinator.fetch_committed_offsets(wanted, timeout_ms=timeout_ms)
            except client_errors.AuthorizationError as error:
                raise self._denied(error, partitions) from error
        return {
            Partition(key.topic, key.partition): CommittedOffset(entry.offset, entry.metadata or "")
            for key, entry in found.items()
        }

    def _denied(self, error: Exception, partitions: Collection[Partition]) -> FinalError:
        group = self._settings.group_id
        rights = f"READ on the group {group} (kafka.group_id)"
        if isinstance(error, client_errors.TopicAuthorizationFailedError):
            rights = f"READ on {', '.join(sorted({partition.topic for partition in partitions}))}"
        return FinalError(
            f"Kafka denies reading the committed offsets of the group {group}: {error}. Grant the "
            f"configured user {rights}."
        )

    def close(self) -> None:
        self._connection.client.close()
