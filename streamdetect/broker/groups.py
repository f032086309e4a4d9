"""What a consumer group has committed, with the text beside each position."""

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
"""How old the client's view of the topics may become: whether one has gone is judged by several answers."""


class FinalError(KafkaError):
    """Another attempt would end the same way."""


class Position(NamedTuple):
    """`metadata` is the text beside the offset, empty if there is none."""

    offset: int
    metadata: str


class ConsumerGroupOffsets:
    """Reads the positions of `kafka.group_id`; never joins it.

    `stable` waits for open transactions: right after its own producer was initialised that is the only right answer.
    Not stable is the answer of a moment ago, but never has to wait.
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

    def read(self, partitions: Collection[Partition], timeout_ms: int) -> dict[Partition, Position]:
        """Those partitions that have a position. Raises KafkaError if there is no answer in time, FinalError if we may
        not know.
        """
        wanted = [TopicPartition(*partition) for partition in partitions]
        # The client's `committed()` asks for one partition at a time: seconds for many of them on a long line.
        coordinator: Any = self._connection.client._coordinator  # noqa: SLF001 - see above
        with reaching(self._settings, connected=True):
            try:
                found = coordinator.fetch_committed_offsets(wanted, timeout_ms=timeout_ms)
            except client_errors.AuthorizationError as error:
                raise self._refused(error, partitions) from error
        return {
            Partition(where.topic, where.partition): Position(at.offset, at.metadata or "")
            for where, at in found.items()
        }

    def _refused(self, error: Exception, partitions: Collection[Partition]) -> FinalError:
        group = self._settings.group_id
        rights = f"READ on the group {group} (kafka.group_id)"
        if isinstance(error, client_errors.TopicAuthorizationFailedError):
            rights = f"READ on {', '.join(sorted({partition.topic for partition in partitions}))}"
        return FinalError(
            f"Kafka does not let us see the positions of the group {group}: {error}. Grant our user {rights}."
        )

    def close(self) -> None:
        self._connection.client.close()
