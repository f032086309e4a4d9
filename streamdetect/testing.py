"""In-memory fakes of the dependencies, for tests of this project and of programs that use it.

A source, sinks, a transactional sink with the guarantees of Kafka's transactions, a lock, and a clock that tests set.
An alert sink can fail at a chosen write, a transactional sink before or after a chosen commit, and `CrashingListener`
after a chosen step of the commit protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from threading import RLock

from streamdetect.errors import FencedError, SinkError
from streamdetect.model import Alert, Batch, DeadLetter, Partition
from streamdetect.service.live.listener import RunListener
from streamdetect.sinks import Outputs
from streamdetect.sinks.transactional import CommitMetadata, Committed
from streamdetect.sources import Bounds


class ManualClock:
    """A monotonic clock in seconds that advances only by `move`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds

    def __call__(self) -> float:
        return self._seconds

    def move(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("a clock does not go back")
        self._seconds += seconds


class MemorySource:
    """Partitions of records in memory, polled in batches of `batch_records`. Records may be added at any time.

    A record is its value, or (value, timestamp in ms). A partition is at its end when all records added so far are
    read.
    """

    def __init__(self, partitions: Iterable[Partition], batch_records: int = 100) -> None:
        self._records: dict[Partition, list[tuple[bytes | None, int | None]]] = {p: [] for p in partitions}
        self._read = dict.fromkeys(self._records, 0)
        self._batch_records = batch_records
        self.polls: list[frozenset[Partition]] = []
        self.closed = False

    def add(self, partition: Partition, *values: bytes | tuple[bytes | None, int | None] | None) -> None:
        records = self._records.setdefault(partition, [])
        self._read.setdefault(partition, 0)
        records += [value if isinstance(value, tuple) else (value, None) for value in values]

    def partitions(self) -> tuple[Partition, ...]:
        return tuple(self._records)

    def begin(
        self,
        positions: Mapping[Partition, int | None] | None = None,
        topic_ids: Mapping[str, str] | None = None,
    ) -> None:
        """Start at these positions, by default at the beginning."""
        del topic_ids
        self._read |= {partition: at or 0 for partition, at in (positions or {}).items()}

    def positions(self) -> dict[Partition, int | None]:
        return dict(self._read)

    def topic_ids(self) -> dict[str, str]:
        return {partition.topic: f"id of {partition.topic}" for partition in self._records}

    def opened_again(self) -> MemorySource:
        """The same records, read from the beginning by another process."""
        other = MemorySource((), self._batch_records)
        other._records, other._read = self._records, dict.fromkeys(self._records, 0)
        return other

    def between(
        self, ends: Mapping[Partition, int], starts: Mapping[Partition, int] | None = None
    ) -> MemorySource:
        """The same records, each partition from one offset (default: the beginning) up to another."""
        other = MemorySource((), self._batch_records)
        other._records = {partition: self._records[partition][:end] for partition, end in ends.items()}
        other._read = dict.fromkeys(other._records, 0) | dict(starts or {})
        return other

    def lags(self) -> dict[Partition, int]:
        return {
            partition: len(records) - self._read[partition] for partition, records in self._records.items()
        }

    def bounds(self) -> dict[Partition, Bounds]:
        return {partition: Bounds(0, len(records)) for partition, records in self._records.items()}

    def poll(self, hold: Collection[Partition], timeout_ms: int) -> list[Batch]:
        """The next batch of each partition that is not held. Does not wait."""
        del timeout_ms
        self.polls.append(frozenset(hold))
        batches = []
        for partition, records in self._records.items():
            start = self._read[partition]
            chunk = records[start : start + self._batch_records]
            if chunk and partition not in hold:
                self._read[partition] += len(chunk)
                offsets = range(start, start + len(chunk))
                batches.append(Batch(partition, [v for v, _ in chunk], offsets, [at for _, at in chunk]))
        return batches

    def at_end(self) -> frozenset[Partition]:
        return frozenset(p for p, records in self._records.items() if self._read[p] == len(records))

    def close(self) -> None:
        self.closed = True


class MemoryAlertSink:
    """Collects alerts; `flushed` of them were flushed. Raises SinkError at write number `fail_at`, from 1."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.alerts: list[Alert] = []
        self.flushed = 0
        self._fail_at = fail_at
        self._writes = 0

    def write(self, alerts: Sequence[Alert]) -> None:
        self._writes += 1
        if self._writes == self._fail_at:
            raise SinkError("the sink fails at this write, as the test requested")
        self.alerts += alerts

    def flush(self) -> None:
        self.flushed = len(self.alerts)

    def close(self) -> None:
        self.flush()

    def lines(self) -> list[str]:
        """The bodies of the alerts."""
        return [alert.body.decode() for alert in self.alerts]


class MemoryDeadLetterSink:
    """Collects dead letters."""

    def __init__(self) -> None:
        self.dead_letters: list[DeadLetter] = []

    def write(self, dead_letters: Sequence[DeadLetter]) -> None:
        self.dead_letters += dead_letters

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to release."""


class Crash(BaseException):
    """Simulates the death of the process. It is no Exception, so the program does not handle it."""


class CrashingListener(RunListener):
    """Raises Crash after a step (1 to 5) of the commit protocol, at its given occurrence, counted from 1."""

    def __init__(self, step: int, occurrence: int = 1) -> None:
        self._step = step
        self._left = occurrence

    def step_done(self, step: int, number: int) -> None:
        del number
        if step == self._step:
            self._left -= 1
            if self._left == 0:
                raise Crash


class MemoryTransactionalSink:
    """A transactional sink in memory; `opened_again` opens it for another process. The last to call `fence` owns it.

    Raises Crash before the commit numbered `crash_before`, or after the one numbered `crash_after`, counted from 1.
    """

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self.dead_letters: list[DeadLetter] = []
        self.commits = 0
        self.crash_before: int | None = None
        self.crash_after: int | None = None
        self._lock = RLock()
        self._shared: dict[str, object] = {"committed": Committed(), "owner": None}

    def opened_again(self) -> MemoryTransactionalSink:
        other = MemoryTransactionalSink()
        other.alerts, other.dead_letters = self.alerts, self.dead_letters
        other._shared, other._lock = self._shared, self._lock
        return other

    @property
    def committed(self) -> Committed:
        found = self._shared["committed"]
        assert isinstance(found, Committed)  # noqa: S101 - for the type checker
        return found

    def fetch_committed(self, partitions: Collection[Partition]) -> Committed:
        del partitions
        return self.committed

    def fence(self, partitions: Collection[Partition]) -> Committed:
        self._shared["owner"] = self
        return self.fetch_committed(partitions)

    def commit(
        self,
        outputs: Outputs,
        positions: Mapping[Partition, int],
        metadata: CommitMetadata,
        patience: Callable[[], bool] = lambda: True,
    ) -> None:
        del patience
        with self._lock:
            self.commits += 1
            if self.commits == self.crash_before:
                raise Crash
            if self._shared["owner"] is not self:
                raise FencedError("another instance has taken over")
            self.alerts += outputs.alerts
            self.dead_letters += outputs.dead_letters
            self._shared["committed"] = Committed({**self.committed.positions, **positions}, metadata)
            if self.commits == self.crash_after:
                raise Crash

    def lines(self) -> list[str]:
        """The bodies of the alerts."""
        return [alert.body.decode() for alert in self.alerts]

    def close(self) -> None:
        """Nothing to release."""


class MemoryLock:
    """An exclusive lock. `MemoryLock(other)` competes for the same lock, as another process would."""

    def __init__(self, other: MemoryLock | None = None) -> None:
        self._holders: list[MemoryLock] = [] if other is None else other._holders  # noqa: SLF001

    def acquire(self) -> bool:
        if not self._holders:
            self._holders.append(self)
        return self._holders[0] is self

    def release(self) -> None:
        """Release the lock, as the end of the process does."""
        if self in self._holders:
            self._holders.remove(self)
