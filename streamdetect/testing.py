"""Fakes of everything around the core, for tests of this project and of programs that use it.

A scripted source, sinks that remember, a ledger in memory that keeps the promises of Kafka's transactions, and a
clock that is moved by hand. Sinks can fail at a chosen write, a ledger around a chosen commit, and
`CrashingListener` at a chosen step of the commit protocol.
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
    """A monotonic clock in seconds that stands still until it is moved; never back."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds

    def __call__(self) -> float:
        return self._seconds

    def move(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("a clock does not go back")
        self._seconds += seconds


class MemorySource:
    """Partitions of records in memory, handed out in batches of `batch_records`; more may be added at any time.

    A record is its value, or (value, timestamp in ms). The source keeps to `hold`, and says a partition is at its end
    when everything added so far was read.
    """

    def __init__(self, partitions: Iterable[Partition], batch_records: int = 100) -> None:
        self._records: dict[Partition, list[tuple[bytes | None, int | None]]] = {p: [] for p in partitions}
        self._read = dict.fromkeys(self._records, 0)
        self._batch_records = batch_records
        self.polls: list[frozenset[Partition]] = []
        self.closed = False

    def add(self, partition: Partition, *values: bytes | tuple[bytes | None, int | None] | None) -> None:
        known = self._records.setdefault(partition, [])
        self._read.setdefault(partition, 0)
        known += [value if isinstance(value, tuple) else (value, None) for value in values]

    def partitions(self) -> tuple[Partition, ...]:
        return tuple(self._records)

    def begin(
        self,
        positions: Mapping[Partition, int | None] | None = None,
        topic_ids: Mapping[str, str] | None = None,
    ) -> None:
        """At these positions, else at the beginning."""
        del topic_ids
        self._read |= {partition: at or 0 for partition, at in (positions or {}).items()}

    def positions(self) -> dict[Partition, int | None]:
        return dict(self._read)

    def topic_ids(self) -> dict[str, str]:
        return {partition.topic: f"id of {partition.topic}" for partition in self._records}

    def again(self) -> MemorySource:
        """The same records as another process would read them, from the beginning."""
        other = MemorySource((), self._batch_records)
        other._records, other._read = self._records, dict.fromkeys(self._records, 0)
        return other

    def between(
        self, ends: Mapping[Partition, int], starts: Mapping[Partition, int] | None = None
    ) -> MemorySource:
        """The same records, each partition up to an offset, from another one on."""
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
            begin = self._read[partition]
            some = records[begin : begin + self._batch_records]
            if some and partition not in hold:
                self._read[partition] += len(some)
                offsets = range(begin, begin + len(some))
                batches.append(Batch(partition, [v for v, _ in some], offsets, [at for _, at in some]))
        return batches

    def at_end(self) -> frozenset[Partition]:
        return frozenset(p for p, records in self._records.items() if self._read[p] == len(records))

    def close(self) -> None:
        self.closed = True


class MemoryAlertSink:
    """Remembers alerts; `safe` is how many a `flush` has confirmed. Fails at the write numbered `fail_at`, from 1."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.alerts: list[Alert] = []
        self.safe = 0
        self._fail_at = fail_at
        self._writes = 0

    def write(self, alerts: Sequence[Alert]) -> None:
        self._writes += 1
        if self._writes == self._fail_at:
            raise SinkError("the sink was told to fail here")
        self.alerts += alerts

    def flush(self) -> None:
        self.safe = len(self.alerts)

    def close(self) -> None:
        self.flush()

    def lines(self) -> list[str]:
        """The alerts as text."""
        return [alert.body.decode() for alert in self.alerts]


class MemoryDeadLetterSink:
    """Remembers dead letters."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []

    def write(self, letters: Sequence[DeadLetter]) -> None:
        self.letters += letters

    def flush(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to give back."""


class Crash(BaseException):
    """The process dies here, as far as a test is concerned: nothing of ours catches it."""


class CrashingListener(RunListener):
    """Crashes when a step (1 to 5) of the commit protocol has been done for the `time`-th time."""

    def __init__(self, step: int, time: int = 1) -> None:
        self._step = step
        self._left = time

    def reached(self, step: int, number: int) -> None:
        del number
        if step == self._step:
            self._left -= 1
            if self._left == 0:
                raise Crash


class MemoryTransactionalSink:
    """A ledger in memory. `opened_again` is the same as another process would open it; who claims last, owns it.

    `crash_before` and `crash_after` count commits from 1: the process dies around that one.
    """

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self.letters: list[DeadLetter] = []
        self.commits = 0
        self.crash_before: int | None = None
        self.crash_after: int | None = None
        self._turn = RLock()
        self._shared: dict[str, object] = {"committed": Committed(), "owner": None}

    def opened_again(self) -> MemoryTransactionalSink:
        other = MemoryTransactionalSink()
        other.alerts, other.letters = self.alerts, self.letters
        other._shared, other._turn = self._shared, self._turn
        return other

    @property
    def committed(self) -> Committed:
        found = self._shared["committed"]
        assert isinstance(found, Committed)  # noqa: S101 - for the type checker
        return found

    def look(self, partitions: Collection[Partition]) -> Committed:
        del partitions
        return self.committed

    def claim(self, partitions: Collection[Partition]) -> Committed:
        self._shared["owner"] = self
        return self.look(partitions)

    def commit(
        self,
        outputs: Outputs,
        positions: Mapping[Partition, int],
        note: CommitMetadata,
        patience: Callable[[], bool] = lambda: True,
    ) -> None:
        del patience
        with self._turn:
            self.commits += 1
            if self.commits == self.crash_before:
                raise Crash
            if self._shared["owner"] is not self:
                raise FencedError("another instance has taken over")
            self.alerts += outputs.alerts
            self.letters += outputs.letters
            self._shared["committed"] = Committed({**self.committed.positions, **positions}, note)
            if self.commits == self.crash_after:
                raise Crash

    def lines(self) -> list[str]:
        """The alerts as text."""
        return [alert.body.decode() for alert in self.alerts]

    def close(self) -> None:
        """Nothing to give back."""


class MemoryLock:
    """A lock that several fakes of one directory share: `MemoryLock(other)`. Nobody gets it while another has it."""

    def __init__(self, other: MemoryLock | None = None) -> None:
        self._holders: list[MemoryLock] = [] if other is None else other._holders  # noqa: SLF001

    def acquire(self) -> bool:
        if not self._holders:
            self._holders.append(self)
        return self._holders[0] is self

    def release(self) -> None:
        """As the end of the process does it."""
        if self in self._holders:
            self._holders.remove(self)
