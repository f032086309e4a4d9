"""A replay whose partitions are read by workers, on several cores. The answer is that of `replay`, byte for byte."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable
from typing import Final

from streamdetect.config import Settings
from streamdetect.model import Partition
from streamdetect.service.bounded.preaggregation import InputGroup, PartialResult
from streamdetect.service.bounded.replay import run_replay
from streamdetect.service.bounded.scheduler import SLACK_INTERVALS, read_with
from streamdetect.service.bounded.variants import AlertOutput, VariantGroup
from streamdetect.service.bounded.workers import Pool, pool_for
from streamdetect.service.gc import collecting_rarely
from streamdetect.service.pipeline import too_far_ahead, warn_of_eviction
from streamdetect.service.summary import Summary
from streamdetect.sinks import AlertSink, DeadLetterSink
from streamdetect.sources import Source

_WORTH_WORKERS: Final = 24_000_000
"""Bytes on disk from which on starting worker processes pays."""


def jobs_for(wanted: int | None, source: Source, size: int | None) -> int:
    """Worker processes: no more than partitions, and none for what is read before they have started.

    `wanted` None: as many as pay. `size` is that of the input in bytes, if known.
    """
    partitions = len(source.partitions())
    if wanted is not None:
        return min(wanted, partitions)
    if size is not None and size < _WORTH_WORKERS:
        return 1
    return min(len(os.sched_getaffinity(0)), partitions)


def replay(  # noqa: PLR0913 - what a replay is, and how
    *,
    settings: Settings,
    source: Source,
    alert_sink: AlertSink,
    dead_letter_sink: DeadLetterSink,
    jobs: int,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    pool_for: Callable[[list[InputGroup], int], Pool] = pool_for,
) -> Summary:
    """Replay a bounded source with so many workers, none where one job is enough.

    `progress` is told the records so far, `stop` asked before each poll. Stopped early, it ends without the final
    ticks. Dead letters stand in the order of each partition. Raises what the source and the sinks raise, and
    WorkerLostError.
    """
    if jobs <= 1:
        return run_replay(
            settings=settings,
            source=source,
            alert_sink=alert_sink,
            dead_letter_sink=dead_letter_sink,
            progress=None if progress is None else lambda so_far: progress(so_far.consumed),
            stop=stop,
        )
    started = time.monotonic()
    run = _Run(settings, alert_sink, dead_letter_sink)
    pool = pool_for([run.stem], jobs)
    try:
        with collecting_rarely():
            read_with(pool, run, source, progress, stop)
    finally:
        pool.close()
    dead_letter_sink.flush()
    alert_sink.flush()
    return run.summary(round(time.monotonic() - started, 3))


class _Run:
    """What becomes of harvests: see `teamwork.Evaluation`. A backtest's branch with a single variant."""

    def __init__(self, settings: Settings, alert_sink: AlertSink, dead_letter_sink: DeadLetterSink) -> None:
        self.expected: set[Partition] = set()
        self._branch = VariantGroup([AlertOutput(settings, alert_sink)], None, plain=True)
        self._slack_ms = SLACK_INTERVALS * settings.time.interval_ms
        self._dead_letter_sink = dead_letter_sink
        self._evicting = False

    @property
    def stem(self) -> InputGroup:
        return self._branch.stem

    @property
    def consumed(self) -> int:
        return self._branch.tally.consumed

    @property
    def waiting(self) -> int:
        return self._branch.waiting

    def expect(self, partition: Partition) -> bool:
        if partition in self.expected:
            return False
        self.expected.add(partition)
        self._branch.expect(partition)
        return True

    def too_far_ahead(self, ended: Collection[Partition]) -> set[Partition]:
        clocks_ms = {row.partition: row.now_ms for row in self._branch.clocks}
        return too_far_ahead(clocks_ms, ended, self._slack_ms)

    def take(self, harvests: Iterable[PartialResult], *, copies: bool) -> None:
        for harvest in harvests:
            self._branch.take(0, harvest, copies=copies)
            if harvest.letters:
                self._dead_letter_sink.write(harvest.letters)
        self._branch.advance()
        self._warn()

    def finish(self) -> None:
        self._branch.finish()
        self._warn()

    def _warn(self) -> None:
        (evicted,) = self._branch.evictions
        if evicted and not self._evicting:
            self._evicting = True
            warn_of_eviction(str(evicted))

    def summary(self, seconds: float) -> Summary:
        """The numbers, as a replay without workers has them."""
        (summary,) = self._branch.summaries(seconds)
        return summary
