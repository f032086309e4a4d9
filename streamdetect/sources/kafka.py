"""Kafka as a source: live (`KafkaSource`), or between two points (`KafkaRange`).

One owner reads all partitions by manual assignment: no group, no rebalance, no position that anybody else
moves. Where to begin, and what to do when records are gone, is decided by settings and never by the client's
silence.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from kafka import KafkaConsumer  # type: ignore[import-untyped]  # it has no types at all
from kafka import errors as client_errors

from streamdetect.broker import Catalogue, bootstrap_seconds, connect, reaching
from streamdetect.broker.quiet import client_unheard
from streamdetect.config import parse_time_ms
from streamdetect.errors import KafkaError, LostOffsetsError
from streamdetect.model import Batch, Partition
from streamdetect.sources import Bounds
from streamdetect.sources.fetcher import (
    BEGINNING,
    CONSUMER_SETTINGS,
    check_reader,
    fetcher_for,
    named,
    topic_partition,
)
from streamdetect.sources.topics import FollowedTopics, made_anew

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

log = logging.getLogger(__name__)

Moment = int | Literal["earliest", "latest"]
"""A point in a log: its ends, or a time in milliseconds (the first record at or after it)."""

ASK_MS = 5_000
"""How long one question for offsets may take while records are being read."""

CONFIRM_SECONDS, TRUST_SECONDS = 1.0, 5.0
"""How often a partition's end is asked for anew, and how long an answer counts."""

STALL_SECONDS = 10.0
"""A partition that has records and gives none for so long is read with a fresh consumer."""

MAX_FAILURES = 3
"""Fresh consumers in a row without a record in between, before we give up."""


_NOT_DAMAGE = (
    client_errors.OffsetOutOfRangeError,
    client_errors.LogTruncationError,
    client_errors.RetriableError,
)
"""Errors of a poll that unpacked nothing; the next poll meets them again and knows what to do."""


