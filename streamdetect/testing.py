"""Fakes of everything around the core, for tests of this project and of programs that use it.

A scripted source, sinks that remember, and a clock that is moved by hand. Sinks can fail at a chosen write.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from streamdetect.errors import SinkError
from streamdetect.model import Alert, Batch, DeadLetter, Partition


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
