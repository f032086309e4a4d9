"""One Kafka consumer with manual partition assignment: positions, pausing, polling, replacement after damage."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from kafka import KafkaConsumer  # type: ignore[import-untyped]  # it has no types at all
from kafka import errors as client_errors

from streamdetect.broker import Catalogue, connect
from streamdetect.broker.client_log import client_log_muted
from streamdetect.errors import KafkaError
from streamdetect.model import Batch, Partition
from streamdetect.sources import Bounds
from streamdetect.sources.fetcher import BEGINNING, CONSUMER_SETTINGS, partition_of
from streamdetect.sources.fetcher_factory import check_installed, make_fetcher
from streamdetect.sources.lost_offsets import LostOffsetsPolicy
from streamdetect.sources.offsets import QUERY_TIMEOUT_MS, BrokerOffsets
from streamdetect.sources.silence import SilenceTimer

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

log = logging.getLogger(__name__)

MAX_REPLACEMENTS = 3
"""New consumers in a row without a record in between, before reading fails."""

_NOT_DAMAGE = (
    client_errors.OffsetOutOfRangeError,
    client_errors.LogTruncationError,
    client_errors.RetriableError,
)
"""Errors of a poll that unpacked nothing. The next poll raises them again and handles them."""


class PartitionConsumer:
    """Reads manually assigned partitions: no consumer group, no rebalance, no position that another client moves.

    `offsets` answers queries by kafka-python, `_fetcher` fetches records: the same client, or librdkafka
    (`kafka.reader`). Any exception while a client unpacks records damages it (kafka-python's next `poll()` would loop
    forever), so it is replaced by a new one. Positions are therefore kept here too: `_next_offsets` is the offset
    after the last record returned, or BEGINNING.
    """

    def __init__(self, settings: KafkaSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._next_offsets: dict[Partition, int | None] = {}
        self._silence = SilenceTimer(clock)
        self._held: frozenset[Partition] = frozenset()
        self._in_last_poll: frozenset[Partition] = frozenset()
        self._end_positions: dict[Partition, int] = {}
        self._truncation: Exception | None = None
        self._replacements = 0
        self._open()

    def _open(self) -> None:
        check_installed(self._settings)
        connection = connect(KafkaConsumer, self._settings, **CONSUMER_SETTINGS)
        self._client = connection.client
        try:
            self._fetcher = make_fetcher(self._settings, self._client)
        except BaseException:
            self._client.close()
            raise
        self.catalogue = Catalogue(connection, self._settings)
        self.offsets = BrokerOffsets(self._client, self._settings)
        self._lost_offsets = LostOffsetsPolicy(self._settings, self.offsets)

    def close(self) -> None:
        with client_log_muted():
            self._close_clients()

    def _close_clients(self) -> None:
        self._fetcher.close()
        self._client.close()

    # -- assignment

    def add(self, starts: Mapping[Partition, int | None]) -> None:
        """Read these partitions too.

        Seeks at once: an assigned partition without a position makes every call of the client raise.
        """
        self._next_offsets = dict(sorted((self._next_offsets | dict(starts)).items()))
        self._fetcher.assign(self._next_offsets)
        self._seek(starts)

    def _seek(self, targets: Mapping[Partition, int | None]) -> None:
        for partition, offset in targets.items():
            self._next_offsets[partition] = offset
            self._end_positions.pop(partition, None)
            self._fetcher.seek(partition, offset)

    def hold(self, partitions: Collection[Partition]) -> None:
        """Return no records of these partitions, and of all others again."""
        held = self._next_offsets.keys() & partitions
        if self._held - held:
            self._silence.restart(self._held - held)
        self._fetcher.pause(held - self._held)
        self._fetcher.resume(self._held - held)
        self._held = frozenset(held)

    # -- reading

    def poll(self, timeout_ms: int) -> list[Batch]:
        """The next records of every partition that is not held."""
        try:
            if self._truncation is not None:
                truncation, self._truncation = self._truncation, None
                raise truncation
            fetched = self._fetcher.poll(timeout_ms)
        except client_errors.OffsetOutOfRangeError as error:
            positions = {partition_of(key): offset for key, offset in error.args[0].items()}
            # Without an answer of the brokers the next poll raises the error again.
            self._seek(self._lost_offsets.after_out_of_range(positions))
            return []
        except client_errors.LogTruncationError as error:
            targets = self._lost_offsets.after_truncation(error, self._next_offsets)
            self._seek(targets)
            if not targets:
                self._truncation = error
            return []
        except client_errors.TopicAuthorizationFailedError as error:
            topics = ", ".join(sorted(error.args[0]))
            raise KafkaError(
                f"Kafka denies reading {topics}. Grant the configured user READ on the topic."
            ) from error
        except client_errors.RetriableError as error:
            # Nothing was unpacked, and the next poll retries. The sleep keeps that from becoming a busy loop.
            log.debug("poll: %s", error)
            time.sleep(min(timeout_ms, 100) / 1000)
            return []
        except Exception as error:  # noqa: BLE001  # any exception while unpacking damages the client
            return self._replace_clients(error)
        batches = self._returned(fetched)
        stalled = self._stalled()
        if stalled:
            names = ", ".join(f"{partition.topic} partition {partition.number}" for partition in stalled)
            batches += self._replace_clients(TimeoutError(f"no records arrive from {names}, which has some"))
        return batches

    def _returned(self, batches: list[Batch]) -> list[Batch]:
        """Advances the positions after `batches`."""
        for batch in batches:
            self._next_offsets[batch.partition] = batch.offsets[-1] + 1
        self._in_last_poll = frozenset(batch.partition for batch in batches)
        if batches:
            self._silence.restart(self._in_last_poll)
            self._replacements = 0
        return batches

    def _stalled(self) -> list[Partition]:
        """Silent partitions of which the broker has unread records.

        kafka-python 3.0.12 loses the error of a damaged batch when the partition is paused in the poll after it, and
        never reads that partition again.
        """
        silent = [
            partition
            for partition in self._silence.silent(self._next_offsets.keys() - self._held)
            if self._is_before(partition, self._fetcher.highwater(partition))
        ]
        if not silent:
            return []
        ends = self.offsets.ends(silent, timeout_ms=1_000)
        self._silence.restart(silent)
        return sorted(partition for partition in silent if self._is_before(partition, ends.get(partition)))

    def _is_before(self, partition: Partition, end: int | None) -> bool:
        """Whether the partition has something to read before `end`."""
        if end is None or (self._next_offsets[partition] or 0) >= end:
            return False
        position = self.position(partition)
        return position is not None and position < end

    # -- positions

    def position(self, partition: Partition) -> int | None:
        """The next offset to read, without waiting; None while it is being resolved."""
        try:
            return self._fetcher.position(partition)
        except client_errors.LogTruncationError as error:
            # The client raises it only once, so it is kept for `poll`.
            self._truncation = error
            return None
        except client_errors.KafkaError:
            # `poll` gets the same error and handles it.
            return None

    def next_offset(self, partition: Partition) -> int | None:
        """The offset after the last record returned."""
        return self._next_offsets[partition]

    def positions(self) -> dict[Partition, int | None]:
        """The offset after the last record returned, and after transaction markers that the client has passed; None
        where the beginning is not resolved.
        """
        found: dict[Partition, int | None] = {}
        for partition, offset in self._next_offsets.items():
            end_position = self._end_positions.get(partition)
            found[partition] = end_position if offset is BEGINNING else max(offset, end_position or 0)
        return found

    def caught_up(self) -> dict[Partition, int]:
        """Positions of the partitions read up to the last known end.

        The client's position also passes transaction markers and compacted records. Reading it is slow with many
        partitions, so it is read only for partitions that may be at their end.
        """
        found = {}
        for partition, offset in self._next_offsets.items():
            end = self._fetcher.highwater(partition)
            if end is None or (partition in self._in_last_poll and (offset is None or offset < end)):
                continue
            position = self._end_positions.get(partition)
            if position is None or position < end:
                position = self.position(partition)
            if position is not None and position >= end:
                found[partition] = self._end_positions[partition] = position
        return found

    def lags(self) -> dict[Partition, int]:
        """Records up to the last known end; without partitions of which no end is known yet."""
        found = {}
        for partition, position in self.positions().items():
            end = self._fetcher.highwater(partition)
            if end is not None and position is not None:
                found[partition] = max(0, end - position)
        return found

    def bounds(self) -> dict[Partition, Bounds]:
        """First and end offsets at the brokers; empty without an answer in time. Another thread may call it."""
        return self.offsets.bounds(list(self._next_offsets))

    # -- damage

    def _replace_clients(self, error: Exception) -> list[Batch]:
        """Continue with new clients at the same positions. A partition that fails there again is named in the error."""
        self._replacements += 1
        log.warning("reading from Kafka failed, retrying with a new connection: %s", error)
        self._close_clients()
        self._open()
        positions, self._next_offsets = self._next_offsets, {}
        self._held, held = frozenset(), self._held
        self.add(positions)
        batches = self._read_one_by_one(held)
        self.hold(held)
        if self._replacements > MAX_REPLACEMENTS and not batches:
            raise KafkaError(
                f"Reading from Kafka failed {self._replacements} times in a row: {error}. See the log."
            ) from error
        return batches

    def _read_one_by_one(self, held: Iterable[Partition]) -> list[Batch]:
        """Poll each partition that has records alone, so that an error belongs to one partition."""
        ends = self.offsets.ends(self._next_offsets)
        batches: list[Batch] = []
        for partition in [one for one in self._next_offsets if one not in held]:
            offset = self._next_offsets[partition]
            if offset is not BEGINNING and offset >= ends.get(partition, offset):
                continue
            self.hold(self._next_offsets.keys() - {partition})
            try:
                batches += self._returned(self._fetcher.poll(QUERY_TIMEOUT_MS))
            except _NOT_DAMAGE:
                continue
            except Exception as again:
                raise _unreadable(partition, offset, again) from again
        return batches


def _unreadable(partition: Partition, offset: int | None, error: Exception) -> KafkaError:
    where = "its beginning" if offset is BEGINNING else f"offset {offset}"
    return KafkaError(
        f"Topic {partition.topic} partition {partition.number} cannot be read at {where} (the same error "
        f"twice): {error}. The records there are damaged on the broker, or compressed in a way this program "
        "cannot read; none was skipped. Repair the partition from a replica, or let retention remove "
        "them and set kafka.on_lost_offsets to earliest."
    )