class _Reader:
    """One consumer and the positions of its partitions; a damaged consumer is replaced by a fresh one.

    `_consumer` answers questions, `_records` fetches: the same client, or another one (`kafka.reader`). A consumer
    is damaged by any exception while it unpacks: kafka-python's next `poll()` would spin for ever. Positions are
    therefore kept here too: the offset after the last record handed out, or BEGINNING.
    """

    def __init__(self, settings: KafkaSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._next: dict[Partition, int | None] = {}
        self._moved: dict[Partition, float] = {}
        self._looked = clock()
        self._held: frozenset[Partition] = frozenset()
        self._busy: frozenset[Partition] = frozenset()
        self._reached: dict[Partition, int] = {}
        self._truncation: Exception | None = None
        self._failures = 0
        self._open()

    def _open(self) -> None:
        check_reader(self._settings)
        connection = connect(KafkaConsumer, self._settings, **CONSUMER_SETTINGS)
        self._consumer = connection.client
        try:
            self._records = fetcher_for(self._settings, self._consumer)
        except BaseException:
            self._consumer.close()
            raise
        self.catalogue = Catalogue(connection, self._settings)

    def partitions(self) -> tuple[Partition, ...]:
        return tuple(self._next)

    def add(self, starts: Mapping[Partition, int | None]) -> None:
        """Read these partitions too. They get a position at once: one without makes every call of the
        client raise.
        """
        self._next = dict(sorted((self._next | dict(starts)).items()))
        self._records.assign(self._next)
        for partition, offset in starts.items():
            self._seek(partition, offset)

    def _seek(self, partition: Partition, offset: int | None) -> None:
        self._next[partition] = offset
        self._reached.pop(partition, None)
        self._records.seek(partition, offset)

    def hold(self, partitions: Collection[Partition]) -> None:
        """Read nothing of these partitions until told otherwise."""
        wanted = self._next.keys() & partitions
        if self._held - wanted:
            self._moved |= dict.fromkeys(self._held - wanted, self._clock())
        self._records.pause(wanted - self._held)
        self._records.resume(self._held - wanted)
        self._held = frozenset(wanted)

    def poll(self, timeout_ms: int) -> list[Batch]:
        """The next records of every partition that is not held."""
        try:
            if self._truncation is not None:
                truncation, self._truncation = self._truncation, None
                raise truncation
            fetched = self._records.poll(timeout_ms)
        except client_errors.OffsetOutOfRangeError as error:
            self._lost({named(where): offset for where, offset in error.args[0].items()})
            return []
        except client_errors.LogTruncationError as error:
            self._truncated(error)
            return []
        except client_errors.TopicAuthorizationFailedError as error:
            topics = ", ".join(sorted(error.args[0]))
            raise KafkaError(
                f"Kafka refuses to let us read {topics}. Grant our user READ on the topic."
            ) from error
        except client_errors.RetriableError as error:
            # Nothing was unpacked, and the next poll tries again; but not a thousand times a second.
            log.debug("poll: %s", error)
            time.sleep(min(timeout_ms, 100) / 1000)
            return []
        except Exception as error:  # noqa: BLE001  # whatever unpacking raises leaves a damaged consumer behind
            return self._start_over(error)
        batches = self._handed_out(fetched)
        stalled = self._stalled()
        if stalled:
            names = ", ".join(f"{partition.topic} partition {partition.number}" for partition in stalled)
            batches += self._start_over(TimeoutError(f"there are records in {names}, but none came"))
        return batches

    def _stalled(self) -> list[Partition]:
        """Partitions whose records do not come, though the broker says that there are some.

        kafka-python 3.0.12 loses the error of a damaged batch when the partition is paused in the poll after it, and
        never reads that partition again.
        """
        now = self._clock()
        if now - self._looked < STALL_SECONDS / 5:
            return []
        self._looked = now
        waiting = [
            partition
            for partition in self._next.keys() - self._held
            if now - self._moved.setdefault(partition, now) >= STALL_SECONDS
            and self._lags(partition, self._records.highwater(partition))
        ]
        ends = self._answers(self._consumer.end_offsets, waiting, timeout_ms=1_000) if waiting else {}
        stalled = sorted(one for one in waiting if self._lags(one, ends.get(one)))
        self._moved |= dict.fromkeys(waiting, now)
        return stalled

    def _lags(self, partition: Partition, end: int | None) -> bool:
        if end is None or (self._next[partition] or 0) >= end:
            return False
        position = self.position(partition)
        return position is not None and position < end

    def _handed_out(self, batches: list[Batch]) -> list[Batch]:
        now = self._clock()
        for batch in batches:
            self._next[batch.partition] = batch.offsets[-1] + 1
            self._moved[batch.partition] = now
        self._busy = frozenset(batch.partition for batch in batches)
        if batches:
            self._failures = 0
        return batches

    def caught_up(self) -> dict[Partition, int]:
        """Positions of the partitions read up to the last end the client heard of.

        A position passes markers of transactions and what compaction took, which no record shows. Asking the
        client for it costs more the more partitions there are, so only those are asked for that may have come
        to their end.
        """
        found = {}
        for partition, offset in self._next.items():
            end = self._records.highwater(partition)
            if end is None or (partition in self._busy and (offset is None or offset < end)):
                continue
            position = self._reached.get(partition)
            if position is None or position < end:
                position = self.position(partition)
            if position is not None and position >= end:
                found[partition] = self._reached[partition] = position
        return found

    def positions(self) -> dict[Partition, int | None]:
        """The offset after everything handed out, and after markers of transactions that the client has passed; None
        where the beginning has not been looked up.
        """
        found: dict[Partition, int | None] = {}
        for partition, offset in self._next.items():
            reached = self._reached.get(partition)
            found[partition] = reached if offset is BEGINNING else max(offset, reached or 0)
        return found

    def handed_out_to(self, partition: Partition) -> int | None:
        """The offset after the last record handed out."""
        return self._next[partition]

    def position(self, partition: Partition) -> int | None:
        """The offset that is read next, without waiting for anything; None while it is being looked up."""
        try:
            return self._records.position(partition)
        except client_errors.LogTruncationError as error:
            # Told only once, so `poll` has to hear of it from us.
            self._truncation = error
            return None
        except client_errors.KafkaError:
            # `poll` meets the same error and deals with it.
            return None

    def ends(self, partitions: Iterable[Partition], timeout_ms: int = ASK_MS) -> dict[Partition, int]:
        """Where the committed records end now; empty if the brokers do not answer in time."""
        return self._answers(self._consumer.end_offsets, partitions, timeout_ms)

    def _answers(
        self, question: Any, partitions: Iterable[Partition], timeout_ms: int = ASK_MS
    ) -> dict[Partition, int]:
        try:
            return self._asked(question, partitions, timeout_ms)
        except client_errors.KafkaError as error:
            log.debug("no offsets: %s", error)
            return {}

    def lags(self) -> dict[Partition, int]:
        """Records up to the end last heard of; a partition not heard of yet is left out."""
        found = {}
        for partition, position in self.positions().items():
            end = self._records.highwater(partition)
            if end is not None and position is not None:
                found[partition] = max(0, end - position)
        return found

    def bounds(self) -> dict[Partition, Bounds]:
        """First and end offsets as the brokers say now; from another thread. Empty without an answer in time."""
        partitions = list(self._next)
        try:
            first = self._asked(self._consumer.beginning_offsets, partitions, ASK_MS)
            ends = self._asked(self._consumer.end_offsets, partitions, ASK_MS)
        except Exception as error:  # noqa: BLE001 - the other thread may be replacing the client just now
            log.debug("no bounds: %s", error)
            return {}
        return {partition: Bounds(first[partition], end) for partition, end in ends.items()}

    def offsets_at(self, partitions: Collection[Partition], moment: Moment) -> dict[Partition, int]:
        """The offset of a moment in each partition. A time after the last record means the end."""
        timeout_ms = int(bootstrap_seconds(self._settings) * 1000)
        with reaching(self._settings, connected=True):
            if moment == "earliest":
                return self._asked(self._consumer.beginning_offsets, partitions, timeout_ms)
            ends = self._asked(self._consumer.end_offsets, partitions, timeout_ms)
            if moment == "latest":
                return ends
            asked = {topic_partition(partition): max(moment, 0) for partition in partitions}
            found = self._consumer.offsets_for_times(asked, timeout_ms=timeout_ms)
        first = {named(where): at.offset for where, at in found.items() if at is not None}
        return {partition: min(first.get(partition, end), end) for partition, end in ends.items()}

    @staticmethod
    def _asked(question: Any, partitions: Iterable[Partition], timeout_ms: int) -> dict[Partition, int]:
        asked = [topic_partition(partition) for partition in partitions]
        if not asked:
            return {}
        try:
            answer = question(asked, timeout_ms=timeout_ms)
        except KeyError as error:
            # How the client says that a partition has no leader.
            raise client_errors.LeaderNotAvailableError(f"no leader for {error}") from error
        return {named(where): offset for where, offset in answer.items()}

    def close(self) -> None:
        with client_unheard():
            self._records.close()
            self._consumer.close()

    # -- records that are gone

    def _lost(self, wanted: Mapping[Partition, int]) -> None:
        """Retention overtook us, or the log is shorter than we remember. Without an answer the next poll
        tells again.
        """
        first = self._answers(self._consumer.beginning_offsets, wanted)
        if first:
            self._stop_or_jump(wanted, first)

    def _truncated(self, error: Any) -> None:
        """The log lost records that we had read (an unclean election); what follows them was not read yet."""
        diverged = {named(where): at for where, at in error.divergent_offsets.items()}
        first = self._answers(self._consumer.beginning_offsets, diverged)
        if not first:
            self._truncation = error
            return
        known = {partition: at.offset for partition, at in diverged.items() if at is not None}
        if not self._stop_or_jump({one: self._next[one] or 0 for one in diverged}, first | known):
            self._truncation = error

    def _stop_or_jump(self, wanted: Mapping[Partition, int], first: Mapping[Partition, int]) -> bool:
        """As kafka.on_lost_offsets says; `first` is where reading could go on. False: the brokers gave no
        answer.
        """
        policy = self._settings.on_lost_offsets
        if policy == "fail":
            told = "; ".join(
                _gap(partition, offset, first[partition]) for partition, offset in wanted.items()
            )
            raise LostOffsetsError(
                f"The records to continue from are gone: {told}. Kafka deleted them (retention), or the "
                "topic was made anew. To go on without them, set kafka.on_lost_offsets to earliest or "
                "latest; to lose none next time, raise the topic's retention."
            )
        target = first if policy == "earliest" else self.ends(wanted)
        for partition in wanted.keys() & target.keys():
            gap = _gap(partition, wanted[partition], first[partition])
            log.warning(
                "records lost: %s. kafka.on_lost_offsets is %s: now at %d", gap, policy, target[partition]
            )
            self._seek(partition, target[partition])
        return bool(target)

    # -- records that cannot be read

    def _start_over(self, error: Exception) -> list[Batch]:
        """A fresh consumer at the same positions; if one partition fails again there, the error names it."""
        self._failures += 1
        log.warning("reading from Kafka failed, trying once more with a fresh connection: %s", error)
        self._records.close()
        self._consumer.close()
        self._open()
        positions, self._next = self._next, {}
        self._held, held = frozenset(), self._held
        self.add(positions)
        batches = self._read_one_by_one(held)
        self.hold(held)
        if self._failures > MAX_FAILURES and not batches:
            raise KafkaError(f"Reading from Kafka fails again and again: {error}. See the log.") from error
        return batches

    def _read_one_by_one(self, held: Collection[Partition]) -> list[Batch]:
        """Every partition that has records, alone: so we know whose records cannot be read."""
        ends = self.ends(self._next)
        batches: list[Batch] = []
        for partition in [one for one in self._next if one not in held]:
            offset = self._next[partition]
            if offset is not BEGINNING and offset >= ends.get(partition, offset):
                continue
            self.hold(self._next.keys() - {partition})
            try:
                batches += self._handed_out(self._records.poll(ASK_MS))
            except _NOT_DAMAGE:
                continue
            except Exception as again:
                raise _unreadable(partition, offset, again) from again
        return batches


class KafkaSource:
    """Live: all partitions of the topics, and those that come up while it runs. Reads nothing before `begin`.

    `exclude` are topics that a pattern never means, such as those we write to.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        exclude: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._confirmed: dict[Partition, float] = {}
        self._asked_at = float("-inf")
        self._reader = _Reader(settings, clock)
        try:
            self._followed = FollowedTopics(self._reader.catalogue, settings, settings.topics, exclude)
        except BaseException:
            self._reader.close()
            raise

    def begin(
        self,
        positions: Mapping[Partition, int | None] | None = None,
        topic_ids: Mapping[str, str] | None = None,
    ) -> None:
        """Go on at `positions` (of a checkpoint); a partition that is not in it, or None there, begins at its
        beginning.

        Without positions every partition begins at `kafka.start`. `topic_ids` are those that the positions were in: a
        topic with another id was deleted and made anew, and `kafka.on_lost_offsets` decides.
        """
        self._followed.new_partitions(self._reader.catalogue)
        partitions = self._followed.partitions
        if positions is None:
            self._reader.add(self._starts(partitions))
            return
        starts = {partition: positions.get(partition, BEGINNING) for partition in partitions}
        self._reader.add(starts | self._anew(starts, topic_ids or {}))

    def _starts(self, partitions: Collection[Partition]) -> dict[Partition, int | None]:
        start = _moment(self._settings.start)
        if start == "earliest":
            # Not looked up here: retention may take the answer away before it is used.
            return dict.fromkeys(partitions, BEGINNING)
        return dict(self._reader.offsets_at(partitions, start))

    def _anew(
        self, starts: Mapping[Partition, int | None], topic_ids: Mapping[str, str]
    ) -> dict[Partition, int | None]:
        """Where to begin in topics that were made anew."""
        now = self._followed.topic_ids()
        anew = {name for name, known in topic_ids.items() if now.get(name, known) != known}
        lost = [
            partition
            for partition in starts
            if partition.topic in anew and starts[partition] is not BEGINNING
        ]
        if not lost:
            return {}
        policy = self._settings.on_lost_offsets
        if policy == "fail":
            raise LostOffsetsError(made_anew(sorted(anew)))
        log.warning(
            "topics made anew since the checkpoint: %s; reading them from the %s on", sorted(anew), policy
        )
        if policy == "latest":
            return dict(self._reader.offsets_at(lost, "latest"))
        return dict.fromkeys(lost, BEGINNING)

    def positions(self) -> dict[Partition, int | None]:
        """Where each partition goes on, None for its beginning."""
        return self._reader.positions()

    def lags(self) -> dict[Partition, int]:
        return self._reader.lags()

    def bounds(self) -> dict[Partition, Bounds]:
        return self._reader.bounds()

    def topic_ids(self) -> dict[str, str]:
        """The id of each topic, which changes when it is deleted and made anew."""
        return self._followed.topic_ids()

    def partitions(self) -> tuple[Partition, ...]:
        return self._followed.partitions

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        new = self._followed.new_partitions(self._reader.catalogue)
        if new:
            log.info(
                "new partitions: %s", ", ".join(f"{partition.topic}-{partition.number}" for partition in new)
            )
            self._reader.add(dict.fromkeys(new, BEGINNING))
        self._reader.hold(hold)
        return self._reader.poll(timeout_ms)

    def at_end(self) -> frozenset[Partition]:
        """Partitions of which the broker said just now that there is no more.

        The end the client last heard of is not enough: while a broker is away every partition would seem read
        to its end, time would go on without them, and what they hold would come late.
        """
        caught_up, now = self._reader.caught_up(), self._clock()
        due = [one for one in caught_up if now - self._confirmed.get(one, float("-inf")) >= CONFIRM_SECONDS]
        if due and now - self._asked_at >= CONFIRM_SECONDS / 4:
            ends = self._reader.ends(due, timeout_ms=1_000)
            self._asked_at = self._clock()
            self._confirmed |= {one: now for one, end in ends.items() if caught_up[one] >= end}
        return frozenset(
            one for one in caught_up if now - self._confirmed.get(one, float("-inf")) <= TRUST_SECONDS
        )

    def close(self) -> None:
        self._reader.close()


class KafkaRange:
    """Bounded: from one moment to another. Where it ends is fixed when it starts.

    A time means the first record at or after it, by the records' Kafka timestamps; `latest` is where
    committed records end now; positions end each partition before the offset given, one without at once. A
    partition ends when the position reaches its end, whether or not a record is there.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Sequence[str] = (),
        start: Moment = "earliest",
        end: Moment | Mapping[Partition, int] = "latest",
        exclude: Collection[str] = (),
    ) -> None:
        self._reader = _Reader(settings)
        try:
            self._followed = FollowedTopics(
                self._reader.catalogue, settings, topics or settings.topics, exclude
            )
            partitions = self._followed.partitions
            self._ends = self._offsets_to_end_at(partitions, end)
            starts = self._reader.offsets_at(partitions, start)
            self._done = frozenset(one for one in partitions if starts[one] >= self._ends[one])
            self._starts = {one: min(starts[one], self._ends[one]) for one in partitions}
            self._read = dict(self._starts)
            # The oldest record is not looked up early: retention may take the answer away before it is used.
            self._reader.add(dict.fromkeys(partitions, BEGINNING) if start == "earliest" else dict(starts))
        except BaseException:
            self._reader.close()
            raise

    def _offsets_to_end_at(
        self, partitions: Collection[Partition], end: Moment | Mapping[Partition, int]
    ) -> dict[Partition, int]:
        if not isinstance(end, Mapping):
            return self._reader.offsets_at(partitions, end)
        # A log that has become shorter ends where it ends.
        last = self._reader.offsets_at(partitions, "latest")
        return {partition: min(end.get(partition, 0), last[partition]) for partition in partitions}

    def partitions(self) -> tuple[Partition, ...]:
        return self._followed.partitions

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        self._followed.new_partitions(self._reader.catalogue)
        if len(self._done) == len(self._ends):
            return []
        self._reader.hold({*hold, *self._done})
        batches = [self._cut(batch) for batch in self._reader.poll(timeout_ms)]
        # Of one that begins behind the end nothing is left.
        self._read |= {batch.partition: batch.offsets[-1] + 1 for batch in batches if len(batch)}
        self._done |= self._finished(batches)
        return [batch for batch in batches if len(batch)]

    def _finished(self, batches: Sequence[Batch]) -> frozenset[Partition]:
        """Who has reached the end, by the client's position: the last offsets may be markers, or compacted
        away.

        Asking the client for positions is slow with many partitions, so that waits for a poll without
        records.
        """
        if batches:
            ends = {batch.partition: self._reader.handed_out_to(batch.partition) for batch in batches}
        else:
            ends = {one: self._reader.position(one) for one in self._ends.keys() - self._done}
        return frozenset(one for one, at in ends.items() if at is not None and at >= self._ends[one])

    def _cut(self, batch: Batch) -> Batch:
        """Without the records that came after the end was fixed."""
        end = self._ends[batch.partition]
        if batch.offsets[-1] < end:
            return batch
        count = sum(offset < end for offset in batch.offsets)
        return Batch(
            batch.partition,
            batch.values[:count],
            batch.offsets[:count],
            batch.timestamps_ms and batch.timestamps_ms[:count],
            batch.keys and batch.keys[:count],
            batch.headers and batch.headers[:count],
        )

    def at_end(self) -> frozenset[Partition]:
        return self._done

    def progress(self) -> tuple[int, int]:
        """Offsets read and offsets in all."""
        ends, starts = self._ends, self._starts
        read = [ends[one] if one in self._done else min(at, ends[one]) for one, at in self._read.items()]
        return sum(read) - sum(starts.values()), sum(ends.values()) - sum(starts.values())

    def close(self) -> None:
        self._reader.close()


def _moment(text: str) -> Moment:
    if text == "latest":
        return "latest"
    return "earliest" if text == "earliest" else parse_time_ms(text)


def _gap(partition: Partition, offset: int, first: int) -> str:
    where = f"{partition.topic} partition {partition.number}"
    return f"{where} was to go on at offset {offset}, the first that can be read is {first}"


def _unreadable(partition: Partition, offset: int | None, error: Exception) -> KafkaError:
    where = "its beginning" if offset is BEGINNING else f"offset {offset}"
    return KafkaError(
        f"Topic {partition.topic} partition {partition.number} cannot be read at {where} (the same error "
        f"twice): {error}. The records there are damaged on the broker, or packed in a way this program "
        "cannot unpack; none was skipped. Repair the partition from a replica, or let retention remove "
        "them and set kafka.on_lost_offsets to earliest."
    )
