"""A replay whose partitions are read by workers, on several cores. The answer is that of `replay`, byte for byte."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable
from typing import Final

from streamdetect.config import Settings
from streamdetect.detect.readers import ClockRow, last_tick_ms, watermark_ms
from streamdetect.detect.variants import Variants, widest
from streamdetect.model import Partition
from streamdetect.service.collecting import collecting_rarely
from streamdetect.service.crew import Team, team_of
from streamdetect.service.gathering import Harvest, Stem, Tally
from streamdetect.service.pipeline import too_far_ahead, warn_of_eviction
from streamdetect.service.replay import run_replay
from streamdetect.service.summary import Summary
from streamdetect.service.teamwork import SLACK_INTERVALS, read_with
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
    team_of: Callable[[list[Stem], int], Team] = team_of,
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
    team = team_of([run.stem], jobs)
    try:
        with collecting_rarely():
            read_with(team, run, source, progress, stop)
    finally:
        team.close()
    dead_letter_sink.flush()
    alert_sink.flush()
    return run.summary(round(time.monotonic() - started, 3))


class _Run:
    """What becomes of harvests: see `teamwork.Evaluation`."""

    def __init__(self, settings: Settings, alert_sink: AlertSink, dead_letter_sink: DeadLetterSink) -> None:
        self.stem = Stem(settings, *widest([settings], tracking=False), plain=True)
        self.expected: set[Partition] = set()
        self._tally = Tally()
        self._alerts: dict[str, int] = {}
        self._engine = Variants([settings])
        self._clocks: dict[Partition, ClockRow] = {}
        self._time = settings.time
        self._alert_sink = alert_sink
        self._dead_letter_sink = dead_letter_sink

    @property
    def consumed(self) -> int:
        return self._tally.consumed

    @property
    def waiting(self) -> int:
        return self._engine.waiting

    def expect(self, partition: Partition) -> bool:
        if partition in self.expected:
            return False
        self.expected.add(partition)
        self._clocks[partition] = ClockRow(partition, None, ended=False, suspect=False)
        return True

    def too_far_ahead(self, ended: Collection[Partition]) -> set[Partition]:
        clocks_ms = {row.partition: row.now_ms for row in self._clocks.values()}
        return too_far_ahead(clocks_ms, ended, SLACK_INTERVALS * self._time.interval_ms)

    def take(self, harvests: Iterable[Harvest], *, copies: bool) -> None:
        for harvest in harvests:
            (parts,), (tally,), (clocks,) = harvest.parts, harvest.tallies, harvest.clocks
            if copies:
                self._engine.share_details(parts)
            self._engine.put(parts)
            self._tally.add(tally)
            self._clocks |= {row.partition: row for row in clocks}
            if harvest.letters:
                self._dead_letter_sink.write(harvest.letters)
        now_ms = watermark_ms(list(self._clocks.values()), self._time.lateness_ms)
        if now_ms is not None:
            self._advance_to(now_ms)

    def finish(self) -> None:
        last_ms = last_tick_ms(list(self._clocks.values()), self._time.interval_ms)
        if last_ms is not None:
            self._advance_to(last_ms)

    def _advance_to(self, time_ms: int) -> None:
        before = self._engine.evictions()
        self._engine.advance_to(time_ms)
        after = self._engine.evictions()
        if before == [0] and after != [0]:
            warn_of_eviction(str(after[0]))
        (alerts,) = self._engine.take_alerts()
        for alert in alerts:
            self._alerts[alert.action] = self._alerts.get(alert.action, 0) + 1
        if alerts:
            self._alert_sink.write(alerts)

    def summary(self, seconds: float) -> Summary:
        """The numbers, as a replay without workers has them."""
        (engine,), (evicted,) = self._engine.engines(), self._engine.evictions()
        tally = self._tally
        return Summary(
            consumed=tally.consumed,
            counted=tally.counted,
            late=tally.late,
            filtered=tally.filtered(),
            dead_lettered=tally.dead_lettered(),
            alerts=dict(sorted(self._alerts.items())),
            ticks=engine.ticks,
            keys_peak=engine.keys_peak,
            suspect_leaps=sum(row.suspect for row in self._clocks.values()),
            evicted=evicted,
            seconds=seconds,
        )
