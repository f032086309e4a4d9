"""Bounded input through a team of readers: who reads what, and when it is evaluated.

What is a file the workers of a crew read themselves, so that its bytes are carried nowhere; everything else is polled
here and given to them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from streamdetect.model import Partition
from streamdetect.service.bounded.preaggregation import PartialResult
from streamdetect.service.bounded.workers import EndPartition, ExpectPartition, Pool, ReadFile
from streamdetect.sources import Source
from streamdetect.sources.files import FileSource

_POLL_MS = 500
SLACK_INTERVALS = 12
"""How far a partition may be ahead: what waits is aggregated, and workers must not wait for each other."""


_MOST_WAITING = 500_000
"""Partials (some 250 bytes each) that may wait for their tick before partitions that are ahead are held."""


class Evaluation(Protocol):
    """What becomes of harvests."""

    expected: set[Partition]

    @property
    def consumed(self) -> int:
        """Records so far."""
        ...

    @property
    def waiting(self) -> int:
        """Partials that wait for their tick."""
        ...

    def expect(self, partition: Partition) -> bool:
        """Whether the partition is a new one."""
        ...

    def too_far_ahead(self, ended: Collection[Partition]) -> set[Partition]:
        """Partitions to hold for a while."""
        ...

    def take(self, harvests: Iterable[PartialResult], *, copies: bool) -> None:
        """What was gathered; then evaluate what can be. Raises SinkError."""
        ...

    def finish(self) -> None:
        """The input has ended. Raises SinkError."""
        ...


def read_with(
    pool: Pool,
    run: Evaluation,
    source: Source,
    progress: Callable[[int], None] | None,
    stop: Callable[[], bool],
) -> bool:
    """Read everything and evaluate it; whether it was stopped. Raises InputError, WorkerLostError, SinkError."""
    files = _Files(pool, source)
    ended: set[Partition] = set()
    while True:
        for partition in source.partitions():
            if run.expect(partition):
                pool.give(ExpectPartition(partition))
        for partition in source.at_end() - ended:
            if partition not in files.lent:
                pool.give(EndPartition(partition))
            ended.add(partition)
        if len(ended) == len(run.expected) or stop():
            break
        if not _hand_out(pool, run, source, files, ended):
            pool.wait()
        run.take(files.noted(pool.harvests()), copies=pool.copies)
        files.check()
        if progress is not None:
            progress(run.consumed)
    run.take(files.noted(pool.finish()), copies=pool.copies)
    files.check()
    stopped = len(ended) < len(run.expected)
    if not stopped:
        run.finish()
    return stopped


def _hand_out(pool: Pool, run: Evaluation, source: Source, files: _Files, ended: set[Partition]) -> bool:
    """Give the team the next things to do; whether there were any."""
    busy = pool.busy()
    # Files of one day after the other are read side by side, as far as memory allows.
    held = busy if pool.copies and run.waiting < _MOST_WAITING else busy | run.too_far_ahead(ended)
    asked = files.ask_for_more(held | ended)
    if not run.expected - ended - files.lent - busy:
        return asked
    batches = source.poll(held, 0 if asked else _POLL_MS)
    for batch in batches:
        pool.give(batch)
    return asked or bool(batches)


class _Files:
    """The files that workers read themselves; none where there are no workers."""

    def __init__(self, pool: Pool, source: Source) -> None:
        self._team = pool
        self._source = source if pool.copies and isinstance(source, FileSource) else None
        self.lent: frozenset[Partition] = frozenset(self._source.lend() if self._source else ())
        self._problem: Exception | None = None

    def ask_for_more(self, not_of: Collection[Partition]) -> bool:
        """Ask for the next piece of each file that is neither held nor ended; whether any was asked for."""
        wanted = sorted(self.lent.difference(not_of))
        if self._source is not None:
            for partition in wanted:
                self._team.give(ReadFile(partition, self._source.max_record_bytes))
        return bool(wanted)

    def noted(self, harvests: Iterable[PartialResult]) -> Iterable[PartialResult]:
        """The harvests, with what they say of files told to the source."""
        for harvest in harvests:
            ended = {row.partition for row in harvest.clocks[0] if row.ended}
            for partition, size in harvest.files.items():
                if self._source is not None:
                    self._source.was_read(partition, size, ended=partition in ended)
            self._problem = self._problem or harvest.problem
            yield harvest

    def check(self) -> None:
        """Raises InputError for a file that cannot be read any further, once all before it was taken."""
        if self._problem is not None:
            raise self._problem
